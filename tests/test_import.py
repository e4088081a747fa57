"""Importing the package changes nothing outside it, and the command line answers before torch is loaded."""

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import eve_pyro

SNAPSHOT = """
    import logging, os, pkgutil, importlib, warnings
    import numpy as np, pandas as pd, pyro, scipy.stats, torch, matplotlib
    import pyro.settings

    def snapshot():
        return {
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "validation": torch.distributions.Distribution._validate_args,
            "torch_state": torch.get_rng_state().tolist(),
            "numpy_state": str(np.random.get_state()),
            "numpy_errors": np.geterr(),
            "numpy_print": np.get_printoptions(),
            "pyro": pyro.settings.get(),
            "store": list(pyro.get_param_store()),
            "filters": list(warnings.filters),
            "root_level": logging.getLogger().level,
            "root_handlers": list(logging.getLogger().handlers),
            "disabled": logging.root.manager.disable,
            "rc": dict(matplotlib.rcParams),
            "environment": dict(os.environ),
        }
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_module_changes_no_global_setting():
    run(
        SNAPSHOT
        + """
    before = snapshot()
    import eve_pyro
    for module in pkgutil.walk_packages(eve_pyro.__path__, "eve_pyro."):
        importlib.import_module(module.name)
    for name in eve_pyro.__all__:
        getattr(eve_pyro, name)
    after = snapshot()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, {key: (before[key], after[key]) for key in changed}
    """
    )


def test_help_needs_neither_torch_nor_pyro():
    out = run(
        """
    import sys
    import eve_pyro.cli
    heavy = {"torch", "pyro", "lightning", "pandas", "matplotlib", "pydantic"} & set(sys.modules)
    print(sorted(heavy))
    """
    )
    assert out.strip() == "[]"


def test_every_public_name_is_there_and_an_unknown_one_is_an_attribute_error():
    run(
        """
    import eve_pyro
    assert set(eve_pyro.__all__) == set(dir(eve_pyro)) == {n for names in eve_pyro._HOMES.values() for n in names}
    assert all(getattr(eve_pyro, name) is not None for name in eve_pyro.__all__)
    try:
        eve_pyro.nothing
    except AttributeError as error:
        assert "nothing" in str(error)
    else:
        raise AssertionError
    """
    )


def test_no_public_name_is_hidden_by_a_module_of_the_same_name():
    """A submodule, once imported, would take the place of the lazy name."""
    modules = {path.stem for path in Path(eve_pyro.__file__).parent.iterdir()}
    assert not modules & set(eve_pyro.__all__)


def test_what_is_built_holds_every_package():
    root = Path(eve_pyro.__file__).parent
    listed = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(root.parent) for path in root.rglob("*") if path.suffix in (".py", ".toml")}
    folders |= {Path("eve_pyro", name) for name in ("models", "guides")}  # linked, which rglob does not follow
    assert {".".join(folder.parts) for folder in folders} == set(listed)

"""The README and the examples are executed."""

import re
import runpy
import shlex
from pathlib import Path

import matplotlib
import pytest
from typer.main import get_command

from eve_pyro import cli

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "code", [code for language, code in BLOCKS if language == "python"], ids=lambda c: c.split("\n")[0]
)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def commands():
    lines = "\n".join(code for language, code in BLOCKS if language == "bash").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def test_the_two_commands_come_first_and_are_in_the_makefile():
    assert commands()[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo:", "test:"} <= set(makefile.split())


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("eve-pyro")])
def test_commands_of_the_readme_parse(line):
    name, *arguments = shlex.split(line)[1:]
    command = get_command(cli.app).commands[name]
    command.make_context(name, arguments)


@pytest.fixture
def _small(monkeypatch):
    """Run notebooks at the size for tests, and close what ArviZ and pandas draw through pyplot."""
    monkeypatch.setenv("CI", "1")
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


@pytest.mark.usefixtures("_small")
@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning", "error::FutureWarning")
@pytest.mark.parametrize("script", EXAMPLES)
def test_examples_run(script, capsys):
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("script", [script for script in EXAMPLES if script != "plain_pyro.py"])
def test_notebooks_have_a_title_and_show_their_pictures(script):
    source = (ROOT / "examples" / script).read_text(encoding="utf-8")
    assert source.startswith("# %% [markdown]\n# # ")  # what `make notebooks` looks for
    assert "\n# %matplotlib inline\n" in source  # a figure made without pyplot shows in no notebook otherwise


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

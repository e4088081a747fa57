"""One configuration: what a run is made of, as plain dataclasses, checked at the edge, kept as TOML."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from eve_pyro.control.steering import Steering
from eve_pyro.infer.training import Training, checked, option

VERSION = 1


@dataclass(frozen=True)
class DataOptions:
    """Which windows: lengths in steps, splits in rows or fractions."""

    context_length: Annotated[int, Ge(2)] = option(96, "Steps of the past a forecast sees.", "context")
    horizon: Annotated[int, Ge(1)] = option(24, "Steps of the future to forecast.")
    path: Annotated[int, Ge(1), Le(1024)] = option(1, "Successive contexts that the units' path runs over, if above 1.")
    stride: Annotated[int, Ge(1)] = option(1, "Steps between the contexts of a path.")
    rows: tuple[int, int, int] | None = option(
        None,
        "Exact rows of training, validation and test, as 8640,2880,2880. Default: the recipe's, or the "
        "standard split of ETT files.",
    )
    validation: Annotated[float, Gt(0), Lt(1)] = option(0.1, "Fraction of the rows for validation, without --rows.")
    test: Annotated[float, Gt(0), Lt(1)] = option(0.2, "Fraction of the rows for testing, without --rows.")


@dataclass(frozen=True)
class ModelOptions:
    """The neurons, what feeds them and what reads them."""

    model: Literal["forecaster", "trajectory", "stack"] = option(
        "forecaster", "forecaster: one layer; trajectory: a path along the horizon; stack: layers above one another."
    )
    units: Annotated[int, Ge(1), Le(65536)] = option(64, "Neurons in a layer.")
    depth: Annotated[int, Ge(1), Le(64)] = option(2, "Layers of a stack.")
    patches: Annotated[int, Ge(2), Le(4096)] = option(6, "Patches of the horizon in a trajectory.")
    latent_dim: Annotated[int, Ge(1), Le(1024)] = option(1, "Latent dimensions K of each neuron.")
    pooling: Literal["mean", "sum", "sqrt"] = option("sqrt", "How a neuron's K dimensions become its activity.")
    prior: Literal["standard", "learned", "contextual", "ar1", "contextual_ar1"] = option(
        "standard",
        "Prior of each neuron; the last two are AR(1) over the path, around standard or contextual marginals.",
    )
    phi: Annotated[float, Ge(-0.999999), Le(0.999999)] = option(0.95, "Persistence of an AR(1) prior.")
    learn_phi: bool = option(False, "Learn the persistence of each neuron, from phi on.")
    readout: Literal["factor", "normal", "student_t"] = option(
        "factor", "factor: exact marginals, dependence by the units; normal, student_t: decoded from the units alone."
    )
    volatility: bool = option(
        False, "A volatility unit: a Gamma neuron that makes windows calm or wild, with Student's tails."
    )
    head_scale: Literal["read", "global"] = option("read", "Scale of a decoded head: read from z, or one a step.")
    hidden: Annotated[int, Ge(1), Le(65536)] = option(256, "Hidden width of encoder, decoder and guide.")
    features: Annotated[int, Ge(1), Le(65536)] = option(512, "Linear features of the encoder.")
    encoder_layers: Annotated[int, Ge(1), Le(64)] = option(1, "Hidden layers of the encoder's nonlinear branch.")
    dropout: Annotated[float, Ge(0), Lt(1)] = option(0.1, "Dropout of the encoder's features.")
    floor: Annotated[float, Gt(0), Le(100)] = option(0.2, "Floor of a context's deviation in instance normalisation.")


@dataclass(frozen=True)
class GuideOptions:
    """The posterior."""

    guide: Literal["future_aware", "context", "delta", "autoregressive", "low_rank", "flow", "conjugate"] = option(
        "future_aware",
        "future_aware: q(z | x, y); context: q(z | x), the paper's neuron; delta: a point; autoregressive: along the "
        "path; low_rank, flow: across units; conjugate: exact under the factor readout.",
    )
    rank: Annotated[int, Ge(1), Le(1024)] = option(4, "Rank of the low_rank guide.")
    guide_scale: Literal["scalar", "unit", "input"] = option("unit", "Scale of the context guide.")


@dataclass(frozen=True)
class ObjectiveOptions:
    """The local ELBO."""

    objective: Literal["elbo", "mixture", "predictive", "composite"] = option(
        "predictive",
        "Likelihood term of the local ELBO. predictive: with the marginals' density beside it; composite: with that of "
        "means over blocks of steps too, the more steps have in common.",
    )
    alpha: Annotated[float, Interval(ge=0, le=1)] = option(
        0.5, "Weight of the ELBO beside the predictive term; beside composite, the less the more steps have in common."
    )
    held: Literal["locations", "scales"] | None = option(
        None, "What the ELBO does not move, so that it learns from what stands beside it alone. Default: none."
    )
    beta: Annotated[float, Ge(0), Le(1e6)] = option(1.0, "Price of a nat of KL, for every unit.")
    num_particles: Annotated[int, Ge(1), Le(4096)] = option(1, "Draws of the units inside the ELBO.")


@dataclass(frozen=True)
class Config:
    """Everything that makes a run repeat, by section."""

    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    guide: GuideOptions = GuideOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    control: Steering = field(default_factory=Steering)
    training: Training = field(default_factory=Training)
    recipe: str = "factor"
    version: int = VERSION


SECTIONS: dict[str, type] = {
    "data": DataOptions,
    "model": ModelOptions,
    "guide": GuideOptions,
    "objective": ObjectiveOptions,
    "control": Steering,
    "training": Training,
}


def option_named(flag: str) -> str:
    """Return the name of the option that the command line calls ``--flag``, or the flag itself, as a name."""
    name = flag.removeprefix("--").replace("-", "_")
    flags = {item.metadata.get("name"): item.name for kind in SECTIONS.values() for item in fields(kind)}
    return flags.get(name.replace("_", "-"), name)


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(Path(file.name).stem for file in files("eve_pyro.recipes").iterdir() if file.name.endswith(".toml"))


def recipe_tree(name: str) -> dict[str, Any]:
    """Return what a recipe of the package says, by section: options that it leaves out have their own defaults."""
    return tomllib.loads(files("eve_pyro.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> Config:
    """Return a recipe, by name or from a TOML file, with single options overridden, ``{"units": 128}``.

    An option that may be left out is so where it is overridden by None or "none".

    Raises ValueError for unknown recipes and options, and for values out of range.
    """
    if name.endswith(".toml"):
        tree = asdict(from_toml(Path(name)))
    elif name in recipe_names():
        tree = recipe_tree(name) | {"recipe": name}
    else:
        raise ValueError(f"there is no recipe {name!r}; choose one of {', '.join(recipe_names())}, or a TOML file")
    homes = {item.name: (section, item) for section, kind in SECTIONS.items() for item in fields(kind)}
    for key, value in (overrides or {}).items():
        if key not in homes:
            raise ValueError(f"unknown option {key!r}; known: {', '.join(sorted(homes))}")
        section, item = homes[key]
        tree.setdefault(section, {})[key] = None if value == "none" and item.default is None else value
    return check(tree)


def check(tree: dict[str, Any]) -> Config:
    """Return a checked ``Config``; ValueError names the option, what it may be, and what it was."""
    version = tree.get("version", VERSION)
    if version != VERSION:
        raise ValueError(f"this configuration is of version {version}, the library reads version {VERSION}")
    for section, kind in SECTIONS.items():
        if not isinstance(tree.get(section, {}), dict):
            raise ValueError(f"[{section}] is a section of options, not {tree[section]!r}")
        unknown = set(tree.get(section, {})) - {item.name for item in fields(kind)}
        if unknown:
            raise ValueError(f"unknown option {sorted(unknown)[0]!r} in [{section}]")
    unknown = set(tree) - {item.name for item in fields(Config)}
    if unknown:
        raise ValueError(f"unknown section {sorted(unknown)[0]!r} in the configuration")
    return checked(Config, tree)


def to_toml(config: Config) -> str:
    """Return the configuration as TOML, options without a value left out."""
    import tomli_w

    tree = asdict(config)
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    sections = {name: {k: v for k, v in tree[name].items() if v is not None} for name in SECTIONS}
    return tomli_w.dumps(plain | sections)


def from_toml(path: Path) -> Config:
    """Read a configuration; ValueError for a file that is missing, broken or of another version."""
    try:
        return check(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"no configuration at {path}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid TOML: {error}") from None

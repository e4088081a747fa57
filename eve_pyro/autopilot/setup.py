"""What a study is, as its storage keeps it: all that decides its outcome, so that nothing else joins it."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from eve_pyro.autopilot.plan import Plan
from eve_pyro.autopilot.space import Space, flat, parse_space, replaced
from eve_pyro.autopilot.training import DRAWS
from eve_pyro.bench.trials import fingerprint, rehearse
from eve_pyro.config import Config, check, to_toml
from eve_pyro.data import Panel

VERSION = 2


@dataclass(frozen=True)
class Setup:
    """A recipe, the space around it, the plan, and the checksum of recipe and data."""

    base: Config
    space: Space
    plan: Plan
    mark: str

    @classmethod
    def of(cls, panel: Panel, base: Config, space: Space, plan: Plan) -> "Setup":
        """Return the setup of a new study on ``panel``; no training of it shows a progress bar."""
        base = replace(base, training=replace(base.training, epochs=plan.epochs, progress=False))
        return cls(base, space, plan, fingerprint(base, panel, DRAWS))

    def config(self, trial: int) -> Config:
        """Return what a trial trains."""
        return replaced(self.base, self.options(trial))

    def options(self, trial: int) -> dict[str, Any]:
        """Return the options that a trial was given."""
        return self.space.draw(self.base, self.base.training.seed, trial)

    def rehearse(self, panel: Panel) -> None:
        """Raise ValueError where a trial's options contradict one another, before anything is trained, or the recipe
        does not go with the data.
        """
        rehearse(panel, self.base)
        for trial in range(self.plan.budget):
            try:
                rehearse(panel, self.config(trial))
            except ValueError as error:
                named = ", ".join(f"{name} = {_short(value)}" for name, value in self.options(trial).items())
                told = str(error).split("\n")[0]  # without Pyro's account of the shapes
                raise ValueError(f"the space contradicts itself: {told} (trial {trial}: {named})") from None

    def to_attrs(self) -> dict[str, Any]:
        """Return the setup as a storage keeps it."""
        plan = asdict(self.plan) | {"objectives": list(self.plan.objectives)}
        space = {"text": self.space.text, "options": list(self.space.entries)}
        return {"version": VERSION, "recipe": to_toml(self.base), "space": space, "plan": plan, "mark": self.mark}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any], name: str) -> "Setup":
        """Read a setup back; ValueError for a study of another version, and for one that is none of ours."""
        if attrs.get("version") != VERSION:
            found = f"is of version {attrs['version']}" if "version" in attrs else "is none of autopilot's"
            raise ValueError(f"the study {name!r} {found}; this is version {VERSION}: choose another --out")
        base = check(tomllib.loads(attrs["recipe"]))
        space = parse_space(attrs["space"]["text"], base, "the study's space")
        held = set(space.entries) - set(attrs["space"]["options"])
        plan = Plan(**attrs["plan"] | {"objectives": tuple(attrs["plan"]["objectives"])})
        return cls(base, space.without(held), plan, attrs["mark"])

    def check_same(self, other: "Setup", name: str) -> None:
        """Raise ValueError, naming the first difference, where ``other`` is not this study's setup."""
        begun, given = (asdict(each.plan) | flat(each.base) for each in (self, other))
        for option, value in begun.items():
            if given[option] != value:
                raise ValueError(
                    f"the study {name!r} was begun with {option} = {value!r}, not {given[option]!r}: continue it so"
                )
        if other.base != self.base:
            raise ValueError(f"the study {name!r} was begun with another recipe: choose another --out")
        if other.space.entries != self.space.entries:
            raise ValueError(f"the study {name!r} was begun with another space: choose another --out")
        self.check_data(other.mark, name)

    def check_data(self, mark: str, name: str) -> None:
        """Raise ValueError for a checksum of other data."""
        if mark != self.mark:
            raise ValueError(f"the study {name!r} was begun with other data: name the same file, or another --out")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What the search draws from: a small TOML file, checked option by option, and configurations drawn from it."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from eve_pyro.autopilot.plan import RECIPE
from eve_pyro.config import SECTIONS, Config, check
from eve_pyro.infer.training import checked

SEARCHED = ("model", "guide", "objective", "control", "training")
FIXED = {  # what would make trials incomparable, or changes nothing that is learned
    "seed": "all trials share theirs",
    "epochs": "all trials have the same",
    "validation_windows": "all trials are scored on the same windows",
    "progress": "it changes nothing that is learned",
    "accelerator": "it changes nothing that is learned",
}
Value = bool | int | float | str


@dataclass(frozen=True)
class Entry:
    """An option's section of the file: ``low`` and ``high``, or ``values``; ``when``: what others must be."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    values: list[Value] | None = None
    when: dict[str, list[Value]] | None = None


@dataclass(frozen=True)
class Space:
    """The options that are searched, in the order of the file, and the file's ``text``."""

    entries: Mapping[str, Entry]
    text: str

    def without(self, names: set[str]) -> "Space":
        """Return the space with some options held fixed; ValueError where none is left."""
        left = {name: entry for name, entry in self.entries.items() if name not in names}
        if not left:
            raise ValueError("the space is empty: every option of it is held fixed on the command line")
        return Space(left, self.text)

    def draw(self, base: Config, seed: int, number: int) -> dict[str, Value]:
        """Return the options of trial ``number``: they depend on ``seed`` and number alone, not on who asks when.

        Trial 0 is ``base`` itself, or what the space has nearest to it. Options whose condition ``base`` and the drawn
        ones do not meet are left out.
        """
        known, drawn = flat(base), {}
        for place, (name, entry) in enumerate(self.entries.items()):
            if number == RECIPE:
                value = _nearest(entry, known[name])
            else:
                value = _drawn(entry, kind_of(name), np.random.default_rng([seed, number, place]))
            if all(known[other] in wanted for other, wanted in (entry.when or {}).items()):
                known[name] = drawn[name] = value
        return drawn


def homes() -> dict[str, str]:
    """Return the section of every option."""
    return {item.name: section for section, kind in SECTIONS.items() for item in fields(kind)}


def kind_of(name: str) -> Any:
    """Return the type of an option."""
    hint = get_type_hints(SECTIONS[homes()[name]])[name]
    return hint if hint in (bool, int, float) else str


def flat(config: Config) -> dict[str, Any]:
    """Return all options by name."""
    tree = asdict(config)
    return {name: tree[section][name] for name, section in homes().items()}


def replaced(config: Config, options: Mapping[str, Any]) -> Config:
    """Return ``config`` with single options replaced, checked."""
    tree = asdict(config)
    for name, value in options.items():
        tree[homes()[name]][name] = value
    return check(tree)


def read_space(path: Path | None, base: Config) -> Space:
    """Read a space from a file, or the default one, and check it against ``base``, the recipe it varies.

    Raises ValueError that names file and option: for what is no option or not to be searched, low >= high, no values or
    a value twice, a condition on what is unknown or comes later in the file, and for values that the recipe refuses.
    """
    name = "the default space" if path is None else str(path)
    try:
        raw = (files("eve_pyro.autopilot").joinpath("space.toml") if path is None else path).read_bytes()
        return parse_space(raw.decode("utf-8"), base, name)
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no valid TOML: {error}") from None


def parse_space(text: str, base: Config, name: str) -> Space:
    """Read a space from ``text``, see ``read_space``; ``name`` is what the user knows it by."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is no valid TOML: {error}") from None
    if not tree:
        raise ValueError(f"{name} is empty: name at least one option, such as [units] with values = [16, 64]")
    entries: dict[str, Entry] = {}
    for option, section in tree.items():
        try:
            entries[option] = _entry(option, section, base)
        except ValueError as error:
            raise ValueError(f"{name}, [{option}]: {error}") from None
        for other in entries[option].when or {}:
            if other not in homes() or (other in tree and other not in list(entries)[:-1]):
                known = "comes later in the file" if other in tree else "is no option"
                raise ValueError(f"{name}, [{option}]: it depends on {other!r}, which {known}")
    return Space(entries, text)


def _entry(option: str, section: Any, base: Config) -> Entry:
    searched = sorted(name for name, home in homes().items() if home in SEARCHED and name not in FIXED)
    if option in FIXED:
        raise ValueError(f"it cannot be searched: {FIXED[option]}")
    if option not in searched:
        raise ValueError(f"no such option to search; known: {', '.join(searched)}")
    if not isinstance(section, dict):
        raise ValueError(f"a section with low and high, or values, not {section!r}")
    unknown = set(section) - {item.name for item in fields(Entry)}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is none of low, high, log, values, when")
    entry = checked(Entry, section)
    _check_range(entry, kind_of(option))
    for value in entry.values or (entry.low, entry.high):
        replaced(base, {option: value})
    for other, wanted in (entry.when or {}).items():
        for value in wanted if other in homes() else ():
            replaced(base, {other: value})
    return entry


def _check_range(entry: Entry, kind: Any) -> None:
    if (entry.values is None) == (entry.low is None or entry.high is None):
        raise ValueError("it needs either low and high, or values")
    if entry.values is not None:
        if not entry.values or len(set(map(repr, entry.values))) < len(entry.values):
            raise ValueError("values are at least one, each named once")
        if entry.low is not None or entry.high is not None or entry.log:
            raise ValueError("values go without low, high and log")
        return
    assert entry.low is not None
    assert entry.high is not None
    if kind not in (int, float):
        raise ValueError("it is no number: name its values")
    if not entry.low < entry.high or not math.isfinite(entry.high - entry.low):
        raise ValueError(f"low must lie below high, not {entry.low:g} and {entry.high:g}")
    if entry.log and entry.low <= 0:
        raise ValueError(f"in logs low must be positive, not {entry.low:g}")
    if kind is int and (entry.low != int(entry.low) or entry.high != int(entry.high)):
        raise ValueError("it takes whole numbers")


def _nearest(entry: Entry, own: Any) -> Value:
    """Return the recipe's ``own`` value, or the number nearest to it; of names, which know no distance, the first."""
    if entry.values is None:
        nearest: Value = type(own)(min(max(own, entry.low), entry.high))
        return nearest
    if own in entry.values or not all(type(value) in (int, float) for value in (own, *entry.values)):
        return own if own in entry.values else entry.values[0]
    return min(entry.values, key=lambda value: abs(float(value) - own))


def _drawn(entry: Entry, kind: Any, rng: np.random.Generator) -> Value:
    if entry.values is not None:
        return entry.values[int(rng.integers(len(entry.values)))]
    low, high = float(entry.low or 0), float(entry.high or 0)
    if kind is int:
        low, high = low - 0.5, high + 0.5
        low = max(low, 0.5) if entry.log else low
    at = rng.uniform()
    value = low * (high / low) ** at if entry.log else low + (high - low) * at
    return min(int(high), max(math.ceil(low), round(value))) if kind is int else value

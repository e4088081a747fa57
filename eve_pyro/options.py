"""The configuration's options on the command line: one option a field, made from the dataclasses themselves."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from eve_pyro.config import SECTIONS, Config, recipe_tree

PANELS = {
    "data": "Data",
    "model": "Neurons and readout",
    "guide": "Guide",
    "objective": "Local ELBO",
    "control": "The living neuron",
    "training": "Training",
}
SHOWN = recipe_tree(Config.recipe)  # whose defaults the help shows


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command(..., overrides)`` an option for every field; those the user names arrive in ``overrides``.

    A field that the command has a parameter for is the command's own.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "overrides"]
    taken = {p.name for p in own}
    generated = [
        _parameter(section, item)
        for section, kind in SECTIONS.items()
        for item in fields(kind)
        if item.name not in taken
    ]
    names = [p.name for p in generated]

    @wraps(command)
    def wrapper(**given: Any) -> Any:
        overrides = {name: given.pop(name) for name in names}
        if overrides["rows"] not in (None, "none"):
            overrides["rows"] = _rows(overrides["rows"])
        return command(**given, overrides={name: value for name, value in overrides.items() if value is not None})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + generated
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameter(section: str, item: Any) -> inspect.Parameter:
    kind, choices = _plain_type(get_type_hints(SECTIONS[section])[item.name])
    default = SHOWN.get(section, {}).get(item.name, item.default)
    flag = "--" + (item.metadata["name"] or item.name).replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(
        declaration,
        help=item.metadata["help"],
        rich_help_panel=PANELS[section],
        metavar="|".join(choices) if choices else None,
        show_default=str(default) if default is not None else False,
    )
    annotation: Any = Annotated[kind | None, info]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _plain_type(hint: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the type an option is read as, and the words it may be. What it may hold is checked with the rest."""
    if optional := NoneType in get_args(hint):
        hint = next(each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is Literal:
        return str, (*get_args(hint), *(["none"] if optional else []))
    return (hint, ()) if hint in (int, float, bool, str) else (str, ())


def _rows(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--rows takes three whole numbers such as 8640,2880,2880, not {text!r}")
    return [int(part) for part in parts]

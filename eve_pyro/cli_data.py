"""What the commands share: the argument DATA, how it is read, and how a line is said."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from eve_pyro.data import Panel

Data = Annotated[
    str,
    typer.Argument(
        help="A CSV or Parquet file, long (unique_id, ds, y) or wide (timestamps first); or the word demo.",
        show_default=False,
    ),
]


def say(text: str) -> None:
    """Print a line as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def read_panel(data: str) -> "Panel":
    """Return the panel that the argument names."""
    from eve_pyro.data import Panel
    from eve_pyro.data.demo import seattle_weather

    return seattle_weather() if data == "demo" else Panel.from_file(data)


def with_standard_rows(data: str, recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``overrides`` with the rows of the standard split, where the data have one and no other is named.

    The rows of a ``recipe``'s own file are; its fractions are not, since every file that a run writes has some.
    """
    from eve_pyro.config import load_recipe
    from eve_pyro.data import standard_split

    if {"rows", "validation", "test"} & set(overrides) or load_recipe(recipe).data.rows:
        return overrides
    rows = standard_split(Path(data).stem).rows
    return overrides | ({"rows": rows} if rows else {})

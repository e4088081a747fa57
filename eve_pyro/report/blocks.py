"""What a section of the page is made of. How each looks is the template's business."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup
from matplotlib.figure import Figure

from eve_pyro.report.pictures import drawn

NONE = "\u2013"  # a dash


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Note:
    """A remark beside the matter: what was left out and why, how much was looked at."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Tiles:
    """A few figures that matter most: a label, the figure, and what to hold it against."""

    rows: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Row:
    """A table's row: its name, a few words on what it is, its cells, and which of them are the best."""

    name: str
    cells: Sequence[str]
    best: Sequence[int] = ()
    words: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head; ``label`` says what they are to those who cannot see the page around them."""

    label: str
    head: Sequence[str]
    rows: Sequence[Row]
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A drawing, and what it says."""

    drawing: Markup
    caption: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Pager:
    """Pictures of one kind, to be paged through by name."""

    label: str
    pages: Sequence[tuple[str, Picture]]
    kind: ClassVar[str] = "pager"


@dataclass(frozen=True)
class Code:
    """Text as a machine reads it, folded away under its ``summary`` if it has one."""

    code: str
    summary: str = ""
    kind: ClassVar[str] = "code"


Block = Text | Note | Facts | Tiles | Table | Picture | Pager | Code


@dataclass(frozen=True)
class Section:
    """A part of the page; ``name`` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


def picture(figure: Figure, name: str, alt: str, caption: str) -> Picture:
    """Return a figure as a block; ``name`` is its own on the page, ``alt`` is read out in its place."""
    return Picture(drawn(figure, alt, name), caption)


def joined(words: Sequence[str]) -> str:
    """Return words as one enumerates them."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def short(value: float | None) -> str:
    """Return a figure with as many places as matter; a dash where there is none."""
    if value is None or value != value:
        return NONE
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"


def percent(share: float, places: int = 0) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.{places}f} %"

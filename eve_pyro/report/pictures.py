"""Figures as a page takes them: drawn into it, in its ink, once for wide screens and once for narrow ones."""

import base64
import re
from io import BytesIO, StringIO

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from eve_pyro.plots.style import BLUE, GREEN, GREY, INK, ORANGE, legend_below

NARROW = 4.0  # inches: a phone's width at about the same size of type
PANEL = 2.7  # inches a panel is high there
LARGEST = 400_000  # characters: a drawing above this is turned into a picture of dots
INKS = {
    INK: "currentColor", "#000000": "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)",
    GREEN: "var(--green)", GREY: "var(--grey)",
}  # fmt: skip
NAME = re.compile(r' id="([^"]+)"')
REFERENCE = re.compile(r'(?:url\(|xlink:href=")#([^)"]+)')
FONT = re.compile(r'font: (?:\d+ )?([\d.]+px) [^;"]*')
NUMBER = re.compile(r'(?<=[ "(,LMQCz])(-?\d+\.\d\d)\d+')
SVG_OPTIONS = {"svg.fonttype": "none", "svg.hashsalt": "eve_pyro"}  # text stays text, and a page repeats


def drawn(figure: Figure, alt: str, name: str) -> Markup:
    """Return ``figure`` as markup: both widths, ``alt`` read out in their place. ``name`` is its own on the page."""
    wide = _inline(figure, alt, f"{name}w")
    _stack(figure)
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(
        wide, _inline(figure, alt, f"{name}n")
    )


def _stack(figure: Figure) -> None:
    """Put the panels below one another and legends into columns that fit."""
    panels = [ax for ax in figure.axes if ax.get_subplotspec() is not None]
    width, height = figure.get_size_inches()
    rows = max(spec.get_gridspec().nrows for ax in panels if (spec := ax.get_subplotspec()) is not None)
    single = max(PANEL, (height - 0.6) / rows if len(panels) == rows else PANEL)
    figure.set_size_inches(min(width, NARROW), 0.8 + single * len(panels))
    grid = figure.add_gridspec(len(panels), 1)
    for row, ax in enumerate(panels):
        ax.set_subplotspec(grid[row])
        ax.tick_params(labelleft=True)
    for legend in list(figure.legends):
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legend.remove()
        legend_below(figure, handles, labels, columns=2)


def _inline(figure: Figure, alt: str, name: str) -> Markup:
    for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
        patch.set_visible(False)  # the page is the ground
    text = StringIO()
    with rc_context(SVG_OPTIONS):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    drawing = _tidied(text.getvalue(), alt, name)
    return drawing if len(drawing) <= LARGEST else _dots(figure, alt)


def _dots(figure: Figure, alt: str) -> Markup:
    data = BytesIO()
    figure.savefig(data, format="png")
    return Markup('<img class="dots" alt="{}" src="data:image/png;base64,{}">').format(
        alt, base64.b64encode(data.getvalue()).decode()
    )


def _tidied(svg: str, alt: str, name: str) -> Markup:
    """Return matplotlib's SVG for a page: no preamble, names of its own, short numbers, colours the page may change."""
    opening, body = svg[svg.index("<svg") :].split(">", 1)
    box = opening.split('viewBox="')[1].split('"')[0]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
    used = set(REFERENCE.findall(body))
    body = re.sub(r"<[^>]+>", lambda tag: _retagged(tag[0], used, name), body)  # and text stays as it is
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box, escape(alt))
    return head + Markup(re.sub(r"\s*\n\s*", "\n", body))


def _retagged(tag: str, used: set[str], name: str) -> str:
    tag = NAME.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    tag = REFERENCE.sub(lambda found: found[0].replace("#", f"#{name}-").removeprefix("xlink:"), tag)
    for colour, ink in INKS.items():
        tag = re.sub(rf"{colour}\b", ink, tag, flags=re.IGNORECASE)
    return NUMBER.sub(r"\1", FONT.sub(r"font-size: \1", tag))

"""Putting the page together."""

import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from eve_pyro.config import Config, to_toml
from eve_pyro.data import Panel, standard_split
from eve_pyro.report.blocks import Code, Section, Text
from eve_pyro.report.course import census, curves, fans
from eve_pyro.report.headline import headline, scores
from eve_pyro.report.record import Record, read_record
from eve_pyro.report.trust import calibration, fidelity
from eve_pyro.report.worth import knowing, units
from eve_pyro.runs import CONFIG

BUILDERS: tuple[Callable[[Record], Section], ...] = (
    headline, scores, fans, curves, census, calibration, fidelity, units, knowing,
)  # fmt: skip
PAGE = "report.html"


def write_report(folder: str | Path, panel: Panel, data: str, out: str | Path, progress: bool = False) -> None:
    """Write one HTML page about the run in ``folder`` to ``out``: it needs no network and no other file.

    ``panel`` is what the run was trained on, and ``data`` what it is called on the command line. What is kept in the
    folder is shown as it stands; diagnostics are made anew, from a number of windows that the page states, with seeds
    that make it repeat. What does not apply to a run is left out with a sentence that says why.

    Raises ValueError for a run that is not done, broken or of another version, for other data, and for an ``out`` that
    exists.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out, or move it away")
    record = read_record(folder, panel, data)
    sections = []
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, transient=True, disable=not progress) as bar:
        task = bar.add_task("reading", total=len(BUILDERS))
        for build in BUILDERS:
            bar.update(task, description=build.__name__)
            sections.append(build(record))
            bar.advance(task)
    sections += [_configuration(record), _again(record)]
    config = record.run.config
    title = f"{Path(data).name}, {config.data.horizon} step{'s' * (config.data.horizon > 1)} ahead"
    out.write_text(rendered(title, config.recipe, sections), encoding="utf-8")


def rendered(title: str, recipe: str, sections: list[Section]) -> str:
    """Return the page of these sections, which needs no network and no other file."""
    environment = Environment(
        loader=FunctionLoader(_packaged),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    inlined = {name: Markup(_packaged(f"report.{name}")) for name in ("css", "js")}
    return environment.get_template(PAGE).render(title=title, recipe=recipe, sections=sections, **inlined)


def _packaged(name: str) -> str:
    return files("eve_pyro.report").joinpath(name).read_text(encoding="utf-8")


def _configuration(record: Record) -> Section:
    told = "Every option of the run, as its folder has them."
    return Section("configuration", "Configuration", [Text(told), Code(to_toml(record.run.config), CONFIG)])


def fit_command(data: str, recipe: Path, config: Config, out: Path, twin: bool = False) -> str:
    """Return the command that trains ``config``, kept in the file ``recipe``, as it is."""
    words = ["eve-pyro fit", shlex.quote(data), "--recipe", shlex.quote(str(recipe))]
    options = config.data
    if options.rows is None and standard_split(Path(data).stem).rows:  # which else would take their place
        words += [f"--validation {options.validation} --test {options.test}"]
    return " ".join([*words, *(["--twin"] if twin else []), "--out", shlex.quote(str(out))])


def _again(record: Record) -> Section:
    """Show the commands that make the run and this page again."""
    folder = record.run.folder
    again = Path(f"{folder}-again")
    fit = fit_command(record.data, folder / CONFIG, record.run.config, again, bool(record.run.twin))
    code = "\n".join([fit, f"eve-pyro report {shlex.quote(str(again))} {shlex.quote(record.data)}"])
    told = "The same seed gives the same weights on the same machine, so the same scores and the same page."
    return Section("again", "Make it again", [Text(told), Code(code)])

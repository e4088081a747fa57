"""The command line: one command a function, and ``main``, which turns what a user got wrong into one line."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eve_pyro import cli_accuracy, cli_bench, cli_pilot, cli_report
from eve_pyro.cli_data import Data, read_panel, say, with_standard_rows
from eve_pyro.options import config_options

if TYPE_CHECKING:
    from eve_pyro.runs import Run

UsageError = typer.BadParameter.__mro__[2]  # click's own base of what a user got wrong, wherever typer keeps it
CENSUS_ROWS = {
    "inside_mass": ("inside mass", "{:.1%}"),
    "active": ("active, over 0.01 nats", "{:.1%}"),
    "kl": ("KL, nats a window", "{:.3f}"),
    "effective_kl": ("effective KL, nats an active unit", "{:.4f}"),
    "energy": ("mean energy", "{:.4f}"),
}
DEMO_OPTIONS: dict[str, Any] = {"context_length": 120, "horizon": 28, "batch_size": 64, "epochs": 12}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Forecasters whose neurons are distributions.\n\n"
    "Start with [bold]eve-pyro demo[/bold], then [bold]eve-pyro fit DATA --context 96 --horizon 24 --twin[/bold].",
)
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]


@app.command()
@config_options
def fit(
    data: Data,
    recipe: Annotated[
        str, typer.Option(help="factor, conditional, paper, trajectory, or a TOML file such as a run's config.toml.")
    ] = "factor",
    out: Annotated[
        Path | None, typer.Option(help="The run folder to make. Default: runs/DATA, or the next free name.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin/--no-twin", help="Train the deterministic twin beside it.")] = False,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train a forecaster, score it on every test window, and write a run folder.

    Any option below overrides the recipe; the defaults shown are those of [bold]factor[/bold].

    The folder holds config.toml, weights.safetensors, metrics.json, history.csv, units.csv, census.csv and signals.csv
    (every unit's state, by step), forecasts and figures; [bold]eve-pyro report RUN DATA[/bold] makes a page of it.

    Example: eve-pyro fit ETTh1.csv --context 336 --horizon 96 --twin --out runs/etth1
    """
    _train(data, recipe, out, twin, overrides or {})


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="The run folder to make. Default: runs/demo, or the next free name.")
    ] = None,
) -> None:
    """Train on four years of Seattle's daily weather, EVE beside its twin and the naive forecasts: about a minute."""
    _train("demo", "factor", out, True, DEMO_OPTIONS)


@app.command()
def resume(run: RunFolder, data: Data) -> None:
    """Go on with a run that was stopped: it ends as if it never had been.

    Example: eve-pyro resume runs/etth1 ETTh1.csv
    """
    from eve_pyro.experiment import resume_experiment

    panel = read_panel(data)
    _show(run, data, lambda say: resume_experiment(panel, run, say))


@app.command()
def forecast(
    run: RunFolder,
    data: Data,
    out: Annotated[Path, typer.Option(help="The CSV file to write, one row a series and step.")] = Path("forecast.csv"),
    levels: Annotated[
        str, typer.Option(help="Levels of the quantiles, in (0, 1), separated by commas.")
    ] = "0.05,0.1,0.5,0.9,0.95",
    paths: Annotated[
        int, typer.Option(help="Write this many joint paths instead of quantiles.", min=0, max=10_000)
    ] = 0,
    draws: Annotated[int, typer.Option(help="Draws behind quantiles without a closed form.", min=1, max=10_000)] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """Forecast what comes after the end of DATA with a trained run.

    Example: eve-pyro forecast runs/etth1 ETTh1.csv --out next.csv
    """
    from eve_pyro.infer.forecast import forecast as draw
    from eve_pyro.runs import latest_of

    wanted = _levels(levels)
    loaded, panel = _load(run), read_panel(data)
    if out.suffix not in ("", ".csv"):
        raise ValueError(f"forecasts are written as CSV: --out {out.with_suffix('.csv')}")
    _check_free(out)
    windows = latest_of(panel, loaded.config, loaded.scaler)
    result = draw(loaded.eve.model, loaded.eve.guide, windows, paths or draws, wanted, seed=seed)
    frame = result.paths_frame() if paths else result.frame()
    try:
        frame.to_csv(out, index=False)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    kind = f"{paths} joint paths" if paths else ("exact quantiles" if result.exact else f"quantiles of {draws} draws")
    print(f"{out}: {kind} for {len(panel)} series, {windows.horizon} steps from {frame['ds'].min()}")


@app.command()
def evaluate(
    run: RunFolder,
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Also write the scores to this JSON file.")] = None,
    draws: Annotated[int, typer.Option(help="Joint paths a window.", min=2, max=1000)] = 100,
) -> None:
    """Score a trained run, its twin and the naive forecasts on the test windows of DATA.

    Example: eve-pyro evaluate runs/etth1 ETTh1.csv
    """
    from eve_pyro.infer.scores import evaluate as score
    from eve_pyro.naive import naive_scores
    from eve_pyro.runs import windows_of, write_json

    loaded, panel = _load(run), read_panel(data)
    if out is not None:
        _check_free(out)
    test = windows_of(panel, loaded.config, loaded.scaler).test
    pairs = {"eve": loaded.eve} | ({"twin": loaded.twin} if loaded.twin else {})
    scores: dict[str, Any] = {
        name: score(pair.model, pair.guide, test, draws, seed=loaded.config.training.seed, progress=True)
        for name, pair in pairs.items()
    }
    scores |= naive_scores(test)
    if out is not None:
        write_json(out, {"test": scores, "windows": len(test)})
    _print_scores(scores, len(test))


@app.command()
def census(run: RunFolder) -> None:
    """Show how the units of a run ended, a table a layer: the share of each state, KL and energy, by split.

    By unit and step, the figures are in the run's census.csv; the pictures are figures/census_*.png.

    Example: eve-pyro census runs/etth1
    """
    from eve_pyro.config import from_toml
    from eve_pyro.diagnostics.census import STATES, last_figures
    from eve_pyro.report.record import read_table
    from eve_pyro.runs import CENSUS, CONFIG

    if not (run / CENSUS).is_file():
        raise ValueError(f"{run} holds no census: there is no {CENSUS} in it")
    calibrated = ", calibrated" if from_toml(run / CONFIG).control.calibrate else ""
    shown = {state: (state.replace("_", " "), "{:.1%}") for state in STATES} | CENSUS_ROWS
    for site, layer in last_figures(read_table(run, CENSUS)).groupby("site", sort=False):
        band = f"[{layer['low'].min():.3g}, {layer['high'].max():.3g}]"
        count = int(layer["units"].max())
        title = f"{site}: {count} unit{'s' * (count > 1)} at the end of training, bands {band}{calibrated}"
        table = Table("", *layer["split"])
        for name, (label, form) in shown.items():
            table.add_row(label, *(form.format(value) for value in layer[name]))
        Console().print(title, table, sep="\n", highlight=False, markup=False)


app.command("compare-regimes")(cli_bench.compare_regimes)
app.command("ablate")(cli_bench.ablate)
app.add_typer(cli_accuracy.app, name="bench")
app.command("autopilot")(cli_pilot.autopilot)
app.command("early-signals")(cli_pilot.early_signals)
app.command("report")(cli_report.report)


def main() -> None:
    """Run the command line; what a user got wrong ends as one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except ValueError as error:
        _complain(str(error))
    except UsageError as error:  # type: ignore[misc]
        _complain(f"{error.format_message().rstrip('.')} (see eve-pyro --help)")
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)


def _complain(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _train(data: str, recipe: str, out: Path | None, twin: bool, overrides: dict[str, Any]) -> None:
    from eve_pyro.config import load_recipe
    from eve_pyro.effects import check_acts
    from eve_pyro.experiment import run_experiment
    from eve_pyro.runs import free_folder

    if out is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("several processes train together: name their run folder with --out")
    config = load_recipe(recipe, with_standard_rows(data, recipe, overrides))
    for option, value in overrides.items():
        check_acts(option, value, config)
    panel = read_panel(data)
    folder = out or free_folder(Path("runs") / Path(data).stem)
    _show(folder, data, lambda say: run_experiment(panel, config, folder, twin, say))


def _show(folder: Path, data: str, run: Callable[[Callable[[str], None]], Any]) -> None:
    """Run an experiment, print its scores and files; say how to go on where it is stopped."""
    try:
        scores = run(say)
    except KeyboardInterrupt:
        if (folder / "history.csv").exists():
            say(f"stopped; go on with: {shlex.join(['eve-pyro', 'resume', str(folder), data])}")
        raise
    if scores:
        _print_scores(scores, None)
        say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _load(folder: Path) -> "Run":
    from eve_pyro.runs import load_run

    return load_run(folder)


def _check_free(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists already: choose another --out, or move it away")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.absolute().parent}")


def _levels(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--levels takes numbers separated by commas, such as 0.1,0.5,0.9, not {text!r}") from None
    if not all(0 < level < 1 for level in levels) or len(set(levels)) < len(levels):
        raise ValueError(f"--levels lie between 0 and 1, each named once, not {text!r}")
    return levels


def _print_scores(scores: dict[str, dict[str, float | None]], windows: int | None) -> None:
    from eve_pyro.infer.scores import KEYS

    title = "Test scores, scaled data, log scores in nats a value" + (f", {windows} windows" if windows else "")
    table = Table("", *scores, title=title, title_justify="left")
    for key in KEYS:
        values = [row.get(key) for row in scores.values()]
        table.add_row(key, *("" if value is None else f"{value:.4f}" for value in values))
    Console().print(table)

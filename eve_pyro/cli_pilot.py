"""The commands of the search: ``eve-pyro autopilot`` and ``early-signals``."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eve_pyro.cli_bench import Recipe, going_on, names
from eve_pyro.cli_data import Data, read_panel, say, with_standard_rows
from eve_pyro.options import config_options

if TYPE_CHECKING:
    import pandas as pd

    from eve_pyro.autopilot.setup import Setup
    from eve_pyro.autopilot.study import Place
    from eve_pyro.data import Panel


@config_options
def autopilot(
    context: typer.Context,
    data: Data,
    recipe: Recipe = "factor",
    budget: Annotated[int, typer.Option(help="Trials: configurations drawn from the space.", min=1)] = 40,
    epochs: Annotated[int, typer.Option(help="Epochs of a trial that comes to the end.", min=1)] = 9,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the study. Default: runs/pilot-DATA. It may go on.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A TOML file of what to search. Default: the packaged one.")
    ] = None,
    objectives: Annotated[
        str,
        typer.Option(
            help="One, or for a Pareto front two or three, of crps, joint_log_score, coverage_error, inside_mass, "
            "seconds, parameters."
        ),
    ] = "crps",
    prune: Annotated[str, typer.Option(help="Promote by: score, signals (the units' own) or both.")] = "score",
    reduction: Annotated[int, typer.Option(help="One trial in this many goes on to the next rung.", min=2)] = 4,
    seeds: Annotated[int, typer.Option(help="Seeds of the last two.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn, and the first one to train with.", min=0)] = 0,
    full: Annotated[bool, typer.Option("--full", help="Train every trial to the end: random search.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(help="A database's URL, or a journal's file on a shared disk. Default: study.log in the folder."),
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Work on the study of that --out and --storage, begun elsewhere.")
    ] = False,
    ray: Annotated[int, typer.Option(help="This many workers more, on the Ray cluster of RAY_ADDRESS.", min=0)] = 0,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Search the options of a recipe: constraints first, the units' own signals watched, few trials trained to the end.

    An option named below is held fixed. Called again, the study goes on where it was stopped; any number of
    [bold]--worker[/bold] may help, which take its options from the study. The folder ends with leaderboard.csv,
    pareto.csv, importance.csv, early_signals.png, the winner's config.toml, and the page report.html.

    Example: eve-pyro autopilot ETTh1.csv --context 336 --horizon 96 --budget 40 --out runs/pilot
    """
    from eve_pyro.autopilot.page import write_outcome
    from eve_pyro.autopilot.plan import Plan
    from eve_pyro.autopilot.storage import hidden
    from eve_pyro.autopilot.study import Place, join, search

    if storage is not None and not storage.strip():
        raise ValueError("--storage takes a database's URL or a journal's file; without it there is study.log")
    if worker:
        _check_worker(context)
    place, panel = Place(out or Path("runs") / f"pilot-{Path(data).stem}", storage), read_panel(data)
    with going_on():
        if worker:
            join(panel, place, say)
            return
        wanted = tuple(names(objectives, "--objectives"))
        plan = Plan(budget, epochs, reduction, seeds, full, prune, wanted)  # type: ignore[arg-type]  # checked by the plan
        named = with_standard_rows(data, recipe, overrides or {}) | {"seed": seed}
        setup = _setup(panel, recipe, named, space, plan)
        with _ray(panel, place, ray):
            board = search(panel, setup, place, say)
    result = write_outcome(board, place.folder, data, shlex.join(["eve-pyro", *map(hidden, sys.argv[1:])]))
    print_result(result, place.folder, data)


def early_signals(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies searched with --full.", show_default=False)],
) -> None:
    """Show whether what a trial shows at a fifth of its training foretells its end, and what pruning by it would do.

    Of trials that were all trained to the end: Spearman's correlation of each early figure with the test scores and its
    95 % interval, and the steps that pruning then would have saved, with the test CRPS it would have lost.

    Example: eve-pyro early-signals runs/full-etth1 runs/full-exchange
    """
    from eve_pyro.autopilot.signals import correlations, pruned, read_full

    for study in studies:
        rows = read_full(study)
        _print(correlations(rows), f"{study}: correlation with the end, {len(rows)} trials, 95 % intervals")
        _print(pruned(rows), f"{study}: keeping the best at a fifth of training")


def _check_worker(context: typer.Context) -> None:
    """Raise ValueError for an option that says what to search: a worker's study has been begun with its own."""
    for each in context.command.params:
        source = context.get_parameter_source(each.name)
        named = source is not None and source.name == "COMMANDLINE"
        if named and each.name not in ("data", "out", "storage", "worker"):
            raise ValueError(f"a worker takes the study as it was begun: leave out {each.opts[0]}")


def _ray(panel: "Panel", place: "Place", count: int) -> AbstractContextManager[None]:
    if not count:
        return nullcontext()
    from eve_pyro.autopilot.cluster import ray_workers

    return ray_workers(panel, place, count)


def _setup(panel: "Panel", recipe: str, named: dict[str, Any], space: Path | None, plan: Any) -> "Setup":
    from eve_pyro.autopilot.setup import Setup
    from eve_pyro.autopilot.space import read_space
    from eve_pyro.config import load_recipe

    plan.check()
    base = load_recipe(recipe, named)
    return Setup.of(panel, base, read_space(space, base).without(set(named)), plan)


def print_result(result: Any, folder: Path, data: str) -> None:
    """Print the verdict, the first rows of the leaderboard and how to train the winner."""
    from eve_pyro.autopilot.page import winner_command

    say(result.verdict())
    shown = ["rank", "trial", "epochs", "seeds", "crps", "inside_mass", "test_crps", "why"]
    _print(result.leaderboard.reindex(columns=shown).head(10), "The best trials, validation and test scores")
    say(f"{result.leaderboard['steps'].sum():.0f} steps, {result.share:.0%} of all trials trained in full")
    say(f"train it with: {winner_command(result, folder, data)}")
    say(f"{folder}: {', '.join(sorted(each.name for each in folder.iterdir() if each.is_file()))}")


def _print(frame: "pd.DataFrame", title: str) -> None:
    table = Table(*frame.columns, title=title, title_justify="left")
    for row in frame.to_dict("records"):
        table.add_row(*_cells(list(row.values())))
    console = Console()
    console.width = max(console.width, 160)  # figures cut short are of no use
    console.print(table, markup=False)


def _cells(values: Sequence[Any]) -> list[str]:
    return [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]

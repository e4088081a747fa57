"""The commands of the benchmark: ``eve-pyro bench accuracy`` and ``bench table``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from eve_pyro.cli_bench import Draws, Recipe, Seeds, going_on, names, numbers
from eve_pyro.cli_data import say
from eve_pyro.options import config_options

MODELS = "eve,twin,twin_global,twin_t,low_rank,mc_dropout,ensemble,quantile,dlinear,repeat_last,seasonal_naive"

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Benchmarks, as the field reports them.")


@app.command()
@config_options
def accuracy(
    data: Annotated[
        Path, typer.Option(help="The folder of the sets: ETTh1.csv, ..., or ECL/df_y.csv.", show_default=False)
    ],
    sets: Annotated[
        str, typer.Option(help="Sets, separated by commas.")
    ] = "ETTh1,ETTh2,exchange_rate,national_illness",
    horizons: Annotated[
        str, typer.Option(help="Horizons. Default: 96,192,336,720, of illness 24,36,48,60.", show_default=False)
    ] = "",
    contexts: Annotated[
        str,
        typer.Option(help="Contexts to choose among. Default: 96,336,512, of illness 36,104.", show_default=False),
    ] = "",
    models: Annotated[
        str, typer.Option(help="Models to train and score; patchtst and nhits too, given --peer-python.")
    ] = MODELS,
    seeds: Seeds = "0,1,2",
    protocol: Annotated[
        str, typer.Option(help="longhorizon: every test window; probts: one in 96, and ProbTS's CRPS.")
    ] = "longhorizon",
    recipe: Recipe = "factor",
    draws: Draws = 100,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose each model's options on validation, of five a model.")
    ] = False,
    peer_python: Annotated[
        Path | None, typer.Option(help="A Python that has neuralforecast, for its models.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the benchmark. It may go on.")] = Path("runs/accuracy"),
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train and score models on the field's sets, by the field's protocols, one row a run.

    The context of a set and horizon is the one at which the twin of seed 0 has the lowest validation CRPS, for all
    models alike. With --tune each model's options are chosen likewise, others than the recipe's where they are better
    by half a per cent: of EVE how much paths say about locations and scales (alpha, objective, held) and her tails
    (volatility), of every other how it learns (learning rate, dropout), of all with an encoder how deep it is
    (encoder_layers). Writes accuracy.csv (a row a run), summary.csv, tables.md and accuracy.png. Called again, it goes
    on where it was stopped.

    Example: eve-pyro bench accuracy --data data --sets ETTh1 --horizons 96 --models eve,twin,low_rank
    """
    from eve_pyro.bench.accuracy import run_accuracy
    from eve_pyro.bench.plan import Plan

    plan = Plan(
        data,
        names(sets, "--sets"),
        names(models, "--models"),
        numbers(seeds, "--seeds"),
        numbers(horizons, "--horizons") if horizons else None,
        numbers(contexts, "--contexts") if contexts else None,
        protocol,  # type: ignore[arg-type]  # checked by the plan
        recipe,
        overrides or {},
        draws,
        tune,
        peer_python,
    )
    with going_on():
        run_accuracy(plan, out, say)
    table(out)


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="The folder of a benchmark.", show_default=False)] = Path(
        "runs/accuracy"
    ),
) -> None:
    """Make the tables and the picture of a benchmark from its accuracy.csv alone.

    Example: eve-pyro bench table runs/accuracy
    """
    from eve_pyro.bench.tables import write_tables

    say(f"{folder}: {', '.join(write_tables(folder))}")

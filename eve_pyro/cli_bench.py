"""The commands that compare trainings: ``eve-pyro compare-regimes`` and ``ablate``."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eve_pyro.cli_data import Data, read_panel, say, with_standard_rows
from eve_pyro.options import config_options

if TYPE_CHECKING:
    import pandas as pd

Recipe = Annotated[
    str, typer.Option(help="factor, conditional, paper, trajectory, or a TOML file such as a run's config.toml.")
]
Seeds = Annotated[str, typer.Option(help="Seeds to train each variant with, separated by commas.")]
Draws = Annotated[int, typer.Option(help="Joint paths a window behind the scores.", min=2, max=1000)]


@config_options
def compare_regimes(
    data: Data,
    recipe: Recipe = "factor",
    regimes: Annotated[
        str, typer.Option(help="Regimes to compare; differences are to the first.")
    ] = "off,penalty,projection,homeostasis",
    seeds: Seeds = "0,1,2",
    vary: Annotated[
        list[str] | None,
        typer.Option(help="NAME=V1,V2,...: values of a control option to cross with the regimes; may be repeated."),
    ] = None,
    draws: Draws = 100,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the comparison. Default: runs/regimes-DATA. It may go on.")
    ] = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train the four regimes over several seeds and show accuracy against the inside mass of the units' bands.

    Writes regimes.csv (a row a run), summary.csv and regimes.png. Called again, it goes on where it was stopped.

    Example: eve-pyro compare-regimes ETTh1.csv --context 336 --horizon 96 --vary eta=0.05,0.15,0.45
    """
    from eve_pyro.bench.regimes import SHOWN, parse_vary, regime_trials
    from eve_pyro.bench.regimes import compare_regimes as compare

    chosen = with_standard_rows(data, recipe, overrides or {})
    wanted, repeats = names(regimes, "--regimes"), numbers(seeds, "--seeds")
    trials = regime_trials(recipe, chosen, wanted, repeats, parse_vary(vary or []))
    folder = out or Path("runs") / f"regimes-{Path(data).stem}"
    with going_on():
        summary = compare(read_panel(data), trials, folder, draws, say)
    print_summary(summary, list(trials[0].labels), SHOWN)
    say(f"{folder}: regimes.csv, summary.csv, regimes.png")


@config_options
def ablate(
    data: Data,
    recipe: Recipe = "factor",
    guides: Annotated[str, typer.Option(help="Guides to swap in, separated by commas.")] = "",
    priors: Annotated[str, typer.Option(help="Priors to swap in.")] = "",
    latent_dim: Annotated[str, typer.Option(help="Latent dimensions K of a neuron to swap in.")] = "",
    vary: Annotated[
        list[str] | None,
        typer.Option(help="NAME=V1,V2,...: values of any option to swap in, recipe included; may be repeated."),
    ] = None,
    seeds: Seeds = "0,1,2",
    draws: Draws = 100,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the ablation. Default: runs/ablation-DATA. It may go on.")
    ] = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Train the same model with one thing swapped at a time, over several seeds, and show what it changes.

    The first row is the base, the recipe with the options below. Writes ablation.csv (a row a run), summary.csv and
    ablation.png. Called again, it goes on where it was stopped.

    Example: eve-pyro ablate ETTh1.csv --context 336 --horizon 96 --guides context,future_aware --latent-dim 2,4
    """
    from eve_pyro.bench.ablation import LABELS, SAMPLED, SHOWN, ablation_trials
    from eve_pyro.bench.ablation import ablate as run
    from eve_pyro.bench.regimes import parse_vary

    named = {"guide": (guides, "--guides"), "prior": (priors, "--priors"), "latent_dim": (latent_dim, "--latent-dim")}
    swaps = {option: names(text, flag) for option, (text, flag) in named.items() if text}
    for option, values in parse_vary(vary or []).items():  # named both ways: all of it, each once
        swaps[option] = list(dict.fromkeys([*swaps.get(option, []), *values]))
    chosen = with_standard_rows(data, recipe, overrides or {})
    trials = ablation_trials(recipe, chosen, swaps, numbers(seeds, "--seeds"))
    folder = out or Path("runs") / f"ablation-{Path(data).stem}"
    with going_on():
        summary = run(read_panel(data), trials, folder, draws, say)
    print_summary(summary, [*LABELS, SAMPLED], SHOWN)
    if summary[SAMPLED].eq(True).any():
        say("kl_sampled: the KL of these rows has no closed form, so that val_kl is an estimate from draws")
    say(f"{folder}: ablation.csv, summary.csv, ablation.png")


@contextmanager
def going_on() -> Iterator[None]:
    """Say how to go on where the user stops a comparison."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; go on with the same command: {shlex.join(['eve-pyro', *sys.argv[1:]])}")
        raise


def names(text: str, option: str) -> list[str]:
    """Read words separated by commas, each once."""
    words = [part.strip() for part in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise ValueError(f"{option} takes words separated by commas, each once, not {text!r}")
    return words


def numbers(text: str, option: str) -> list[int]:
    """Read whole numbers separated by commas, each once."""
    words = names(text, option)
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"{option} takes whole numbers separated by commas, not {text!r}")
    found = [int(word) for word in words]
    if len(set(found)) < len(found):
        raise ValueError(f"{option} takes each number once, not {text!r}")
    return found


def print_summary(summary: "pd.DataFrame", labels: list[str], scores: Sequence[str]) -> None:
    """Print a row a variant: mean and deviation, and for the first two scores the paired difference to the first."""
    table = Table(
        *labels, title="Mean ± deviation over seeds; differences to the first row, 95 %", title_justify="left"
    )
    for number, name in enumerate(scores):
        table.add_column(name)
        if number < 2:
            table.add_column("difference")
    for row in summary.to_dict("records"):
        cells = [str(row[name]) for name in labels]
        for number, name in enumerate(scores):
            cells.append(f"{row[name]:.4f}" + (f" ± {row[f'{name}_sd']:.4f}" if row["seeds"] > 1 else ""))
            if number < 2:
                interval = f" ± {row[f'{name}_ci']:.4f}" if row["seeds"] > 1 else ""
                cells.append(f"{row[f'{name}_diff']:+.4f}{interval}")
        table.add_row(*cells)
    console = Console()
    console.width = max(console.width, 200)  # figures cut short are of no use
    console.print(table)

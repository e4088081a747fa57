"""A study's files and its page, in the look of a run's."""

from pathlib import Path

import pandas as pd

from eve_pyro import plots
from eve_pyro.autopilot.board import Board
from eve_pyro.autopilot.outcome import IMPORTANCE, LEADERBOARD, PARETO, Result, result_of
from eve_pyro.autopilot.plan import Plan
from eve_pyro.config import to_toml
from eve_pyro.report.blocks import Block, Code, Note, Row, Section, Table, Text, Tiles, percent, picture, short
from eve_pyro.report.page import fit_command, rendered
from eve_pyro.runs import CONFIG

PAGE, SIGNALS = "report.html", "early_signals.png"
SHOWN = {
    "crps": "CRPS", "joint_log_score": "joint log score", "coverage_90": "90 % coverage", "inside_mass": "inside mass",
    "too_high": "too high", "steps": "steps",
}  # fmt: skip


def write_outcome(board: Board, folder: Path, data: str, command: str) -> Result:
    """Write what a complete study found into ``folder``, and return it.

    ``leaderboard.csv``, ``pareto.csv``, ``importance.csv``, ``early_signals.png``, the winner's ``config.toml`` and the
    page ``report.html``; ``data`` and ``command`` are how the user calls the data and began the study. ValueError where
    every trial failed.
    """
    result = result_of(board)
    result.leaderboard.to_csv(folder / LEADERBOARD, index=False)
    result.front.to_csv(folder / PARETO, index=False)
    result.importance.to_csv(folder / IMPORTANCE, index=False)
    (folder / CONFIG).write_text(to_toml(result.config), encoding="utf-8")
    early = first_and_last(board, result)
    plots.early_signals(early).savefig(folder / SIGNALS)
    train = winner_command(result, folder, data)
    sections = [
        _search(result), _winner(result, train), _leaderboard(result), _front(result), _importance(result),
        _early(early), Section("again", "Make it again", [Code(command)]),
    ]  # fmt: skip
    title = f"{Path(data).name}: {result.setup.plan.budget} trials"
    (folder / PAGE).write_text(rendered(title, result.setup.base.recipe, sections), encoding="utf-8")
    return result


def winner_command(result: Result, folder: Path, data: str) -> str:
    """Return the command that trains the winner."""
    return fit_command(data, folder / CONFIG, result.config, Path(f"{folder}-winner"))


def first_and_last(board: Board, result: Result) -> pd.DataFrame:
    """Return, a row a trial, what the first rung showed of it, its last CRPS, and whether it was trained to the end.

    Where the first rung is the whole training, what a fifth of it showed.
    """
    first = {each.trial: each.figures for each in board.look().stages[0].values() if each.figures is not None}
    table = result.leaderboard[result.leaderboard["trial"].isin(list(first))]
    names = {"out_of_band": "out_of_band", "crps": "crps"}
    if len(result.setup.plan.rungs) == 1:
        names = {"out_of_band": "early_out_of_band", "crps": "early_val_crps"}
    shown = {f"first_{name}": [first[trial][seen] for trial in table["trial"]] for name, seen in names.items()}
    full = table["epochs"] == result.setup.plan.epochs
    return pd.DataFrame({"trial": table["trial"], "crps": table["crps"], "full": full} | shown)


def _search(result: Result) -> Section:
    best, plan, table = result.winner, result.setup.plan, result.leaderboard
    tiles = [
        ("validation CRPS", short(best["crps"]), f"mean over {best['seeds']} seeds"),
        ("test CRPS", short(best.get("test_crps")), "not looked at by the search"),
        ("inside mass", percent(best["inside_mass"]), "valid" if best["valid"] else "invalid"),
        ("steps", percent(result.share), "of all trials trained in full"),
    ]
    failed = int((table["seeds"] == 0).sum())
    told = f"{int(table['valid'].sum())} of {len(table)} trials were valid where they were last seen."
    told += f" {failed} failed." if failed else ""
    return Section("search", "The search", [Text(result.verdict()), Tiles(tiles), Text(_course(plan)), Note(told)])


def _course(plan: Plan) -> str:
    words = [f"{stage.trials} trials for {stage.epochs} of {plan.epochs} epochs" for stage in plan.rungs]
    more = f", and {plan.stages[-1].trials} with {plan.seeds} seeds in all" if plan.seeds > 1 else ""
    by = {
        "score": "gates, penalty and validation score",
        "signals": "the units' signals",
        "both": "gates, penalty, and validation score and the units' signals alike",
    }[plan.prune]
    return f"Trained: {'; then the best '.join(words)}{more}. Promoted by {by}; chosen by gates, penalty and score."


def _winner(result: Result, command: str) -> Section:
    best = result.winner
    names = list(result.setup.options(int(best["trial"])))
    rows = [Row(name, [short(best[name]) if isinstance(best[name], float) else str(best[name])]) for name in names]
    blocks: list[Block] = [Text("The one command that trains it:"), Code(command)]
    blocks += [Table("the winner's options", ["option", "value"], rows), Code(to_toml(result.config), CONFIG)]
    return Section("winner", "The winner" if best["valid"] else "The least bad", blocks)


def _leaderboard(result: Result) -> Section:
    rows = [
        Row(f"trial {row['trial']}", [str(row["epochs"]), *(short(row[name]) for name in SHOWN)], words=row["why"])
        for row in result.leaderboard.to_dict("records")
    ]
    told = (
        "Figures of validation windows where each trial was last seen; steps of all its seeds. Below each, why it lost."
    )
    table = Table("the trials, best first", ["", "epochs", *SHOWN.values()], rows)
    return Section("leaderboard", "Leaderboard", [Text(told), table])


def _front(result: Result) -> Section:
    front = result.front
    names = [name for name in front.columns if name not in ("trial", "front")]
    rows = [
        Row(f"trial {row['trial']}", [short(row[name]) for name in names])
        for row in front[front["front"]].to_dict("records")
    ]
    told = "Of the trials trained to the end, valid ones where there are any: those that no other beats in everything."
    figure = plots.pareto_scatter(front, names)
    blocks: list[Block] = [Text(told), Table("the front", ["", *(name.replace("_", " ") for name in names)], rows)]
    drawn = picture(figure, "front", "trials by pairs of objectives", "Lower is better but for the inside mass.")
    return Section("front", "Pareto front", [*blocks, drawn])


def _importance(result: Result) -> Section:
    if result.importance.empty:
        left_out = Note("Left out: with fewer than eight trials, or scores that do not differ, nothing can be said.")
        return Section("importance", "Which options mattered", [left_out])
    figure = plots.importance_bars(result.importance)
    caption = "PED-ANOVA over all trials after the first rung: what sets its best tenth apart from the rest."
    return Section("importance", "Which options mattered", [picture(figure, "importance", caption, caption)])


def _early(early: pd.DataFrame) -> Section:
    caption = "What the first rung, or a fifth of a full training, showed of each trial, and its last validation CRPS."
    figure = plots.early_signals(early)
    return Section("early", "Early signals", [picture(figure, "early", caption, caption)])

"""What a study found: who won, why each other lost, the front, and which options mattered."""

from dataclasses import dataclass, replace

import pandas as pd

from eve_pyro.autopilot.board import Board
from eve_pyro.autopilot.leaderboard import Leaderboard
from eve_pyro.autopilot.pareto import OBJECTIVES, fronts, values_of
from eve_pyro.autopilot.setup import Setup
from eve_pyro.autopilot.storage import importances
from eve_pyro.config import Config

LEADERBOARD, PARETO, IMPORTANCE = "leaderboard.csv", "pareto.csv", "importance.csv"


@dataclass(frozen=True)
class Result:
    """A complete study: its setup, the ``leaderboard`` (a row a trial, best first), the ``front`` of those trained to
    the end, and the ``importance`` of the options.
    """

    setup: Setup
    leaderboard: pd.DataFrame
    front: pd.DataFrame
    importance: pd.DataFrame

    @property
    def winner(self) -> pd.Series:
        """The first row."""
        return self.leaderboard.iloc[0]

    @property
    def config(self) -> Config:
        """What the winner trained, as one trains it alone."""
        found = self.setup.config(int(self.winner["trial"]))
        return replace(found, training=replace(found.training, progress=True))

    @property
    def share(self) -> float:
        """Steps taken, over those of all trials trained in full with one seed."""
        return float(self.leaderboard["steps"].sum() / (self.leaderboard["whole"].mean() * len(self.leaderboard)))

    def verdict(self) -> str:
        """Say in a sentence who won, or that no trial is valid and which is the least bad."""
        best, number = self.winner, int(self.winner["trial"])
        if best["valid"]:
            shown = f"validation CRPS {best['crps']:.4f}, inside mass {best['inside_mass']:.2f}, every gate passed"
            return f"Trial {number} won: {shown}."
        least = f"The least bad is trial {number}: {best['gates']}."
        dropped = self.leaderboard[self.leaderboard["valid"].astype(bool)]
        if dropped.empty:
            return f"No trial is valid. {least}"
        early, epochs = dropped.iloc[0], self.setup.plan.epochs
        where = f"trial {early['trial']} was at {early['epochs']} of {epochs} epochs, where others went on"
        return f"No trial that was trained to the end is valid; {where}. {least}"


def result_of(board: Board) -> Result:
    """Return what a complete study found; ValueError where every trial failed."""
    view = board.look()
    table = pd.DataFrame(Leaderboard(board, view).rows())
    if not table["seeds"].any():
        raise ValueError(f"every trial failed; trial {table['trial'].iloc[0]} {table['why'].iloc[0]}")
    first = {each.trial: each.figures for each in view.stages[0].values() if each.figures is not None}
    found = importances(board.setup, {trial: figures["crps"] for trial, figures in first.items()})
    importance = pd.DataFrame({"option": list(found), "importance": list(found.values())})
    return Result(board.setup, table, _front(table, board.setup), importance)


def _front(table: pd.DataFrame, setup: Setup) -> pd.DataFrame:
    """Return the valid trials that were trained to the end, their objectives, and which of them nothing dominates.

    Where none is valid, all of them. A study of one objective has its front over CRPS, joint log score and coverage
    error.
    """
    names = list(setup.plan.objectives) if len(setup.plan.objectives) > 1 else list(OBJECTIVES)[:3]
    rows = table[table["epochs"] == setup.plan.epochs]
    rows = rows[rows["valid"]] if rows["valid"].any() else rows
    values = [values_of(dict(row), names) for _, row in rows.iterrows()]
    found = pd.DataFrame(values, columns=names).assign(front=[number == 0 for number in fronts(values)])
    found.insert(0, "trial", rows["trial"].to_numpy())
    found = found.sort_values(["front", names[0]], ascending=[False, True], ignore_index=True)
    return found.assign(inside_mass=-found["inside_mass"]) if "inside_mass" in found else found

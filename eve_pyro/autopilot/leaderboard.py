"""The leaderboard: every trial once, best first, with why each loser lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eve_pyro.autopilot.board import Board, View
from eve_pyro.autopilot.gates import Figures, is_valid, penalty, why_invalid
from eve_pyro.autopilot.pareto import OBJECTIVES
from eve_pyro.autopilot.plan import SIGNALS


@dataclass(frozen=True)
class Leaderboard:
    """The trials of a complete study, as one look at the ``board`` showed them."""

    board: Board
    view: View

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a trial: place, why it lost, how far it came, figures there (mean over seeds), options."""
        return [{"rank": rank} | self._row(trial) for rank, trial in enumerate(self.order, 1)]

    @cached_property
    def reached(self) -> dict[int, tuple[int, list[Figures]]]:
        """By trial, the last stage it has figures of, and those of each seed there; failed trials are left out."""
        found: dict[int, tuple[int, list[Figures]]] = {}
        for stage, outcomes in enumerate(self.view.stages):
            more_seeds = stage >= len(self.board.setup.plan.rungs)
            for outcome in outcomes.values():
                if outcome.figures is not None:
                    before = found[outcome.trial][1] if more_seeds else []
                    found[outcome.trial] = stage, [*before, outcome.figures]
        return found

    @cached_property
    def order(self) -> list[int]:
        """All trials: those of the last stage by their mean over seeds, then the rest by how far they came."""
        plan = self.board.setup.plan
        last = {
            trial: mean(figures) for trial, (stage, figures) in self.reached.items() if stage == len(plan.stages) - 1
        }
        order = plan.order(last, len(plan.stages) - 1)
        for stage in reversed(range(len(plan.rungs))):
            order += [trial for trial in self._ranking(stage) if trial not in order]
        return order + [trial for trial in range(plan.budget) if trial not in order]

    def _ranking(self, stage: int) -> list[int]:
        return self.board.ranking(stage, self.view.stages[stage])

    def _row(self, trial: int) -> dict[str, Any]:
        options = self.board.setup.options(trial)
        if trial not in self.reached:
            nothing = {"epochs": 0, "seeds": 0, "valid": False, "gates": "", "steps": 0.0}
            return {"trial": trial, "why": f"failed: {self._failure(trial)}"} | nothing | options
        stage, figures = self.reached[trial]
        found = mean(figures)
        row = {"trial": trial, "why": self._why(trial), "epochs": self.board.setup.plan.stages[stage].epochs}
        row |= {"seeds": len(figures), "valid": is_valid(found), "gates": why_invalid(found), "penalty": penalty(found)}
        return row | found | {"steps": sum(each["step"] for each in figures)} | options

    def _failure(self, trial: int) -> str:
        """Return why a training of the trial has no figures; empty where all have some."""
        every = (each for stage in self.view.stages for each in stage.values())
        return next((each.why for each in every if each.trial == trial and each.why), "")

    def _why(self, trial: int) -> str:
        """Say why a trial lost, or that it won."""
        plan, (stage, figures), first = self.board.setup.plan, self.reached[trial], self.order[0]
        found, epochs = mean(figures), plan.stages[stage].epochs
        if trial == first:
            return "the winner" if is_valid(found) else f"the least bad, invalid: {why_invalid(found)}"
        if self._failure(trial):
            return f"failed after {epochs} of {plan.epochs} epochs: {self._failure(trial)}"
        if stage == len(plan.stages) - 1:
            return _beaten(found, mean(self.reached[first][1]), "the winner", plan.objectives, True)
        ranked = self._ranking(stage)
        on = ranked[min(len(ranked), plan.stages[stage + 1].trials) - 1]
        where = f"dropped at {epochs} of {plan.epochs} epochs, {ranked.index(trial) + 1} of {len(ranked)}"
        pruned = plan.pruned_by(stage)
        if pruned == "signals":
            return f"{where}: {_shown(found, SIGNALS)}"
        names = (*plan.objectives, *SIGNALS) if pruned == "both" else plan.objectives
        by_trial = {each.trial: each.figures for each in self.view.stages[stage].values() if each.figures is not None}
        return f"{where}: {_beaten(found, by_trial[on], 'the last to go on', names, plan.gated(stage))}"


def mean(figures: list[Figures]) -> dict[str, float]:
    """Return the mean over seeds, of the figures that all have."""
    names = [name for name in figures[0] if all(name in each for each in figures)]
    return {name: sum(each[name] for each in figures) / len(figures) for name in names}


def _beaten(found: Figures, other: Figures, name: str, compared: Sequence[str], gated: bool) -> str:
    if gated and not is_valid(found):
        return f"invalid: {why_invalid(found)}"
    if gated and penalty(found) > penalty(other):
        return f"inside mass {found['inside_mass']:.2f}, {name} had {other['inside_mass']:.2f}"
    return f"validation {_shown(found, compared)}; {name} had {_shown(other, compared)}"


def _shown(figures: Figures, names: Sequence[str]) -> str:
    values = {**figures, "coverage_error": OBJECTIVES["coverage_error"](figures)}
    return ", ".join(f"{name.replace('_', ' ')} {values[name]:.4f}" for name in names)

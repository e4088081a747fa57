"""The plan of a study: which trainings there are before the first of them begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from eve_pyro.autopilot.gates import Figures, mean_ranks, selection_key
from eve_pyro.autopilot.pareto import check_objectives, fronts, values_of

GROWTH = 3  # epochs of a rung, over those of the rung before
RUNGS = 3
FINISHERS = 3  # trained to the end, at the least
FINALISTS = 2  # of these many the last rung has several seeds
RECIPE = 0  # the trial that stands for the recipe goes on to the end, for what the search finds to be held against
SIGNALS = ("out_of_band", "not_living", "kl_drift")
Prune = Literal["score", "signals", "both"]


@dataclass(frozen=True)
class Stage:
    """Trainings side by side: the best ``trials`` of the stage before, up to ``epochs``, with each of ``seeds``."""

    epochs: int
    trials: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Slot:
    """One training of a stage: of its ``rank``-th trial, with the ``seed``-th seed."""

    stage: int
    rank: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """How ``budget`` trials become a winner.

    Successive halving trains them for a ninth of their ``epochs``, one in ``reduction`` for a third, one in that many
    of these, and three at the least, to the end, the recipe always among them; ``full`` trains all of them to the end.
    The best two are then trained with ``seeds`` seeds in all and ranked by the mean. ``prune`` says what trials are
    promoted by: the validation ``score``, the units' ``signals``, or ``both``; with several ``objectives`` they are
    promoted by their fronts.
    """

    budget: int
    epochs: int
    reduction: int = 4
    seeds: int = 3
    full: bool = False
    prune: Prune = "score"
    objectives: tuple[str, ...] = ("crps",)

    def check(self) -> None:
        """Raise ValueError for a budget smaller than the first rung, and other plans without sense."""
        check_objectives(self.objectives)
        if self.reduction < 2 or self.seeds < 1:
            raise ValueError(f"a reduction is at least 2 and seeds are at least 1, not {self.reduction}, {self.seeds}")
        least = 1 if self.full else self.reduction
        if self.budget < least:
            raise ValueError(
                f"a budget of {self.budget} is smaller than the first rung: one trial in {self.reduction} goes on, so "
                f"name --budget {least} or more, or a smaller --reduction"
            )
        if self.prune not in ("score", "signals", "both"):
            raise ValueError(f"trials are pruned by score, signals or both, not by {self.prune!r}")
        if len(self.objectives) > 1 and self.prune == "signals":
            raise ValueError("several objectives are promoted by their fronts: leave --prune at score, or name both")

    @cached_property
    def stages(self) -> list[Stage]:
        """The rungs, and, with several seeds, the finalists'."""
        if self.full:
            rungs = [Stage(self.epochs, self.budget)]
        else:
            epochs = [max(1, round(self.epochs / GROWTH**left)) for left in reversed(range(RUNGS))]
            lengths = sorted(set(epochs))
            sizes = [max(FINISHERS, self.budget // self.reduction**rung) for rung in range(len(lengths))]
            rungs = [Stage(length, min(size, self.budget)) for length, size in zip(lengths, sizes, strict=True)]
        if self.seeds == 1:
            return rungs
        return [*rungs, Stage(self.epochs, min(FINALISTS, rungs[-1].trials), tuple(range(1, self.seeds)))]

    @cached_property
    def slots(self) -> list[Slot]:
        """Every training of the study, in order."""
        return [
            Slot(number, rank, seed)
            for number, stage in enumerate(self.stages)
            for rank in range(stage.trials)
            for seed in stage.seeds
        ]

    @property
    def rungs(self) -> list[Stage]:
        """The stages that train one seed."""
        return [stage for stage in self.stages if stage.seeds == (0,)]

    def pruned_by(self, stage: int) -> Prune:
        """Return what a stage promotes by; the last rung and what follows it always by score."""
        return self.prune if stage < len(self.rungs) - 1 else "score"

    def gated(self, stage: int) -> bool:
        """Say whether constraints come first in a stage: not in the first of several rungs, where the regimes have
        hardly begun to act, and never where signals alone decide.
        """
        first = stage == 0 < len(self.rungs) - 1
        return not first and self.pruned_by(stage) != "signals"

    def order(self, figures: Mapping[int, Figures], stage: int) -> list[int]:
        """Return trial numbers, best first, by what they showed in a stage.

        Valid ones first and then by penalty, where the stage is ``gated``; then by validation CRPS or, with several
        objectives, by front. By signals: by the mean rank over the three signals alone. Trial 0, the recipe, goes
        before all until the last rung.
        """
        numbers = sorted(figures)
        by_score = self._scores([figures[number] for number in numbers])
        by_signals = [mean_ranks([[figures[n][name] for n in numbers] for name in SIGNALS]), by_score]
        keys: dict[int, tuple[float, ...]] = {}
        both = mean_ranks(by_signals)
        for place, number in enumerate(numbers):
            gates = tuple(map(float, selection_key(figures[number]))) if self.gated(stage) else ()
            ranked = {"score": by_score, "signals": by_signals[0], "both": both}[self.pruned_by(stage)]
            spared = number == RECIPE and stage < len(self.rungs) - 1
            keys[number] = (not spared, *gates, ranked[place], number)
        return sorted(numbers, key=keys.__getitem__)

    def _scores(self, figures: Sequence[Figures]) -> Sequence[float]:
        """Return what is lower for better trials: the one objective, or the front with the mean rank to tell ties."""
        values = [values_of(each, self.objectives) for each in figures]
        if len(self.objectives) == 1:
            return [each[0] for each in values]
        ties = mean_ranks(list(zip(*values, strict=True)))
        return [front + tie / (len(values) + 1) for front, tie in zip(fronts(values), ties, strict=True)]

"""What the accuracy benchmark is to run, and how a run is configured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from eve_pyro.bench.lineup import MEMBERS, MODELS
from eve_pyro.bench.peers import PEERS, check_python
from eve_pyro.bench.protocols import NAIVE, Protocol
from eve_pyro.bench.sets import default_contexts, default_options
from eve_pyro.bench.tuning import Options, candidates_of
from eve_pyro.config import Config, load_recipe
from eve_pyro.data import standard_split

KNOWN = (*MODELS, *PEERS)
MAX_SEED = 2**63
FIXED = {
    "seed": "name what to train with --seeds",
    "horizon": "name the horizons with --horizons",
    "context_length": "name the contexts with --contexts",
    "rows": "the protocol fixes the split",
    "validation": "the protocol fixes the split",
    "test": "the protocol fixes the split",
}


@dataclass(frozen=True)
class Plan:
    """What to run: ``horizons`` and ``contexts`` are each set's own where None; ProbTS has one context a set.

    ``overrides`` are options of the ``recipe``, as the command line names them. With ``tune`` every trained model is
    tried with the candidates of ``bench.tuning``, and those that seed 0 chooses serve all seeds of a cell.
    ``peer_python`` is a Python that has neuralforecast, for the peers among ``models``.
    """

    data: Path
    sets: Sequence[str]
    models: Sequence[str] = MODELS
    seeds: Sequence[int] = (0, 1, 2)
    horizons: Sequence[int] | None = None
    contexts: Sequence[int] | None = None
    protocol: Protocol = "longhorizon"
    recipe: str = "factor"
    overrides: Mapping[str, Any] | None = None
    num_draws: int = 100
    tune: bool = False
    peer_python: Path | None = None

    def check(self) -> None:
        """Raise ValueError for a model that nobody knows and for options that leave no choice."""
        for name in self.models:
            if name not in KNOWN:
                raise ValueError(f"there is no model {name!r}; known are {', '.join(KNOWN)}")
            if name in PEERS and self.peer_python is None:
                raise ValueError(
                    f"model {name!r} comes from neuralforecast: name a Python that has it by --peer-python"
                )
        if self.peer_python is not None:
            check_python(self.peer_python)
        if "ensemble" in self.models and max(self.seeds) >= MAX_SEED // MEMBERS:
            raise ValueError(f"an ensemble's members have seeds of their own: name --seeds below {MAX_SEED // MEMBERS}")
        tuned = {option for model in self.models for options in self.candidates(model) for option in options}
        for option in self.overrides or {}:
            if option in FIXED:
                raise ValueError(f"option {option} has no use here: {FIXED[option]}")
            if option in tuned:
                raise ValueError(f"option {option} is among those that --tune chooses: leave out one of them")
        if self.protocol not in get_args(Protocol):
            raise ValueError(f"the protocol is {' or '.join(get_args(Protocol))}, not {self.protocol!r}")
        if self.protocol == "probts" and self.contexts is not None:
            raise ValueError("the protocol probts fixes the context: leave out --contexts")

    def contexts_of(self, name: str) -> Sequence[int]:
        """Return the contexts to choose among for a set; ProbTS's is the first of them."""
        return self.contexts or default_contexts(name)[: 1 if self.protocol == "probts" else None]

    def candidates(self, model: str) -> Sequence[Options]:
        """Return the options to choose among for a model: the recipe's own alone, unless they are tuned."""
        return candidates_of(model) if self.tune and model not in NAIVE else ({},)

    def config(self, name: str, horizon: int, context: int, seed: int = 0, options: Options | None = None) -> Config:
        """Return the configuration of a run on the set ``name`` with one candidate's ``options``.

        What they and ``overrides`` do not name is the set's own, then the recipe's.
        """
        split = asdict(standard_split(name))  # all of it, or a recipe's own would take the place of the protocol's
        fixed = {"horizon": horizon, "context_length": context, "seed": seed}
        chosen = default_options(name) | dict(self.overrides or {}) | dict(options or {})
        return load_recipe(self.recipe, chosen | split | fixed)

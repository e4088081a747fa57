"""The regimes: controllers put together, attached to a training as one Lightning callback."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

import pyro
import torch
from torch import Tensor

from eve_pyro.control.band import BandPenalty, ramp
from eve_pyro.control.laws import ALIVE, homeostat_factors, projection_factors
from eve_pyro.control.layer import LayerControl
from eve_pyro.control.persistence import ArPenalty
from eve_pyro.control.steering import MOVES_ROWS, Steering
from eve_pyro.diagnostics.census import Tally, UnitFigures
from eve_pyro.infer.loop import Callback, L
from eve_pyro.infer.terms import UnitTerms
from eve_pyro.protocols import Steerable, UnitRows

HOMEOSTAT_EVERY, CALIBRATE_EVERY = 10, 64


class Control(Callback):
    """Steers the units of every layer while they train, by the regime that ``steering`` names.

    ``penalty`` leans on energies outside their band; ``projection`` also moves each such unit to its nearest edge once
    an epoch; ``homeostasis`` instead moves all units a little towards their goal every ten steps. The last two act on
    the guide, which must be ``Steerable``; sites whose rows are empty (``free``) are left alone and out of the
    census. A thermostat sets the betas in any regime. Pass it to ``fit`` as a callback.

    Raises ValueError, before the first step, for a guide whose rows the regime cannot move, and for a warm-up that is
    as long as the training.
    """

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.layers: dict[str, LayerControl] = {}
        self.penalty = BandPenalty({}, steering.lambda_band)
        self.persistence = ArPenalty(steering.lambda_ar, steering.ar_phi) if steering.lambda_ar else None
        self.unseen = Tally()
        self._unchecked = self.moves_rows
        self._saved: dict[str, Any] = {}
        self.free: set[str] = set()
        self.reach: dict[str, float] = {}
        self._beta: Any = None

    @property
    def moves_rows(self) -> bool:
        """Whether the regime acts on the guide's rows."""
        return self.steering.regime in MOVES_ROWS

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        """Check that the regime can act, and add the penalty."""
        steering = self.steering
        steering.check(int(trainer.estimated_stepping_batches))
        self._beta, self._unchecked = task.elbo.beta, self.moves_rows
        if self.moves_rows and not isinstance(task.guide, Steerable):
            raise ValueError(
                f"regime {steering.regime!r} moves the rows of the guide, and {type(task.guide).__name__} does not say "
                "which they are: give it a method unit_rows() (see eve_pyro.protocols.Steerable), or use 'penalty'"
            )
        if self.moves_rows and not isinstance(task.guide.unit_rows(), Mapping):  # or says why it has none
            raise ValueError(f"unit_rows() of {type(task.guide).__name__} must map each site to its UnitRows")
        rows = _rows(task.guide)
        self.free = {site for site, found in rows.items() if found.loc == ()}
        self.reach = {site: found.reach for site, found in rows.items()}
        for site, state in self._saved.items():
            self._add(site, LayerControl.restored(steering, state, task.device, self.reach.get(site, inf)))
        self._count(trainer.global_step)
        if steering.regime != "off":
            task.elbo.penalties["band"] = self.penalty
        if self.persistence is not None:
            task.elbo.penalties["ar"] = self.persistence
        if self.layers:
            self._set_betas(task, trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        """Hold the guide's rows against the units of the first batch, before anything is learned from it."""
        if not self._unchecked:
            return
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            task.elbo.loss(task.model, task.guide, *batch)
            counts = {site: len(units.energy) for site, units in task.elbo.terms.units.items()}
            owned = (*task.parameters(), *task.buffers(), *task.trained())
            check_rows(task.guide.unit_rows(), counts, owned, type(task.guide).__name__)
        self._unchecked = False

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Leave the local ELBO as it was."""
        for name in ("band", "ar"):
            task.elbo.penalties.pop(name, None)
        task.elbo.beta = self._beta

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure, then act."""
        for site, units in task.elbo.terms.units.items():
            self._layer(site, units, task, batch).observe(*self._everywhere(trainer, units))
        step, steering = trainer.global_step, self.steering
        self._count(step)
        if step < steering.warmup:
            return
        last = batch_idx + 1 == trainer.num_training_batches
        for site, layer in self.layers.items():
            if site in self.free:
                continue
            if steering.calibrate and step % CALIBRATE_EVERY == 0 and layer.energy is not None:
                layer.calibration.act(layer.energy)
                self.penalty.bands[site] = layer.aim
            if self.moves_rows:
                self._move(layer, task.guide.unit_rows()[site], step, last)
            if steering.thermostat:
                layer.thermostat.act()
        if self.persistence is not None:
            self.persistence.share.act(float(trainer.strategy.reduce(task.elbo.terms.share("ar"), reduce_op="mean")))
        self._set_betas(task, step)

    def on_validation_batch_end(
        self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in a batch of unseen windows."""
        self.unseen.add(task.elbo.terms)

    def on_validation_end(self, trainer: L.Trainer, task: Any) -> None:
        """Learn by how much each unit's energy differs on unseen windows."""
        for site, figures in self.unseen.take().items():
            layer = self.layers[site]
            layer.compare(UnitFigures(*trainer.strategy.reduce(figures, reduce_op="mean")).energy)
            if site not in self.free:
                self.penalty.bands[site] = layer.aim

    def _count(self, step: int) -> None:
        """Let the penalties be what they are at ``step``."""
        self.penalty.strength = ramp(step, self.steering.warmup, self.steering.ramp)
        if self.persistence is not None:
            self.persistence.acts = step >= self.steering.warmup

    def _move(self, layer: LayerControl, rows: UnitRows, step: int, last_of_epoch: bool) -> None:
        if layer.energy is None:
            return
        if self.steering.regime == "homeostasis" and step % HOMEOSTAT_EVERY == 0:
            layer.move(rows, homeostat_factors(layer.energy, layer.aim, self.steering.eta))
        if self.steering.regime == "projection" and last_of_epoch:
            layer.move(rows, projection_factors(layer.energy, layer.band))
        layer.guard(rows)

    def _set_betas(self, task: Any, step: int) -> None:
        if self.steering.thermostat and step >= self.steering.warmup:
            task.elbo.beta = {site: layer.thermostat.beta for site, layer in self.layers.items()}

    def _add(self, site: str, layer: LayerControl) -> LayerControl:
        self.layers[site] = layer
        if site not in self.free:
            self.penalty.bands[site] = layer.aim
        return layer

    def _layer(self, site: str, units: UnitTerms, task: Any, batch: Any) -> LayerControl:
        if site in self.layers:
            return self.layers[site]
        beta = task.elbo.beta_of(site, units.kl).expand_as(units.energy).clone()
        return self._add(site, LayerControl(self.steering, beta, batch.future.shape[-1], self.reach.get(site, inf)))

    @staticmethod
    def _everywhere(trainer: L.Trainer, units: UnitTerms) -> tuple[Tensor, Tensor, Tensor]:
        """Return KL, share of windows alive and energy of a batch, averaged over all processes."""
        figures = torch.stack([units.kl.mean(0), (units.kl > ALIVE).float().mean(0), units.energy])
        kl, alive, energy = trainer.strategy.reduce(figures, reduce_op="mean")
        return kl, alive, energy

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every layer's controllers, for a checkpoint."""
        layers = {site: layer.state() for site, layer in self.layers.items()}
        weight = None if self.persistence is None else self.persistence.share.weight
        return {"steering": asdict(self.steering), "layers": layers, "ar_weight": weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state; ValueError where it was steered otherwise."""
        for name, value in asdict(self.steering).items():
            if state_dict["steering"].get(name) != value:
                before = state_dict["steering"].get(name)
                raise ValueError(f"the checkpoint was steered with {name} = {before!r}, not {value!r}: resume it so")
        self._saved = state_dict["layers"]
        if self.persistence is not None:
            self.persistence.share.weight = state_dict["ar_weight"]


def _rows(guide: Any) -> dict[str, UnitRows]:
    """Return what a guide says of its rows, if anything, by site: where they are empty nothing acts."""
    try:
        rows = guide.unit_rows() if isinstance(guide, Steerable) else {}
    except ValueError:  # it has none at all
        return {}
    return {site: found for site, found in rows.items() if isinstance(found, UnitRows)}


def check_rows(rows: Mapping[str, UnitRows], counts: Mapping[str, int], owned: Iterable[Tensor], guide: str) -> None:
    """Raise ValueError unless ``rows`` has, for every site of ``counts``, a row for each of its units, as views of what
    is ``owned``. ``guide`` is the name to complain by.
    """
    for site in sorted(set(rows) ^ set(counts)):
        fault = "names" if site in rows else "leaves out"
        raise ValueError(f"unit_rows() of {guide} {fault} the site {site!r}: the sites are {', '.join(counts)}")
    storages = {tensor.untyped_storage().data_ptr() for tensor in owned}
    for site, count in counts.items():
        where, found = f"unit_rows()[{site!r}] of {guide}", rows[site]
        if not isinstance(found, UnitRows) or not isinstance(found.loc, Sequence):
            raise ValueError(f"{where} must be UnitRows((tensor, ...), log_scale), the second a tensor or None")
        named = {f"loc[{number}]": row for number, row in enumerate(found.loc)}
        named |= {} if found.log_scale is None else {"log_scale": found.log_scale}
        for name, row in named.items():
            shape = tuple(row.shape)
            if shape[:1] != (count,):
                raise ValueError(f"{name} in {where} has shape {shape}, not ({count}, ...): one row for each unit")
            repeats = any(size > 1 and step == 0 for size, step in zip(shape, row.stride(), strict=True))
            if repeats or row.untyped_storage().data_ptr() not in storages:
                raise ValueError(
                    f"{name} in {where}, of shape {shape}, is no view of the guide's parameters, a place for each of "
                    "its values: return the parameter's .data itself, or a .view or a slice of it"
                )

"""The regimes: controllers put together, attached to a training as one Lightning callback."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from eve_pyro.control.band import Band, BandPenalty, heterogeneous_band, homogeneous_band, ramp
from eve_pyro.control.laws import ALIVE, BandCalibration, Thermostat, ema, homeostat_factors, projection_factors
from eve_pyro.control.steering import Steering
from eve_pyro.diagnostics.census import Tally, UnitFigures
from eve_pyro.infer.terms import UnitTerms
from eve_pyro.protocols import Steerable, UnitRows

with warnings.catch_warnings():  # importing Lightning adds filters to everybody's warnings
    import lightning as L
    from lightning.pytorch.callbacks import Callback

MIN_SCALE, MAX_SCALE, KICK = 0.15, 5.0, 0.02
MAX_TRANSFER = 4.0  # between a unit's energies on validation and in training, either way
HOMEOSTAT_EVERY, CALIBRATE_EVERY, ENERGY_RATE = 10, 64, 0.05
BETA_RANGE = (1e-6, 1e-2)  # on a likelihood averaged over the horizon: times H, in nats a window


def make_band(steering: Steering, num_units: int) -> Band:
    """Return the band that ``steering`` asks for."""
    if steering.bands == "heterogeneous":
        return heterogeneous_band(num_units, steering.target, steering.spread)
    return homogeneous_band(num_units, steering.target)


class LayerControl:
    """The controllers of one layer: its band, its energy, its betas. All that has to be saved is in ``state``."""

    def __init__(self, steering: Steering, num_units: int, beta: Tensor, horizon: int) -> None:
        self.steering = steering
        self.calibration = BandCalibration(make_band(steering, num_units))
        low, high = (edge * horizon for edge in BETA_RANGE)
        self.thermostat = Thermostat(beta, steering.c_min, steering.c_max, min(low, float(beta.min())), high)
        self.energy: Tensor | None = None
        self.transfer: Tensor | None = None

    @property
    def band(self) -> Band:
        """The band as calibrated so far."""
        return self.calibration.band

    @property
    def aim(self) -> Band:
        """What the regime aims at in training: the band, or under homeostasis its inner part, moved for unseen windows.

        A unit that is pulled out of its band settles a little outside of its goal: with the edge as the goal it would
        stay outside for good. And unseen windows, without dropout, have other energies than training's, by a factor of
        each unit that every evaluation measures.
        """
        if self.steering.regime != "homeostasis":
            return self.band
        inner = self.band.inner(self.steering.aim)
        return inner if self.transfer is None else inner.scaled(1 / self.transfer, 1 / self.transfer)

    def observe(self, kl: Tensor, alive: Tensor, energy: Tensor) -> None:
        """Take in a batch's KL, share of windows alive, and energy, each (N,), averaged over all processes."""
        self.thermostat.observe(kl, alive)
        self.energy = ema(self.energy, energy, ENERGY_RATE)

    def compare(self, energy: Tensor) -> None:
        """Take in the energies (N,) of an evaluation on unseen windows."""
        if self.energy is not None:
            self.transfer = (energy / self.energy.clamp(min=1e-30)).clamp(1 / MAX_TRANSFER, MAX_TRANSFER)

    def move(self, rows: UnitRows, factor: Tensor) -> None:
        """Scale each unit's loc rows by ``factor`` (N,), and what is known of its energy with them."""
        for row in rows.loc:
            row.mul_(factor.reshape(-1, *[1] * (row.ndim - 1)))
        if self.energy is not None:
            self.energy = self.energy * factor.square()

    def guard(self, rows: UnitRows) -> None:
        """Keep scales within [0.15, 5], and kick a dead unit's log scale up by 0.02."""
        if rows.log_scale is None or self.thermostat.alive is None:
            return
        dead = (self.thermostat.alive < 0.05).reshape(-1, *[1] * (rows.log_scale.ndim - 1))
        rows.log_scale.add_(KICK * dead).clamp_(math.log(MIN_SCALE), math.log(MAX_SCALE))

    def state(self) -> dict[str, Any]:
        """Return all that a resumed training needs."""
        heat = self.thermostat
        return {
            "energy": self.energy, "transfer": self.transfer, "beta": heat.beta, "kl": heat.kl, "alive": heat.alive,
            "low": self.calibration.low, "high": self.calibration.high,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved ``state``."""
        self.energy, self.transfer, heat = state["energy"], state["transfer"], self.thermostat
        heat.beta, heat.kl, heat.alive = state["beta"], state["kl"], state["alive"]
        self.calibration.low, self.calibration.high = state["low"], state["high"]


class Control(Callback):
    """Steers the units of every layer while they train, by the regime that ``steering`` names.

    ``penalty`` leans on energies outside their band; ``projection`` also moves each such unit to its nearest edge once
    an epoch; ``homeostasis`` instead moves all units a little towards their goal every ten steps. The last two act on
    the guide, which must be ``Steerable``. A thermostat sets the betas in any regime. Pass it to ``fit`` as a callback.

    Raises ValueError, before the first step, for a guide the regime cannot act on, and for a warm-up that is as long as
    the training.
    """

    def __init__(self, steering: Steering) -> None:
        if steering.c_min > steering.c_max:
            raise ValueError(f"the thermostat needs c_min <= c_max, not [{steering.c_min}, {steering.c_max}]")
        self.steering = steering
        self.layers: dict[str, LayerControl] = {}
        self.penalty = BandPenalty({}, steering.lambda_band)
        self.unseen = Tally()
        self._saved: dict[str, Any] = {}
        self._beta: Any = None

    @property
    def moves_rows(self) -> bool:
        """Whether the regime acts on the guide's rows."""
        return self.steering.regime in ("projection", "homeostasis")

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        """Check that the regime can act, and add the penalty."""
        steering, steps = self.steering, int(trainer.estimated_stepping_batches)
        self._beta = task.elbo.beta
        if self.moves_rows and not isinstance(task.guide, Steerable):
            raise ValueError(
                f"regime {steering.regime!r} moves the rows of the guide, and {type(task.guide).__name__} does not say "
                "which they are: give it a method unit_rows() (see eve_pyro.protocols.Steerable), or use 'penalty'"
            )
        if steering.regime != "off" and steering.warmup >= steps:
            raise ValueError(f"a warm-up of {steering.warmup} steps leaves nothing of a training of {steps} steps")
        if steering.regime != "off":
            task.elbo.penalties["band"] = self.penalty

    def on_train_end(self, trainer: L.Trainer, task: Any) -> None:
        """Leave the local ELBO as it was."""
        task.elbo.penalties.pop("band", None)
        task.elbo.beta = self._beta

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure, then act."""
        for site, units in task.elbo.terms.units.items():
            self._layer(site, units, task, batch).observe(*self._everywhere(trainer, units))
        step, steering = trainer.global_step, self.steering
        self.penalty.strength = ramp(step, steering.warmup, steering.ramp)
        if step < steering.warmup:
            return
        last = batch_idx + 1 == trainer.num_training_batches
        for site, layer in self.layers.items():
            if steering.calibrate and step % CALIBRATE_EVERY == 0 and layer.energy is not None:
                layer.calibration.act(layer.energy)
                self.penalty.bands[site] = layer.aim
            if self.moves_rows:
                self._move(layer, task.guide.unit_rows()[site], step, last)
        if steering.thermostat:
            task.elbo.beta = {site: layer.thermostat.act() for site, layer in self.layers.items()}

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
            self.penalty.bands[site] = layer.aim

    def _move(self, layer: LayerControl, rows: UnitRows, step: int, last_of_epoch: bool) -> None:
        if layer.energy is None:
            return
        if self.steering.regime == "homeostasis" and step % HOMEOSTAT_EVERY == 0:
            layer.move(rows, homeostat_factors(layer.energy, layer.aim, self.steering.eta))
        if self.steering.regime == "projection" and last_of_epoch:
            layer.move(rows, projection_factors(layer.energy, layer.band))
        layer.guard(rows)

    def _layer(self, site: str, units: UnitTerms, task: Any, batch: Any) -> LayerControl:
        if site not in self.layers:
            num_units = units.energy.shape[0]
            beta = task.elbo.beta_of(site, units.kl).expand(num_units).clone()
            layer = LayerControl(self.steering, num_units, beta.clamp(min=1e-12), batch.future.shape[-1])
            if site in self._saved:
                layer.load(self._saved[site])
            self.layers[site] = layer
            self.penalty.bands[site] = layer.aim
        return self.layers[site]

    @staticmethod
    def _everywhere(trainer: L.Trainer, units: UnitTerms) -> tuple[Tensor, Tensor, Tensor]:
        """Return KL, share of windows alive and energy of a batch, averaged over all processes."""
        figures = torch.stack([units.kl.mean(0), (units.kl > ALIVE).float().mean(0), units.energy])
        kl, alive, energy = trainer.strategy.reduce(figures, reduce_op="mean")
        return kl, alive, energy

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every layer's controllers, for a checkpoint."""
        return {site: layer.state() for site, layer in self.layers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state; layers pick it up when training goes on."""
        self._saved = state_dict

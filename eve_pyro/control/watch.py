"""The census while a training runs: what the units did, by step and by epoch."""

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from eve_pyro.control.regimes import Control
from eve_pyro.diagnostics.census import Tally, UnitFigures, has_drifted, judge, state_names, summary
from eve_pyro.infer.loop import Callback, L

RECORDS = 24  # of the training units, evenly spaced over a training


class Census(Callback):
    """Takes the census of all units against the bands of ``control``, but for sites that no band holds.

    Each epoch it logs the ``summary`` of training and validation as ``train_*`` and ``val_*``. ``tables`` gives it
    by unit (``census``) and as a curve (``signals``): validation once an epoch, training 24 times in all, each over the
    batches since the last time, so that the out-of-band fraction is there early enough to prune by.
    """

    def __init__(self, control: Control) -> None:
        self.control = control
        self.recent, self.epoch, self.validation = Tally(), Tally(), Tally()
        self.signals: list[dict[str, Any]] = []
        self.units: list[dict[str, Any]] = []
        self.before: dict[str, Tensor] = {}
        self.best = math.inf

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take in a batch; now and then, write down what the last ones were."""
        for tally in (self.recent, self.epoch):
            tally.add(task.elbo.terms)
        if trainer.global_step % max(1, int(trainer.estimated_stepping_batches) // RECORDS) == 0:
            self._record(trainer, "train", self._everywhere(trainer, self.recent))

    def on_validation_batch_end(
        self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take in a batch."""
        self.validation.add(task.elbo.terms)

    def on_train_epoch_end(self, trainer: L.Trainer, task: Any) -> None:
        """Log the epoch's census of both splits; units that drifted are those of the whole epoch."""
        score = float(trainer.callback_metrics.get("val_crps", trainer.callback_metrics.get("val_log_score", math.nan)))
        train, validation = self._everywhere(trainer, self.epoch), self._everywhere(trainer, self.validation)
        gained = score < self.best
        drifted = {
            site: has_drifted(figures.energy, self.before[site], gained)
            for site, figures in train.items()
            if site in self.before
        }
        self.before = {site: figures.energy for site, figures in train.items()}
        self.best = min(self.best, score)
        named = self._summary("train", train, drifted)
        if validation:
            named |= self._summary("val", validation, drifted)
            self._record(trainer, "val", validation, drifted)
        task.log_dict(named)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return ``signals``, a row a record, and ``census``, a row a record and unit."""
        units = []
        for record in self.units:
            columns = {
                name: values.numpy() if isinstance(values, Tensor) else values for name, values in record.items()
            }
            units.append(pd.DataFrame(columns))
        return {"signals": pd.DataFrame(self.signals), "census": pd.concat(units) if units else pd.DataFrame()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was written down so far, for a checkpoint."""
        recent = {"totals": self.recent.totals, "windows": self.recent.windows}
        kept = {"signals": self.signals, "units": self.units, "before": self.before, "best": self.best}
        return kept | {"recent": recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.signals, self.units = state_dict["signals"], state_dict["units"]
        self.before, self.best = state_dict["before"], state_dict["best"]
        self.recent = Tally(**state_dict["recent"])

    def _record(
        self, trainer: L.Trainer, split: str, layers: dict[str, UnitFigures], drifted: dict[str, Tensor] | None = None
    ) -> None:
        if not layers:
            return
        where = {"step": trainer.global_step, "epoch": trainer.current_epoch, "split": split}
        self.signals.append(where | self._summary("", layers, drifted or {}))
        for site, figures in layers.items():
            layer = self.control.layers[site]
            low, high = layer.band.low.cpu(), layer.band.high.cpu()
            states = judge(figures, low, high, (drifted or {}).get(site))
            row = where | {"site": site, "unit": torch.arange(len(low)), **figures._asdict()}
            row |= {"low": low, "high": high, "beta": layer.thermostat.beta.cpu().clone()}
            self.units.append(row | {"state": state_names(states)})

    def _summary(self, split: str, layers: dict[str, UnitFigures], drifted: dict[str, Tensor]) -> dict[str, float]:
        """Return the summary over the units of all layers, each judged by its own band."""
        if not layers:
            return {}
        judged = []
        for site, figures in layers.items():
            band = self.control.layers[site].band
            judged.append(judge(figures, band.low.cpu(), band.high.cpu(), drifted.get(site)))
        states = {name: torch.cat([each[name] for each in judged]) for name in judged[0]}
        figures = UnitFigures(*(torch.cat(parts) for parts in zip(*layers.values(), strict=True)))
        prefix = f"{split}_" if split else ""
        return {f"{prefix}{name}": value for name, value in summary(states, figures).items()}

    def _everywhere(self, trainer: L.Trainer, tally: Tally) -> dict[str, UnitFigures]:
        """Return a tally's figures averaged over all processes, on the CPU, and start it anew."""
        means = {site: trainer.strategy.reduce(figures, reduce_op="mean") for site, figures in tally.take().items()}
        return {site: UnitFigures(*means[site].cpu()) for site in means if site not in self.control.free}

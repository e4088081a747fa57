"""A model, a guide and their local ELBO as Lightning sees them."""

import math
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.loop import L
from eve_pyro.infer.predictive import predict
from eve_pyro.infer.programs import StoreParameters
from eve_pyro.infer.scores import marginal_scores
from eve_pyro.infer.training import Training
from eve_pyro.protocols import Batch, Guide, Model

VALIDATION_DRAWS = 16
VALIDATION = 2**32 - 1  # stands for the epoch in the seed of all validations


class Task(L.LightningModule):
    """Losses a value, terms apart; every epoch with a random state of its own, every validation with the same."""

    def __init__(
        self,
        model: Model,
        guide: Guide,
        elbo: LocalELBO,
        training: Training,
        stored: dict[str, Tensor],
        scored: tuple[str, ...] = ("crps",),
    ) -> None:
        super().__init__()
        self.model, self.guide, self.elbo, self.training_options = model, guide, elbo, training
        self.stored, self.scored = StoreParameters(stored), scored
        self.not_finite: int | None = None

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        """Return the loss a value; a loss that is not finite ends the training before it reaches a weight."""
        with pyro.validation_enabled(self.global_step == 0):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *batch) / batch.future.numel()
        if not self.trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss))):
            self.not_finite, self.trainer.should_stop = self.global_step, True
            return None
        self._log_terms("train", loss.detach(), batch)
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Begin every epoch with a random state of its own, so that a resumed training draws what it would have."""
        if batch_idx == 0:
            self._seed(self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Begin every validation alike, so that the best epoch is not the one with the luckiest draws."""
        self._seed(VALIDATION)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log the same terms without gradients, and the forecast's scores: the CRPS, or those of classes."""
        with pyro.validation_enabled(False):
            loss = self.elbo.differentiable_loss(self.model, self.guide, *batch) / batch.future.numel()
            self._log_terms("val", loss.detach(), batch)
            scores = dict.fromkeys(self.scored, torch.full_like(loss, math.nan))
            # Weights can be lost while the loss is still a number: no covariance comes of them.
            with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                if torch.isfinite(loss):
                    prediction = predict(self.model, self.guide, batch.context, VALIDATION_DRAWS)
                    found = marginal_scores(prediction, batch.future)
                    scores = {name: found[name].mean() for name in self.scored}
        named = {f"val_{name}": value for name, value in scores.items()}
        self.log_dict(named, batch_size=len(batch.future), prog_bar=True, sync_dist=True)

    def on_after_backward(self) -> None:
        """Refuse, at the first step, to leave parameters of the param store as they are without a word."""
        if self.global_step > 0:
            return
        silent = [name for name, value in self.stored.named.items() if value.grad is None]
        if silent or not any(p.grad is not None for p in self.trained()):
            raise ValueError(
                f"the loss does not reach {silent[0] if silent else 'any parameter'!r}: Pyro's param store may hold "
                "another program's parameters of this name; call pyro.clear_param_store() or rename them"
            )

    def on_train_start(self) -> None:
        """Stay stopped where the loss broke before."""
        if self.not_finite is not None:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the options beside the weights, so that nothing else goes on from them, and where the loss broke."""
        checkpoint["training"], checkpoint["not_finite"] = asdict(self.training_options), self.not_finite

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over where the loss broke."""
        self.not_finite = checkpoint.get("not_finite")

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle over all steps."""
        options = self.training_options
        optimizer = torch.optim.AdamW(self.trained(), lr=options.learning_rate, weight_decay=options.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, max(steps, 2), pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    def trained(self) -> list[Tensor]:
        """Return every parameter that is trained, each once."""
        own = {id(p): p for p in self.parameters() if p.requires_grad}
        return list((own | {id(t): t for t in self.stored.named.values()}).values())

    def _seed(self, epoch: int) -> None:
        source = np.random.SeedSequence([self.training_options.seed, epoch, self.global_rank])
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))

    def _log_terms(self, split: str, loss: Tensor, batch: Batch) -> None:
        terms, horizon = self.elbo.terms, batch.future.shape[-1]
        values = {"loss": loss, "log_likelihood": terms.log_likelihood.mean() / horizon}
        values["kl"] = sum((units.kl.mean(0).sum() for units in terms.units.values()), start=loss.new_zeros(()))
        if terms.predictive is not None:
            values["predictive"] = terms.predictive.mean() / horizon
        if terms.common is not None:
            values["common"] = terms.common
        values |= terms.penalties
        named = {f"{split}_{name}": value for name, value in values.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch.future), sync_dist=True)

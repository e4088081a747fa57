"""The models of the accuracy benchmark by name: how each is built, and how all are trained alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from eve_pyro.bench.protocols import NAIVE, validation_crps
from eve_pyro.bench.rivals import DLinear, Ensemble, LowRankHead, MCDropout, Plain, QuantileHead, Through, no_units
from eve_pyro.builder import Built, build, twin_of
from eve_pyro.config import Config
from eve_pyro.data import Splits
from eve_pyro.infer.fit import fit
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.likelihoods import NormalReadout, StudentTReadout
from eve_pyro.protocols import Controller, Guide, Model

MEMBERS = 5
DROPOUT = 0.1


class Pair(NamedTuple):
    """A model, a guide and the loss that trains them."""

    model: Model
    guide: Guide
    elbo: LocalELBO


@dataclass(frozen=True)
class Trained:
    """A trained pair and what its training took: wall and CPU seconds, the epoch kept, its validation CRPS."""

    model: Model
    guide: Guide
    val_crps: float
    epoch: float
    seconds: float
    cpu_seconds: float

    @property
    def parameters(self) -> int:
        """How many numbers were trained, those of the guide included."""
        modules = [program for program in (self.model, self.guide) if isinstance(program, nn.Module)]
        return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def config_of(name: str, config: Config) -> Config:
    """Return what decides a model's row: a rival has no use for the guide, the objective and the control of units."""
    if name == "eve":
        return config
    config = twin_of(config)
    if name == "mc_dropout" and not config.model.dropout:
        return replace(config, model=replace(config.model, dropout=DROPOUT))
    return config


def build_pair(name: str, config: Config) -> Pair:
    """Build a model to be trained, its initial weights drawn from the training seed."""
    pair = build(config, twin=name != "eve")
    if name in ("eve", "twin", "ensemble"):
        return Pair(pair.model, pair.guide, pair.elbo)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed ^ 1)  # another stream than the encoder's
        return Pair(HEADS[name](pair, config), no_units, LocalELBO())


def train(name: str, config: Config, windows: Splits) -> Trained:
    """Train a model on ``windows`` and leave it with its best epoch's weights."""
    if name == "ensemble":
        return _train_ensemble(config, windows)
    return _train(build_pair(name, config), config, windows, config.control if name == "eve" else None)


def _train(pair: Pair, config: Config, windows: Splits, control: Controller | None) -> Trained:
    begin = time.process_time()
    done = fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=control)
    used = time.process_time() - begin
    val_crps = float(done.history["val_crps"].iloc[done.best_epoch])
    return Trained(pair.model, pair.guide, val_crps, done.best_epoch + 1, done.seconds, used)


def _train_ensemble(config: Config, windows: Splits) -> Trained:
    """Train five twins of seeds of their own; times are sums, ``epoch`` the members' mean."""
    first, members = MEMBERS * config.training.seed, []
    for seed in range(first, first + MEMBERS):
        own = replace(config, training=replace(config.training, seed=seed))
        members.append(_train(build_pair("twin", own), own, windows, None))
    model = Ensemble([(member.model, member.guide) for member in members])
    val_crps = validation_crps(model, no_units, windows.validation, config.training.validation_windows)
    epoch = sum(member.epoch for member in members) / MEMBERS
    seconds, used = (sum(getattr(member, name) for member in members) for name in ("seconds", "cpu_seconds"))
    return Trained(model, no_units, val_crps, epoch, seconds, used)


def _head(make: Callable[[int, Config], nn.Module]) -> Callable[[Built, Config], nn.Module]:
    """Return what puts another head on the encoder of the twin, which nothing but the seed tells from the twin's."""

    def rival(twin: Built, config: Config) -> nn.Module:
        encoder: Any = twin.model.encoder
        return Plain(encoder, twin.model.norm, make(encoder.out_features, config))

    return rival


HEADS: dict[str, Callable[[Built, Config], nn.Module]] = {
    "twin_global": _head(lambda size, config: NormalReadout(Through(size), config.data.horizon, "global")),
    "twin_t": _head(lambda size, config: StudentTReadout(Through(size), config.data.horizon)),
    "low_rank": _head(lambda size, config: LowRankHead(size, config.data.horizon, config.model.units)),
    "quantile": _head(lambda size, config: QuantileHead(size, config.data.horizon)),
    "mc_dropout": lambda twin, config: MCDropout((twin.model, twin.guide)),
    "dlinear": lambda twin, config: DLinear(config.data.context_length, config.data.horizon),
}
TRAINED = ("eve", "twin", "twin_global", "twin_t", "low_rank", "mc_dropout", "ensemble", "quantile", "dlinear")
MODELS = (*TRAINED, *NAIVE)

"""From a configuration to a model, a guide and their local ELBO."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from eve_pyro.config import Config, GuideOptions, ModelOptions, ObjectiveOptions
from eve_pyro.control.steering import Steering
from eve_pyro.guides import (
    AmortizedGuide,
    Autoregressive,
    Conjugate,
    ContextMeanField,
    Flow,
    FutureAware,
    LowRank,
    PointGuide,
)
from eve_pyro.infer.local_elbo import FORECASTING, LocalELBO
from eve_pyro.likelihoods import FactorReadout, NormalReadout, StudentTReadout
from eve_pyro.models import Forecaster, Stack, Trajectory
from eve_pyro.nets import InstanceNorm, LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import AR1Prior, ContextualPrior, LearnedPrior, StandardPrior, VolatilityPrior
from eve_pyro.protocols import Prior


@dataclass(frozen=True)
class Built:
    """A model, a guide for it, and the objective that trains them."""

    model: Forecaster
    guide: AmortizedGuide
    elbo: LocalELBO

    def weights(self) -> nn.ModuleDict:
        """Return model and guide as one module, the unit that is saved and loaded."""
        return nn.ModuleDict({"model": self.model, "guide": self.guide})


def build(config: Config, twin: bool = False) -> Built:
    """Build what ``config`` describes, its initial weights drawn from the training seed.

    With ``twin``, build the deterministic twin instead: the same network with every unit a point computed from the
    context alone (delta guide, beta 0), and under the factor readout without loadings.
    """
    if twin:
        config = twin_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = _model(config, loadings=not twin)
        guide = _guide(config.guide, model, config.model.hidden)
    objective, sampled = config.objective, config.guide.guide == "flow"
    elbo = LocalELBO(
        objective.objective, objective.alpha, objective.beta, objective.num_particles, sample_kl=sampled
    )  # fmt: skip
    return Built(model, guide, elbo)


def twin_of(config: Config) -> Config:
    """Return the configuration of the deterministic twin, which nothing steers: everything else stays the same."""
    return replace(
        config,
        guide=GuideOptions(guide="delta"),
        control=Steering(),
        objective=ObjectiveOptions(objective="elbo", alpha=1.0, beta=0.0, num_particles=1),
    )


def _why_not_held(config: Config) -> str | None:
    """Return what held locations or scales would learn from, and what ``config`` lacks for it; None if nothing."""
    model, objective, guide = config.model, config.objective, config.guide.guide
    if model.readout != "factor" or objective.objective not in FORECASTING or objective.alpha == 1:
        return (
            "the predictive or composite term alone, under the factor readout: name --objective composite, --alpha "
            "below 1 and --readout factor"
        )
    if guide == "delta" or (model.model == "stack" and model.depth > 1):
        return "marginals in closed form: name another guide than delta and a model of one layer"
    if model.volatility and (guide == "context" or model.prior not in ("standard", "ar1")):
        return (
            "marginals in closed form: beside a volatility unit name --prior standard or ar1 and another guide than "
            "context, or --no-volatility"
        )
    return None


def _model(config: Config, loadings: bool) -> Forecaster:
    options, data, horizon = config.model, config.data, config.data.horizon
    trajectory = options.model == "trajectory"
    if options.volatility and options.readout == "student_t":
        raise ValueError("readout 'student_t' has tails of its own, a volatility unit needs normals: --no-volatility")
    if options.prior.endswith("ar1") and data.path == 1 and not trajectory:
        raise ValueError(f"prior {options.prior!r} runs over a path: name --path 2 or more, or --model trajectory")
    encoder = LinearEncoder(
        data.context_length, options.hidden, options.features, options.dropout, options.encoder_layers
    )
    depth = options.depth if options.model == "stack" else 1
    names = [f"eve{level}" if depth > 1 else "eve" for level in range(1, depth + 1)]
    layers = [_layer(options, name, encoder.out_features, level > 0) for level, name in enumerate(names)]
    readout = _readout(config, layers[-1], encoder.out_features, loadings)
    norm, width = InstanceNorm(options.floor), encoder.out_features
    volatility = EveLayer(VolatilityPrior(width), 1, name="volatility") if options.volatility else None
    if trajectory and data.path > 1:
        raise ValueError(f"a trajectory's path runs along the horizon: --path must be 1, not {data.path}")
    if trajectory:
        return Trajectory(encoder, layers[0], readout, horizon, norm, options.patches, volatility)
    if options.model == "stack":
        return Stack(encoder, layers, readout, horizon, norm, data.path, volatility=volatility)
    return Forecaster(encoder, layers[0], readout, horizon, norm, data.path, volatility)


def _layer(options: ModelOptions, name: str, state_size: int, above: bool) -> EveLayer:
    """Return a layer; one ``above`` another has a contextual prior, through which it depends on the one below."""
    prior: Prior
    if above or options.prior.startswith("contextual"):
        prior = ContextualPrior(state_size, options.units, options.latent_dim)
    else:
        kind = LearnedPrior if options.prior == "learned" else StandardPrior
        prior = kind(options.units, options.latent_dim)
    if options.prior.endswith("ar1"):
        prior = AR1Prior(prior, options.units, options.phi, options.learn_phi)
    return EveLayer(prior, options.units, options.latent_dim, options.pooling, name)


def _readout(config: Config, layer: EveLayer, state_size: int, loadings: bool) -> nn.Module:
    options, objective, horizon = config.model, config.objective, config.data.horizon
    if objective.held and (reason := _why_not_held(config)):
        raise ValueError(f"held {objective.held} learn from {reason}, or no --held")
    if options.readout == "factor":
        return FactorReadout(layer, state_size, horizon, loadings, objective.held)
    decoder = MLPDecoder(options.units, options.hidden)
    head = StudentTReadout if options.readout == "student_t" else NormalReadout
    return head(decoder, horizon, options.head_scale, options.patches if options.model == "trajectory" else 1)


def _guide(options: GuideOptions, model: Forecaster, hidden: int) -> AmortizedGuide:
    if options.guide == "context":
        return ContextMeanField(model, options.guide_scale)
    if options.guide == "delta":
        return PointGuide(model)
    if options.guide == "low_rank":
        return LowRank(model, options.rank, hidden)
    kinds: dict[str, Callable[[Forecaster, int], AmortizedGuide]] = {
        "future_aware": FutureAware,
        "autoregressive": Autoregressive,
        "flow": Flow,
        "conjugate": Conjugate,
    }
    return kinds[options.guide](model, hidden)

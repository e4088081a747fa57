"""From a configuration to a model, a guide and their local ELBO."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from eve_pyro.config import Config, GuideOptions, ModelOptions, ObjectiveOptions
from eve_pyro.control.steering import Steering
from eve_pyro.guides import AmortizedGuide, ContextMeanField, FutureAware, PointGuide
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.likelihoods import FactorReadout, NormalReadout, StudentTReadout
from eve_pyro.models import Forecaster
from eve_pyro.nets import InstanceNorm, LinearEncoder, MLPDecoder
from eve_pyro.neuron import EveLayer
from eve_pyro.priors import ContextualPrior, LearnedPrior, StandardPrior


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
        guide = _guide(config.guide, model)
    objective = config.objective
    return Built(model, guide, LocalELBO(objective.objective, objective.alpha, objective.beta, objective.num_particles))


def twin_of(config: Config) -> Config:
    """Return the configuration of the deterministic twin, which nothing steers: everything else stays the same."""
    return replace(
        config,
        guide=GuideOptions(guide="delta"),
        control=Steering(),
        objective=ObjectiveOptions(objective="elbo", alpha=1.0, beta=0.0, num_particles=1),
    )


def _model(config: Config, loadings: bool) -> Forecaster:
    options, horizon = config.model, config.data.horizon
    encoder = LinearEncoder(config.data.context_length, options.hidden, options.features, options.dropout)
    prior = _prior(options, encoder.out_features)
    layer = EveLayer(prior, options.units, options.latent_dim, options.pooling)
    readout = _readout(options, layer, encoder.out_features, horizon, loadings)
    return Forecaster(encoder, layer, readout, horizon, InstanceNorm(options.floor))


def _prior(options: ModelOptions, state_size: int) -> StandardPrior | LearnedPrior | ContextualPrior:
    if options.prior == "contextual":
        return ContextualPrior(state_size, options.units, options.latent_dim)
    kind = LearnedPrior if options.prior == "learned" else StandardPrior
    return kind(options.units, options.latent_dim)


def _readout(options: ModelOptions, layer: EveLayer, state_size: int, horizon: int, loadings: bool) -> nn.Module:
    if options.readout == "factor":
        return FactorReadout(layer, state_size, horizon, loadings)
    decoder = MLPDecoder(options.units, options.hidden)
    head = StudentTReadout if options.readout == "student_t" else NormalReadout
    return head(decoder, horizon, options.head_scale)


def _guide(options: GuideOptions, model: Forecaster) -> AmortizedGuide:
    if options.guide == "context":
        return ContextMeanField(model, options.guide_scale)
    return PointGuide(model) if options.guide == "delta" else FutureAware(model)

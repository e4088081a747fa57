"""Regression and classification of tables with the same neuron."""

from eve_pyro.models.forecaster import Encoder, Forecaster
from eve_pyro.nets import NoNorm
from eve_pyro.neuron import EveLayer
from eve_pyro.protocols import Readout


class Regression(Forecaster):
    """Rows of a table: features as ``context`` (B, 1, d), standardised targets or class numbers as ``future`` (B, q).

    With a ``CategoricalReadout`` it classifies; with any other readout it predicts the q targets jointly.
    """

    def __init__(self, encoder: Encoder, layer: EveLayer, readout: Readout, num_targets: int) -> None:
        super().__init__(encoder, layer, readout, num_targets, NoNorm())
        self.surprise_size = getattr(readout, "num_classes", num_targets)

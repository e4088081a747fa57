"""Simulation-based calibration: where the truth ranks among a guide's draws, when the model itself made the data."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from eve_pyro.diagnostics.draws import densities, posterior_draws
from eve_pyro.infer.batches import batches_of
from eve_pyro.infer.predictive import observation
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import OBSERVED, Guide, Model, Rows

LEVEL = 0.05  # of all tests together
Quantities = dict[tuple[str, str, int, int], Tensor]  # (quantity, site, unit, latent) -> (S, B); -1 for all


class Calibration(NamedTuple):
    """``table``: one row a test quantity; ``counts``: its rank histogram, a column a bin, rows alike. See ``sbc``."""

    table: pd.DataFrame
    counts: pd.DataFrame

    @property
    def p_value(self) -> float:
        """The smallest of the corrected p-values: of all quantities together."""
        return float(self.table["p_holm"].min())

    @property
    def passed(self) -> bool:
        """Whether no quantity's ranks are off at 5 %, all quantities together."""
        return self.p_value >= LEVEL


def sbc(
    model: Model,
    guide: Guide,
    windows: Rows,
    num_draws: int = 99,
    repeats: int = 1,
    num_bins: int = 10,
    num_projections: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Simulate z ~ p(z | x) and y ~ p(y | z, x), and rank z among draws of q(z | x, y) (Talts et al. 2018).

    Only the contexts x of ``windows`` are used, each ``repeats`` times. If q is the posterior, the rank of any test
    quantity f(z, y) is uniform. The quantities are ``latent``, every latent of every unit; ``projection``, the sum over
    all latents of a site, followed by ``num_projections`` - 1 sums with random normal weights; and ``log_likelihood``,
    log p(y | z), a quantity that depends on the data (Modrak et al. 2023). Ties get random ranks.

    ``table`` has ``quantity, site, unit, latent`` (the position within the unit's flattened event; for projections
    ``unit`` is -1 and ``latent`` counts them; -1 for what has none); ``mean`` of the ranks scaled to (0, 1), 0.5 if
    unbiased, below where q lies too high; ``spread``, their deviation over a uniform's, above 1 where q is too narrow
    and below where it is too wide; ``p_value`` of a chi-square test over ``num_bins`` bins, and ``p_holm``, corrected
    for all rows (Holm 1979). ``counts`` has the histograms.

    What it sees: locations and scales that are off, by unit; correlation left out, in projections, the log likelihood
    and, where margins pay for it, by unit; a guide that ignores the data (its latents' ranks are uniform) in the log
    likelihood. What it does not: errors that are right on average over the prior, such as a location that is off one
    way here and the other way there by little. And the simulated futures take the real ones' place: a guide that
    trained on real futures alone may be off on those that its model makes up, and fine on real ones, which is then a
    finding about the model as much as about the guide. A guide that reads no future, whose forecasts do not come from
    the prior, is no posterior of this model, and shows.

    Raises ValueError for fewer than 5 simulations a bin or 1 draw, and for guides that do not sample the model's sites.
    """
    count = len(windows) * repeats
    if num_bins < 2 or count < 5 * num_bins:
        raise ValueError(
            f"{count} simulations are too few for {num_bins} bins: a histogram needs 2 bins or more and 5 simulations "
            "in each; take more windows or repeats"
        )
    if num_draws < 1:
        raise ValueError(f"a rank needs at least 1 draw, not {num_draws}")
    weights: dict[str, Tensor] = {}
    ranks: list[dict[Any, np.ndarray]] = []
    with evaluating(model, guide, seed):
        for _ in range(repeats):
            for context, future in batches_of(windows, batch_size, device_of(model), progress, "simulating"):
                truth, draws = _simulated(model, guide, context, future.dtype, num_draws)
                for site, z in truth[0].items():
                    if site not in weights:
                        weights[site] = _directions(num_projections, z.shape[2:].numel(), seed).to(z)
                both = [_quantities(*each, weights) for each in (truth, draws)]
                ranks.append({key: _ranks(both[0][key][0], both[1][key]) for key in both[0]})
    keys = list(ranks[0])
    scaled = np.stack([np.concatenate([part[key] for part in ranks]) for key in keys])  # (quantities, simulations)
    return _tested(keys, scaled, num_bins)


def _simulated(
    model: Model, guide: Guide, context: Tensor, dtype: torch.dtype, num_draws: int
) -> tuple[tuple[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], Tensor]]:
    """Return latents (S, B, N, *event) and log likelihood (S, B) of the truth (S = 1) and of the guide's draws."""
    source = poutine.trace(model).get_trace(context)
    observation(source)
    site: Any = source.nodes[OBSERVED]
    future = site["value"].squeeze(-2).to(dtype)  # (B, 1, H) -> (B, H)
    source.remove_node(OBSERVED)
    truth = densities(model, source, context, future, 1)
    draws = posterior_draws(model, guide, context, future, num_draws)
    return (truth.latents, truth.log_likelihood), (draws.latents, draws.log_likelihood)


def _directions(count: int, size: int, seed: int) -> Tensor:
    """Return all ones, then random directions, (count, size)."""
    weights = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    weights[:1] = 1
    return weights


def _quantities(latents: dict[str, Tensor], log_likelihood: Tensor, weights: dict[str, Tensor]) -> Quantities:
    """Return every test quantity, (S, B)."""
    found: Quantities = {}
    for site, z in latents.items():
        units = z.reshape(*z.shape[:3], -1)  # (S, B, N, E)
        for unit in range(units.shape[2]):
            found |= {("latent", site, unit, i): units[:, :, unit, i] for i in range(units.shape[3])}
        projected = units.flatten(2) @ weights[site].mT
        found |= {("projection", site, -1, i): projected[..., i] for i in range(len(weights[site]))}
    return found | {("log_likelihood", "", -1, -1): log_likelihood}


def _ranks(truth: Tensor, draws: Tensor) -> np.ndarray:
    """Return the ranks of ``truth`` (B,) among ``draws`` (S, B), scaled to (0, 1): a random place within its rank."""
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    place = torch.rand(truth.shape, dtype=torch.float64, device=truth.device)
    scaled: np.ndarray = ((below + place * (ties + 1)) / (len(draws) + 1)).cpu().numpy()
    return scaled


def _tested(keys: list[tuple[str, str, int, int]], ranks: np.ndarray, num_bins: int) -> Calibration:
    from scipy.stats import chisquare  # adds filters to everybody's warnings: not on import

    edges = np.linspace(0, 1, num_bins + 1)
    counts = np.stack([np.histogram(row, edges)[0] for row in ranks])
    table = pd.DataFrame(keys, columns=["quantity", "site", "unit", "latent"]).assign(
        mean=ranks.mean(1), spread=ranks.std(1) * 12**0.5, p_value=chisquare(counts, axis=1).pvalue
    )
    table["p_holm"] = _holm(table["p_value"].to_numpy())
    names = [f"{low:g} to {high:g}" for low, high in zip(edges[:-1].round(3), edges[1:].round(3), strict=True)]
    return Calibration(table, pd.DataFrame(counts, columns=names))


def _holm(p_values: np.ndarray) -> np.ndarray:
    """Return the p-values corrected for their number, which keeps the chance of any false alarm (Holm 1979)."""
    order, count = p_values.argsort(), len(p_values)
    corrected = np.empty(count)
    corrected[order] = np.maximum.accumulate(p_values[order] * (count - np.arange(count))).clip(max=1)
    return corrected

"""Every unit's figures over a set of windows, as a table."""

from typing import Any

import pandas as pd
import torch

from eve_pyro.infer.batches import batches_of, check_futures
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.infer.programs import device_of, evaluating
from eve_pyro.protocols import Rows


def unit_table(
    model: Any, guide: Any, windows: Rows, elbo: LocalELBO | None = None, batch_size: int = 512, seed: int = 0
) -> pd.DataFrame:
    """Return one row a unit: ``site, unit, kl`` (nats a window), ``energy`` and ``scale``, averaged over ``windows``.

    See ``UnitTerms`` for what they measure. ``sampled`` says that a KL has no closed form and comes from draws.

    Raises ValueError for no windows, for windows whose future is yet to come, and for a model without units.
    """
    check_futures(windows)
    elbo = elbo or LocalELBO(sample_kl=True)
    totals: dict[str, torch.Tensor] = {}
    with evaluating(model, guide, seed):
        for context, future in batches_of(windows, batch_size, device_of(model)):
            elbo.loss(model, guide, context, future)
            for site, units in elbo.terms.units.items():
                figures = torch.stack([units.kl.mean(0), units.energy, units.scale]).double().cpu()
                totals[site] = totals.get(site, 0.0) + figures * (len(future) / len(windows))
    if not totals:
        raise ValueError("the model has no latent site: there are no units to tell of")
    parts = [
        pd.DataFrame(figures.T.numpy(), columns=["kl", "energy", "scale"]).assign(
            site=site, unit=range(figures.shape[1]), sampled=site in elbo.terms.sampled_sites
        )
        for site, figures in totals.items()
    ]
    return pd.concat(parts, ignore_index=True)[["site", "unit", "kl", "energy", "scale", "sampled"]]

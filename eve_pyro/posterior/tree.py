"""From a trained pair to a DataTree."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eve_pyro.infer.local_elbo import Beta
from eve_pyro.posterior.filling import fill
from eve_pyro.posterior.layout import plan
from eve_pyro.posterior.request import WORKSPACE, Request
from eve_pyro.posterior.sampling import GROUPS, Pair
from eve_pyro.posterior.storage import check_target, in_memory, on_disk
from eve_pyro.protocols import Guide, Model, Rows

if TYPE_CHECKING:
    from xarray import DataTree


def to_datatree(
    model: Model,
    guide: Guide,
    windows: Rows,
    *,
    restarts: Sequence[tuple[Model, Guide]] = (),
    groups: Collection[str] = GROUPS,
    units: Sequence[str | int] | None = None,
    sites: Sequence[str] | None = None,
    num_draws: int = 100,
    batch_size: int = 256,
    beta: Beta | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    memory: int = 2 * 2**30,
    progress: bool = False,
) -> "DataTree":
    """Return draws of a trained pair, and what follows from them, as ArviZ takes them: a labelled ``xarray.DataTree``.

    Choose the windows before (``windows.every``, ``windows.select``). ``restarts`` are pairs trained from other seeds:
    each is a chain, after the first. ``sites`` and ``units`` (names, or numbers where there is one site) choose what is
    kept of the latents; log densities are always of all units. The groups:

    - ``posterior``: z ~ q(z | context, future), and ``posterior_predictive``: y given these draws;
    - ``log_likelihood``: log p(y | z) of whole windows, in nats, (chain, draw, window): the steps of a window share its
      units, so that a window is what can be left out. Its units go with it: where they know much of it, ``loo`` warns
      by large Pareto k, and ``evaluate`` scores what can be foretold;
    - ``sample_stats``: ``log_weight`` = log p(y | z) + log p(z) - log q(z), p the model, (chain, draw, window): PSIS in
      ArviZ takes its negative; ``kl`` (chain, window, unit) in nats and ``energy`` (chain, unit) as in ``UnitTerms``,
      averaged over the draws; ``beta`` (unit), if given. A point posterior has no ``log_weight``;
    - ``prior``: z from the model given the context, and ``prior_predictive``: y given these draws;
    - ``predictions``: the forecast, joint paths of y that know the context alone, see ``infer.predictive.predict``;
    - ``observed_data``: y, and ``constant_data``: ``context``, and each window's ``mean`` and ``deviation``. All y are
      in the scale of the training rows; ``mean + deviation * y`` is in the units of the data.

    Latents are variables named as their sites, "/" turned into ".", with axes chain, draw, window, unit, and, where
    longer than 1, step (of the path) and latent; y has chain, draw, window, horizon. Of several sites each has axes of
    its own: ``<layer>_unit``, ``<layer>_step``, and likewise ``<layer>_kl``. But where only one of them has several
    units, its axes keep their plain names: beside a volatility unit ``eve.z`` has ``unit``, and ``volatility.z``
    ``volatility_unit``. A site without a units plate is one unit.
    Windows are numbered as in ``windows`` and carry ``series`` and ``origin``, the last timestamp seen; the horizon is
    1 to H, the past 1 - L to 0, and unit i of site "eve.z" is "eve[i]". Draws and data are float32, densities and KLs
    float64.

    With ``out``, a name in .nc (NetCDF, by h5netcdf) or .zarr, everything is written there batch by batch, and the tree
    reads from the file when asked; it gets that name once it is whole. ``batch_size`` windows and all draws are drawn
    at once, or as many as allocate no more than 1 GiB and half of ``memory`` (bytes); another batching draws other
    numbers. Modules are drawn from in eval mode; their modes and the random state stay as they were.

    Raises ValueError for unknown groups, sites and units, for no window, no draw, or windows without the future that a
    group needs; for a tree of more than ``memory`` bytes without an ``out``, before it is drawn; for an ``out`` that
    exists; for restarts of another shape; for sites outside the windows plate; for a guide that misses a site; and with
    ``sample_stats`` for pairs that ``LocalELBO`` would refuse.
    """
    target = None if out is None else check_target(out)
    pairs = _pairs(model, guide, restarts)
    workspace = min(WORKSPACE, memory // 2)
    request = Request(pairs, windows, groups, sites, units, num_draws, batch_size, beta, seed, workspace)
    layout = plan(request)
    size = f"{layout.bytes / 2**30:.3g} GiB"
    if target is None and layout.bytes > memory:
        raise ValueError(
            f"the tree takes {size}, more than the {memory / 2**30:.3g} GiB of memory: ask for fewer draws, windows, "
            "units, sites or groups, or write it to a file with out='draws.nc'"
        )
    if progress:
        print(f"{size} of draws, to {target or 'memory'}")

    filled = partial(fill, request, layout, progress=progress)
    return in_memory(layout, seed, filled) if target is None else on_disk(layout, seed, filled, target)


def datatree_size(
    model: Model,
    guide: Guide,
    windows: Rows,
    *,
    restarts: Sequence[tuple[Model, Guide]] = (),
    groups: Collection[str] = GROUPS,
    units: Sequence[str | int] | None = None,
    sites: Sequence[str] | None = None,
    num_draws: int = 100,
) -> int:
    """Return how many bytes the arrays of ``to_datatree`` would take. Raises ValueError as that does."""
    request = Request(_pairs(model, guide, restarts), windows, groups, sites, units, num_draws)
    return plan(request).bytes


def _pairs(model: Model, guide: Guide, restarts: Sequence[tuple[Model, Guide]]) -> list[Pair]:
    return [Pair(model, guide), *(Pair(*pair) for pair in restarts)]

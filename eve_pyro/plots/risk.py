"""Whether a forecaster knows when it will be wrong."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from eve_pyro.diagnostics.risk import RiskCoverage
from eve_pyro.plots.style import CYCLE, grid

FEWEST = 0.05


def risk_curves(curves: Mapping[str, RiskCoverage], error: str = "CRPS (scaled data)") -> Figure:
    """Draw the mean error of the windows that are kept, the surest first, as more and more of them are.

    A line that rises says that the signal foretells errors; a level one, at the dotted mean of all windows, that it
    does not. The legend has the ``gain`` of each: the share of the way from chance to the order by the errors
    themselves. Shares below 5 % of the windows, means of a few, are left out.
    """
    figure, (ax,) = grid(1, 1, height=2.9)
    for (name, curve), colour in zip(curves.items(), CYCLE, strict=False):
        ax.axhline(curve.random, color=colour, lw=0.8, ls=":")
        kept, label = curve.coverage >= FEWEST, f"{name}: gain {100 * curve.gain:+.0f} %"
        ax.plot(curve.coverage[kept], curve.risk[kept], color=colour, lw=1.4, label=label)
    ax.set(xlabel="share of windows kept, the surest first", ylabel=f"mean {error}", xlim=(0, 1))
    ax.legend(frameon=False, fontsize=9)
    return figure

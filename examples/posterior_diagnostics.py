# %% [markdown]
# # Posterior diagnostics
#
# A guide answers, for every window, what its units were about. Is the answer the posterior? Do the forecasts mean what
# they say? What is a unit worth? And does a window's own uncertainty foretell its error? This notebook takes trained
# pairs of a model and a guide, asks these questions one by one, and says how to read each answer.

# %%
import copy
import os

import arviz_plots
import arviz_stats
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import eve_pyro as ep
from eve_pyro import plots
from eve_pyro.diagnostics.interventions import COSTS, as_group
from eve_pyro.diagnostics.risk import disagreement
from eve_pyro.guides import Conjugate

# %matplotlib inline
smoke_test = "CI" in os.environ  # fewer windows, epochs and draws, where this runs as a test

# %% [markdown]
# ## The pairs
#
# Two guides for the default model without its volatility unit, whose exact posterior is known: `mean field` learns
# independent normals from context and future, `exact`, the default, computes the posterior. Two recipes in which
# everything that a forecast knows passes through the units: `conditional`, and the paper's neuron, whose posterior sees
# the context alone, once unsteered and once with its units held in an energy band.

# %%
CONTEXT, HORIZON, UNITS = 56, 14, 64
windows = ep.make_windows(ep.seattle_weather(), CONTEXT, HORIZON)
if smoke_test:
    windows = ep.Splits(*(part.every(8) for part in windows))
common = {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS, "hidden": 64, "features": 128}
common |= {"learning_rate": 3e-3, "monitor": "loss", "progress": False, "target": 0.1}
common |= {"epochs": 1, "batch_size": 64, "warmup": 2} if smoke_test else {"epochs": 8, "batch_size": 128, "warmup": 20}

MEAN_FIELD = {"guide": "future_aware", "volatility": False}


def train(recipe, twin=False, **options):
    config = ep.load_recipe(recipe, common | options)
    pair = ep.build(config, twin)
    control = None if twin else config.control
    ep.fit(pair.model, pair.guide, windows, pair.elbo, config.training, control=control)
    return pair.model, pair.guide


pairs = {
    "mean field": train("factor", **MEAN_FIELD),
    "exact": train("factor", volatility=False),
    "conditional": train("conditional"),
    "paper": train("paper", regime="off"),
    "paper, steered": train("paper", regime="homeostasis", ramp=common["warmup"]),
}
model, guide = pairs["mean field"]

# %% [markdown]
# ## Draws as a tree
#
# `to_datatree` draws from posterior, prior and forecast, and labels every axis. Choose the windows first. Below, the
# tree of the four units that pay most.

# %%
few = windows.test.at_most(8 if smoke_test else 60)
units = ep.unit_table(model, guide, windows.test)
busy = [f"eve[{unit}]" for unit in units.nlargest(4, "kl")["unit"]]
tree = ep.to_datatree(model, guide, few, num_draws=200)
tree.sel(unit=busy)

# %% [markdown]
# ArviZ takes it as it is. What these units say of one window, and of three:

# %%
arviz_stats.summary(tree.sel(window=[0], unit=busy), kind="stats")

# %%
forest = arviz_plots.plot_forest(tree.sel(window=[0, 1, 2], unit=busy), backend="matplotlib")

# %% [markdown]
# ## Prior and posterior
#
# A unit's row is its posterior over its prior, averaged over windows; the orange marks say how far its mean goes from
# window to window. A unit that sleeps has its prior's interval and no reach.

# %%
plots.unit_forest(tree, most=12)

# %% [markdown]
# Taken together, the posteriors of a model that fits its data mix to the prior, of mean 0 and deviation 1.

# %%
together = tree["posterior/eve.z"].sel(unit=busy).stack(all=("chain", "draw", "window"))
print(pd.DataFrame({"mean": together.mean("all"), "deviation": together.std("all")}, index=busy).round(2))
plots.prior_posterior(tree, busy)

# %% [markdown]
# ## Is it the posterior? Importance weights
#
# Weigh draws z of the guide by p(y | z) p(z) / q(z). Were q the posterior, all weights of a window would be alike.
#
# - `khat`, the shape of the weights' tail: below 0.5 averages converge, to 0.7 they are usable, above they are not. The
#   exact posterior's weights are constant: -inf. Weights see a posterior that is too narrow, hardly one too wide;
# - `ess`, how many of 1,000 draws are left after weighing, sees both;
# - `gap`, the bound less the ELBO, is what KL(q || posterior) must at least be, in nats a window.

# %%
trust = {name: ep.importance_table(*pairs[name], few) for name in ("mean field", "exact", "conditional")}
print(pd.DataFrame({name: found[["khat", "ess", "gap"]].median() for name, found in trust.items()}).T.round(3))
plots.khat_chart(trust["mean field"])

# %% [markdown]
# ## Which pair has the better model?
#
# `compare_guides` estimates each pair's log density of left-out windows, by importance (`evidence`) and by PSIS-LOO.
# Where the two differ by more than their Monte-Carlo error `mc_se`, believe the one whose k-hats are good.

# %%
comparison = ep.compare_guides({name: pairs[name] for name in trust}, few)
comparison.table[["estimator", "pair", "elpd", "elpd_diff", "dse", "mc_se", "khat_max", "khat_bad"]].round(2)

# %% [markdown]
# ## Simulation-based calibration
#
# Let the model make up units and a future, have the guide infer the units, and rank the truth among its draws: for the
# posterior every rank is as likely as any other. A hump says too wide, a smile too narrow, a slope off to one side. The
# table has the quantity that is worst: its mean rank (0.5 if unbiased) and spread (1 if as wide as it should be). The
# p-value is corrected for the number of quantities: one exact posterior in twenty fails at 5 %.

# %%
ranks = {name: ep.sbc(*pairs[name], windows.test.every(1 if smoke_test else 2)) for name in trust}
rows = []
for name, found in ranks.items():
    worst = found.table.loc[found.table["p_value"].idxmin(), ["quantity", "mean", "spread"]]
    rows.append({"pair": name, "p, corrected": found.p_value, "passed": found.passed} | dict(worst))
pd.DataFrame(rows).round(3)

# %%
plots.rank_histograms(ranks["mean field"])

# %% [markdown]
# ## The amortization gap
#
# What does one network for all windows cost, against a normal for each window, refined by itself? And what is left, to
# the bound, is the price of independence, which no mean field can avoid.

# %%
refined = ep.amortization_gap(model, guide, few, steps=20 if smoke_test else 200).windows
independence = (refined["bound"] - refined["refined"]).mean()
print(f"the network's share {refined['gap'].mean():.3f}, that of independence {independence:.3f} nats a window")

# %% [markdown]
# ## Do forecasts mean what they say?
#
# Coverage by level and by step, beside the deterministic twin, and where the truth falls in its forecast (PIT): flat if
# calibrated. This judges marginals. No guide shows here that forecasts do not draw from.

# %%
twins = [train("factor", twin=True, seed=seed, **MEAN_FIELD) for seed in range(5)]
plots.coverage_curves(ep.calibration_table(model, guide, windows.test), ep.calibration_table(*twins[0], windows.test))

# %%
plots.pit_histogram(ep.pit_values(model, guide, windows.test), ep.pit_values(*twins[0], windows.test))

# %% [markdown]
# ## Do restarts agree?
#
# Three seeds as three chains: r-hat over chains, which is near 1 where they cannot be told apart. But **units have no
# names**. What one seed keeps in unit 3 another keeps in unit 40, or in -z of it. This is label switching, and r-hat of
# units as they are numbered says nothing.

# %%
restarts = {"0": pairs["mean field"]} | {str(seed): train("factor", seed=seed, **MEAN_FIELD) for seed in (1, 2)}
chains = ep.to_datatree(model, guide, few, restarts=[restarts["1"], restarts["2"]], groups=["posterior"])
numbered = arviz_stats.rhat(chains)["eve.z"]

# %% [markdown]
# `restart_agreement` matches units by what they infer, sign included. `correlation` is that of the posterior means of
# matched units, `r_hat` the median and `r_hat_max` the largest over windows; in the last column the units as numbered.

# %%
agreement = ep.restart_agreement(restarts, few)
numbers = [int(name[4:-1]) for name in busy]
matched = agreement.units.set_index("unit").loc[numbers, ["correlation", "r_hat", "r_hat_max"]]
matched["r_hat_max, as numbered"] = numbered.sel(unit=busy).max("window")
matched.round(2)

# %% [markdown]
# What is left need not be disagreement: under a linear readout units may also rotate among one another, which no
# matching undoes. So look at what needs no labels: the forecast's mean, and what a draw explains of the future.

# %%
agreement.label_free.round(3)

# %% [markdown]
# ## Kill the ten units with most KL
#
# Is KL what units are worth? Silence the ten that pay most (z at its prior mean), and, for comparison, ten at random,
# again and again. What forecasts lose: CRPS for single days, energy score for paths, and the joint log score. The last
# column is the share of random draws that cost less.

# %%
DRAWS, some = (3 if smoke_test else 20), windows.test.every(8 if smoke_test else 3)
rng = np.random.default_rng(0)
random = {f"random {draw}": {"eve.z": rng.choice(UNITS, 10, replace=False).tolist()} for draw in range(DRAWS)}
costs = {}
for name, pair in pairs.items():
    most = as_group(ep.unit_table(*pair, windows.test).nlargest(10, "kl"))
    costs[name] = ep.knock_out_groups(*pair, some, {"most KL": most} | random).set_index("group")[COSTS]
rows = {
    (name, cost): {
        "most KL": table[cost]["most KL"],
        "random, mean": table[cost][1:].mean(),
        "random, largest": table[cost][1:].max(),
        "below it": (table[cost][1:] < table[cost]["most KL"]).mean(),
    }
    for name, table in costs.items()
    for cost in COSTS
}
killed = pd.DataFrame(rows).T
killed.round(4)


# %%
def cost_chart(costs):
    figure = Figure(figsize=(9.5, 2.6), layout="constrained", dpi=150)
    for ax, cost in zip(figure.subplots(1, 3, sharey=True), COSTS, strict=True):
        for place, table in enumerate(costs.values()):
            ax.plot(table[cost][1:], [place] * DRAWS, "o", color=plots.GREY, alpha=0.5, mew=0)
            ax.plot(table[cost]["most KL"], place, "D", color=plots.ORANGE)
        ax.axvline(0, color=plots.INK, lw=0.6)
        ax.set(xlabel=cost.replace("_", " "), yticks=range(len(costs)), yticklabels=costs)
        ax.locator_params(axis="x", nbins=4)
    figure.suptitle("orange: the ten with most KL; grey: ten at random", fontsize=9)
    return figure


cost_chart(costs)

# %% [markdown]
# Under the factor readout single days are normals whatever the units do. So why does silence cost any CRPS? Because a
# silenced unit is *known* to be 0, which narrows the band around it. Prune the same ten instead, their loadings set to
# zero, and the readout gives their share of the variance to the noise: the marginals stay, the dependence is gone.

# %%
ten = as_group(units.nlargest(10, "kl"))["eve.z"]
pruned = copy.deepcopy(model)
with torch.no_grad():
    pruned.readout.loadings[:, ten] = 0
before, after = (ep.evaluate(each, Conjugate(each), some) for each in (model, pruned))
pruning = {cost: after[cost.removesuffix("_cost")] - before[cost.removesuffix("_cost")] for cost in COSTS}
assert abs(pruning["crps_cost"]) < 1e-5
print({cost: round(value, 4) + 0.0 for cost, value in pruning.items()})

# %% [markdown]
# When is KL no guide to worth? KL = (scale^2 - 1 - log scale^2 + energy) / 2, and of these only the energy is about a
# window, where the scale is one for all of them, as in the paper's guide. Unsteered, its units pay to be narrow.

# %%
told = {name: ep.unit_table(*pair, windows.test)[["kl", "energy"]].mean() for name, pair in pairs.items()}
told = pd.DataFrame(told).T
told.assign(share=0.5 * told["energy"] / told["kl"]).round(3)

# %% [markdown]
# One unit at a time, and whether costs go with KL and energy (Spearman):

# %%
alone = {name: ep.knock_out(*pairs[name], windows.test.every(14), num_draws=20) for name in ("mean field", "paper")}
print(pd.concat({name: ep.rank_agreement(table).round(2) for name, table in alone.items()}))
plots.intervention_bars(alone["mean field"])

# %% [markdown]
# ## Does a window's uncertainty foretell its error?
#
# Sort the test windows by a signal and keep the surest: their mean CRPS should be low. `gain` is the share of the way
# from chance (0) to sorting by the error itself (1), measured by the area under the risk-coverage curve. Rivals: the
# twin's scale, and the disagreement of five twins. Energy is of the posterior once the future is known: a measure of
# surprise, no forecast. Wind errs more than temperature, and any signal knows a series; so look within each.

# %%
signals, error = ep.window_signals(model, guide, windows.test), "crps"
known = {"EVE scale": signals["scale"], "twin scale": ep.window_signals(*twins[0], windows.test)["scale"]}
known |= {"five twins": disagreement(twins, windows.test).numpy(), "energy, after": signals["energy_after"]}
gains = {"all": ep.risk_table(known, signals[error]).set_index("signal")["gain"]}
for number, name in enumerate(windows.test.panel.names):
    own = (windows.test.series == number).numpy()
    inside = {signal: np.asarray(values)[own] for signal, values in known.items()}
    gains[name] = ep.risk_table(inside, signals[error][own]).set_index("signal")["gain"]
gains = pd.DataFrame(gains)
gains.round(2)

# %%
plots.risk_curves({name: ep.risk_coverage(signals[error], values) for name, values in known.items()})

# %% [markdown]
# The paper's guide has its KL when it forecasts. Does that foretell anything?

# %%
paper = ep.window_signals(*pairs["paper"], windows.test)
print(ep.risk_table({"scale": paper["scale"], "KL": paper["kl_before"]}, paper[error]).round(3).to_string(index=False))

# %% [markdown]
# ## What came of it

# %%
gap, good = trust["mean field"]["gap"].mean(), (trust["mean field"]["khat"] < 0.7).mean()
print(f"The mean field is at least {gap:.2f} nats a window from the posterior; in {good:.0%} its weights are usable.")
for name, table in costs.items():
    cost, crps = table["crps_cost"], ep.evaluate(*pairs[name], some, num_draws=50)["crps"]
    share = (cost[1:] < cost["most KL"]).mean()
    print(f"{name}: the ten with most KL cost {cost['most KL'] / crps:+.1%} CRPS, ten at random", end=" ")
    print(f"{cost[1:].mean() / crps:+.1%}; dearer than {share:.0%} of the random draws.")
joint = HORIZON * pruning["joint_log_score_cost"]
print(f"Pruned, the mean field's ten cost no CRPS and {joint:.1f} nats a window of joint density.")
between = agreement.label_free.set_index("quantity")["between"]
print(
    f"Restarts forecast {between['forecast_mean']:.3f} apart and differ by {between['log_evidence']:.2f} nats a window."
)
inside = gains.drop(columns="all").mean(axis=1)
print(f"Within a series EVE's scale goes {inside['EVE scale']:.0%} of the way to knowing its errors;", end=" ")
print(f"the twin's {inside['twin scale']:.0%}, the disagreement of five twins {inside['five twins']:.0%}.")
if not smoke_test:
    for name in ("mean field", "exact", "conditional", "paper, steered"):  # and not in "paper"
        assert costs[name]["crps_cost"][1:].mean() < costs[name]["crps_cost"]["most KL"]
    assert inside["five twins"] < inside["EVE scale"]

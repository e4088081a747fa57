# %% [markdown]
# # Living neurons
#
# A neuron that is a distribution can die in ways that a number cannot: its posterior may sink into its prior, so that
# it says nothing of any window. This notebook measures who lives, holds every unit in a band while it trains, kills
# 30 % of them in mid-training and watches who comes back, and asks what all that costs.

# %%
import os

import pandas as pd
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

import eve_pyro as ep
from eve_pyro import plots
from eve_pyro.bench.compare import summarise
from eve_pyro.diagnostics.census import final_census

# %matplotlib inline
smoke_test = "CI" in os.environ  # fewer windows, epochs and seeds, where this runs as a test

# %% [markdown]
# ## Energy, band, state
#
# A unit's **energy** is the squared shift of its posterior's mean from its prior's, in prior deviations, averaged over
# windows. A **band**, 0.8 to 1.6 times a target, says where it should be. The **census** gives each unit a state:
#
# | state | |
# |---|---|
# | `living` | inside the band, and none of the below |
# | `too_low`, `too_high` | outside the band |
# | `dead` | neither energy nor KL |
# | `saturated` | energy above four times the band's upper edge |
# | `collapsed` | the posterior's deviation at its floor: a number again |
# | `drifting` | energy moved by half in an epoch, and no score gained |
#
# The neuron is the paper's: its posterior sees the context alone, its prior is N(0, 1), and all that the forecast knows
# passes through it.

# %%
CONTEXT, HORIZON, UNITS, TARGET = 56, 14, 64, 0.1
windows = ep.make_windows(ep.seattle_weather(), CONTEXT, HORIZON)
if smoke_test:
    windows = ep.Splits(*(part.every(8) for part in windows))
common = {"context_length": CONTEXT, "horizon": HORIZON, "units": UNITS, "hidden": 64, "features": 128}
common |= {"learning_rate": 3e-3, "monitor": "last", "progress": False, "target": TARGET}
common |= {"batch_size": 64, "warmup": 2, "ramp": 2} if smoke_test else {"batch_size": 128, "warmup": 20, "ramp": 20}


def train(regime, epochs, callbacks=(), **options):
    config = ep.load_recipe("paper", common | {"regime": regime, "epochs": epochs} | options)
    pair = ep.build(config)
    done = ep.fit(
        pair.model, pair.guide, windows, pair.elbo, config.training, control=config.control, callbacks=callbacks
    )
    return (pair.model, pair.guide), done


# %% [markdown]
# ## Left alone
#
# `control=Steering(...)` steers a training and takes the census; the regime `off` only takes the census. Its map has
# time from left to right: each unit's energy against the band, each unit's KL, the share of units in each state, and
# the KL of an active unit.

# %%
EPOCHS = 2 if smoke_test else 24
pairs, fits = {}, {}  # by regime
pairs["off"], fits["off"] = train("off", EPOCHS)


def census_of(done, split="val"):
    census = done.tables["census"]
    return census[census["split"] == split]


plots.census_map(census_of(fits["off"]))

# %% [markdown]
# ## Homeostasis
#
# The regime `penalty` leans on energies outside their band through the loss. `projection` also moves such a unit to its
# nearest edge once an epoch: energy is quadratic in the guide's rows for that unit, so that a factor does it. And
# `homeostasis` moves every unit by a little, every ten steps, towards the inner part of its band.

# %%
pairs["homeostasis"], fits["homeostasis"] = train("homeostasis", EPOCHS)
plots.census_map(census_of(fits["homeostasis"]))

# %% [markdown]
# Bands hold where steering looks, in training and on validation windows. Test windows come later:

# %%
inside = {}
for regime, pair in pairs.items():
    _, test = final_census(ep.unit_table(*pair, windows.test), fits[regime].tables["census"])
    last = fits[regime].history.iloc[-1]
    inside[regime] = {"validation": last["val_inside_mass"], "test": test["test_inside_mass"]}
pd.DataFrame(inside).T.round(2)

# %% [markdown]
# ## Kill 30 %
#
# Anything can happen in a Lightning callback. This one sets the rows by which the guide moves some units to zero, once,
# half-way. From that moment they say the same of every window: nothing. A unit on its way back counts as `drifting`,
# its energy doubles from epoch to epoch.


# %%
class Kill(Callback):
    def __init__(self, units, step):
        self.units, self.step = units, step

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            for rows in task.guide.unit_rows()["eve.z"].loc:
                rows[self.units] = 0


killed = list(range(round(0.3 * UNITS)))  # the lowest rows of the maps
HALF_WAY = int(fits["off"].history["step"].iloc[-1]) // 2
hurt, after = {}, {}
for regime in ("off", "homeostasis"):
    hurt[regime], after[regime] = train(regime, EPOCHS, [Kill(killed, HALF_WAY)])
plots.census_map(census_of(after["homeostasis"]))

# %% [markdown]
# The same twice, with and without a regime: energy of the units that were killed and of the others, as median and from
# the 10 % to the 90 % quantile, over the band.


# %%
def energy_chart(after):
    figure = Figure(figsize=(9.5, 3), layout="constrained", dpi=150)
    for ax, (regime, done) in zip(figure.subplots(1, 2, sharey=True), after.items(), strict=True):
        census = census_of(done).assign(energy=lambda table: table["energy"].clip(lower=1e-5))
        ax.axhspan(census["low"].min(), census["high"].max(), color=plots.GREY, alpha=0.25, lw=0, label="band")
        ax.axvline(HALF_WAY, color=plots.INK, lw=0.8, ls=":")
        for name, hit, colour in (("the others", False, plots.BLUE), ("the killed", True, plots.ORANGE)):
            steps = census[census["unit"].isin(killed) == hit].groupby("step")["energy"]
            ax.fill_between(
                steps.median().index, steps.quantile(0.1), steps.quantile(0.9), color=colour, alpha=0.2, lw=0
            )
            ax.plot(steps.median(), color=colour, label=name)
        ax.set(title=regime, xlabel="step", yscale="log")
    ax.legend(frameon=False, fontsize=9)
    figure.supylabel("energy (squared prior deviations)", fontsize=9)
    return figure


energy_chart(after)

# %% [markdown]
# Who lives at the end, and how many steps it took until 95 % of the killed did:

# %%
back = {}
for regime, done in after.items():
    census = census_of(done)
    living = (census["state"] == "living").groupby([census["unit"].isin(killed), census["step"]]).mean().unstack(0)
    recovered = living.index[(living.index > HALF_WAY) & (living[True] >= 0.95)]
    steps = recovered[0] - HALF_WAY if len(recovered) else float("nan")
    back[regime] = {"the killed": living[True].iloc[-1], "the others": living[False].iloc[-1], "steps to 95 %": steps}
back = pd.DataFrame(back).T
back.round(2)

# %% [markdown]
# Is a unit that came back worth anything? Silence all those that were killed, and see what the forecast loses in CRPS;
# beside it the same units of the network in which nobody was killed.

# %%
some = windows.test.every(6)
worth = {}
for regime in hurt:
    for name, pair in (("never killed", pairs[regime]), ("killed", hurt[regime])):
        cost = ep.knock_out_groups(*pair, some, {"them": {"eve.z": killed}})["crps_cost"].item()
        worth.setdefault(regime, {})[name] = cost
worth = pd.DataFrame(worth).T
worth.round(4)

# %% [markdown]
# ## What steering costs
#
# First the networks above, all of one seed:

# %%
networks = {regime: pairs[regime] for regime in pairs} | {f"{regime}, hurt": hurt[regime] for regime in hurt}
scores = {name: ep.evaluate(*pair, windows.test, num_draws=50) for name, pair in networks.items()}
scores = pd.DataFrame(scores).T[["crps", "energy_score", "joint_log_score"]]
scores.round(4)

# %% [markdown]
# One seed says little, and these trainings were long. So train half as many units for a third of the time, in every
# regime, and under homeostasis with targets further and further from where units would go by themselves; three seeds.

# %%
SEEDS = range(1 if smoke_test else 3)
variants = [("off", TARGET), ("penalty", TARGET), ("projection", TARGET)]
variants += [("homeostasis", target) for target in ([TARGET] if smoke_test else [0.03, TARGET, 0.3, 1.0])]
rows = []
for regime, target in variants:
    for seed in SEEDS:
        pair, done = train(regime, 2 if smoke_test else 8, units=32, target=target, seed=seed)
        found = ep.evaluate(*pair, windows.test, num_draws=50)
        last = done.history[["val_inside_mass", "val_living"]].iloc[-1].to_dict()
        rows.append({"regime": regime, "target": target, "seed": seed} | found | last)
rows = pd.DataFrame(rows)
plots.regime_scatter(rows, ["regime", "target"])

# %% [markdown]
# Differences to `off`, paired by seed, with their 95 % interval (`_ci` is half its width):

# %%
SCORES = ["crps", "energy_score", "joint_log_score"]
summary = summarise(rows, ["regime", "target"], ["val_inside_mass", *SCORES])
summary[["regime", "target", "val_inside_mass", "crps", "crps_diff", "crps_ci", "joint_log_score"]].round(4)

# %%
plots.difference_bars(summary, ["regime", "target"], SCORES)

# %% [markdown]
# ## What came of it

# %%
off, steered = (inside[regime]["validation"] for regime in ("off", "homeostasis"))
print(f"Left alone {off:.0%} of the units are inside the band, under homeostasis {steered:.0%}", end=" ")
print(f"({inside['homeostasis']['test']:.0%} on test windows).")
for regime, row in back.iterrows():
    print(f"{regime}: of the killed {row['the killed']:.0%} live at the end, of the others {row['the others']:.0%}.")
for regime, row in worth.iterrows():
    print(f"{regime}: silencing these units costs {row['killed']:+.4f} CRPS once they were killed,", end=" ")
    print(f"{row['never killed']:+.4f} if they never were.")
crps = scores["crps"]
print(f"Long training, one seed: CRPS {crps['off']:.4f} left alone, {crps['homeostasis']:.4f} under homeostasis.")
crps = summary["crps"].iloc[0]
for row in summary.iloc[1:].to_dict("records"):
    print(f"{row['regime']}, target {row['target']}: CRPS {row['crps_diff'] / crps:+.1%}", end=" ")
    print(f"(+- {row['crps_ci'] / crps:.1%}), joint log score {row['joint_log_score_diff']:+.3f}", end=" ")
    print(f"(+- {row['joint_log_score_ci']:.3f}) against off.")
if not smoke_test:
    assert back["the killed"]["homeostasis"] > 0.9 > 0.5 > back["the killed"]["off"]
    assert worth["killed"]["homeostasis"] > worth["killed"]["off"]  # and they are worth something again
    assert summary["crps_diff"].iloc[-1] > summary["crps_ci"].iloc[-1]  # holding units too far out costs

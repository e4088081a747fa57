"""Do early signals foretell the end? Measured on studies whose trials were all trained in full."""

from pathlib import Path

import numpy as np
import pandas as pd

from eve_pyro.autopilot.gates import mean_ranks
from eve_pyro.autopilot.outcome import LEADERBOARD

ENDS = ("test_mse", "test_crps")
EARLIES = ("early_out_of_band", "early_not_living", "early_kl_drift", "early_val_loss", "early_val_crps")
RULES = {
    "out of band": ("early_out_of_band",),
    "three signals": ("early_out_of_band", "early_not_living", "early_kl_drift"),
    "validation loss": ("early_val_loss",),
    "validation crps": ("early_val_crps",),
    "out of band and validation loss": ("early_out_of_band", "early_val_loss"),
    "out of band and validation crps": ("early_out_of_band", "early_val_crps"),
}
KEPT = (1 / 2, 1 / 3, 1 / 4)
RESAMPLED = 2000


def read_full(folder: Path) -> pd.DataFrame:
    """Return the trials of a study that trained them all in full; ValueError for one that dropped some, whose last ones
    would be a choice, and for fewer than eight.
    """
    path = folder / LEADERBOARD
    if not path.is_file():
        raise ValueError(f"{folder} holds no complete study: there is no {LEADERBOARD} in it")
    table = pd.read_csv(path)
    wanted = {*ENDS, *EARLIES}
    if "epochs" in table and table.loc[table["epochs"] > 0, "epochs"].nunique() > 1:
        raise ValueError(f"{folder} dropped trials on the way: search with --full")
    rows = table.dropna(subset=sorted(wanted & set(table))) if wanted <= set(table) else table[:0]
    if len(rows) < 8:
        raise ValueError(f"{folder} has {len(rows)} trials trained in full, 8 are needed: search with --full")
    return rows.sort_values("trial").reset_index(drop=True)


def correlations(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return Spearman's correlation of each early figure with each test score, with its 95 % interval.

    The interval is the percentile bootstrap's over trials (2000 resamples of ``seed``); NaN for what does not vary.
    """
    picks = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLED, len(rows)))
    table = []
    for early in EARLIES:
        for end in ENDS:
            x, y = rows[early].to_numpy(float), rows[end].to_numpy(float)
            again = spearman(x[picks], y[picks])
            low, high = np.nanquantile(again, [0.025, 0.975]) if np.isfinite(again).any() else (np.nan, np.nan)
            found = {"early": early, "end": end, "trials": len(rows), "spearman": float(spearman(x, y))}
            table.append(found | {"low": float(low), "high": float(high)})
    return pd.DataFrame(table)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the rank correlation along the last axis, ties sharing their ranks; NaN where one side does not vary."""
    from scipy.stats import rankdata  # adds filters to everybody's warnings: not on import

    ranks = [rankdata(side, axis=-1) for side in (x, y)]
    a, b = (each - each.mean(-1, keepdims=True) for each in ranks)
    spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(spread > 0, (a * b).sum(-1) / np.where(spread > 0, spread, 1.0), np.nan)


def pruned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what keeping the best half, third and quarter at a fifth of training would have saved and lost.

    ``saved`` is the share of all steps not taken; ``lost`` the test CRPS of the kept trial with the best validation
    CRPS, minus that of the trial chosen among all; ``best_lost`` the same of the best test CRPS itself.
    """
    steps, early = rows["step"], rows["early_step"]
    chosen = rows["test_crps"].iloc[int(rows["crps"].to_numpy().argmin())]
    table = []
    for rule, columns in RULES.items():
        ranks = np.array(mean_ranks([rows[column].tolist() for column in columns]))
        for share in KEPT:
            kept = rows.iloc[np.argsort(ranks, kind="stable")[: max(1, round(share * len(rows)))]]
            spent = steps[kept.index].sum() + early.drop(kept.index).sum()
            found = kept["test_crps"].iloc[int(kept["crps"].to_numpy().argmin())]
            losses = {"lost": found - chosen, "best_lost": kept["test_crps"].min() - rows["test_crps"].min()}
            table.append({"rule": rule, "kept": len(kept), "saved": 1 - spent / steps.sum()} | losses)
    return pd.DataFrame(table)

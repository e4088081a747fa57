"""From rows to a table: mean and spread over seeds, and paired differences to the first variant."""

import math
from collections.abc import Sequence

import pandas as pd


def summarise(rows: pd.DataFrame, labels: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return one row a variant, in order of appearance, with columns ``<score>``, ``<score>_sd``, ``<score>_diff`` and
    ``<score>_ci`` for each of ``columns``, and ``seeds``.

    Variants differ in ``labels``. The difference is to the first variant, paired by seed; ``_ci`` is the half width of
    its 95 % interval (Student's t), NaN for a single seed.
    """
    variants = list(rows.groupby(list(labels), sort=False, dropna=False))
    first = variants[0][1].set_index("seed")
    table = []
    for key, group in variants:
        group = group.set_index("seed")
        row = dict(zip(labels, key, strict=True)) | {"seeds": len(group)}
        for name in columns:
            difference = (group[name] - first[name]).dropna()
            row |= {name: group[name].mean(), f"{name}_sd": group[name].std()}
            row |= {f"{name}_diff": difference.mean(), f"{name}_ci": half_width(difference)}
        table.append(row)
    return pd.DataFrame(table)


def half_width(values: pd.Series, level: float = 0.95) -> float:
    """Return the half width of the mean's interval at ``level`` by Student's t, NaN for fewer than two values."""
    from scipy import stats  # adds filters to everybody's warnings: not on import

    count = len(values)
    if count < 2:
        return math.nan
    return float(stats.t.ppf(0.5 + level / 2, count - 1) * values.std() / math.sqrt(count))

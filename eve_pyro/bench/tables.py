"""From the rows of the accuracy benchmark to its tables, as Markdown and as CSV."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from eve_pyro import plots
from eve_pyro.bench.accuracy import CELL, CHOOSER, TABLE, check_table
from eve_pyro.bench.compare import summarise
from eve_pyro.bench.protocols import NAIVE
from eve_pyro.bench.rows import read_rows
from eve_pyro.bench.tuning import RECIPE, chosen_label, tried
from eve_pyro.infer.scores import KEYS

REFERENCE = "eve"
SCORES = (*KEYS[:-1], "crps_probts", "coverage_90")
COSTS = ("seconds", "cpu_seconds", "parameters")
PAIRED = ("mse", "mae", "crps", "crps_probts", "energy_score", "crps_mean", "log_score", "joint_log_score")


def chosen_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, of each cell, by set and horizon, the rows that its models are compared by.

    They are of one context: where the twin of seed 0 has the lowest validation CRPS with the recipe's own options, of
    those contexts at which any other model was run; without a twin, the one with the most rows. A model that was tried
    with several options there is compared by those that seed 0 chooses, see ``chosen_label``; an ensemble by its
    twin's, where it has them.
    """
    compared = []
    for _, cell in rows.groupby(list(CELL)):
        there = cell[cell["context"] == _context(cell)]
        for model, own in there.groupby("model", sort=False):
            tries = there[(there["model"] == tried(str(model))) & there["options"].isin(own["options"])]
            compared.append(own[own["options"] == chosen_label(tries if len(tries) else own)])
    return pd.concat(compared).sort_index()


def _context(cell: pd.DataFrame) -> int:
    searching = (cell["model"] == CHOOSER) & (cell["seed"] == 0) & (cell["options"] == RECIPE)
    compared = cell[~searching]
    searched = cell[cell["context"].isin(compared["context"])] if len(compared) else cell
    twins = searched[searching.loc[searched.index]]
    if len(twins):
        return int(twins["context"].to_numpy()[twins["val_crps"].argmin()])
    return int(searched["context"].mode()[0])


def cell_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell and model: ``protocol, set, horizon, context, model, options, seeds``, and of each score
    its mean, ``_sd`` over seeds, and ``_diff``, the mean of eve minus this model paired by seed, with the half width
    ``_ci`` of its 95 % interval (Student's t). Eve comes first; where she is missing, so are the differences.
    """
    rows = chosen_rows(rows)
    names = [name for name in (*SCORES, *COSTS) if name in rows]
    parts = []
    for key, cell in rows.groupby(list(CELL), sort=False):
        first = cell["model"] == REFERENCE
        part = summarise(pd.concat([cell[first], cell[~first]]), ["model", "options"], names)
        for name in names:
            part[f"{name}_diff"] = -part[f"{name}_diff"] if first.any() else float("nan")
            part[f"{name}_ci"] = part[f"{name}_ci"] if first.any() else float("nan")
        place = dict(zip(CELL, key, strict=True)) | {"context": int(cell["context"].iloc[0])}
        parts.append(pd.concat([pd.DataFrame([place] * len(part)), part], axis=1))
    return pd.concat(parts, ignore_index=True)


def rank_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return each model's average rank over the cells by score, 1 being the best; coverage by how far it is from 0.9.

    A model is ranked among those that have the score in its ``cells``, of which the first column has the number;
    ``cells`` is what ``cell_table`` returns.
    """
    places = [cells[name] for name in CELL]
    figures = {name: cells[name] for name in SCORES if name in cells}
    if "coverage_90" in figures:
        figures["coverage_90"] = (figures["coverage_90"] - 0.9).abs()
    ranks = pd.DataFrame({name: values.groupby(places).rank() for name, values in figures.items()})
    by_model = ranks.groupby(cells["model"], sort=False)
    return pd.concat([by_model.size().rename("cells"), by_model.mean()], axis=1)


def duel_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return one row a rival and score: in how many ``cells`` eve is ahead, how often by more than its 95 % interval,
    behind likewise, the mean and the worst difference, the worst in per cent of the rival where the score has a zero,
    and by name the cells she loses.
    """
    result = []
    for model, rival in cells[cells["model"] != REFERENCE].groupby("model", sort=False):
        for name in (name for name in PAIRED if name in cells):
            held = rival[rival[f"{name}_diff"].notna()]
            if len(held):
                result.append({"model": model, "score": name, **_duel(held, name)})
    return pd.DataFrame(result)


def _duel(cells: pd.DataFrame, name: str) -> dict[str, object]:
    difference, interval = cells[f"{name}_diff"], cells[f"{name}_ci"]
    lost = cells[difference > 0]
    relative = float("nan") if name.endswith("log_score") else float((100 * difference / cells[name]).max())
    return {
        "cells": len(cells),
        "ahead": int((difference < 0).sum()),
        "surely ahead": int((difference + interval < 0).sum()),
        "behind": len(lost),
        "surely behind": int((difference - interval > 0).sum()),
        "mean difference": float(difference.mean()),
        "worst": float(difference.max()),
        "worst, %": relative,
        "lost": ", ".join(f"{row['set']} {row['horizon']}" for row in lost.to_dict("records")),
    }


def markdown(rows: pd.DataFrame) -> str:
    """Return all tables of the benchmark as Markdown, a part a protocol."""
    parts = []
    for protocol, part in rows.groupby("protocol", sort=False):
        cells = cell_table(part)
        parts += [f"## {protocol}", "Mean ± deviation over seeds; the best of a row is bold.", *_left_out(part, cells)]
        tuned = _tuned(part, cells)
        parts += [*_unlike(tuned), *_options(tuned), *_score_tables(cells)]
        parts += ["### Average rank over cells", "Of a model in its own cells, among those that were run there."]
        parts += [_table(rank_table(cells).reset_index(), "{:.2f}")]
        duels = duel_table(cells)
        if len(duels):
            parts += ["### Eve against each rival, paired by seed (eve minus rival; below zero, eve is ahead)"]
            parts += ["Seeds that both have; surely: beyond the 95 % interval over them, which knows one test period."]
            parts += [_table(duels, "{:+.4f}")]
        costs = cells.groupby("model", sort=False)[[name for name in COSTS if name in cells]].mean().reset_index()
        parts += ["### Training, mean over cells", _table(costs, "{:,.0f}")]
    return "\n\n".join(parts) + "\n"


def _left_out(rows: pd.DataFrame, cells: pd.DataFrame) -> Iterator[str]:
    """Name the models whose rows are of another context than their cell's, but for the twin that chose it."""
    chosen = cells[[*CELL, "context"]].drop_duplicates().rename(columns={"context": "chosen"})
    others = rows.merge(chosen, on=list(CELL))
    others = others[(others["context"] != others["chosen"]) & ((others["model"] != CHOOSER) | (others["seed"] != 0))]
    for key, cell in others.groupby([*CELL[1:], "context"], sort=False):
        yield f"Left out of {key[0]} {key[1]}, at context {key[2]}: {', '.join(dict.fromkeys(cell['model']))}."


def _tuned(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the options that models are compared by, and how many they have ``tried`` there."""
    place = [*CELL, "context", "model"]
    tries = rows.groupby(place)["options"].nunique().rename("tried").reset_index()
    return cells[[*place, "options"]].merge(tries, on=place)


def _unlike(tuned: pd.DataFrame) -> Iterator[str]:
    """Say where trained models were tried with more options than others: a table that is half finished, say."""
    own = tuned["model"].map(tried) == tuned["model"]  # an ensemble has its twin's
    for key, cell in tuned[own & ~tuned["model"].isin(NAIVE)].groupby([*CELL[1:]], sort=False):
        if cell["tried"].nunique() > 1:
            counts = ", ".join(f"{model} {count}" for model, count in zip(cell["model"], cell["tried"], strict=True))
            yield f"Not tuned alike at {key[0]} {key[1]}, by options tried: {counts}."


def _options(tuned: pd.DataFrame) -> Iterator[str]:
    """Say with which options models are compared where they are not the recipe's, or were chosen among several."""
    chosen = tuned[(tuned["tried"] > 1) | (tuned["options"] != RECIPE)]
    if len(chosen):
        yield "### Options in place of the recipe's"
        yield "Of several the recipe's, or others half a per cent better on validation; an ensemble has its twin's."
        yield _table(chosen.drop(columns="protocol"), "{}")


def _score_tables(cells: pd.DataFrame) -> Iterator[str]:
    models = list(dict.fromkeys(cells["model"]))
    for name in SCORES:
        if name not in cells or cells[name].isna().all():
            continue
        lines = []
        for (_, data, horizon), cell in cells.groupby(list(CELL), sort=False):
            held = cell.set_index("model")
            values = (held[name] - 0.9).abs() if name == "coverage_90" else held[name]
            best = values.idxmin() if values.notna().any() else None
            found = {model: _figure(held, model, name, model == best) for model in models}
            lines.append({"set": data, "horizon": horizon, "context": cell["context"].iloc[0], **found})
        yield f"### {name}"
        yield _table(pd.DataFrame(lines), "{}")


def _figure(cell: pd.DataFrame, model: str, name: str, best: bool) -> str:
    mean, spread = (float(cell[column].get(model, math.nan)) for column in (name, f"{name}_sd"))
    if math.isnan(mean):
        return ""
    text = f"**{mean:.4f}**" if best else f"{mean:.4f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.4f}"


def _table(frame: pd.DataFrame, form: str) -> str:
    """Write a frame as a Markdown table, its decimals by ``form``."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return "" if math.isnan(value) else form.format(value)

    lines: Sequence[Sequence[str]] = [
        [str(name) for name in frame.columns],
        ["---"] * len(frame.columns),
        *([cell(value) for value in row] for row in frame.itertuples(index=False)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_tables(folder: Path) -> list[str]:
    """Write summary.csv, tables.md and, where eve has a rival, accuracy.png beside the accuracy.csv of ``folder``.

    The picture is of the first protocol, without the naive forecasts. Returns the files' names. Raises ValueError where
    there are no rows.
    """
    rows = read_rows(folder / TABLE)
    if rows.empty:
        raise ValueError(f"there is no {folder / TABLE} with rows: run eve-pyro bench accuracy first")
    check_table(rows, folder / TABLE)
    cells = cell_table(rows)
    cells.to_csv(folder / "summary.csv", index=False)
    (folder / "tables.md").write_text(markdown(rows), encoding="utf-8")
    shown = cells[(cells["protocol"] == cells["protocol"].iloc[0]) & ~cells["model"].isin(NAIVE)]
    if not shown.loc[shown["model"] != REFERENCE, "crps_diff"].notna().any():
        return [TABLE, "summary.csv", "tables.md"]
    plots.accuracy_chart(shown, ("crps", "energy_score", "joint_log_score")).savefig(folder / "accuracy.png")
    return [TABLE, "summary.csv", "tables.md", "accuracy.png"]

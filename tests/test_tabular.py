"""Tables: what is split and scaled, what is refused, and that they train."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from eve_pyro.data.tabular import make_table
from eve_pyro.infer.fit import Training, fit
from eve_pyro.infer.scores import evaluate


def make_frame(rows=50):
    """Features of different scales, a constant one, two numeric targets and one of classes."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((rows, 2)) * [1, 100] + [5, -300], columns=["a", "b"])
    frame["still"] = 0.1
    frame["y"] = 7 + 2 * frame.a + 0.1 * rng.standard_normal(rows)
    frame["row"] = np.arange(rows)
    frame["kind"] = np.where(frame.a > 5, "high", "low")
    return frame


FRAME = make_frame()
NUMBERS = FRAME.drop(columns="kind")


def rows_of(table):
    """The frame's row of each row of a table, read back from the target ``row``."""
    values = table.mean + table.deviation * table.future
    return values[:, table.targets.index("row")].round().long().numpy()


def test_rows_come_back_and_are_scaled_on_training_rows():
    """Against the frame's own rows, scaled by hand."""
    splits = make_table(NUMBERS, ("y", "row"))
    assert [len(part) for part in splits] == [35, 5, 10]
    train = NUMBERS.iloc[rows_of(splits.train)]
    for part in splits:
        expected = NUMBERS.iloc[rows_of(part)]
        assert (part.names, part.targets, part.classes) == (("a", "b", "still"), ("y", "row"), ())
        assert part.context.shape == (len(part), 1, 3)
        assert part.context.dtype == part.future.dtype == torch.float32
        np.testing.assert_allclose(part.mean + part.deviation * part.future, expected[["y", "row"]], rtol=1e-5)
        features, base = expected[["a", "b", "still"]], train[["a", "b", "still"]]
        deviation = base.std(ddof=0).where(lambda d: d > 1e-9, 1.0)
        np.testing.assert_allclose(part.context[:, 0], (features - base.mean()) / deviation, rtol=1e-4, atol=1e-6)
    for values in (splits.train.context[:, 0, :2], splits.train.future):
        torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    assert (splits.train.context[:, 0, 2] == 0).all()


def test_splits_share_no_row_and_cover_all():
    splits = make_table(NUMBERS, ["row"], validation=0.3, test=0.3)
    assert [len(part) for part in splits] == [20, 15, 15]
    assert sorted(np.concatenate([rows_of(part) for part in splits])) == list(range(50))


def test_the_seed_is_the_only_source_of_the_order():
    first, again, other = (make_table(NUMBERS, "row", seed=seed) for seed in (3, 3, 4))
    for part, same in zip(first, again, strict=True):
        torch.testing.assert_close(part[:], same[:], rtol=0, atol=0)
    assert set(rows_of(first.test)) != set(rows_of(other.test))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    before = torch.get_rng_state()
    make_table(NUMBERS, "row")
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert (torch.get_rng_state() == before).all()


def test_scaling_looks_at_training_rows_only():
    splits = make_table(NUMBERS, "row")
    changed = NUMBERS.astype(float)
    unseen = np.concatenate([rows_of(part) for part in splits[1:]])
    changed.loc[unseen, ["a", "b", "still"]] = 1e6
    torch.testing.assert_close(make_table(changed, "row").train[:], splits.train[:], rtol=0, atol=0)


def test_a_table_is_indexed_as_windows_are():
    train = make_table(NUMBERS, ("y", "row")).train
    positions = [4, 0, 7]
    for batch in (train[positions], train[torch.tensor(positions)], train.__getitems__(positions)):
        torch.testing.assert_close(batch.context, torch.stack([train.context[i] for i in positions]))
        torch.testing.assert_close(batch.future, torch.stack([train.future[i] for i in positions]))
    torch.testing.assert_close(train.select(positions)[:], train[positions])
    assert train[:2].context.shape == (2, 1, 3)
    batches = list(train.batches(16))
    assert [len(batch.future) for batch in batches] == [16, 16, 3]
    torch.testing.assert_close(torch.cat([batch.context for batch in batches]), train.context)
    assert rows_of(train.every(4)).tolist() == rows_of(train)[::4].tolist()
    assert len(train.at_most(10)) == 9
    assert len(train.at_most(100)) == 35
    assert len(train.select([])) == 0
    assert train.every(4).names == train.names


def test_classes_are_numbered_in_order_over_all_rows():
    frame = FRAME.assign(kind=["z", *FRAME.kind[1:]])
    for part in make_table(frame.drop(columns="y"), "kind", classify=True):
        assert part.classes == ("high", "low", "z")
        assert (part.mean.tolist(), part.deviation.tolist()) == ([0.0], [1.0])
        assert part.future.dtype == torch.float32
    numbered = make_table(FRAME.assign(kind=np.arange(50) % 12), "kind", classify=True).train
    assert numbered.classes == tuple(str(i) for i in range(12))  # 10 after 9, not after 1
    splits = make_table(FRAME, "kind", classify=True)
    for part in splits:  # "a" says the class, and its order outlives the scaling
        high = part.context[part.future[:, 0] == 0, 0, 0]
        low = part.context[part.future[:, 0] == 1, 0, 0]
        assert high.min() > low.max()
    mixed = FRAME.assign(kind=pd.Series([1, "1", 2, "2", 3] * 10, dtype=object))
    assert make_table(mixed, "kind", classify=True).train.classes == ("1", "2", "3")
    ordered = pd.Categorical(["mid", "low", "high", "low", "mid"] * 10, categories=["low", "mid", "high", "none"])
    assert make_table(FRAME.assign(kind=ordered), "kind", classify=True).train.classes == ("low", "mid", "high")


CLASSIFY = {"target": "kind", "classify": True}
BAD_TABLES = {
    "no target column 'z'; found: a, b, still, y, row$": (NUMBERS, {"target": "z"}),
    "name at least one target": (NUMBERS, {"target": []}),
    "column 'y' occurs twice": (NUMBERS, {"target": ["y", "y"]}),
    "column 'a' occurs twice: give each": (NUMBERS.rename(columns={"b": "a"}), {}),
    "column '1' occurs twice": (NUMBERS.rename(columns={"a": 1, "b": "1"}), {}),
    "no features: every column is a target": (NUMBERS[["y", "row"]], {"target": ["y", "row"]}),
    "column 'kind' holds no numbers but (str|object): encode it": (FRAME, {}),
    "column 'a' holds no numbers but datetime.*: encode": (NUMBERS.assign(a=pd.date_range("2024", periods=50)), {}),
    "column 'a', row 3: missing value, 1 in all": (NUMBERS.assign(a=FRAME.a.where(FRAME.row != 3)), {}),
    "column 'row', row 4: missing value": (NUMBERS.assign(row=FRAME.row.astype("Int64").where(FRAME.row != 4)), {}),
    "column 'y', row 2: missing value": (NUMBERS.assign(y=FRAME.y.where(FRAME.row != 2)), {}),
    "column 'b', row 0: infinite value, 50 in all": (NUMBERS.assign(b=-np.inf), {}),
    "column 'b' has values too large to scale": (NUMBERS.assign(b=1e300 * FRAME.b), {}),
    "^3 rows are too few: they split into 2 for training, 1 for validation and 0 for testing": (NUMBERS.head(3), {}),
    "^0 rows are too few": (NUMBERS.head(0), {}),
    "10 rows are too few: they split into 1 for training": (NUMBERS.head(10), {"validation": 0.4, "test": 0.5}),
    "validation and test are fractions": (NUMBERS, {"validation": 0.0}),
    "column 'kind' holds no numbers but (str|object): for classes, set classify=True": (FRAME, {"target": "kind"}),
    r"target 'y' is constant \(0.3\) on its 35 training rows": (NUMBERS.assign(y=0.3), {}),
    "classes come from one target column, not from 2": (NUMBERS, {"target": ["y", "row"], "classify": True}),
    r"target 'kind' has one class only \(only\)": (FRAME.assign(kind="only"), CLASSIFY),
    "column 'kind', row 1: missing class": (FRAME.assign(kind=FRAME.kind.where(FRAME.row != 1)), CLASSIFY),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_bad_tables_are_refused_with_the_place(message):
    frame, options = BAD_TABLES[message]
    with pytest.raises(ValueError, match=message):
        make_table(frame, **({"target": "y"} | options))


class Regression(nn.Module):
    """y = w x + b + z + noise, one unit z ~ N(0, 1) and both scales learned."""

    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(features, 1)
        self.log_scale = nn.Parameter(torch.zeros(2) - 1)

    def forward(self, context, future=None):
        with pyro.plate("windows", len(context), dim=-2):
            with pyro.plate("units", 1, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(context), 1), 1.0))
            loading, noise = self.log_scale.exp()
            loc = self.linear(context) + loading * z.unsqueeze(-1)  # (..., B, 1, H)
            likelihood = dist.Normal(loc, noise).to_event(1)
            pyro.sample("y", likelihood, obs=None if future is None else future.unsqueeze(-2))


class RegressionGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, context, future=None):
        if future is None:
            return
        with pyro.plate("windows", len(context), dim=-2), pyro.plate("units", 1, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(context), 1), self.log_scale.exp()))


def test_a_table_trains_like_windows_and_finds_the_least_squares_line():
    splits = make_table(make_frame(400)[["a", "b", "y"]], "y")
    model, guide = Regression(2), RegressionGuide()
    training = Training(epochs=40, batch_size=70, learning_rate=0.05, weight_decay=0.0, progress=False)
    fit(model, guide, splits, training=training)
    design = torch.cat([splits.train.context[:, 0], torch.ones(len(splits.train), 1)], 1)
    best = torch.linalg.lstsq(design, splits.train.future).solution[:, 0]
    found = torch.cat([model.linear.weight[0], model.linear.bias])
    torch.testing.assert_close(found.detach(), best, atol=0.02, rtol=0)
    test = splits.test
    residual = test.future[:, 0] - torch.cat([test.context[:, 0], torch.ones(len(test), 1)], 1) @ best
    mse = evaluate(model, guide, test, num_draws=100)["mse"]
    assert mse == pytest.approx(float(residual.square().mean()), rel=0.2)

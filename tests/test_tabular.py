"""Tables: what is split and scaled, what is refused, what the known data sets look like, and that they train."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from eve_pyro.data.tabular import load_table, make_table
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


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("diabetes", (442, 10), ()), ("digits", (1797, 64), tuple("0123456789"))]
)
def test_bundled_sets_load(name, shape, classes):
    pytest.importorskip("sklearn")
    frame, target, classify = load_table(name)
    splits = make_table(frame, target, classify)
    assert (sum(map(len, splits)), len(splits.train.names)) == shape
    assert splits.train.classes == classes
    values = splits.test.mean + splits.test.deviation * splits.test.future
    assert set(values[:, 0].round().int().tolist()) <= set(frame[target].astype(int))
    if name == "digits":  # pixels of the rim are never on
        assert (splits.train.context[:, 0, 0] == 0).all()
        assert splits.train.future.unique().tolist() == list(range(10))
    else:
        assert frame["age"].between(19, 79).all()  # in years: nothing was scaled before the split
    with pytest.raises(ValueError, match=f"'{name}' comes with scikit-learn and is read from no file"):
        load_table(name, "file.csv")


BOSTON = "0.00632,18.0,2.31,0,0.538,6.575,65.2,4.09,1,296,15.3,396.9,4.98,24.0\n"
CONCRETE = "540,0,0,162,2.5,1040,676,28,79.99\n"
ENERGY = "0.98,514.5,294,110.25,7,2,0,0,15.55,21.33\n"
BOSTON_NAMES = "crim,zn,indus,chas,nox,rm,age,dis,rad,tax,ptratio,b,medv,lstat\n"
CONCRETE_NAMES = 'a,b,c,d,e,f,g,h,"Concrete compressive strength(MPa, megapascals) "\n'
ENERGY_NAMES = "a,b,c,d,e,f,g,h,Cooling_Load,Heating Load\n"


@pytest.mark.parametrize(
    ("name", "content", "target", "first", "features"),
    [
        ("boston", BOSTON + BOSTON, "MEDV", 24.0, 13),
        ("boston", 2 * (" " + BOSTON.replace(",", "   ")), "MEDV", 24.0, 13),  # housing.data
        ("boston", BOSTON_NAMES + BOSTON, "medv", 4.98, 13),
        ("boston", "a,b\n1,2\n3,4\n", "b", 2.0, 1),
        ("concrete", CONCRETE + CONCRETE, "strength", 79.99, 8),
        ("concrete", CONCRETE_NAMES + CONCRETE, "Concrete compressive strength(MPa, megapascals)", 79.99, 8),
        ("concrete", "\ufeffcement,csMPa\n540,79.99\n", "csMPa", 79.99, 1),
        ("energy", ENERGY + ENERGY, "Y1", 15.55, 8),
        ("energy", ENERGY_NAMES + ENERGY, "Heating Load", 21.33, 8),
        ("energy", "X1,Y1,Y2,,\n0.98,15.55,21.33,,\n,,,,\n", "Y1", 15.55, 1),  # as a spreadsheet leaves it
    ],
)
def test_local_files_are_read_by_their_layout(tmp_path, name, content, target, first, features):
    (tmp_path / "file.csv").write_text(content, encoding="utf-8")
    frame, found, classify = load_table(name, tmp_path / "file.csv")
    assert (found, classify) == (target, False)
    assert frame[target].iloc[0] == first
    assert frame.shape[1] == features + 1
    assert frame.notna().all().all()
    assert not {"Y2", "Cooling_Load"} & set(frame.columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file: .*file.csv"),
        ("", "cannot read .*file.csv as CSV"),
        (b"\xd0\xcf\x11\xe0", "cannot read .*file.csv as CSV"),
        ("a;b\n1;2\n", "file.csv holds no table: write rows of numbers, separated by commas"),
        ("1,2\n3,4\n", "file.csv has 2 columns without names, 'energy' has 10: add a row of names"),
        (",X1,Y1\n0,1,2\n", "the first row has names, but none for column 0"),
        ("X1,?,0.5\n1,2,3\n", "the first row has names, but none for column 2"),
        ("X1,X1,Y1\n1,2,3\n", "column 'X1' occurs twice"),
        ("X1,Y1\n1,2\nhigh,3\n", "column 'X1', row 1: 'high' is no number"),
        ("a,b\n1,2\n", "no target of 'energy' among a, b: call it 'y1'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_table("energy", tmp_path / "file.csv")


def test_openml_is_asked_for_the_right_set(monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")
    asked = []
    nominal = pd.DataFrame({"RAD": pd.Categorical(["24", "3"]), "MEDV": [24.0, 21.6]})
    energy = pd.DataFrame({"V1": [0.98, 0.9], "y1": pd.Categorical(["15.5", "20"]), "y2": [21.3, 28.3]})
    frames = {"boston": nominal, "energy-efficiency": energy, "Concrete_Data": NUMBERS}

    def fetch_openml(name, version, as_frame):
        asked.append((name, version, as_frame))
        return SimpleNamespace(frame=frames[name])

    monkeypatch.setattr(datasets, "fetch_openml", fetch_openml)
    frame, target, classify = load_table("boston")
    assert (frame.RAD.tolist(), target, classify) == ([24, 3], "MEDV", False)
    frame, target, _ = load_table("energy")
    assert (list(frame.columns), target, frame.y1.tolist()) == (["V1", "y1"], "y1", [15.5, 20.0])
    assert load_table("concrete")[1] == "row"
    assert asked == [("boston", 1, True), ("energy-efficiency", 1, True), ("Concrete_Data", 1, True)]


def test_what_cannot_be_had_is_said(monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")

    def offline(*args, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(datasets, "fetch_openml", offline)
    with pytest.raises(ValueError, match=r"cannot fetch 'boston' from OpenML \(.*not known.*\): pass path, a CSV file"):
        load_table("boston")
    with pytest.raises(ValueError, match="no data set is called 'iris': choose diabetes, digits, boston, concrete"):
        load_table("iris")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("digits", "energy"):
        with pytest.raises(ValueError, match=rf"'{name}' .*pip install 'eve_pyro\[tabular\]'"):
            load_table(name)

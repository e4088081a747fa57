"""Known data sets: what they look like, where they are read from, and what is said where they cannot be had."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import pandas as pd
import pytest

from eve_pyro.data.tabular import load_table, make_table


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
    frames = {
        "boston": nominal,
        "energy-efficiency": energy,
        "Concrete_Data": pd.DataFrame({"a": [1, 2], "row": [3, 4]}),
    }

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

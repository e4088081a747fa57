"""The page says what the run folder says, needs nothing else, and is whole in a browser."""

import base64
import json
import re
import shutil
import sys
from html import unescape

import pandas as pd
import pytest
import torch
from browser import Browser, find_browser
from conftest import make_panel

from eve_pyro import cli, plots
from eve_pyro.config import load_recipe
from eve_pyro.data import Panel
from eve_pyro.experiment import run_experiment
from eve_pyro.infer.scores import KEYS
from eve_pyro.report import pictures, trust, write_report
from eve_pyro.report.blocks import NONE

TINY = {"context_length": 24, "horizon": 6, "units": 4, "hidden": 8, "features": 12, "epochs": 2, "batch_size": 64}
SECTIONS = {
    "run": "The run", "scores": "Scores", "forecasts": "Forecasts", "training": "Training",
    "census": "The census of the units", "calibration": "Calibration", "fidelity": "Fidelity of the posterior",
    "units": "The units that matter", "uncertainty": "Internal uncertainty", "configuration": "Configuration",
    "again": "Make it again",
}  # fmt: skip
NAMES = ["<b>bold</b> & co", "cost in $, or in $US"]  # none of it is markup or a formula


def make_run(folder, name="data.csv", names=NAMES, twin=True, **options):
    """Train a tiny run and return its folder and the file of its data."""
    panel = make_panel(300, len(names))
    frame = pd.DataFrame(dict(zip(names, panel.values, strict=True)))
    frame.insert(0, "date", panel.index[0])
    frame.to_csv(folder / name, index=False)
    config = load_recipe("factor", TINY | {"progress": False} | options)
    run_experiment(Panel.from_file(folder / name), config, folder / "run", twin, lambda _: None)
    return folder / "run", folder / name


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "STEPS", 10)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a twin, its data, and its page."""
    folder = tmp_path_factory.mktemp("report")
    with torch.random.fork_rng():
        run, data = make_run(folder)
        write_report(run, Panel.from_file(data), str(data), folder / "page.html")
    return run, data, folder / "page.html"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The page of a run without a twin whose guide gives points, some of its drawings turned into pictures of dots."""
    folder = tmp_path_factory.mktemp("bare")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "LARGEST", 30_000)
        run, data = make_run(folder, names=["s0"], twin=False, guide="delta", beta=0.0)
        write_report(run, Panel.from_file(data), str(data), folder / "page.html")
    return folder / "page.html"


@pytest.fixture
def html(made):
    return made[2].read_text(encoding="utf-8")


def section(html, name):
    return re.search(rf'<section id="{name}".*?(?=<section id=|</main>)', html, re.DOTALL)[0]


def rows(part):
    """Return the cells of every row of a part's tables, each as (text, whether it is bold)."""
    found = []
    for row in re.findall(r"<tr>(<th scope=\"row\".*?)</tr>", part, re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        texts = [unescape(re.sub("<small>.*</small>|<[^>]+>", "", cell)) for cell in cells]
        found.append(list(zip(texts, ["<strong>" in cell for cell in cells], strict=True)))
    return found


def test_the_page_has_every_section_and_a_way_there(html):
    assert re.findall(r'<section id="(.*?)"', html) == list(SECTIONS)
    assert dict(re.findall(r'<li><a href="#(.*?)">(.*?)</a>', html)) == SECTIONS
    for name in SECTIONS:
        assert len(re.sub("<[^>]*>", "", section(html, name))) > 60, name
    assert "Left out" not in html


def test_scores_are_those_of_the_folder_and_the_best_is_bold(made, html):
    run = made[0]
    scores = json.loads((run / "metrics.json").read_text())["test"]
    table = rows(section(html, "scores"))
    assert len(table) == len(KEYS)
    for key, (_, *cells) in zip(KEYS, table, strict=True):
        values = [each[key] for each in scores.values()]
        assert [text for text, _ in cells] == [NONE if value is None else f"{value:.4f}" for value in values]
        known = {i: abs(v - 0.9) if key == "coverage_90" else v for i, v in enumerate(values) if v is not None}
        assert [i for i, (_, bold) in enumerate(cells) if bold] == [i for i in known if known[i] == min(known.values())]
    for key in ("crps", "joint_log_score"):
        assert f"{scores['eve'][key]:.4f}" in section(html, "run")


def test_what_was_trained_and_how_to_repeat_it(made, html):
    run, data, _ = made
    told = unescape(section(html, "run"))
    for text in ("2 series", "300 rows from 01 Jan 2024", "4 units", "2 of 2 epochs", "conjugate", "Python 3."):
        assert text in told
    again = unescape(section(html, "again"))
    assert f"eve-pyro fit {data} --recipe {run}/config.toml --twin --out {run}-again" in again
    assert (run / "config.toml").read_text().strip() in unescape(section(html, "configuration"))


def test_the_volatility_unit_is_told_apart(html):
    told = unescape(section(html, "census"))
    assert "States of the units of eve.z" in told
    assert "States of the units of volatility.z" not in told
    assert "No band holds the volatility unit" in told
    assert len(re.findall("through training, on validation windows", told)) == 1
    assert "4 units above a volatility unit" in section(html, "run")
    groups = [row[0][0] for row in rows(section(html, "units"))]
    assert groups[:3] == ["the dearest 2", "2 of the others, at random", "the volatility unit"]
    assert "Where the dearest units of eve.z stand" in section(html, "units")


def test_the_exact_posterior_is_ahead_of_independent_units(html):
    told = section(html, "fidelity")
    assert re.search(r"Independent units, refined for each window by itself, lie [\d.]+ ± [\d.]+ nats", told)
    assert "the ELBO lies 0 nats a window below" in told


def test_names_of_the_users_are_text(html):
    assert "<b>bold" not in html
    pages = [unescape(name) for name in re.findall(r'data-page="(.*?)"', html)]
    assert pages == NAMES
    drawn = unescape(section(html, "forecasts"))
    assert all(f"{name}, from " in drawn for name in NAMES)


def test_the_page_fetches_nothing(html):
    assert not re.findall(r"https?:|@import|<link|<iframe", html)
    sources = re.findall(r'(?:src|href)="(.*?)"', html)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    names = re.findall(r'\bid="(.*?)"', html)
    assert used <= set(names)
    assert len(names) == len(set(names))


def test_what_does_not_apply_is_said(bare):
    html = unescape(bare.read_text(encoding="utf-8"))
    assert "Left out: the guide gives a point for site 'volatility.z'" in section(html, "fidelity")
    assert "no twin to compare with" in section(html, "scores")
    assert "no twin to compare with" in section(html, "uncertainty")
    assert "--twin" not in section(html, "again")
    assert re.findall(r'<section id="(.*?)"', html) == list(SECTIONS)


def test_a_drawing_takes_the_pages_ink_and_stacks_where_it_is_narrow():
    history = pd.DataFrame({"epoch": [0, 1], "train_loss": [3.0, 2.0], "val_loss": [4.0, 3.0], "val_crps": [0.5, 0.4]})
    name = "id=3 font: 3px #222222"  # what looks like a drawing's own words is a name
    drawing = pictures.drawn(plots.training_curves({name: history}), 'loss & "score"', "curves")
    wide, narrow = re.findall(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)" role="img" aria-label="(.*?)"', drawing)
    assert wide[2] == narrow[2] == "loss &amp; &#34;score&#34;"
    assert float(wide[0]) > 2 * float(wide[1])  # two panels side by side
    assert float(narrow[0]) < float(narrow[1])
    assert "epoch</text>" in drawing
    assert f"{name}, training</text>" in drawing
    assert "var(--blue)" in drawing
    assert "currentColor" in drawing
    assert "#0072b2" not in drawing.lower()


def test_a_drawing_too_large_becomes_a_picture_of_dots(monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 100)
    history = pd.DataFrame({"epoch": [0], "train_loss": [3.0], "val_loss": [4.0], "val_crps": [0.5]})
    drawing = pictures.drawn(plots.training_curves({"eve": history}), "loss", "curves")
    found = re.findall(r'<img class="dots" alt="loss" src="data:image/png;base64,(.*?)">', drawing)
    assert [base64.b64decode(data)[:4] for data in found] == [b"\x89PNG"] * 2


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["eve-pyro", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return done.value.code, capsys.readouterr()


def test_the_command_writes_the_same_page_once(made, monkeypatch, capsys):
    run, data, page = made
    code, said = call(monkeypatch, capsys, "report", run, data)
    assert (code, f"{run}/report.html: " in said.out) == (0, True)
    assert (run / "report.html").read_bytes() == page.read_bytes()
    code, said = call(monkeypatch, capsys, "report", run, data)
    assert (code, "report.html exists already: choose another --out" in said.err) == (2, True)
    code, said = call(monkeypatch, capsys, "report", run.parent / "nowhere", data)
    assert (code, "nowhere holds no run: there is no config.toml in it" in said.err) == (2, True)
    assert "demo" in call(monkeypatch, capsys, "report", "--help")[1].out
    assert "eve-pyro report" in call(monkeypatch, capsys, "fit", "--help")[1].out


def edit_metrics(folder):
    tree = json.loads((folder / "metrics.json").read_text())
    del tree["test"]["twin"]["energy_score"]
    (folder / "metrics.json").write_text(json.dumps(tree))


BROKEN = [
    (lambda folder: (folder / "metrics.json").unlink(), "is not done: there is no metrics.json in it"),
    (lambda folder: (folder / "metrics.json").write_text("{"), "cannot read .*metrics.json"),
    (lambda folder: (folder / "metrics.json").write_text("[]"), "another version: it has no windows"),
    (edit_metrics, r"another version: it has no test\.twin\.energy_score"),
    (lambda folder: (folder / "history.csv").unlink(), "there is no history.csv in it"),
    (lambda folder: (folder / "twin" / "history.csv").write_text(""), r"cannot read .*twin/history\.csv"),
    (lambda folder: (folder / "census.csv").write_text("step,unit\n1,2\n"), "census.csv is of another version"),
    (lambda folder: (folder / "units.csv").write_text("site,unit,kl,energy,scale,sampled\n"), "has no rows"),
    (lambda folder: (folder / "config.toml").unlink(), "holds no run"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_folder_that_is_not_whole_is_one_line(made, tmp_path, damage, message):
    run, data, _ = made
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(ValueError, match=message) as caught:
        write_report(tmp_path / "run", Panel.from_file(data), str(data), tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_other_data_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"was trained on other data than other\.csv"):
        write_report(made[0], make_panel(300, 2, seed=9), "other.csv", tmp_path / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = find_browser()
    if binary is None:
        pytest.skip("there is no Chromium to open the page with")
    with Browser(binary, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


PROBE = """({
    wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length,
    images: document.images.length,
    empty: [...document.querySelectorAll("figure")].filter(f => f.getBoundingClientRect().width > 0 &&
        [...f.querySelectorAll("svg, img")].filter(p => p.getBoundingClientRect().width > 200).length !== 1).length,
    pages: [...document.querySelectorAll("[data-page]")].filter(p => p.getBoundingClientRect().height > 0).length,
    ground: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("which", ["made", "bare"])
def test_a_browser_finds_the_page_whole(browser, request, which, width):
    fixture = request.getfixturevalue(which)
    page = fixture if which == "bare" else fixture[2]
    browser.open(page, width)
    found = browser.value(PROBE)
    assert browser.seen("Runtime.exceptionThrown") == browser.seen("Log.entryAdded") == []
    asked = {event["request"]["url"].split(":")[0] for event in browser.seen("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
    assert found["wider"] <= 0
    assert found["broken"] == 0
    assert (found["images"] > 0) == (which == "bare")
    assert found["empty"] == 0
    assert browser.screenshot()[:4] == b"\x89PNG"


def test_a_browser_pages_through_the_series(browser, made):
    browser.open(made[2], 1440)
    assert browser.value(PROBE)["pages"] == 1
    title = "document.querySelector('[data-page]:not([hidden])').dataset.page"
    assert browser.value(title) == NAMES[0]
    browser.value("document.querySelector('[aria-label=Next]').click()")
    assert browser.value(title) == NAMES[1]
    browser.value("document.querySelector('[aria-label=Next]').click()")
    assert browser.value(title) == NAMES[0]
    light = browser.value(PROBE)["ground"]
    browser.open(made[2], 1440, dark=True, scripts=False)
    found = browser.value(PROBE)
    assert found["pages"] == len(NAMES)  # all there without scripts
    assert found["ground"] != light

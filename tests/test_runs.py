"""Configurations, what they build, and run folders that read back."""

import json
import pickletools
import tomllib

import pytest
import torch
from conftest import make_panel

from eve_pyro.builder import build
from eve_pyro.cli_data import with_standard_rows
from eve_pyro.config import check, from_toml, load_recipe, recipe_names, to_toml
from eve_pyro.data import Scaler, Split, make_windows
from eve_pyro.guides import PointGuide
from eve_pyro.infer.forecast import forecast
from eve_pyro.infer.local_elbo import LocalELBO
from eve_pyro.naive import naive_scores, repeat_last, seasonal_naive
from eve_pyro.runs import claim_folder, free_folder, load_run, save_run

SMALL = {"context_length": 24, "horizon": 6, "units": 4, "hidden": 8, "features": 12, "batch_size": 64}


@pytest.mark.parametrize("name", ["factor", "conditional", "paper", "trajectory"])
def test_recipes_build_train_a_step_and_survive_toml(name, tmp_path):
    assert name in recipe_names()
    config = load_recipe(name, SMALL)
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert from_toml(tmp_path / "c.toml") == load_recipe(str(tmp_path / "c.toml")) == config
    windows = make_windows(make_panel(), 24, 6)
    for twin in (False, True):
        built = build(config, twin)
        loss = built.elbo.differentiable_loss(built.model, built.guide, *windows.train[:8])
        loss.backward()
        assert torch.isfinite(loss)


def test_what_a_recipe_of_ones_own_has_can_be_left_out_again(tmp_path):
    own = load_recipe("factor", {"held": "scales", "rows": (700, 100, 200)})
    (tmp_path / "own.toml").write_text(to_toml(own))
    assert load_recipe(str(tmp_path / "own.toml"), {"held": "none", "rows": None}) == load_recipe("factor")
    with pytest.raises(ValueError, match="guide"):
        load_recipe("factor", {"guide": "none"})


@pytest.mark.parametrize("guide", ["future_aware", "context", "delta", "autoregressive", "low_rank", "flow"])
def test_the_hidden_width_reaches_every_network(guide):
    path = {"path": 2, "stride": 4, "prior": "ar1"} if guide == "autoregressive" else {"prior": "standard"}
    built = build(load_recipe("conditional", SMALL | path | {"guide": guide}))
    assert not [name for name, value in built.weights().named_parameters() if 256 in value.shape]


def test_rows_of_a_recipe_file_go_before_the_standard_split(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(to_toml(load_recipe("factor", {"rows": (700, 100, 200)})))
    assert with_standard_rows("ETTh1.csv", str(own), {}) == {}
    assert with_standard_rows("ETTh1.csv", str(own), {"rows": (1, 2, 3)}) == {"rows": (1, 2, 3)}
    own.write_text(to_toml(load_recipe("factor")))  # its fractions are anybody's
    assert with_standard_rows("ETTh1.csv", str(own), {}) == {"rows": (8640, 2880, 2880)}
    assert with_standard_rows("other.csv", "factor", {}) == {}


def test_the_recipes_are_those_of_the_design():
    factor, conditional, paper = (load_recipe(name) for name in ("factor", "conditional", "paper"))
    assert (factor.model.prior, factor.guide.guide, factor.model.readout) == ("standard", "conjugate", "factor")
    assert (factor.model.volatility, factor.training.monitor) == (True, "last")
    assert not conditional.model.volatility
    assert not paper.model.volatility
    assert (factor.objective.objective, factor.objective.alpha) == ("composite", 0.5)
    assert (conditional.model.prior, conditional.guide.guide) == ("contextual", "future_aware")
    assert (conditional.objective.objective, conditional.objective.alpha) == ("predictive", 0.9)
    assert (paper.model.prior, paper.guide.guide, paper.objective.objective) == ("standard", "context", "mixture")
    assert (factor.control.regime, paper.control.regime) == ("off", "homeostasis")


def test_the_twin_is_the_same_network_with_points_for_units():
    config = load_recipe("factor", SMALL)
    eve, twin = build(config), build(config, twin=True)
    assert isinstance(twin.guide, PointGuide)
    assert (twin.elbo.beta, twin.elbo.objective) == (0.0, "elbo")
    assert twin.model.readout.loadings is None
    ours, theirs = eve.model.state_dict(), twin.model.state_dict()
    assert set(ours) - set(theirs) == {"readout.loadings", "readout.gain.weight", "readout.gain.bias"}
    for name in theirs:
        assert (ours[name] == theirs[name]).all(), name


def test_the_twins_loss_is_the_likelihood_alone_and_sees_no_future():
    twin = build(load_recipe("conditional", SMALL), twin=True)
    twin.weights().eval()  # no dropout
    context, future = make_windows(make_panel(), 24, 6).train[:8]
    loss = twin.elbo.differentiable_loss(twin.model, twin.guide, context, future)
    assert loss.item() == pytest.approx(-float(twin.elbo.terms.log_likelihood.sum()), rel=1e-6)
    posterior = [twin.guide.posterior(context, y).mean for y in (future, future + 9)]
    assert (posterior[0] == posterior[1]).all()


BAD_OPTIONS = [
    ({"units": 0}, r"model\.units = 0: input should be greater than or equal to 1"),
    ({"alpha": 1.5}, r"objective\.alpha = 1.5"),
    ({"guide": "psychic"}, r"guide\.guide = 'psychic': input should be 'future_aware', 'context', 'delta'"),
    ({"horizon": 0}, r"data\.horizon = 0"),
    ({"learning_rate": "fast"}, r"training\.learning_rate = 'fast'"),
    ({"colour": 1}, "unknown option 'colour'"),
    ({"rows": [1, 2]}, r"data\.rows"),
]


@pytest.mark.parametrize(("change", "message"), BAD_OPTIONS)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("factor", change)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'best'; choose one of conditional, factor, paper, trajectory"):
        load_recipe("best")
    with pytest.raises(ValueError, match=r"no configuration at .*gone\.toml"):
        load_recipe(str(tmp_path / "gone.toml"))
    (tmp_path / "broken.toml").write_text("a = [")
    with pytest.raises(ValueError, match="no valid TOML"):
        load_recipe(str(tmp_path / "broken.toml"))
    with pytest.raises(ValueError, match=r"unknown option 'colour' in \[model\]"):
        check({"model": {"colour": 1}})
    with pytest.raises(ValueError, match="unknown section 'modle'"):
        check({"modle": {}})
    with pytest.raises(ValueError, match="version 99"):
        check({"version": 99})


@pytest.fixture
def run(tmp_path):
    config = load_recipe("factor", SMALL)
    scaler = Scaler.fit(make_panel(), Split())
    eve, twin = build(config), build(config, twin=True)
    with torch.no_grad():
        for parameter in eve.weights().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_run(tmp_path / "run", config, scaler, eve, twin)
    return tmp_path / "run", config, scaler, eve


def test_a_saved_forecaster_forecasts_the_same_when_loaded(run):
    folder, config, scaler, eve = run
    loaded = load_run(folder)
    assert (loaded.config, dict(loaded.scaler.mean)) == (config, dict(scaler.mean))
    assert loaded.twin is not None
    windows = make_windows(make_panel(), 24, 6, scaler=loaded.scaler).test
    paths = [forecast(pair.model, pair.guide, windows, 5).paths for pair in (eve, loaded.eve)]
    assert (paths[0] == paths[1]).all()


def test_a_run_folder_holds_text_and_safetensors_and_no_pickle(run):
    folder, *_ = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.toml", "scaler.json", "weights.safetensors", "twin/weights.safetensors"}
    tomllib.loads((folder / "config.toml").read_text())
    json.loads((folder / "scaler.json").read_text())
    with pytest.raises(ValueError, match=r"opcode|pickle"):
        list(pickletools.genops((folder / "weights.safetensors").read_bytes()))


def test_loading_trains_nothing_and_leaves_the_random_state(run):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_run(run[0])
    assert (torch.rand(2) == expected).all()


def edit(path, old, new, count=-1):
    path.write_text(path.read_text().replace(old, new, count))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: edit(f / "config.toml", "units = 4", "units = 5"), r"does not fit its configuration: .* instead of"),
        (lambda f: edit(f / "config.toml", 'prior = "standard"', 'prior = "learned"'), "it has no 'model.layer.prior"),
        (lambda f: edit(f / "config.toml", "version = 1", "version = 7"), "version 7, the library reads version 1"),
        (lambda f: (f / "weights.safetensors").unlink(), "there are no weights at"),
        (lambda f: (f / "weights.safetensors").write_text("junk"), "no safetensors file"),
        (lambda f: (f / "scaler.json").write_text("{"), "cannot read .*scaler.json"),
        (lambda f: (f / "config.toml").unlink(), "holds no run"),
        (lambda f: (f / "scaler.json").write_text('{"mean": 1, "deviation": 2}'), "cannot read .*scaler.json"),
        (lambda f: edit(f / "scaler.json", '"s1"', '"s2"', 1), "name different series"),
    ],
)
def test_a_run_that_does_not_fit_together_is_refused(run, harm, message):
    harm(run[0])
    with pytest.raises(ValueError, match=message):
        load_run(run[0])


def test_folders_that_hold_something_are_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    assert claim_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="already holds something"):
        claim_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="already holds something"):
        claim_folder(tmp_path / "run" / "mine.txt")
    with pytest.raises(ValueError, match="cannot create"):
        claim_folder(tmp_path / "run" / "mine.txt" / "below")
    assert free_folder(tmp_path / "run") == tmp_path / "run-2"
    assert free_folder(tmp_path / "other") == tmp_path / "other"


def test_naive_forecasts_by_hand():
    windows = make_windows(make_panel(), 24, 6).test
    context = windows[:3].context
    assert (repeat_last(windows, context)[0] == context[:, 0, -1:]).all()
    torch.testing.assert_close(seasonal_naive(windows, context)[0], context[:, 0, -7:-1])  # days: the week before
    scores = naive_scores(windows)
    batch = windows[:]
    error = batch.context[:, 0, -1:] - batch.future
    assert scores["repeat_last"]["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert (
        scores["repeat_last"]["crps"]
        == scores["repeat_last"]["mae"]
        == pytest.approx(float(error.abs().mean()), rel=1e-5)
    )
    assert scores["seasonal_naive"]["joint_log_score"] is None


def test_the_season_wraps_around_a_longer_horizon():
    windows = make_windows(make_panel(), 24, 10).test
    context = windows[:1].context
    expected = torch.cat([context[0, 0, -7:], context[0, 0, -7:-4]])
    torch.testing.assert_close(seasonal_naive(windows, context)[0, 0], expected)


def test_beta_of_the_recipe_reaches_the_elbo():
    built = build(load_recipe("paper", SMALL))
    assert isinstance(built.elbo, LocalELBO)
    assert (built.elbo.beta, built.elbo.num_particles, built.elbo.objective) == (0.1, 4, "mixture")

"""Presets fill in what nobody set by hand, and say so; with the paper's, a run is the oracle's."""

import pytest

from coordinator.fleet.planning import influence_of
from tests.numerics import oracle
from tests.numerics.same import assert_same
from tests.numerics.test_run_equals_oracle import run_fleet
from toolkit.config import Run, load_config
from toolkit.config.presets import OF_STRATEGY, PRESETS
from toolkit.config.settings import Origin
from toolkit.config.values import KEYS, convert_value
from toolkit.errors import ConfigError


def load(*overrides, tmp_path):
    return load_config(
        overrides=overrides, env={}, cwd_file=tmp_path / "none.toml", user_file=tmp_path / "none.toml"
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_made_of_settings_that_there_are(preset, tmp_path):
    for name, value in PRESETS[preset].items():
        assert f"run.{name}" in KEYS
        assert convert_value(f"run.{name}", value, Origin("preset")) == value
    settings = load(f"run.preset={preset}", tmp_path=tmp_path)
    for name, value in PRESETS[preset].items():
        assert getattr(settings.run, name) == value
        assert str(settings.origin(f"run.{name}")) == f"run.preset = {preset}"


def test_without_a_preset_nothing_changes(tmp_path):
    assert load(tmp_path=tmp_path).run == Run()


def test_only_the_best_lets_the_server_influence_devices(tmp_path):
    ways = {preset: influence_of(load(f"run.preset={preset}", tmp_path=tmp_path).run) for preset in PRESETS}
    assert ways == {"default": "", "paper": "", "best": "run.client_sync = prefix, run.server_logits = 1"}


def test_what_is_set_by_hand_wins(tmp_path):
    settings = load("run.preset=best", "run.round_steps=7", "run.client_sync=none", tmp_path=tmp_path)
    assert (settings.run.round_steps, settings.run.client_sync, settings.run.eval_every) == (7, "none", 5)
    assert str(settings.origin("run.round_steps")) == "--set run.round_steps"


def test_the_options_of_a_strategy_are_filled_in_one_by_one(tmp_path):
    settings = load(
        "run.preset=paper", "run.strategy=averaging", "run.strategy_options.bn=pooled", tmp_path=tmp_path
    )
    assert settings.run.strategy_options == OF_STRATEGY["paper"]["averaging"] | {"bn": "pooled"}
    assert load("run.preset=paper", tmp_path=tmp_path).run.strategy_options == {}


def test_a_preset_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.preset.*'papr'") as refused:
        load("run.preset=papr", tmp_path=tmp_path)
    assert "paper" in refused.value.hint


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_with_the_papers_preset_a_run_equals_the_oracle(strategy, tmp_path):
    """The oracle is older than every option: with all of them off, each weight is what it was without them."""
    run = load("run.preset=paper", f"run.strategy={strategy}", tmp_path=tmp_path).run
    recipe = {name: getattr(run, name) for name in (*PRESETS["paper"], "strategy", "strategy_options")}
    fleet = run_fleet(tmp_path / "fleet", rounds=2, **recipe)
    devices, server = oracle.play(
        fleet.jobs(), fleet.data(), fleet.rounds(), strategy=strategy, momentum="keep"
    )
    for name in fleet.members:
        assert_same(fleet.device(name), devices[name])
    # Under Averaging momentum is a device's own and no part of theta.
    is_theta = lambda name: strategy == "sequential" or not name.startswith("momentum/")  # noqa: E731
    assert_same(fleet.server(), {name: tensor for name, tensor in server.items() if is_theta(name)})

"""Exits at every stage, exits at the server, the server as a teacher: each equals the oracle bit for bit, on and together."""

import msgspec
import pytest

from tests.numerics import oracle_beyond
from tests.numerics.test_run_equals_oracle import CUTS
from tests.numerics.test_synchronised import assert_equals_oracle, fleet_for, run_fleet
from toolkit.errors import CutError
from toolkit.wire.job import Distillation

EXITS = ["layer1", "layer2"]
OPTIONS = {
    "all exits": {"all_exits": True},
    "exits that teach each other": {
        "all_exits": True,
        "self_distillation": 0.5,
        "distillation_temperature": 2.0,
    },
    "the server teaches": {"server_logits": 0.7},
    "exits at the server": {"server_exits": EXITS, "server_exit_weight": 0.4},
    "exits at the server's copies": {"server_exits": EXITS, "strategy": "averaging", "server_lr_factor": 2.0},
    "everything": {
        "all_exits": True,
        "self_distillation": 0.5,
        "server_logits": 0.7,
        "server_exits": EXITS,
        "client_sync": "prefix",
        "sync_every": 2,
        "strategy": "averaging",
    },
}


def how(options):
    return {
        "exits": options.get("server_exits", []),
        "exit_weight": options.get("server_exit_weight", 0.3),
        "lr_factor": options.get("server_lr_factor", 1.0),
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_equals_the_oracle(options, tmp_path):
    fleet = run_fleet(tmp_path, **({"client_sync": "none"} | options))
    assert_equals_oracle(fleet, **how(options))


def test_the_server_teaches_devices_that_come_back(tmp_path):
    with fleet_for(tmp_path, client_sync="none", server_logits=0.7) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.trained_in("dev1", 1))
        fleet.stop("dev1")
        fleet.run_until(lambda: fleet.round() == 3)
        fleet.start("dev1")
        fleet.run_until(lambda: fleet.coordinator.over)
    assert_equals_oracle(fleet)


def test_it_goes_on_after_the_coordinator_is_taken_up_again(tmp_path):
    options = {"server_logits": 0.7, "server_exits": EXITS, "strategy": "averaging"}
    options["strategy_options"] = {"momentum": "average"}
    with fleet_for(tmp_path, client_sync="none", **options) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.round() == 3)
        fleet.restart_coordinator()
        fleet.run_until(lambda: fleet.coordinator.over)
    assert_equals_oracle(fleet, **how(options))


@pytest.fixture(scope="module")
def with_everything(tmp_path_factory):
    return run_fleet(tmp_path_factory.mktemp("everything"), **OPTIONS["everything"])


MUTANTS = {
    "no distillation": {"among_exits": Distillation()},
    "another temperature": {"among_exits": Distillation(weight=0.5, temperature=2.0)},
    "a server that says nothing": {"from_server": Distillation()},
}


@pytest.mark.parametrize("changes", MUTANTS.values(), ids=MUTANTS)
def test_an_oracle_of_other_terms_is_not_equal(changes, with_everything, monkeypatch):
    for member in with_everything.members.values():
        monkeypatch.setattr(member, "job", msgspec.structs.replace(member.job, **changes))
    with pytest.raises(AssertionError, match="not equal"):
        assert_equals_oracle(with_everything, **how(OPTIONS["everything"]))


def test_an_oracle_that_weighs_the_servers_exits_otherwise_is_not_equal(with_everything):
    with pytest.raises(AssertionError, match="not equal"):
        assert_equals_oracle(with_everything, exits=EXITS, exit_weight=0.31)


def test_an_oracle_that_moves_exits_that_no_batch_ran_through_is_not_equal(with_everything, monkeypatch):
    """dev3 enters behind layer2: its batches run through neither exit, nor do their decay and momentum move."""
    rows = oracle_beyond.server_rows

    def all_the_heads(jobs, exits, exit_head):
        made = rows(jobs, exits, exit_head)
        heads = [row for row in made["dev2"] if row[0].startswith("server_exits.")]
        return made | {"dev3": [*made["dev3"], *heads]}

    monkeypatch.setattr(oracle_beyond, "server_rows", all_the_heads)
    with pytest.raises((AssertionError, AttributeError, TypeError)):
        assert_equals_oracle(with_everything, **how(OPTIONS["everything"]))


def test_every_exit_is_reported_on_its_own_route(with_everything):
    (report,) = [
        e.report for e in with_everything.events if getattr(e, "report", None) and e.report.round == 4
    ]
    of = {device.device: device for device in report.devices}
    n_before = {"dev1": 1, "dev2": 0, "dev3": 2, "dev4": 0}
    behind = {"dev1": ["layer2"], "dev2": EXITS, "dev3": [], "dev4": EXITS}
    for name in CUTS:
        assert len(of[name].shallow_accuracy) == n_before[name]
        assert sorted(of[name].server_exit_accuracy) == behind[name]
        assert all(0 <= share <= 1 for share in of[name].server_exit_accuracy.values())


def test_an_exit_that_no_server_has_is_refused(tmp_path):
    with fleet_for(tmp_path, client_sync="none", server_exits=["layer4"]) as fleet:
        fleet.start()
        with pytest.raises(
            CutError, match=r"'layer4'.*behind 'stem' stand layer1, layer2, layer3"
        ) as refused:
            fleet.run_until(lambda: fleet.coordinator.over)
        assert "layer" in refused.value.hint

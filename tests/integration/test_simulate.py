"""The simulated fleet: the same agents and coordinator, whatever carries their messages."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from coordinator.fleet.events import Ended, RoundClosed
from coordinator.store.ledger import StateLost, Void, read_ledger
from coordinator.store.run_record import read_record
from device_agent.course import Course
from tests.integration.small_scenario import run, with_run
from toolkit.cli.app import app
from toolkit.errors import CutError, HseeError, ModelError, RunError, UsageError
from toolkit.nn.compute import Numerics
from toolkit.nn.weights import load_tensors
from toolkit.simulate.actors import PacedServerModel
from toolkit.simulate.baselines.harness import MAKERS
from toolkit.simulate.data import load_fleet_data
from toolkit.simulate.results import summarise
from toolkit.simulate.simulation import simulate
from toolkit.simulate.times import UNIT_DEVICE_STEP_S

ROOT = Path(__file__).parents[2]


def digests(result):
    return {"server": result.server_digest} | {d.device: d.digest for d in result.devices}


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_in_memory_and_over_a_broker_it_comes_to_the_same_weights(strategy, scenario, tmp_path):
    scenario = with_run(scenario, strategy=strategy, rounds=2)
    memory = run(scenario, tmp_path / "memory")
    mqtt = run(msgspec.structs.replace(scenario, transport="mqtt"), tmp_path / "mqtt")
    assert digests(memory) == digests(mqtt)
    assert [d.accuracy for d in memory.devices] == [d.accuracy for d in mqtt.devices]
    assert all(d.up_bytes > 1000 and d.down_bytes > 0 for d in mqtt.devices)
    assert memory.wall_s is not None
    assert mqtt.wall_s is None


BEYOND = {
    "client_sync": "prefix",
    "sync_momentum": "average",
    "sync_codec": "float16+zstd",
    "round_steps": 3,
    "eval_every": 2,
    "all_exits": True,
    "self_distillation": 0.3,
    "server_logits": 0.5,
    "server_exits": ["hidden2"],
}


def test_so_it_does_when_the_server_influences_devices(scenario, tmp_path):
    scenario = with_run(scenario, rounds=4, strategy="averaging", **BEYOND)
    memory = run(scenario, tmp_path / "memory")
    mqtt = run(msgspec.structs.replace(scenario, transport="mqtt"), tmp_path / "mqtt")
    assert digests(memory) == digests(mqtt)
    exits = [sorted(device.exits) for device in memory.devices]  # cut after hidden1, hidden2, hidden1
    assert exits == [["hidden2"], ["hidden1"], ["hidden2"]]
    assert all(0 <= a.own <= 1 and a.common is not None for d in memory.devices for a in d.exits.values())
    alone = run(with_run(scenario, client_sync="none", server_logits=0.0), tmp_path / "alone")
    for with_server, without in zip(memory.devices, alone.devices, strict=True):
        assert with_server.digest != without.digest
        assert with_server.down_bytes > without.down_bytes + 3000


def test_the_devices_learn_the_same_under_every_strategy_and_the_server_does_not(scenario, tmp_path):
    found = {
        name: digests(run(with_run(scenario, strategy=name), tmp_path / name))
        for name in ("sequential", "averaging", "consolidated")
    }
    servers = {name: digest.pop("server") for name, digest in found.items()}
    assert found["sequential"] == found["averaging"] == found["consolidated"]
    assert len(set(servers.values())) == 3


@pytest.mark.parametrize("momentum", ["average", "keep"])
def test_how_many_copies_are_resident_changes_no_weight(momentum, scenario, tmp_path):
    found = []
    for n in (1, 2, 3):
        options = {"resident_copies": n, "momentum": momentum}
        of_n = with_run(scenario, strategy="averaging", strategy_options=options)
        found.append(digests(run(of_n, tmp_path / str(n))))
    assert found[0] == found[1] == found[2]


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("sequential", {}), ("averaging", {"momentum": "keep", "bn": "pooled"}), ("consolidated", BEYOND)],
)
def test_a_simulation_that_was_cut_off_comes_to_what_it_would_have(strategy, options, scenario, tmp_path):
    beyond = options if options is BEYOND else {"strategy_options": options}
    scenario = with_run(scenario, strategy=strategy, rounds=4, **beyond)
    through = run(scenario, tmp_path / "through")

    def cut_off(event):
        if isinstance(event, RoundClosed) and event.report.round == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(scenario, tmp_path / "cut", observe=cut_off)
    rounds = []
    again = run(
        scenario,
        tmp_path / "cut",
        observe=lambda e: rounds.append(e.report.round) if isinstance(e, RoundClosed) else None,
    )
    assert rounds == [3, 4]
    assert digests(again) == digests(through)
    assert again.devices[0].compute_s == pytest.approx(through.devices[0].compute_s)


@pytest.mark.parametrize("transport", ["memory", "mqtt"])
@pytest.mark.parametrize("last_event", [RoundClosed, Ended])
def test_cut_off_when_all_is_trained_it_is_only_evaluated(transport, last_event, scenario, tmp_path):
    scenario = msgspec.structs.replace(scenario, transport=transport)

    through = run(scenario, tmp_path / "through")

    def cut_off_at_the_end(event):
        at_last_round = isinstance(event, RoundClosed) and event.report.round == scenario.run.rounds
        if isinstance(event, last_event) and (at_last_round or last_event is Ended):
            raise KilledError

    with pytest.raises(KilledError):
        run(scenario, tmp_path / "cut", observe=cut_off_at_the_end)
    events = []
    again = run(scenario, tmp_path / "cut", observe=events.append)
    assert not any(isinstance(event, RoundClosed) for event in events)
    assert digests(again) == digests(through)
    assert read_record(tmp_path / "cut").status == "finished"


@pytest.mark.parametrize("step_s", [0, 1000])
def test_devices_that_were_ahead_of_the_server_when_it_was_cut_off_go_back(
    step_s, scenario, tmp_path, monkeypatch
):
    """However long a round really takes: a save within it would be of no round that was committed."""
    through = run(scenario, tmp_path / "through")
    applied, apply = [], PacedServerModel.apply
    seconds = itertools.count(step=step_s)
    monkeypatch.setitem(Course.__init__.__kwdefaults__, "clock", lambda: next(seconds))

    def apply_until_cut_off(self, device, batch, *, round_, seq):
        applied.append(round_)
        if applied.count(3) == 10:
            raise KilledError
        return apply(self, device, batch, round_=round_, seq=seq)

    with monkeypatch.context() as patch:
        patch.setattr(PacedServerModel, "apply", apply_until_cut_off)
        with pytest.raises(KilledError):
            run(scenario, tmp_path / "cut")
    ahead = [
        int(load_tensors(tmp_path / "cut" / "devices" / name / "training.safetensors")["cursor"][0])
        for name in scenario.names
    ]
    assert max(ahead) == 3  # of which round 2 is committed
    assert digests(run(scenario, tmp_path / "cut")) == digests(through)


def test_killed_at_any_moment_it_comes_to_the_same(scenario, tmp_path):
    scenario = with_run(scenario, rounds=12, strategy="averaging")
    expected = digests(run(scenario, tmp_path / "through"))
    folder, program = tmp_path / "killed", tmp_path / "program.py"
    (tmp_path / "scenario.json").write_bytes(msgspec.json.encode(scenario))
    program.write_text(
        "import msgspec, pathlib, sys\n"
        "from toolkit.simulate.scenario import Scenario\n"
        "from toolkit.simulate.simulation import simulate\n"
        "scenario = msgspec.json.decode(pathlib.Path(sys.argv[1]).read_bytes(), type=Scenario)\n"
        "def show(event):\n"
        "    print(type(event).__name__, flush=True)\n"
        "    if type(event).__name__ == 'RoundClosed': sys.stdin.readline()\n"
        "simulate(scenario, pathlib.Path(sys.argv[2]), n_seeds=1, observe=show)\n"
    )
    with subprocess.Popen(
        [sys.executable, program, tmp_path / "scenario.json", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as child:
        for n_closed in range(1, 4):
            while child.stdout.readline() != "RoundClosed\n":
                assert child.poll() is None
            if n_closed < 3:
                child.stdin.write("\n")
                child.stdin.flush()
        child.kill()
    assert child.returncode == -9
    assert digests(run(scenario, folder)) == expected
    assert not [entry for entry in read_ledger(folder / "ledger.jsonl") if isinstance(entry, StateLost)]


def test_a_lost_device_holds_nobody_up_for_long(scenario, tmp_path):
    scenario = msgspec.structs.replace(scenario, drops={"dev2": 2})
    seconds = []
    result = run(
        scenario,
        tmp_path / "run",
        observe=lambda e: seconds.append(e.report.seconds) if isinstance(e, RoundClosed) else None,
    )
    void = [e for e in read_ledger(tmp_path / "run" / "ledger.jsonl") if isinstance(e, Void)]
    assert {(e.device, e.round, e.reason) for e in void} == {("dev2", 2, "offline"), ("dev2", 3, "offline")}
    assert seconds[0] < 5
    assert 29 < seconds[1] < 40
    kept = {d.device: d.compute_s for d in result.devices}
    assert kept["dev2"] < kept["dev1"] / 2


def test_a_slow_device_takes_time_and_changes_no_weight(scenario, tmp_path):
    usual = run(scenario, tmp_path / "usual")
    slow = run(msgspec.structs.replace(scenario, slow={"dev3": 5.0}), tmp_path / "slow")
    assert digests(slow) == digests(usual)
    assert slow.wall_s > usual.wall_s * 3
    dev3 = slow.devices[2]
    n_steps = 3 * -(-dev3.n_train // 8)
    assert dev3.compute_s >= n_steps * 5 * UNIT_DEVICE_STEP_S * 0.9


def test_the_test_set_is_balanced_and_nobody_trains_on_it(scenario):
    data = load_fleet_data(scenario)
    assert len(set(data.test.class_counts.values())) == 1
    seen = [row.tobytes() for row in data.test.x]
    for own in data.devices.values():
        seen += [row.tobytes() for row in (*own.train.x, *own.held_out.x)]
    assert len(seen) == len(set(seen)) == 180


def test_seeds_are_runs_of_their_own(scenario, tmp_path):
    results = simulate(with_run(scenario, rounds=1), tmp_path / "seeds", n_seeds=2, observe=lambda _: None)
    assert [r.seed for r in results] == [0, 1]
    assert digests(results[0]) != digests(results[1])
    assert summarise(results).own["exit"].spread is not None
    assert (tmp_path / "seeds" / "seed-1" / "devices" / "dev1" / "segment.json").exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"cuts": ()}, UsageError, "Nothing says where"),
        ({"cuts": ("hiden1",)}, CutError, "Did you mean 'hidden1'?"),
        ({"drops": {"dev9": 1}}, UsageError, "unknown device 'dev9'"),
        ({"slow": {"dev9": 2.0}}, UsageError, "unknown device 'dev9'"),
        ({"baseline": "splitfed-shared", "cuts": ("hiden1",)}, CutError, "Did you mean 'hidden1'?"),
        (
            {"exits": ["hidden1"]},
            CutError,
            "no stage 'hidden1' to put an exit at; behind 'hidden1' stand hidden2, hidden3",
        ),
        ({"exits": ["hidden2"], "cuts": ("hidden2",)}, CutError, "behind 'hidden2' stands hidden3."),
        ({"head": "poled"}, ModelError, "Did you mean 'pooled'?"),
        ({"head": "conv"}, ModelError, "'conv' needs activations"),
    ],
)
def test_what_makes_no_sense_is_told(change, error, said, scenario, tmp_path):
    of_run = {"server_exits": change.pop("exits", []), "exit_head": change.pop("head", "pooled")}
    with pytest.raises(error) as caught:
        run(msgspec.structs.replace(with_run(scenario, **of_run), **change), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()  # what is mended can be simulated there


def test_a_folder_holds_one_simulation(scenario, tmp_path):
    run(with_run(scenario, rounds=1), tmp_path / "run")
    with pytest.raises(RunError, match="another simulation"):
        run(with_run(scenario, rounds=2), tmp_path / "run")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "note.txt").write_text("mine")
    with pytest.raises(HseeError, match="holds no simulation"):
        run(scenario, tmp_path / "else")


def test_the_command_plans_from_profiles_and_prints_json(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "toolkit.cli.entry", "simulate", "--devices", "3", "--rounds", "1"),
            *(
                "--model",
                "resnet_small",
                "--profiles",
                "small,middle,strong",
            ),
            *("--strategy", "averaging", "--option", "momentum=reset", "--json", "-o", tmp_path / "run"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["success"] is True
    assert told["scenario"]["run"]["strategy_options"] == {"momentum": "reset"}
    assert told["summary"]["common"].keys() == {"exit", "server"}
    assert {curve["cut"] for curve in told["seeds"][0]["inference"]} == {
        device["cut"] for device in told["seeds"][0]["devices"]
    }
    assert "profiles" in told["seeds"][0]["times"]
    assert (tmp_path / "run" / "profiles" / "dev2.toml").exists()
    drawn = [Path(file).name for file in told["pictures"]]
    assert drawn == ["cut-map.svg", "learning.svg", "accuracy.svg", "threshold.svg"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--test", "digits", "--test-users", "1/5"], "--test and --test-users"),
        (["--test-users", "1/5", "--test-share", "0.1"], "--test-users and --test-share"),
    ],
)
def test_one_test_set_is_named(flags, said, tmp_path):
    done = CliRunner().invoke(app, ["simulate", *flags, "-o", str(tmp_path / "run")])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


@pytest.mark.parametrize("strategy", ["averaging", "consolidated"])
@pytest.mark.parametrize(
    "maker", ["of_other_numbers", "working_in_place", "with_nothing_to_learn", "with_drift"]
)
def test_odd_models_of_a_users_train_everything_on(maker, strategy, scenario, tmp_path):
    scenario = with_run(
        msgspec.structs.replace(scenario, cuts=("first", "second")),
        model=f"python:tests.numerics.models:{maker}",
        model_options={},
        strategy=strategy,
        rounds=1,
        round_steps=3,
        all_exits=True,
        self_distillation=0.1,
        server_exits=["third"],
        client_sync="prefix",
    )
    pictures = maker != "with_drift"
    digits = msgspec.structs.replace(scenario, data="digits") if pictures else scenario
    result = run(digits, tmp_path / "run")
    assert all(0 <= share.own <= 1 for device in result.devices for share in device.accuracy.values())


@pytest.mark.parametrize("trained", ["averaging", "splitfed-shared"])
def test_faster_numerics_train_the_same_network_nearly(trained, scenario, tmp_path):
    baseline = {"baseline": trained} if trained in MAKERS else {}
    scenario = with_run(
        msgspec.structs.replace(scenario, data="digits", cuts=("stem", "layer1"), **baseline),
        model="resnet_small",
        model_options={"width": 4},
        strategy="sequential" if baseline else trained,
        codec="float16",
        rounds=1,
        batch_size=32,
    )
    exact = run(scenario, tmp_path / "exact")
    fast = Numerics(precision="bfloat16", memory_format="channels_last")
    quick = run(msgspec.structs.replace(scenario, numerics=fast), tmp_path / "quick")
    assert digests(quick) != digests(exact)
    for one, other in zip(exact.devices, quick.devices, strict=True):
        for route in one.accuracy:
            assert abs(one.accuracy[route].common - other.accuracy[route].common) < 0.25

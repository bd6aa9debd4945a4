"""The commands over profiles: what they ask, write and print; measuring itself is tested elsewhere."""

import errno
import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from tests.mosquitto import free_port
from toolkit.cli import profile_commands
from toolkit.errors import (
    BrokerError,
    HseeError,
    InsecureBrokerError,
    MachineError,
    PlanError,
    ProfileError,
    UsageError,
)
from toolkit.plan.schema import read_plan
from toolkit.profile.link import Link
from toolkit.profile.link_apart import LinkOutcome
from toolkit.profile.locate import find_profile
from toolkit.profile.measure import MeasureInterruptedError
from toolkit.profile.schema import Profile, parse_profile, read_profile

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(profile_commands.profile)
app.command()(profile_commands.plan)
MODEL_PROFILE = "resnet_small-digits"
BOARDS = ["small", "middle", "strong"]
MODEL = ["profile", "--model", "resnet_small", "--classes", "10"]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_plan_names_every_device_its_cut_and_why():
    printed = run("plan", *BOARDS)
    made = read_plan(Path("plan.toml"))
    for device in made.devices:
        assert f"{device.device}: {device.cut}, {device.reason}" in printed
    assert "Links assumed, not measured: small, middle, strong" in printed
    assert "backward costs about twice the forward pass" in printed


def test_exit_accuracies_stand_beside_the_milliseconds():
    printed = run(
        "plan", *BOARDS, "--model-profile", MODEL_PROFILE, "--objective", "bytes", "--deadline", "60"
    )
    made = read_plan(Path("plan.toml"))
    assert "exit right" in printed
    assert f"{made.devices[0].exit_accuracy:.1%}" in printed
    assert "Objective: bytes (exact" in printed
    assert made.model_profile == MODEL_PROFILE


def test_a_weak_exit_is_ruled_out_in_words():
    printed = run("plan", "small", "--model-profile", MODEL_PROFILE, "--min-exit-accuracy", "0.98")
    assert "not stem: its exit answers" in printed
    assert read_plan(Path("plan.toml")).devices[0].cut != "stem"


def test_plan_in_json_is_the_plan():
    told = json.loads(run("plan", *BOARDS, "--json", "-o", "mine.toml"))
    assert {d["device"]: d["cut"] for d in told["plan"]["devices"]} == read_plan(Path("mine.toml")).cuts


def test_devices_are_named_pinned_and_given_their_batches():
    run(
        "plan",
        "kitchen=small",
        f"garage={find_profile('small')}",
        "--pin",
        "kitchen=layer2",
        "--batches",
        "7",
        "--batches",
        "garage=9",
    )
    kitchen, garage = read_plan(Path("plan.toml")).devices
    assert (kitchen.cut, kitchen.pinned, kitchen.n_batches) == ("layer2", True, 7)
    assert (garage.device, garage.n_batches) == ("garage", 9)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        (["plan", "small", "small"], UsageError, "small-1=small"),
        (["plan", "small", "--batches", "smal=3"], UsageError, "Did you mean 'small'"),
        (["plan", "small", "--batches", "0"], UsageError, "DEVICE=N"),
        (["plan", "small", "--pin", "layer1"], UsageError, "DEVICE=CUT"),
        (["plan", "small", "--codec", "float8"], PlanError, "float"),
        (["plan", "small", "--server-gflop-per-s", "nan"], UsageError, "above 0"),
        (["plan", "small", "--objective", "speed"], UsageError, "no objective"),
        (["plan", "small", "--min-exit-accuracy", "0.9"], PlanError, "no model profile"),
        (["plan", "small", "--deadline", "0"], PlanError, "above 0"),
        (["plan", "small", "--model-profile", "resnet_smal-digits"], ProfileError, "resnet_small-digits"),
        (["plan", "small", "--batch", "4096"], ProfileError, "--batch 4096"),
        (["plan", "a b=small"], PlanError, "can't be a device's name"),
        (["plan", "raspberry-pi-5"], ProfileError, "no measured step times"),
        (["plan", "none.toml"], ProfileError, "no profile file"),
        ([*MODEL, "--input", "8by8"], UsageError, "1x8x8"),
        ([*MODEL, "--input", "0x8x8"], UsageError, "1x8x8"),
        ([*MODEL, "--input", "1x8x8", "--emulate", "half"], UsageError, "25%,512"),
        ([*MODEL, "--input", "1x8x8", "--option", "width"], UsageError, "NAME=VALUE"),
        ([*MODEL, "--input", "1x8x8", "--link", "wify"], ProfileError, "Did you mean 'wifi'"),
        ([*MODEL, "--input", "1x8x8", "-o", "none/mine.toml"], UsageError, "no folder"),
        ([*MODEL, "--input", "1x8x8", "-o", "."], UsageError, "is a folder"),
        ([*MODEL, "--input", "1x8x8", "--onnx", "none.onnx"], UsageError, "no ONNX file"),
        ([*MODEL, "--input", "1x8x8", "--link", "wifi", "--broker", "127.0.0.1"], UsageError, "one of them"),
        ([*MODEL, "--input", "1x8x8", "--broker", "broker.example"], InsecureBrokerError, "TLS"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words: list[str], error: type[HseeError], match: str):
    with pytest.raises(error, match=match):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not list(Path().iterdir())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Profile:
    """What measuring would find: a shipped board's profile, at once."""
    found = msgspec.structs.replace(read_profile(find_profile("small")), link=None)
    monkeypatch.setattr("toolkit.profile.measure.measure", lambda *_args, **_options: found)
    return found


def test_a_full_disk_does_not_cost_what_was_measured(measured: Profile, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = CliRunner().invoke(app, [*MODEL, "--input", "1x8x8", "-o", "mine.toml"])
    assert isinstance(result.exception, MachineError)
    printed = result.stderr.partition("The profile above could not be written")[0]
    assert parse_profile(printed) == measured
    assert not list(Path().iterdir())


def test_ctrl_c_writes_what_was_measured(measured: Profile, monkeypatch: pytest.MonkeyPatch):
    partial = msgspec.structs.replace(measured, partial=True, cuts=measured.cuts[:1])

    def stopped(*_args: object, **_options: object) -> None:
        raise MeasureInterruptedError(partial)

    monkeypatch.setattr("toolkit.profile.measure.measure", stopped)
    result = CliRunner().invoke(app, [*MODEL, "--input", "1x8x8", "-o", "mine.toml"])
    assert result.exit_code == 130
    assert read_profile(Path("mine.toml")) == partial


def test_a_board_for_inference_only_is_told_so(measured: Profile, monkeypatch: pytest.MonkeyPatch):
    small = msgspec.structs.replace(
        measured, cuts=(), board=msgspec.structs.replace(measured.board, memory_bytes=256 * 2**20)
    )
    monkeypatch.setattr("toolkit.profile.measure.measure", lambda *_args, **_options: small)
    result = CliRunner().invoke(app, [*MODEL, "--input", "1x8x8", "-o", "mine.toml"])
    assert isinstance(result.exception, MachineError)
    assert "for inference only" in result.stdout
    with pytest.raises(PlanError, match="has no cuts") as caught:
        run("plan", "mine.toml")
    assert "for inference only" in caught.value.hint


def test_a_broker_lost_in_the_middle_leaves_a_partial_profile(
    measured: Profile, monkeypatch: pytest.MonkeyPatch
):
    found = Link(name="mqtt://b", provenance="measured", up_bytes_per_s=1e6, down_bytes_per_s=1e6, rtt_ms=1.0)
    outcomes = [LinkOutcome(link=found), LinkOutcome(link=found, failed="The broker went away.")]
    monkeypatch.setattr("toolkit.cli.profile_link.measure_apart", lambda *_args, **_options: outcomes.pop(0))
    result = CliRunner().invoke(app, [*MODEL, "--input", "1x8x8", "-o", "mine.toml", "--broker", "127.0.0.1"])
    assert isinstance(result.exception, BrokerError)
    kept = read_profile(Path("mine.toml"))
    assert (kept.partial, kept.link, kept.cuts) == (True, found, measured.cuts)


@pytest.mark.usefixtures("measured")
def test_an_unreachable_broker_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.profile.measure_link.CONNECT_S", 0.1)
    words = [*MODEL, "--input", "1x8x8", "-o", "mine.toml", "--broker", f"127.0.0.1:{free_port()}"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, BrokerError)
    assert not list(Path().iterdir())

"""The commands over profiles: what they ask, write and print; measuring itself is tested elsewhere."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from toolkit.cli import profile_commands
from toolkit.errors import HseeError, PlanError, ProfileError, UsageError
from toolkit.plan.schema import read_plan
from toolkit.profile.locate import find_profile

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(profile_commands.profile)
app.command()(profile_commands.plan)
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
        (["plan", "a b=small"], PlanError, "can't be a device's name"),
        (["plan", "raspberry-pi-5"], ProfileError, "no measured step times"),
        (["plan", "none.toml"], ProfileError, "no profile file"),
        ([*MODEL, "--input", "8by8"], UsageError, "1x8x8"),
        ([*MODEL, "--input", "0x8x8"], UsageError, "1x8x8"),
        ([*MODEL, "--input", "1x8x8", "--emulate", "half"], UsageError, "25%,512"),
        ([*MODEL, "--input", "1x8x8", "--option", "width"], UsageError, "NAME=VALUE"),
        ([*MODEL, "--input", "1x8x8", "--link", "wify"], ProfileError, "Did you mean 'wifi'"),
        ([*MODEL, "--input", "1x8x8", "-o", "none/mine.toml"], UsageError, "no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(words: list[str], error: type[HseeError], match: str):
    with pytest.raises(error, match=match):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not list(Path().iterdir())

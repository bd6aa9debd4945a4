"""What a run's settings wish of its plan, a plan file among them."""

from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.planning import ProfilePlanner, needs_measuring
from coordinator.fleet.registry import unite
from coordinator.fleet.wishes import wishes_of
from tests.unit.boards import FAST_SERVER, board, fleet
from toolkit.config import Run
from toolkit.errors import PlanError, ProfileError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, ServerInput
from toolkit.plan.schema import write_plan
from toolkit.profile.locate import find_profile
from toolkit.profile.schema import Profile, profile_text, read_profile
from toolkit.wire.messages import DataSummary, Hello


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    made = choose_cuts(
        fleet(board("a"), board("b")),
        server=FAST_SERVER,
        objective="bytes",
        memory_share=0.9,
        slack=0.2,
        pins={"a": "layer2"},
    )
    write_plan(tmp_path / "plan.toml", made)
    return tmp_path / "plan.toml"


def run_with(**settings) -> Run:
    return Run(**{"model": "net", "exit_head": "pooled", **settings})


def test_settings_alone_wish_what_they_say():
    wishes = wishes_of(
        run_with(
            objective="device-time", slack=0.1, min_exit_accuracy=0.9, model_profile="resnet_small-digits"
        ),
        ["a"],
    )
    assert (wishes.objective, wishes.slack, wishes.min_exit_accuracy, wishes.pins) == (
        "device-time",
        0.1,
        0.9,
        {},
    )
    assert wishes.exits is not None
    assert wishes.exits.exits[0].cut == "stem"


def test_a_plan_pins_the_cuts_of_those_who_joined_and_guides_the_others(plan_file: Path):
    wishes = wishes_of(run_with(plan=str(plan_file)), ["a", "c"])
    assert wishes.pins == {"a": "layer2"}
    assert (wishes.objective, wishes.memory_share, wishes.slack) == ("bytes", 0.9, 0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "mlp"}, "model is 'net', the run's is 'mlp'"),
        ({"batch_size": 64}, "batch_size is 32, the run's is 64"),
        ({"exit_head": "auto"}, "exit_head is 'pooled', the run's is 'auto'"),
    ],
)
def test_a_plan_for_another_job_is_refused(plan_file: Path, settings: dict[str, object], words: str):
    with pytest.raises(PlanError, match=words):
        wishes_of(run_with(plan=str(plan_file), **settings), ["a"])


def test_files_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(PlanError, match="no plan at"):
        wishes_of(run_with(plan=str(tmp_path / "none.toml")), [])
    with pytest.raises(ProfileError, match="Did you mean 'resnet_small-digits'"):
        wishes_of(run_with(model_profile="resnet_small-digit"), [])


def hello(device: str, profile: Profile, *, software: str = "hsee 0.1.0") -> Hello:
    return Hello(
        device=device,
        boot_nonce=bytes(16),
        protocols=[1],
        software=software,
        data=DataSummary(
            classes=[str(i) for i in range(10)],
            input_shape=[1, 8, 8],
            n_train=320,
            n_eval=64,
            mean=[0.0],
            var=[1.0],
            fingerprint="f" * 32,
        ),
        profile=profile_text(profile),
    )


SMALL = read_profile(find_profile("small"))
SERVER = ServerInput(flop_per_s=1e12)


def plan_of(settings: Run, *names: str) -> dict[str, str]:
    hellos = {name: hello(name, SMALL) for name in names}
    facts = unite([h.data for h in hellos.values()], classes=[])
    return ProfilePlanner(lambda _model, _run: SERVER).plan("r1", settings, facts, hellos).cuts


def test_the_coordinator_keeps_a_plans_cuts_and_plans_for_the_rest(tmp_path: Path):
    devices = [DeviceInput(name=name, profile=SMALL, n_batches=10) for name in ("a", "b")]
    write_plan(
        tmp_path / "plan.toml", choose_cuts(devices, server=SERVER, pins={"a": "layer2", "b": "layer1"})
    )
    cuts = plan_of(Run(plan=str(tmp_path / "plan.toml")), "a", "c")
    # Beside a device that takes so long, another may be cut as deep for nothing.
    assert cuts == {"a": "layer2", "c": "layer2"}
    assert plan_of(Run(), "a", "c") == {"a": "stem", "c": "stem"}


def test_the_coordinator_asks_for_exits_that_are_good_enough():
    free = plan_of(Run(slack=0), "a")
    good = plan_of(Run(slack=0, min_exit_accuracy=0.985, model_profile="resnet_small-digits"), "a")
    assert (free, good) == ({"a": "stem"}, {"a": "layer2"})


def changed_cut(**changes: int) -> Profile:
    """A profile of a model whose first cut is not what it is now."""
    first, *others = SMALL.cuts
    return msgspec.structs.replace(SMALL, cuts=(msgspec.structs.replace(first, **changes), *others))


@pytest.mark.parametrize(
    ("profile", "software", "asked"),
    [
        (SMALL, f"hsee {SMALL.provenance.software['hsee']}", False),
        (SMALL, "hsee 99.0", True),
        (SMALL, "another client in C", False),
        (board(), "hsee 0.1.0", True),
        (changed_cut(n_parameters=SMALL.cuts[0].n_parameters + 16), "hsee 0.1.0", True),
        (changed_cut(activation_bytes=2 * SMALL.cuts[0].activation_bytes), "hsee 0.1.0", True),
        (msgspec.structs.replace(SMALL, cuts=SMALL.cuts[:2]), "hsee 0.1.0", True),
        (msgspec.structs.replace(SMALL, cuts=SMALL.cuts[:2], partial=True), "hsee 0.1.0", False),
    ],
)
def test_a_profile_of_another_version_or_model_is_measured_anew(
    profile: Profile, software: str, *, asked: bool
):
    request = needs_measuring(Run(), hello("a", profile, software=software))
    assert (request is not None) is asked

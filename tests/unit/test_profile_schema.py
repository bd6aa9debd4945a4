"""Profiles as files: what is written is read back, and nonsense is named."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from toolkit.errors import MachineError, ProfileError
from toolkit.profile.link import Link, read_link
from toolkit.profile.locate import find_link, find_profile, profile_folders
from toolkit.profile.schema import (
    Board,
    CutRow,
    Emulation,
    Profile,
    Provenance,
    Training,
    fits,
    misfit,
    parse_profile,
    profile_text,
    read_profile,
    write_profile,
)
from toolkit.wire.job import ModelSpec
from toolkit.wire.limits import MAX_PROFILE_BYTES

MODEL = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10, options={"width": 8})
ROW = CutRow(
    cut="stem",
    step_ms_mean=1.5,
    step_ms_p50=1.4,
    step_ms_p95=2.5,
    n_steps=5,
    peak_memory_mb=300.5,
    flop=1,
    suffix_flop=2,
    n_parameters=3,
    activation_bytes=4,
)
PROFILE = Profile(
    schema=1,
    name="small",
    partial=True,
    provenance=Provenance(
        kind="emulated",
        date=dt.date(2026, 1, 2),
        machine="a machine",
        command="hsee profile",
        software={"torch": "2.9.0"},
        limits=Emulation(cpu_percent=20.0, memory_mb=512, mechanism="cgroup-v1"),
    ),
    board=Board(cpu="a processor", architecture="x86_64", n_cores=1, memory_bytes=2**29),
    link=Link(
        name="wifi",
        provenance="assumed",
        up_bytes_per_s=1e6,
        down_bytes_per_s=2e6,
        rtt_ms=5.0,
        sources=("a",),
    ),
    model=MODEL,
    training=Training(batch_size=32, exit_head="pooled", threads=1),
    cuts=(ROW, CutRow(cut="layer1", failed="killed")),
)
TEXT = profile_text(PROFILE)


def test_what_is_written_is_read_back():
    assert parse_profile(TEXT) == PROFILE


def test_units_and_their_meaning_stand_in_the_file():
    assert "peak_memory_mb = 300.5 # resident, whole process; of 2**20 bytes" in TEXT
    assert "flop = 1 # 2 x MAC" in TEXT


def test_a_profile_of_many_cuts_travels_in_a_hello():
    cuts = tuple(msgspec.structs.replace(ROW, cut=f"layer{i}") for i in range(60))
    assert len(profile_text(msgspec.structs.replace(PROFILE, cuts=cuts)).encode()) < MAX_PROFILE_BYTES


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("step_ms_mean", "step_mean", ["cuts[0].step_mean", "Did you mean 'step_ms_mean'?"]),
        ("[board]", "[bord]", ["'bord'", "Did you mean 'board'?"]),
        (
            "step_ms_mean = 1.5",
            "step_ms_mean = 'fast'",
            ["cuts[0].step_ms_mean", "Expected a number, got text"],
        ),
        ("step_ms_mean = 1.5", "step_ms_mean = nan", ["cuts[0].step_ms_mean", "nan is no number"]),
        ("step_ms_mean = 1.5", "step_ms_mean = inf", ["cuts[0].step_ms_mean", "inf is no number"]),
        ("step_ms_mean = 1.5", "step_ms_mean = 1e300", ["cuts[0].step_ms_mean", "< 1000000000"]),
        ("rtt_ms = 5.0", "rtt_ms = nan", ["link.rtt_ms", "nan is no number"]),
        ("peak_memory_mb = 300.5", "peak_memory_mb = -3", ["cuts[0].peak_memory_mb", ">= 0"]),
        (
            "peak_memory_mb = 300.5",
            "peak_memory_mb = '300 MB'",
            ["cuts[0].peak_memory_mb", "Expected a number"],
        ),
        ("peak_memory_mb = 300.5", "", ["cuts[0]", "peak_memory_mb above 0"]),
        ("step_ms_p95 = 2.5", "step_ms_p95 = 1.0", ["cuts[0]", "step_ms_p50 above step_ms_p95"]),
        ('cut = "layer1"', 'cut = "stem"', ["'stem' stands there twice"]),
        ("n_cores = 1", "n_cores = 1.5", ["board.n_cores", "Expected a whole number"]),
        ("cpu_percent = 20.0", "cpu_percent = 0", ["provenance.limits.cpu_percent"]),
        ("up_bytes_per_s = 1000000.0", "up_bytes_per_s = inf", ["link.up_bytes_per_s"]),
        ('kind = "emulated"', 'kind = "measured"', ["provenance", "limits belong to an emulated profile"]),
        ('kind = "emulated"', 'kind = "guessed"', ["provenance.kind", "guessed"]),
        ("schema = 1", "schema = 2", ["schema", "2 is not one of those this version knows"]),
        ('name = "small"', 'name = "../small"', ["name"]),
        ("n_classes = 10", "n_classes = 10 10", ["no valid TOML", "line"]),
        ('architecture = "x86_64"\n', "", ["board", "architecture"]),
    ],
)
def test_nonsense_is_named_with_file_and_key(tmp_path: Path, old: str, new: str, words: list[str]):
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert caught.value.exit_status == 3
    assert caught.value.hint


def test_cuts_in_another_order_are_no_profile():
    behind_less, behind_more = (
        msgspec.structs.replace(ROW, cut=cut, suffix_flop=flop)
        for cut, flop in (("layer2", 5), ("layer1", 6))
    )
    assert msgspec.structs.replace(PROFILE, cuts=(behind_more, behind_less)).cuts
    with pytest.raises(ValueError, match="cuts stand shallow first"):
        msgspec.structs.replace(PROFILE, cuts=(behind_less, behind_more))


def test_a_datasheet_never_carries_times():
    sheet = Provenance(kind="datasheet", date=dt.date(2026, 1, 2), machine="a board", sources=("a brief",))
    with pytest.raises(ValueError, match="no measured cuts"):
        msgspec.structs.replace(PROFILE, provenance=sheet)


def test_a_missing_file_is_a_profile_error(tmp_path: Path):
    with pytest.raises(ProfileError, match="There is no profile at"):
        read_profile(tmp_path / "none.toml")


def test_a_file_of_bytes_is_a_profile_error(tmp_path: Path):
    path = tmp_path / "picture.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="can't be read"):
        read_profile(path)


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("old")
    write_profile(path, PROFILE)
    assert read_profile(path) == PROFILE
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_told(tmp_path: Path):
    with pytest.raises(MachineError, match="can't be written"):
        write_profile(tmp_path / "none" / "mine.toml", PROFILE)


def test_a_profile_fits_its_own_job_only():
    assert fits(PROFILE, MODEL, batch_size=32, exit_head="pooled")
    for other in (
        {"name": "mlp"},
        {"input_shape": [1, 9, 9]},
        {"n_classes": 11},
        {"options": {"width": 16}},
    ):
        model = msgspec.structs.replace(MODEL, **other)
        assert next(iter(other)).replace("name", "model") in misfit(
            PROFILE, model, batch_size=32, exit_head="pooled"
        )
    assert "batch_size is 32, needed is 64" in misfit(PROFILE, MODEL, batch_size=64, exit_head="pooled")
    assert "exit_head" in misfit(PROFILE, MODEL, batch_size=32, exit_head="conv")


def test_shipped_boards_are_datasheets_or_emulated_and_links_are_assumed():
    folder = profile_folders()[-1]
    kinds = {
        p.stem: read_profile(p).provenance.kind
        for d in ("boards", "emulated")
        for p in (folder / d).iterdir()
    }
    assert set(kinds.values()) == {"datasheet", "emulated"}
    assert {"small", "middle", "strong", "raspberry-pi-zero-2-w", "raspberry-pi-5"} <= set(kinds)
    for path in (folder / "links").iterdir():
        assert read_link(path).provenance == "assumed"
        assert read_link(path).name == path.stem


def test_a_name_is_looked_for_in_the_environments_folders_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_profile(tmp_path / "small.toml", PROFILE)
    assert find_profile("small") != tmp_path / "small.toml"
    monkeypatch.setenv("HSEE_PROFILES", str(tmp_path))
    assert find_profile("small") == tmp_path / "small.toml"
    assert find_profile(str(tmp_path / "small.toml")) == tmp_path / "small.toml"
    assert find_link("wifi").stem == "wifi"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ProfileError, match="Did you mean 'ethernet'"):
        find_link("etherne")
    with pytest.raises(ProfileError, match="There is no profile file"):
        find_profile("none.toml")

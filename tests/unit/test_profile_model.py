"""Model profiles and links as files: the shipped ones, nonsense, and lines through measured points."""

import datetime as dt
from pathlib import Path

import msgspec
import pytest

from toolkit.errors import ProfileError
from toolkit.profile.link import Link, Transfer
from toolkit.profile.locate import find_link, find_model, find_profile
from toolkit.profile.model_profile import read_model_profile, write_model_profile
from toolkit.profile.schema import parse_profile, profile_text, read_profile

SHIPPED = find_model("resnet_small-digits")


def test_the_shipped_model_profile_says_where_it_comes_from(tmp_path: Path):
    made = read_model_profile(SHIPPED)
    assert made.provenance.seeds == (0, 1, 2)
    assert made.provenance.command.startswith("python -m toolkit.profile.central")
    assert [row.cut for row in made.exits] == ["stem", "layer1", "layer2"]
    assert all(0.9 < row.accuracy < row.server_accuracy + 0.05 for row in made.exits)
    write_model_profile(tmp_path / "again.toml", made)
    assert read_model_profile(tmp_path / "again.toml") == made


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("accuracy = 0.", "accuracy = 9.", "<= 1"),
        ("accuracy_min = 0.", "accuracy_min = 0.99", "accuracy_min <= accuracy"),
        ('cut = "layer1"', 'cut = "stem"', "stands there twice"),
        ("n_eval = ", "n_evals = ", "Did you mean 'n_eval'"),
        ("seeds = [0, 1, 2]", "seeds = []", "length"),
    ],
)
def test_a_model_profile_edited_into_nonsense_is_refused(tmp_path: Path, old: str, new: str, words: str):
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "edited.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ProfileError, match=words):
        read_model_profile(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("memory_bytes = 536870912", 'memory_bytes = "512 MB"', "Expected a whole number, got text"),
        ("memory_bytes", "memory_mb", "unknown"),
        ("step_ms_mean = ", "step_mean = ", "Did you mean 'step_ms_mean'"),
        ("step_ms_mean = ", "step_ms_mean = -", "Expected a number"),
        ("16 = ", '"sixteen" = ', "no batch size"),
        ("cpu_percent = 20", "cpu_percent = 0", "> 0"),
    ],
)
def test_a_boards_profile_edited_into_nonsense_is_refused(old: str, new: str, words: str):
    text = find_profile("small").read_text()
    assert old in text
    with pytest.raises(ProfileError, match=words):
        parse_profile(text.replace(old, new, 1))


def test_a_link_is_not_a_boards_profile_nor_a_models():
    for place in (find_link("wifi"), SHIPPED):
        with pytest.raises(ProfileError):
            read_profile(place)
    with pytest.raises(ProfileError, match="no profile named"):
        find_profile("resnet_small-digits")


def measured_link(*points: tuple[int, float, float]) -> Link:
    return Link(
        name="mqtt://b",
        provenance="measured",
        up_bytes_per_s=points[-1][1] if points else 1e6,
        down_bytes_per_s=1e6,
        rtt_ms=1.0,
        date=dt.date(2026, 1, 2),
        transfers=tuple(
            Transfer(payload_bytes=n, n_chunks=1, up_bytes_per_s=up, send_ms=ms) for n, up, ms in points
        ),
    )


def test_between_measured_sizes_a_link_is_read_off_a_line():
    link = measured_link((1000, 1e5, 1.0), (3000, 3e5, 2.0))
    assert [link.upload_ms(n) for n in (500, 1000, 2000, 6000)] == [5.0, 10.0, 10.0, 20.0]
    assert [link.send_ms(n) for n in (500, 2000, 6000)] == [1.0, 1.5, 2.0]
    assert measured_link().upload_ms(2000) == 2.0
    assert measured_link().send_ms(2000) == 0.0


def test_transfers_out_of_order_are_refused():
    with pytest.raises(ValueError, match="rising"):
        measured_link((3000, 1e5, 1.0), (1000, 3e5, 2.0))


def test_a_measured_link_travels_in_the_profile():
    board = msgspec.structs.replace(
        read_profile(find_profile("small")), link=measured_link((1000, 1e5, 1.0), (3000, 3e5, 2.0))
    )
    assert parse_profile(profile_text(board)) == board

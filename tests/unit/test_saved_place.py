"""What a board's first hello tells of its saved training: a restarted device has lost nothing."""

import pytest
import torch

from device_agent.saved_place import CURSOR, saved_place
from toolkit.nn.weights import save_tensors


def save(path, *cursor):
    save_tensors(path, {"weight": torch.ones(3, 2), CURSOR: torch.tensor(cursor)})


def test_the_place_is_that_of_the_newest_save_that_can_be_read(tmp_path):
    assert saved_place(tmp_path) == (0, 0)
    save(tmp_path / "training.before.safetensors", 3, 7, 9, 9)
    assert saved_place(tmp_path) == (3, 7)
    save(tmp_path / "training.safetensors", 4, 1, 9, 9)
    assert saved_place(tmp_path) == (4, 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"\x80xyz"],
)
def test_what_can_not_be_read_says_nothing(tmp_path, content):
    (tmp_path / "training.safetensors").write_bytes(content)
    assert saved_place(tmp_path) == (0, 0)
    save(tmp_path / "training.before.safetensors", 3, 7, 9, 9)
    assert saved_place(tmp_path) == (3, 7)

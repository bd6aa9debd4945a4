"""The profile of PROTOCOL.md, section 21, is one that a coordinator plans with, and the smallest."""

import re
from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.planning import needs_measuring
from tests.protocol.samples import HELLO
from toolkit.config import Run

TEXT = (Path(__file__).parents[2] / "toolkit/wire/PROTOCOL.md").read_text()
(PROFILE,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
KEYS = [line for line in PROFILE.splitlines() if " = " in line]
SETTINGS = Run(model="mlp", batch_size=32, exit_head="auto")


def is_taken(profile: str) -> bool:
    data = msgspec.structs.replace(
        HELLO.data, classes=["a", "b", "c"], input_shape=[8], mean=[0.0] * 8, var=[1.0] * 8
    )
    hello = msgspec.structs.replace(HELLO, software="an agent in C", data=data, profile=profile)
    return needs_measuring(SETTINGS, hello) is None


def test_it_is_taken():
    assert is_taken(PROFILE)


@pytest.mark.parametrize("line", KEYS)
def test_no_key_of_it_can_be_left_out(line):
    assert not is_taken(PROFILE.replace(line + "\n", "", 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_parameters = 1795", "n_parameters = 1796"),
        ("activation_bytes = 512", "activation_bytes = 516"),
        ("batch_size = 32", "batch_size = 16"),
        ('exit_head = "auto"', 'exit_head = "conv"'),
        ('cut = "hidden1"', 'cut = "hidden9"'),
        ("suffix_flop = 98304", "suffix_flop = -1"),
        ("partial = true", "partial = false"),
        ("schema = 1", "schema = 1\nmood = 1"),
    ],
)
def test_one_of_something_else_is_not_taken(old, new):
    assert is_taken(PROFILE)
    assert not is_taken(PROFILE.replace(old, new))

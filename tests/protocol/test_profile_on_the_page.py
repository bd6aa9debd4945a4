"""The profile of PROTOCOL.md, section 21, is one that a coordinator plans with, and the smallest; hostile ones cost little."""

import re
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.planning import needs_measuring
from tests.protocol.samples import HELLO
from toolkit.config import Run
from toolkit.errors import ProfileError
from toolkit.profile.schema import parse_profile

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


HOSTILE = {
    "a key of 16,000 parts": "a." * 16_000 + "a = 1",
    "a table of 15,000 parts": "[" + "a." * 15_000 + "a]",
    "a table of 8,000 quoted parts": "[" + '"a".' * 8_000 + "a]",
    "a key of many parts with blanks": "a . " * 8_000 + "a = 1",
    "a deep key in a table that takes any": "[provenance.software]\n" + "a." * 15_000 + "a = 1",
    "keys of 9 parts": "a.b.c.d.e.f.g.h.i = 1\n" * 1_000,
    "a number of 30,000 digits": "schema = " + "9" * 30_000,
    "a number of 30,000 hexadecimal digits": "schema = 0x" + "f" * 30_000,
    "a number of 4,301 digits": "schema = " + "9" * 4_301,
    "lists in lists": "a = " + "[" * 16_000 + "]" * 16_000,
    "tables in tables": "a = " + "{a=" * 8_000 + "1" + "}" * 8_000,
    "lists in a list of texts": "[provenance]\nsources = " + "[" * 16_000 + "]" * 16_000,
    "3,600 empty cuts": "[[cuts]]\n" * 3_600,
    "32,000 letters": "a" * 32_000,
    "quotes only": '"' * 32_000,
    "a number that is none": PROFILE.replace("5.1", "nan"),
    "an endless number": PROFILE.replace("5.1", "inf"),
    "a date that is none": PROFILE.replace("2026-11-25", "2026-13-45"),
}


@pytest.mark.parametrize("profile", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_profile_is_as_none_and_costs_little(profile):
    assert not is_taken("")  # what is loaded once is loaded
    began_s = time.thread_time()
    assert not is_taken(profile)
    assert time.thread_time() - began_s < 1.0
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert not is_taken(profile)
        assert tracemalloc.get_traced_memory()[1] - before <= 200 * len(profile) + 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_key_of_eight_parts_is_no_hostile_one():
    with pytest.raises(ProfileError, match="'a' is unknown"):
        parse_profile("a.b.c.d.e.f.g.h = 1")

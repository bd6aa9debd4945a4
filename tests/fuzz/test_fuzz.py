"""The committed corpus through every decoder, and the fuzzer itself: it finds what is broken, and the same seed does again."""

import gc

import pytest

from tests.fuzz.__main__ import CORPUS, corpus_of, main
from tests.fuzz.engine import OURS, Fuzzed
from tests.fuzz.targets import Target, make_targets
from tests.protocol.samples import BYE, NONCE
from toolkit.errors import RemoteProtocolError
from toolkit.wire import frames
from toolkit.wire.messages import AnyMessage, Bye

TARGETS = make_targets()


@pytest.mark.parametrize("name", list(TARGETS))
def test_what_was_found_before_is_still_stood(name):
    kept = corpus_of(name)
    assert kept
    fuzzed = Fuzzed(name, TARGETS[name], seed=0)
    for data in kept:
        assert fuzzed.try_one(data) is None


def test_the_corpus_is_small_and_of_targets_that_there_are():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    sizes = [path.stat().st_size for path in CORPUS.glob("*/*")]
    assert len(sizes) < 600
    assert sum(sizes) < 256 * 1024


def test_every_message_is_a_seed():
    taken = {type(frames.decode(data)[0]) for data in TARGETS["frame"].seeds}
    assert taken == set(AnyMessage.__args__)


def careless(data: bytes) -> None:
    """Breaks behind three conditions that no single change of a seed meets."""
    message, _ = frames.decode(data)
    if (
        isinstance(message, Bye)
        and message.device != "dev1"
        and message.reason != "stopped"
        and message.boot_nonce != NONCE
    ):
        raise IndexError


def test_a_bug_behind_conditions_is_found_and_its_seed_finds_it_again():
    gc.collect()  # or a finalizer of an earlier test's runs in one of them, and counts as a line that was reached
    target = Target(careless, (RemoteProtocolError,), [bytes(frames.encode(BYE))])
    findings = [Fuzzed("careless", target, seed=3, rooms=(*OURS, __file__)).run(60.0) for _ in range(2)]
    assert findings[0] is not None
    assert findings[0] == findings[1]
    assert findings[0].error.startswith("IndexError")
    with pytest.raises(IndexError):
        careless(findings[0].data)


def test_as_a_command_it_counts_prints_its_seed_and_replays(tmp_path, capsys):
    assert main(["--count", "3000", "--seed", "7", "--targets", "header,chunks"]) == 0
    assert capsys.readouterr().out.startswith("fuzz: seed 7, 2 targets, ")
    (tmp_path / "hello").write_bytes(TARGETS["frame"].seeds[0])
    assert main(["--targets", "frame", "--replay", str(tmp_path / "hello")]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["--targets", "nothing"])


def test_a_finding_is_kept_in_a_file_and_fails_the_command(tmp_path, monkeypatch, capsys):
    broken = Target(lambda data: data[1000], (RemoteProtocolError,), [b"x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.fuzz.__main__.make_targets", lambda: {"frame": broken})
    assert main(["--count", "10", "--seed", "7"]) == 1
    (kept,) = tmp_path.iterdir()
    out = capsys.readouterr().out
    assert f"replay: python -m tests.fuzz --targets frame --replay {kept.name}" in out
    with pytest.raises(IndexError):
        main(["--targets", "frame", "--replay", str(kept)])

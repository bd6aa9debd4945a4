"""Rows O1 to O5 of the promises: what reaches a board's place, what a kill leaves there, and how it comes back."""

import itertools
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.access.signing import OperatorKey, public_file
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.bundle.place import TRIAL_STARTS, Place
from toolkit.cli.entry import main
from toolkit.errors import BundleError, BundleSignatureError, MachineError, RunError
from toolkit.runtime import self_test as testing
from toolkit.runtime.cascade import Cascade
from toolkit.runtime.installing import install
from toolkit.runtime.placed import Placed
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.self_test import (
    SELF_TEST_FILE,
    as_raw,
    encode_self_test,
    memory_cap,
    noise,
    try_in_child,
)

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 4, tzinfo=UTC)


def passes(path, *, cap_bytes):
    """A self-test that takes no process."""
    assert cap_bytes > 100 * 1024**2
    assert path.exists()
    return "passed"


def archive_of(tmp_path, factor, *, content=None, expected=None):
    """An archive whose logits are ``factor`` times the sample."""
    name = f"of{factor}"
    manifest = manifest_of(scaling_segment(1))
    files = {"segment1.onnx": scaling_onnx(factor) if content is None else content}
    x = noise(manifest)
    logits = factor * normalise(as_raw(manifest, x), [0.0] * 3, [1.0] * 3)
    files[SELF_TEST_FILE] = encode_self_test(x, [logits if expected is None else expected])
    bundle = write_bundle(tmp_path / "made" / name, manifest, files)
    return write_archive(bundle, tmp_path / "archives" / f"{name}.hsee")


@pytest.fixture
def operator(tmp_path):
    return OperatorKey.create(tmp_path / "operator.key", comment="ours")


@pytest.fixture
def into(tmp_path):
    return tmp_path / "place"


def put(archive, into, **changes):
    return install(archive, into, **({"device": "dev1", "key": None, "self_test": passes} | changes))


def signed(operator, archive, **changes):
    operator.sign(open_bundle(archive), **({"now": NOW} | changes))
    return archive


def digest_at(into):
    return open_bundle(into / "bundle.hsee").digest


def test_a_bundle_takes_the_place_of_another_which_is_kept(tmp_path, into):
    first, second = (archive_of(tmp_path, factor) for factor in (1.0, 2.0))
    assert not put(first, into).replaced
    done = put(second, into)
    assert done.replaced
    assert done.found == "passed"
    assert digest_at(into) == done.digest == open_bundle(second).digest
    assert open_bundle(into / "previous.hsee").digest == open_bundle(first).digest
    assert not (into / "incoming.hsee").exists()
    assert put(second, into).unchanged
    assert main(["bundle", "revert", str(into)]) == 0
    assert digest_at(into) == open_bundle(first).digest
    with pytest.raises(BundleError, match="was tried here before"):
        put(second, into)
    assert put(second, into, again=True).replaced


def test_who_reads_the_old_one_reads_it_on(tmp_path, into):
    put(archive_of(tmp_path, 1.0), into)
    reading = open_bundle(into / "bundle.hsee")
    put(archive_of(tmp_path, 2.0), into)
    assert reading.read("segment1.onnx") == scaling_onnx(1.0)


def test_one_installation_at_a_time(tmp_path, into):
    archive = archive_of(tmp_path, 1.0)

    def meanwhile(_, **__):
        with pytest.raises(RunError, match="is being installed"):
            put(archive, into)
        return "passed"

    put(archive, into, self_test=meanwhile)


# what is refused, the old one running on


def check_refused(into, archive, error, complaint, **changes):
    before = digest_at(into)
    with pytest.raises(error, match=complaint):
        put(archive, into, **changes)
    assert digest_at(into) == before
    assert sorted(path.name for path in into.iterdir()) == ["bundle.hsee", "lock", "place.json"]


def test_what_an_attacker_sends_is_refused(tmp_path, into, operator):
    """Row O1, the five that are refused."""
    key = operator.public
    put(signed(operator, archive_of(tmp_path, 2.0), release=5), into, key=key)
    other = OperatorKey.create(tmp_path / "other.key", comment="theirs")
    arbitrary = signed(other, archive_of(tmp_path, 3.0), release=6)
    check_refused(into, arbitrary, BundleSignatureError, "was not signed by", key=key)
    rolled_back = signed(operator, archive_of(tmp_path, 4.0), release=4)
    check_refused(into, rolled_back, BundleSignatureError, "of release 4; 5 was here", key=key)
    twice = signed(operator, archive_of(tmp_path, 5.0), release=5)
    check_refused(into, twice, BundleSignatureError, "Two bundles call themselves release 5", key=key)
    anothers = signed(operator, archive_of(tmp_path, 6.0), release=6, devices=["dev2"])
    check_refused(
        into, anothers, BundleSignatureError, "was signed for dev2, and this board is dev1", key=key
    )
    mixed = archive_of(tmp_path, 7.0)
    signature = open_bundle(twice).fetch_signature(1 << 20)
    write_archive(open_bundle(mixed), mixed, replace=True, signature=signature)
    check_refused(into, mixed, BundleSignatureError, "of another bundle", key=key)
    endless = tmp_path / "endless.hsee"
    with endless.open("wb") as file:
        file.truncate(2**40)
    check_refused(into, endless, BundleError, "at most 536870912 are looked at", key=key)
    for_all = signed(operator, archive_of(tmp_path, 8.0), release=6, devices=["*"])
    assert put(for_all, into, key=key).statement.release == 6


def test_age_and_version_are_told_and_never_block(tmp_path, into, operator):
    """Row O1, the two that are shown: frozen (an old one for ever), fast-forwarded (a release far ahead)."""
    key = operator.public
    long_ago, ahead = NOW - timedelta(days=900), NOW + timedelta(days=900)
    frozen = put(signed(operator, archive_of(tmp_path, 1.0), now=long_ago, release=3), into, key=key)
    assert frozen.statement.age_days(NOW) == pytest.approx(900)
    forward = put(signed(operator, archive_of(tmp_path, 2.0), now=ahead, release=2**53), into, key=key)
    assert (forward.replaced, forward.statement.release) == (True, 2**53)
    assert main(["infer", str(into), "9,0,0.csv"]) == 1  # asks for its source, not for its age
    with pytest.raises(BundleSignatureError, match=f"{2**53} was here"):
        put(signed(operator, archive_of(tmp_path, 3.0)), into, key=key)
    assert put(signed(operator, archive_of(tmp_path, 4.0)), into, key=key, again=True).replaced


def test_a_roll_back_is_known_even_after_going_back(tmp_path, into, operator):
    key = operator.public
    for factor, release in ((1.0, 1), (2.0, 7)):
        put(signed(operator, archive_of(tmp_path, factor), release=release), into, key=key)
    Place(into).go_back(digest_at(into))
    between = signed(operator, archive_of(tmp_path, 3.0), release=6)
    with pytest.raises(BundleSignatureError, match="of release 6; 7 was here"):
        put(between, into, key=key)
    assert put(between, into, key=key, again=True).replaced


def test_a_board_that_comes_to_trust_an_operator_takes_the_next_signed_one(tmp_path, into, operator):
    put(archive_of(tmp_path, 1.0), into)
    check_refused(into, archive_of(tmp_path, 2.0), BundleSignatureError, "is not signed", key=operator.public)
    assert put(signed(operator, archive_of(tmp_path, 3.0)), into, key=operator.public).replaced


def test_damaged_missing_and_hostile_archives_are_refused(tmp_path, into):
    put(archive_of(tmp_path, 1.0), into)
    good = archive_of(tmp_path, 2.0)
    cut = tmp_path / "cut.hsee"
    cut.write_bytes(good.read_bytes()[:-9])
    check_refused(into, cut, BundleError, "not an archive")
    check_refused(into, tmp_path / "nowhere.hsee", BundleError, "can't be read")
    bomb = model_that(helper.make_node("ConstantOfShape", ["w"], ["logits"]))
    check_refused(into, archive_of(tmp_path, 3.0, content=bomb), BundleError, "refused unread")


def test_a_failed_self_test_changes_nothing(tmp_path, into):
    put(archive_of(tmp_path, 1.0), into)

    def fails(path, *, cap_bytes):
        del path, cap_bytes
        raise BundleError("The self-test failed.")

    check_refused(into, archive_of(tmp_path, 2.0), BundleError, "self-test", self_test=fails)


def test_no_space_is_told_before_anything_is_written(tmp_path, into, monkeypatch):
    put(archive_of(tmp_path, 1.0), into)
    from toolkit.runtime import installing

    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(installing.shutil, "disk_usage", lambda _: usage)
    check_refused(into, archive_of(tmp_path, 2.0), MachineError, "10 bytes free")


# the self-test, in its child


def model_that(*nodes):
    """A segment of other nodes, which take ``image`` and give ``logits`` and ``activations``."""
    ports = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])
        for name in ("image", "activations", "logits")
    }
    shape = numpy_helper.from_array(np.asarray([1 << 28], np.int64), "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["activations"]), *nodes],
        "g",
        [ports["image"]],
        [ports["activations"], ports["logits"]],
        [shape],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()


def test_the_self_test_tells_what_it_found(tmp_path):
    archive = archive_of(tmp_path, 2.0)
    cap = memory_cap(open_bundle(archive).manifest)
    assert try_in_child(archive, cap_bytes=cap) == "1 exits on 4 stored samples, largest difference 0.0e+00"
    wrong = archive_of(tmp_path, 3.0, expected=np.zeros((4, 3), np.float32))
    with pytest.raises(BundleError, match="does not answer its stored samples as it did"):
        try_in_child(wrong, cap_bytes=cap)


def test_what_takes_too_much_memory_fails_in_the_child_alone(tmp_path, capsys):
    grow = [
        helper.make_node("Shape", ["image"], ["s"]),
        helper.make_node("Concat", ["s", "w"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["logits"]),
    ]
    archive = archive_of(tmp_path, 1.0, content=model_that(*grow))
    onnx.checker.check_model(onnx.load_from_string(open_bundle(archive).read("segment1.onnx")))
    with pytest.raises(BundleError, match=r"self-test of .* failed") as caught:
        try_in_child(archive, cap_bytes=memory_cap(open_bundle(archive).manifest))
    assert "MB of memory, and nothing was changed" in caught.value.hint
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n")
    assert main(["infer", str(archive), str(source)]) == 1  # this process does not even load it
    assert "self-test of" in capsys.readouterr().err


def test_a_child_that_dies_or_hangs_is_told(tmp_path, monkeypatch):
    archive = archive_of(tmp_path, 2.0)
    # Not even ONNX Runtime fits; whether there is room left to say so is chance.
    with pytest.raises(BundleError, match=r"takes more memory than it may|was killed or died") as caught:
        try_in_child(archive, cap_bytes=8 * 1024**2)
    assert "at most 8 MB of memory, and nothing was changed" in caught.value.hint
    python = tmp_path / "python"
    monkeypatch.setattr(testing.sys, "executable", str(python))
    for does, cap_s, complaint in (
        ("kill -9 $$", 30, r"was killed or died \(status -9"),
        ("exec sleep 60", 0.3, "took longer than 0"),
    ):
        python.write_text(f"#!/bin/sh\n{does}\n")
        python.chmod(0o755)
        with pytest.raises(BundleError, match=complaint):
            try_in_child(archive, cap_bytes=2**30, timeout_s=cap_s)


# kills


def killed_at(step, archive, into):
    """Install in a process that ends without a word before its ``step``-th change of the disk; None: it got through."""
    child = os.fork()
    if child == 0:
        count = itertools.count()

        def counted(change):
            def wrapped(*words, **more):
                if next(count) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*words, **more)

            return wrapped

        for owner, names in (
            (os, ("fsync", "link", "replace", "rename", "open", "unlink")),
            (Path, ("replace", "unlink")),
        ):
            for name in names:
                setattr(owner, name, counted(getattr(owner, name)))
        try:
            put(archive, into)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path, into):
    archives = [archive_of(tmp_path, factor) for factor in (1.0, 2.0)]
    old, new = (open_bundle(archive).digest for archive in archives)
    seen = set()
    for step in range(200):
        put(archives[0], into, again=True)
        assert digest_at(into) == old
        status = killed_at(step, archives[1], into)
        found = digest_at(into)
        assert found in (old, new)
        seen.add((found == new, status))
        if status == 0:
            break
    assert step > 10
    assert seen == {(False, -9), (True, -9), (True, 0)}


# coming back by itself


def infer(into, *words):
    return subprocess.run(
        [sys.executable, "-m", "toolkit.cli.entry", "infer", str(into), "-", *words],
        input="9,0,0\n",
        capture_output=True,
        text=True,
        check=False,
        cwd=into,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_new_bundle_that_answers_stays(tmp_path, into, capsys):
    for factor in (1.0, 2.0):
        put(archive_of(tmp_path, factor), into)
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n")
    for _ in range(TRIAL_STARTS + 2):
        assert main(["infer", str(into), str(source)]) == 0
    told = capsys.readouterr()
    assert "runs again" not in told.err
    assert Place(into).state.on_trial is None


def test_a_new_bundle_that_never_answers_goes_back(tmp_path, into):
    archives = [archive_of(tmp_path, factor) for factor in (1.0, 2.0)]
    for archive in archives:
        put(archive, into)
    for _ in range(TRIAL_STARTS):  # each of these starts was killed before an answer
        assert Place(into).begin_start(digest_at(into))
    done = infer(into)
    assert done.returncode == 0
    assert "did not answer in 3 starts. The bundle before it runs again." in done.stderr
    assert digest_at(into) == open_bundle(archives[0]).digest
    with pytest.raises(BundleError, match="failed and was replaced"):
        put(archives[1], into)


@pytest.mark.parametrize("damage", ["flipped", "empty", "gone"])
def test_a_bundle_that_rots_goes_back(tmp_path, into, damage, capsys):
    archives = [archive_of(tmp_path, factor) for factor in (1.0, 2.0)]
    for archive in archives:
        put(archive, into)
    current = into / "bundle.hsee"
    content = current.read_bytes()
    current.unlink()
    if damage != "gone":
        at = content.index(b"factor")
        current.write_bytes(b"" if damage == "empty" else content[:at] + b"F" + content[at + 1 :])
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n")
    assert main(["infer", str(into), str(source)]) == 0
    assert "The bundle before it runs again." in capsys.readouterr().err
    assert digest_at(into) == open_bundle(archives[0]).digest


def test_twenty_bad_bundles_of_twenty_go_back(tmp_path, into):
    """Row O3: whichever byte of the model rots, and wherever it ends, the one before answers; nobody has to come."""
    archives = [archive_of(tmp_path, factor) for factor in (1.0, 2.0)]
    whole = archives[1].read_bytes()
    segment = scaling_onnx(2.0)  # what nobody reads to answer, the model card say, may rot
    begins = whole.index(segment)
    flips = np.linspace(begins, begins + len(segment) - 1, 10).astype(int).tolist()
    ends = np.linspace(0, len(whole) - 1, 10).astype(int).tolist()
    bad = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in flips]
    bad += [whole[:at] for at in ends]
    n_reverted = 0
    for content in bad:
        for archive in archives:
            put(archive, into, again=True)
        (into / "bundle.hsee").unlink()  # the one before it shares nothing with what rots
        (into / "bundle.hsee").write_bytes(content)
        notes = []
        placed = Placed(Place(into), Cascade, notes.append)
        [answer] = placed.cascade(np.asarray([[1.0, 0.0, 0.0]], np.float32))
        assert answer.probability == pytest.approx(0.576, abs=1e-3)
        placed.answered()
        assert digest_at(into) == open_bundle(archives[0]).digest
        assert notes[0].endswith("The bundle before it runs again.")
        n_reverted += 1
    assert n_reverted == 20


def test_both_gone_is_an_error(tmp_path, into, capsys):
    put(archive_of(tmp_path, 1.0), into)
    (into / "bundle.hsee").write_bytes(b"PK")
    assert main(["infer", str(into), "x.csv"]) == 1
    assert "is not an archive of a bundle" in capsys.readouterr().err


def test_an_update_takes_over_between_two_samples(tmp_path, into):
    put(archive_of(tmp_path, 1.0), into)
    running = subprocess.Popen(
        [sys.executable, "-m", "toolkit.cli.entry", "infer", str(into), "-", "--threshold", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def answer(row):
        running.stdin.write(row + "\n")
        running.stdin.flush()
        return running.stdout.readline().split()[4:6]

    assert answer("1,0,0")[1] == "57.6%"
    put(archive_of(tmp_path, 2.0), into)
    answer("1,0,0")
    assert answer("1,0,0")[1] == "78.7%"
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "runs from now on" in err
    assert out.startswith("3 samples")


def test_the_command(tmp_path, into, operator, capsys, monkeypatch):
    monkeypatch.setenv("HSEE_OPERATOR_KEY", str(public_file(tmp_path / "operator.key")))
    archive = archive_of(tmp_path, 2.0)
    words = ["bundle", "install", str(archive), "--into", str(into)]
    assert main([*words, "--id", "dev1"]) == 1
    assert "is not signed" in capsys.readouterr().err
    signed(operator, archive)
    assert main([*words, "--id", "dev2"]) == 1
    assert "this board is dev2" in capsys.readouterr().err
    assert main([*words, "--id", "dev1"]) == 0
    assert "1 exits on 4 stored samples" in capsys.readouterr().out

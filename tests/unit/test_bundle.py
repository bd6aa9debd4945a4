import errno
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment, write_tiny_bundle
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.bundle.manifest import MANIFEST_FILE, SCHEMA, PolicyRecord, Port, Variant
from toolkit.errors import BundleDigestError, BundleError, MachineError
from toolkit.runtime import load


def edited(folder, **changes):
    path = folder / MANIFEST_FILE
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def test_what_is_written_is_what_is_opened(tmp_path):
    written = write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest == written.manifest
    assert opened.digest == written.digest
    assert opened.read("segment2.onnx") == scaling_onnx(10.0, takes="activations_in")
    assert sorted(opened.manifest.files) == ["README.md", "segment1.onnx", "segment2.onnx"]
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_card_tells_a_person_what_this_is(tmp_path):
    card = write_tiny_bundle(tmp_path / "b").read("README.md").decode()
    for fact in ("ant, bee, cat", "trained on dev1", "`run1`", "stage1", "not measured", "threshold 0.5"):
        assert fact in card


@pytest.mark.parametrize("name", ["segment1.onnx", "README.md"])
def test_a_flipped_byte_is_found_in_every_file(tmp_path, name):
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleDigestError) as caught:
        open_bundle(bundle.folder)
    facts = caught.value.facts
    assert facts["file"] == name
    assert facts["expected"] == bundle.manifest.files[name].sha256
    assert facts["got"] != facts["expected"]


def test_a_file_changed_after_opening_is_not_handed_out(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.folder / "segment1.onnx").write_bytes(scaling_onnx(-1.0))
    with pytest.raises(BundleDigestError):
        bundle.read("segment1.onnx")


def test_truncated_and_longer_files_are_refused(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.folder / "segment1.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleDigestError):
        open_bundle(bundle.folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match="at most"):
        open_bundle(bundle.folder)


def test_a_missing_file_is_named(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.folder / "segment1.onnx").unlink()
    with pytest.raises(BundleError, match=r"segment1\.onnx is missing"):
        open_bundle(bundle.folder)


def test_a_link_is_no_file_of_a_bundle(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.folder / "segment1.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "a\n", ""])
def test_no_name_leaves_the_folder(tmp_path, name):
    bundle = write_tiny_bundle(tmp_path / "b")
    entry = msgspec.to_builtins(bundle.manifest.files["segment1.onnx"])
    edited(bundle.folder, files={"segment1.onnx": entry, name: entry})
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(bundle.folder)


def test_a_newer_manifest_is_refused_saying_which(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    edited(bundle.folder, schema=SCHEMA + 1, segments="of a shape unknown today")
    with pytest.raises(BundleError, match=f"schema {SCHEMA + 1}.*up to schema {SCHEMA}") as caught:
        open_bundle(bundle.folder)
    assert "Upgrade" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000])
def test_a_damaged_manifest_is_a_bundle_error(tmp_path, content):
    bundle = write_tiny_bundle(tmp_path / "b")
    (bundle.folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(bundle.folder)


def test_folders_that_are_no_bundles(tmp_path):
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"class_names": ["ant", "ant", "cat"]}, "twice"),
        ({"class_names": ["ant", "bee"]}, "not 2 logits"),
        ({"input_shape": (3, 4)}, "what comes before"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_not_made(changes, complaint):
    with pytest.raises(BundleError, match=complaint):
        manifest_of(scaling_segment(1), **changes)


def test_segments_must_chain_and_the_last_must_answer():
    second = scaling_segment(2, takes="h")
    with pytest.raises(BundleError, match="what comes before"):
        manifest_of(scaling_segment(1, activations=False), second)
    with pytest.raises(BundleError, match="what comes before"):
        manifest_of(scaling_segment(1), msgspec.structs.replace(second, input=Port(name="h", shape=(4,))))
    with pytest.raises(BundleError, match="no exit"):
        manifest_of(scaling_segment(1), msgspec.structs.replace(second, exit=None))


def test_nothing_is_written_that_could_not_be_read(tmp_path):
    segment = scaling_segment(1)
    wrong = msgspec.structs.replace(
        segment,
        exit=msgspec.structs.replace(segment.exit, policy=PolicyRecord(threshold=7.0, origin="a test")),
    )
    with pytest.raises(BundleError, match="threshold"):
        write_bundle(tmp_path / "b", manifest_of(wrong), {"segment1.onnx": b"x"})
    with pytest.raises(BundleError, match="not among"):
        write_bundle(tmp_path / "b", manifest_of(segment), {})
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_only_when_told_and_other_folders_never(tmp_path):
    first = write_tiny_bundle(tmp_path / "b")
    files = {"segment1.onnx": scaling_onnx(2.0)}
    with pytest.raises(BundleError, match="already"):
        write_bundle(tmp_path / "b", manifest_of(scaling_segment(1)), files)
    second = write_bundle(tmp_path / "b", manifest_of(scaling_segment(1)), files, replace=True)
    assert second.digest != first.digest
    assert [p.name for p in tmp_path.iterdir()] == ["b"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "photos", manifest_of(scaling_segment(1)), files, replace=True)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("fault", ["fsync", "rename"])
def test_a_failed_write_leaves_the_old_bundle_and_no_half_one(tmp_path, monkeypatch, fault):
    old = write_tiny_bundle(tmp_path / "b")
    rename = Path.rename

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def rename_fails_for_new(path, target):
        return disk_full() if path.name.endswith(".new") else rename(path, target)

    with monkeypatch.context() as patched:
        if fault == "fsync":
            patched.setattr(os, "fsync", disk_full)
        else:
            patched.setattr(Path, "rename", rename_fails_for_new)
        with pytest.raises(MachineError, match="No space left"):
            write_bundle(
                tmp_path / "b",
                manifest_of(scaling_segment(1)),
                {"segment1.onnx": scaling_onnx(2.0)},
                replace=True,
            )
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert open_bundle(tmp_path / "b").digest == old.digest


class PowerCut(BaseException):
    """Nothing catches it: no handler of ours may tidy up after it, as none would."""


def cut_at(monkeypatch, n_th):
    """Cut the power at the n-th step of a write; returns the steps taken so far."""
    steps = []

    def counted(name, real):
        def step(*arguments, **options):
            steps.append(name)
            if len(steps) == n_th:
                raise PowerCut(name)
            return real(*arguments, **options)

        return step

    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    monkeypatch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))
    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
    return steps


def test_a_power_cut_at_any_step_of_a_swap_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    seen = set()
    for n_th in range(1, 50):
        folder = tmp_path / str(n_th) / "b"
        old = write_tiny_bundle(folder)
        manifest, files = manifest_of(scaling_segment(1)), {"segment1.onnx": scaling_onnx(2.0)}
        with monkeypatch.context() as patched:
            steps = cut_at(patched, n_th)
            try:
                write_bundle(folder, manifest, files, replace=True)
            except PowerCut:
                pass
            else:
                break
        found = open_bundle(folder).digest
        seen.add((found == old.digest, folder.exists()))
        new = write_bundle(folder, manifest, files, replace=True)
        assert found in (old.digest, new.digest)
        assert [p.name for p in folder.parent.iterdir()] == ["b"]
    assert len(steps) == n_th - 1
    assert {"rename", "fsync", "rmtree", "mkdir"} == set(steps)
    # Old in place, old beside while no bundle has its name, new in place: all three were met.
    assert seen == {(True, True), (True, False), (False, True)}


def test_a_variants_file_is_checked_as_any_other(tmp_path):
    segment = msgspec.structs.replace(
        scaling_segment(1),
        variants=[
            Variant(name="float32", file="segment1.onnx", accuracy=None, ms=1.0),
            Variant(name="int8", file="segment1.int8.onnx", accuracy=None, ms=0.5),
        ],
        default="int8",
    )
    files = {"segment1.onnx": scaling_onnx(1.0), "segment1.int8.onnx": scaling_onnx(2.0)}
    with pytest.raises(BundleError, match=r"segment1\.int8\.onnx is not among"):
        write_bundle(tmp_path / "b", manifest_of(segment), {"segment1.onnx": b""})
    write_bundle(tmp_path / "b", manifest_of(segment), files)
    x = np.asarray([[0, 0, 1]], np.float32)
    by_default, chosen = load(tmp_path / "b"), load(tmp_path / "b", variant="float32")
    np.testing.assert_allclose(by_default(x).probability, chosen(2 * x).probability)
    assert (by_default.variants, chosen.variants) == (("int8",), ("float32",))
    with pytest.raises(BundleError, match="not there as int8"):
        manifest_of(msgspec.structs.replace(segment, variants=[]))


def test_what_nobody_reads_may_be_left_unread_but_what_is_read_is_checked(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    for name in ("segment2.onnx", "README.md"):
        (bundle.folder / name).write_bytes(b"rotten")
    with pytest.raises(BundleError):
        open_bundle(bundle.folder)
    opened = open_bundle(bundle.folder, check_all=False)
    assert opened.read("segment1.onnx") == scaling_onnx(1.0)
    with pytest.raises(BundleError, match=r"segment2\.onnx"):
        opened.read("segment2.onnx")

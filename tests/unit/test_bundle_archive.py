import struct
import zipfile

import pytest

from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment, write_tiny_bundle
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.bundle.manifest import MANIFEST_FILE
from toolkit.errors import BundleDigestError, BundleError


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))


@pytest.fixture
def archive(bundle, tmp_path):
    return write_archive(bundle, tmp_path / "b.hsee")


def repacked(archive, *, compression=zipfile.ZIP_STORED, comment=b"", **changes):
    """The same archive with other members; None leaves one out."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()} | changes
    with zipfile.ZipFile(archive, "w", compression) as new:
        new.comment = comment
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)
    return archive


def test_an_archive_holds_what_the_folder_holds(bundle, archive):
    opened = open_bundle(archive)
    assert opened.digest == bundle.digest
    assert opened.manifest == bundle.manifest
    assert opened.read("segment2.onnx") == bundle.read("segment2.onnx")


def test_the_same_bundle_gives_the_same_bytes(bundle, archive, tmp_path):
    again = write_archive(open_bundle(bundle.folder), tmp_path / "elsewhere" / "again.hsee")
    assert again.read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == [MANIFEST_FILE, *sorted(bundle.manifest.files)]
        assert {m.compress_type for m in opened.infolist()} == {zipfile.ZIP_STORED}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.hsee", "elsewhere"]


def test_an_archive_is_replaced_only_when_told(archive, tmp_path):
    before = archive.read_bytes()
    other = write_bundle(
        tmp_path / "other", manifest_of(scaling_segment(1)), {"segment1.onnx": scaling_onnx(3.0)}
    )
    with pytest.raises(BundleError, match="exists already"):
        write_archive(other, archive)
    assert archive.read_bytes() == before
    write_archive(other, archive, replace=True)
    assert open_bundle(archive).digest == other.digest


def test_a_changed_file_is_found(archive):
    repacked(archive, **{"segment1.onnx": scaling_onnx(-1.0)})
    with pytest.raises(BundleDigestError, match=r"segment1\.onnx is not the file"):
        open_bundle(archive)


def test_every_truncation_and_every_flipped_byte_is_found(archive):
    whole = archive.read_bytes()
    opened = open_bundle(archive)
    for at in range(0, len(whole), 7):
        archive.write_bytes(whole[:at])
        with pytest.raises(BundleError):
            open_bundle(archive)
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            again = open_bundle(archive)
        except BundleError:
            continue
        # A flip in what zip only says of a file (its time, its mode) changes nothing that is read.
        assert again.digest == opened.digest
        assert all(again.read(name) == opened.read(name) for name in opened.manifest.files)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"comment": b"hello"}, "does not end as one"),
        ({"segment2.onnx": None}, r"holds no segment2\.onnx"),
        ({MANIFEST_FILE: None}, r"holds no manifest\.json"),
        ({f"file{i}": b"" for i in range(100)}, "it lists 104 files"),
        ({"x" * 60_000: b"", "y" * 60_000: b""}, "files in 1[0-9]* bytes"),
        ({MANIFEST_FILE: b" " * (8 * 1024**2 + 1)}, "at most"),
    ],
    ids=[
        "compressed",
        "comment",
        "no segment",
        "no manifest",
        "many files",
        "long directory",
        "large manifest",
    ],
)
def test_what_ours_never_do_is_refused(archive, how, complaint):
    with pytest.raises(BundleError, match=complaint):
        open_bundle(repacked(archive, **how))


def test_names_that_leave_the_archive_reach_nothing(archive, tmp_path):
    secret = tmp_path / "secret"
    repacked(archive, **{"../secret": b"taken", "/etc/hostname": b"taken"})
    assert sorted(open_bundle(archive).manifest.files) == ["README.md", "segment1.onnx", "segment2.onnx"]
    assert not secret.exists()


def test_a_directory_that_claims_more_than_there_is_costs_nothing(archive):
    whole = bytearray(archive.read_bytes())
    struct.pack_into("<H", whole, len(whole) - 12, 0xFFFF)
    archive.write_bytes(bytes(whole))
    with pytest.raises(BundleError, match="it lists 65535 files"):
        open_bundle(archive)


def test_a_name_twice_is_refused(archive):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("segment1.onnx", scaling_onnx(-1.0))
    with pytest.raises(BundleError, match="stands twice"):
        open_bundle(archive)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x89PNG" * 100])
def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "x.hsee").write_bytes(content)
    with pytest.raises(BundleError, match="not an archive"):
        open_bundle(tmp_path / "x.hsee")

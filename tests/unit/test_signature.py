"""Row O1 of the promises: what an attacker does to a bundle, and what a board that trusts one operator says."""

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment, write_tiny_bundle
from toolkit.access.signing import OperatorKey, public_file
from toolkit.bundle import ed25519
from toolkit.bundle.archive import write_archive
from toolkit.bundle.ed25519 import verify
from toolkit.bundle.folder import SIGNATURE_FILE, open_bundle, write_bundle
from toolkit.bundle.signature import (
    PublicKey,
    Statement,
    check_signature,
    encode_signature,
    pinned_key,
    read_public_key,
    signed_bytes,
)
from toolkit.cli.bundle_commands import age_in_words
from toolkit.cli.entry import main
from toolkit.errors import BundleError, BundleSignatureError, UsageError

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
# RFC 8032, section 7.1: secret key, public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


# the curve


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_vectors_of_the_standard(key, message, signature):
    key, message, signature = map(bytes.fromhex, (key, message, signature))
    assert verify(key, message, signature)
    for at in range(0, 64, 9):
        changed = bytearray(signature)
        changed[at] ^= 1
        assert not verify(key, message, bytes(changed))
    assert not verify(key, message + b"x", signature)
    assert not verify(key, message, signature[:-1])
    assert not verify(key[:-1], message, signature)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(0, 511))
@settings(max_examples=15, deadline=None)
def test_it_takes_what_the_library_signs_and_nothing_near_it(seed, message, bit):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert verify(public, message, signature)
    flipped = (int.from_bytes(signature, "little") ^ (1 << bit)).to_bytes(64, "little")
    assert not verify(public, message, flipped)


def test_a_signature_has_one_form_only():
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, signature = key.public_key().public_bytes_raw(), key.sign(b"m")
    s = int.from_bytes(signature[32:], "little") + ed25519._L
    assert not verify(public, b"m", signature[:32] + s.to_bytes(32, "little"))
    for y in (ed25519._P, ed25519._P + 1, 2):  # not reduced, not reduced, not on the curve
        assert not verify(y.to_bytes(32, "little"), b"m", signature)
    assert not verify((1 | 1 << 255).to_bytes(32, "little"), b"m", signature)


# keys


def test_a_key_is_private_and_never_replaced(tmp_path):
    path = tmp_path / "keys" / "operator.key"
    made = OperatorKey.create(path, comment="the plant")
    assert path.stat().st_mode & 0o777 == 0o600
    assert OperatorKey.read(path).public == made.public
    read = read_public_key(public_file(path))
    assert (read.content, read.comment) == (made.public.content, "the plant")
    with pytest.raises(UsageError, match="exists already"):
        OperatorKey.create(path, comment="")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="Others than its owner"):
        OperatorKey.read(path)


@pytest.mark.parametrize(
    "content", [b"", b"hsee-ed25519", b"hsee-ed25519 ????", b"hsee-ed25519 AAAA x", b"\xff"]
)
def test_what_is_no_key_is_told(tmp_path, content):
    path = tmp_path / "operator.pub"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no public key"):
        read_public_key(path)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="no operator's key"):
        OperatorKey.read(path)
    with pytest.raises(UsageError, match="can't be read"):
        read_public_key(tmp_path / "nowhere")


# attacks


@pytest.fixture
def operator(tmp_path):
    return OperatorKey.create(tmp_path / "operator.key", comment="ours")


@pytest.fixture
def bundle(tmp_path, operator):
    made = write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    operator.sign(made, now=NOW)
    return open_bundle(made.folder)


def test_what_the_operator_signed_is_known_as_folder_and_as_archive(tmp_path, bundle, operator):
    archive = open_bundle(write_archive(bundle, tmp_path / "b.hsee"))
    for opened in (bundle, archive):
        statement = check_signature(opened, operator.public)
        assert statement == Statement(
            manifest=bundle.digest,
            devices=["dev1"],
            release=20260304050607,
            signed="2026-03-04T05:06:07+00:00",
        )
    operator.sign(archive, now=NOW, devices=["*"], release=7)
    assert check_signature(open_bundle(archive.folder), operator.public).release == 7
    assert check_signature(open_bundle(bundle.folder), operator.public).release == 20260304050607


def test_arbitrary(tmp_path, bundle, operator):
    with pytest.raises(BundleSignatureError, match="was not signed by"):
        check_signature(bundle, OperatorKey.create(tmp_path / "other.key", comment="theirs").public)
    (bundle.folder / SIGNATURE_FILE).unlink()
    with pytest.raises(BundleSignatureError, match="is not signed"):
        check_signature(bundle, operator.public)


def test_mixed(tmp_path, bundle, operator):
    other = write_bundle(
        tmp_path / "other", manifest_of(scaling_segment(1)), {"segment1.onnx": scaling_onnx(3.0)}
    )
    operator.sign(other, now=NOW)
    signature = (other.folder / SIGNATURE_FILE).read_bytes()
    (bundle.folder / SIGNATURE_FILE).write_bytes(signature)
    with pytest.raises(BundleSignatureError, match="of another bundle"):
        check_signature(bundle, operator.public)
    content = (other.folder / "segment1.onnx").read_bytes()
    (bundle.folder / "segment1.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"not the file its manifest names|bytes; at most"):
        open_bundle(bundle.folder)


def test_every_changed_byte_of_the_signature_file_is_found(bundle, operator):
    path = bundle.folder / SIGNATURE_FILE
    whole = path.read_bytes()
    for at in range(0, len(whole) - 1, 13):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BundleSignatureError):
            check_signature(bundle, operator.public)
    path.write_bytes(whole + b"x" * (64 * 1024))
    with pytest.raises(BundleError, match="at most"):
        check_signature(bundle, operator.public)


def signed_by(operator, fields):
    line = msgspec.json.encode(fields)
    return encode_signature(line, operator._key.sign(signed_bytes(line)))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": 2}, "reads up to schema 1"),
        ({"devices": []}, "no statement"),
        ({"release": 0}, "no statement"),
        ({"signed": "yesterday"}, "no statement"),
        ({"signed": "2026-03-04T05:06:07"}, "no statement"),
    ],
)
def test_a_statement_that_makes_no_sense(bundle, operator, changes, complaint):
    fields = {
        "schema": 1,
        "manifest": bundle.digest,
        "devices": ["*"],
        "release": 1,
        "signed": NOW.isoformat(),
    }
    path = bundle.folder / SIGNATURE_FILE
    path.write_bytes(signed_by(operator, fields))
    check_signature(bundle, operator.public)
    path.write_bytes(signed_by(operator, fields | changes))
    with pytest.raises(BundleSignatureError, match=complaint):
        check_signature(bundle, operator.public)


def test_a_signature_of_something_else_with_the_same_key_is_none(bundle, operator):
    line = msgspec.json.encode(
        Statement(manifest=bundle.digest, devices=["*"], release=1, signed=NOW.isoformat())
    )
    (bundle.folder / SIGNATURE_FILE).write_bytes(
        line + b"\n" + base64.b64encode(operator._key.sign(line)) + b"\n"
    )
    with pytest.raises(BundleSignatureError, match="was not signed"):
        check_signature(bundle, operator.public)


def test_frozen_is_shown_by_age():
    statement = Statement(manifest="0" * 64, devices=["*"], release=1, signed=NOW.isoformat())
    assert age_in_words(statement.age_days(NOW + timedelta(days=40, hours=1))) == "signed 40 days ago"
    assert age_in_words(statement.age_days(NOW + timedelta(hours=3))) == "signed less than a day ago"
    assert "ahead of this clock" in age_in_words(statement.age_days(NOW - timedelta(days=2)))


# the board


def test_which_key_is_pinned(tmp_path, operator, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = public_file(tmp_path / "operator.key")
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert pinned_key(home) is None
    (tmp_path / "operator.pub").write_bytes(PublicKey(bytes(32), "here").line().encode())
    assert pinned_key(home).comment == "here"
    assert main(["bundle", "trust", str(public), "--into", str(tmp_path / "config/hsee")]) == 0
    assert pinned_key(home).content == operator.public.content
    named = tmp_path / "named"
    named.write_bytes(PublicKey(bytes(32), "named").line().encode())
    assert pinned_key(home | {"HSEE_OPERATOR_KEY": str(named)}).comment == "named"
    with pytest.raises(UsageError, match="can't be read"):
        pinned_key({"HSEE_OPERATOR_KEY": str(tmp_path / "nowhere")})


def test_another_key_is_pinned_only_when_told(tmp_path, operator, capsys):
    other = OperatorKey.create(tmp_path / "other.key", comment="theirs")
    keys = [str(public_file(tmp_path / name)) for name in ("operator.key", "other.key")]
    into = ["--into", str(tmp_path / "pinned")]
    for _ in range(2):
        assert main(["bundle", "trust", keys[0], *into]) == 0
    assert main(["bundle", "trust", keys[1], *into]) == 2
    assert operator.public.name in capsys.readouterr().err
    assert main(["bundle", "trust", keys[1], *into, "--replace"]) == 0
    assert read_public_key(tmp_path / "pinned/operator.pub").content == other.public.content


def test_a_board_that_trusts_an_operator_runs_nothing_else_unless_told(
    tmp_path, bundle, operator, capsys, monkeypatch
):
    monkeypatch.setenv("HSEE_OPERATOR_KEY", str(public_file(tmp_path / "operator.key")))
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n")
    assert main(["infer", str(bundle.folder), str(source)]) == 0
    assert main(["bundle", "show", str(bundle.folder)]) == 0
    assert operator.public.name in capsys.readouterr().out
    (bundle.folder / SIGNATURE_FILE).unlink()
    assert main(["infer", str(bundle.folder), str(source)]) == 1
    told = capsys.readouterr().err
    assert "is not signed, and this board takes only what" in told
    assert "HSEE-E142" in told
    assert "--allow-unsigned" in told
    assert main(["infer", str(bundle.folder), str(source), "--allow-unsigned"]) == 0
    assert main(["bundle", "sign", "--key", str(tmp_path / "operator.key"), str(bundle.folder)]) == 0
    assert main(["infer", str(bundle.folder), str(source)]) == 0


def test_calibrating_makes_another_bundle_that_must_be_signed_again(bundle, operator):
    files = {name: bundle.read(name) for name in bundle.manifest.files if name.endswith(".onnx")}
    again = write_bundle(bundle.folder, bundle.manifest, files, replace=True)
    with pytest.raises(BundleSignatureError, match="is not signed"):
        check_signature(again, operator.public)

"""A record that names its digest: no bit of its file flips unseen and changes what is read."""

import hashlib

import msgspec
import pytest

from coordinator.store.run_folder import RunFolder
from tests.protocol.samples import JOB
from toolkit.errors import CheckpointError, DamagedError
from toolkit.nn.segment_record import RECORD_FILE, SegmentRecord, encode_record, read_record

RECORD = SegmentRecord(
    device="ant", job=JOB, round=3, exit_accuracy=0.75, n_eval=40, software={"torch": "2.9"}
)


def test_every_flip_of_a_segment_s_record_is_found_or_changes_nothing(tmp_path):
    path, content = tmp_path / RECORD_FILE, encode_record(RECORD)
    path.write_bytes(content)
    whole = read_record(tmp_path)
    n_found = 0
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            try:
                read = read_record(tmp_path)
            except CheckpointError:
                n_found += 1
            else:
                assert read == whole, (at, bit)
    assert n_found > len(content)


def test_a_record_that_names_no_digest_is_damaged(tmp_path):
    (tmp_path / RECORD_FILE).write_bytes(msgspec.json.encode(RECORD))
    with pytest.raises(DamagedError, match="does not have its digest"):
        read_record(tmp_path)


def test_a_record_of_a_version_with_other_fields_is_read(tmp_path):
    """Its digest is of what it holds, known here or not."""
    fields = msgspec.to_builtins(RECORD) | {"later": [1.5, "ü"], "sha256": ""}
    fields = {key: value for key, value in fields.items() if key != "schema"}
    fields["sha256"] = hashlib.sha256(msgspec.json.encode(fields)).hexdigest()
    (tmp_path / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(fields), indent=1))
    assert read_record(tmp_path).round == RECORD.round


@pytest.fixture
def reopened(tmp_path):
    """A run folder that was written to, as another process finds it."""

    def reopen(change=None):
        first = RunFolder(tmp_path / "r1", "r1")
        first.write_config("[run]\nrounds = 3\n")
        first.take_up()
        first.close()
        if change is not None:
            change(tmp_path / "r1/config.toml")
        second = RunFolder(tmp_path / "r1", "r1")
        second.write_config("[run]\nrounds = 3\n")
        second.close()
        return second.damage

    return reopen


def test_settings_that_were_changed_under_a_run_are_told(reopened):
    assert reopened() == []
    (told,) = reopened(lambda path: path.write_text("[run]\nrounds = 7\n"))
    assert told.endswith("config.toml is not what this run wrote. Its settings are used as they stand.")


def test_settings_that_are_gone_are_written_again(reopened):
    assert reopened(lambda path: path.unlink()) == []

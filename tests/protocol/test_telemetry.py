"""Telemetry and log lines on the wire: golden bytes, cut at every index, hostile."""

import json

import pytest

from toolkit.errors import RemoteProtocolError
from toolkit.wire.limits import MAX_LOG_BYTES, MAX_LOG_LINES, MAX_TELEMETRY_BYTES
from toolkit.wire.telemetry import (
    MAX_LINE_CHARACTERS,
    LogLine,
    LogLines,
    Telemetry,
    encode_report,
    read_log_lines,
    read_telemetry,
)
from toolkit.wire.topics import Topics

NONCE = "00112233445566778899aabbccddeeff"
FULL = Telemetry(
    boot_nonce=NONCE,
    software="hsee 0.1.0",
    uptime_s=12.5,
    phase="training",
    round=3,
    seq=4,
    cut="layer1",
    exit_accuracy=0.75,
    temperature_c=61.5,
    throttled=["under-voltage"],
    memory_bytes=300_000_000,
    free_memory_bytes=500_000_000,
    load=1.25,
    n_refused=2,
    last_error="No disk.",
)
SPARE = Telemetry(boot_nonce=NONCE, software="hsee 0.1.0", uptime_s=0.0, phase="offline")
LINES = LogLines(boot_nonce=NONCE, lines=[LogLine(at=1000.0, level="info", text="connected")], n_dropped=7)
GOLDEN = [
    (
        FULL,
        (
            b'{"boot_nonce":"00112233445566778899aabbccddeeff","software":"hsee 0.1.0","uptime_s":12.5,"phase":"training",'
            b'"round":3,"seq":4,"cut":"layer1","exit_accuracy":0.75,"temperature_c":61.5,"throttled":["under-voltage"],'
            b'"memory_bytes":300000000,"free_memory_bytes":500000000,"load":1.25,"n_refused":2,"last_error":"No disk."}'
        ),
        read_telemetry,
    ),
    (
        SPARE,
        b'{"boot_nonce":"00112233445566778899aabbccddeeff","software":"hsee 0.1.0","uptime_s":0.0,"phase":"offline"}',
        read_telemetry,
    ),
    (
        LINES,
        (
            b'{"boot_nonce":"00112233445566778899aabbccddeeff","lines":[{"at":1000.0,"level":"info","text":"connected"}],'
            b'"n_dropped":7}'
        ),
        read_log_lines,
    ),
]


@pytest.mark.parametrize(("report", "golden", "read"), GOLDEN)
def test_a_report_is_written_and_read_as_it_was(report, golden, read):
    assert encode_report(report) == golden
    assert read(golden) == report


@pytest.mark.parametrize(("golden", "read"), [row[1:] for row in GOLDEN])
def test_a_report_cut_anywhere_is_refused(golden, read):
    for end in range(len(golden)):
        with pytest.raises(RemoteProtocolError):
            read(golden[:end])


def test_unknown_keys_are_ignored():
    assert read_telemetry(GOLDEN[1][1][:-1] + b',"new":{"deep":[1]}}') == SPARE


def test_a_zero_is_told():
    bad = Telemetry(
        boot_nonce=NONCE, software="", uptime_s=0.0, phase="", exit_accuracy=0.0, temperature_c=0.0
    )
    assert read_telemetry(encode_report(bad)) == bad


@pytest.mark.parametrize(
    "changes",
    [
        {"boot_nonce": "x" * 32},
        {"boot_nonce": NONCE + "\n"},
        {"software": "x" * 129},
        {"uptime_s": -1},
        {"uptime_s": "soon"},
        {"phase": "x" * 65},
        {"round": -1},
        {"round": 2**60},
        {"cut": "x" * 257},
        {"exit_accuracy": 1.5},
        {"temperature_c": 1e31},
        {"throttled": ["x"] * 9},
        {"throttled": "hot"},
        {"memory_bytes": -1},
        {"load": -0.5},
        {"last_error": "x" * 513},
        {"boot_nonce": None},
    ],
    ids=str,
)
def test_hostile_telemetry_is_refused(changes):
    with pytest.raises(RemoteProtocolError, match="no valid Telemetry"):
        read_telemetry(json.dumps(json.loads(GOLDEN[0][1]) | changes).encode())


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"nan", b"\xff\xfe", b"[" * 4000, b'{"uptime_s":1e999}', b'{"uptime_s":NaN}'],
)
def test_what_is_no_object_is_refused(payload):
    for read in (read_telemetry, read_log_lines):
        with pytest.raises(RemoteProtocolError):
            read(payload)


@pytest.mark.parametrize(
    "line",
    [
        {"at": -1.0, "level": "info", "text": ""},
        {"at": 1.0, "level": "loud", "text": ""},
        {"at": 1.0, "level": "info", "text": "x" * (MAX_LINE_CHARACTERS + 1)},
        {"at": 1.0, "level": "info"},
        "text",
    ],
    ids=lambda line: str(line)[:40],
)
def test_a_hostile_line_is_refused(line):
    with pytest.raises(RemoteProtocolError, match="no valid LogLines"):
        read_log_lines(json.dumps({"boot_nonce": NONCE, "lines": [line]}).encode())


def test_lengths_are_bounded_before_anything_is_read():
    with pytest.raises(RemoteProtocolError, match="exceeds 4096"):
        read_telemetry(GOLDEN[0][1].ljust(MAX_TELEMETRY_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="exceeds 32768"):
        read_log_lines(GOLDEN[2][1].ljust(MAX_LOG_BYTES + 1))
    many = [{"at": 1.0, "level": "info", "text": ""}] * (MAX_LOG_LINES + 1)
    with pytest.raises(RemoteProtocolError):
        read_log_lines(json.dumps({"boot_nonce": NONCE, "lines": many}).encode())


@pytest.mark.parametrize("leaf", ["telemetry", "log"])
def test_the_device_is_read_from_the_topic(leaf):
    topics = Topics("home")
    topic = getattr(topics, f"device_{leaf}")("hall")
    assert topics.device_of(topic, leaf=leaf) == "hall"
    for other in (topics.device_state("hall"), topic.replace("home", "yard"), topic.replace("hall", "h all")):
        with pytest.raises(RemoteProtocolError):
            topics.device_of(other, leaf=leaf)

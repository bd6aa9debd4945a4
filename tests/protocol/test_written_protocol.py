"""PROTOCOL.md and the code say the same."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from device_agent.agent import ADVICE
from tests.protocol import diagrams
from tests.protocol.samples import MESSAGES
from toolkit.wire import job, limits, messages, telemetry
from toolkit.wire.messages import (
    AnswerMessage,
    AnyMessage,
    AskMessage,
    DownMessage,
    OfferMessage,
    UpMessage,
    WantMessage,
)
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, DeviceWord

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "toolkit/wire/PROTOCOL.md").read_text()
QUOTE = re.compile(r'# PROTOCOL\.md (\d+): "([^"]+)"')
ROOMS = ("toolkit", "device_agent", "coordinator")
TYPES = [
    *(type(message) for message in MESSAGES),
    *(messages.TensorSpec, messages.DataSummary, messages.MeasureRequest),
    *(job.Job, job.ModelSpec, job.OptimizerSpec, job.SyncSpec, job.Distillation),
    *(telemetry.Telemetry, telemetry.LogLines, telemetry.LogLine),
]


def sections() -> dict[str, str]:
    parts = re.split(r"^## (\d+)\. .*$", TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def quotes() -> list[tuple[str, str, str]]:
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [(path.name, *match) for path in paths for match in QUOTE.findall(path.read_text())]


def table(heading: str) -> dict[str, str]:
    """Key to type, as the table under a heading has them."""
    (text,) = re.findall(rf"^### {heading}\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {row[0].strip("`"): row[1] for row in rows}


def test_there_are_quotes_to_check():
    assert len(quotes()) >= 15
    assert list(sections()) == [str(number) for number in range(1, len(sections()) + 1)]
    assert len(sections()) >= 15


@pytest.mark.parametrize(("where", "section", "sentence"), quotes())
def test_what_the_code_quotes_stands_there(where, section, sentence):
    assert " ".join(sentence.split()) in " ".join(sections()[section].split()), where


def test_no_quote_escapes_the_pattern():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert len(re.findall(r"# PROTOCOL\.md", text)) == len(QUOTE.findall(text)), path


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_field_stands_in_its_table(kind):
    fields = msgspec.structs.fields(kind)
    written = table(kind.__name__)
    assert list(written) == [field.encode_name for field in fields]
    optional = {field.encode_name for field in fields if not field.required}
    assert {key for key, type_ in written.items() if type_.endswith("]")} == optional


def test_every_type_has_its_table_and_every_table_its_type():
    written = re.findall(r"^### (\w+)$", TEXT, flags=re.MULTILINE)
    assert sorted(written) == sorted(kind.__name__ for kind in TYPES)
    assert {type(message) for message in MESSAGES} == set(AnyMessage.__args__)


def test_every_limit_stands_in_the_table():
    written = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|$", TEXT, flags=re.MULTILINE))
    held = {name: str(value) for name, value in vars(limits).items() if isinstance(value, int)}
    assert written == held


@pytest.mark.parametrize(("word", "kind"), [("bridge", BridgeWord), ("device", DeviceWord)])
def test_every_key_of_a_word_stands_in_the_table(word, kind):
    (text,) = re.findall(rf"^\| {word} (\|.*\n(?:\| \|.*\n)*)", TEXT, flags=re.MULTILINE)
    written = dict(re.findall(r"\| `(\w+)` \| ([^|]+) \|", text))
    fields = msgspec.structs.fields(kind)
    assert list(written) == [field.encode_name for field in fields]
    optional = {field.encode_name for field in fields if not field.required}
    assert {key for key, type_ in written.items() if type_.endswith("]")} == optional


def test_every_topic_stands_in_the_table():
    topics = Topics("<fleet>")
    known = [
        topics.bridge_state,
        topics.device_state("<device>"),
        topics.device_info("<device>"),
        topics.device_telemetry("<device>"),
        topics.device_log("<device>"),
        topics.check("<account>"),
        topics.up("<run>", "<device>"),
        topics.down("<run>", "<device>"),
        topics.ask("<device>"),
        topics.answer("<device>"),
        topics.offer("<device>"),
        topics.want("<device>"),
        topics.join_request("<token>"),
        topics.join_answer("<token>"),
    ]
    assert re.findall(r"^\| `(hsee/[^`]+)`", TEXT, flags=re.MULTILINE) == known


@pytest.mark.parametrize(
    ("leaf", "kinds"),
    [
        ("up", UpMessage),
        ("down", DownMessage),
        ("ask", AskMessage),
        ("answer", AnswerMessage),
        ("offer", OfferMessage),
        ("want", WantMessage),
    ],
)
def test_each_way_carries_what_its_row_says(leaf, kinds):
    (row,) = re.findall(rf"^\| `[^`]+/{leaf}` .*one frame: ([^|]+) \|$", TEXT, flags=re.MULTILINE)
    carried = get_args(kinds) or (kinds,)
    assert set(re.split(r", | or ", row)) == {kind.__name__.lower() for kind in carried}


def test_every_code_of_a_refusal_is_named():
    (row,) = re.findall(r"^\| `code` \|[^|]*\| (`name`[^|]*); more MAY come \|$", TEXT, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {"name", *ADVICE}


def test_the_diagrams_are_those_of_the_tables():
    drawn = re.findall(r"^```mermaid\n(.*?)\n```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert drawn == [diagrams.device_diagram(), diagrams.seat_diagram()]

"""The conformance check passes on our agent, over a real broker, and fails on agents that break one rule each."""

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from device_agent.agent import Agent
from tests.unit.test_agent import DATA
from toolkit.conformance.__main__ import check, main
from toolkit.conformance.stage import Stage
from toolkit.link.connect import make_link
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.wire import session
from toolkit.wire.messages import Fenced, Refusal, Welcome
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DevicePhase
from toolkit.wire.topics import Topics
from toolkit.wire.words import DeviceWord, encode_word

pytestmark = pytest.mark.needs_mosquitto

ROOT = Path(__file__).parents[2]
TOPICS = Topics("test")
PACE = 6.0
N_TRAIN = 6


class Steps:
    """A trainer whose activations tell which step made them."""

    n_train, n_items, n_batches = N_TRAIN, N_TRAIN + 1, N_TRAIN + 1
    lowered_round = max_lowered_bytes = 0
    is_untouched = True

    def __init__(self):
        self.round = self.seq = self.n_steps = 0

    def enter_round(self, round_, seq):
        self.round, self.seq = round_, seq

    def train_next(self):
        self.seq += 1
        self.n_steps += 1
        return self._batch(self.seq, step=self.n_steps - 1)

    def train_extra(self):
        self.n_steps += 1

    def make_again(self, seq):
        return self._batch(seq, remade=seq <= self.n_train)

    def finish_round(self):
        return None

    def save(self):
        pass

    def _batch(self, seq, *, step=None, remade=False):
        step = self.n_steps if step is None else step
        kind = "train" if seq <= self.n_train else "eval"
        h = np.full((2, 5), step + 0.25 * seq, np.float32)
        return Batch(kind, h, np.array([0, 1]), 0.5, 1, step, remade)


class TrainsAgain(Steps):
    def make_again(self, seq):
        self.n_steps += 1
        return self._batch(seq, remade=seq <= self.n_train)


class KeepsQuietOfMaking(Steps):
    def make_again(self, seq):
        return self._batch(seq)


class CallsAllTraining(Steps):
    def _batch(self, seq, **words):
        return replace(super()._batch(seq, **words), kind="train")


class CountsTooMany(Steps):
    def _batch(self, seq, **words):
        return replace(super()._batch(seq, **words), exit_correct=3)


def rule(name, broken):
    """A session in which one handler is another."""

    def apply(monkeypatch):
        original = getattr(session, name)
        monkeypatch.setattr(session, name, broken)
        for event, handler in session._TABLE.items():
            if handler is original:
                monkeypatch.setitem(session._TABLE, event, broken)

    return apply


def _any_flow(state, flow, now):
    """Takes every state message as the newest, once it has work."""
    if not state.plan_version:
        return _ON_FLOW(state, flow, now)
    newest = msgspec.structs.replace(
        flow, n=(state.flow.n if state.flow else 0) + 1, incarnation=state.incarnation
    )
    return _ON_FLOW(state, msgspec.structs.replace(newest, term=max(flow.term, state.term)), now)


def _any_welcome(state, welcome):
    return _ON_WELCOME(state, Welcome(**(msgspec.structs.asdict(welcome) | {"boot_nonce": state.boot_nonce})))


def _any_assignment(state, assignment):
    return _ON_ASSIGNMENT(
        state,
        msgspec.structs.replace(
            assignment, term=state.term, plan_version=max(assignment.plan_version, state.plan_version)
        ),
    )


def _one_more(state):
    may = _MAY_SEND(state)
    return range(may.start, min(may.stop + 1, N_TRAIN + 2)) if may.stop else may


def _no_offline(state, event):
    return (state, []) if not event.is_online else _ON_BRIDGE(state, event)


_ON_FLOW, _ON_WELCOME, _ON_ASSIGNMENT = session._on_flow, session._on_welcome, session._on_assignment
_ON_BRIDGE, _MAY_SEND = session._on_bridge, session.may_send

MUTANTS = {
    "sends one seq beyond its credit": (rule("may_send", _one_more), Steps, "MUST NOT send other seqs"),
    "obeys every state message": (
        rule("_on_flow", _any_flow),
        Steps,
        "obey the state message with the highest",
    ),
    "takes anybody's welcome": (rule("_on_welcome", _any_welcome), Steps, "names another boot nonce"),
    "never sends again": (rule("_resend_if_stuck", lambda state, _now: state), Steps, "MUST send them again"),
    "never asks again": (rule("_on_tick", lambda state, _event: (state, [])), Steps, "every 5 s while"),
    "takes any assignment": (rule("_on_assignment", _any_assignment), Steps, "under whose orders"),
    "goes on while its coordinator is gone": (rule("_on_bridge", _no_offline), Steps, "send nothing"),
    "trains again on what is asked again": (None, TrainsAgain, "train on a (round, seq) at most once"),
    "does not say what it made again": (None, KeepsQuietOfMaking, "says `remade`"),
    "calls held-out batches training": (None, CallsAllTraining, "`kind` MUST be"),
    "counts more right than there are": (None, CountsTooMany, "sends the seqs of its credit"),
}


class Running:
    """Our agent with a stub trainer, in a thread, its clock ``PACE`` times as fast."""

    def __init__(self, address, trainer):
        nonce = bytes(range(16))
        will = (TOPICS.device_state("ant"), encode_word(DeviceWord("offline", nonce.hex())))
        self.agent = Agent(
            make_link(address, client_id="ant", will=will),
            topics=TOPICS,
            device="ant",
            boot_nonce=nonce,
            data=DATA,
            profile="",
            make_trainer=lambda _job: trainer,
            measure=lambda _request: "",
            clock=lambda: time.monotonic() * PACE,
            say=lambda _text: None,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.is_set() and not self.agent.over:
            self.agent.poll(0.01)

    def __enter__(self):
        self.agent.start()
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self._stop.set()
        self._thread.join(10)
        self.agent.close()


def judge(address, trainer, **words):
    with Running(address, trainer) as running:
        findings = check(
            address,
            topics=TOPICS,
            device="ant",
            model="mlp",
            cut="hidden1",
            codec="float32",
            batch_size=2,
            cap_s=words.pop("cap_s", 10.0),
            pace=PACE,
            **words,
        )
        return findings, running.agent.phase


@pytest.fixture(scope="module")
def protocol():
    """PROTOCOL.md's sections by number, each in one line."""
    text = (ROOT / "toolkit/wire/PROTOCOL.md").read_text()
    parts = re.split(r"^## (\d+)\. .*$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (" ".join(part.split()) for part in parts[1::2]), strict=True))


def conforms(findings, protocol):
    """Nothing failed, and every sentence that was judged stands in its section."""
    assert [f for f in findings if f.verdict != "ok"] == []
    for finding in findings:
        section, _, sentence = finding.check.partition(": ")
        assert sentence in protocol[section], finding.check


def test_our_session_conforms(mosquitto, protocol):
    findings, phase = judge(mosquitto.address, Steps())
    conforms(findings, protocol)
    assert len(findings) >= 25
    assert phase is DevicePhase.FINISHED


@pytest.mark.parametrize(("kind", "phase"), [(Fenced, DevicePhase.FENCED), (Refusal, DevicePhase.REFUSED)])
def test_a_dismissed_session_conforms(mosquitto, protocol, kind, phase):
    findings, reached = judge(mosquitto.address, Steps(), dismissal=kind)
    conforms(findings, protocol)
    assert reached is phase


@pytest.mark.parametrize(("breaks", "trainer", "sentence"), MUTANTS.values(), ids=list(MUTANTS))
def test_an_agent_that_breaks_a_rule_is_found(mosquitto, monkeypatch, breaks, trainer, sentence):
    if breaks is not None:
        breaks(monkeypatch)
    findings, _ = judge(mosquitto.address, trainer(), cap_s=3.0)
    failed = [f.check for f in findings if f.verdict == "failed"]
    assert any(sentence in check for check in failed), failed


def test_a_session_that_says_hello_after_its_dismissal_is_found(mosquitto, monkeypatch):
    monkeypatch.setattr(session, "_on_dismissal", lambda state, _dismissal: (state, []))
    findings, _ = judge(mosquitto.address, Steps(), dismissal=Fenced)
    assert [f.verdict for f in findings if "stop for good" in f.check] == ["failed"]


def test_as_a_command_it_says_when_nobody_comes(mosquitto, capsys):
    words = ["--broker", f"127.0.0.1:{mosquitto.address.port}", "--cap", "0.5"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "no hello within 0.5 s" in out
    assert "0 of 1 sentences of PROTOCOL.md hold." in out
    assert main([*words, "--json"]) == 1
    report = msgspec.json.decode(capsys.readouterr().out)
    assert [f["verdict"] for f in report["findings"]] == ["failed", "skipped", "skipped"]


def test_time_in_which_the_machine_stands_still_is_not_listened(monkeypatch):
    stage = Stage(
        MemoryLink(MemoryBroker(), "coord"), topics=Topics("home"), run="r1", device="ant", batch_size=4
    )
    now_s, n_looks = [0.0], []

    def look():
        n_looks.append(now_s[0])
        now_s[0] += 100.0 if len(n_looks) == 1 else 0.02

    monkeypatch.setattr("toolkit.conformance.stage.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(stage, "_listen", look)
    assert stage.wait_for(lambda: len(n_looks) == 10, 1.0)
    assert not stage.wait_for(lambda: False, 1.0)

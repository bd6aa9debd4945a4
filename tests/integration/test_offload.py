"""Offloading over a real broker: what is answered is right, what can't be answered falls back at once, never an error."""

import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
import torch

from coordinator.beside.offload import OffloadService
from coordinator.beside.own_thread import Beside
from coordinator.beside.routes import Routes
from coordinator.beside.serving import Server
from device_agent import asker as asker_module
from device_agent.asker import Asker
from tests.e2e.processes import Hsee
from tests.numerics.fleet import RUN, Fleet, Member, local_data, patterns
from tests.numerics.fleet import TOPICS as TOPICS_OF_FLEET
from toolkit.bundle.folder import open_bundle
from toolkit.config import Run
from toolkit.errors import BundleError
from toolkit.export.onnx import export_held
from toolkit.link.base import Connected, Received
from toolkit.link.memory import MemoryLink
from toolkit.link.mqtt import MqttLink
from toolkit.nn.cut import take_suffix
from toolkit.nn.weights import load_tensors
from toolkit.nn.zoo import build_network
from toolkit.runtime.cascade import Cascade
from toolkit.wire import chunks, frames, questions
from toolkit.wire.job import ModelSpec
from toolkit.wire.limits import MAX_MESSAGE_BYTES
from toolkit.wire.messages import Chunk, Declined
from toolkit.wire.topics import Topics

pytestmark = pytest.mark.needs_mosquitto

SHAPE = (1, 4, 4)
TOPICS = Topics("home")
CAP_S = 20.0
CUTS = {"ant": "hidden1", "bee": "hidden2"}
SETTINGS = Run(
    model="mlp",
    model_options={"width": 16, "depth": 3},
    devices=2,
    rounds=3,
    batch_size=8,
    seed=1,
    codec="float16",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is over: its folder, and a bundle of each device."""
    folder = tmp_path_factory.mktemp("run")
    members = []
    for name, cut in CUTS.items():
        x, y = patterns(48, SHAPE, seed=len(cut))
        members.append(Member(name, cut, local_data(x, y, classes=["a", "b", "c"])))
    with Fleet(folder, members, SETTINGS) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.coordinator.over and all(m.agent.over for m in members))
    for name in CUTS:
        export_held(folder / "devices" / name, folder / "bundles" / name)
    return folder


def link_of(broker, client_id):
    return MqttLink(broker.address, client_id, max_packet_bytes=MAX_MESSAGE_BYTES, max_backoff_s=0.1)


@contextmanager
def serving(broker, folder, *, run=RUN, slow_s=0.0):
    """A coordinator in a thread of its own."""
    routes = Routes(folder / "run" / "checkpoints")
    service = OffloadService(run, topics=TOPICS, routes=routes, clock=time.monotonic)
    server = Server(link_of(broker, "coord"), [service], clock=time.monotonic, say=lambda _: None)
    ended, up = threading.Event(), threading.Event()

    def serve():
        server.start()
        while not ended.is_set():
            if slow_s and service.held_bytes:
                time.sleep(slow_s)
            server.poll(0.01)
            if server._contact.is_made and not up.is_set():
                server._link.publish(TOPICS.ask("nobody"), b"")
            if server.n_refused_messages:  # the broker has its subscription
                up.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert up.wait(CAP_S)
    try:
        yield service
    finally:
        ended.set()
        thread.join()
        server.close()


@contextmanager
def asking(broker, folder, device, *, deadline_s=5.0, origin=None):
    bundle = open_bundle(folder / "bundles" / device)
    manifest = (
        bundle.manifest if origin is None else msgspec.structs.replace(bundle.manifest, provenance=origin)
    )
    asker = Asker(
        link_of(broker, f"{device}.infer"),
        topics=TOPICS,
        device=device,
        deadline_s=deadline_s,
        clock=time.monotonic,
        boot_nonce=device.encode().ljust(16, b"\0"),
    )
    try:
        yield asker, Cascade(bundle, offload=asker.about(manifest), threshold=1e-9)
    finally:
        asker.close()


def kept_rounds(folder):
    """Checkpoints by the round that they closed."""
    places = (folder / "run" / "checkpoints").iterdir()
    return {int(place.name.rpartition("-")[2]): place for place in sorted(places)}


@torch.no_grad()
def through_the_server(folder, device, h):
    """Logits of committed layers on activations, by hand."""
    bundle = open_bundle(folder / "bundles" / device)
    kept = kept_rounds(folder)
    chosen = kept.get(bundle.manifest.provenance.round, kept[max(kept)])
    tensors = load_tensors(chosen / "model.safetensors")
    job = msgspec.json.decode((chosen / "checkpoint.json").read_bytes())["jobs"][device]
    suffix = take_suffix(build_network(ModelSpec(**job["model"]), seed=0), CUTS[device]).eval()
    suffix.load_state_dict({name: tensors[name] for name in suffix.state_dict()})
    return suffix(torch.from_numpy(h)).numpy()


def samples(n=20):
    return patterns(n, SHAPE, seed=9)[0]


@pytest.mark.parametrize("device", CUTS)
def test_unsure_samples_are_answered_by_the_layers_behind_this_boards_cut(mosquitto, trained, device):
    with serving(mosquitto, trained) as service, asking(mosquitto, trained, device) as (asker, cascade):
        assert asker.start(CAP_S)
        answers = cascade(samples())
    sent = []
    Cascade(cascade.bundle, offload=lambda h: sent.append(h) or list, threshold=1e-9).begin(samples())
    h = sent[0].astype(np.float16).astype(np.float32)  # the run's codec
    expected = through_the_server(trained, device, h)
    assert {a.exit for a in answers} == {"coordinator"}
    np.testing.assert_array_equal(answers.index, expected.argmax(1))
    assert not answers.fallback.any()
    assert not answers.unsure.any()
    assert (asker.facts.n_asked, asker.facts.n_answered, service.n_answered) == (20, 20, 1)
    made = cascade.manifest.provenance.round
    kept = kept_rounds(trained)
    assert dict(asker.facts.theta_rounds) == {made if made in kept else max(kept): 20}


def test_several_boards_are_served_in_one_pass(mosquitto, trained):
    with (
        serving(mosquitto, trained, slow_s=0.3) as service,
        asking(mosquitto, trained, "ant") as (ant, cascade),
    ):
        assert ant.start(CAP_S)
        begun = [cascade.begin(samples(4)) for _ in range(8)]
        answers = [each.finish() for each in begun]
    assert all((a.exits == 1).all() for a in answers)
    assert service.n_answered == 8
    assert service.n_passes < 8


def test_an_answer_does_not_wait_for_the_training_step_under_way(mosquitto, trained):
    """The coordinator's loop stands still while the questions come, as it does in a step that takes long."""
    routes = Routes(trained / "run" / "checkpoints")
    service = OffloadService(RUN, topics=TOPICS, routes=routes, clock=time.monotonic)
    beside = Beside(service, clock=time.monotonic, say=lambda _: None)
    link = link_of(mosquitto, "coord")
    link.divert(beside.filters, beside.take)
    server = Server(link, [beside], clock=time.monotonic, say=lambda _: None)
    server.start()
    try:
        while not server._contact.is_made:
            server.poll(0.1)
        link.publish(TOPICS.ask("nobody"), b"")
        while not beside.n_refused:  # the broker has its subscription
            server.poll(0.01)
        with asking(mosquitto, trained, "ant") as (asker, cascade):
            assert asker.start(CAP_S)
            answers = cascade.run(samples(4))
            assert [answer.exit for answer in answers] == ["coordinator"] * 4
        server.poll(0.2)  # nothing of it was left for the loop
    finally:
        server.close()
    assert (service.n_answered, beside.n_refused) == (1, 1)


def test_one_link_asks_about_a_bundle_and_about_the_one_that_replaces_it(mosquitto, trained):
    with serving(mosquitto, trained) as service, asking(mosquitto, trained, "ant") as (asker, first):
        assert asker.start(CAP_S)
        other = open_bundle(trained / "bundles" / "bee")
        second = Cascade(other, offload=asker.about(other.manifest), threshold=1e-9)
        begun = [cascade.begin(samples()) for cascade in (first, second, first)]
        answers = [each.finish() for each in begun]
    assert service.n_answered == 3
    assert not any(a.fallback.any() for a in answers)
    np.testing.assert_array_equal(answers[0].index, answers[2].index)


def test_no_coordinator_is_a_fallback_after_the_deadline_and_soon_without_waiting(
    mosquitto, trained, monkeypatch
):
    monkeypatch.setattr(asker_module, "PROBE_S", 60.0)
    with asking(mosquitto, trained, "ant", deadline_s=0.2) as (asker, cascade):
        assert asker.start(CAP_S)
        alone = Cascade(cascade.bundle, threshold=1e-9)(samples(1))
        times = []
        for _ in range(asker_module.PATIENCE + 1):
            answers = cascade(samples(1))
            assert answers.fallback.all()
            assert answers.index.tolist() == alone.index.tolist()
            times.append(answers.ms[0])
    assert all(ms >= 200 for ms in times[:-1])
    assert times[-1] < 200
    assert asker.facts.reasons == {"late": asker_module.PATIENCE, "nobody answers": 1}


def test_a_broker_that_goes_in_mid_batch_is_a_fallback_at_once(mosquitto, trained):
    with asking(mosquitto, trained, "ant", deadline_s=60.0) as (asker, cascade):
        assert asker.start(CAP_S)
        begun = cascade.begin(samples())
        assert begun.waiting.size == 20
        mosquitto.kill()
        started = time.monotonic()
        answers = begun.finish()
        assert time.monotonic() - started < 30
        assert answers.fallback.all()
        assert cascade(samples()).fallback.all()  # not even asked
        assert set(asker.facts.reasons) == {"connection lost", "no connection"}
        mosquitto.start()
        with serving(mosquitto, trained):
            deadline_s = time.monotonic() + CAP_S
            while cascade(samples()).fallback.any():
                assert time.monotonic() < deadline_s, asker.facts


def test_another_run_declines_and_nobody_waits(mosquitto, trained):
    with (
        serving(mosquitto, trained, run="run2"),
        asking(mosquitto, trained, "ant", deadline_s=60.0) as (asker, cascade),
    ):
        assert asker.start(CAP_S)
        assert cascade(samples()).fallback.all()
    assert asker.facts.reasons == {"declined: The run run2 is served here, not run1.": 20}


class Forger:
    """Hears the questions and answers what it likes."""

    def __init__(self, broker):
        self._link = link_of(broker, "forger")
        self._link.start()
        while not any(isinstance(e, Connected) for e in self._link.poll(0.1)):
            pass
        self._link.subscribe(TOPICS.all_asks)
        self._link.publish(TOPICS.ask("forger"), b"")
        while not any(isinstance(e, Received) for e in self._link.poll(0.1)):
            pass  # until the broker has its subscription
        self._assembler = chunks.Assembler()

    def next_ask(self):
        deadline_s = time.monotonic() + CAP_S
        while time.monotonic() < deadline_s:
            for event in self._link.poll(0.1):
                if isinstance(event, Received):
                    whole = self._assembler.add(*frames.decode(event.payload))
                    if whole is not None:
                        return questions.decode_ask(whole, device="ant")[0]
        raise AssertionError("nobody asks")

    def say(self, frame, payload_id=b"0"):
        for chunk in chunks.split(frame, payload_id=payload_id.ljust(16, b"\0"), chunk_bytes=4096):
            self._link.publish(TOPICS.answer("ant"), chunk, qos=0)

    def close(self):
        self._link.close()


def test_only_an_answer_to_this_question_about_this_segment_counts(mosquitto, trained):
    forger = Forger(mosquitto)
    with asking(mosquitto, trained, "ant", deadline_s=CAP_S) as (asker, cascade):
        assert asker.start(CAP_S)
        warm = cascade.begin(samples(2))  # the subscription is in place once this one is heard
        ask = forger.next_ask()
        good = np.asarray([[9, 0, 0], [0, 9, 0]], np.float32)
        replace = msgspec.structs.replace
        forged = [
            questions.encode_answer(replace(ask, n=ask.n + 1), good, theta_round=1),
            questions.encode_answer(replace(ask, boot_nonce=bytes(16)), good, theta_round=1),
            questions.encode_answer(replace(ask, origin=bytes(32)), good, theta_round=1),
            questions.encode_answer(ask, good[:1], theta_round=1),
            questions.encode_answer(ask, good[:, :2], theta_round=1),
            bytearray(questions.encode_answer(ask, good, theta_round=1)[:-1]) + b"\x7f",
            frames.encode(Declined(boot_nonce=bytes(16), n=ask.n, code="busy", message="")),
        ]
        for number, frame in enumerate(forged):
            forger.say(frame, bytes([65 + number]))
        forger.say(questions.encode_answer(ask, good, theta_round=7))
        answers = warm.finish()
        assert answers.index.tolist() == [0, 1]
        assert asker.facts.theta_rounds == {7: 2}
        assert asker.facts.n_refused == len(forged)
        forger.say(questions.encode_answer(ask, good[::-1], theta_round=8))  # twice
        again = cascade.begin(samples(1))
        second = forger.next_ask()
        assert second.n == ask.n + 1
        forger.say(questions.encode_answer(second, good[:1], theta_round=7))
        again.finish()
        assert asker.facts.n_refused == len(forged) + 1
        assert 8 not in asker.facts.theta_rounds
    forger.close()


def test_a_bundle_that_nobody_could_answer_for_says_so(mosquitto, trained):
    made = open_bundle(trained / "bundles/ant").manifest.provenance
    nameless = msgspec.structs.replace(made, weights=None)
    with (
        pytest.raises(BundleError, match="does not name the weights"),
        asking(mosquitto, trained, "ant", origin=nameless),
    ):
        pass


def test_answering_while_training_changes_nothing_of_the_training(tmp_path):
    """Two runs of one seed: in one a board asks again and again, of every round that is closed."""
    made = {}
    for name in ("asked", "left alone"):
        folder = tmp_path / name
        members = [
            Member(device, cut, local_data(*patterns(48, SHAPE, seed=len(cut)), classes=["a", "b", "c"]))
            for device, cut in CUTS.items()
        ]
        clock = time.monotonic
        service = OffloadService(
            RUN, topics=TOPICS_OF_FLEET, routes=Routes(folder / "run" / "checkpoints"), clock=clock
        )
        with Fleet(folder, members, SETTINGS, services=(service,)) as fleet:
            asker = MemoryLink(fleet.hub, "ant.infer")
            asker.start()
            asker.subscribe(TOPICS_OF_FLEET.answer("ant"))
            fleet.start()
            n_asked = 0
            while not (fleet.coordinator.over and all(m.agent.over for m in members)):
                if name == "asked" and fleet.round() > 1:
                    n_asked += 1
                    ask_once(asker, n_asked)
                fleet.sweep()
            heard = [frames.decode(e.payload)[0] for e in asker.poll(0) if isinstance(e, Received)]
        made[name] = fleet.server()
        assert service.n_answered == len([one for one in heard if isinstance(one, Chunk)])
        assert (service.n_answered > 10) == (name == "asked")
        assert {type(one) for one in heard} <= {Chunk}
    assert made["asked"].keys() == made["left alone"].keys()
    for name, tensor in made["asked"].items():
        assert torch.equal(tensor, made["left alone"][name]), name


def ask_once(link, n):
    address = questions.AskAddress(
        boot_nonce=bytes(16), device="ant", run=RUN, cut="hidden1", round=1, origin=bytes(32)
    )
    h = np.random.default_rng(n).normal(size=(3, 16)).astype(np.float32)
    frame = questions.encode_ask(address, h, "float32", n=n, ttl_ms=60_000)
    for chunk in chunks.split(frame, payload_id=n.to_bytes(16), chunk_bytes=4096):
        link.publish(TOPICS_OF_FLEET.ask("ant"), chunk, qos=0)


# the commands, as processes


@pytest.fixture
def hsee(tmp_path):
    started = Hsee(tmp_path)
    yield started
    started.kill_all()


class Typing:
    """``hsee infer`` on standard input, a row at a time."""

    def __init__(self, hsee, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli.entry", "infer", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=hsee.folder,
            env=hsee.env,
        )

    def answer(self, sample):
        self.process.stdin.write(",".join(f"{value:.6f}" for value in sample.ravel()) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_the_commands_and_the_broker_gone_between_two_samples(hsee, mosquitto, trained):
    shutil.copytree(trained / "run", hsee.folder / "runs" / RUN)
    bundle, x = trained / "bundles" / "ant", samples(3)
    port = mosquitto.address.port
    server = hsee.start("coordinator", "serve", f"runs/{RUN}", "--broker", f"127.0.0.1:{port}")
    server.wait_for("connected to the broker")
    second = hsee.start("coordinator", "serve", f"runs/{RUN}", "--broker", f"127.0.0.1:{port}")
    assert second.end() == 1
    assert "Another coordinator is at work" in second.err
    broker = ("--broker", f"127.0.0.1:{port}", "--offload-deadline", "20s")
    typing = Typing(hsee, bundle, "-", "--threshold", "1e-9", *broker)
    try:
        assert "coordinator" in typing.answer(x[0])
        mosquitto.kill()
        assert typing.answer(x[1]).rstrip().endswith("unsure, fallback")
    finally:
        status, out, err = typing.end()
    assert (status, err) == (0, "")
    last = out.splitlines()[-1]
    assert last.startswith(
        f"offload: 2 asked of mqtt://127.0.0.1:{port}, 1 answered by the coordinator's layers"
    )
    assert "1 fell back: 1 " in last

    check_without_a_broker(hsee, port, bundle, x)


def check_without_a_broker(hsee, port, bundle, x):
    """A note and a fallback, never an error; but a connection that would be insecure is refused."""
    np.save(hsee.folder / "x.npy", x)
    words = ("infer", bundle, "x.npy", "--threshold", "1e-9", "--json", "--broker")
    done = hsee.run(*words, f"127.0.0.1:{port}")
    assert done.end() == 0, done.describe()
    assert "Unsure samples are answered here" in done.err
    told = json.loads(done.out)
    assert {sample["fallback"] for sample in told["samples"]} == {True}
    summary = told["summary"]
    assert (summary["n_offloaded"], summary["n_answered"], summary["n_fallback"]) == (len(x), 0, len(x))
    assert summary["offload"]["reasons"] == {"no connection": len(x)}
    off_machine = hsee.run(*words, "192.0.2.1:1883")
    assert off_machine.end() == 4
    assert "without TLS" in off_machine.out

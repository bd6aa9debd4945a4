"""What offloading costs a board, what one pass for many boards saves, and what a training step costs an answer; as JSON.

python -m tests.bench.bench_offload [--boards 32] [--seconds 10]

CIFAR ResNet-18 (width 64), cut after layer1, int8 activations of one sample a question, a real Mosquitto on this machine,
boards as threads of one process: each asks again as soon as it has its answer. The coordinator computes with one thread,
and then trains too, in steps of 32 samples: once answering between its steps, once in a thread of its own as
``hsee coordinator start`` does.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from coordinator.beside.offload import OffloadService
from coordinator.beside.own_thread import Beside
from coordinator.beside.routes import Route, Served
from coordinator.beside.serving import Server
from device_agent.asker import Asker
from tests.mosquitto import Mosquitto
from tests.tiny_bundles import manifest_of, scaling_segment
from toolkit.bundle.manifest import Exit, Port, Preprocessing, Provenance
from toolkit.link.mqtt import MqttLink
from toolkit.nn.cut import activation_shape, take_segment, take_suffix
from toolkit.nn.steps import make_optimizer, server_step
from toolkit.nn.zoo import build_network
from toolkit.profile.board import machine_name
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.limits import MAX_MESSAGE_BYTES
from toolkit.wire.topics import Topics

SPEC = ModelSpec(name="resnet18", input_shape=[3, 32, 32], n_classes=10)
CUT = "layer1"
BATCH_SIZE = 32
DEADLINE_MS = 200.0
"""What ``hsee infer`` waits for unless told otherwise."""
TOPICS = Topics("bench")


class OneRoute:
    """Layers with random weights, served as those of round 1."""

    def __init__(self):
        network = build_network(SPEC, seed=0)
        self.shape = activation_shape(take_segment(network, CUT), SPEC.input_shape)
        self._route = Route(1, take_suffix(network, CUT).eval(), "cpu")

    def served(self):
        return Served((1,), {CUT: self.shape})

    def get(self, _round, _cut):
        return self._route


def manifest(shape):
    """A bundle that ends at the cut."""
    record = scaling_segment(1)
    fields = {
        "input": Port(name="image", shape=tuple(SPEC.input_shape)),
        "activations": Port(name="activations", shape=shape),
        "exit": Exit(
            name=CUT, logits=Port(name="logits", shape=(SPEC.n_classes,)), policy=record.exit.policy
        ),
    }
    made = Provenance(
        run="bench",
        device="bench",
        model=SPEC.name,
        cut=CUT,
        round=1,
        created="2026-01-01T00:00:00+00:00",
        software={},
        weights="0" * 64,
        codec="int8",
    )
    return manifest_of(
        type(record)(**{name: fields.get(name, getattr(record, name)) for name in record.__struct_fields__}),
        class_names=[f"class{i}" for i in range(SPEC.n_classes)],
        input_shape=tuple(SPEC.input_shape),
        preprocessing=Preprocessing(mean=[0.5] * 3, std=[0.25] * 3, value_range=(0, 1)),
        provenance=made,
    )


def board(address, number, about, until, times):
    """Ask again and again; note milliseconds of each answer."""
    asker = Asker(
        MqttLink(address, f"board{number}", max_packet_bytes=MAX_MESSAGE_BYTES),
        topics=TOPICS,
        device=f"board{number}",
        deadline_s=10.0,
        clock=time.monotonic,
        boot_nonce=number.to_bytes(16),
    )
    ask = asker.about(about)
    h = np.random.default_rng(number).random((1, *about.segments[0].activations.shape)).astype(np.float32)
    asker.start(10.0)
    try:
        while time.monotonic() < until:
            [reply] = ask(h)()
            times.append(reply.ms if reply.logits is not None else None)
    finally:
        asker.close()


class Training:
    """A coordinator's training steps behind the cut, on made-up activations."""

    def __init__(self, shape):
        generator = torch.Generator().manual_seed(0)
        self._h = torch.randn(BATCH_SIZE, *shape, generator=generator)
        self._y = torch.randint(SPEC.n_classes, (BATCH_SIZE,), generator=generator)
        self._suffix = take_suffix(build_network(SPEC, seed=0), CUT)
        self._sgd = make_optimizer(self._suffix, OptimizerSpec())
        self.seconds = []

    def step(self):
        """Train on one batch."""
        began = time.perf_counter()
        server_step(self._suffix, self._sgd, self._h, self._y, seed=0)
        self.seconds.append(time.perf_counter() - began)


def serve(n_boards, seconds, routes, *, training=None, beside=False):
    """Let so many boards ask for so long; returns what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(Path(folder))
        broker.start()
        service = OffloadService("bench", topics=TOPICS, routes=routes, clock=time.monotonic)
        link = MqttLink(broker.address, "coordinator", max_packet_bytes=MAX_MESSAGE_BYTES)
        rides = service
        if beside:
            rides = Beside(service, clock=time.monotonic, say=lambda _: None)
            link.divert(rides.filters, rides.take)
        server = Server(link, [rides], clock=time.monotonic, say=lambda _: None)
        server.start()
        while not server._contact.is_made:
            server.poll(0.1)
        server.poll(0.0)  # services have had a turn: what waits for one is not what is measured
        times = []
        about = manifest(routes.shape)
        until = time.monotonic() + seconds
        boards = [
            threading.Thread(target=board, args=(broker.address, i, about, until, times))
            for i in range(n_boards)
        ]
        for each in boards:
            each.start()
        while any(each.is_alive() for each in boards):
            if training is not None:
                training.step()
            server.poll(0.01 if training is None else 0.0)
        server.close()
        broker.kill()
    answered = [ms for ms in times if ms is not None]
    return {
        "boards": n_boards,
        "answers_a_second": len(answered) / seconds,
        "samples_a_pass": service.n_answered / max(1, service.n_passes),
        "ms_p50": float(np.percentile(answered, 50)) if answered else None,
        "ms_p95": float(np.percentile(answered, 95)) if answered else None,
        "within_deadline": sum(ms <= DEADLINE_MS for ms in answered) / max(1, len(times)),
        "n_late": len(times) - len(answered),
    }


def while_training(boards, seconds, routes):
    """The same while the coordinator trains: alone, answering between its steps, answering beside them."""
    alone = Training(routes.shape)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        alone.step()
    told = {"step_ms_alone": 1000 * float(np.median(alone.seconds)), "deadline_ms": DEADLINE_MS}
    for name, beside in (("between steps", False), ("beside", True)):
        for n_boards in (1, boards):
            training = Training(routes.shape)
            found = serve(n_boards, seconds, routes, training=training, beside=beside)
            step_ms = 1000 * float(np.median(training.seconds))
            told[f"{name}, {n_boards} boards"] = {**found, "step_ms": step_ms}
    return told


def main():
    """Measure one board and many, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    routes = OneRoute()
    report = [serve(n, options.seconds, routes) for n in (1, options.boards)]
    ratio = report[1]["answers_a_second"] / report[0]["answers_a_second"]
    told = {
        "machine": machine_name(),
        "one": report[0],
        "many": report[1],
        "many_over_one": ratio,
        "while_training": while_training(options.boards, options.seconds, routes),
    }
    print(json.dumps(told, indent=2))  # noqa: T201 - this is what a bench is for


if __name__ == "__main__":
    main()

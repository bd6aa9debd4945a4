"""Training that does not wait for its server against training that does, over a raw link and through a broker."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coordinator.model.server_model import ServerModel
from coordinator.strategy.catalogue import make_strategy
from tests.bench.wire_load import (
    ADDRESS,
    BATCH_SIZE,
    DOWN,
    TOPIC,
    TURNS,
    spawn,
)
from tests.mosquitto import Mosquitto
from toolkit.link.base import BrokerAddress, Received
from toolkit.link.mqtt import MqttLink
from toolkit.nn.steps import build_device_model, device_step
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES, MAX_MESSAGE_BYTES
from toolkit.wire.payloads import Batch

MODEL = ModelSpec(name="resnet18", input_shape=[3, 32, 32], n_classes=10, options={"width": 16})
OPTIMIZER = OptimizerSpec()


def make_server(cut: str, folder: Path) -> ServerModel:
    """The production model of the server."""
    torch.set_num_threads(1)
    return ServerModel(
        MODEL,
        cuts={"ant": cut},
        optimizer=OPTIMIZER,
        rounds=1,
        seed=0,
        strategy=make_strategy("sequential", {}),
        scratch=folder,
    )


def step_s(act: Callable[[], object], n: int = 8) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(n):
        began_s = time.perf_counter()
        act()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times[2:])


def balanced_cut(folder: Path) -> str:
    """The cut at which device and server take most alike."""
    torch.set_num_threads(1)
    gaps = {}
    for cut in ("stem", "layer1", "layer2", "layer3"):
        device, x, y = device_side(cut)
        server = make_server(cut, folder)
        forward = device_step(device, x, y, seed=0)
        batch = to_batch(forward.h, y)
        of_device = step_s(lambda d=device, x=x, y=y: device_step(d, x, y, seed=0))
        of_server = step_s(lambda s=server, b=batch: s.apply("ant", b, round_=1, seq=1))
        gaps[cut] = abs(of_device - of_server) / (of_device + of_server)
    return min(gaps, key=lambda cut: gaps[cut])


def device_side(cut: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The production model of a device, and a batch of noise."""
    torch.set_num_threads(1)
    model = build_device_model(MODEL, cut=cut, exit_head="pooled", optimizer=OPTIMIZER, seed=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH_SIZE, 3, 32, 32, generator=generator)
    return model, x, torch.randint(0, 10, (BATCH_SIZE,), generator=generator)


def to_batch(h: torch.Tensor, y: torch.Tensor) -> Batch:
    """What a device hands over."""
    return Batch("train", h.contiguous().numpy(), y.numpy(), 0.5, 1, 1)


class RawLink:
    """A socket with the length before each message: what a broker is compared with."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, data: bytes | bytearray) -> None:
        self._sock.sendall(len(data).to_bytes(4) + data if len(data) < 64 else len(data).to_bytes(4))
        if len(data) >= 64:
            self._sock.sendall(data)

    def recv(self) -> bytearray:
        n = int.from_bytes(self._exactly(4))
        return self._exactly(n)

    def _exactly(self, n: int) -> bytearray:
        data = bytearray(n)
        view = memoryview(data)
        while n:
            got = self._sock.recv_into(view[-n:])
            if not got:
                raise EOFError
            n -= got
        return data


class BrokerLink:
    """The same through a broker, on our own link."""

    def __init__(self, address: BrokerAddress, name: str, *, sends: str, takes: str) -> None:
        self._link = MqttLink(address, name, max_packet_bytes=MAX_MESSAGE_BYTES)
        self._link.start()
        self._link.poll(10.0)
        self._link.subscribe(takes)
        time.sleep(0.3)
        self._sends = sends
        self._assembler = chunks.Assembler()
        self._ready: list[bytes] = []

    def send(self, data: bytes | bytearray) -> None:
        for piece in chunks.split(data, payload_id=os.urandom(16), chunk_bytes=DEFAULT_CHUNK_BYTES):
            self._link.publish(self._sends, piece)

    def recv(self) -> bytes:
        while not self._ready:
            for event in self._link.poll(1.0):
                assert isinstance(event, Received)
                whole = self._assembler.add(*frames.decode(event.payload))  # type: ignore[arg-type]
                if whole is not None:
                    self._ready.append(whole)
        return self._ready.pop(0)


def serve_steps(port: int, address: BrokerAddress | None, cut: str, folder: str) -> None:
    """Train on what arrives and answer each batch."""
    server = make_server(cut, Path(folder))
    if address is None:
        link: Any = RawLink(socket.create_connection(("127.0.0.1", port)))
    else:
        link = BrokerLink(address, "coord", sends=DOWN, takes=TOPIC)
    link.send(b"ready")
    shape: list[int] | None = None
    try:
        while True:
            whole = link.recv()
            if whole == b"end":
                return
            header, body = payloads.decode(whole, device="ant")
            shape = shape or header.tensors[0].shape[1:]
            batch = payloads.to_batch(
                header, body, activation_shape=shape, n_classes=10, batch_size=BATCH_SIZE
            )
            server.apply("ant", batch, round_=1, seq=1)
            link.send(b"done")
    except EOFError:
        return


def run_steps(link: Any, model: Any, x: torch.Tensor, y: torch.Tensor, *, ahead: int, n: int) -> float:
    """Train ``n`` batches, at most ``ahead`` of them unanswered; returns seconds a batch."""
    began_s, unanswered = time.perf_counter(), 0
    for _ in range(n):
        forward = device_step(model, x, y, seed=0)
        while unanswered >= ahead:
            link.recv()
            unanswered -= 1
        link.send(payloads.encode(ADDRESS, to_batch(forward.h, y), "float32"))
        unanswered += 1
        if ahead == 1:  # the synchronous round trip: nothing is computed before the answer
            link.recv()
            unanswered -= 1
    while unanswered:
        link.recv()
        unanswered -= 1
    return (time.perf_counter() - began_s) / n


def bench_pipelined(folder: Path) -> dict[str, Any]:
    """Seconds a batch, pipelined over synchronous, at a balanced cut."""
    cut = balanced_cut(folder)
    found: dict[str, Any] = {"cut": cut}
    for way in ("raw", "broker"):
        model, x, y = device_side(cut)
        broker = None
        if way == "raw":
            listener = socket.create_server(("127.0.0.1", 0))
            words = (listener.getsockname()[1], None, cut, str(folder))
        else:
            broker = Mosquitto(folder)
            broker.start()
            words = (0, broker.address, cut, str(folder))
        link = None if broker is None else BrokerLink(broker.address, "ant", sends=TOPIC, takes=DOWN)
        child = spawn.Process(target=serve_steps, args=words)
        child.start()
        if link is None:
            link = RawLink(listener.accept()[0])  # type: ignore[assignment]
        assert link is not None
        assert link.recv() == b"ready"
        run_steps(link, model, x, y, ahead=2, n=10)
        ratios, times = [], {"synchronous": [], "pipelined": []}
        for _ in range(TURNS):
            synchronous = run_steps(link, model, x, y, ahead=1, n=30)
            pipelined = run_steps(link, model, x, y, ahead=3, n=30)
            ratios.append(pipelined / synchronous)
            times["synchronous"].append(synchronous)
            times["pipelined"].append(pipelined)
        link.send(b"end")
        child.join(20)
        if broker is not None:
            broker.kill()
        found[way] = {
            "ratio": statistics.median(ratios),
            **{f"{name}_ms": 1000 * statistics.median(each) for name, each in times.items()},
        }
    return found

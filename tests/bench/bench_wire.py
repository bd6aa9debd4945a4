"""What the wire costs (issue 5, item 8): ratios in one run, printed as JSON and as the table of docs/results/wire.md.

python -m tests.bench.bench_wire [--only throughput,pipelined,embedded,codec,memory,join]

Both sides of every ratio take turns in the same minutes, on one Mosquitto with ``set_tcp_nodelay``, in processes of
their own with one compute thread each. Run it on a quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import torch
import zstandard
from paho.mqtt.enums import CallbackAPIVersion

from coordinator.server_model import ServerModel
from coordinator.strategy.catalogue import make_strategy
from tests.e2e.processes import ROOT, Hsee
from tests.faults.stubs import FLEET, device_name
from tests.mosquitto import Mosquitto
from tests.served_broker import ServedBroker
from toolkit.link.base import BrokerAddress, Received
from toolkit.link.broker import generate_password, start_embedded_broker
from toolkit.link.mqtt import MqttLink
from toolkit.nn.steps import build_device_model, device_step
from toolkit.profile.board import machine_name
from toolkit.wire import chunks, frames, payloads, tensors
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES, MAX_MESSAGE_BYTES
from toolkit.wire.messages import Chunk
from toolkit.wire.payloads import Batch

TOPIC = "hsee/v1/home/data/bench/ant/up"
DOWN = "hsee/v1/home/data/bench/ant/down"
ADDRESS = payloads.PayloadAddress(
    device="ant", round=1, seq=1, term=1, incarnation=1, plan_version=1, cut="layer1"
)
SHAPE = (64, 16, 16)
BATCH_SIZE = 32
N_BATCHES = 60
TURNS = 5
OUTSTANDING_BYTES = 8 * 1024 * 1024
"""As the agent: no further batch is handed to the link while it holds so much."""
MIB = 2**20
_spawn = multiprocessing.get_context("spawn")


def activations(seed: int = 0) -> Batch:
    """Half zeros, as behind a ReLU."""
    rng = np.random.default_rng(seed)
    h = np.maximum(rng.normal(size=(BATCH_SIZE, *SHAPE)).astype(np.float32), 0)
    return Batch("train", h, rng.integers(0, 10, BATCH_SIZE), 0.5, 1, 1)


# End-to-end throughput against a bare paho loop


def receive_bare(address: BrokerAddress, n_bytes: int, n_turns: int, pipe: Connection) -> None:
    """Count bytes; say when each turn's are here."""
    seen, done = 0, threading.Event()

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        nonlocal seen
        seen += len(message.payload)
        if seen >= n_bytes:
            done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare-in")
    client.on_message = on_message
    client.connect(address.host, address.port)
    client.subscribe(TOPIC, qos=1)
    client.loop_start()
    time.sleep(0.5)
    pipe.send("ready")
    for _ in range(n_turns):
        done.wait(120)
        seen = 0
        done.clear()
        pipe.send("turn")
    client.disconnect()


def receive_ours(address: BrokerAddress, n_turns: int, pipe: Connection) -> None:
    """Assemble, check and decode every batch, as the coordinator does."""
    link = MqttLink(address, "ours-in", max_packet_bytes=MAX_MESSAGE_BYTES)
    link.start()
    assembler, n, turns = chunks.Assembler(), 0, 0
    while turns < n_turns:
        for event in link.poll(0.1):
            if not isinstance(event, Received):
                link.subscribe(TOPIC)
                time.sleep(0.5)
                pipe.send("ready")
                continue
            header, body = frames.decode(event.payload)
            assert isinstance(header, Chunk)
            whole = assembler.add(header, body)
            if whole is not None:
                named, content = payloads.decode(whole, device="ant")
                payloads.to_batch(named, content, activation_shape=SHAPE, n_classes=10, batch_size=BATCH_SIZE)
                n += 1
        if n == N_BATCHES:
            n, turns = 0, turns + 1
            pipe.send("turn")
    link.close()


def send_bare(client: paho.Client, pieces: list[bytearray]) -> None:
    """Publish the same payload again and again, with the same bound on what is outstanding."""
    waiting = []
    for _ in range(N_BATCHES):
        for piece in pieces:
            waiting.append(client.publish(TOPIC, piece, qos=1))
            while len(waiting) * DEFAULT_CHUNK_BYTES > OUTSTANDING_BYTES:
                waiting.pop(0).wait_for_publish()


def send_ours(link: MqttLink, batch: Batch) -> None:
    """Encode, cut and publish every batch, as the agent does."""
    for _ in range(N_BATCHES):
        while link.outstanding_bytes >= OUTSTANDING_BYTES:
            time.sleep(0.0005)
        whole = payloads.encode(ADDRESS, batch, "float32")
        for piece in chunks.split(whole, payload_id=os.urandom(16), chunk_bytes=DEFAULT_CHUNK_BYTES):
            link.publish(TOPIC, piece)


def bench_throughput(folder: Path) -> dict[str, Any]:
    """MB/s from device to coordinator, ours against bare paho."""
    broker = Mosquitto(folder, settings="max_queued_messages 10000\nmax_inflight_messages 20")
    broker.start()
    batch = activations()
    whole = payloads.encode(ADDRESS, batch, "float32")
    pieces = list(chunks.split(whole, payload_id=bytes(16), chunk_bytes=DEFAULT_CHUNK_BYTES))
    n_bytes = N_BATCHES * sum(map(len, pieces))
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    try:
        for _ in range(TURNS):
            for kind, took in seconds.items():
                here, there = _spawn.Pipe()
                target, words = (
                    (receive_bare, (broker.address, n_bytes, 1, there))
                    if kind == "bare"
                    else (receive_ours, (broker.address, 1, there))
                )
                child = _spawn.Process(target=target, args=words)
                child.start()
                assert here.recv() == "ready"
                if kind == "bare":
                    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare-out")
                    client.connect(broker.address.host, broker.address.port)
                    client.loop_start()
                    while not client.is_connected():
                        time.sleep(0.01)
                    began_s = time.perf_counter()
                    send_bare(client, pieces)
                else:
                    link = MqttLink(broker.address, "ours-out", max_packet_bytes=MAX_MESSAGE_BYTES)
                    link.start()
                    link.poll(5.0)
                    began_s = time.perf_counter()
                    send_ours(link, batch)
                assert here.recv() == "turn"
                took.append(time.perf_counter() - began_s)
                _ = client.disconnect() if kind == "bare" else link.close()
                child.join(10)
    finally:
        broker.kill()
    rates = {kind: n_bytes / MIB / statistics.median(took) for kind, took in seconds.items()}
    return {
        "bare_mib_per_s": rates["bare"],
        "ours_mib_per_s": rates["ours"],
        "ratio": statistics.median(b / o for b, o in zip(seconds["bare"], seconds["ours"], strict=True)),
    }


# Pipelined against synchronous

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
        child = _spawn.Process(target=serve_steps, args=words)
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


# The embedded broker


def receive_messages(address: BrokerAddress, n: int, pipe: Connection) -> None:
    """Count messages of a turn."""
    link = MqttLink(address, address.username, max_packet_bytes=2 * MIB)
    link.start()
    link.poll(10.0)
    link.subscribe("a/b")
    time.sleep(0.3)
    pipe.send("ready")
    while True:
        seen = 0
        while seen < n:
            seen += sum(isinstance(event, Received) for event in link.poll(1.0))
        pipe.send("turn")


def bench_embedded(folder: Path) -> dict[str, Any]:
    """MB/s at 1 MB and QoS 1 through the embedded broker, and through Mosquitto in turns with it."""
    accounts = {name: generate_password() for name in ("out", "in")}
    n, payload = 60, os.urandom(10**6)
    rates: dict[str, list[float]] = {"embedded": [], "mosquitto": []}
    mosquitto = Mosquitto(folder, settings="max_queued_messages 10000")
    mosquitto.start()
    with start_embedded_broker(folder / "embedded", accounts) as embedded:
        for _ in range(TURNS):
            for kind, address in (("embedded", embedded.address), ("mosquitto", mosquitto.address)):
                logins = {name: address.with_login(name, accounts[name]) for name in accounts}
                here, there = _spawn.Pipe()
                child = _spawn.Process(target=receive_messages, args=(logins["in"], n, there), daemon=True)
                child.start()
                here.recv()
                link = MqttLink(logins["out"], "out", max_packet_bytes=2 * MIB)
                link.start()
                link.poll(10.0)
                began_s = time.perf_counter()
                for _ in range(n):
                    while link.outstanding_bytes >= OUTSTANDING_BYTES:
                        time.sleep(0.0005)
                    link.publish("a/b", payload)
                here.recv()
                rates[kind].append(n * len(payload) / 1e6 / (time.perf_counter() - began_s))
                link.close()
                child.terminate()
                child.join()
    mosquitto.kill()
    return {f"{kind}_mb_per_s": statistics.median(each) for kind, each in rates.items()}


# int8 with zstd


def bench_codec(_folder: Path) -> dict[str, Any]:
    """Encode and decode against the same calls of numpy and zstandard alone."""
    h = activations().h
    encoded = tensors.encode_activations("h", h, "int8+zstd")
    content = memoryview(encoded.content)
    n_scales = SHAPE[0]

    def library_encode() -> None:
        scales = np.maximum(np.abs(h).max(axis=(0, 2, 3), keepdims=True) / 127, np.finfo(np.float32).tiny)
        codes = np.rint(h / scales).astype(np.int8)
        zstandard.ZstdCompressor(level=1).compress(scales.tobytes() + codes.tobytes())

    def library_decode() -> None:
        raw = zstandard.ZstdDecompressor().decompress(content)
        scales = np.frombuffer(raw, "<f4", count=n_scales).reshape(1, n_scales, 1, 1)
        np.frombuffer(raw, np.int8, offset=4 * n_scales).reshape(h.shape).astype(np.float32) * scales

    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: tensors.encode_activations("h", h, "int8+zstd"),
        "library_encode": library_encode,
        "decode": lambda: tensors.decode(encoded.spec, content),
        "library_decode": library_decode,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(30):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - began_s))
    found: dict[str, Any] = {f"{name}_ms": statistics.median(each) for name, each in times.items()}
    for name in ("encode", "decode"):
        pairs = zip(times[name], times[f"library_{name}"], strict=True)
        found[f"{name}_ratio"] = statistics.median(ours / bare for ours, bare in pairs)
    return found


# Memory of an agent over the bare training loop

BARE_LOOP = """
import sys
import numpy as np
import torch
from toolkit.nn.datasets import load_source
from toolkit.nn.steps import build_device_model, device_step
from toolkit.wire.job import ModelSpec, OptimizerSpec
torch.set_num_threads(1)
data = load_source("digits")
spec = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
model = build_device_model(spec, cut=sys.argv[1], exit_head="pooled", optimizer=OptimizerSpec(), seed=0)
for start in range(0, 1280, 32):
    x = torch.from_numpy(np.ascontiguousarray(data.x[start : start + 32], np.float32))
    device_step(model, x, torch.from_numpy(data.y[start : start + 32]), seed=0)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def bench_memory(folder: Path) -> dict[str, Any]:
    """Peak MiB of an agent in a run, over a loop of the same steps without it."""
    hsee = Hsee(folder)
    hsee.env |= {"OMP_NUM_THREADS": "1"}
    broker = Mosquitto(folder)
    broker.start()
    try:
        port = broker.address.port
        own = ("--home", "ant", "--part", "1/1", "--profile", ROOT / "profiles/emulated/strong.toml")
        agent = hsee.agent(port, "ant", *own)
        coordinator = hsee.coordinator(port, "--run", "r1", "--devices", 1, "--rounds", 4)
        coordinator.wait_for_round(3, 200.0)
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        of_agent = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        plan = next(event for event in coordinator.events if event.get("event") == "plan")
        bare = subprocess.run(
            [sys.executable, "-c", BARE_LOOP, plan["cuts"]["ant"]],
            env=hsee.env,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        hsee.kill_all()
        broker.kill()
    of_loop = int(bare.stdout) / 1024
    return {"agent_mib": of_agent, "loop_mib": of_loop, "over_mib": of_agent - of_loop}


# Many agents that join at once


def bench_join(folder: Path, n: int = 200) -> dict[str, Any]:
    """Seconds until all have their job: Mosquitto with TLS and accounts, the embedded broker with accounts."""
    hsee = Hsee(folder)
    hsee.env |= {"OMP_NUM_THREADS": "1"}
    names = [device_name(number) for number in range(n)]
    found: dict[str, Any] = {"n_agents": n}
    served = ServedBroker(folder / "broker", [*names, "coord-tls"])
    served.start()
    try:
        found["mosquitto_tls"] = _join(hsee, folder / "tls", n, "--broker-folder", folder / "broker")
    finally:
        hsee.kill_all()
        served.stop()
    accounts = {name: generate_password() for name in (*names, "coord-embedded")}
    (folder / "accounts.json").write_text(json.dumps(accounts))
    with start_embedded_broker(folder / "embedded", accounts) as embedded:
        words = ("--broker", f"127.0.0.1:{embedded.address.port}", "--accounts", folder / "accounts.json")
        found["embedded"] = _join(hsee, folder / "embedded", n, *words)
        hsee.kill_all()
    return found


def _join(hsee: Hsee, run: Path, n: int, *words: object) -> dict[str, float]:
    assert FLEET.fleet == "home"
    serve = ("-m", "tests.faults.serve", *words, "--folder", run, "--devices", n, "--rounds", 100_000)
    coordinator = hsee.python(*serve, "--round-steps", 1)
    time.sleep(5.0)  # it stands, as a coordinator does when a fleet comes back
    halves = [
        hsee.python("-m", "tests.faults.stubs", *words, "--first", first, "--count", n // 2, "--pace", 0.2)
        for first in (0, n // 2)
    ]
    lines = []
    for half in halves:
        half.wait_for('"joined"', 200.0)
        lines.append(json.loads(half.out.splitlines()[0]))
    assert coordinator.process.poll() is None, coordinator.describe()
    return {
        "seconds": max(line["seconds"] for line in lines),
        "most_failed": max(line["most_failed"] for line in lines),
    }


BENCHES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "throughput": bench_throughput,
    "pipelined": bench_pipelined,
    "embedded": bench_embedded,
    "codec": bench_codec,
    "memory": bench_memory,
    "join": bench_join,
}
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("throughput", "ratio", "activations over MQTT, of a bare paho loop", "at least 0.8"),
    ("pipelined.broker", "ratio", "pipelined / synchronous, through a broker", "at most 0.80"),
    ("pipelined.raw", "ratio", "pipelined / synchronous, raw link", "at most 0.70"),
    ("embedded", "embedded_mb_per_s", "embedded broker at 1 MB, MB/s", "at least 250"),
    ("codec", "encode_ratio", "int8+zstd encode / library calls", "at most 1.2"),
    ("codec", "decode_ratio", "int8+zstd decode / library calls", "at most 1.2"),
    ("memory", "over_mib", "agent's memory over the bare loop, MiB", "at most 64"),
    ("join.mosquitto_tls", "seconds", "200 agents join, Mosquitto with TLS, s", "at most 10"),
    ("join.embedded", "seconds", "200 agents join, embedded broker, s", "at most 10"),
)


def table(found: dict[str, Any]) -> str:
    """The table for docs/results/wire.md."""
    lines = ["| what | measured | goal |", "|---|---|---|"]
    for path, key, what, goal in ROWS:
        value: Any = found
        for part in path.split("."):
            value = value.get(part, {})
        if key in value:
            lines.append(f"| {what} | {value[key]:.2f} | {goal} |")
    return "\n".join(lines)


def main() -> int:
    """Run the benches asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(BENCHES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "machine": machine_name(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "paho-mqtt", "amqtt", "zstandard")},
    }
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = BENCHES[name](Path(folder))
        sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n\n" + table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""MB/s from device to coordinator against bare paho loops, whose time it takes, and what the buffers on the way cost."""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.bench.wire_load import (
    ADDRESS,
    BATCH_SIZE,
    MIB,
    N_BATCHES,
    OUTSTANDING_BYTES,
    SHAPE,
    TOPIC,
    TURNS,
    activations,
    spawn,
)
from tests.mosquitto import Mosquitto
from toolkit.link.base import BrokerAddress, Received
from toolkit.link.mqtt import MqttLink
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES, MAX_MESSAGE_BYTES
from toolkit.wire.messages import Chunk
from toolkit.wire.payloads import Batch

KINDS = ("bare", "hashed", "ours", "undigested")
"""A bare paho loop, one that hashes every payload at both ends, our code, and our code with a digest that costs nothing."""
PROCESSES = ("receiver", "broker", "sender")


class NoDigest:
    """In the place of SHA-256: what would be gained if a digest were free."""

    def __init__(self, _data: object = b"") -> None: ...

    def update(self, _data: object) -> None:
        """Take nothing."""

    def digest(self) -> bytes:
        """Name everything alike."""
        return bytes(32)


def digest_of(kind: str) -> AbstractContextManager[object]:
    """The digest that our code reckons with meanwhile."""
    return mock.patch.object(payloads.hashlib, "sha256", NoDigest) if kind == "undigested" else nullcontext()


def receive_bare(address: BrokerAddress, n_bytes: int, kind: str, pipe: Connection) -> None:
    """Count bytes, hash them too if ``kind`` says so; when all are here, say what processor time that took."""
    seen, done, digest = 0, threading.Event(), hashlib.sha256()

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        nonlocal seen
        if kind == "hashed":
            digest.update(message.payload)
        seen += len(message.payload)
        if seen >= n_bytes:
            done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare-in")
    client.on_message = on_message
    client.connect(address.host, address.port)
    client.subscribe(TOPIC, qos=1)
    client.loop_start()
    time.sleep(0.5)
    began_s = time.process_time()
    pipe.send("ready")
    assert done.wait(120)
    pipe.send(time.process_time() - began_s)
    client.disconnect()


def receive_ours(address: BrokerAddress, kind: str, pipe: Connection) -> None:
    """Assemble, check and decode every batch, as the coordinator does; say what processor time that took."""
    with digest_of(kind):
        _receive_ours(address, pipe)


def _receive_ours(address: BrokerAddress, pipe: Connection) -> None:
    link = MqttLink(address, "ours-in", max_packet_bytes=MAX_MESSAGE_BYTES)
    link.start()
    assembler, n, began_s = chunks.Assembler(), 0, 0.0
    while n < N_BATCHES:
        for event in link.poll(0.1):
            if not isinstance(event, Received):
                link.subscribe(TOPIC)
                time.sleep(0.5)
                began_s = time.process_time()
                pipe.send("ready")
                continue
            header, body = frames.decode(event.payload)
            assert isinstance(header, Chunk)
            whole = assembler.add(header, body)
            if whole is not None:
                named, content = payloads.decode(whole, device="ant")
                payloads.to_batch(named, content, activation_shape=SHAPE, n_classes=10, batch_size=BATCH_SIZE)
                n += 1
    pipe.send(time.process_time() - began_s)
    link.close()


def send_bare(client: paho.Client, pieces: list[bytearray], *, hashes: bool) -> None:
    """Publish the same payload again and again, with the same bound on what is outstanding; hash it too if asked."""
    waiting, digest = [], hashlib.sha256()
    for _ in range(N_BATCHES):
        for piece in pieces:
            if hashes:
                digest.update(piece)
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
    """MiB/s from device to coordinator in each way of ``KINDS``, and processor time a batch in each process."""
    broker = Mosquitto(folder, settings="max_queued_messages 10000\nmax_inflight_messages 20")
    broker.start()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu_ms: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    batch = activations()
    whole = payloads.encode(ADDRESS, batch, "float32")
    pieces = list(chunks.split(whole, payload_id=bytes(16), chunk_bytes=DEFAULT_CHUNK_BYTES))
    try:
        for _ in range(TURNS):
            for kind in KINDS:
                took_s, of_processes = _take_turn(kind, broker, batch, pieces)
                seconds[kind].append(took_s)
                cpu_ms[kind].append([1000 * cpu_s / N_BATCHES for cpu_s in of_processes])
    finally:
        broker.kill()
    n_mib = N_BATCHES * sum(map(len, pieces)) / MIB
    found: dict[str, Any] = {
        f"{kind}_mib_per_s": n_mib / statistics.median(took) for kind, took in seconds.items()
    }
    for name, theirs, ours in (
        ("ratio", "bare", "ours"),
        ("ratio_of_hashed", "hashed", "ours"),
        ("ratio_undigested", "bare", "undigested"),
    ):
        pairs = zip(seconds[theirs], seconds[ours], strict=True)
        found[name] = statistics.median(one / other for one, other in pairs)
    found["cpu_ms_a_batch"] = {
        kind: dict(zip(PROCESSES, map(statistics.median, zip(*turns, strict=True)), strict=True))
        for kind, turns in cpu_ms.items()
    }
    return found


def _take_turn(
    kind: str, broker: Mosquitto, batch: Batch, pieces: list[bytearray]
) -> tuple[float, tuple[float, float, float]]:
    """Send all batches one way; seconds until they were there, and processor time of each of ``PROCESSES``."""
    here, there = spawn.Pipe()
    is_bare = kind in ("bare", "hashed")
    if is_bare:
        n_bytes = N_BATCHES * sum(map(len, pieces))
        child = spawn.Process(target=receive_bare, args=(broker.address, n_bytes, kind, there))
    else:
        child = spawn.Process(target=receive_ours, args=(broker.address, kind, there))
    child.start()
    assert here.recv() == "ready"
    if is_bare:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare-out")
        client.connect(broker.address.host, broker.address.port)
        client.loop_start()
        while not client.is_connected():
            time.sleep(0.01)
    else:
        link = MqttLink(broker.address, "ours-out", max_packet_bytes=MAX_MESSAGE_BYTES)
        link.start()
        link.poll(5.0)
    of_broker, of_sender, began_s = broker.cpu_s(), time.process_time(), time.perf_counter()
    if is_bare:
        send_bare(client, pieces, hashes=kind == "hashed")
    else:
        with digest_of(kind):
            send_ours(link, batch)
    of_receiver = here.recv()
    took_s = time.perf_counter() - began_s
    of_processes = (of_receiver, broker.cpu_s() - of_broker, time.process_time() - of_sender)
    _ = client.disconnect() if is_bare else link.close()
    child.join(10)
    return took_s, of_processes


def bench_buffers(_folder: Path) -> dict[str, Any]:
    """CPU and page faults of a batch's way through both sides' code, without a broker."""
    batch, n = activations(), 100

    def there_and_back() -> None:
        assembler = chunks.Assembler()
        whole = payloads.encode(ADDRESS, batch, "float32")
        for piece in chunks.split(whole, payload_id=bytes(16), chunk_bytes=DEFAULT_CHUNK_BYTES):
            header, body = frames.decode(bytes(piece))
            assert isinstance(header, Chunk)
            arrived = assembler.add(header, body)
        assert arrived is not None
        named, content = payloads.decode(arrived, device="ant")
        payloads.to_batch(named, content, activation_shape=SHAPE, n_classes=10, batch_size=BATCH_SIZE)

    for _ in range(10):
        there_and_back()
    before, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.thread_time()
    for _ in range(n):
        there_and_back()
    cpu_s, faults = time.thread_time() - began_s, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    began_s = time.thread_time()
    for _ in range(2 * n):
        hashlib.sha256(batch.h.data).digest()
    return {
        "cpu_ms_a_batch": 1000 * cpu_s / n,
        "of_it_sha256_ms": 1000 * (time.thread_time() - began_s) / n,
        "faults_a_batch": faults / n,
    }

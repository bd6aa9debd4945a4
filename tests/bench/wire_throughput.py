"""MB/s from device to coordinator against a bare paho loop, and what the buffers on the way cost."""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def receive_bare(address: BrokerAddress, n_bytes: int, kind: str, pipe: Connection) -> None:
    """Count bytes, hash them too if ``kind`` says so; say when all are here."""
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
    pipe.send("ready")
    done.wait(120)
    pipe.send("turn")
    client.disconnect()


def receive_ours(address: BrokerAddress, pipe: Connection) -> None:
    """Assemble, check and decode every batch, as the coordinator does."""
    link = MqttLink(address, "ours-in", max_packet_bytes=MAX_MESSAGE_BYTES)
    link.start()
    assembler, n = chunks.Assembler(), 0
    while n < N_BATCHES:
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
    pipe.send("turn")
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
    """MiB/s from device to coordinator: ours, bare paho, and bare paho that hashes at both ends."""
    broker = Mosquitto(folder, settings="max_queued_messages 10000\nmax_inflight_messages 20")
    broker.start()
    batch = activations()
    whole = payloads.encode(ADDRESS, batch, "float32")
    pieces = list(chunks.split(whole, payload_id=bytes(16), chunk_bytes=DEFAULT_CHUNK_BYTES))
    n_bytes = N_BATCHES * sum(map(len, pieces))
    seconds: dict[str, list[float]] = {"bare": [], "hashed": [], "ours": []}
    try:
        for _ in range(TURNS):
            for kind, took in seconds.items():
                here, there = spawn.Pipe()
                child = (
                    spawn.Process(target=receive_ours, args=(broker.address, there))
                    if kind == "ours"
                    else spawn.Process(target=receive_bare, args=(broker.address, n_bytes, kind, there))
                )
                child.start()
                assert here.recv() == "ready"
                if kind != "ours":
                    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bare-out")
                    client.connect(broker.address.host, broker.address.port)
                    client.loop_start()
                    while not client.is_connected():
                        time.sleep(0.01)
                    began_s = time.perf_counter()
                    send_bare(client, pieces, hashes=kind == "hashed")
                else:
                    link = MqttLink(broker.address, "ours-out", max_packet_bytes=MAX_MESSAGE_BYTES)
                    link.start()
                    link.poll(5.0)
                    began_s = time.perf_counter()
                    send_ours(link, batch)
                assert here.recv() == "turn"
                took.append(time.perf_counter() - began_s)
                _ = link.close() if kind == "ours" else client.disconnect()
                child.join(10)
    finally:
        broker.kill()
    rates = {kind: n_bytes / MIB / statistics.median(took) for kind, took in seconds.items()}
    found = {f"{kind}_mib_per_s": rate for kind, rate in rates.items()}
    for name, kind in (("ratio", "bare"), ("ratio_of_hashed", "hashed")):
        pairs = zip(seconds[kind], seconds["ours"], strict=True)
        found[name] = statistics.median(other / ours for other, ours in pairs)
    return found


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

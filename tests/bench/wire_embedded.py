"""The embedded broker at 1 MB a message, with Mosquitto in turns."""

from __future__ import annotations

import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.bench.wire_load import (
    MIB,
    OUTSTANDING_BYTES,
    TURNS,
    spawn,
)
from tests.mosquitto import Mosquitto
from toolkit.link.base import BrokerAddress, Received
from toolkit.link.broker import generate_password, start_embedded_broker
from toolkit.link.mqtt import MqttLink


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
                here, there = spawn.Pipe()
                child = spawn.Process(target=receive_messages, args=(logins["in"], n, there), daemon=True)
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

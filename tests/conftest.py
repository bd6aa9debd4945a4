"""Brokers that a test owns."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.mosquitto import Mosquitto, find_mosquitto
from toolkit.link.broker import EmbeddedBroker, generate_password, start_embedded_broker

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n: as many computing threads as cores, not a multiple
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_mosquitto() is not None:
        return
    for item in items:
        if item.get_closest_marker("needs_mosquitto"):
            item.add_marker(pytest.mark.skip(reason="mosquitto is not installed (apt-get install mosquitto)"))


def pytest_configure():
    # A runner in the background starts us with SIGINT ignored, and all that we start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mosquitto(tmp_path) -> Iterator[Mosquitto]:
    """A running Mosquitto that lets everybody in; its tests carry the marker ``needs_mosquitto``."""
    broker = Mosquitto(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def accounts() -> dict[str, str]:
    """Two accounts of a broker, with generated passwords."""
    return {"coordinator": generate_password(), "dev1": generate_password()}


@pytest.fixture
def embedded_broker(tmp_path, accounts) -> Iterator[EmbeddedBroker]:
    """A running embedded broker that knows ``accounts``."""
    with start_embedded_broker(tmp_path / "broker", accounts) as broker:
        yield broker

"""Brokers that a test owns."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.mosquitto import Mosquitto, find_mosquitto
from toolkit.link.broker import EmbeddedBroker, generate_password, start_embedded_broker

# What rich reads of a terminal, some of it as soon as it is imported: help is looked at as text of an ordinary width.
for _name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "COLUMNS", "TERMINAL_WIDTH"):
    os.environ.pop(_name, None)
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


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_this_machine(tmp_path_factory) -> Iterator[None]:
    """Whoever runs the tests may use hsee."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HSEE_")]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture
def roomy_machine(monkeypatch) -> None:
    """To ``hsee doctor`` this machine is short of neither disk nor memory, whatever it is."""
    for name in ("FEW_DISK_MB", "FEW_MEMORY_MB"):
        monkeypatch.setattr(f"toolkit.doctor.machine.{name}", 0)


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

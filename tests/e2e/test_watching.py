"""Whoever watches a run: status, logs and device commands beside real processes, and nobody is disturbed by it."""

import json
import shutil
import signal
import time

import msgspec
import pytest

from coordinator.watching.history import HISTORY_FILE, History
from coordinator.watching.log_ring import LogEntry
from coordinator.watching.status import DeviceStatus, RunStatus
from tests.e2e.processes import Hsee, wait_until
from tests.mosquitto import find_mosquitto
from tests.served_broker import ServedBroker
from toolkit.cli.device_commands import DeviceFacts

pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

REVOKED_WITHIN_S = 2.0
"""Promise T3."""


def answer(hsee, *words, status=0):
    """What a command with --json said."""
    done = hsee.run(*words, "--json")
    assert done.end() == status, done.describe()
    return json.loads(done.out)


def status_of(hsee, *words, status=0) -> RunStatus:
    told = answer(hsee, "status", *words, status=status)
    assert set(told) == {*RunStatus.__struct_fields__, "success", "is_good"}
    for device in told["devices"]:
        assert set(device) == set(DeviceStatus.__struct_fields__)
    return msgspec.convert(told, RunStatus)


def states(hsee, **_):
    return {device.device: device.state for device in status_of(hsee).devices}


def word_of(served, device):
    """The word that the broker keeps of a device."""
    with served.probe("op-admin") as probe:
        probe.subscribe(served.topics.device_state(device))
        assert probe.wait_until(lambda: len(probe.received) > 0, 10.0)
        return probe.received[-1].payload


def test_a_run_is_watched_from_beside(hsee, mosquitto, profile):
    port = mosquitto.address.port
    coordinator = hsee.coordinator(port, "--run", "r1", "--devices", 2, "--rounds", 2000, "--home", "runs")
    coordinator.wait_for('"event":"waiting"')
    waiting = status_of(hsee)
    assert (waiting.status, waiting.n_expected, waiting.devices) == ("waiting", 2, [])
    follower = hsee.start("logs", "--follow", "--json")
    agents = {
        name: hsee.agent(port, name, "--part", part, "--profile", profile, "--home", f"home-{name}")
        for name, part in (("ant", "1/24"), ("bee", "2/24"))
    }
    coordinator.wait_for_round(2)
    wait_until(
        lambda: all(d.phase == "training" and d.memory_bytes for d in status_of(hsee).devices),
        lambda: str(status_of(hsee)),
    )
    told = status_of(hsee)
    assert (told.run, told.is_live, told.status, told.rounds) == ("r1", True, "training", 2000)
    for device in told.devices:
        assert device.state == "online"
        assert device.exit_accuracy is not None
        assert device.memory_bytes > 1e6
        assert device.cut
        assert device.software.startswith("hsee ")
    assert hsee.run("status", "--check").end() == 0

    # Device commands
    assert hsee.run("device", "rename", "ant", "hall").end() == 0
    assert hsee.run("device", "group", "ant", "cellar").end() == 0
    assert [d.device for d in status_of(hsee, "--group", "cellar").devices] == ["ant"]
    listed = [msgspec.convert(facts, DeviceFacts) for facts in answer(hsee, "device", "list")["devices"]]
    assert [(facts.device, facts.label, facts.is_live) for facts in listed] == [
        ("ant", "hall", True),
        ("bee", "", True),
    ]
    shown = answer(hsee, "device", "show", "bee")
    assert set(shown) == {*DeviceFacts.__struct_fields__, "success"}
    assert abs(shown["last_seen"] - time.time()) < 60

    # One is killed: its last will tells at once, and the command says so
    agents["bee"].kill()
    wait_until(lambda: states(hsee)["bee"] == "offline", lambda: str(states(hsee)))
    bad = hsee.run("status", "--check")
    assert bad.end() == 5
    assert bad.out.startswith("look: run r1; training; ")
    assert "bee" in bad.err

    # The coordinator is stopped: who follows is told all of it, and leaves in peace
    coordinator.signal(signal.SIGTERM)
    assert coordinator.end() == 0
    assert follower.end() == 0, follower.describe()
    entries = [msgspec.json.decode(line, type=LogEntry) for line in follower.out.splitlines()]
    texts = [entry.text for entry in entries]
    assert any(entry.device == "ant" and "exit accuracy" in entry.text for entry in entries)
    assert any("Device bee is offline." in text for text in texts)
    assert any(text.startswith("stopped: Stopped by hand") for text in texts)
    after = status_of(hsee)
    assert (after.is_live, after.status) == (False, "stopped")
    assert [d.device for d in after.devices] == ["ant", "bee"]
    with History(hsee.folder / "runs" / HISTORY_FILE) as history:
        assert history.is_complete(hsee.folder / "runs/r1")
        assert set(history.seen()) == {"ant", "bee"}
    old = [msgspec.convert(facts, DeviceFacts) for facts in answer(hsee, "device", "list")["devices"]]
    assert [(facts.is_live, facts.run) for facts in old] == [(False, "r1")] * 2


def test_all_processes_of_a_fleet_run_together_and_a_device_is_thrown_out(tmp_path, profile):
    """Coordinator, agents, an infer account, status and logs beside each other: no eviction. Then one is revoked."""
    served = ServedBroker(tmp_path / "broker", ["ant", "bee", "ant.infer", "bee.infer", "coord-r1"])
    served.start()
    crew: dict[str, Hsee] = {}
    try:
        for account in ("ant", "bee", "coord-r1"):
            shutil.copytree(served.folder.account_folder(account), tmp_path / account)
            crew[account] = Hsee(tmp_path / account)
        desk = crew["coord-r1"]
        for name, part in (("ant", "1/24"), ("bee", "2/24")):
            crew[name].start("agent", "start", "--data", "digits", "--part", part, "--profile", profile)
        coordinator = desk.start(
            "coordinator", "start", "--run", "r1", "--devices", 2, "--rounds", 5000, "--json"
        )
        with served.probe("ant.infer") as beside:
            coordinator.wait_for_round(1)
            follower = desk.start("logs", "--follow")
            watcher = desk.start("status", "--watch", "--every", 0.2, "--json")
            coordinator.wait_for_round(coordinator.rounds()[-1] + 20)
            assert set(states(desk).values()) == {"online"}
            assert beside.n_connections == 1
            assert "already connected" not in served.log, "somebody was evicted"
            wait_until(lambda: follower.out, follower.describe)
            wait_until(lambda: len(watcher.events) > 2, watcher.describe)

            done = desk.run("device", "remove", "bee", "--folder", served.folder.path)
            assert done.end() == 2
            assert "Add --yes" in done.err
            revoked_s = time.monotonic()
            told = answer(desk, "device", "remove", "bee", "--folder", served.folder.path, "--yes")
            took_s = time.monotonic() - revoked_s
            assert told["revoked"] == ["bee", "bee.infer"]
            wait_until(
                lambda: (
                    "Client bee disconnected" in served.log or "Client bee been disconnected" in served.log
                ),
                lambda: served.log[-1000:],
                cap_s=3 * REVOKED_WITHIN_S,
            )
            assert took_s < 60
            wait_until(lambda: states(desk)["bee"] == "left", lambda: str(states(desk)))
            assert b'"offline"' in word_of(served, "bee")
            assert not served.folder.account_folder("bee").exists()
            assert answer(desk, "device", "remove", "bee", "--folder", served.folder.path, "--yes", status=2)
            assert beside.n_connections == 1
        reached = coordinator.rounds()[-1]
        coordinator.wait_for_round(reached + 2)  # the run goes on without it
        assert states(desk)["ant"] == "online"
        for running in (watcher, follower):
            running.signal(signal.SIGINT)
            assert running.end() == 130, running.describe()
    finally:
        for crewman in crew.values():
            crewman.kill_all()
        served.stop()

"""Who may speak and who may hear, topic by topic, written by hand and not from the code that grants it."""

from __future__ import annotations

from toolkit.access.probe import Probe
from toolkit.wire.topics import Topics

ACCOUNTS = ("dev1", "dev2", "dev3", "dev1.infer", "coord-r1", "coord-r2", "op-admin")
DEVICES = ("dev1", "dev2", "dev3")


def allowed(topics: Topics) -> dict[str, tuple[set[str], set[str]]]:
    """Written by hand: by topic, who may speak there and who may hear it."""
    coordinators = {"coord-r1", "coord-r2"}
    table: dict[str, tuple[set[str], set[str]]] = {
        topics.bridge_state: (coordinators, set(ACCOUNTS)),
        "hsee/v1/home/anything/else": (set(), {"op-admin"}),
        "hsee/v1/another-fleet/bridge/state": (set(), set()),
        "homeassistant/light": (set(), set()),
    }
    for device in DEVICES:
        # The operator says "offline" for a device that it removes.
        table[topics.device_state(device)] = ({device, "op-admin"}, {*coordinators, "op-admin"})
        table[topics.device_info(device)] = ({device}, {*coordinators, "op-admin"})
        table[f"{topics.device_info(device)}/below"] = (set(), {"op-admin"})
        infers = {f"{device}.infer"} & set(ACCOUNTS)
        table[topics.ask(device)] = (infers, {*coordinators, "op-admin"})
        table[topics.offer(device)] = ({"op-admin"}, {*infers, "op-admin"})
        table[topics.want(device)] = (infers, {"op-admin"})
        table[topics.answer(device)] = (coordinators, {*infers, "op-admin"})
        for run in ("r1", "r2"):
            table[topics.up(run, device)] = ({device}, {f"coord-{run}", "op-admin"})
            table[topics.down(run, device)] = ({f"coord-{run}"}, {device, "op-admin"})
    for account in ACCOUNTS:
        table[topics.check(account)] = ({account}, {account, "op-admin"})
    return table


def settle(probe: Probe, topics: Topics) -> None:
    """Wait for proof that all before is dealt with, on the account's own topic."""
    own = topics.check(probe.address.username)
    probe.subscribe(own)
    assert probe.fence(own), f"{probe.address.username} lost its own topic"

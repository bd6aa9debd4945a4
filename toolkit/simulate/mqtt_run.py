"""The same run over a real broker: the same agents in one thread, with a real link each, in real time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from coordinator.fleet.bridge import last_will
from coordinator.server import Coordinator
from device_agent.agent import Agent
from toolkit.access.accounts import COORDINATOR_PREFIX, grants_of
from toolkit.errors import RunError
from toolkit.link.base import BrokerAddress, Link, LinkEvent, Received, parse_broker
from toolkit.link.broker import generate_password, start_embedded_broker
from toolkit.link.connect import make_link
from toolkit.link.forwarding import ForwardingLink
from toolkit.simulate.actors import DroppedOutError
from toolkit.simulate.fleet import TOPICS, SimulatedFleet
from toolkit.wire.words import DeviceWord, encode_word

IDLE_S = 0.002
"""How long the coordinator waits for a message where nobody had anything to do."""
AFTERMATH_S = 30.0


class MeteredLink(ForwardingLink):
    """A link that counts what passes it."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.n_published_bytes = 0
        self.n_received_bytes = 0

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """See ``Link``."""
        self.n_published_bytes += len(payload)
        super().publish(topic, payload, qos=qos, retain=retain)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """See ``Link``."""
        events = super().poll(timeout_s)
        self.n_received_bytes += sum(len(event.payload) for event in events if isinstance(event, Received))
        return events


@dataclass(slots=True)
class _Device:
    agent: Agent
    link: MeteredLink


def run_over_mqtt(fleet: SimulatedFleet, *, broker: str = "") -> None:
    """Run to the end.

    Args:
        fleet: made for this run.
        broker: address of one that runs already and lets everybody in; by default an embedded one of its own.
    Raises: HseeError: as the real coordinator or agent would.
    """
    with ExitStack() as stack:
        stack.callback(fleet.close)
        passwords: dict[str, str] = {}
        if broker:
            address = parse_broker(broker)
        else:
            passwords = {name: generate_password() for name in (_coordinator(fleet), *fleet.members)}
            grants = {account: grants_of(account, TOPICS) for account in passwords}
            embedded = start_embedded_broker(fleet.path / "broker", passwords, grants=grants)
            address = stack.enter_context(embedded).address
        _run(fleet, address, passwords, stack)


def _coordinator(fleet: SimulatedFleet) -> str:
    """Name the coordinator's account."""
    return f"{COORDINATOR_PREFIX}{fleet.run}"


def _run(fleet: SimulatedFleet, address: BrokerAddress, passwords: dict[str, str], stack: ExitStack) -> None:
    def link(name: str, will: tuple[str, bytes]) -> MeteredLink:
        login = passwords.get(name, "")
        own = parse_broker(str(address), username=name if login else "", password=login)
        return MeteredLink(make_link(own, client_id=name, will=will))

    own_link = link(_coordinator(fleet), last_will(TOPICS, fleet.folder))
    coordinator = fleet.make_coordinator(own_link, time.monotonic)
    stack.callback(coordinator.close)
    devices: dict[str, _Device] = {}
    links: dict[str, MeteredLink] = {}
    fleet.count_bytes = lambda: (
        {name: own.n_published_bytes for name, own in links.items()},
        {name: own.n_received_bytes for name, own in links.items()},
    )
    coordinator.start()
    for name in fleet.members:
        if not fleet.is_lost(name):
            nonce = fleet.boot_nonce(name, coordinator.term).hex()
            own = links[name] = link(
                name, (TOPICS.device_state(name), encode_word(DeviceWord("offline", nonce)))
            )
            stack.callback(own.close)
            agent = fleet.make_agent(name, own, time.monotonic, term=coordinator.term)
            agent.start()
            devices[name] = _Device(agent, own)
    _take_turns(fleet, coordinator, devices)
    fleet.read_meters()


def _take_turns(fleet: SimulatedFleet, coordinator: Coordinator, devices: dict[str, _Device]) -> None:
    deadline_s, seen = float("inf"), 0
    while not coordinator.over or not all(map(fleet.has_heard, devices)):
        if not coordinator.over:
            n_moves = fleet.n_moves
            coordinator.poll(0.0 if n_moves != seen else IDLE_S)
            seen = n_moves
        elif deadline_s == float("inf"):
            deadline_s = time.monotonic() + AFTERMATH_S
        elif time.monotonic() > deadline_s:
            raise RunError("Devices have not heard that the simulated run is over.")
        for name, device in list(devices.items()):
            try:
                device.agent.poll(0.0)
            except DroppedOutError:
                device.agent.close()
                del devices[name]

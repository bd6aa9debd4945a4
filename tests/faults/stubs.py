"""Many devices in one process: real agents, sessions and links, and a trainer that only makes numbers up.

    python -m tests.faults.stubs --broker HOST:PORT --first 0 --count 100

Each rendering is a function of (device, round, seq), so that a batch made again is the same. Prints a JSON line once all
have their job, one at the end, and at SIGUSR1 one with the times from step to step since the last such line; from then
on failed tries are counted anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from device_agent.agent import Agent
from toolkit.access.broker_folder import BrokerFolder
from toolkit.errors import HseeError
from toolkit.link import mqtt
from toolkit.link.base import BrokerAddress, Disconnected, LinkEvent, parse_broker
from toolkit.link.mqtt import MqttLink
from toolkit.wire import limits
from toolkit.wire.job import Job
from toolkit.wire.limits import MAX_MESSAGE_BYTES
from toolkit.wire.messages import DataSummary
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DevicePhase
from toolkit.wire.topics import Topics
from toolkit.wire.words import DeviceWord, encode_word

FLEET = Topics("home")
_SPEAKERS = {"device_agent.agent", "coordinator.fleet.registry", "toolkit.wire.seats"}
"""Modules that say which version this side speaks."""
MODEL, CUT, WIDTH = "mlp", "hidden1", 128
N_FEATURES = 6
DATA = DataSummary(
    classes=["a", "b"],
    input_shape=[N_FEATURES],
    n_train=64,
    n_eval=4,
    mean=[0.0] * N_FEATURES,
    var=[1.0] * N_FEATURES,
    fingerprint="f" * 32,
)


def device_name(number: int) -> str:
    """The stub's device id."""
    return f"stub{number:03d}"


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the broker is and how to be let in."""
    parser.add_argument("--broker", default="", help="default: where the broker's folder says")
    parser.add_argument("--broker-folder", type=Path, help="of hsee broker init: TLS, an account a process")
    parser.add_argument("--accounts", type=Path, help="JSON, password by user name")
    parser.add_argument("--speaks", type=int, default=limits.PROTOCOL_VERSION, help="the protocol's version")
    parser.add_argument(
        "--sessions", choices=("clean", "kept"), default="clean", help="what the broker is asked for"
    )


def address_of(args: argparse.Namespace, account: str) -> BrokerAddress:
    """A process's way to the broker."""
    if args.broker_folder is not None:
        folder = BrokerFolder.open(args.broker_folder)
        there = (
            parse_broker(f"mqtts://{args.broker}", ca_file=folder.path / "ca.pem") if args.broker else None
        )
        return folder.login(account, there)
    password = msgspec.json.decode(args.accounts.read_bytes())[account] if args.accounts else ""
    return parse_broker(args.broker, username=account if password else "", password=password)


def be_another(args: argparse.Namespace) -> None:
    """Make this process one of another version, or one whose links ask for sessions that are kept, which ours never do."""
    if args.sessions == "kept":
        mqtt._Client = KeptClient
    for name in _SPEAKERS & sys.modules.keys():
        vars(sys.modules[name])["PROTOCOL_VERSION"] = args.speaks


class KeptClient(mqtt._Client):
    """A client whose session the broker keeps: its subscriptions, and what was sent to it while it was away."""

    def __init__(self, client_id: str) -> None:
        super().__init__(client_id)
        self._clean_session = False


stepped_s: list[tuple[str, float]] = []
"""Each training step of this process since it was asked last: whose, and when."""


def take_intervals() -> list[float]:
    """Seconds from step to step of each device, waiting for credit and for the next round included."""
    last: dict[str, float] = {}
    found = []
    for device, at_s in stepped_s:
        if device in last:
            found.append(at_s - last[device])
        last[device] = at_s
    stepped_s.clear()
    return found


class StubTrainer:
    """Makes numbers up; ``pace_s`` is what a step takes, ``poison`` what stands in every third batch."""

    def __init__(self, job: Job, device: str, *, pace_s: float, poison: float) -> None:
        self.n_train = job.round_steps
        self.n_items = self.n_batches = job.round_steps + 1
        self.lowered_round = self.max_lowered_bytes = 0
        self.is_untouched = True
        self.round = self.seq = self.n_steps = 0
        self._job = job
        self._device = device
        self._pace_s = pace_s
        self._poison = poison

    def enter_round(self, round_: int, seq: int) -> None:
        self.round, self.seq = round_, seq

    def train_next(self) -> Batch:
        time.sleep(self._pace_s)
        stepped_s.append((self._device, time.monotonic()))
        self.seq += 1
        self.n_steps += 1
        return self._batch(self.seq, remade=False)

    def train_extra(self) -> None:
        self.n_steps += 1
        time.sleep(max(self._pace_s, 0.01))

    def make_again(self, seq: int) -> Batch:
        return self._batch(seq, remade=seq <= self.n_train)

    def finish_round(self) -> None:
        return None

    def save(self) -> None:
        pass

    def weights(self) -> Any:
        """Ask for what a stub does not have."""
        raise NotImplementedError

    def take_lowered(self, header: Any, body: memoryview) -> None:
        """Likewise."""
        raise NotImplementedError

    def _batch(self, seq: int, *, remade: bool) -> Batch:
        rng = np.random.default_rng([*self._device.encode(), self.round, seq])
        n = self._job.batch_size
        h = rng.normal(size=(n, WIDTH)).astype(np.float32)
        if self._poison and seq % 3 == 0:
            h[0, 0] = self._poison
        y = rng.integers(0, 2, n)
        kind = "train" if seq <= self.n_train else "eval"
        return Batch(kind, h, y, 0.5, 1, self.n_steps, remade)


class CountingLink(MqttLink):
    """A link that counts its failed tries."""

    n_failed = 0

    def _put(self, event: LinkEvent) -> None:
        self.n_failed += isinstance(event, Disconnected)
        super()._put(event)


def make_agent(args: argparse.Namespace, number: int) -> tuple[Agent, CountingLink]:
    """Make one device's agent."""
    device, nonce = device_name(number), os.urandom(16)
    will = (FLEET.device_state(device), encode_word(DeviceWord("offline", nonce.hex())))
    link = CountingLink(
        address_of(args, device),
        device,
        will=will,
        max_packet_bytes=MAX_MESSAGE_BYTES,
        keep_alive_s=args.keep_alive,
        max_backoff_s=args.max_backoff,
    )
    agent = Agent(
        link,
        topics=FLEET,
        device=device,
        boot_nonce=nonce,
        data=DATA,
        profile="",
        make_trainer=lambda job: StubTrainer(job, device, pace_s=args.pace, poison=args.poison),
        measure=lambda _request: "",
        clock=time.monotonic,
        say=lambda _text: None,
        connect_s=120.0,
    )
    return agent, link


def main() -> int:
    """Run all agents until every one's run is over, or until told to stop."""
    parser = argparse.ArgumentParser()
    add_broker(parser)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of a training step")
    parser.add_argument("--keep-alive", type=int, default=20)
    parser.add_argument("--max-backoff", type=float, default=30.0)
    parser.add_argument("--poison", type=float, default=0.0)
    args = parser.parse_args()
    be_another(args)
    began_s = time.monotonic()
    numbers = range(args.first, args.first + args.count)
    pairs = [make_agent(args, number) for number in numbers]
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    signal.signal(signal.SIGUSR1, lambda _number, _frame: begin_anew(pairs))
    for agent, _ in pairs:
        agent.start()
    joined_s = 0.0
    while not stopping and not all(agent.over for agent, _ in pairs):
        for agent, _ in pairs:
            if not agent.over:
                agent.poll(0.0)
        if not joined_s and all(agent.over or agent.phase is DevicePhase.TRAINING for agent, _ in pairs):
            joined_s = time.monotonic() - began_s
            report({"joined": len(pairs), "seconds": joined_s, "most_failed": most_failed(pairs)})
        time.sleep(0.002)
    errors = []
    for agent, _ in pairs:
        if agent.over:
            try:
                agent.result()
            except HseeError as exc:
                errors.append(f"{type(exc).__name__}: {exc.message}")
        agent.close()
    report({"ended": len(pairs), "errors": errors, "most_failed": most_failed(pairs)})
    return 0


def begin_anew(pairs: list[tuple[Agent, CountingLink]]) -> None:
    """Report the times from step to step, and count them and failed tries from here on."""
    report({"intervals": take_intervals()})
    for _, link in pairs:
        link.n_failed = 0


def most_failed(pairs: list[tuple[Agent, CountingLink]]) -> int:
    """Failed tries of the link that had most of them."""
    return max(link.n_failed for _, link in pairs)


def report(line: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

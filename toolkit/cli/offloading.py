"""The way from ``hsee infer`` to a coordinator: the asker of ``device_agent`` over a link to the broker that was named."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from toolkit.bundle.manifest import Manifest
from toolkit.cli.broker_flags import broker_flags
from toolkit.runtime.cascade import Offload

if TYPE_CHECKING:
    from device_agent.asker import Asker

FIRST_CONNECTION_S = 3.0
"""How long the first sample waits for the broker; after that the link is made beside the answers."""


class BrokerOffloading:
    """An asker and what is told of it.

    Args:
        asker: started.
        broker: its address, for people.
        deadline_s: of each question.
    """

    def __init__(self, asker: Asker, *, broker: str, deadline_s: float) -> None:
        self._asker = asker
        self._broker = broker
        self._bundle_round = 0
        self._deadline_s = deadline_s

    def about(self, manifest: Manifest) -> Offload:
        """Make what asks about a bundle's samples; see :meth:`device_agent.asker.Asker.about`."""
        offload = self._asker.about(manifest)
        self._bundle_round = manifest.provenance.round
        return offload

    def summary(self) -> dict[str, Any]:
        """What came of it, for ``--json``."""
        return {
            "broker": self._broker,
            "deadline_ms": self._deadline_s * 1000,
            "bundle_round": self._bundle_round,
            **msgspec.to_builtins(self._asker.facts, str_keys=True),
        }

    def summary_line(self) -> str:
        """The same for people."""
        facts = self._asker.facts
        line = f"offload: {facts.n_asked} asked of {self._broker}, {facts.n_answered} answered"
        if facts.theta_rounds:
            rounds = ", ".join(map(str, sorted(facts.theta_rounds)))
            line += f" by the coordinator's layers of round {rounds} (this bundle is of round {self._bundle_round})"
        if facts.reasons:
            line += f", {facts.n_asked - facts.n_answered} fell back: "
            line += ", ".join(f"{n} {reason}" for reason, n in facts.reasons.most_common())
        return line

    def close(self) -> None:
        """Leave the broker."""
        self._asker.close()


def connect_offload(options: argparse.Namespace, manifest: Manifest) -> BrokerOffloading:
    """Make the way to the coordinator; that nobody can be reached is a note, and unsure samples fall back.

    Args:
        options: of ``hsee infer``.
        manifest: of the first bundle, whose device this board is unless told otherwise.

    Raises:
        UsageError, ConfigError, InsecureBrokerError: the broker or the login is named wrongly.
        MissingPartError: paho or zstandard is not installed.
    """
    from toolkit.config import load_config
    from toolkit.errors import require
    from toolkit.link.connect import broker_of, make_link
    from toolkit.wire.topics import Topics, check_name

    require("zstandard", part="agent", purpose="Offloading")
    config = load_config(
        broker_flags(
            options.broker,
            username=options.username,
            password_file=options.password_file,
            ca_file=options.ca_file,
            insecure=options.insecure,
            fleet=options.fleet,
        )
    )
    from device_agent.asker import Asker
    from device_agent.identity import new_boot_nonce

    device = check_name(options.id or manifest.provenance.device, what="The device id")
    address = broker_of(config, default_username=f"{device}.infer")
    nonce = new_boot_nonce()
    asker = Asker(
        make_link(address, client_id=address.username or f"{device}.infer-{nonce.hex()[:12]}"),
        topics=Topics(check_name(config.fleet.name, what="The fleet's name")),
        device=device,
        deadline_s=options.offload_deadline,
        clock=time.monotonic,
        boot_nonce=nonce,
    )
    if not asker.start(FIRST_CONNECTION_S):
        why = asker.lost_because or f"{address} does not answer."
        sys.stderr.write(f"note: {why} Unsure samples are answered here as long as that is so.\n")
    return BrokerOffloading(asker, broker=str(address), deadline_s=options.offload_deadline)

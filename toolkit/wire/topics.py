"""Topics: the only file that spells one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import RemoteProtocolError, UsageError

ROOT = "hsee/v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(name: str, *, what: str) -> str:
    """Return ``name`` if it can be one topic level and one folder name.

    Raises: UsageError: it can't.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{what} {name!r} is not a name hsee can use.",
            hint="Use 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter or digit.",
        )
    return name


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one fleet."""

    fleet: str

    @property
    def bridge_state(self) -> str:
        """Retained JSON: is a coordinator up, and for which run. Its last will says offline."""
        return f"{ROOT}/{self.fleet}/bridge/state"

    def device_state(self, device: str) -> str:
        """Retained JSON: is this device's process connected. Its last will says offline."""
        return f"{ROOT}/{self.fleet}/device/{device}/state"

    def device_info(self, device: str) -> str:
        """Retained JSON: what this device is; small, apart from tensors."""
        return f"{ROOT}/{self.fleet}/device/{device}/info"

    def device_telemetry(self, device: str) -> str:
        """JSON: how this device stands; never retained."""
        return f"{ROOT}/{self.fleet}/device/{device}/telemetry"

    def device_log(self, device: str) -> str:
        """JSON: lines of this device's log; never retained."""
        return f"{ROOT}/{self.fleet}/device/{device}/log"

    def up(self, run: str, device: str) -> str:
        """Binary, device to coordinator; never retained."""
        return f"{ROOT}/{self.fleet}/data/{run}/{device}/up"

    def down(self, run: str, device: str) -> str:
        """Binary, coordinator to device; never retained."""
        return f"{ROOT}/{self.fleet}/data/{run}/{device}/down"

    def ask(self, device: str) -> str:
        """Binary, board to coordinator: offloaded questions; never retained, QoS 0."""
        return f"{ROOT}/{self.fleet}/infer/{device}/ask"

    def answer(self, device: str) -> str:
        """Binary, coordinator to board: their answers; never retained, QoS 0."""
        return f"{ROOT}/{self.fleet}/infer/{device}/answer"

    def offer(self, device: str) -> str:
        """Binary, operator to board: a bundle offered, and its pieces; never retained."""
        return f"{ROOT}/{self.fleet}/infer/{device}/offer"

    def want(self, device: str) -> str:
        """Binary, board to operator: pieces wanted, and what became of a bundle; never retained."""
        return f"{ROOT}/{self.fleet}/infer/{device}/want"

    def check(self, account: str) -> str:
        """An account's own loop, by which ``hsee broker check`` judges the broker; no protocol message."""
        return f"{ROOT}/{self.fleet}/check/{account}"

    def join_request(self, token: str) -> str:
        """JSON, a board that holds a join token to whoever opened its window; ``+`` for any token."""
        return f"{ROOT}/{self.fleet}/join/{token}/req"

    def join_answer(self, token: str) -> str:
        """JSON, back to the board that holds the token; ``+`` for any token."""
        return f"{ROOT}/{self.fleet}/join/{token}/ans"

    def all_up(self, run: str) -> str:
        """Filter: what all devices of a run send."""
        return self.up(run, "+")

    @property
    def all_asks(self) -> str:
        """Filter: the questions of every board."""
        return self.ask("+")

    @property
    def everything(self) -> str:
        """Filter: all that a fleet says."""
        return f"{ROOT}/{self.fleet}/#"

    @property
    def all_device_states(self) -> str:
        """Filter: the state of every device."""
        return self.device_state("+")

    def token_of(self, topic: str) -> str:
        """Read the join token's id out of the topic of a request.

        Raises: RemoteProtocolError: it is no such topic of this fleet.
        """
        levels = topic.split("/")
        if len(levels) == 6 and _NAME.fullmatch(levels[4]) and topic == self.join_request(levels[4]):  # noqa: PLR2004 (hsee/v1/fleet/join/id/req)
            return levels[4]
        raise RemoteProtocolError(f"{topic!r} is no request to join fleet {self.fleet!r}.")

    def device_of(
        self, topic: str, *, leaf: Literal["up", "state", "ask", "want", "telemetry", "log"]
    ) -> str:
        """Read the device id out of a received topic.

        Raises: RemoteProtocolError: it is no such topic of this fleet.
        """
        levels = topic.split("/")
        branch, n_levels = {"up": ("data", 7), "ask": ("infer", 6), "want": ("infer", 6)}.get(
            leaf, ("device", 6)
        )
        if (
            topic.startswith(f"{ROOT}/{self.fleet}/{branch}/")
            and len(levels) == n_levels
            and levels[-1] == leaf
            and _NAME.fullmatch(levels[-2])
        ):
            return levels[-2]
        raise RemoteProtocolError(f"{topic!r} is not an {leaf!r} topic of fleet {self.fleet!r}.")

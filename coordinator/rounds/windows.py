"""How far each device may run ahead: what its link needs to stay full, and what the memory here allows.

All that was granted and is not used up yet counts against one budget, for it may be here at any moment. Of the budget
every device has two batches first, then what its link holds on the way, then an equal share to run ahead on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coordinator.rounds.device_round import DeviceRound

FLOOR = 2
"""Batches that every device may be ahead of its cursor, where the budget has room for them at all."""
MAX_AHEAD = 64
"""No device runs further ahead than so because there is room; its link may still need more."""
GAIN = 2.0
"""A window that is full shows no more goodput than itself: only one of twice that finds out what the link can do.

Source: the start-up and cwnd gain of BBR, Cardwell et al., ACM Queue 14(5), 2016.
"""


@dataclass(frozen=True, slots=True)
class _Grant:
    """Seqs below ``limit`` may be sent since ``at``; ``n_here`` were here then."""

    limit: int
    at: float
    n_here: int


class Pipe:
    """What one device's link is seen to do, from when credit is told to when what was sent on it is here.

    Goodput is the best of this round and the one before, the round trip the shortest: what waits in queues counts as
    neither. The round trip holds all that lies between the two moments, a step of the device among it.
    """

    def __init__(self) -> None:
        self._grants: deque[_Grant] = deque()
        self._n_here = 0
        self._rates_per_s = (0.0, 0.0)
        self._trips_s = (math.inf, math.inf)

    @property
    def batches(self) -> int:
        """Batches that keep the link busy from telling credit to what comes of it; 0 before anything was seen."""
        trip_s = min(self._trips_s)
        return math.ceil(GAIN * max(self._rates_per_s) * trip_s) if math.isfinite(trip_s) else 0

    def begin_round(self) -> None:
        """Begin a new list."""
        self._grants.clear()
        self._n_here = 0
        self._rates_per_s = 0.0, self._rates_per_s[0]
        self._trips_s = math.inf, self._trips_s[0]

    def told(self, limit: int, now: float) -> None:
        """Take note that the device is told that it may send seqs below ``limit``."""
        if not self._grants or limit > self._grants[-1].limit:
            self._grants.append(_Grant(limit, now, self._n_here))

    def here(self, n: int, now: float) -> None:
        """Take note that ``n`` items of the list are here."""
        if n <= self._n_here:
            return
        self._n_here = n
        while self._grants and self._grants[0].limit <= n:
            self._grants.popleft()
        if self._grants and now > self._grants[0].at:
            grant = self._grants[0]
            took_s = now - grant.at
            self._rates_per_s = max(self._rates_per_s[0], (n - grant.n_here) / took_s), self._rates_per_s[1]
            self._trips_s = min(self._trips_s[0], took_s), self._trips_s[1]


class Windows:
    """Grants credit within one budget.

    Args:
        item_bytes: device id to what a batch of it takes here while it waits, and its weights, where it sends some.
        budget_bytes: of all that is granted and not used up.
    """

    def __init__(self, item_bytes: Mapping[str, tuple[int, int]], *, budget_bytes: int) -> None:
        self._item_bytes = dict(item_bytes)
        self._budget_bytes = budget_bytes
        self.pipes = {device: Pipe() for device in item_bytes}

    def begin_round(self) -> None:
        """Begin new lists."""
        for pipe in self.pipes.values():
            pipe.begin_round()

    def look(self, devices: Mapping[str, DeviceRound], now: float) -> None:
        """See what is here."""
        for device, held in devices.items():
            self.pipes[device].here(held.next - 1 + len(held.waiting), now)

    def window(self, device: str) -> int:
        """Batches that a device may be ahead of its cursor, if the others leave so much of the budget."""
        share = self._budget_bytes // (len(self._item_bytes) * self._item_bytes[device][0])
        return max(FLOOR, self.pipes[device].batches, min(MAX_AHEAD, share))

    def held_bytes(self, device: str, held: DeviceRound) -> int:
        """What a device has, or may have, waiting here."""
        stop = max(held.limit, held.next)
        if held.excused:  # nothing more of it comes
            return len(held.waiting) * self._item_bytes[device][0]
        return self._bytes_of(device, held, held.next, stop)

    def grant(self, devices: Mapping[str, DeviceRound], turn: Callable[[], str | None]) -> None:
        """Raise the limits of a round's devices as far as the budget goes; none is ever lowered.

        Args:
            devices: of the open round.
            turn: says which device all others wait for, if there is one.
        """
        waited_for = {device: held for device, held in devices.items() if not held.excused}
        for held in waited_for.values():
            held.limit = max(held.limit, held.next)
        wishes = {device: self._stop(held, self.window(device)) for device, held in waited_for.items()}
        wishes = {device: stop for device, stop in wishes.items() if stop > devices[device].limit}
        if not wishes:
            return
        used = sum(self.held_bytes(device, held) for device, held in devices.items())
        left = self._budget_bytes - used
        if self._missing(wishes, devices, wishes) <= left:
            for device, stop in wishes.items():
                devices[device].limit = stop
        elif not used or left >= min(of_batch for of_batch, _ in self._item_bytes.values()):
            self._share(left, wishes, devices, turn())

    def _share(
        self, left: int, wishes: Mapping[str, int], devices: Mapping[str, DeviceRound], turn: str | None
    ) -> None:
        """Grant what is left: two batches to everybody, then what links need, then the rest to run ahead on."""
        order = sorted(wishes, key=lambda device: (device != turn, devices[device].share_taken, device))
        if left == self._budget_bytes:  # weights larger than the budget travel alone
            first = devices[order[0]]
            left = max(left, self._bytes_of(order[0], first, first.limit, first.limit + 1))
        floors = {device: self._stop(devices[device], FLOOR) for device in wishes}
        needs = {
            device: self._stop(devices[device], max(FLOOR, self.pipes[device].batches)) for device in wishes
        }
        reserve = FLOOR * max(of_batch for of_batch, _ in self._item_bytes.values())
        for stops, kept in ((floors, {}), (needs, floors), (wishes, needs)):
            left_for_kept = self._missing(kept, devices, kept)
            for device in order:
                spare = left - left_for_kept
                if turn is not None and device != turn:
                    # All else may wait for its turn: whoever's it is must always find room.
                    spare -= max(0, reserve - self.held_bytes(turn, devices[turn]))
                left -= self._raise(device, devices[device], stops[device], spare)

    def _raise(self, device: str, held: DeviceRound, stop: int, spare: int) -> int:
        """Raise one limit as far as ``spare`` bytes go; returns what was used of them."""
        n_used = 0
        while held.limit < stop:
            n_bytes = self._bytes_of(device, held, held.limit, held.limit + 1)
            if n_used + n_bytes > spare:
                break
            held.limit += 1
            n_used += n_bytes
        return n_used

    def _missing(
        self, names: Iterable[str], devices: Mapping[str, DeviceRound], stops: Mapping[str, int]
    ) -> int:
        return sum(
            self._bytes_of(device, devices[device], devices[device].limit, stops[device]) for device in names
        )

    def _bytes_of(self, device: str, held: DeviceRound, first: int, stop: int) -> int:
        """Bytes of the items ``first`` .. ``stop - 1`` of a list."""
        of_batch, of_weights = self._item_bytes[device]
        n = max(0, stop - first)
        has_weights = n > 0 and held.n_weights > 0 and stop > held.n_owed
        return n * of_batch + (of_weights - of_batch if has_weights else 0)

    def _stop(self, held: DeviceRound, window: int) -> int:
        return min(held.next + window, held.n_owed + 1)

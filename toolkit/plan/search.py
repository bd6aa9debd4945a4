"""The best cuts of a fleet: for the shortest round exactly, for least work or bytes exactly or with a bound.

A round of a fleet takes the larger of two: its slowest device, and the server's steps for all devices one after
another. A device's cut changes its own time and its share of the server's; nothing else couples the devices.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod

from toolkit.plan.cost import CutCost

Options = Sequence[Sequence[CutCost]]
"""What each device may choose from; never empty for any device."""
MOST_ASSIGNMENTS = 20_000
"""So many are tried one by one: a fraction of a second."""


def round_ms(chosen: Sequence[CutCost]) -> float:
    """Time of a round when each device takes the cut chosen for it."""
    return max(*(c.device_ms for c in chosen), sum(c.server_round_ms for c in chosen))


def shortest_round_ms(options: Options) -> float:
    """The least round time of all assignments, exact.

    Let F(t) be the server's time if every device takes, among its cuts of device time at most t, the one that costs
    the server least. The answer is the minimum of max(t, F(t)) over the device times t that occur, from the least
    t at which every device has a cut:

    - No assignment is better. Take one, and let t be its slowest device's time. Each of its cuts was open to F(t),
      so its server time is at least F(t), and its round is at least max(t, F(t)).
    - Each value is reached. The assignment behind F(t) has no device slower than t and a server time of F(t),
      so its round is at most max(t, F(t)).

    F never rises with t, so the minimum stands where t overtakes F(t): at the first such t, or just before it.
    That is found by halving: O(n k log(n k)) for n devices of k cuts.
    """
    menus = [_Menu(cuts) for cuts in options]
    least = max(menu.device_ms[0] for menu in menus)
    times = sorted({t for menu in menus for t in menu.device_ms if t >= least})

    def server_ms(t: float) -> float:
        return sum(menu.server_ms_within(t) for menu in menus)

    first = bisect_left(times, x=True, key=lambda t: server_ms(t) <= t)
    near = times[max(first - 1, 0) : first + 1]
    return min(max(t, server_ms(t)) for t in near)


def deepest_within(options: Options, limit_ms: float) -> list[CutCost]:
    """Choose for each device the deepest cut such that the round takes at most ``limit_ms``.

    A deeper cut leaves the server less to do, so as a rule every device simply takes its deepest cut of device time
    within the limit. Where measured server times say otherwise, the cuts of least server time are taken first, and
    the room that the server has left is spent on the cheapest deepenings one after another: no optimum of total
    depth is claimed, the limit is kept.

    Args:
        options: each device's cuts.
        limit_ms: at least :func:`shortest_round_ms` of the same options.
    """
    open_cuts = [[c for c in cuts if c.device_ms <= limit_ms] for cuts in options]
    chosen = [max(cuts, key=lambda c: c.depth) for cuts in open_cuts]
    if sum(c.server_round_ms for c in chosen) <= limit_ms:
        return chosen
    chosen = [min(cuts, key=lambda c: (c.server_round_ms, -c.depth)) for cuts in open_cuts]
    total_ms = sum(c.server_round_ms for c in chosen)
    deepenings = sorted(
        (cut.server_round_ms - base.server_round_ms, index, cut.depth, cut)
        for index, (base, cuts) in enumerate(zip(chosen, open_cuts, strict=True))
        for cut in cuts
        if cut.depth > base.depth
    )
    for _, index, _, cut in deepenings:
        now = chosen[index]
        after_ms = total_ms - now.server_round_ms + cut.server_round_ms
        if cut.depth > now.depth and after_ms <= limit_ms:
            chosen[index], total_ms = cut, after_ms
    return chosen


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The cheapest assignment that was found, and how far from the best it may be.

    Attributes:
        gap: its total price is at most this share above the least possible; 0 where it is the least.
        method: how it was found, for people.
    """

    chosen: list[CutCost]
    gap: float
    method: str


def cheapest_within(options: Options, limit_ms: float) -> Cheapest:
    """Choose the cuts of least total price such that the round takes at most ``limit_ms``.

    Without a limit, or where it does not bind the server, devices are independent and each takes its cheapest cut.
    Otherwise the server's time couples them (a multiple-choice knapsack): small fleets are searched exhaustively,
    larger ones by the linear relaxation.

    Args:
        options: each device's cuts.
        limit_ms: at least :func:`shortest_round_ms` of the same options; infinite for none.
    """
    open_cuts = [[c for c in cuts if c.device_ms <= limit_ms] for cuts in options]
    alone = [min(cuts, key=lambda c: (c.price, c.server_round_ms, -c.depth)) for cuts in open_cuts]
    if _server_ms(alone) <= limit_ms:
        return Cheapest(alone, 0.0, "exact: every device's best cut")
    if prod(map(len, open_cuts)) <= MOST_ASSIGNMENTS:
        within = (a for a in product(*open_cuts) if _server_ms(a) <= limit_ms)
        best = min(within, key=lambda a: (sum(c.price for c in a), _server_ms(a)))
        return Cheapest(list(best), 0.0, "exact: every assignment was tried")
    return _relaxed(open_cuts, alone, limit_ms)


def deepen(options: Options, chosen: Sequence[CutCost], *, limit_ms: float, slack: float) -> list[CutCost]:
    """Give each device the deepest cut whose price is within the slack, as long as the round keeps its limit."""
    deeper = list(chosen)
    total_ms = _server_ms(chosen)
    for index, (now, cuts) in enumerate(zip(chosen, options, strict=True)):
        for cut in sorted(cuts, key=lambda c: -c.depth):
            after_ms = total_ms - now.server_round_ms + cut.server_round_ms
            fits = cut.device_ms <= limit_ms and (after_ms <= limit_ms or after_ms <= total_ms)
            if cut.depth > now.depth and cut.price <= now.price * (1 + slack) and fits:
                deeper[index], total_ms = cut, after_ms
                break
    return deeper


def _relaxed(options: Options, cheapest: list[CutCost], limit_ms: float) -> Cheapest:
    """Buy server time back where it costs least, along each device's lower convex hull of price over server time.

    This is the greedy solution of the linear relaxation (Sinha and Zoltners 1979): all but the last purchase are
    whole, and what the relaxation would have paid for its fraction bounds the least price from below.
    """
    chosen, total_ms = list(cheapest), _server_ms(cheapest)
    price = sum(c.price for c in chosen)
    purchases = []
    for index, (start, cuts) in enumerate(zip(cheapest, options, strict=True)):
        purchases += [(rate, index, step, cut) for step, (rate, cut) in enumerate(_hull(start, cuts))]
    bound = price
    for rate, index, _, cut in sorted(purchases, key=lambda p: p[:3]):
        excess_ms = total_ms - limit_ms
        if excess_ms <= 0:
            break
        saved_ms = chosen[index].server_round_ms - cut.server_round_ms
        bound += rate * min(saved_ms, excess_ms)
        total_ms -= saved_ms
        chosen[index] = cut
    price = sum(c.price for c in chosen)
    gap = price / bound - 1 if bound > 0 else 0.0
    return Cheapest(chosen, max(gap, 0.0), "linear relaxation, rounded")


def _hull(start: CutCost, cuts: Sequence[CutCost]) -> list[tuple[float, CutCost]]:
    """From a device's cheapest cut towards less server time: each corner, and its price for a ms saved, rising."""
    corners: list[tuple[float, CutCost]] = []
    now = start
    while True:
        saving = [c for c in cuts if c.server_round_ms < now.server_round_ms]
        if not saving:
            return corners
        here = now
        rates = [((c.price - here.price) / (here.server_round_ms - c.server_round_ms), c) for c in saving]
        rate, now = min(rates, key=lambda r: (r[0], r[1].server_round_ms))
        corners.append((rate, now))


def _server_ms(chosen: Iterable[CutCost]) -> float:
    return sum(c.server_round_ms for c in chosen)


class _Menu:
    """One device's cuts by rising device time, with the least server time so far."""

    def __init__(self, cuts: Sequence[CutCost]) -> None:
        ordered = sorted(cuts, key=lambda c: c.device_ms)
        self.device_ms = [c.device_ms for c in ordered]
        self.least_server_ms = list(accumulate((c.server_round_ms for c in ordered), min))

    def server_ms_within(self, t: float) -> float:
        """Least server time among the cuts of device time at most ``t``; ``t`` admits one."""
        return self.least_server_ms[bisect_right(self.device_ms, t) - 1]

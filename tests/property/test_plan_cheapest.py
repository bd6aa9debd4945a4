"""The cheapest plan under a limit against trying every assignment, and the bound of the relaxation."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.plan import search
from toolkit.plan.cost import CutCost
from toolkit.plan.search import cheapest_within, deepen, round_ms, shortest_round_ms

numbers = st.one_of(st.integers(1, 12).map(float), st.floats(0.01, 100))


@st.composite
def menus(draw: st.DrawFn) -> list[list[CutCost]]:
    """One to four devices of one to four cuts; price, device time and server time in any relation."""
    fleet = []
    for _ in range(draw(st.integers(1, 4))):
        depths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(sorted))
        fleet.append([cost(depth, draw(numbers), draw(numbers), draw(numbers)) for depth in depths])
    return fleet


def cost(depth: int, device_ms: float, server_ms: float, price: float) -> CutCost:
    return CutCost(
        cut=f"layer{depth}",
        depth=depth,
        step_ms=device_ms,
        upload_ms=0.0,
        server_ms=server_ms,
        device_ms=device_ms,
        server_round_ms=server_ms,
        price=price,
    )


def price(chosen: list[CutCost] | tuple[CutCost, ...]) -> float:
    return sum(c.price for c in chosen)


def least_price(fleet: list[list[CutCost]], limit_ms: float) -> float:
    return min(price(chosen) for chosen in product(*fleet) if round_ms(chosen) <= limit_ms)


@given(menus(), st.floats(0, 2))
@settings(max_examples=300, deadline=None)
def test_small_fleets_are_planned_exactly(fleet: list[list[CutCost]], slack: float):
    limit_ms = shortest_round_ms(fleet) * (1 + slack)
    found = cheapest_within(fleet, limit_ms)
    assert found.gap == 0
    assert round_ms(found.chosen) <= limit_ms
    assert price(found.chosen) == pytest.approx(least_price(fleet, limit_ms))


@given(menus(), st.floats(0, 2))
@settings(max_examples=300, deadline=None)
def test_the_relaxation_keeps_the_limit_and_its_bound(fleet: list[list[CutCost]], slack: float):
    limit_ms = shortest_round_ms(fleet) * (1 + slack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MOST_ASSIGNMENTS", 0)
        found = cheapest_within(fleet, limit_ms)
    best = least_price(fleet, limit_ms)
    assert round_ms(found.chosen) <= limit_ms * (1 + 1e-9)
    assert best * (1 - 1e-9) <= price(found.chosen) <= best * (1 + found.gap) * (1 + 1e-9)


def test_the_relaxation_is_met_by_a_fleet_that_needs_it():
    fleet = [[cost(0, 1.0, 3.0, 1.0), cost(1, 1.0, 1.0, 1.0 + i % 7)] for i in range(40)]
    found = cheapest_within(fleet, 60.0)
    assert found.method.startswith("linear relaxation")
    assert sum(c.server_round_ms for c in found.chosen) <= 60
    assert 0 <= found.gap < 0.05


def test_without_a_limit_every_device_takes_its_cheapest():
    fleet = [[cost(0, 1.0, 9.0, 5.0), cost(1, 9.0, 1.0, 2.0)] for _ in range(50)]
    found = cheapest_within(fleet, float("inf"))
    assert (found.gap, {c.depth for c in found.chosen}) == (0.0, {1})


@given(menus(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_deepening_spends_no_more_than_the_slack(fleet: list[list[CutCost]], room: float, slack: float):
    limit_ms = shortest_round_ms(fleet) * (1 + room)
    chosen = cheapest_within(fleet, limit_ms).chosen
    deeper = deepen(fleet, chosen, limit_ms=limit_ms, slack=slack)
    assert price(deeper) <= price(chosen) * (1 + slack) * (1 + 1e-9)
    assert round_ms(deeper) <= limit_ms * (1 + 1e-9)
    assert all(after.depth >= before.depth for before, after in zip(chosen, deeper, strict=True))

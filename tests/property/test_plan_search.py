"""The planner's search against trying every assignment."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.plan.cost import CutCost
from toolkit.plan.search import deepest_within, round_ms, shortest_round_ms

times = st.one_of(st.integers(1, 12).map(float), st.floats(0.01, 100))


@st.composite
def menus(draw: st.DrawFn) -> list[list[CutCost]]:
    """One to four devices of one to four cuts, in any relation: deeper need not be slower nor easier on the server."""
    fleet = []
    for _ in range(draw(st.integers(1, 4))):
        depths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True).map(sorted))
        fleet.append([cost(depth, draw(times), draw(times)) for depth in depths])
    return fleet


def cost(depth: int, device_ms: float, server_ms: float) -> CutCost:
    return CutCost(
        cut=f"layer{depth}",
        depth=depth,
        step_ms=device_ms,
        upload_ms=0.0,
        server_ms=server_ms,
        device_ms=device_ms,
        server_round_ms=server_ms,
    )


@given(menus())
@settings(max_examples=300, deadline=None)
def test_no_assignment_is_shorter_than_the_shortest_round(fleet: list[list[CutCost]]):
    assert shortest_round_ms(fleet) == pytest.approx(min(round_ms(chosen) for chosen in product(*fleet)))


@given(menus(), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_deepening_keeps_the_limit(fleet: list[list[CutCost]], slack: float):
    limit_ms = shortest_round_ms(fleet) * (1 + slack)
    chosen = deepest_within(fleet, limit_ms)
    assert round_ms(chosen) <= limit_ms * (1 + 1e-9)
    assert all(cut in cuts for cut, cuts in zip(chosen, fleet, strict=True))


@given(menus(), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_no_single_device_could_be_cut_deeper_within_the_limit(fleet: list[list[CutCost]], slack: float):
    limit_ms = shortest_round_ms(fleet) * (1 + slack)
    chosen = deepest_within(fleet, limit_ms)
    for index, cuts in enumerate(fleet):
        for cut in cuts:
            if cut.depth > chosen[index].depth:
                other = [*chosen[:index], cut, *chosen[index + 1 :]]
                assert round_ms(other) > limit_ms * (1 - 1e-9)


@given(menus())
@settings(max_examples=200, deadline=None)
def test_where_depth_eases_the_server_the_deepest_of_all_are_taken(fleet: list[list[CutCost]]):
    eased = [[cost(c.depth, c.device_ms, 6.0 - c.depth) for c in cuts] for cuts in fleet]
    limit_ms = shortest_round_ms(eased) * 1.05
    deepest = max(sum(c.depth for c in ch) for ch in product(*eased) if round_ms(ch) <= limit_ms)
    assert sum(c.depth for c in deepest_within(eased, limit_ms)) == deepest

"""Draws the two state diagrams of PROTOCOL.md by exploring the tables in session.py and seats.py.

Run it to print what PROTOCOL.md must hold: ``python -m tests.protocol.diagrams``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import msgspec

from tests.protocol.samples import ASSIGNMENT, HELLO, MEASURE, NONCE, OTHER_NONCE, REFUSAL, STATE, WELCOME
from toolkit.wire import seats, session
from toolkit.wire.messages import Fenced
from toolkit.wire.seats import Judgement, Seat
from toolkit.wire.session import DeviceState

S = TypeVar("S", DeviceState, Seat)
Edge = tuple[str, str, str]
"""From, to, label."""

JOINED_UP = ("joining", "measuring", "joined", "training")
"""Phases in which a device speaks with a coordinator, drawn as one where an event does the same in all of them."""


def device_events(state: DeviceState) -> dict[str, session.Event]:
    """Every kind of event that the table tells apart, as it would come in ``state``."""
    flow = msgspec.structs.replace(
        STATE, n=state.flow.n + 1 if state.flow else 1, plan_version=max(1, state.plan_version)
    )

    def told(**changes: object) -> session.Got:
        return session.Got(msgspec.structs.replace(flow, **changes), 0.0)

    run = state.run or WELCOME.run
    other = "other" if run == WELCOME.run else WELCOME.run
    events: dict[str, session.Event] = {
        "connected": session.LinkUp(),
        "connection lost": session.LinkDown(),
        "word online": session.BridgeSeen(run, 0.0),
        "word offline": session.BridgeSeen(run, 0.0, is_online=False),
        "word that the run finished": session.BridgeSeen(run, 0.0, is_online=False, ended="finished"),
        "word that the run failed": session.BridgeSeen(run, 0.0, is_online=False, ended="failed"),
        "word of another run": session.BridgeSeen(other, 0.0),
        f"word of another run after {session.LEASE_S:g} s of silence": session.BridgeSeen(
            other, session.LEASE_S
        ),
        "welcome": session.Got(WELCOME, 0.0),
        "welcome that asks to measure": session.Got(msgspec.structs.replace(WELCOME, measure=MEASURE), 0.0),
        "measured": session.Measured(0.0),
        "assignment": session.Got(ASSIGNMENT, 0.0),
        "state": told(),
        "state of a newer plan": told(plan_version=2),
        "state finished": told(phase="finished"),
        "state failed": told(phase="failed"),
        "refusal": session.Got(REFUSAL, 0.0),
        "fenced": session.Got(Fenced(boot_nonce=NONCE, incarnation=2), 0.0),
        f"{session.REHELLO_AFTER_S:g} s without an answer": session.Tick(session.REHELLO_AFTER_S),
        "sent": session.Sent(state.cursor, 0.0),
    }
    if state.phase.value == "joining":
        events[f"{session.LEASE_S:g} s without an answer"] = session.Tick(session.LEASE_S)
    else:
        events[f"{session.LEASE_S:g} s of silence"] = session.Tick(session.LEASE_S)
    return events


def seat_events(seat: Seat) -> list[tuple[str, seats.SeatEvent]]:
    """Likewise for the coordinator's table."""

    def hello(nonce: bytes, judgement: Judgement) -> seats.HelloHeard:
        return seats.HelloHeard(msgspec.structs.replace(HELLO, boot_nonce=nonce), judgement, 1, 0.0)

    events: list[tuple[str, seats.SeatEvent]] = [
        ("any other message", seats.Heard(0.0)),
        ("last will", seats.Gone(seat.boot_nonce)),
        ("bye", seats.Gone(seat.boot_nonce, on_purpose=True)),
        ("a plan is committed", seats.Assigned(ASSIGNMENT)),
    ]
    for nonce in (NONCE, OTHER_NONCE):
        superseded = "hello of a superseded process" if nonce in seat.superseded else ""
        events += [
            (superseded or "hello", hello(nonce, Judgement())),
            (superseded or "hello without a fitting profile", hello(nonce, Judgement(measure=MEASURE))),
            (superseded or "hello that can't be accepted", hello(nonce, Judgement(refusal=("late", "No.")))),
        ]
    return events


def device_edges() -> set[Edge]:
    """Every change of phase, and every event that asks for an action, of a device's session."""

    def settle(state: DeviceState) -> DeviceState:
        flow = state.flow and msgspec.structs.replace(state.flow, n=1)
        times = dict.fromkeys(("asked_at", "heard_at", "looked_at", "named_since", "named_again"), 0.0)
        return replace(state, flow=flow, cursor=1, **times)

    def follow(state: DeviceState) -> Iterable[tuple[str, DeviceState, str]]:
        for label, event in device_events(state).items():
            after, actions = session.step(state, event)
            yield label, settle(after), ", ".join(_words(action) for action in actions)

    return _explore(DeviceState(NONCE), follow, lambda state: state.phase.value)


def seat_edges() -> set[Edge]:
    """Likewise of the coordinator's seat for a device."""

    def follow(seat: Seat) -> Iterable[tuple[str, Seat, str]]:
        for label, event in seat_events(seat):
            after, replies = seats.step(seat, event)
            yield label, after, ", ".join(type(reply).__name__.lower() for reply in replies)

    return _explore(Seat("dev1", WELCOME.run, 1), follow, lambda seat: seat.phase.value)


def _explore(
    start: S, follow: Callable[[S], Iterable[tuple[str, S, str]]], phase: Callable[[S], str]
) -> set[Edge]:
    edges: set[Edge] = set()
    seen, todo = {repr(start)}, [start]
    while todo:
        state = todo.pop()
        for label, after, does in follow(state):
            if phase(after) != phase(state) or does:
                edges.add((phase(state), phase(after), f"{label} / {does}" if does else label))
            if repr(after) not in seen:
                seen.add(repr(after))
                todo.append(after)
    return edges


def _words(action: session.Action) -> str:
    return {
        "SayHello": "say hello",
        "Look": "subscribe anew",
        "Measure": "measure",
        "Begin": "begin",
        "Stop": "stop",
    }[type(action).__name__]


def _fold(edges: set[Edge]) -> set[Edge]:
    """Draw what happens alike in every phase of JOINED_UP once, from the whole."""
    folded = set(edges)
    for target, label in {(target, label) for _, target, label in edges}:
        alike = {(source, target, label) for source in JOINED_UP}
        if alike <= edges:
            folded = folded - alike | {("in_session", target, label)}
    return folded


def mermaid(edges: set[Edge], *, whole: bool) -> str:
    """Write edges as a mermaid state diagram, sorted, the labels of one arrow beside each other."""
    lines = ["stateDiagram-v2"]
    if whole:
        edges = _fold(edges)
        lines += ["    state in_session {", *(f"        {phase}" for phase in JOINED_UP), "    }"]
    for (source, target), group in groupby(sorted(edges), key=lambda edge: edge[:2]):
        lines.append(f"    {source} --> {target}: {'<br/>'.join(label for _, _, label in group)}")
    return "\n".join(lines)


def device_diagram() -> str:
    """The device's diagram."""
    return mermaid(device_edges(), whole=True)


def seat_diagram() -> str:
    """The coordinator's diagram."""
    return mermaid(seat_edges(), whole=False)


if __name__ == "__main__":
    print(device_diagram(), seat_diagram(), sep="\n\n")  # noqa: T201 - what it is for

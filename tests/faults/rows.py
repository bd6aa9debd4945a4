"""All rows, in the order in which a tier plays them."""

from __future__ import annotations

from tests.faults import boards, deaths, disks, hostile, late, networks, rot, simulated, surroundings
from tests.faults.registry import ROWS, Row

__all__ = [
    "ROWS",
    "Row",
    "boards",
    "deaths",
    "disks",
    "hostile",
    "late",
    "networks",
    "rot",
    "simulated",
    "surroundings",
]

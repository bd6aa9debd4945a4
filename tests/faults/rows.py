"""All rows, in the order in which a tier plays them."""

from __future__ import annotations

from tests.faults import deaths, disks, hostile, networks, simulated, surroundings
from tests.faults.registry import ROWS, Row

__all__ = ["ROWS", "Row", "deaths", "disks", "hostile", "networks", "simulated", "surroundings"]

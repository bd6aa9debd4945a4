"""No rule of the protocol looks at a wall clock: what reads one only labels, and is named here with what it labels."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHERE = ("coordinator", "device_agent", "toolkit/wire", "toolkit/link", "toolkit/nn", "toolkit/simulate")
CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today", "time.localtime"}
LABELS = {
    "coordinator/watching/desk.py": "log lines, events and last seen, for people",
    "coordinator/store/run_folder.py": "when a run began, for people",
    "device_agent/state.py": "when training was saved, for people",
    "device_agent/telemetry.py": "the board's own log lines",
}


def readers(path: Path) -> set[str]:
    """What in a module names a wall clock."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} & CLOCKS
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {f"time.{name.name}" for name in node.names} & CLOCKS
    return found


def test_only_labels_read_a_wall_clock():
    found = {
        path.relative_to(ROOT).as_posix()
        for where in WHERE
        for path in sorted((ROOT / where).rglob("*.py"))
        if readers(path)
    }
    assert found == set(LABELS)


def test_a_reader_is_found(tmp_path):
    (tmp_path / "late.py").write_text("import time\n\nlate = time.time() > 5\n")
    assert readers(tmp_path / "late.py") == {"time.time"}

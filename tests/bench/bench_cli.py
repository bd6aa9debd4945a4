"""How long a user waits for a command's first word, as JSON: ``python -m tests.bench.bench_cli``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

N_RUNS = 10
COMMANDS = (
    ("--help",),
    ("--version",),
    ("config", "show"),
    ("agent", "start", "--help"),
    ("infer", "--help"),
    ("broker", "invite", "--help"),
)


def wall_s(words: tuple[str, ...]) -> float:
    """Seconds from a command's start to its end."""
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "toolkit.cli.entry", *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start_s


def main() -> None:
    wall_s(COMMANDS[0])  # compiles what was never run
    measured = {}
    for words in COMMANDS:
        times_s = sorted(wall_s(words) for _ in range(N_RUNS))
        measured["hsee " + " ".join(words)] = {
            "p50_s": round(statistics.median(times_s), 3),
            "max_s": round(times_s[-1], 3),
        }
    sys.stdout.write(json.dumps({"runs": N_RUNS, "commands": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""``python -m tests.faults.sim SEED``: run one seed again and say what came of it."""

from __future__ import annotations

import sys

from tests.faults.sim.scenario import scenario_of
from tests.faults.sim.seeds import run_seed


def main() -> int:
    """Print what befalls a seed, and what comes of it; 1 where it is not as promised."""
    seed = int(sys.argv[1])
    told = sys.stdout.write
    scenario = scenario_of(seed)
    told(
        f"seed {seed}: {scenario.strategy}, {scenario.rounds} rounds, {scenario.lists}\n{scenario.weather}\n"
    )
    for what in (*scenario.faults, *scenario.failpoints):
        told(f"  {what}\n")
    history = run_seed(seed)
    told(f"ended at {history.ended_s:.1f} s, {len(history.entries)} entries, history {history.digest[:16]}\n")
    told(("\n".join(history.problems) or "as promised") + "\n")
    return bool(history.problems)


if __name__ == "__main__":
    sys.exit(main())

"""Many seeds, one after the other; a failure names its seed and the command that replays it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.faults.sim.scenario import scenario_of
from tests.faults.sim.stage import Makers
from tests.faults.sim.world import History, World


@dataclass
class Outcome:
    """What came of some seeds.

    Attributes:
        n_seeds: run.
        failures: seed to what was wrong.
        places: how often each failpoint was come past.
    """

    n_seeds: int = 0
    failures: dict[int, list[str]] = field(default_factory=dict)
    places: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line a failed seed, and how to see it again."""
        return "\n".join(
            f"seed {seed}: {'; '.join(problems[:3])}\n    replay: python -m tests.faults.sim {seed}"
            for seed, problems in self.failures.items()
        )


def run_seed(seed: int, makers: Makers = Makers()) -> History:  # noqa: B008 - frozen
    """Run one seed."""
    return World(scenario_of(seed), makers).run()


def run_seeds(first: int, count: int, makers: Makers = Makers(), *, stop_at: int = 0) -> Outcome:  # noqa: B008
    """Run seeds ``first`` .. ``first + count - 1``; stop after ``stop_at`` failures, 0 for never."""
    outcome = Outcome()
    for seed in range(first, first + count):
        history = run_seed(seed, makers)
        outcome.n_seeds += 1
        outcome.places += history.places
        if history.problems:
            outcome.failures[seed] = history.problems
            if stop_at and len(outcome.failures) >= stop_at:
                break
    return outcome

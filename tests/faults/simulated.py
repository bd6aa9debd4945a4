"""The row that is played in virtual time: what nobody thought of, and rules that are broken on purpose."""

from __future__ import annotations

from tests.faults.registry import row
from tests.faults.scene import Scene
from tests.faults.sim.mutants import MUTANTS
from tests.faults.sim.seeds import run_seeds

N_SEEDS = {True: 300, False: 10_000}
"""In the quick tier, and at night."""


@row("R22", "the simulator: seeds, failpoints come past, every mutant of the rules caught", in_suite=True)
def simulated(scene: Scene) -> str:
    outcome = run_seeds(0, N_SEEDS[scene.scale == 1])
    assert not outcome.failures, outcome.describe()
    scene.n_seeds += outcome.n_seeds
    scene.failpoints |= set(outcome.places)
    caught = {}
    for name, makers in MUTANTS.items():
        tried = run_seeds(0, 300, makers, stop_at=1)
        assert tried.failures, f"{name} shows in none of {tried.n_seeds} seeds"
        caught[name] = tried.n_seeds
    return f"{outcome.n_seeds} seeds as promised; {len(caught)} mutants caught after {max(caught.values())} seeds at most"

"""The row that is played in virtual time: what nobody thought of, and rules that are broken on purpose."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.faults.registry import row
from tests.faults.scene import Scene
from tests.faults.sim.mutants import MUTANTS
from tests.faults.sim.seeds import run_seeds

N_SEEDS = {True: 300, False: 10_000}
"""In the quick tier, and at night."""


@row("R22", "the simulator: seeds, failpoints come past, every mutant of the rules caught", in_suite=True)
def simulated(scene: Scene) -> str:
    # In a process of its own: rows beside it replay their runs in this one, and would wait for the interpreter's lock.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        outcome = elsewhere.submit(run_seeds, 0, N_SEEDS[scene.scale == 1]).result()
        assert not outcome.failures, outcome.describe()
        caught = {}
        for name, makers in MUTANTS.items():
            tried = elsewhere.submit(run_seeds, 0, 300, makers, stop_at=1).result()
            assert tried.failures, f"{name} shows in none of {tried.n_seeds} seeds"
            caught[name] = tried.n_seeds
    scene.n_seeds += outcome.n_seeds
    scene.failpoints |= set(outcome.places)
    return f"{outcome.n_seeds} seeds as promised; {len(caught)} mutants caught after {max(caught.values())} seeds at most"

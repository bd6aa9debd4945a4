"""A scenario's variants, and a run of one seed."""

import msgspec

from toolkit.simulate.simulation import simulate


def with_run(scenario, **changes):
    return msgspec.structs.replace(scenario, run=msgspec.structs.replace(scenario.run, **changes))


def run(scenario, folder, *, observe=lambda _: None):
    return simulate(scenario, folder, n_seeds=1, observe=observe)[0]

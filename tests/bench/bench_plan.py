"""How long a plan for a fleet takes (issue 4, item 4): seconds by fleet size and objective, as Markdown.

    python -m tests.bench.bench_plan [--devices 100 1000 10000]

Devices are shipped boards, each slower or quicker by chance, under a deadline that binds; choosing, explaining and writing
``plan.toml`` are timed together.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import OBJECTIVES, DeviceInput, ServerInput
from toolkit.plan.schema import write_plan
from toolkit.profile.board import machine_name
from toolkit.profile.drift import Drifted, at_pace
from toolkit.profile.locate import find_model, find_profile
from toolkit.profile.model_profile import read_model_profile
from toolkit.profile.schema import read_profile

BOARDS = ("small", "middle", "strong")
REPEATS = 3


def fleet(n_devices):
    """Boards of unequal pace."""
    chance = random.Random(0)
    known = [read_profile(find_profile(name)) for name in BOARDS]
    return [
        DeviceInput(
            name=f"device{index}",
            profile=at_pace(chance.choice(known), [Drifted("step", chance.uniform(0.5, 2.0), 1.0)]),
            n_batches=chance.randint(20, 200),
        )
        for index in range(n_devices)
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", nargs="+", type=int, default=[100, 1000, 10_000])
    options = parser.parse_args()
    exits = read_model_profile(find_model("resnet_small-digits"))
    say = sys.stdout.write
    say(f"{machine_name()}; best of {REPEATS}, seconds of processor time\n\n")
    say(f"| devices | {' | '.join(OBJECTIVES)} |\n|{'---|' * (len(OBJECTIVES) + 1)}\n")
    with tempfile.TemporaryDirectory() as folder:
        for n_devices in options.devices:
            devices = fleet(n_devices)
            # So quick that the server's part binds when all devices take what suits them.
            server = ServerInput(flop_per_s=4e7 * n_devices)
            loose = choose_cuts(devices, server=server)
            cells = []
            for objective in OBJECTIVES:
                took_s = []
                for _ in range(REPEATS):
                    began_s = time.process_time()
                    made = choose_cuts(
                        devices,
                        server=server,
                        objective=objective,
                        deadline_ms=loose.shortest_round_ms * 1.1,
                        exits=exits,
                    )
                    write_plan(Path(folder) / "plan.toml", made)
                    took_s.append(time.process_time() - began_s)
                cells.append(f"{min(took_s):.2f} ({made.method}, gap {made.gap:.3%})")
            say(f"| {n_devices} | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()

"""A coordinator's process for stub devices: the real one, with the cuts given, so that nobody measures anything.

python -m tests.faults.serve --broker HOST:PORT --folder RUN --devices N --rounds R
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path

import torch

from coordinator.fleet.bridge import last_will
from coordinator.fleet.events import Ended, Notice, RoundClosed, RunEvent
from coordinator.fleet.planning import GivenCuts
from coordinator.server import Coordinator
from coordinator.store.run_folder import RunFolder
from tests.faults.stubs import CUT, FLEET, MODEL, add_broker, address_of, be_another, device_name
from toolkit.config import Run
from toolkit.link.connect import make_link
from toolkit.signals import StopSignals


def say(event: RunEvent) -> None:
    """Print what tests wait for."""
    match event:
        case RoundClosed(report=report):
            text = f"round {report.round} closed: {report.reason}"
        case Notice(text=text):
            pass
        case Ended(status=status, detail=detail):
            text = f"ended: {status}: {detail}"
        case _:
            return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Serve until the run is over."""
    parser = argparse.ArgumentParser()
    add_broker(parser)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--round-steps", type=int, default=4)
    parser.add_argument("--deadline", type=float, default=300.0)
    parser.add_argument("--strategy", default="sequential")
    args = parser.parse_args()
    be_another(args)
    torch.set_num_threads(1)
    settings = Run(
        model=MODEL,
        devices=args.devices,
        rounds=args.rounds,
        round_steps=args.round_steps,
        round_deadline_s=args.deadline,
        batch_size=4,
        classes=["a", "b"],
        strategy=args.strategy,
        exit_head="pooled",
    )
    run = args.folder.name
    folder = RunFolder(args.folder, run)
    account = f"coord-{run}"
    link = make_link(address_of(args, account), client_id=account, will=last_will(FLEET, folder))
    coordinator = Coordinator(
        link,
        topics=FLEET,
        folder=folder,
        settings=settings,
        clock=time.monotonic,
        observe=say,
        planner=GivenCuts({device_name(n): CUT for n in range(args.devices)}),
    )
    with closing(coordinator), StopSignals() as signals:
        coordinator.start()
        while not coordinator.over:
            if signals.wanted:
                coordinator.end("stopped", "told to")
            coordinator.poll(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())

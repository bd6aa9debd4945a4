"""The script behind the shipped emulated boards: ``python -m toolkit.profile.emulated FOLDER``.

Three boards of different strength, measured on this machine within limits, for the model and data of the demo.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from toolkit.errors import HseeError
from toolkit.profile.link import read_link
from toolkit.profile.locate import find_link
from toolkit.profile.measure import measure
from toolkit.profile.schema import Limits, write_profile
from toolkit.wire.job import ModelSpec

BOARDS = {
    "small": Limits(cpu_percent=20, memory_mb=512),
    "middle": Limits(cpu_percent=50, memory_mb=768),
    "strong": Limits(cpu_percent=100, memory_mb=1024),
}
MODEL = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
BATCH_SIZE = 32
LINK = "ethernet"


def write_emulated_boards(folder: Path, *, quick: bool = False) -> list[Path]:
    """Measure the boards and write a profile for each.

    Args:
        folder: where the files go; it exists.
        quick: short measurements.
    Returns: the files.
    Raises: HseeError: measuring or writing failed.
    """
    link = read_link(find_link(LINK))
    paths = []
    for name, limits in BOARDS.items():
        profile = measure(MODEL, batch_size=BATCH_SIZE, limits=limits, quick=quick, name=name, link=link)
        command = "python -m toolkit.profile.emulated profiles/emulated" + (" --quick" if quick else "")
        provenance = msgspec.structs.replace(profile.provenance, command=command)
        path = folder / f"{name}.toml"
        write_profile(path, msgspec.structs.replace(profile, provenance=provenance))
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Run the script. Returns: exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.profile.emulated", description="Measure the shipped emulated boards."
    )
    parser.add_argument("folder", type=Path, help="where the profiles are written")
    parser.add_argument("--quick", action="store_true", help="short measurements")
    options = parser.parse_args(arguments)
    try:
        paths = write_emulated_boards(options.folder, quick=options.quick)
    except HseeError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


if __name__ == "__main__":
    sys.exit(main())

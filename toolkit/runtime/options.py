"""The words of ``hsee infer``, and what a way to the coordinator must offer it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, get_args

from toolkit.arguments import ArgumentParser
from toolkit.bundle.manifest import Manifest, VariantName
from toolkit.runtime.camera import CAMERA
from toolkit.runtime.cascade import Offload
from toolkit.runtime.exit_policy import POLICIES
from toolkit.runtime.rows import STDIN_KINDS

_EXAMPLE = """\
example:
  hsee infer runs/demo/export/dev1 picture.png
  hsee infer dev1.hsee picture.png
  hsee infer runs/demo/export/dev1 held_out.npz --batch 32 --json
  hsee infer dev1.hsee picture.png --broker 192.0.2.7:1883 --offload-deadline 200ms

SAMPLES is a picture, a folder of pictures or of class folders, .npz (x, and y if labels are known), .npy, .jsonl,
.csv (a flattened sample a row, or a time step a row for windows), camera:0 or camera:FILE.mp4, or - for standard
input, answered as it arrives; csv:FILE?stride=64&label=activity&group=trial as in training.
"""
_OFFLOAD_HELP = (
    "Ask the coordinator about samples of which no exit is sure: their activations leave this board, labels and inputs do "
    "not. No answer in time, or no link: the exit's own answer, marked 'fallback'."
)


class Offloading(Protocol):
    """A way to the coordinator: asks, and says afterwards what came of it."""

    def about(self, manifest: Manifest) -> Offload:
        """Make what asks about a bundle's samples.

        Raises: BundleError: nobody can answer for this bundle.
        """

    def summary(self) -> dict[str, Any]:
        """What came of it, for ``--json``."""

    def summary_line(self) -> str:
        """The same for people."""

    def close(self) -> None:
        """Leave the broker."""


Connect = Callable[[argparse.Namespace, Manifest], Offloading]
"""Makes the way to the coordinator, for a first bundle and its successors; the command line brings it, for the runtime
knows no link."""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ms|s)", text)
    if found is None or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 200ms or 1.5s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def make_parser() -> argparse.ArgumentParser:
    """Make the command's parser."""
    parser = ArgumentParser(
        prog="hsee infer",
        description="Answer samples with an exported bundle, on this machine; ask a coordinator only if one is named.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=Path,
        help="what hsee export wrote, folder or archive, or the place of hsee bundle install",
    )
    parser.add_argument("source", metavar="SAMPLES", help="what to answer")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="of the exit policy, in (0, 1], instead of the bundle's; for entropy a higher one lets more leave",
    )
    parser.add_argument("--policy", choices=POLICIES, help="instead of the bundle's; needs --threshold")
    parser.add_argument(
        "--variant", choices=get_args(VariantName), help="number format, instead of the bundle's default"
    )
    parser.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="samples at a time (default 1)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads to use (default 1)"
    )
    parser.add_argument(
        "--fit", action="store_true", help="resize pictures and convert their colours to fit the model"
    )
    parser.add_argument(
        "--stdin",
        choices=STDIN_KINDS,
        help="what standard input holds; default: csv, or JSON lines by their look",
    )
    parser.add_argument(
        "--stride", type=_positive, default=0, metavar="N", help="rows from one window of a csv to the next"
    )
    parser.add_argument("--count", type=_positive, metavar="N", help="end after so many samples")
    parser.add_argument(
        "--no-labels", action="store_true", help="do not look at labels, so do not report accuracy"
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="on a board that trusts an operator: run a bundle that this operator did not sign",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, nothing else"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the summary")
    _add_offload(parser.add_argument_group("offload", _OFFLOAD_HELP))
    return parser


def _add_offload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--broker", metavar="HOST:PORT", help="the MQTT broker, or mqtts://HOST:PORT")
    group.add_argument(
        "--offload-deadline",
        type=_seconds,
        default=0.2,
        metavar="TIME",
        help="how long an answer is waited for: 200ms, 1.5s (default 200ms)",
    )
    group.add_argument("--fleet", help="the fleet this board belongs to")
    group.add_argument("--id", metavar="ID", help="this board's device id; default: the bundle's")
    group.add_argument("--username", help="account at the broker; default with a password: ID.infer")
    group.add_argument("--password-file", metavar="FILE", help="file with its password")
    group.add_argument("--ca-file", metavar="FILE", help="authority that signed the broker's certificate")
    group.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="allow a broker off this machine without TLS and login",
    )


def is_live(source: str) -> bool:
    """Whether somebody waits for each answer."""
    return source == "-" or source.startswith(CAMERA)

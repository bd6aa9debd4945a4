"""What simulations came to: a seed, and several of them together. Light: reading results loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolkit.disk import write_atomically

RESULT_FILE = "result.json"
INFERENCE_FILE = "inference.json"


class Accuracy(msgspec.Struct, frozen=True):
    """Of one route: share of right answers on the device's own held-out samples, and on the common test set."""

    own: float
    common: float | None = None


class DeviceResult(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Attributes:
        cut: "whole" where it trains the whole network, "none" where it trains nothing.
        accuracy: by route: "exit", "server", or "whole" for a whole network; of the last state.
        exits: likewise by stage of every exit besides that at the cut, on the device and at the server.
        up_bytes: payloads it sent, all messages; ``down_bytes`` likewise received.
        compute_s: virtual.
        digest: SHA-256 of its weights.
    """

    device: str
    cut: str
    n_train: int
    n_held_out: int
    accuracy: dict[str, Accuracy]
    up_bytes: int
    down_bytes: int
    compute_s: float
    digest: str
    exits: dict[str, Accuracy] = {}


class InferencePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a threshold comes to.

    Attributes:
        threshold: a sample leaves at the exit below this normalised entropy.
        exit_rate: share that leaves there.
        accuracy: of all answers, the exit's and the server's.
        drop: points of accuracy lost against the server's route alone; ``drop_upper`` is its upper 95 % bound.
        device_macs: multiply-accumulates a sample on the device; ``server_macs`` at the server, mean over samples.
        up_bytes: of activations, mean over samples.
    """

    threshold: float
    exit_rate: float
    accuracy: float
    drop: float
    drop_upper: float
    device_macs: int
    server_macs: float
    up_bytes: float


class CutInference(msgspec.Struct, frozen=True, kw_only=True):
    """All devices with one cut.

    Attributes:
        cut: their cut layer.
        device_macs: multiply-accumulates of one sample there, exit included; ``server_macs`` behind the cut.
        activation_bytes: of one sample.
        n_held_out: their own held-out samples together; ``held_out`` is the curve on them, strictest threshold first.
        n_test: samples of the common test set times devices; ``test`` is the curve on them, empty where there is none.
        target_drop: points that might be lost.
        chosen: place of the threshold that keeps the target on the held-out samples; None where none does.
        why_none: says so then.
    """

    cut: str
    devices: list[str]
    device_macs: int
    server_macs: int
    activation_bytes: int
    n_held_out: int
    held_out: list[InferencePoint]
    n_test: int
    test: list[InferencePoint]
    target_drop: float
    chosen: int | None
    why_none: str


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """The threshold chosen for all devices of one cut.

    Attributes:
        held_out: what it came to where it was chosen; None where no threshold keeps the target, and ``why_none`` says.
        test: what it comes to on the common test set, which had no say; None where there is none.
    """

    cut: str
    n_held_out: int
    target_drop: float
    held_out: InferencePoint | None
    test: InferencePoint | None
    why_none: str


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        trained: the strategy's name, or the baseline's.
        wall_s: virtual seconds from the beginning to the end; None over a real broker, where there are none.
        server_s: the server's compute, virtual.
        server_digest: SHA-256 of its weights; empty where there are none.
        times: where virtual times come from.
        n_test: samples of the common test set; 0 where there is none.
        inference: the chosen threshold of each cut; none for a baseline.
    """

    seed: int
    trained: str
    rounds: int
    wall_s: float | None
    server_s: float
    devices: list[DeviceResult]
    server_digest: str
    times: str
    n_test: int
    inference: list[Calibrated] = []


class Spread(msgspec.Struct, frozen=True):
    """A mean over seeds, and the standard deviation between them where there are at least two."""

    mean: float
    spread: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Several seeds together; an accuracy is first the mean over devices, each counting the same.

    Attributes:
        own: by route, on the devices' own held-out samples; ``common`` on the common test set. Never mixed.
    """

    n_seeds: int
    own: dict[str, Spread]
    common: dict[str, Spread]
    wall_s: Spread | None
    up_bytes: Spread
    down_bytes: Spread
    device_s: Spread
    server_s: Spread


def summarise(results: Sequence[SeedResult]) -> Summary:
    """Bring seeds together; there is at least one."""
    routes = sorted(results[0].devices[0].accuracy)
    walls = [result.wall_s for result in results if result.wall_s is not None]
    own, common = {}, {}
    for route in routes:
        of_route = [[device.accuracy[route] for device in result.devices] for result in results]
        own[route] = _spread([statistics.fmean(a.own for a in accuracies) for accuracies in of_route])
        on_test = [[a.common for a in accuracies if a.common is not None] for accuracies in of_route]
        if all(on_test):
            common[route] = _spread([statistics.fmean(shares) for shares in on_test])
    return Summary(
        n_seeds=len(results),
        own=own,
        common=common,
        wall_s=_spread(walls) if len(walls) == len(results) else None,
        up_bytes=_spread([sum(d.up_bytes for d in r.devices) for r in results]),
        down_bytes=_spread([sum(d.down_bytes for d in r.devices) for r in results]),
        device_s=_spread([sum(d.compute_s for d in r.devices) for r in results]),
        server_s=_spread([r.server_s for r in results]),
    )


def inference_at(curve: CutInference) -> Calibrated:
    """Take the chosen point of a cut's curves."""
    at = curve.chosen
    return Calibrated(
        cut=curve.cut,
        n_held_out=curve.n_held_out,
        target_drop=curve.target_drop,
        held_out=None if at is None else curve.held_out[at],
        test=None if at is None or not curve.test else curve.test[at],
        why_none=curve.why_none,
    )


def keep_result(folder: Path, result: SeedResult) -> None:
    """Write a finished run's result into its folder."""
    write_atomically(folder / RESULT_FILE, msgspec.json.format(msgspec.json.encode(result), indent=1))


def kept_result(folder: Path) -> SeedResult | None:
    """Read the result of a finished run; None where there is none."""
    path = folder / RESULT_FILE
    return msgspec.json.decode(path.read_bytes(), type=SeedResult) if path.exists() else None


def keep_inference(folder: Path, curves: Sequence[CutInference]) -> None:
    """Write the curves into a run's folder."""
    write_atomically(folder / INFERENCE_FILE, msgspec.json.encode(curves))


def kept_inference(folder: Path) -> list[CutInference]:
    """Read the curves of a run's folder; none where it has none."""
    path = folder / INFERENCE_FILE
    return msgspec.json.decode(path.read_bytes(), type=list[CutInference]) if path.exists() else []


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

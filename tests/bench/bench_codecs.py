"""Bytes a sample of each codec, on activations of segments that were trained: ``python -m tests.bench.bench_codecs``.

python -m tests.bench.bench_codecs [--har har.npz]

A device's segment is trained on its data by production steps, then held-out batches are laid out as payloads: header,
labels and all. Beside the bytes stands what the values lose on their way. Data of UCI HAR: see docs/results/ucihar.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from toolkit.nn.datasets import Dataset, load_source
from toolkit.nn.steps import DeviceModel, build_device_model, device_eval, device_step, lr_at
from toolkit.wire import payloads
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.payloads import Batch
from toolkit.wire.tensors import CODECS

BATCH_SIZE = 32
EPOCHS = 5
N_HELD_OUT = 320
SEEDS = range(3)


def batches(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The full ones, in order."""
    for start in range(0, len(y) - BATCH_SIZE + 1, BATCH_SIZE):
        yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]


def trained(data: Dataset, model: str, cut: str, seed: int) -> tuple[DeviceModel, torch.Tensor, torch.Tensor]:
    """A segment after ``EPOCHS``, and the samples it never saw."""
    order = np.random.default_rng(seed).permutation(len(data.y))
    x, y = torch.from_numpy(data.x[order].astype(np.float32)), torch.from_numpy(data.y[order])
    x = (x - x.mean()) / x.std()
    spec = ModelSpec(name=model, input_shape=list(x.shape[1:]), n_classes=len(data.classes))
    optimizer = OptimizerSpec()
    made = build_device_model(spec, cut=cut, exit_head="pooled", optimizer=optimizer, seed=seed)
    for epoch in range(1, EPOCHS + 1):
        made.optimizer.lr = lr_at(optimizer, round_=epoch, rounds=EPOCHS)
        for step, (each_x, each_y) in enumerate(batches(x[N_HELD_OUT:], y[N_HELD_OUT:])):
            device_step(made, each_x, each_y, seed=step)
    return made, x[:N_HELD_OUT], y[:N_HELD_OUT]


def measure(held: Sequence[Batch], codec: str) -> tuple[float, float]:
    """Bytes a sample, and the root mean square of what is lost over that of the values."""
    n_bytes, lost, whole = 0, 0.0, 0.0
    for batch in held:
        address = payloads.PayloadAddress(
            device="ant", round=1, seq=1, term=1, incarnation=1, plan_version=1, cut="cut", run="run"
        )
        frame = payloads.encode(address, batch, codec)
        header, body = payloads.decode(frame, device="ant")
        shape = batch.h.shape[1:]
        back = payloads.to_batch(header, body, activation_shape=shape, n_classes=2**16, batch_size=BATCH_SIZE)
        n_bytes += len(frame)
        lost += float(((back.h - batch.h) ** 2).sum())
        whole += float((batch.h**2).sum())
    return n_bytes / (len(held) * BATCH_SIZE), (lost / whole) ** 0.5


def table(name: str, data: Dataset, model: str, cuts: Sequence[str]) -> str:
    """A row for each cut and codec: means of the seeds."""
    lines = [
        f"{name}, `{model}`",
        "",
        "| cut | codec | bytes a sample | of float32 | lost |",
        "|---|---|---|---|---|",
    ]
    for cut in cuts:
        found: dict[str, list[tuple[float, float]]] = {codec: [] for codec in CODECS}
        for seed in SEEDS:
            made, x, y = trained(data, model, cut, seed)
            held = [
                Batch(
                    "eval", forward.h.contiguous().numpy(), each_y.numpy(), forward.loss, forward.n_correct, 1
                )
                for each_x, each_y in batches(x, y)
                for forward in (device_eval(made, each_x, each_y),)
            ]
            for codec in CODECS:
                found[codec].append(measure(held, codec))
        plain = np.mean([n_bytes for n_bytes, _ in found["float32"]])
        for codec, each in found.items():
            n_bytes, lost = np.mean(each, axis=0)
            lines.append(
                f"| {cut} | {codec} | {n_bytes:,.0f} | {plain / n_bytes:.1f}x smaller | {lost:.2%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the tables of docs/results/codecs.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--har", help="npz file of UCI HAR")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cuts = ("stem", "layer1", "layer2")
    sys.stdout.write(table("UCI digits", load_source("digits"), "resnet_small", cuts))
    if args.har:
        har = load_source(f"npz:{args.har}")
        sys.stdout.write("\n" + table("UCI HAR", har, "mlp", ("hidden1", "hidden2", "hidden3")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

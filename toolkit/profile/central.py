"""The script behind the shipped model profiles: ``python -m toolkit.profile.central FOLDER``.

All data in one place; for every cut its segment and exit are trained, and the rest of the network on what it hands
over, with the steps of a real run. So an exit here is what a device would learn that held all data.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import toolkit
from toolkit.errors import HseeError
from toolkit.nn.cut import cut_layers, take_suffix
from toolkit.nn.datasets import Dataset, channel_moments, load_source
from toolkit.nn.partition import split_held_out
from toolkit.nn.recipe import n_batches_of, train_recipe
from toolkit.nn.steps import (
    SERVER_ROUTE,
    build_device_model,
    device_eval,
    device_step,
    lr_at,
    make_optimizer,
    server_eval,
    server_step,
)
from toolkit.nn.zoo import build_network
from toolkit.profile.board import machine_name
from toolkit.profile.model_profile import CentralRun, ExitRow, ModelProfile, write_model_profile
from toolkit.runtime.preprocess import normalise
from toolkit.wire import tensors
from toolkit.wire.job import ModelSpec, OptimizerSpec

HELD_OUT = 0.2
BATCH_SIZE = 32
COMPRESSING = tuple(codec for codec in tensors.CODECS if "+" in codec)


def train_cut(
    model: ModelSpec, cut: str, data: tuple[Dataset, Dataset], *, exit_head: str, epochs: int, seed: int
) -> ExitRow:
    """Train one cut's both sides with one seed.

    Args:
        model: the network.
        cut: where it is cut.
        data: normalised, to train on and held out.
        exit_head: of the exit.
        epochs: passes over the data; the learning rate falls to zero over them.
        seed: of weights and order.
    Returns: its accuracies, and how far codecs compressed its activations of the held-out samples.
    """
    train, held_out = data
    spec = OptimizerSpec()
    device = build_device_model(model, cut=cut, exit_head=exit_head, optimizer=spec, seed=seed)
    suffix = take_suffix(build_network(model, seed=seed), cut)
    server = make_optimizer(suffix, spec)
    for epoch in range(1, epochs + 1):
        device.optimizer.lr = server.lr = lr_at(spec, round_=epoch, rounds=epochs)
        for seq in range(1, n_batches_of(len(train), BATCH_SIZE) + 1):
            recipe = train_recipe(
                seed=seed,
                device="central",
                fingerprint=train.name,
                n_train=len(train),
                batch_size=BATCH_SIZE,
                round_steps=0,
                round_=epoch,
                seq=seq,
            )
            x, y = torch.from_numpy(train.x[recipe.indices]), torch.from_numpy(train.y[recipe.indices])
            h = device_step(device, x, y, seed=recipe.seed).h
            server_step(suffix, server, h, y, seed=recipe.seed)
    labels = torch.from_numpy(held_out.y)
    forward = device_eval(device, torch.from_numpy(held_out.x), labels)
    sample: NDArray[np.float32] = forward.h[:BATCH_SIZE].numpy()
    accuracy = forward.n_correct / len(labels)
    return ExitRow(
        cut=cut,
        accuracy=accuracy,
        accuracy_min=accuracy,
        accuracy_max=accuracy,
        server_accuracy=server_eval(suffix, forward.h, labels)[SERVER_ROUTE] / len(labels),
        compressed={
            codec: len(tensors.encode_activations("h", sample, codec).content)
            / tensors.activation_bytes(sample.size, codec)
            for codec in COMPRESSING
        },
    )


def over_seeds(rows: Sequence[ExitRow]) -> ExitRow:
    """Put the rows of several seeds together."""
    accuracies = [row.accuracy for row in rows]
    return ExitRow(
        cut=rows[0].cut,
        accuracy=round(float(np.mean(accuracies)), 4),
        accuracy_min=round(min(accuracies), 4),
        accuracy_max=round(max(accuracies), 4),
        server_accuracy=round(float(np.mean([row.server_accuracy for row in rows])), 4),
        compressed={
            codec: round(float(np.mean([row.compressed[codec] for row in rows])), 4)
            for codec in rows[0].compressed
        },
    )


def profile_model(
    model_name: str,
    source: str,
    *,
    exit_head: str = "auto",
    epochs: int = 20,
    seeds: Sequence[int] = (0, 1, 2),
) -> ModelProfile:
    """Train every cut of a model on a data source, once a seed.

    Args:
        model_name: of the zoo, without options.
        source: in the words of ``device.data``.
        exit_head: of all exits.
        epochs: of each run.
        seeds: one run each.
    Raises: HseeError: no such model or data.
    """
    raw, raw_held_out = split_held_out(load_source(source), HELD_OUT, 0)
    mean, var = channel_moments(raw.x)
    std = [float(np.sqrt(v)) or 1.0 for v in var]
    train, held_out = (
        Dataset(normalise(part.x, mean, std), part.y, part.classes, None, source)
        for part in (raw, raw_held_out)
    )
    model = ModelSpec(name=model_name, input_shape=list(train.shape), n_classes=len(train.classes))
    cuts = cut_layers(build_network(model, seed=0))
    rows = [
        over_seeds(
            [
                train_cut(model, cut, (train, held_out), exit_head=exit_head, epochs=epochs, seed=seed)
                for seed in seeds
            ]
        )
        for cut in cuts
    ]
    command = f"python -m toolkit.profile.central profiles/models --model {model_name} --data {source}"
    return ModelProfile(
        schema=1,
        name=f"{model_name}-{source}".replace(":", "-"),
        provenance=CentralRun(
            date=dt.datetime.now(tz=dt.UTC).date(),
            machine=machine_name(),
            command=f"{command} --exit-head {exit_head} --epochs {epochs} --seeds {' '.join(map(str, seeds))}",
            data=source,
            n_train=len(train),
            n_eval=len(held_out),
            epochs=epochs,
            batch_size=BATCH_SIZE,
            seeds=tuple(seeds),
            software={"hsee": toolkit.__version__, "torch": str(torch.__version__)},
        ),
        model=model,
        exit_head=exit_head,
        exits=tuple(rows),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the script. Returns: exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.profile.central", description="Measure how good a model's exits are, by cut."
    )
    parser.add_argument("folder", type=Path, help="where the model profile is written")
    parser.add_argument("--model", default="resnet_small", help="network of the zoo")
    parser.add_argument("--data", default="digits", help="data source, as in hsee agent start --data")
    parser.add_argument("--exit-head", default="auto", help="auto, conv or pooled")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        made = profile_model(
            options.model,
            options.data,
            exit_head=options.exit_head,
            epochs=options.epochs,
            seeds=options.seeds,
        )
        path = options.folder / f"{made.name}.toml"
        write_model_profile(path, made)
    except HseeError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_status
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

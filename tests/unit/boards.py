"""Boards that never were, for tests of the planner."""

import datetime as dt

import msgspec

from toolkit.plan.cost import DeviceInput, ServerInput
from toolkit.plan.schema import Plan
from toolkit.profile.link import Link
from toolkit.profile.schema import Board, CutRow, Profile, Provenance, Training
from toolkit.wire.job import ModelSpec

FAST_SERVER = ServerInput(flop_per_s=1e15)


def board(
    name: str = "board",
    *,
    step_ms: tuple[float, ...] = (2.0, 4.0, 8.0),
    kb: tuple[int, ...] = (64, 64, 32),
    peak_mb: tuple[float, ...] = (300.0, 320.0, 400.0),
    memory_mb: int = 512,
    up_bytes_per_s: float | None = 1e12,
    n_classes: int = 10,
) -> Profile:
    rows = tuple(
        CutRow(
            cut=f"layer{i + 1}",
            step_ms_mean=ms,
            step_ms_p50=ms,
            step_ms_p95=ms,
            n_steps=20,
            peak_memory_mb=mb,
            flop=1000 * (i + 1),
            suffix_flop=100_000 * (len(step_ms) - i),
            n_parameters=100,
            activation_bytes=k * 1024,
        )
        for i, (ms, k, mb) in enumerate(zip(step_ms, kb, peak_mb, strict=True))
    )
    return Profile(
        schema=1,
        name=name,
        provenance=Provenance(kind="measured", date=dt.date(2026, 1, 2), machine="a machine"),
        board=Board(cpu="a processor", architecture="aarch64", n_cores=4, memory_bytes=memory_mb * 2**20),
        link=None
        if up_bytes_per_s is None
        else Link(
            name="wire",
            provenance="measured",
            up_bytes_per_s=up_bytes_per_s,
            down_bytes_per_s=1e9,
            rtt_ms=1.0,
        ),
        model=ModelSpec(name="net", input_shape=[1, 8, 8], n_classes=n_classes),
        training=Training(batch_size=32, exit_head="pooled", threads=1),
        cuts=rows,
    )


def scaled(profile: Profile, factor: float) -> Profile:
    """The same board, so many times slower."""
    rows = tuple(
        msgspec.structs.replace(
            row,
            step_ms_mean=row.step_ms_mean * factor,
            step_ms_p50=row.step_ms_p50 * factor,
            step_ms_p95=row.step_ms_p95 * factor,
        )
        for row in profile.cuts
    )
    return msgspec.structs.replace(profile, cuts=rows)


def fleet(*profiles: Profile, n_batches: int = 10) -> list[DeviceInput]:
    return [DeviceInput(name=p.name, profile=p, n_batches=n_batches) for p in profiles]


def only(plan: Plan, name: str = "board"):
    return next(d for d in plan.devices if d.device == name)

"""Profiles and plans as people read them on a terminal, and the bar while a board is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from toolkit.cli.output import table
from toolkit.plan.reason import duration, size
from toolkit.plan.schema import DevicePlan, Neighbour, Plan
from toolkit.profile.link import Link
from toolkit.profile.schema import BYTES_PER_MB, Conditions, CutRow, InferenceRow, Profile

TRAINING_MB = 512
"""Training needs about so much."""
Tell = Callable[[CutRow | InferenceRow, int], None]


@contextmanager
def measuring_display(*, quiet: bool) -> Iterator[Tell | None]:
    """Show rows as they are done: a bar where a person watches, a line a row elsewhere, nothing if quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as tell:
            yield tell
    else:
        yield lambda row, n_rows: typer.echo(f"{_done(row)} (of {n_rows})", err=True)


@contextmanager
def _bar() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        cuts = progress.add_task("measuring cuts", total=None)
        files = progress.add_task("timing exits", total=None, visible=False)

        def tell(row: CutRow | InferenceRow, n_rows: int) -> None:
            task = cuts if isinstance(row, CutRow) else files
            progress.update(task, total=n_rows, advance=1, visible=True)
            progress.console.print(_done(row), markup=False, highlight=False)

        yield tell


def _done(row: CutRow | InferenceRow) -> str:
    name = f"cut {row.cut}" if isinstance(row, CutRow) else f"file {row.file}"
    if row.failed:
        return f"{name}: failed: {row.failed}"
    if isinstance(row, CutRow):
        if row.unmeasured:
            return f"{name}: counted, not measured"
        return f"{name}: {duration(row.step_ms_mean)} a step"
    return f"{name}: {duration(row.ms_mean)} a sample"


def print_profile(made: Profile) -> None:
    """Print a board: what it is, the state it was in, its cuts, its exported exits, its link."""
    board, limits = made.board, made.provenance.limits
    cores = f"{board.n_cores} core{'s' if board.n_cores > 1 else ''}"
    memory_mb = board.memory_bytes / BYTES_PER_MB
    typer.echo(f"{board.hardware or board.cpu}, {board.architecture}, {cores}, {memory_mb:.0f} MB")
    if limits is not None:
        typer.echo(
            f"emulated: {limits.cpu_percent:g} % of one core, {limits.memory_mb} MB, "
            + ("nothing ran within them" if limits.mechanism == "none" else f"by {limits.mechanism}")
        )
        if made.cuts or made.inference:
            typer.echo(
                "Mean times are the board's: processor time over its share of a core. p50 and p95 are single times as they"
                " came here, quick until the share is used up and slow after."
            )
    if made.conditions is not None:
        typer.echo("; ".join(_conditions(made.conditions)))
    if made.cuts:
        _print_cuts(made)
    if made.inference:
        _print_inference(made)
    if made.inference_only:
        typer.echo(
            f"With {memory_mb:.0f} MB this board is for inference only: training needs about {TRAINING_MB} MB. "
            "It answers with an exported exit: hsee infer"
        )
    if made.link is None:
        typer.echo("Link: not measured; a plan will assume one. --broker HOST:PORT measures it.")
    else:
        _print_link(made.link)


def print_plan(made: Plan) -> None:
    """Print a plan: a line a device, then why, what was ruled out, and what the fleet comes to."""
    columns = ["device", "cut", "compute ms", "upload ms", "server ms", "round s", "KB a batch"]
    columns += ["exit right"] if made.model_profile else []
    columns += ["shallower", "deeper"]
    table(columns, [_plan_row(made, d) for d in made.devices])
    others = {
        "makespan": "the fleet's round",
        "device-time": "its own computing in a round",
        "bytes": "what it sends in a round",
    }
    typer.echo(
        f"compute, upload, server: ms a batch of {made.batch_size}. round: the device's part, all its batches. "
        f"shallower, deeper: {others[made.objective]}, were this device alone cut there."
    )
    for d in made.devices:
        typer.echo(f"{d.device}: {d.cut}, {d.reason}")
        for wrong in d.infeasible:
            typer.echo(f"  not {wrong.cut}: {wrong.detail}; what would help: {wrong.fix}")
    set_by = "the server" if made.bottleneck == "server" else f"device {made.bottleneck}"
    commit = f", {duration(made.commit_ms)} of it to make it durable" if made.commit_ms else ""
    typer.echo(f"Round: {duration(made.round_ms)}, set by {set_by}{commit}. Server: {made.server_basis}.")
    bound = f", at most {made.gap:.1%} above the least" if made.gap else ""
    typer.echo(
        f"Objective: {made.objective} ({made.method}{bound}). In a round the devices compute "
        f"{duration(made.device_time_ms)} and send {size(made.round_bytes)}."
    )
    weights = sum(d.sync_bytes for d in made.devices)
    if weights:
        typer.echo(f"{size(weights)} of that are weights, up and down, on average over the rounds.")
    if made.model_profile:
        typer.echo(
            f"Exit right: held-out accuracy in the central run {made.model_profile}, all data in one place."
        )
    if made.links_assumed:
        names = ", ".join(made.links_assumed)
        typer.echo(f"Links assumed, not measured: {names}. hsee profile --broker HOST:PORT measures them.")


def _plan_row(made: Plan, d: DevicePlan) -> list[object]:
    times = [f"{ms:.2f}" for ms in (d.step_ms + d.hand_over_ms, d.upload_ms, d.server_ms)]
    accuracy = [_share(d.exit_accuracy)] if made.model_profile else []
    around = [_neighbour(made, n) for n in (d.shallower, d.deeper)]
    return [
        d.device,
        d.cut,
        *times,
        f"{d.device_ms / 1e3:.2f}",
        f"{d.batch_bytes / 1024:.1f}",
        *accuracy,
        *around,
    ]


def _neighbour(made: Plan, n: Neighbour | None) -> str:
    if n is None:
        return ""
    costs = {
        "makespan": duration(n.round_ms),
        "device-time": duration(n.device_time_ms),
        "bytes": size(n.round_bytes),
    }
    right = f", {_share(n.exit_accuracy)}" if made.model_profile else ""
    return f"{n.cut}: {costs[made.objective]}{right}"


def _share(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{accuracy:.1%}"


def _print_cuts(made: Profile) -> None:
    batch_size = made.training.batch_size if made.training else 1
    columns = [
        "cut",
        "step ms",
        "p50",
        "p95",
        "+ ms",
        "peak MB",
        "MFLOP",
        "GFLOP/s",
        "parameters",
        "KB a sample",
    ]
    rows: list[list[object]] = [
        [row.cut, *[""] * (len(columns) - 1)]
        if row.failed or row.unmeasured
        else [
            row.cut,
            *(f"{ms:.2f}" for ms in (row.step_ms_mean, row.step_ms_p50, row.step_ms_p95)),
            f"{row.hand_over_ms.get('float32', 0.0):.2f}",
            f"{row.peak_memory_mb:.0f}",
            f"{row.flop / 1e6:.2f}",
            f"{row.achieved_flop_per_s(batch_size) / 1e9:.2f}",
            row.n_parameters,
            f"{row.activation_bytes / 1024:.1f}",
        ]
        for row in made.cuts
    ]
    table(columns, rows)
    for row in made.cuts:
        if row.failed:
            typer.echo(f"{row.cut} was not measured: {row.failed}")
    left_out = [row.cut for row in made.cuts if row.unmeasured]
    if left_out:
        typer.echo(
            f"Not measured, a plan estimates them from the cuts beside them: {', '.join(left_out)}. "
            f"To measure: --cuts {','.join(left_out)}"
        )
    typer.echo(
        "A step is one batch forward, backward and optimizer; + ms is what an agent does with it beside (float32).\n"
        "MFLOP: 2 x MAC, forward, one sample. GFLOP/s: achieved in training, 2 x MAC, forward and backward."
    )


def _print_inference(made: Profile) -> None:
    rows: list[list[object]] = [
        [r.file, "", "", "", f"failed: {r.failed}"]
        if r.failed
        else [r.file, f"{r.ms_mean:.3f}", f"{r.ms_p50:.3f}", f"{r.ms_p95:.3f}", f"{r.peak_memory_mb:.0f}"]
        for r in made.inference
    ]
    table(["ONNX file", "ms a sample", "p50", "p95", "peak MB"], rows)


def _print_link(link: Link) -> None:
    if link.provenance == "assumed":
        typer.echo(f"Link {link.name}: assumed, not measured; --broker HOST:PORT measures it.")
        return
    typer.echo(
        f"Link to {link.name} ({'TLS' if link.tls else 'no TLS'}): round trip {duration(link.rtt_ms)}, "
        f"p95 {duration(link.rtt_ms_p95)}; up {size(link.up_bytes_per_s)}/s, down {size(link.down_bytes_per_s)}/s"
    )
    rows: list[list[object]] = [
        [
            f"{t.payload_bytes / 1024:.1f}",
            t.n_chunks,
            f"{t.up_bytes_per_s / 1024:.0f}",
            f"{t.send_ms:.2f}",
            f"{t.round_trip_ms_p50:.1f}",
            f"{t.round_trip_ms_p95:.1f}",
            f"{t.n_lost} of {t.n_sent}",
        ]
        for t in link.transfers
    ]
    if rows:
        table(["KB", "chunks", "up KB/s", "CPU ms", "there and back ms", "p95", "lost"], rows)


def _conditions(c: Conditions) -> list[str]:
    """What is known of the board's state, a phrase each."""
    copies = None if c.copy_bytes_per_s is None else c.copy_bytes_per_s / 1e9
    known = (
        (c.free_memory_mb, "{:.0f} MB free"),
        (c.swap_mb, "{:.0f} MB swap"),
        (copies, "memory copies {:.1f} GB/s"),
        (c.clock_mhz_after, "{:.0f} MHz at the end"),
        (c.temperature_c_before, "{:.0f} C before"),
        (c.temperature_c_after, "{:.0f} C after"),
        (c.energy_j, "{:.0f} J by the processor"),
        (c.board_energy_j, "{:.0f} J by the board"),
    )
    said = [text.format(value) for value, text in known if value is not None]
    said += [f"on {c.power}"] if c.power else []
    said += [f"throttled: {', '.join(c.throttle)}"] if c.throttle else []
    return [*said, f"CPU features: {' '.join(c.cpu_features) or 'unknown'}"]

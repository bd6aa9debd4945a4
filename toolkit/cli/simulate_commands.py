"""``hsee simulate``: a fleet on this machine, with no board and no broker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from toolkit.cli.options import Json, Quiet, Verbose
from toolkit.cli.output import emit_json, table
from toolkit.cli.run_show import check_format, draw_pictures, pictures_as_json, say_pictures
from toolkit.errors import ConfigError, UsageError, did_you_mean, require
from toolkit.journal import log_all
from toolkit.wire.topics import check_name

if TYPE_CHECKING:
    from coordinator.fleet.events import RunEvent
    from toolkit.plots.draw import Drawn
    from toolkit.simulate.results import InferencePoint, SeedResult, Spread, Summary
    from toolkit.simulate.scenario import Scenario

BYTES_PER_MB = 1e6
ASSUMED_SERVER_GFLOP_PER_S = 20.0
TEST_SHARE = 0.2
MAX_POINTS = 100


def simulate(  # noqa: PLR0913 - a command's options
    *,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices; default: a plan's, or 3.")] = None,
    data: Annotated[
        str,
        typer.Option(
            help="digits, folder:PATH, npz:FILE, csv:FILE, torchvision:NAME, python:MODULE:FUNCTION"
        ),
    ] = "digits",
    root: Annotated[str, typer.Option(help="Folder of torchvision's data sets.")] = "",
    download: Annotated[bool, typer.Option("--download", help="Let torchvision fetch a set.")] = False,
    partition: Annotated[
        str, typer.Option(help="Who holds what: iid, dirichlet:ALPHA, shards:N or user.")
    ] = "dirichlet:0.5",
    held_out: Annotated[float, typer.Option(help="Share of a device's samples kept out of training.")] = 0.2,
    test: Annotated[
        str, typer.Option(metavar="SOURCE", help="A common test set of its own, written as --data is.")
    ] = "",
    test_users: Annotated[
        str,
        typer.Option(metavar="K/N", help="Leave people out: the K-th of N groups of users is the test set."),
    ] = "",
    test_share: Annotated[
        float | None,
        typer.Option(
            help="Share of all samples set aside as a common, balanced test set; 0 for none. Default: 0.2."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Network to train.")] = None,
    cuts: Annotated[
        str, typer.Option(metavar="A,B,...", help="Cut layers, given to the devices in turn.")
    ] = "",
    plan: Annotated[Path | None, typer.Option(help="A plan.toml: devices, cuts and times.")] = None,
    profiles: Annotated[
        str, typer.Option(metavar="A,B,...", help="Profiles, by name or file, given to the devices in turn.")
    ] = "",
    server_gflops: Annotated[
        float, typer.Option(help="The server's GFLOP/s, beside profiles.")
    ] = ASSUMED_SERVER_GFLOP_PER_S,
    strategy: Annotated[
        str | None,
        typer.Option(help="sequential, averaging, consolidated or python:MODULE:CLASS."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the strategy: momentum=keep.")
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            help="In place of a strategy: centralised, local, fedavg, splitfed-shared, splitfed-per-device."
        ),
    ] = "",
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to train.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first seed, of data and training both.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to run, counting up.")] = 1,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE@ROUND", help="A device is lost as a round begins.")
    ] = None,
    slow: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE:FACTOR", help="A device's steps take longer.")
    ] = None,
    target_drop: Annotated[
        float, typer.Option(help="Points of accuracy that leaving early may cost, for the chosen threshold.")
    ] = 1.0,
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 for matrix products and convolutions.")
    ] = "float32",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay weights out as GPUs and newer CPUs like it.")
    ] = False,
    transport: Annotated[str, typer.Option(help="memory (virtual time) or mqtt (a real broker).")] = "memory",
    broker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="For mqtt: one that runs already; default: its own.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; the same one takes a killed simulation up.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pictures go; default: pictures in the folder.")
    ] = None,
    picture_format: Annotated[str, typer.Option("--format", help="Of the pictures: svg or png.")] = "svg",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: run.lr=0.01.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Train a fleet on this machine, with the real coordinator and agents, in virtual time.

    Example: hsee simulate --devices 12 --data digits --cuts stem,layer1,layer2 --rounds 10 --seeds 3
    """
    require("torch", part="coordinator", purpose="A simulation")
    check_format(picture_format)
    from toolkit.config import load_config

    config = load_config(
        {"run.model": model, "run.strategy": strategy, "run.rounds": rounds, "run.seed": seed},
        overrides=[*(settings or []), *(f"run.strategy_options.{pair}" for pair in option or [])],
    )
    plan_text = _read_text(plan) if plan else ""
    from toolkit.simulate.scenario import Scenario
    from toolkit.simulate.simulation import simulate as run_simulation

    given: dict[str, Any] = {
        "run": config.run,
        "names": _names(devices, plan_text),
        "data": data,
        "root": root,
        "download": download,
        "partition": partition,
        "held_out": held_out,
        "test": test,
        "test_users": test_users,
        "test_share": _test_share(test, test_users, test_share),
        "cuts": [cut.strip() for cut in cuts.split(",") if cut.strip()],
        "plan": plan_text,
        "profiles": _profile_texts(profiles),
        "server_flop_per_s": server_gflops * 1e9,
        "numerics": {
            "precision": _choice("--precision", precision, ("float32", "bfloat16")),
            "memory_format": "channels_last" if channels_last else "contiguous",
        },
        "target_drop": _points(target_drop),
        "drops": _pairs(drop, "--drop", "@", int),
        "slow": _pairs(slow, "--slow", ":", float),
        "transport": _choice("--transport", transport, ("memory", "mqtt")),
        "baseline": _choice("--baseline", baseline, _baselines()) if baseline else None,
    }
    scenario = msgspec.convert(given, Scenario)
    folder = output or Path(config.fleet.home) / datetime.now(UTC).strftime("simulation-%Y%m%d-%H%M%S")
    progress = _Progress(quiet=json or quiet)
    try:
        with log_all(on=verbose):
            results = run_simulation(scenario, folder, n_seeds=seeds, observe=progress.show, broker=broker)
    except KeyboardInterrupt:
        progress.say(f"Interrupted. The same command with -o {folder} goes on from the last closed round.")
        raise
    drawn = draw_pictures(folder, pictures, picture_format)
    _conclude(scenario, results, folder, drawn, as_json=json)


class _Progress:
    """A line a round."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print a line, unless only JSON is wanted."""
        if not self._quiet:
            typer.echo(text)

    def show(self, event: RunEvent) -> None:
        """Say what happened."""
        from coordinator.fleet.events import Ended, Notice, PlanMade, RoundClosed
        from coordinator.watching.event_lines import traffic
        from toolkit.wire.job import influence_line

        match event:
            case PlanMade(plan=plan):
                self.say(influence_line(plan.influence))
            case RoundClosed(report=report, rounds=rounds):
                exits = [d.exit_accuracy for d in report.devices if d.exit_accuracy is not None]
                servers = [d.server_accuracy for d in report.devices if d.server_accuracy is not None]
                void = sum(1 for d in report.devices if d.n_void)
                self.say(
                    f"round {report.round}/{rounds}: exit {_mean(exits)}, server {_mean(servers)} (own held-out,"
                    f" mean of {len(exits)} devices); {traffic(report)}; {report.seconds:.1f} s"
                    + (f"; {void} late or lost" if void else "")
                )
            case Notice(text=text):
                self.say(text)
            case Ended(status=status, detail=detail):
                self.say(f"{status}: {detail}")
            case _:
                pass


def _mean(shares: list[float]) -> str:
    return f"{sum(shares) / len(shares):.1%}" if shares else "-"


def _names(devices: int | None, plan_text: str) -> list[str]:
    if not plan_text:
        return [f"dev{number}" for number in range(1, (devices or 3) + 1)]
    from toolkit.plan.schema import parse_plan

    planned = list(parse_plan(plan_text, where="--plan").cuts)
    if devices not in (None, len(planned)):
        raise UsageError(
            f"--devices is {devices}, but the plan has {len(planned)}.", hint="Leave --devices out."
        )
    return planned


def _profile_texts(names: str) -> list[str]:
    from toolkit.profile.locate import find_profile

    return [_read_text(find_profile(name.strip())) for name in names.split(",") if name.strip()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} can't be read: {exc}.", hint="Check the path.", file=str(path)) from exc


def _points(target_drop: float) -> float:
    if not 0 < target_drop <= MAX_POINTS:
        raise UsageError(f"--target-drop {target_drop:g} is not above 0 and at most 100.", hint="Usual is 1.")
    return target_drop


def _test_share(test: str, test_users: str, share: float | None) -> float:
    given = [flag for flag, value in (("--test", test), ("--test-users", test_users)) if value]
    given += ["--test-share"] * (share is not None)
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each name a test set.", hint="Give one of them.")
    if given and share is None:
        return 0.0
    return TEST_SHARE if share is None else share


def _pairs(texts: list[str] | None, flag: str, sign: str, kind: type[int | float]) -> dict[str, float]:
    found = {}
    for text in texts or []:
        name, _, number = text.partition(sign)
        try:
            value = kind(number)
        except ValueError:
            value = 0
        if not value > 0:
            raise UsageError(
                f"{flag} {text}: expected DEVICE{sign}NUMBER, above 0.", hint=f"{flag} dev2{sign}4"
            )
        found[check_name(name, what="The device")] = value
    return found


def _baselines() -> tuple[str, ...]:
    return ("centralised", "local", "fedavg", "splitfed-shared", "splitfed-per-device")


def _choice(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{flag} {value!r} is unknown.", hint=did_you_mean(value, known))
    return value


def _conclude(
    scenario: Scenario, results: list[SeedResult], folder: Path, drawn: Drawn, *, as_json: bool
) -> None:
    from toolkit.simulate.results import summarise

    summary = summarise(results)
    if as_json:
        emit_json(
            {
                "folder": folder,
                "scenario": scenario,
                "summary": summary,
                "seeds": results,
                **pictures_as_json(drawn),
            }
        )
        return
    rows = [
        [
            device.device,
            device.cut,
            device.n_train,
            *(_percent(device.accuracy[r].own) for r in device.accuracy),
            *(_percent(device.accuracy[r].common) for r in device.accuracy),
            f"{device.up_bytes / BYTES_PER_MB:.2f}",
            f"{device.down_bytes / BYTES_PER_MB:.2f}",
            f"{device.compute_s:.1f}",
        ]
        for device in results[0].devices
    ]
    routes = list(results[0].devices[0].accuracy)
    table(
        [
            "device",
            "cut after",
            "trained on",
            *(f"{route}, own" for route in routes),
            *(f"{route}, common" for route in routes),
            "MB up",
            "MB down",
            "compute s",
        ],
        rows,
        title=f"seed {results[0].seed}, {results[0].trained}, {results[0].rounds} rounds, last state",
    )
    _print_summary(summary, results[0])
    _print_exits(results[0])
    _print_thresholds(results)
    say_pictures(drawn)
    typer.echo(f"Everything is in {folder}")


def _print_summary(summary: Summary, first: SeedResult) -> None:
    seeds = f"{summary.n_seeds} seed{'s' * (summary.n_seeds > 1)}"
    for where, routes in (
        ("own held-out samples", summary.own),
        (f"{first.n_test} common ones", summary.common),
    ):
        if routes:
            shares = ", ".join(f"{route} {_with_spread(share)}" for route, share in routes.items())
            typer.echo(f"{seeds}, mean over devices, {where}: {shares}")
    if summary.wall_s is not None:
        typer.echo(
            f"virtual time: {summary.wall_s.mean:.1f} s, server {summary.server_s.mean:.1f} s ({first.times})"
        )


def _print_thresholds(results: list[SeedResult]) -> None:
    rows = [
        [
            result.seed,
            found.cut,
            *_early(found.held_out, common=False),
            *_early(found.test, common=True),
            found.why_none,
        ]
        for result in results
        for found in result.inference
    ]
    if rows:
        table(
            ["seed", "cut after", "threshold", "leave, own", "drop", "leave, common", "drop", "accuracy", ""],
            rows,
            title=f"leaving early: thresholds chosen on own held-out samples, with 95 % confidence to lose at most "
            f"{results[0].inference[0].target_drop:g} percentage points",
        )


def _early(point: InferencePoint | None, *, common: bool) -> list[str]:
    if point is None:
        return ["-", "-", "-"]
    shared = [f"{point.exit_rate:.1%}", f"{point.drop:+.2f}"]
    return [*shared, f"{point.accuracy:.1%}"] if common else [f"{point.threshold:.4f}", *shared]


def _print_exits(first: SeedResult) -> None:
    """Tell of exits besides those at the cuts, stage by stage."""
    for stage in dict.fromkeys(stage for device in first.devices for stage in device.exits):
        held = [device.exits[stage] for device in first.devices if stage in device.exits]
        common = [accuracy.common for accuracy in held if accuracy.common is not None]
        typer.echo(
            f"seed {first.seed}, exit at {stage}, mean of {len(held)} devices: own"
            f" {_mean([accuracy.own for accuracy in held])}, common {_mean(common)}"
        )


def _with_spread(share: Spread) -> str:
    return f"{share.mean:.1%}" + ("" if share.spread is None else f" (spread {share.spread * 100:.1f})")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"

"""``hsee demo``: the whole mission on one machine, made of the same commands that a fleet runs."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from toolkit.cli.options import Json, Quiet
from toolkit.cli.output import emit_json, table
from toolkit.errors import RunError, require, writing

if TYPE_CHECKING:
    from toolkit.cli.children import Children

MODEL, INPUT, CLASSES = "resnet_small", "1x8x8", "10"
PARTITION = "dirichlet:0.5"
AGENT_ENDS_S = 30.0


@dataclass(frozen=True, slots=True)
class Board:
    """What one agent process stands for: percent of one core, MB of memory."""

    name: str
    cpu_percent: int
    memory_mb: int

    @property
    def limits(self) -> str:
        """As ``--emulate`` takes it."""
        return f"{self.cpu_percent}%,{self.memory_mb}"


BOARDS = (Board("small", 10, 512), Board("middle", 25, 1024), Board("strong", 100, 2048))


@dataclass(frozen=True, slots=True)
class BoardResult:
    """What the demo came to for one board; shares of its own held-out samples.

    Attributes:
        trained: the exit of the trained model, as it was evaluated on the board.
        offline: the bundle's answers by ``hsee infer``, all exits answering.
        sure: share of samples below the threshold, and ``sure_accuracy`` of these.
        server: the server's route in the last round.
    """

    board: str
    cut: str
    n_samples: int
    trained: float
    offline: float
    sure: float
    sure_accuracy: float | None
    server: float


def demo(
    *,
    strategy: Annotated[
        str, typer.Option(help="How the server learns: sequential or averaging.")
    ] = "sequential",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 12,
    broker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A broker that runs already; default: one of its own.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="All randomness comes from it.")] = 0,
    home: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show the whole loop here: three boards of unequal strength learn together, then answer without a server.

    Real parts: a broker, a coordinator and three agents as processes of their own, the UCI digits in unequal parts.

    Example: hsee demo --strategy averaging
    """
    _check(strategy, broker)
    from toolkit.cli.children import Children

    started = time.monotonic()
    run = datetime.now(UTC).strftime("demo-%Y%m%d-%H%M%S")
    folder = home / run
    with writing(folder):
        folder.mkdir(parents=True)
    tell = Teller(quiet=json or quiet)
    try:
        with Children() as children:
            scene = Scene(children, folder, run, tell)
            scene.measure()
            scene.train(strategy=strategy, rounds=rounds, broker=broker, seed=seed, as_json=json or quiet)
            results = scene.answer_offline()
    except KeyboardInterrupt:
        tell.say(f"\nInterrupted; every process is stopped. What was trained is in {folder}")
        raise
    except subprocess.CalledProcessError as exc:
        raise _failed(exc) from exc
    seconds = time.monotonic() - started
    if json:
        emit_json(
            {"run": str(folder), "seconds": seconds, "boards": [msgspec.to_builtins(r) for r in results]}
        )
        return
    _conclude(results, folder, seconds)


class Teller:
    """Says what happens, unless only JSON is wanted."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        """Print a line."""
        if not self._quiet:
            typer.echo(text)

    def chapter(self, number: int, text: str) -> None:
        """Print a heading."""
        self.say(f"\n[{number}/3] {text}")


class Scene:
    """The demo's steps, each made of hsee's own commands.

    Args:
        children: starts and stops the processes.
        folder: of the run.
        run: its id.
        tell: says what happens.
    """

    def __init__(self, children: Children, folder: Path, run: str, tell: Teller) -> None:
        self._children = children
        self._folder = folder
        self._run = run
        self._tell = tell

    def measure(self) -> None:
        """Measure every board under its own limits."""
        self._tell.chapter(1, "hsee profile: each board is measured under its own limits (emulated)")
        (self._folder / "profiles").mkdir()
        for board in BOARDS:
            words = f"profile --model {MODEL} --input {INPUT} --classes {CLASSES} --quick --json".split()
            words += f"--emulate {board.limits} --link ethernet --name {board.name}".split()
            self._children.run([*words, "-o", str(self._profile(board))])
            rows = self._step_times(board)
            self._tell.say(f"  {board.name}: {board.cpu_percent} % of one core, {board.memory_mb} MB: {rows}")

    def train(self, *, strategy: str, rounds: int, broker: str, seed: int, as_json: bool) -> None:
        """Run broker, coordinator and agents until the run is over; then they are all stopped."""
        self._tell.chapter(2, f"hsee coordinator start, hsee agent start: {rounds} rounds, {strategy}")
        with ExitStack() as stack:
            address, passwords = broker, dict.fromkeys((self._coordinator, *(b.name for b in BOARDS)), "")
            if not broker:
                from toolkit.access.accounts import grants_of
                from toolkit.link.broker import generate_password, start_embedded_broker
                from toolkit.wire.topics import Topics

                passwords = {account: generate_password() for account in passwords}
                grants = {account: grants_of(account, Topics("demo")) for account in passwords}
                embedded = stack.enter_context(
                    start_embedded_broker(self._folder / "broker", passwords, grants=grants)
                )
                address = f"{embedded.address.host}:{embedded.address.port}"
            agents = {
                board: self._start_agent(board, address, passwords[board.name], seed) for board in BOARDS
            }
            words = (
                f"coordinator start --broker {address} --fleet demo --run {self._run} --model {MODEL}".split()
            )
            words += f"--devices {len(BOARDS)} --strategy {strategy} --rounds {rounds} --seed {seed}".split()
            words += ["--home", str(self._folder.parent)]
            coordinator = self._children.start(
                words,
                env=_login(passwords[self._coordinator]),
                log=self._folder / "coordinator.log" if as_json else None,
            )
            self._wait(coordinator, agents)
        self._tell.say("broker and coordinator are stopped")

    def answer_offline(self) -> list[BoardResult]:
        """Export every board's bundle and let it answer held-out samples with no server."""
        self._tell.chapter(3, "hsee export, hsee infer: each board answers its held-out samples offline")
        exported = msgspec.json.decode(self._children.run(["export", str(self._folder), "--json"]))
        by_device = {bundle["device"]: bundle for bundle in exported["bundles"]}
        return [self._infer(board, by_device[board.name]) for board in BOARDS]

    @property
    def _coordinator(self) -> str:
        return f"coord-{self._run}"

    def _profile(self, board: Board) -> Path:
        return self._folder / "profiles" / f"{board.name}.toml"

    def _device(self, board: Board) -> Path:
        return self._folder / "devices" / board.name

    def _step_times(self, board: Board) -> str:
        from toolkit.profile.schema import read_profile

        rows = read_profile(self._profile(board)).cuts
        return (
            ", ".join(f"{row.cut} {row.failed or f'{row.step_ms_mean:.1f} ms'}" for row in rows) + " a step"
        )

    def _start_agent(self, board: Board, address: str, password: str, seed: int) -> subprocess.Popen[bytes]:
        self._device(board).mkdir(parents=True)
        part = f"{BOARDS.index(board) + 1}/{len(BOARDS)}"
        words = (
            f"agent start --broker {address} --fleet demo --id {board.name} --emulate {board.limits}".split()
        )
        words += f"--data digits --partition {PARTITION} --part {part} --data-seed {seed}".split()
        words += ["--home", str(self._folder.parent), "--profile", str(self._profile(board))]
        return self._children.start(words, env=_login(password), log=self._device(board) / "agent.log")

    def _wait(
        self, coordinator: subprocess.Popen[bytes], agents: Mapping[Board, subprocess.Popen[bytes]]
    ) -> None:
        """Wait for the run's end; an agent that fails before it ends the demo."""
        while coordinator.poll() is None:
            for board, agent in agents.items():
                if agent.poll() not in (None, 0):
                    raise self._fallen(board.name, self._device(board) / "agent.log")
            time.sleep(0.1)
        if coordinator.returncode:
            raise self._fallen("coordinator", self._folder / "coordinator.log")
        for board, agent in agents.items():
            try:
                status = agent.wait(AGENT_ENDS_S)
            except subprocess.TimeoutExpired as exc:
                raise RunError(
                    f"{board.name} did not end with the run.",
                    hint=f"Its log is {self._device(board) / 'agent.log'}",
                ) from exc
            if status:
                raise self._fallen(board.name, self._device(board) / "agent.log")

    def _fallen(self, who: str, log: Path) -> RunError:
        last = log.read_text().strip().splitlines()[-2:] if log.exists() else []
        return RunError(
            f"{who} failed. {' '.join(last)}".rstrip(), hint=f"What was trained is in {self._folder}"
        )

    def _infer(self, board: Board, bundle: Mapping[str, Any]) -> BoardResult:
        held_out = self._device(board) / "held_out.npz"
        words = ["infer", str(self._folder / "export" / board.name), str(held_out), "--json"]
        summary = msgspec.json.decode(self._children.run(words))["summary"]
        with (self._folder / "metrics.csv").open(newline="") as file:
            last = [row for row in csv.DictReader(file) if row["device"] == board.name][-1]
        return BoardResult(
            board=board.name,
            cut=bundle["cut"],
            n_samples=summary["n_samples"],
            trained=bundle["segments"][0]["torch_accuracy"],
            offline=summary["accuracy"],
            sure=summary["n_sure"] / summary["n_samples"],
            sure_accuracy=summary["accuracy_of_sure"],
            server=float(last["server_accuracy"]),
        )


def _check(strategy: str, broker: str) -> None:
    """Find out what is missing before anything is started."""
    for module, part in (("torch", "all"), ("paho", "all"), ("onnx", "all"), ("onnxscript", "all")):
        require(module, part=part, purpose="The demo")
    if broker:
        from toolkit.access.probe import Probe
        from toolkit.link.base import parse_broker

        address = parse_broker(broker)
        address.require_secure()
        with Probe(address):
            pass
    else:
        require("amqtt", part="all", purpose="The demo's own broker")
    from coordinator.strategy.catalogue import make_strategy

    make_strategy(strategy)


def _login(password: str) -> dict[str, str]:
    return {"HSEE_BROKER_PASSWORD": password} if password else {}


def _failed(exc: subprocess.CalledProcessError) -> RunError:
    said = exc.stderr.decode(errors="replace").strip() or exc.output.decode(errors="replace").strip()
    return RunError(f"hsee {' '.join(exc.cmd)} failed: {said}")


def _conclude(results: list[BoardResult], folder: Path, seconds: float) -> None:
    table(
        [
            "board",
            "cut after",
            "held out",
            "exit, trained",
            "exit, offline",
            "sure",
            "right when sure",
            "server route",
        ],
        [
            [
                r.board,
                r.cut,
                r.n_samples,
                f"{r.trained:.1%}",
                f"{r.offline:.1%}",
                f"{r.sure:.0%}",
                "-" if r.sure_accuracy is None else f"{r.sure_accuracy:.1%}",
                f"{r.server:.1%}",
            ]
            for r in results
        ],
    )
    same = all(r.trained == r.offline for r in results)
    better = [f"{r.board} {(r.server - r.offline) * 100:+.1f}" for r in results if r.server > r.offline]
    other = [f"{r.board} {(r.server - r.offline) * 100:+.1f}" for r in results if r.server <= r.offline]
    not_better = f"that route for {', '.join(other)}; and " if other else ""
    typer.echo(
        f"\nThe exits answered offline, {'exactly as accurate as' if same else 'NOT as accurate as'} the trained model."
        f"\nWhat the fleet improved: the server's route over the board's own exit, in points: {', '.join(better) or '-'}."
        f"\nWhat it did not: {not_better}the exits. No weights come back,"
        " so each exit is what its board would have learned alone."
        f"\nEverything is in {folder} ({seconds:.0f} s): config.toml, plan.toml, metrics.csv, export/."
    )

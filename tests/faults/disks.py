"""Rows in which a disk is full, fails, can't be written any more, loses its power, or rots."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.store.checkpoints import committed_generations
from coordinator.store.run_folder import RunFolder
from device_agent.state import TRAINING_FILE
from device_agent.tape import Tape
from tests.e2e.processes import Running, wait_until
from tests.faults import mounts
from tests.faults.judge import ALONE_WITH_TORCH, Judged, judge
from tests.faults.registry import row
from tests.faults.scene import ENDLESS, RUN, Scene, SkippedRowError
from tests.numerics.fleet import Fleet, Member, local_data, patterns
from tests.tiny_bundles import write_tiny_bundle
from toolkit.config import Run
from toolkit.errors import MachineError
from toolkit.nn.segment_record import read_record
from toolkit.nn.weights import load_tensors

MIB = 1 << 20
PARTS = {"ant": "1/24", "bee": "2/24"}
UNFIT_DISK = MachineError.exit_status


def agent_folder(home: Path, device: str) -> Path:
    """Where an agent keeps what it holds of the run."""
    return home / RUN / "devices" / device


def check_whole(run: Path, devices: dict[str, Path]) -> int:
    """Every checkpoint that counts is whole, of coordinator and devices; returns the newest closed round, -1 for none."""
    kept = committed_generations(run / "checkpoints")
    for generation in kept:
        generation.check()
    for folder in devices.values():
        if (folder / TRAINING_FILE).exists():
            load_tensors(folder / TRAINING_FILE)
        if (folder / "segment.json").exists():
            read_record(folder)
            load_tensors(folder / "segment.safetensors")
    return kept[-1].round if kept else -1


def start_fleet(scene: Scene, port: int, *, rounds: int, **env: str) -> tuple[Running, dict[str, Running]]:
    """A coordinator and two agents, their folders in the scene's; agents that train alone save every 2 s."""
    often = ("--set", "device.checkpoint_every_s=2")
    agents = {device: scene.agent(port, device, *often, part=part, **env) for device, part in PARTS.items()}
    return scene.coordinator(port, "--devices", 2, "--rounds", rounds, **env), agents


def answers(folder: Path, scene: Scene) -> None:
    """A board infers, with its bundle, its samples and its working folder on that disk."""
    done = scene.hsee.run("infer", folder / "bundle", folder / "sample.csv")
    assert done.end() == 0, done.describe()


def write_board(folder: Path) -> None:
    """What a board needs to infer."""
    write_tiny_bundle(folder / "bundle")
    (folder / "sample.csv").write_text("0.5,1.5,-0.5\n")


def stopped_by_its_disk(running: Running, *says: str) -> None:
    """It ends with the status of an unfit machine, and says what it could not write and why."""
    assert running.end() == UNFIT_DISK, running.describe()
    told = running.out + running.err
    assert "can't be written" in told, running.describe()
    assert f"{RUN}/" in told, running.describe()
    assert any(text in told for text in says), running.describe()
    assert "Traceback" not in told, running.describe()


# R11


@row("R11", "the disk is full: the old checkpoint is whole, it says what and how much, inference goes on")
def disk_full(scene: Scene) -> str:
    """Real processes of which each finds its disk full in turn."""
    disk = scene.folder / "disk"
    with mounts.small_disk(disk, 24 * MIB):
        port = scene.broker().address.port
        part = scene.on_disk("disk")
        write_board(disk)
        coordinator, agents = start_fleet(part, port, rounds=ENDLESS)
        coordinator.wait_for_round(2)
        filler = disk / "filler"
        for one in (coordinator, *agents.values()):
            wait_until(lambda one=one: one.process.poll() is not None or mounts.fill(filler), one.describe)
            stopped_by_its_disk(one, "bytes are free there")
        reached = check_whole(part.run, {device: agent_folder(disk / device, device) for device in PARTS})
        assert reached >= coordinator.rounds()[-1]
        answers(disk, scene)
        filler.unlink()
        judged = go_on(part, port)
        assert judged.n_rounds >= reached + 2
    return f"{judged}"


def go_on(scene: Scene, port: int) -> Judged:
    """The fleet starts again on what a disk holds, and is as promised."""
    agents = [scene.agent(port, device, part=share) for device, share in PARTS.items()]
    coordinator = scene.resume()
    coordinator.wait_for('"event":"round"')
    coordinator.wait_for_round(coordinator.rounds()[0] + 2)
    scene.stopped_well(coordinator, *agents)
    return scene.judge()


SETTINGS = Run(
    model="mlp",
    model_options={"width": 8},
    rounds=3,
    devices=2,
    batch_size=8,
    exit_head="pooled",
    classes=["a", "b", "c"],
    commit_every_s=0.05,
)


@contextmanager
def fleet_on(disk: Path) -> Iterator[Fleet]:
    """Production coordinator and agents in this process, on a disk; what they send is kept beside it."""
    members = [
        Member(name, cut, local_data(*patterns(30, (5,), seed=n), classes="abc"))
        for n, (name, cut) in enumerate({"ant": "hidden1", "bee": "hidden2"}.items())
    ]
    fleet = Fleet(disk, members, SETTINGS)
    try:
        fleet.start()
        for member in members:
            member.agent._sender._tape = Tape(disk.parent / "tape").keep
        yield fleet
    finally:
        for member in members:
            for part in (member.agent, member.folder):
                if part is not None:
                    leave(part.close)
        leave(fleet.coordinator.close)


def leave(close: Callable[[], None]) -> None:
    """A process whose disk is full ends."""
    try:
        close()
    except MachineError:
        return


@row("R11L", "a disk that becomes full at each of many levels, by any write of a run")
def fill_levels(scene: Scene) -> str:
    with ALONE_WITH_TORCH:
        return _fill_levels(scene)


def _fill_levels(scene: Scene) -> str:
    """Play whole runs in this process."""
    disk = scene.folder / "disk"
    n_levels = 16 if scene.scale == 1 else 100
    with mounts.small_disk(disk, 64 * MIB):
        with fleet_on(disk) as fleet:
            fleet.run_until(lambda: fleet.coordinator.over)
        needed = 64 * MIB - mounts.free_bytes(disk)
    told: list[str] = []
    for level in range(n_levels):
        n_bytes = needed * 3 // 2 * (level + 1) // n_levels
        with mounts.small_disk(disk, n_bytes):
            try:
                with fleet_on(disk) as fleet:
                    fleet.run_until(lambda: fleet.coordinator.over)
            except MachineError as exc:
                told.append(exc.message)
            gc.collect()  # a process that ends lets go of its locks
            reached = check_whole(disk / "run", {device: disk / "devices" / device for device in PARTS})
            mounts.resize(disk, 64 * MIB)
            with fleet_on(disk) as fleet:
                fleet.run_until(lambda: fleet.coordinator.over)
                assert fleet.coordinator.status == "finished"
            judged = judge(disk / "run", scene.tape)
            assert judged.n_rounds == SETTINGS.rounds >= reached
    assert n_levels // 2 < len(told) < n_levels
    unclear = [text for text in told if str(disk) not in text or "bytes are free there" not in text]
    assert not unclear, unclear[0]
    return f"{n_levels} fill levels up to {needed * 3 // 2048} KiB, {len(told)} too small; each run ends as promised after room is made"


# R12


def build_failing_fsync(folder: Path) -> Path:
    """Compile what stands before the system's fsync.

    Raises: SkippedRowError: there is no compiler.
    """
    program = shutil.which("cc")
    if program is None:
        raise SkippedRowError("there is no C compiler")
    built = folder / "failing_fsync.so"
    source = Path(__file__).with_name("failing_fsync.c")
    subprocess.run([program, "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


def check_not_repeated(log: Path) -> str:
    """Nobody trusts a file whose fsync failed: it is not synced again. Returns the file's name."""
    calls = [line.split(" ", 2) for line in log.read_text().splitlines()]
    (at,) = [number for number, call in enumerate(calls) if call[1] == "failed"]
    inode, _, path = calls[at]
    again = [
        call for call in calls[at + 1 :] if call[0] == inode and Path(call[2]).parent == Path(path).parent
    ]
    assert not again, f"{path} was synced again after its fsync had failed"
    return Path(path).name


@row("R12", "an fsync fails: the process stops, says where, never tries it again")
def fsync_fails(scene: Scene) -> str:
    shim = build_failing_fsync(scene.folder)
    port = scene.broker().address.port
    n_each = 1 if scene.scale == 1 else 12
    coordinator, agents = start_fleet(scene, port, rounds=ENDLESS)
    coordinator.wait_for_round(2)
    seen = []
    for number in range(2 * n_each):
        log = scene.folder / f"fsync{number}.log"
        who = "ant" if number % 2 else "coordinator"
        below = scene.run if who == "coordinator" else agent_folder(scene.folder / "ant", "ant")
        failing = {
            "LD_PRELOAD": str(shim),
            "FSYNC_BELOW": str(below),
            "FSYNC_LOG": str(log),
            "FSYNC_FAILS_AT": str(scene.random.randint(1, 8 if who == "ant" else 24)),
        }
        if who == "ant":
            agents["ant"].kill()
            unlucky = scene.agent(port, "ant", part=PARTS["ant"], **failing)
        else:
            coordinator.kill()
            unlucky = scene.resume(**failing)
        stopped_by_its_disk(unlucky, "Input/output error")
        seen.append(check_not_repeated(log))
        if who == "ant":
            coordinator.stand_still()  # or it drops a checkpoint that is being read
        check_whole(scene.run, {device: agent_folder(scene.folder / device, device) for device in PARTS})
        if who == "ant":
            coordinator.signal(signal.SIGCONT)
            agents["ant"] = scene.agent(port, "ant", part=PARTS["ant"])
        else:
            coordinator = scene.resume()
            coordinator.wait_for('"event":"round"')
    coordinator.wait_for_round(coordinator.rounds()[-1] + 2)
    scene.stopped_well(coordinator, *agents.values())
    return f"{', '.join(seen)}; {scene.judge()}"


# R13


@row("R13", "the file system turns read-only in the middle", quick=False)
def read_only(scene: Scene) -> str:
    image = mounts.Image(scene.folder / "image", scene.folder / "disk")
    try:
        port = scene.broker().address.port
        part = scene.on_disk("disk")
        write_board(image.folder)
        coordinator, agents = start_fleet(part, port, rounds=ENDLESS)
        coordinator.wait_for_round(3)
        time.sleep(scene.random.uniform(0.0, 0.2))
        image.fail()
        for one in (coordinator, *agents.values()):
            stopped_by_its_disk(one, "Read-only file system", "Input/output error")
        check_whole(part.run, {device: agent_folder(image.folder / device, device) for device in PARTS})
        answers(image.folder, part)
        image.unmount()
        image.mount()
        reached = check_whole(
            part.run, {device: agent_folder(image.folder / device, device) for device in PARTS}
        )
        assert reached >= coordinator.rounds()[-1]
        judged = go_on(part, port)
        assert judged.n_rounds >= reached + 2
    finally:
        scene.close()
        image.close()
    return str(judged)


# R2


@row("R2", "power cut: the disk as it is at a stop, without what had not reached it", quick=False)
def power_cuts(scene: Scene) -> str:
    n_cuts = 4 if scene.scale == 1 else 200
    resumed_every = n_cuts // (1 if scene.scale == 1 else 8)
    image = mounts.Image(scene.folder / "image", scene.folder / "disk", n_bytes=128 * MIB)
    kept: list[Path] = []
    try:
        port = scene.broker().address.port
        part = scene.on_disk("disk")
        coordinator, agents = start_fleet(part, port, rounds=ENDLESS)
        coordinator.wait_for_round(1)
        everybody = (coordinator, *agents.values())
        n_ahead = 0
        for number in range(n_cuts):
            time.sleep(scene.random.uniform(0.0, 0.3))
            for one in everybody:
                one.stand_still()
            told = coordinator.rounds()[-1]
            copy = scene.folder / f"copy{number}"
            image.copy(copy)
            for one in everybody:
                one.signal(signal.SIGCONT)
            assert all(one.process.poll() is None for one in everybody), coordinator.describe()
            if number % resumed_every == 0:
                kept.append(copy)
            n_ahead += look_after_power_cut(scene, copy, told=told) > told
            if copy not in kept:
                copy.unlink()
        for one in everybody:
            one.kill()
        judged = [go_on_after_power_cut(scene, port, copy) for copy in kept]
    finally:
        scene.close()
        image.close()
    return f"{n_cuts} cuts, {n_ahead} between a commit and its word, none torn; {len(judged)} gone on from; {judged[-1]}"


def go_on_after_power_cut(scene: Scene, port: int, copy: Path) -> Judged:
    """The fleet starts again on what the power cut left, and is as promised."""
    with mounts.mounted(copy, scene.folder / "found", "-o", "loop"):
        return go_on(scene.on_disk("found"), port)


def look_after_power_cut(scene: Scene, copy: Path, *, told: int) -> int:
    """What a machine finds when its power is back: all that was told as committed, nothing torn; returns its round."""
    folder = scene.folder / "found"
    with mounts.mounted(copy, folder, "-o", "loop"):
        found = RunFolder(folder / "runs" / RUN, RUN)
        try:
            generation, ledger = found.open_checkpoint()
            assert generation is not None
            names = [path.name for path in (found.path / "checkpoints").iterdir()]
            assert not any(name.endswith(".aside") for name in names), f"a torn checkpoint: {names}"
            assert generation.round >= told, (
                f"round {told} was told as committed, {generation.round} is there"
            )
            assert found.record.term >= 1
            ledger.close()
            reached = generation.round
        finally:
            found.close()
        for device in PARTS:
            own = agent_folder(folder / device, device)
            if (own / TRAINING_FILE).exists():
                load_tensors(own / TRAINING_FILE)
            if (own / "segment.json").exists():
                read_record(own)
                load_tensors(own / "segment.safetensors")
    return reached

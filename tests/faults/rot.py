"""The row in which bits rot: in every file that a run and its agents keep."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from coordinator.store.run_folder import RunFolder
from device_agent.state import TRAINING_FILE, DeviceFolder
from tests.faults.disks import PARTS, agent_folder, start_fleet
from tests.faults.registry import row
from tests.faults.scene import ENDLESS, RUN, Scene
from tests.numerics.same import digest
from toolkit.config import load_config, settings_text
from toolkit.errors import CheckpointError, HseeError
from toolkit.nn.segment_record import HELD_OUT_FILE, WEIGHTS_FILE, read_record
from toolkit.nn.weights import load_tensors, tensors_of
from toolkit.runtime.arrays import read_npz

FOR_PEOPLE = {"plan.toml", "metrics.csv", "env.json", "ant.toml", "bee.toml"}
"""Nothing goes on from these: they say what was, and are written again."""
EMPTY = {"lock"}

Found = tuple[object, list[str]]
"""What was loaded, and what was said of it: damage that could be done without."""


def of_coordinator(run: Path) -> Found:
    """All that a coordinator goes on from."""
    settings = load_config({}, cwd_file=run / "config.toml")
    folder = RunFolder(run, RUN)
    try:
        folder.write_config(settings_text(settings))
        generation, ledger = folder.open_checkpoint()
        assert generation is not None
        with ledger:
            state, head = generation.state(), ledger.head
        said = [*folder.damage, *(path.name for path in (run / "checkpoints").glob("*.aside"))]
        return (settings, folder.record, state, head, digest(generation.tensors())), said
    finally:
        folder.close()


def of_agent(own: Path) -> Found:
    """All that an agent goes on from, and what export reads."""
    read_from: list[str] = []

    def load(content: bytes, where: Path) -> str:
        held = digest(tensors_of(content, where=where))
        read_from.append(where.name)
        return held

    folder = DeviceFolder(own)
    try:
        training = folder.load_training(load)
    finally:
        folder.close()
    with (own / HELD_OUT_FILE).open("rb") as held_out:
        samples = {name: array.tobytes() for name, array in read_npz(held_out, own / HELD_OUT_FILE).items()}
    segment = digest(load_tensors(own / WEIGHTS_FILE))
    return (training, read_record(own), segment, samples), [n for n in read_from if n != TRAINING_FILE]


def flipped(scene: Scene, folder: Path, load: Callable[[Path], Found], *, times: int) -> Counter[str]:
    """Flip bits of every file below a folder, one at a time, and hold each to what is loaded without it."""
    whole = scene.folder / "whole"
    shutil.copytree(folder, whole, ignore=shutil.ignore_patterns("*.sock"))
    right, said = load_copy(scene, whole, load)
    assert not said, said
    counts: Counter[str] = Counter()
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if not content or path.name in EMPTY | FOR_PEOPLE:
            continue
        for _ in range(times):
            at, bit = scene.random.randrange(len(content)), 1 << scene.random.randrange(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                loaded, said = load_copy(scene, whole, load)
            except (CheckpointError, HseeError):
                counts["found"] += 1
                continue
            if said:
                counts["done without"] += 1
                continue
            name = path.relative_to(whole)
            assert loaded == right, (
                f"{name}: bit {bit} of byte {at} of {len(content)} changes what is loaded, unseen"
            )
            counts["harmless"] += 1
        path.write_bytes(content)
    shutil.rmtree(whole)
    return counts


def load_copy(scene: Scene, whole: Path, load: Callable[[Path], Found]) -> Found:
    """Load from a copy: loading mends and sets aside."""
    copy = scene.folder / RUN
    shutil.copytree(whole, copy)
    try:
        return load(copy)
    finally:
        shutil.rmtree(copy)


@row("R14", "bits flip in each file that a run and an agent keep: found, or nothing that is loaded changes")
def bit_rot(scene: Scene) -> str:
    port = scene.broker().address.port
    coordinator, agents = start_fleet(scene, port, rounds=ENDLESS)
    coordinator.wait_for_round(3)
    scene.stopped_well(coordinator, *agents.values())
    times = 24 * scene.scale
    counts = flipped(scene, scene.run, of_coordinator, times=times)
    counts += flipped(scene, agent_folder(scene.folder / "ant", "ant"), of_agent, times=times)
    # The same to processes: the newest checkpoints of both sides are damaged, and those before are taken.
    newest = max((scene.run / "checkpoints").iterdir()) / "model.safetensors"
    for path in (newest, agent_folder(scene.folder / "ant", "ant") / TRAINING_FILE):
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(content)
    agents = {device: scene.agent(port, device, part=part) for device, part in PARTS.items()}
    again = scene.resume()
    again.wait_for('"event":"round"')
    assert again.rounds()[0] <= coordinator.rounds()[-1] + 1
    again.wait_for_round(again.rounds()[0] + 2)
    scene.stopped_well(again, *agents.values())
    return f"{', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}; {scene.judge()}"

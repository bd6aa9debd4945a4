"""Rows in which the network, the disk, the clock or the time a step takes is not what it should be."""

from __future__ import annotations

from coordinator.checkpoints import Checkpoints
from coordinator.run_record import read_record
from tests.e2e.processes import ROOT
from tests.faults.registry import row
from tests.faults.scene import Scene
from tests.numerics.same import digest
from toolkit.errors import CheckpointError


@row("F3", "a long step never costs a keep-alive")
def long_step(scene: Scene) -> str:
    broker = scene.broker()
    step_s, keep_alive_s = (6.0, 2) if scene.scale == 1 else (60.0, 20)
    stubs = scene.stubs(broker.address.port, 1, pace=step_s, keep_alive=keep_alive_s)
    coordinator = scene.serve(broker.address.port, devices=1, rounds=1, round_steps=2)
    scene.ended_well(coordinator, stubs, cap_s=90.0 + 5 * step_s)
    assert "is offline" not in coordinator.out, coordinator.describe()
    assert scene.stubs_report(stubs, "ended")["most_failed"] == 0
    log = broker.log_path.read_text()
    assert "timeout" not in log, log
    return f"steps of {step_s:g} s on a keep-alive of {keep_alive_s} s; {scene.judge()}"


@row("R14", "bit rot in checkpoints: found, or nothing that is loaded changes")
def bit_rot(scene: Scene) -> str:
    port = scene.broker().address.port
    scene.ended_well(scene.serve(port, devices=2, rounds=3), scene.stubs(port, 2))
    generations = Checkpoints(scene.run / "checkpoints").kept()
    newest = generations[-1]
    whole = digest(newest.tensors()), newest.state()
    n_found = n_harmless = 0
    for path in sorted(newest.path.iterdir()):
        content = path.read_bytes()
        for _ in range(60 * scene.scale):
            at, bit = scene.random.randrange(len(content)), 1 << scene.random.randrange(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                newest.check()
                assert (digest(newest.tensors()), newest.state()) == whole, (
                    f"{path.name}, byte {at}, bit {bit}"
                )
                n_harmless += 1
            except CheckpointError:
                n_found += 1
        path.write_bytes(content)
    for name in ("run.json", "run-copy.json"):
        content = bytearray((scene.run / name).read_bytes())
        content[len(content) // 2] ^= 8
        before = read_record(scene.run)
        (scene.run / name).write_bytes(content)
        assert read_record(scene.run) == before
        if name == "run.json":  # one at a time: the other copy is used, and told
            content[len(content) // 2] ^= 8
            (scene.run / name).write_bytes(content)
    content = bytearray((newest.path / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (newest.path / "model.safetensors").write_bytes(content)
    again = scene.serve(port, devices=2, rounds=4)
    again.wait_for("run-copy.json is damaged")
    again.wait_for("after round 2")
    scene.ended_well(again, scene.stubs(port, 2))
    return (
        f"{n_found} flips found, {n_harmless} without effect, the generation before is taken; {scene.judge()}"
    )


@row("R16", "clocks off by years")
def clocks_off(scene: Scene) -> str:
    port = scene.broker().address.port
    hook = scene.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, time\nreal = time.time\ntime.time = lambda: real() + float(os.environ['CLOCK_OFF_S'])\n"
    )
    off = {"PYTHONPATH": f"{hook}:{ROOT}"}
    years_s = 10 * 365 * 86400
    agents = [
        scene.agent(port, device, part=f"{n}/24", CLOCK_OFF_S=str(sign * years_s), **off)
        for n, (device, sign) in enumerate((("ant", 1), ("bee", -1)), start=1)
    ]
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", 4, CLOCK_OFF_S=str(years_s / 2), **off)
    scene.ended_well(coordinator, *agents)
    judged = scene.judge()
    assert judged.n_void == 0
    return f"plus and minus ten years; {judged}"

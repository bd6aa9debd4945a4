"""Rows in which the network, the disk, the clock or the time a step takes is not what it should be."""

from __future__ import annotations

import signal
import time

from coordinator.checkpoints import Checkpoints
from tests.e2e.processes import ROOT
from tests.faults.cable import Cable
from tests.faults.registry import row
from tests.faults.scene import Scene, seconds_until
from tests.numerics.same import digest
from toolkit.errors import CheckpointError


@row("R6", "the network is gone for a while: noticed within two keep-alives, back in the open round")
def network_gone(scene: Scene) -> str:
    broker = scene.broker()
    keep_alive_s, gone_s = 1, 4.0 * scene.scale
    with Cable(broker.address.port) as cable:
        stubs = scene.stubs(cable.port, 2, pace=0.02, keep_alive=keep_alive_s, max_backoff=1.0)
        coordinator = scene.serve(broker.address.port, devices=2, rounds=100_000)
        scene.wait_for_rounds(coordinator, 2)
        cable.pull()
        noticed_s = seconds_until(coordinator, "is offline", 30.0)
        time.sleep(max(0.0, gone_s - noticed_s))
        cable.plug_in()
        back_s = seconds_until(coordinator, "is back", 60.0)
        scene.wait_for_rounds(coordinator, scene.n_rounds(coordinator) + 2)
        for one in (coordinator, stubs):
            one.signal(signal.SIGTERM)
            scene.ended_well(one)
    judged = scene.judge()
    assert noticed_s < 3 * 2 * keep_alive_s
    assert back_s < 30.0
    return (
        f"noticed after {noticed_s:.1f} s (keep-alive {keep_alive_s} s), back after {back_s:.1f} s; {judged}"
    )


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
    content = bytearray((newest.path / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (newest.path / "model.safetensors").write_bytes(content)
    again = scene.serve(port, devices=2, rounds=4)
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

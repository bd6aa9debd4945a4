"""Rows in which the network, the disk, the clock or the time a step takes is not what it should be."""

from __future__ import annotations

from tests.e2e.processes import ROOT
from tests.faults.registry import row
from tests.faults.scene import Scene


@row("F3", "a long step never costs a keep-alive")
def long_step(scene: Scene) -> str:
    broker = scene.broker()
    # A step is longer than a broker waits, 1.5 keep-alives; and a keep-alive longer than a machine stands still.
    step_s, keep_alive_s = (14.0, 8) if scene.scale == 1 else (60.0, 20)
    stubs = scene.stubs(broker.address.port, 1, pace=step_s, keep_alive=keep_alive_s)
    coordinator = scene.serve(broker.address.port, devices=1, rounds=1, round_steps=1)
    scene.ended_well(coordinator, stubs, cap_s=90.0 + 5 * step_s)
    assert "is offline" not in coordinator.out, coordinator.describe()
    assert scene.stubs_report(stubs, "ended")["most_failed"] == 0
    log = broker.log_path.read_text()
    assert "timeout" not in log, log
    return f"steps of {step_s:g} s on a keep-alive of {keep_alive_s} s; {scene.judge()}"


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

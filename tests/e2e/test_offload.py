"""A board that asks: real processes, and the broker killed between two samples."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.needs_mosquitto


@pytest.fixture
def trained(hsee, mosquitto, profile):
    """A finished run of one board, its bundle exported; returns the bundle and held-out samples."""
    port = mosquitto.address.port
    agent = hsee.agent(port, "ant", "--home", "ant", "--part", "1/24", "--profile", profile)
    coordinator = hsee.coordinator(port, "--devices", 1, "--run", "r1", "--rounds", 1)
    for process in (coordinator, agent):
        assert process.end() == 0, process.describe()
    exported = hsee.run("export", "ant/r1", cap_s=120)
    assert exported.end() == 0, exported.describe()
    x = np.load(hsee.folder / "ant/r1/devices/ant/held_out.npz")["x"]
    return hsee.folder / "ant/r1/export/ant", x


class Typing:
    """``hsee infer`` on standard input, a row at a time."""

    def __init__(self, hsee, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli.entry", "infer", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=hsee.folder,
            env=hsee.env,
        )

    def answer(self, sample):
        self.process.stdin.write(",".join(f"{value:.6f}" for value in sample.ravel()) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def end(self):
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_served_after_training_and_the_broker_gone_in_between(hsee, mosquitto, trained):
    bundle, x = trained
    port = mosquitto.address.port
    server = hsee.start("coordinator", "serve", "runs/r1", "--broker", f"127.0.0.1:{port}")
    server.wait_for("connected to the broker")
    second = hsee.start("coordinator", "serve", "runs/r1", "--broker", f"127.0.0.1:{port}")
    assert second.end() == 1
    assert "Another coordinator is at work" in second.err
    broker = ("--broker", f"127.0.0.1:{port}", "--offload-deadline", "20s")
    typing = Typing(hsee, bundle, "-", "--threshold", "1e-9", *broker)
    try:
        assert "coordinator" in typing.answer(x[0])
        mosquitto.kill()
        assert typing.answer(x[1]).rstrip().endswith("unsure, fallback")
    finally:
        status, out, err = typing.end()
    assert (status, err) == (0, "")
    last = out.splitlines()[-1]
    assert last.startswith(
        f"offload: 2 asked of mqtt://127.0.0.1:{port}, 1 answered by the coordinator's layers"
    )
    assert "1 fell back: 1 " in last

    check_without_a_broker(hsee, port, bundle, x)


def check_without_a_broker(hsee, port, bundle, x):
    """A note and a fallback, never an error; but a connection that would be insecure is refused."""
    np.save(hsee.folder / "x.npy", x)
    words = ("infer", bundle, "x.npy", "--threshold", "1e-9", "--json", "--broker")
    done = hsee.run(*words, f"127.0.0.1:{port}")
    assert done.end() == 0, done.describe()
    assert "Unsure samples are answered here" in done.err
    told = json.loads(done.out)
    assert {sample["fallback"] for sample in told["samples"]} == {True}
    summary = told["summary"]
    assert (summary["n_offloaded"], summary["n_answered"], summary["n_fallback"]) == (len(x), 0, len(x))
    assert summary["offload"]["reasons"] == {"no connection": len(x)}
    off_machine = hsee.run(*words, "192.0.2.1:1883")
    assert off_machine.end() == 4
    assert "without TLS" in off_machine.out

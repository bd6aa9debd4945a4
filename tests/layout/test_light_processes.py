"""What running processes really load: import contracts stay green when a package's __init__ pulls torch in."""

import os
import resource
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "PIL", "paho", "amqtt", "safetensors")
COMMAND_LINE = ("typer", "rich", "click")


def loaded(code: str) -> set[str]:
    """Top-level packages that a fresh process has loaded after running ``code``."""
    report = "\nimport sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def walk(package: str) -> str:
    return (
        f"import importlib, pkgutil, {package}\n"
        f"for found in pkgutil.walk_packages({package}.__path__, '{package}.'): importlib.import_module(found.name)"
    )


def test_help_loads_nothing_heavy():
    code = "import sys; from toolkit.cli.entry import main; assert main(['--help']) == 0"
    assert loaded(code).isdisjoint(HEAVY)


def least_cpu_s(*words: str) -> float:
    """Processor time of Python with these words, the least of three."""

    def used_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = [used_s()]
    for _ in range(3):
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        times.append(used_s())
    return min(after - before for before, after in pairwise(times))


def test_help_is_quick():
    """Half a second on an ordinary machine; so here no more than four times what its own libraries take to load."""
    libraries_s = least_cpu_s("-c", "import typer.rich_utils, rich.table, rich.panel, rich.markdown")
    assert least_cpu_s("-m", "toolkit.cli.entry", "--help") < 4 * libraries_s


@pytest.mark.parametrize(
    ("code", "barred"),
    [
        # The inference path: numpy and onnxruntime only.
        (walk("toolkit.runtime"), {*HEAVY, *COMMAND_LINE} - {"onnxruntime"}),
        # The agent loads torch when a training job arrives, not before, and never torchvision.
        ("import device_agent.__main__", {*HEAVY, *COMMAND_LINE} - {"paho", "onnxruntime"}),
        (walk("toolkit.wire"), {*HEAVY, *COMMAND_LINE}),
        (walk("toolkit.config"), {*HEAVY, *COMMAND_LINE, "numpy"}),
        (walk("toolkit.plan"), {*HEAVY, *COMMAND_LINE}),
        ("import toolkit.nn.partition", {*HEAVY, *COMMAND_LINE}),
        ("import toolkit, toolkit.errors", {*HEAVY, *COMMAND_LINE, "numpy", "msgspec"}),
    ],
    ids=["runtime", "agent", "wire", "config", "plan", "datasets", "toolkit"],
)
def test_a_process_stays_light(code, barred):
    assert loaded(code) & barred == set()


@pytest.mark.parametrize("module", ["toolkit.runtime", "device_agent"])
def test_the_console_script_hands_over_before_typer(module):
    words = {"toolkit.runtime": ["infer", "-h"], "device_agent": ["agent", "start", "-h"]}[module]
    code = (
        "from toolkit.cli.entry import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as left: assert left.code in (0, None)"
    )
    assert loaded(code).isdisjoint({*COMMAND_LINE, "torch", "torchvision", "onnx"})


def test_importing_reads_no_environment():
    # A mistaken variable is told by the command that reads it, never by an import.
    subprocess.run(
        [sys.executable, "-c", "import toolkit.cli.app, toolkit.config"],
        env=os.environ | {"HSEE_RUN_ROUNDS": "many"},
        check=True,
        cwd=ROOT,
    )

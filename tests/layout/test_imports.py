"""Who imports whom: the contracts of pyproject.toml, and what the source files themselves say."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("toolkit", "device_agent", "coordinator")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def importers_of(package: str) -> set[str]:
    return {
        room(path)
        for path in SOURCES
        for module in imported_modules(parsed(path))
        if module.split(".")[0] == package
    }


def test_the_layers_hold(tmp_path):
    done = subprocess.run(
        [
            Path(sys.executable).with_name("lint-imports"),
            "--config",
            ROOT / "pyproject.toml",
            "--cache-dir",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "place"), [("torchvision", "toolkit/nn/datasets.py"), ("paho", "toolkit/link/mqtt.py")]
)
def test_one_place_only_imports(package, place):
    assert importers_of(package) == {place}


def test_one_room_only_draws():
    assert {place.rpartition("/")[0] for place in importers_of("matplotlib")} == {"toolkit/plots"}


@pytest.mark.parametrize(
    "package", ["pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"]
)
def test_nobody_unpickles(package):
    assert importers_of(package) == set()


def test_torch_load_and_allow_pickle_stand_nowhere():
    found = []
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            match node:
                case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                    found.append(f"{room(path)}:{node.lineno}")
                case ast.ImportFrom(module="torch" | "torch.serialization", names=names):
                    found += [f"{room(path)}:{node.lineno}" for a in names if a.name in ("load", "save")]
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                    found.append(f"{room(path)}:{node.lineno}")
    assert found == []


def test_files_are_named_for_what_they_own():
    assert [room(p) for p in SOURCES if p.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_what_ships_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = [*wheel["packages"], *wheel["force-include"]]
    shipped += [f"{package}/py.typed" for package in PACKAGES]
    shipped += ["toolkit/nn/data/digits.npz", "toolkit/nn/data/README.md"]
    shipped += [project["project"]["readme"], *project["project"]["license-files"], "CHANGELOG.md"]
    assert [name for name in shipped if not (ROOT / name).exists()] == []


def test_the_linter_and_formatter_are_content():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, "--no-cache", "."],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stdout + done.stderr

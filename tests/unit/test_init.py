"""``hsee init``: every template runs as it is, explains every setting, and writes over nothing unasked."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from device_agent.local_data import load_local_data
from toolkit.cli.entry import main
from toolkit.config import load_config
from toolkit.config.template import TEMPLATES
from toolkit.config.values import KEYS, default_of, describe_key
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec

NAMES = sorted(TEMPLATES)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_template_passes_config_check(name, capsys):
    assert main(["init", "--template", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["template"] == name
    assert main(["config", "check"]) == 0
    settings = load_config()
    for key, value in TEMPLATES[name].values.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(settings, section), field) == value
    assert settings.device.data == TEMPLATES[name].data()


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_stands_in_it_with_its_words_and_its_default(name):
    assert main(["init", "--template", name]) == 0
    text = Path("hsee.toml").read_text()
    for key in KEYS:
        assert describe_key(key), f"{key} is not described"
        assert f"\n# {describe_key(key)} (" in text
    # Uncommented, the defaults are what a file without them gives.
    lines = [line.removeprefix("#") if is_setting(line) else line for line in text.splitlines()]
    Path("hsee.toml").write_text("\n".join(lines))
    parsed = tomllib.loads(Path("hsee.toml").read_text())
    assert {f"{s}.{k}" for s, table in parsed.items() for k in table} == set(KEYS)
    settings = load_config()
    for key in set(KEYS) - {"device.data", *TEMPLATES[name].values}:
        section, _, field = key.partition(".")
        assert getattr(getattr(settings, section), field) == default_of(key)


def is_setting(line: str) -> bool:
    return line.startswith("#") and not line.startswith("# ")


def write_pictures(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name / f"{i}.png")


def write_readings(path: Path) -> None:
    path.write_text("a,b,label\n" + "".join(f"{i},{i * 2},{'hot' if i % 2 else 'cold'}\n" for i in range(8)))


@pytest.mark.parametrize("name", NAMES)
def test_its_data_load_and_its_model_takes_them(name):
    write_pictures(Path("pictures"))
    write_readings(Path("readings.csv"))
    assert main(["init", "--template", name]) == 0
    settings = load_config()
    data = load_local_data(settings.device)
    spec = ModelSpec(
        name=settings.run.model,
        input_shape=list(data.train.shape),
        n_classes=len(data.train.classes),
        options=settings.run.model_options,
    )
    logits = build_network(spec, seed=0)(torch.from_numpy(data.train.x[:2]))
    assert logits.shape == (2, spec.n_classes)


def test_a_file_that_is_there_is_left_alone(capsys):
    Path("hsee.toml").write_text("# mine\n")
    assert main(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("hsee.toml").read_text() == "# mine\n"
    assert main(["init", "--force"]) == 0
    assert Path("hsee.toml").read_text() != "# mine\n"


def test_the_path_of_the_data_is_taken_and_quoted(capsys):
    assert main(["init", "--template", "images", "--data", 'my "pictures"']) == 0
    assert load_config().device.data == 'folder:my "pictures"'
    assert "Next: hsee doctor" in capsys.readouterr().out
    assert main(["init", "--template", "demo", "--data", "x", "--force"]) == 2


def test_an_unknown_template_is_told_with_the_nearest(capsys):
    assert main(["init", "--template", "image"]) == 2
    assert "Did you mean 'images'?" in capsys.readouterr().err
    assert not Path("hsee.toml").exists()

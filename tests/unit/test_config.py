import os
import re
from pathlib import Path

import msgspec
import pytest

from toolkit.config import Settings, load_config, read_password, user_config_file
from toolkit.config.sections import NAME_PATTERN, SECTIONS
from toolkit.config.values import KEYS, default_of, describe_key, describe_type
from toolkit.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Load from the two texts and the environment that a test gives, and nothing else of this machine."""

    def loader(here: str = "", *, user: str = "", env: dict[str, str] | None = None, **more) -> Settings:
        files = {"cwd_file": tmp_path / "hsee.toml", "user_file": tmp_path / "user.toml"}
        for path, text in zip(files.values(), (here, user), strict=True):
            if text:
                path.write_text(text)
        return load_config(**files, env=env or {}, **more)

    return loader


def test_defaults_need_no_file(load):
    settings = load()
    assert settings.run.rounds == 10
    assert settings.broker.address == "127.0.0.1:1883"
    assert settings.origin("run.rounds").kind == "default"


def test_flag_over_environment_over_file_over_user_over_default(load, tmp_path):
    layers = {
        "user": "[run]\nrounds = 2\nseed = 2\nlr = 0.2\ndevices = 2\n",
        "here": "[run]\nrounds = 3\nseed = 3\nlr = 0.3\n",
        "env": {"HSEE_RUN_ROUNDS": "4", "HSEE_RUN_SEED": "4"},
        "flags": {"run.rounds": 5, "run.batch_size": None},
    }
    settings = load(**layers)
    run = settings.run
    assert (run.rounds, run.seed, run.lr, run.devices, run.batch_size) == (5, 4, 0.3, 2, 32)
    origins = {k: str(settings.origin(f"run.{k}")) for k in ("rounds", "seed", "lr", "devices", "batch_size")}
    assert origins == {
        "rounds": "--rounds",
        "seed": "HSEE_RUN_SEED",
        "lr": f"{tmp_path}/hsee.toml:4",
        "devices": f"{tmp_path}/user.toml:5",
        "batch_size": "default",
    }


def test_overrides_are_read_as_their_key_s_type(load):
    settings = load(
        "[run]\nmodel_options = { width = 8, depth = 2 }\n",
        overrides=[
            "run.lr=1e-3",
            "run.model_options.width=16",
            "run.classes=cat,dog",
            "broker.insecure=true",
        ],
    )
    assert settings.run.lr == 1e-3
    assert settings.run.model_options == {"width": 16, "depth": 2}
    assert settings.run.classes == ["cat", "dog"]
    assert settings.broker.insecure is True
    assert str(settings.origin("run.lr")) == "--set run.lr"


def test_a_flag_may_be_a_path_and_a_table_a_variable(load):
    settings = load(flags={"fleet.home": Path("out")}, env={"HSEE_RUN_MODEL_OPTIONS": "{ width = 4 }"})
    assert settings.fleet.home == "out"
    assert settings.run.model_options == {"width": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\n\nronds = 3\n", ["hsee.toml:3", "[run] has no key 'ronds'", "Did you mean 'rounds'?"]),
        ("[rum]\nrounds = 3\n", ["hsee.toml:1", "no section [rum]", "Did you mean 'run'?"]),
        ("[run]\naddress = 'x:1'\n", ["hsee.toml:2", "It belongs under [broker]."]),
        ("rounds = 3\n", ["hsee.toml:1", "outside of any section", "It belongs under [run]."]),
        ("run = 3\n", ["hsee.toml:1", "is a section", "[run]"]),
        ("[run]\nrounds = 'ten'\n", ["hsee.toml:2", "the text 'ten'", "a whole number from 1 to 2147483648"]),
        ("[run]\nrounds = 0\n", ["hsee.toml:2", "run.rounds is 0", "from 1"]),
        ("[run]\nrounds = true\n", ["hsee.toml:2", "run.rounds is true", "whole number"]),
        ("[run]\nlr = nan\n", ["hsee.toml:2", "run.lr is nan", "a number over 0"]),
        ("[run]\nwait_s = inf\n", ["hsee.toml:2", "run.wait_s is inf"]),
        (
            "[run]\ncodec = 'int9'\n",
            ["hsee.toml:2", "one of 'float16', 'float16+zstd', 'float32'", "Did you mean 'int8'?"],
        ),
        ("[run]\nclasses = [1]\n", ["hsee.toml:2", "a list of texts"]),
        ("run.rounds = 'x'\n", ["hsee.toml:1", "run.rounds"]),
        ("[device]\nheld_out = 1.0\n", ["hsee.toml:2", "over 0 and below 1"]),
        ("[device]\npart = '0/3'\n", ["hsee.toml:2", "a text such as '1/3'"]),
        ("[fleet]\nname = 'a/b'\n", ["hsee.toml:2", "a text such as 'home'"]),
        ("[broker]\npassword = 'x'\n", ["hsee.toml:2", "never a setting", "HSEE_BROKER_PASSWORD"]),
        ("[run]\nrounds = = 3\n", ["hsee.toml:2", "no TOML"]),
    ],
)
def test_a_wrong_file_is_told_by_file_line_and_key(load, text, said):
    with pytest.raises(ConfigError) as caught:
        load(text)
    told = str(caught.value)
    assert all(part in told for part in said), told
    assert caught.value.hint
    assert caught.value.exit_status == 3
    assert caught.value.facts["line"] == int(re.search(r"hsee\.toml:(\d+)", told)[1])


def test_a_number_of_more_digits_than_python_reads_is_told(load):
    with pytest.raises(ConfigError, match="no TOML"):
        load(f"[run]\nrounds = {'9' * 5000}\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"env": {"HSEE_RUN_RONDS": "3"}},
            "HSEE_RUN_RONDS: [run] has no key 'ronds'. Did you mean 'rounds'?",
        ),
        ({"env": {"HSEE_RUN_ROUNDS": "x"}}, "HSEE_RUN_ROUNDS: run.rounds is the text 'x'"),
        ({"overrides": ["run.lr"]}, "there is no '='"),
        ({"overrides": ["lr=3"]}, "--set lr: there is no section [lr]."),
        ({"overrides": ["run.lrr=3"]}, "--set run.lrr: [run] has no key 'lrr'. Did you mean 'lr'?"),
        ({"overrides": ["run.lr.x=3"]}, "--set run.lr.x: run.lr is a table; expected a number over 0."),
        ({"flags": {"run.rounds": 0}}, "--rounds: run.rounds is 0"),
    ],
)
def test_a_wrong_flag_or_variable_is_named(load, given, said):
    with pytest.raises(ConfigError) as caught:
        load("[run]\nlr = 0.3\n", **given)
    assert said in str(caught.value)


def test_variables_of_other_purposes_are_left_alone(load):
    assert load(env={"HSEE_DEBUG": "1", "HSEE_PROFILES": "/x", "HSEE_BROKER_PASSWORD": "pw"}) == load()


def test_a_file_that_is_no_text_is_told(load, tmp_path):
    (tmp_path / "hsee.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"hsee\.toml can't be read"):
        load()


def test_every_key_says_what_it_does_and_its_default_fits():
    assert all(describe_key(key) and describe_type(key) for key in KEYS)
    for section, struct in SECTIONS.items():
        made = msgspec.to_builtins(struct())
        assert msgspec.convert(made, struct) == struct()
        assert all(default_of(f"{section}.{name}") == value for name, value in made.items())


def test_names_are_those_of_the_protocol():
    topics = (Path(__file__).parents[2] / "toolkit" / "wire" / "topics.py").read_text()
    assert NAME_PATTERN in topics


def test_the_user_s_file_follows_xdg():
    assert user_config_file({"HOME": "/h"}) == Path("/h/.config/hsee/hsee.toml")
    assert user_config_file({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}) == Path("/x/hsee/hsee.toml")


def test_the_password_comes_from_the_environment_or_a_private_file(load, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    settings = load(f"[broker]\npassword_file = '{secret}'\n")
    assert read_password(settings, {}) == "hunter2"
    assert read_password(settings, {"HSEE_BROKER_PASSWORD": "other"}) == "other"
    assert (
        read_password(load_config(env={}, cwd_file=tmp_path / "none", user_file=tmp_path / "none"), {})
        is None
    )
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"pw\n", 0o644, "chmod 600"),
        (b"\n", 0o600, "one line"),
        (b"a\nb\n", 0o600, "one line"),
        (None, 0, "can't be read"),
    ],
)
def test_a_password_file_that_is_wrong_is_told(load, tmp_path, content, mode, said):
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
        os.chmod(secret, mode)  # noqa: PTH101 - as the message says it
    settings = load(f"[broker]\npassword_file = '{secret}'\n")
    with pytest.raises(ConfigError) as caught:
        read_password(settings, {})
    assert said in str(caught.value)
    assert "hsee.toml:2" in str(caught.value)

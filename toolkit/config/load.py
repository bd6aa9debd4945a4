"""Flags, environment and files into one configuration: flag > HSEE_* > ./hsee.toml > the user's file > default."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from toolkit.config.presets import preset_values
from toolkit.config.secrets import PASSWORD_VARIABLE
from toolkit.config.sections import SECTIONS, Document
from toolkit.config.settings import Origin, OriginKind, Settings
from toolkit.config.values import KEYS, convert_value, read_scalar
from toolkit.errors import ConfigError, did_you_mean
from toolkit.user_files import user_config_file

CWD_FILE = Path("hsee.toml")
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as it was given. ``entry`` names one entry of a table, such as model_options.width."""

    key: str
    value: object
    origin: Origin
    entry: str = ""


def load_config(
    flags: Mapping[str, object] | None = None,
    *,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd_file: Path = CWD_FILE,
    user_file: Path | None = None,
) -> Settings:
    """Gather the configuration in force.

    Args:
        flags: ``section.key`` to what the command line gave; None means not given.
        overrides: texts of ``--set``, each ``section.key=value`` or ``section.key.entry=value``.
        env: the environment; by default this process's.
        cwd_file: the folder's own file; may be missing.
        user_file: the user's file; by default :func:`user_config_file`; may be missing.
    Raises: ConfigError: an unknown section or key, a value that does not fit, a file that can't be read.
    """
    environment = os.environ if env is None else env
    layers: list[Iterator[_Given]] = [
        _from_file(user_file or user_config_file(environment), "user file"),
        _from_file(cwd_file, "file"),
        _from_environment(environment),
        _from_overrides(overrides),
        _from_flags(flags or {}),
    ]
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins: dict[str, Origin] = {}
    for given in (given for layer in layers for given in layer):
        section, _, name = given.key.partition(".")
        value = given.value
        if given.entry:
            below = values[section].get(name)
            value = {**(below if isinstance(below, dict) else {}), given.entry: value}
        values[section][name] = convert_value(given.key, value, given.origin)
        origins[given.key] = given.origin
    _apply_preset(values["run"], origins)
    document = msgspec.convert(values, Document)
    return Settings(
        fleet=document.fleet,
        broker=document.broker,
        run=document.run,
        device=document.device,
        origins=origins,
    )


def _apply_preset(run: dict[str, Any], origins: dict[str, Origin]) -> None:
    """Fill in what nobody set by hand; of a strategy's options, entry by entry."""
    defaults = msgspec.structs.asdict(SECTIONS["run"]())
    preset = str(run.get("preset", defaults["preset"]))
    said = preset_values(preset, str(run.get("strategy", defaults["strategy"])))
    for name, value in said.items():
        by_hand = run.get(name)
        if isinstance(value, dict):
            run[name] = value | (by_hand if isinstance(by_hand, dict) else {})
        elif f"run.{name}" not in origins:
            run[name] = value
        else:
            continue
        origins.setdefault(f"run.{name}", Origin("preset", f"run.preset = {preset}"))


def _from_file(path: Path, kind: OriginKind) -> Iterator[_Given]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        text = raw.decode()
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB, which no configuration is.", file=str(path))
        tables = tomllib.loads(text)
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{path} can't be read: {exc}.",
            hint="Check its permissions; it must be text in UTF-8.",
            file=str(path),
        ) from exc
    except (ValueError, RecursionError) as exc:
        found = re.search(r"line (\d+)", str(exc))
        line = int(found[1]) if found else None
        raise ConfigError(
            f"{Origin(kind, str(path), line)}: this is no TOML: {exc}.",
            hint='A line reads key = value; a text stands in quotes: name = "home".',
            file=str(path),
            line=line,
        ) from exc
    for section, table in tables.items():
        here = Origin(kind, str(path), _line_of(text, section))
        if section not in SECTIONS or not isinstance(table, dict):
            raise _unknown_section(section, here, is_table=isinstance(table, dict))
        for name, value in table.items():
            origin = Origin(kind, str(path), _line_of(text, section, name))
            yield _Given(_known(f"{section}.{name}", origin), value, origin)


def _from_environment(env: Mapping[str, str]) -> Iterator[_Given]:
    for variable, text in sorted(env.items()):
        prefix, _, rest = variable.partition("_")
        section, _, name = rest.lower().partition("_")
        if prefix == "HSEE" and section in SECTIONS and name and variable != PASSWORD_VARIABLE:
            origin = Origin("environment", variable)
            yield _Given(_known(f"{section}.{name}", origin), text, origin)


def _from_overrides(overrides: Sequence[str]) -> Iterator[_Given]:
    for override in overrides:
        name, equals, text = override.partition("=")
        key, _, entry = name.strip().partition(".")[2].partition(".")
        key = f"{name.strip().partition('.')[0]}.{key}"
        origin = Origin("flag", f"--set {name.strip()}")
        if not equals:
            raise ConfigError(
                f"--set {override}: there is no '='.", hint="Write it as --set run.lr=0.01.", key=name.strip()
            )
        value = read_scalar(text.strip()) if entry else text.strip()
        yield _Given(_known(key, origin), value, origin, entry)


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if value is not None:
            origin = Origin("flag", f"--{key.partition('.')[2].replace('_', '-')}")
            yield _Given(_known(key, origin), value, origin)


def _known(key: str, origin: Origin) -> str:
    if key in KEYS:
        return key
    section, _, name = key.partition(".")
    if section not in SECTIONS:
        raise _unknown_section(section, origin, is_table=True)
    homes = [known.partition(".")[0] for known in KEYS if known.partition(".")[2] == name]
    if key == "broker.password":
        hint = (
            f"A password is never a setting: set {PASSWORD_VARIABLE}, or name a file in broker.password_file."
        )
    elif homes:
        hint = f"It belongs under [{homes[0]}]."
    else:
        hint = did_you_mean(name, msgspec.structs.asdict(SECTIONS[section]()))
    raise ConfigError(
        f"{origin}: [{section}] has no key {name!r}.", hint=hint, key=key, file=origin.where, line=origin.line
    )


def _unknown_section(section: str, origin: Origin, *, is_table: bool) -> ConfigError:
    homes = [known.partition(".")[0] for known in KEYS if known.partition(".")[2] == section]
    if is_table:
        message = f"{origin}: there is no section [{section}]."
        hint = did_you_mean(section, SECTIONS)
    elif section in SECTIONS:
        message = f"{origin}: {section!r} is a section and can't be a value."
        hint = f"Begin it with a line of its own: [{section}]"
    else:
        message = f"{origin}: {section!r} stands outside of any section."
        hint = f"It belongs under [{homes[0]}]." if homes else did_you_mean(section, SECTIONS)
    return ConfigError(message, hint=hint, key=section, file=origin.where, line=origin.line)


def _line_of(text: str, section: str, name: str | None = None) -> int | None:
    """Find the line of a section's head or of one of its keys: tomllib does not tell."""
    wanted = section if name is None else f"{section}.{name}"
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if head := re.match(r"\s*\[\[?([^\]]+)\]", line):
            path = table = _bare_path(head[1])
        elif assigned := re.match(r"([\w\s.\"'-]+)=", line):
            path = ".".join(filter(None, [table, _bare_path(assigned[1])]))
        else:
            continue
        if f"{path}.".startswith(f"{wanted}."):
            return number
    return None if name is None else _line_of(text, section)


def _bare_path(text: str) -> str:
    return re.sub(r"[\"'\s]", "", text)

"""``hsee config``: what is in force, where it came from, and what there is to set."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from toolkit.cli.options import Json
from toolkit.cli.output import emit_json, table
from toolkit.config import Settings, load_config, read_password, user_config_file
from toolkit.config.load import CWD_FILE
from toolkit.config.sections import SECTIONS, Document
from toolkit.config.values import KEYS, default_of, describe_key, describe_type

app = typer.Typer(no_args_is_help=True, help="Show, check and explain the configuration.")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be given again."),
]


@app.command()
def show(
    *,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    json: Json = False,
) -> None:
    """Print the configuration in force.

    Example: hsee config show --origin --set run.lr=0.01
    """
    settings = load_config(overrides=overrides or ())
    values = {key: _value(settings, key) for key in KEYS}
    if json:
        sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, value in values.items():
            section, _, name = key.partition(".")
            sections[section][name] = value
        origins = {key: msgspec.to_builtins(settings.origin(key)) for key in KEYS}
        emit_json({"settings": sections} | ({"origins": origins} if origin else {}))
        return
    columns = ["key", "value", *(["origin"] if origin else [])]
    table(
        columns,
        [
            [key, _in_toml(value), *([str(settings.origin(key))] if origin else [])]
            for key, value in values.items()
        ],
    )


@app.command()
def check(*, overrides: Overrides = None, json: Json = False) -> None:
    """Check files, variables and the password file; a mistake is told with file, line and key.

    Example: hsee config check
    """
    settings = load_config(overrides=overrides or ())
    has_password = read_password(settings) is not None
    files = {str(path): path.is_file() for path in (CWD_FILE, user_config_file())}
    if json:
        emit_json({"files": files, "settings_given": len(settings.origins), "has_password": has_password})
        return
    rows = [[path, "read" if there else "not there"] for path, there in files.items()]
    rows.append(["broker password", "given" if has_password else "none"])
    table(["source", "state"], rows)
    typer.echo(f"The configuration is right. Settings given: {len(settings.origins)}.")


@app.command()
def schema(*, json: Json = False) -> None:
    """Print every setting there is: what it takes, its default, and what it does. With --json: a JSON Schema.

    Example: hsee config schema
    """
    if json:
        emit_json({"schema": msgspec.json.schema(Document)})
        return
    table(
        ["key", "takes", "default", "what it does"],
        [[key, describe_type(key), _in_toml(default_of(key)), describe_key(key)] for key in KEYS],
    )


def _value(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _in_toml(value: object) -> str:
    # JSON writes texts, numbers, lists and true as TOML does.
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_in_toml(v)}" for k, v in value.items()) + "}"
    return msgspec.json.encode(value).decode()

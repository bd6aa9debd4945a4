"""Writes docs/reference.md from the code: ``python -m tests.layout.reference``; a test holds the page to it."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from pathlib import Path

import typer.main

from device_agent.__main__ import make_parser as agent_parser
from toolkit import errors
from toolkit.cli.app import app
from toolkit.config.sections import SECTIONS
from toolkit.config.values import KEYS, default_of, describe_key, describe_type
from toolkit.runtime.options import make_parser as infer_parser

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEAD = """\
# Reference

Generated from the code by `python -m tests.layout.reference`; a test holds this page to it. Every command takes `-h`, and
`--json` for programs: one JSON object with `success` ([schemas](schemas), a file a command), or an object a line where it goes on for a while; logs go to standard
error. In bash, zsh and fish, `hsee --install-completion` makes the tab key complete commands and options (those of `agent start`
and `infer`, which load no such thing, excepted); it begins with the next shell. A new zsh only loads it at the first press of the
key, and completes at the second.
"""
STATUSES = {
    0: "ok",
    1: "failed",
    2: "usage: the command or a call makes no sense",
    3: "configuration: a file, a variable or a flag is wrong",
    4: "broker: it can't be used, or a check of it failed",
    5: "partial: only a part of what was asked came about",
    6: "environment: the machine lacks something",
    7: "dismissed: refused or fenced; a service manager must not start it again",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}
VARIABLES = {
    "HSEE_BROKER_PASSWORD": "the broker's password; goes before a password file",
    "HSEE_DEBUG": "1 brings the traceback of an error",
    "HSEE_PROFILES": "folder of measured profiles, instead of the packaged ones",
    "HSEE_SECTION_KEY": "any setting below: `HSEE_RUN_ROUNDS=20`",
    "NO_COLOR": "no colours",
    "XDG_CONFIG_HOME": "the user's settings are `hsee/hsee.toml` below it; default `~/.config`",
}
LIGHT = {("agent", "start"): agent_parser, ("infer",): infer_parser}
"""Commands that are parsed without typer."""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## Commands\n", *(_command(*found) for found in _leaves())]
    parts += ["## Settings\n", _settings(), "## Variables\n", _table(("variable", "what"), _variables())]
    parts += [
        "## Exit statuses\n",
        _table(("status", "what"), [(str(n), text) for n, text in STATUSES.items()]),
    ]
    parts += ["## Errors\n", _table(("code", "status", "what"), _errors())]
    return "\n".join(parts)


def _leaves():
    found, todo = [], [((), typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        below = getattr(command, "commands", {})
        todo += [((*path, name), child) for name, child in below.items()]
        if not below:
            found.append((path, command))
    return sorted(found, key=lambda pair: pair[0])


def _command(path, command) -> str:
    title = f"### hsee {' '.join(path)}\n"
    if path in LIGHT:
        return f"{title}\n{_of_argparse(LIGHT[path]())}"
    about, _, example = inspect.cleandoc(command.help or "").partition("Example:")
    usage = " ".join(["hsee", *path, *(f"[{p.metavar or p.name.upper()}]" for p in _arguments(command))])
    lines = [
        title,
        _flowing(about),
        f"```text\n{usage} [OPTIONS]\nexample: {' '.join(example.split())}\n```\n",
    ]
    rows = [(_names(p), _flowing(getattr(p, "help", None) or "") + _default(p)) for p in command.params]
    return "\n".join([*lines, _table(("option", "what"), rows)])


def _of_argparse(parser: argparse.ArgumentParser) -> str:
    rows = [
        (_code(", ".join(a.option_strings) or a.dest), " ".join((a.help or "").replace("%%", "%").split()))
        for a in parser._actions
    ]
    example = re.search(r"hsee [^\n]*", parser.epilog or "")
    shown = f"```text\n{parser.prog} [OPTIONS]\nexample: {example[0] if example else ''}\n```\n"
    return "\n".join([f"{parser.description}\n", shown, _table(("option", "what"), rows)])


def _arguments(command):
    return [p for p in command.params if not any(o.startswith("-") for o in p.opts)]


def _names(parameter) -> str:
    if any(option.startswith("-") for option in parameter.opts):
        metavar = parameter.metavar or _value(parameter)
        return _code(f"{', '.join(parameter.opts)} {metavar}".rstrip())
    return _code(parameter.metavar or parameter.name.upper())


def _value(parameter) -> str:
    """What stands for an option's value where it names nothing itself; a flag has none."""
    annotation = str(parameter.type_descriptor.annotation)
    if "bool" in annotation:
        return ""
    return next(
        (word for kind, word in (("int", "N"), ("float", "X"), ("Path", "PATH")) if kind in annotation),
        "TEXT",
    )


def _default(parameter) -> str:
    value = parameter.default
    if isinstance(value, bool) or callable(value) or value in (None, "", [], ()):
        return " (required)" if parameter.required else ""
    return f" (default {_code(str(value))})"


def _settings() -> str:
    made = ["Flag, then variable, then `hsee.toml` here, then the user's file, then the default.\n"]
    for section, struct in SECTIONS.items():
        rows = [
            (_code(key.partition(".")[2]), describe_type(key), _code(str(default_of(key))), describe_key(key))
            for key in KEYS
            if key.startswith(f"{section}.")
        ]
        made.append(f"### [{section}]\n\n{(struct.__doc__ or '').strip()}\n")
        made.append(_table(("key", "takes", "default", "what it does"), rows))
    return "\n".join(made)


def _variables():
    return [(_code(name), text) for name, text in sorted(VARIABLES.items())]


def _errors():
    found, todo = [], [errors.HseeError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    found = [kind for kind in found if kind.__module__ == errors.__name__]
    return [
        (
            _code(kind.code),
            str(kind.exit_status),
            " ".join((kind.__doc__ or "").split()).partition(". ")[0].rstrip("."),
        )
        for kind in sorted(found, key=lambda kind: kind.code)
    ]


def _table(columns, rows) -> str:
    lines = [columns, ["---"] * len(columns), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _flowing(text: str) -> str:
    return " ".join(text.split()) + ("\n" if "\n" in text.strip() or text.endswith("\n") else "")


def _code(text: str) -> str:
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    PAGE.write_text(reference())

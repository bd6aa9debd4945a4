"""Typed structs as TOML files that people read and edit: every error names file, key and what was expected."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from toolkit.disk import sync_folder
from toolkit.errors import HseeError, MachineError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)

_WORDS = {
    "`": "",
    r"^Object": "table",
    r"\bobject\b": "table",
    r"\bfloat\b": "a number",
    r"\bint\b": "a whole number",
    r"\bstr\b": "text",
    r"\bbool\b": "true or false",
    r"^Invalid enum value (.*)$": r"\1 is not one of those this version knows",
}
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# A key of more parts than anything here has: tomllib takes memory for the square of their number, a gigabyte for 32 KiB.
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){8}""")


def parse_struct(text: str, type_: type[T], *, where: str, error: type[HseeError], hint: str = "") -> T:
    """Read a struct from TOML text; unknown keys are errors, so that a slip of the pen is never ignored.

    Args:
        text: the file's content.
        type_: what it holds.
        where: the file's name, for messages.
        error: the class to raise.
        hint: what to do about a value that can't be.
    Raises: HseeError: of class ``error``; facts: file, key.
    """
    if deep := _DEEP_KEY.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise error(
            f"{where}, line {line}: a key of more parts than any that is known.",
            hint=hint,
            file=where,
        )
    try:
        data = tomllib.loads(text)
    # Not TOMLDecodeError only: a number of 4301 digits is a plain ValueError.
    except (ValueError, RecursionError) as exc:
        raise error(
            f"{where} is no valid TOML: {exc}.",
            hint=f"Correct that line. {hint}".rstrip(),
            file=where,
        ) from exc
    _refuse_unknown_keys(data, type_, at="", where=where, error=error)
    for key, value in _numbers(data, at=""):
        if not math.isfinite(value):
            raise error(
                f"{where}, key {key!r}: {value} is no number to count with.", hint=hint, file=where, key=key
            )
    try:
        return msgspec.convert(data, type_)
    except ValueError as exc:  # a ValidationError, or a number of more digits than Python writes
        expected, _, path = str(exc).partition(" - at `$")
        key = path.removesuffix("`").removeprefix(".")
        place = f"key {key!r}" if key else "the top level"
        raise error(f"{where}, {place}: {_in_words(expected)}.", hint=hint, file=where, key=key) from exc


def read_struct(path: Path, type_: type[T], *, noun: str, error: type[HseeError], hint: str = "") -> T:
    """Read a struct from a TOML file.

    Args:
        path: the file.
        type_: what it holds.
        noun: what the file is, for messages: "profile".
        error: the class to raise.
        hint: what to do about a value that can't be.
    Raises: HseeError: of class ``error``: unreadable, not TOML, or not such a struct.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise error(f"There is no {noun} at {path}.", hint="Check the path.", file=str(path)) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise error(f"The {noun} {path} can't be read: {exc}.", hint=hint, file=str(path)) from exc
    return parse_struct(text, type_, where=str(path), error=error, hint=hint)


def _in_words(expected: str) -> str:
    """What msgspec says, for people who know TOML and no Python."""
    for python, toml in _WORDS.items():
        expected = re.sub(python, toml, expected)
    return expected


def struct_text(obj: msgspec.Struct, *, title: str, comments: Mapping[str, str]) -> str:
    """Write a struct as commented TOML, tables in the order of its fields; what equals its default is left out.

    Args:
        obj: what to write.
        title: first line of the file, a comment.
        comments: dotted key without indices ("cuts.step_ms_p50") to a short comment; in a list, only the first
            entry carries them.
    """
    lines = [f"# {title}", *_lines(obj, at="", header="", comments=dict(comments))]
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and make it durable.

    Raises: MachineError: the disk is full, the folder is missing or not writable; the old file stands.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as exc:
        raise MachineError(
            f"{path} can't be written: {exc.strerror or exc}.",
            hint="Choose another file with -o, or free some disk.",
            file=str(path),
        ) from exc


def _lines(obj: msgspec.Struct, *, at: str, header: str, comments: dict[str, str]) -> Iterator[str]:
    """Write an object's scalars, then its tables: TOML gives every key after a table's header to that table.

    Written by hand: a plan of a thousand devices has a hundred times the keys that tomlkit writes in ten milliseconds.
    """
    values = ((name, getattr(obj, name), default) for name, default in _defaults(type(obj)))
    present = {name: v for name, v, default in values if v != default and v not in ((), [], {})}
    for name, value in present.items():
        if not _is_table(value):
            comment = comments.pop(f"{at}{name}", "")
            yield f"{_key(name)} = {_scalar(value)}" + (f" # {comment}" if comment else "")
    for name, value in present.items():
        if not _is_table(value):
            continue
        inner_at, inner = f"{at}{name}.", f"{header}{_key(name)}"
        if isinstance(value, msgspec.Struct):
            yield from ("", f"[{inner}]")
            yield from _lines(value, at=inner_at, header=f"{inner}.", comments=comments)
        elif isinstance(value, dict):
            yield from ("", f"[{inner}]")
            yield from (f"{_key(key)} = {_scalar(entry)}" for key, entry in value.items())
        else:
            for entry in value:
                yield from ("", f"[[{inner}]]")
                yield from _lines(entry, at=inner_at, header=f"{inner}.", comments=comments)


@cache
def _defaults(type_: type[msgspec.Struct]) -> tuple[tuple[str, object], ...]:
    """Names of a struct's fields and their defaults: looking them up takes longer than writing them."""
    return tuple((f.name, f.default) for f in msgspec.structs.fields(type_))


@cache
def _types(type_: type[msgspec.Struct]) -> dict[str, Any]:
    """Types of a struct's fields by name, likewise."""
    return {f.name: f.type for f in msgspec.structs.fields(type_)}


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _scalar(name)


def _scalar(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # JSON's strings are TOML's, but for one control character.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_scalar, value))}]"
        case dt.date():
            return value.isoformat()
        case _:
            return repr(value)


def _is_table(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], msgspec.Struct)
    return isinstance(value, msgspec.Struct | dict)


def _refuse_unknown_keys(value: Any, type_: Any, *, at: str, where: str, error: type[HseeError]) -> None:
    struct = _struct_in(type_)
    if struct is None:
        return
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _refuse_unknown_keys(entry, struct, at=f"{at}[{index}]", where=where, error=error)
        return
    if not isinstance(value, dict):
        return
    fields = _types(struct)
    for key, entry in value.items():
        path = f"{at}.{key}".lstrip(".")
        if key not in fields:
            raise error(
                f"{where}: the key {path!r} is unknown.",
                hint=did_you_mean(key, fields),
                file=where,
                key=path,
            )
        _refuse_unknown_keys(entry, fields[key], at=path, where=where, error=error)


def _numbers(value: Any, *, at: str) -> Iterator[tuple[str, float]]:
    """List the floats of a document with their keys."""
    if isinstance(value, float):
        yield at, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, at=f"{at}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _numbers(entry, at=f"{at}[{index}]")


def _struct_in(type_: Any) -> type[msgspec.Struct] | None:
    """Find the struct a type holds: itself, in a list or tuple, or beside None."""
    if isinstance(type_, type) and not get_args(type_):
        return type_ if issubclass(type_, msgspec.Struct) else None
    return next(filter(None, map(_struct_in, get_args(type_))), None)

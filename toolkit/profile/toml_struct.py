"""Typed structs as TOML files that people read and edit: every error names file, key and what was expected."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import tomlkit
from tomlkit.items import AoT, Table

from toolkit.errors import HseeError, MachineError, did_you_mean

T = TypeVar("T", bound=msgspec.Struct)


def parse_struct(text: str, type_: type[T], *, where: str, error: type[HseeError]) -> T:
    """Read a struct from TOML text; unknown keys are errors, so that a slip of the pen is never ignored.

    Args:
        text: the file's content.
        type_: what it holds.
        where: the file's name, for messages.
        error: the class to raise.
    Raises: HseeError: of class ``error``; facts: file, key.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise error(
            f"{where} is no valid TOML: {exc}.", hint="Correct that line, or write the file anew.", file=where
        ) from exc
    _refuse_unknown_keys(data, type_, at="", where=where, error=error)
    try:
        return msgspec.convert(data, type_)
    except msgspec.ValidationError as exc:
        expected, _, path = str(exc).partition(" - at `$")
        key = path.removesuffix("`").removeprefix(".")
        place = f"key {key!r}" if key else "the top level"
        raise error(
            f"{where}, {place}: {expected.replace('Object', 'table').replace('`', '')}.", file=where, key=key
        ) from exc


def read_struct(path: Path, type_: type[T], *, noun: str, error: type[HseeError]) -> T:
    """Read a struct from a TOML file.

    Args:
        path: the file.
        type_: what it holds.
        noun: what the file is, for messages: "profile".
        error: the class to raise.
    Raises: HseeError: of class ``error``: unreadable, not TOML, or not such a struct.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise error(f"There is no {noun} at {path}.", hint="Check the path.", file=str(path)) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise error(f"The {noun} {path} can't be read: {exc}.", file=str(path)) from exc
    return parse_struct(text, type_, where=str(path), error=error)


def struct_text(obj: msgspec.Struct, *, title: str, comments: Mapping[str, str]) -> str:
    """Write a struct as commented TOML, tables in the order of its fields; what equals its default is left out.

    Args:
        obj: what to write.
        title: first line of the file, a comment.
        comments: dotted key without indices ("cuts.step_ms_p50") to a short comment; in a list, only the first
            entry carries them.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment(title))
    _fill(document, obj, at="", comments=dict(comments))
    return tomlkit.dumps(document)


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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as exc:
        raise MachineError(
            f"{path} can't be written: {exc.strerror or exc}.",
            hint="Choose another file with -o, or free some disk.",
            file=str(path),
        ) from exc


def _fill(
    table: tomlkit.TOMLDocument | Table, obj: msgspec.Struct, *, at: str, comments: dict[str, str]
) -> None:
    """Add an object's scalars, then its tables: TOML gives every key after a table's header to that table."""
    values = {f.name: (getattr(obj, f.name), f.default) for f in msgspec.structs.fields(obj)}
    present = {name: v for name, (v, default) in values.items() if v != default and v not in ((), [], {})}
    for name, value in present.items():
        if not _is_table(value):
            item = tomlkit.item(list(value) if isinstance(value, tuple) else value)
            if comment := comments.pop(f"{at}{name}", ""):
                item.comment(comment)
            table.add(name, item)
    for name, value in present.items():
        if isinstance(value, msgspec.Struct):
            inner = tomlkit.table()
            _fill(inner, value, at=f"{at}{name}.", comments=comments)
            table.add(name, inner)
        elif isinstance(value, dict):
            inner = tomlkit.table()
            for key, entry in value.items():
                inner.add(key, entry)
            table.add(name, inner)
        elif _is_table(value):
            rows: AoT = tomlkit.aot()
            for entry in value:
                row = tomlkit.table()
                _fill(row, entry, at=f"{at}{name}.", comments=comments)
                rows.append(row)
            table.add(name, rows)


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
    fields = {f.name: f.type for f in msgspec.structs.fields(struct)}
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


def _struct_in(type_: Any) -> type[msgspec.Struct] | None:
    """Find the struct a type holds: itself, in a list or tuple, or beside None."""
    if isinstance(type_, type) and not get_args(type_):
        return type_ if issubclass(type_, msgspec.Struct) else None
    return next(filter(None, map(_struct_in, get_args(type_))), None)

"""One value against its declared type: converted, or refused in words that a person can act on."""

from __future__ import annotations

import math
import tomllib
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import inspect

from toolkit.config.sections import SECTIONS
from toolkit.config.settings import Origin
from toolkit.errors import ConfigError, did_you_mean

_FIELDS: dict[str, msgspec.structs.FieldInfo] = {
    f"{section}.{field.name}": field
    for section, struct in SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
KEYS = tuple(_FIELDS)
"""Every ``section.key``, in the order of the sections."""


def convert_value(key: str, value: object, origin: Origin) -> Any:
    """Convert a value to the type of its key.

    Args:
        key: a known ``section.key``.
        value: from TOML or a flag; a text is read as the key's type where it came from a flag or a variable.
        origin: named in errors.
    Raises: ConfigError: it does not fit; the message names file, line, key, what was expected and what was got.
    """
    field = _FIELDS[key]
    given = str(value) if isinstance(value, PurePath) else value
    is_text = isinstance(given, str) and origin.kind in ("flag", "environment")
    try:
        if is_text:
            given = _from_text(str(given), field.type)
        converted = msgspec.convert(given, field.type, strict=not is_text)
    except (msgspec.ValidationError, ValueError, RecursionError) as exc:
        raise _misfit(key, value, origin) from exc
    if isinstance(converted, float) and not math.isfinite(converted):
        raise _misfit(key, value, origin)
    return converted


def read_scalar(text: str) -> Any:
    """Read a text as TOML would read a value; what is no TOML value is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def describe_key(key: str) -> str:
    """Say what a key does, in one line."""
    return str(_extra(key).get("description", ""))


def describe_type(key: str) -> str:
    """Say what values a key takes."""
    return _type_in_words(inspect.type_info(_FIELDS[key].type))


def default_of(key: str) -> Any:
    """Give a key's default value."""
    section, _, name = key.partition(".")
    return getattr(SECTIONS[section](), name)


def _from_text(text: str, kind: Any) -> Any:
    bare = _bare(inspect.type_info(kind))
    if isinstance(bare, inspect.DictType):
        return tomllib.loads(f"value = {text}")["value"]
    if isinstance(bare, inspect.ListType):
        if text.startswith("["):
            return tomllib.loads(f"value = {text}")["value"]
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _misfit(key: str, value: object, origin: Origin) -> ConfigError:
    info = _bare(inspect.type_info(_FIELDS[key].type))
    choices = [str(choice) for choice in info.values] if isinstance(info, inspect.LiteralType) else []
    expected = describe_type(key)
    return ConfigError(
        f"{origin}: {key} is {_value_in_words(value)}; expected {expected}.",
        hint=did_you_mean(str(value), choices) if choices else f"{key}: {describe_key(key)}.",
        key=key,
        file=origin.where,
        line=origin.line,
        expected=expected,
        got=value if isinstance(value, str | int | float | bool) else str(value),
    )


def _value_in_words(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return str(value)


def _extra(key: str) -> dict[str, Any]:
    info = inspect.type_info(_FIELDS[key].type)
    return (info.extra_json_schema or {}) if isinstance(info, inspect.Metadata) else {}


def _bare(info: inspect.Type) -> inspect.Type:
    return info.type if isinstance(info, inspect.Metadata) else info


def _type_in_words(info: inspect.Type) -> str:
    examples = (
        (info.extra_json_schema or {}).get("examples", []) if isinstance(info, inspect.Metadata) else []
    )
    bare = _bare(info)
    match bare:
        case inspect.BoolType():
            words = "true or false"
        case inspect.IntType():
            words = f"a whole number{_bounds(bare)}"
        case inspect.FloatType():
            words = f"a number{_bounds(bare)}"
        case inspect.LiteralType():
            words = "one of " + ", ".join(map(repr, bare.values))
        case inspect.ListType():
            words = "a list of texts"
        case inspect.DictType():
            words = "a table of texts and numbers"
        case _:
            words = f"a text such as {examples[0]!r}" if examples else "a text"
    return words


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    words = [
        f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}"
        for word, bound in (
            ("over", info.gt),
            ("from", info.ge),
            ("below", info.lt),
            ("to", info.le),
        )
        if bound is not None
    ]
    return f" {' and '.join(words)}".replace("and to", "to") if words else ""

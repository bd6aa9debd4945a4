"""Settings back to TOML: what a run folder keeps of the configuration that it ran with."""

from __future__ import annotations

import msgspec
import tomlkit

from toolkit.config.settings import Settings

RUN_SECTIONS = ("fleet", "broker", "run")


def settings_text(settings: Settings) -> str:
    """Write the sections that a run is made of as TOML; it can be loaded again."""
    document = tomlkit.document()
    document.add(tomlkit.comment("The settings this run ran with, defaults included."))
    for section in RUN_SECTIONS:
        document.add(section, tomlkit.item(msgspec.to_builtins(getattr(settings, section))))
    return tomlkit.dumps(document)

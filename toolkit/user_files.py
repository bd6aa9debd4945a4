"""Where a user's own files stand; apart from the settings, for the runtime asks for it at every start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def user_config_file(env: Mapping[str, str] | None = None) -> Path:
    """Where the user's own settings stand: ``~/.config/hsee/hsee.toml``, or under XDG_CONFIG_HOME."""
    environment = os.environ if env is None else env
    base = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".config"
    return Path(base) / "hsee" / "hsee.toml"

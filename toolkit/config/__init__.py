"""Typed settings from TOML, environment and flags; every value knows where it came from."""

from __future__ import annotations

from toolkit.config.load import load_config
from toolkit.config.secrets import read_password
from toolkit.config.sections import Broker, Device, Fleet, Run
from toolkit.config.settings import Origin, Settings
from toolkit.config.writing import settings_text
from toolkit.user_files import user_config_file

__all__ = [
    "Broker",
    "Device",
    "Fleet",
    "Origin",
    "Run",
    "Settings",
    "load_config",
    "read_password",
    "settings_text",
    "user_config_file",
]

"""A first ``hsee.toml``: every setting with its words, made from the settings themselves, so that it can't go stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomlkit

from toolkit.config.sections import SECTIONS
from toolkit.config.values import KEYS, default_of, describe_key, describe_type
from toolkit.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of beginning.

    Attributes:
        about: what it is for.
        source: kind of its data source, before the path; empty where there is no path.
        path: where its data are looked for.
        values: by ``section.key``: what is set; all else stands as a comment with its default.
        next_words: what to type next.
    """

    about: str
    next_words: str
    source: str = ""
    path: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def data(self, path: str = "") -> str:
        """Name its data source, as ``device.data`` takes it."""
        return f"{self.source}:{path or self.path}" if self.source else "digits"


TEMPLATES: Mapping[str, Template] = {
    "demo": Template(
        about="the UCI digits, which hsee brings along: no data and no board are needed",
        next_words="hsee demo shows the whole loop; hsee doctor checks this machine",
        values={"run.model": "resnet_small", "run.rounds": 10, "run.devices": 1},
    ),
    "images": Template(
        about="pictures in a folder of class folders: pictures/cat/1.jpg, pictures/dog/7.png",
        next_words="hsee doctor checks this machine, the broker and the pictures",
        source="folder",
        path="pictures",
        values={"run.model": "resnet_small", "run.rounds": 20, "run.devices": 1, "run.codec": "int8+zstd"},
    ),
    "csv": Template(
        about="sensor readings in a table: one sample a line, numbers, and a column of labels",
        next_words="hsee doctor checks this machine, the broker and the table",
        source="csv",
        path="readings.csv",
        values={"run.model": "mlp", "run.rounds": 20, "run.devices": 1, "run.lr": 0.02},
    ),
}

HEAD = """\
# hsee: {about}.
# Every hsee command that is started in this folder reads this file. hsee config check tells mistakes with their line.
# A setting behind a single # has its default; take the # away to change it. What goes before this file: a command's
# flag, then a variable such as HSEE_RUN_ROUNDS. Passwords never stand here.
"""


def template_text(name: str, *, data: str = "") -> str:
    """Write a configuration that runs as it is.

    Args:
        name: a key of ``TEMPLATES``.
        data: path of the data; by default the template's.
    Raises: UsageError: no such template, or one that takes no path.
    """
    template = find_template(name)
    if data and not template.source:
        raise UsageError(
            f"The template {name!r} takes no data of yours.", hint="Use --template images or --template csv."
        )
    values = {"device.data": template.data(data), **template.values}
    lines = [HEAD.format(about=template.about)]
    for section, struct in SECTIONS.items():
        lines += [f"# {(struct.__doc__ or '').strip()}", f"[{section}]"]
        for key in KEYS:
            if key.startswith(f"{section}."):
                lines += ["", f"# {describe_key(key)} ({describe_type(key)})", _assignment(key, values)]
        lines.append("")
    return "\n".join(lines)


def find_template(name: str) -> Template:
    """Find a template by its name.

    Raises: UsageError: there is none.
    """
    if name not in TEMPLATES:
        raise UsageError(f"There is no template {name!r}.", hint=did_you_mean(name, TEMPLATES))
    return TEMPLATES[name]


def _assignment(key: str, values: Mapping[str, Any]) -> str:
    name = key.partition(".")[2]
    value = tomlkit.item(values.get(key, default_of(key)))
    text = "{}" if value == {} else value.as_string()
    return f"{'' if key in values else '#'}{name} = {text}"

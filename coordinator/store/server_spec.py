"""What only the server's training knows; devices never hear of it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class ServerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How the server trains its layers.

    Attributes:
        exits: stages behind the shallowest cut at whose ends exits stand.
        exit_head: their kind.
        exit_weight: of each one's cross-entropy in the server's loss.
        lr_factor: the server's learning rate over the devices'.
    """

    exits: list[str] = []
    exit_head: str = "auto"
    exit_weight: Annotated[float, Meta(ge=0)] = 0.3
    lr_factor: Annotated[float, Meta(gt=0)] = 1.0

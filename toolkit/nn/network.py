"""The network as the method sees it: named stages in a row, then a classifier."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from toolkit.errors import ModelError

CLASSIFIER = "classifier"
"""What the classifier is called among the modules of a network; no stage may be called so."""
_STAGE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StagedNetwork(nn.Module):
    """Stages 1..L and a final classifier.

    Every stage boundary is a possible cut, because the only thing that passes it is one tensor.

    Args:
        stages: name to module, in order; each takes the output of the one before.
        classifier: takes the last stage's output, gives logits (B, K).

    Raises: ModelError: no stages, a name that can't be one, or two stages that share parameters or buffers.
    """

    def __init__(self, stages: Mapping[str, nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        if not stages:
            raise ModelError("A network needs at least one stage before its classifier.")
        for name in stages:
            if not _STAGE_NAME.fullmatch(name) or name == CLASSIFIER:
                raise ModelError(
                    f"A stage can't be called {name!r}.",
                    hint=f"Use letters, digits, '_' and '-', and not {CLASSIFIER!r}.",
                )
        _refuse_sharing([*stages.items(), (CLASSIFIER, classifier)])
        self.stages = nn.Sequential(OrderedDict(stages))
        self.classifier = classifier

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, input first."""
        return tuple(name for name, _ in self.stages.named_children())

    @property
    def rows(self) -> list[tuple[str, nn.Module]]:
        """Stages and classifier by name, input first."""
        return [*self.stages.named_children(), (CLASSIFIER, self.classifier)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, K) of inputs (B, ...)."""
        logits: torch.Tensor = self.classifier(self.stages(x))
        return logits


def pass_through(
    rows: Sequence[tuple[str, nn.Module]], input_shape: Sequence[int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Send one sample of zeros through modules in a row, which should be in eval mode.

    Yields: each module's name and the shape of its output, without the batch axis.
    Raises: ModelError: they do not chain; the message shows the shapes up to there.
    """
    device = next((p.device for _, module in rows for p in module.parameters()), torch.device("cpu"))
    h = torch.zeros(1, *input_shape, device=device)
    passed = [f"input {_in_words(h.shape[1:])}"]
    for name, module in rows:
        try:
            with torch.no_grad():
                h = module(h)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as exc:
            raise ModelError(
                f"The model's stages do not chain: {' -> '.join(passed)} -> {name} fails: {_first_line(exc)}.",
                hint="Every stage must take the one tensor that the stage before it gives.",
                stage=name,
            ) from exc
        if not isinstance(h, torch.Tensor) or h.ndim < 2 or len(h) != 1:  # noqa: PLR2004 - batch axis and more
            gives = _in_words(h.shape) if isinstance(h, torch.Tensor) else type(h).__name__
            raise ModelError(
                f"Stage {name!r} gives {gives} for a batch of one; a stage gives one tensor (batch, ...).",
                hint="Only one tensor can pass a stage's boundary.",
                stage=name,
            )
        if h.dtype != torch.float32 and not torch.is_autocast_enabled(h.device.type):
            raise ModelError(
                f"Stage {name!r} gives {str(h.dtype).removeprefix('torch.')}; what passes between stages is float32.",
                hint="Let it end in .float(), and the stage behind it begin with the type that it computes in.",
                stage=name,
            )
        passed.append(f"{name} {_in_words(h.shape[1:])}")
        yield name, tuple(h.shape[1:])


def _refuse_sharing(rows: Sequence[tuple[str, nn.Module]]) -> None:
    """A cut would tear apart what two stages share."""
    owner: dict[int, str] = {}
    for name, module in rows:
        for held in {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}:
            if owner.setdefault(held, name) != name:
                raise ModelError(
                    f"Stages {owner[held]!r} and {name!r} share a module or its parameters; no cut can part them.",
                    hint="Make one stage of them, or give each its own.",
                )


def _in_words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".")

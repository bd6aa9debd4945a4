"""Inference on the board: numpy and onnxruntime, nothing else.

    from toolkit.runtime import load
    model = load("bundle")
    answers = model(x)

Importing this package loads neither: training reads samples through it too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.bundle.manifest import VariantName
    from toolkit.runtime.cascade import Cascade

__all__ = ["load"]


def load(
    folder: str | Path,
    *,
    offload: Callable[..., Any] | None = None,
    policy: str | None = None,
    threshold: float | None = None,
    threads: int = 1,
    variant: VariantName | None = None,
) -> Cascade:
    """Open a bundle, check what it runs, and make it ready to answer.

    Args:
        folder: the bundle, or an archive of it.
        offload: asks the coordinator about unsure samples, see ``toolkit.runtime.cascade.Offload``; None stays here.
        policy: instead of the bundle's: "entropy", "max_softmax" or "margin"; needs a threshold.
        threshold: instead of the bundle's, for every exit.
        threads: that compute one operator together.
        variant: "float32" or "int8", instead of each segment's default.
    Returns: a callable: samples (N, *input_shape), raw, in; answers out.
    Raises: BundleError, BundleDigestError, ExitPolicyError: see :class:`toolkit.runtime.cascade.Cascade`.
    """
    from toolkit.bundle.folder import open_bundle
    from toolkit.runtime.cascade import Cascade

    return Cascade(
        open_bundle(Path(folder), check_all=False),
        offload=offload,
        policy=policy,
        threshold=threshold,
        threads=threads,
        variant=variant,
    )

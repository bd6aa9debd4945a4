"""Is the exported file the trained model? Held to rule O6: every held-out sample, both outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import BundleError

MAX_DIFFERENCE = 1e-4
MIN_MARGIN = 2e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ONNX Runtime is from torch.

    Attributes:
        n_samples: compared.
        n_excluded: whose two largest logits differ by at most 2e-4, so that their arg-max may differ.
        max_difference: of a logit, absolute.
        max_activation_difference: of an activation, absolute.
    """

    n_samples: int = 0
    n_excluded: int = 0
    max_difference: float = 0.0
    max_activation_difference: float = 0.0

    def joined(self, other: Parity) -> Parity:
        """Of the samples of both."""
        return Parity(
            self.n_samples + other.n_samples,
            self.n_excluded + other.n_excluded,
            max(self.max_difference, other.max_difference),
            max(self.max_activation_difference, other.max_activation_difference),
        )


def check_parity(
    torch_logits: NDArray[np.float32],
    onnx_logits: NDArray[np.float32],
    torch_activations: NDArray[np.float32] | None = None,
    onnx_activations: NDArray[np.float32] | None = None,
    *,
    first_sample: int = 0,
) -> Parity:
    """Compare two runs over the same batch.

    Args:
        torch_logits: (N, K).
        onnx_logits: (N, K).
        torch_activations: (N, ...); None at the network's end.
        onnx_activations: (N, ...), likewise; may differ by 1e-4 of the largest activation where that is above 1.
        first_sample: number of the batch's first sample, for messages.
    Raises: BundleError: they differ by more than the rule allows, or are not finite; facts: max_difference, sample.
    """
    difference = np.abs(onnx_logits - torch_logits).max(axis=1)
    if not difference.max() <= MAX_DIFFERENCE:
        worst = int(np.argmax(np.where(np.isfinite(difference), difference, np.inf)))
        raise _unlike(
            f"its logits differ by {difference[worst]:.3g} at sample {first_sample + worst}",
            difference[worst],
            first_sample + worst,
        )
    of_activations = 0.0
    if torch_activations is not None and onnx_activations is not None:
        of_activations = _check_activations(torch_activations, onnx_activations)
    runner_up, top = np.partition(torch_logits, (-2, -1), axis=1)[:, -2:].T
    clear = top - runner_up > MIN_MARGIN
    other = np.flatnonzero(clear & (torch_logits.argmax(1) != onnx_logits.argmax(1)))
    if other.size:
        sample = int(other[0])
        raise _unlike(
            f"it answers sample {first_sample + sample} differently",
            difference[sample],
            first_sample + sample,
        )
    return Parity(len(difference), int(np.count_nonzero(~clear)), float(difference.max()), of_activations)


def _check_activations(of_torch: NDArray[np.float32], of_onnx: NDArray[np.float32]) -> float:
    difference = float(np.abs(of_onnx - of_torch).max())
    allowed = MAX_DIFFERENCE * max(1.0, float(np.abs(of_torch).max()))
    if not difference <= allowed:
        raise _unlike(f"its activations differ by {difference:.3g} (allowed {allowed:.3g})", difference, None)
    return difference


def _unlike(how: str, difference: float, sample: int | None) -> BundleError:
    return BundleError(
        f"The exported model is not the trained one: {how}.",
        hint="Nothing was written. Please report this with the versions of torch, onnx and onnxruntime.",
        max_difference=float(difference),
        sample=sample,
    )

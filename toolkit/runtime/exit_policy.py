"""When an exit answers: normalised entropy (default), largest softmax, or margin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ExitPolicyError, did_you_mean

POLICIES = ("entropy", "max_softmax", "margin")
MIN_CLASSES = 2


def probabilities(logits: NDArray[np.float32], *, temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax of the scaled logits; the largest logit is taken off first, so that nothing overflows.

    Args:
        logits: (B, K), unnormalised.
        temperature: logits are divided by it; greater than zero.
    Returns: (B, K), float32, rows sum to 1; a row with NaN or +Inf logits is NaN.
    """
    # A difference may overflow to -Inf, which is right; Inf - Inf gives the NaN that callers look for.
    with np.errstate(invalid="ignore", over="ignore"):
        p: NDArray[np.float32] = np.exp(
            (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
        )
        p /= p.sum(axis=1, keepdims=True)
    return p


def normalised_entropy(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """H(p) / ln K in [0, 1] of each row.

    Args:
        p: (B, K), rows sum to 1, K at least 2.
    Source: BranchyNet, arXiv 1709.01686; divided by ln K so that one threshold fits any class count.
    """
    tiny = np.finfo(np.float32).tiny  # p ln p is 0 at p = 0
    entropy = -(p * np.log(np.maximum(p, tiny))).sum(axis=1) / np.float32(math.log(p.shape[1]))
    bounded: NDArray[np.float32] = np.clip(entropy, 0, 1)
    return bounded


@dataclass(frozen=True, slots=True)
class Verdict:
    """An exit's view of a batch.

    Attributes:
        p: (B, K), the scaled softmax.
        entropy: (B,), normalised, in [0, 1].
        sure: (B,), true where the exit may answer.
    """

    p: NDArray[np.float32]
    entropy: NDArray[np.float32]
    sure: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """Decides which samples may leave at an exit.

    Args:
        kind: "entropy", "max_softmax" or "margin".
        threshold: in (0, 1]. Entropy: a sample leaves below this normalised entropy. The others: from this largest
            probability, or from this distance between the two largest, on.
        temperature: logits are divided by it before the softmax; greater than zero.
    Raises: ExitPolicyError: one of these is out of range.
    """

    kind: str
    threshold: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in POLICIES:
            raise ExitPolicyError(
                f"There is no exit policy {self.kind!r}.", hint=did_you_mean(self.kind, POLICIES)
            )
        if not 0 < self.threshold <= 1:
            raise ExitPolicyError(
                f"The threshold {self.threshold} is not in (0, 1].",
                hint="Entropy is normalised by ln K: a higher threshold lets more samples leave early."
                if self.kind == "entropy"
                else "It is a probability: a lower threshold lets more samples leave early.",
                threshold=self.threshold,
            )
        if not 0 < self.temperature < math.inf:
            raise ExitPolicyError(f"The temperature {self.temperature} is not a number above zero.")

    def judge(self, logits: NDArray[np.float32]) -> Verdict:
        """Judge a batch.

        Args:
            logits: (B, K), unnormalised.
        Raises: ExitPolicyError: K < 2.
        """
        if logits.shape[1] < MIN_CLASSES:
            raise ExitPolicyError(f"An exit with {logits.shape[1]} classes has nothing to be sure of.")
        p = probabilities(logits, temperature=self.temperature)
        entropy = normalised_entropy(p)
        if self.kind == "entropy":
            return Verdict(p, entropy, entropy < self.threshold)
        if self.kind == "max_softmax":
            return Verdict(p, entropy, p.max(axis=1) >= self.threshold)
        second, first = np.partition(p, (-2, -1), axis=1)[:, -2:].T
        return Verdict(p, entropy, first - second >= self.threshold)


def accepts(
    logits: NDArray[np.float32], *, threshold: float, kind: str = "entropy", temperature: float = 1.0
) -> NDArray[np.bool_]:
    """Mark the samples that may leave at this exit.

    Args:
        logits: (B, K), unnormalised.
        threshold: accept below this normalised entropy H(p) / ln K; in (0, 1]. For other kinds see
            :class:`ExitPolicy`.
        kind: "entropy", "max_softmax" or "margin".
        temperature: logits are divided by it first.
    Returns: (B,), true where the device answers itself.
    Raises: ExitPolicyError: K < 2, or the threshold is out of range.
    Source: BranchyNet, arXiv 1709.01686.
    """
    return ExitPolicy(kind, threshold, temperature).judge(logits).sure

"""When an exit answers: normalised entropy (default), largest softmax, or margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ExitPolicyError, did_you_mean

POLICIES = ("entropy", "max_softmax", "margin")
MIN_CLASSES = 2
FEW_CLASSES = 128
"""Up to so many a row is faster judged number by number."""
_NOTHING = -745.0
"""e to it is zero."""
_TINY = np.float32(2.0**-126)
"""The least normal float32; asking numpy for it takes longer than an answer."""


def probabilities(logits: NDArray[np.float32], *, temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax of the scaled logits; the largest logit is taken off first, so that nothing overflows.

    Args:
        logits: (B, K), unnormalised.
        temperature: logits are divided by it; greater than zero.
    Returns: (B, K), float32, rows sum to 1; a row with NaN or +Inf logits is NaN.
    """
    # A difference may overflow to -Inf, which is right; Inf - Inf gives the NaN that callers look for.
    with np.errstate(invalid="ignore", over="ignore"):
        p: NDArray[np.float32] = logits - logits.max(axis=1, keepdims=True)
        if temperature != 1:
            p /= np.float32(temperature)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
    return p


def normalised_entropy(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """H(p) / ln K in [0, 1] of each row.

    Args:
        p: (B, K), rows sum to 1, K at least 2.
    Source: BranchyNet, arXiv 1709.01686; divided by ln K so that one threshold fits any class count.
    """
    log_p = np.log(np.maximum(p, _TINY))  # p ln p is 0 at p = 0
    log_p *= p
    entropy: NDArray[np.float32] = log_p.sum(axis=1)
    entropy *= np.float32(-1 / math.log(p.shape[1]))
    # Rounding may leave [0, 1] by a hair; NaN stays.
    return np.minimum(np.maximum(entropy, np.float32(0)), np.float32(1))


def gauge(kind: str, p: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a policy of this kind compares with its threshold.

    Args:
        kind: one of :data:`POLICIES`.
        p: (B, K), the scaled softmax, K at least 2.
    Returns: (B,): normalised entropy, largest probability, or distance between the two largest.
    """
    if kind == "entropy":
        return normalised_entropy(p)
    if kind == "max_softmax":
        largest: NDArray[np.float32] = p.max(axis=1)
        return largest
    second, first = np.partition(p, (-2, -1), axis=1)[:, -2:].T
    margin: NDArray[np.float32] = first - second
    return margin


def passes(kind: str, gauged: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Mark what may leave: entropy below the threshold; the others from it on."""
    return gauged < threshold if kind == "entropy" else gauged >= threshold


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


class Judged(NamedTuple):
    """An exit's view of one sample: its answer's place and probability, its normalised entropy, whether it may answer."""

    place: int
    probability: float
    entropy: float
    sure: bool


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
        gauged = entropy if self.kind == "entropy" else gauge(self.kind, p)
        return Verdict(p, entropy, passes(self.kind, gauged, self.threshold))

    def judge_one(self, logits: NDArray[np.float32]) -> Judged:
        """Judge one sample: the same to rounding, in a tenth of the time, for a score of numpy calls are most of it.

        Args:
            logits: (1, K), unnormalised.
        Raises: ExitPolicyError: K < 2.
        """
        k = logits.shape[1]
        if not MIN_CLASSES <= k <= FEW_CLASSES:
            verdict = self.judge(logits)
            index = int(verdict.p[0].argmax())
            return Judged(index, float(verdict.p[0, index]), float(verdict.entropy[0]), bool(verdict.sure[0]))
        row: list[float] = logits[0].tolist()
        top = max(row)
        # H = ln(sum e^d) - sum(e^d d) / sum(e^d), d = (logit - top) / temperature
        mass = moment = 0.0
        for logit in row:
            d = (logit - top) / self.temperature
            if not d < _NOTHING:  # NaN goes in, and comes out
                e = math.exp(d)
                mass += e
                moment += e * d
        entropy = (math.log(mass) - moment / mass) / math.log(k)
        if entropy < 0:  # by a hair; NaN stays
            entropy = 0.0
        gauged = entropy
        if self.kind != "entropy":
            gauged = 1 / mass
            if self.kind == "margin":
                row.remove(top)
                gauged -= math.exp((max(row) - top) / self.temperature) / mass
        sure = gauged < self.threshold if self.kind == "entropy" else gauged >= self.threshold
        return Judged(int(logits[0].argmax()), 1 / mass, entropy, sure)


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

"""The cascade: a sample goes on only while no exit is sure of it; what an exit answers costs nothing further."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.folder import Bundle
from toolkit.bundle.manifest import Exit, VariantName
from toolkit.errors import DataError, ExitPolicyError, HseeError, ShapeError
from toolkit.runtime.exit_policy import ExitPolicy, Judged, Verdict
from toolkit.runtime.preprocess import Normaliser
from toolkit.runtime.samples import scale
from toolkit.runtime.segment import OnnxSegment, return_freed_memory


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of asking about one sample.

    Attributes:
        logits: (K,); None where no answer came in time.
        ms: from the question to the answer, or to giving up.
    """

    logits: NDArray[np.float32] | None
    ms: float


Offload = Callable[[NDArray[np.float32]], Callable[[], Sequence[Reply]]]
"""Asks the coordinator: activations (M, ...) at the cut in; returns at once, with what waits for the M replies."""

COORDINATOR = "coordinator"
"""The exit name of an offloaded answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one sample.

    Attributes:
        label: the class's name.
        index: its place in the class names.
        probability: of this class, in [0, 1].
        entropy: normalised, in [0, 1].
        exit: who answered: an exit's name, or "coordinator".
        unsure: no exit was sure, and nobody else was asked or answered.
        offloaded: the coordinator was to be asked.
        fallback: it was asked, did not answer in time, and the last exit's own answer stands here.
        ms: its share of the time of each step it went through, and the wait for the coordinator.
    """

    label: str
    index: int
    probability: float
    entropy: float
    exit: str
    unsure: bool
    offloaded: bool
    fallback: bool
    ms: float


class Answers:
    """The answers to a batch, in its order: a row of :class:`Answer` to walk over, or arrays.

    Attributes:
        index: (N,) places in ``class_names``.
        probability: (N,) of this class.
        entropy: (N,), normalised.
        exits: (N,) places in ``exit_names``.
        unsure: (N,), as are ``offloaded`` and ``fallback``: see :class:`Answer`.
        ms: (N,) milliseconds.
        class_names: of the bundle.
        exit_names: the bundle's exits in order, then "coordinator".
    """

    def __init__(self, n: int, *, class_names: Sequence[str], exit_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.exit_names = exit_names
        self.index = np.zeros(n, np.int64)
        self.probability = np.zeros(n, np.float32)
        self.entropy = np.zeros(n, np.float32)
        self.exits = np.zeros(n, np.int64)
        self.unsure = np.zeros(n, np.bool_)
        self.offloaded = np.zeros(n, np.bool_)
        self.fallback = np.zeros(n, np.bool_)
        self.ms = np.zeros(n, np.float64)

    @classmethod
    def of_one(
        cls, judged: Judged, exit_: int, *, class_names: Sequence[str], exit_names: Sequence[str]
    ) -> Answers:
        """Make the answers to one sample, of which an exit says what it says; no time is spent yet."""
        made = cls(1, class_names=class_names, exit_names=exit_names)
        made.index[0] = judged.place
        made.probability[0] = judged.probability
        made.entropy[0] = judged.entropy
        made.exits[0] = exit_
        made.unsure[0] = not judged.sure
        return made

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Answer]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Answer:
        index = int(self.index[i])
        return Answer(
            label=self.class_names[index],
            index=index,
            probability=float(self.probability[i]),
            entropy=float(self.entropy[i]),
            exit=self.exit_names[self.exits[i]],
            unsure=bool(self.unsure[i]),
            offloaded=bool(self.offloaded[i]),
            fallback=bool(self.fallback[i]),
            ms=float(self.ms[i]),
        )

    def enter(self, rows: NDArray[np.int64], verdict: Verdict, exit_: int) -> None:
        """Enter what an exit says of ``rows``, one row of its verdict each; a later exit's word replaces it."""
        at = self._place(rows)
        self.index[at] = verdict.p.argmax(axis=1)
        self.probability[at] = verdict.p.max(axis=1)
        self.entropy[at] = verdict.entropy
        self.exits[at] = exit_
        self.unsure[at] = ~verdict.sure

    def spend(self, rows: NDArray[np.int64], ms: float) -> None:
        """Add to the time of each of ``rows``."""
        self.ms[self._place(rows)] += ms

    def _place(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | slice:
        # Rows never repeat, so as many as there are means all of them: a slice costs a fraction of an index.
        return slice(None) if len(rows) == len(self.index) else rows


@dataclass(frozen=True, slots=True)
class _Step:
    """A segment, the outputs that are needed of it by name (logits first), and its exit's policy and place."""

    segment: OnnxSegment
    names: list[str]
    policy: ExitPolicy | None
    exit: int


class Begun:
    """A batch that this machine is done with.

    Attributes:
        answers: its own; those of ``waiting`` may still be replaced.
        waiting: (M,) rows that the coordinator was asked about.
    """

    def __init__(
        self,
        answers: Answers,
        waiting: NDArray[np.int64],
        replies: Callable[[], Sequence[Reply]] | None,
    ) -> None:
        self.answers = answers
        self.waiting = waiting
        self._replies = replies

    def finish(self) -> Answers:
        """Wait for the replies; where none came in time, or one that is no answer, the exit's own stands, marked."""
        replies, self._replies = self._replies, None
        if replies is None:
            return self.answers
        final = ExitPolicy("entropy", 1.0)
        coordinator = len(self.answers.exit_names) - 1
        shape = (len(self.answers.class_names),)
        for row, reply in zip(self.waiting, _all_of(replies, len(self.waiting)), strict=True):
            self.answers.ms[row] += reply.ms
            if reply.logits is None or reply.logits.shape != shape or not np.isfinite(reply.logits).all():
                self.answers.fallback[row] = True
            else:
                self.answers.enter(row[None], final.judge(reply.logits[None]), coordinator)
                self.answers.unsure[row] = False
        return self.answers


def _all_of(replies: Callable[[], Sequence[Reply]], n: int) -> Sequence[Reply]:
    try:
        return replies()
    except HseeError:
        return [Reply(None, 0.0)] * n


class Cascade:
    """A bundle ready to answer.

    Args:
        bundle: opened, so checked.
        offload: asks the coordinator about samples of which no exit is sure, see :data:`Offload`; None answers all here.
        policy: instead of the bundle's; needs a threshold.
        threshold: instead of the bundle's, for every exit.
        threads: that compute one operator together.
        variant: "float32" or "int8" for every segment, instead of each segment's default.
        before_growth: called before a segment is loaded that could make large tensors of small ones; may refuse it.

    Raises:
        BundleError: a segment can't be loaded, is not what the manifest says, or is not there in that variant.
        ExitPolicyError: unknown policy, one without its threshold, or a threshold out of range.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        offload: Offload | None = None,
        policy: str | None = None,
        threshold: float | None = None,
        threads: int = 1,
        variant: VariantName | None = None,
        before_growth: Callable[[], None] | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.input_shape = self.manifest.input_shape
        self.class_names = self.manifest.class_names
        exits = [s.exit for s in self.manifest.segments if s.exit is not None]
        self.exit_names = (*(e.name for e in exits), COORDINATOR)
        self.policies = tuple(_policy(e, policy, threshold) for e in exits)
        self.variants = tuple(variant or s.default for s in self.manifest.segments)
        self._offload = offload
        preprocessing = self.manifest.preprocessing
        self._normalise = Normaliser(preprocessing.mean, preprocessing.std, 1 + len(self.input_shape))
        self._steps: list[_Step] = []
        exit_ = -1
        for record in self.manifest.segments:
            file = record.file_of(variant)
            is_last = record is self.manifest.segments[-1]
            exit_ += record.exit is not None
            logits = () if record.exit is None else (record.exit.logits,)
            onward = (
                () if record.activations is None or (is_last and offload is None) else (record.activations,)
            )
            self._steps.append(
                _Step(
                    OnnxSegment(
                        bundle.read(file),
                        record,
                        where=str(bundle.folder / file),
                        threads=threads,
                        before_growth=before_growth,
                    ),
                    [port.name for port in logits + onward],
                    None if record.exit is None else self.policies[exit_],
                    exit_,
                )
            )
        return_freed_memory()

    def __call__(self, x: NDArray[Any]) -> Answers:
        """Answer a batch; see :meth:`run`."""
        return self.run(x)

    def run(self, x: NDArray[Any]) -> Answers:
        """Answer a batch, and wait for what was offloaded; arguments and errors as of :meth:`begin`."""
        return self.begin(x).finish()

    def begin(self, x: NDArray[Any]) -> Begun:
        """Answer a batch: only samples of which no exit was sure reach a later segment or the coordinator.

        Nothing is waited for: what the coordinator was asked is answered by :meth:`Begun.finish`.

        Args:
            x: (N, *input_shape) raw, float, or uint8 which is scaled to [0, 1]; or one such sample.

        Raises:
            ShapeError: x has another shape.
            DataError: x has another type, or there is NaN or Inf in a sample or in what the model makes of it.
            MachineError: ONNX Runtime failed.
        """
        raw = self._checked(x)
        if len(raw) == 1:
            return self._begin_one(raw)
        answers = Answers(len(raw), class_names=self.class_names, exit_names=self.exit_names)
        started = time.perf_counter()
        h = self._normalise(raw)
        left = np.arange(len(raw))
        for step in self._steps:
            if not left.size:
                break
            values = step.segment.compute(h, step.names)
            # Without onward activations this is the last step, and nothing is left to do.
            going, h = left, values[-1]
            if step.policy is not None:
                verdict = step.policy.judge(values[0])
                _check_finite(verdict, left)
                if len(step.names) > 1:
                    going, h = _unsure(verdict, left, h)
                if going is not left or step is self._steps[-1]:  # else a later exit speaks for all
                    answers.enter(left, verdict, step.exit)
            now = time.perf_counter()
            answers.spend(left, (now - started) * 1000 / len(left))
            left, started = going, now
        if self._offload is None or len(self._steps[-1].names) < 2 or not left.size:  # noqa: PLR2004 - logits, activations
            return Begun(answers, left[:0], None)
        return Begun(answers, left, self._ask(self._offload, answers, left, h))

    def _begin_one(self, raw: NDArray[np.float32]) -> Begun:
        """The same for one sample: on a board each of some twenty numpy calls would cost as much as a small layer."""
        started = time.perf_counter()
        h = self._normalise(raw)
        judged, goes_on, step = None, True, self._steps[0]
        for step in self._steps:
            values = step.segment.compute(h, step.names)
            h = values[-1]
            if step.policy is None:
                continue
            judged = step.policy.judge_one(values[0])
            if not math.isfinite(judged.entropy):
                raise _not_finite(0)
            goes_on = not judged.sure and len(step.names) > 1
            if not goes_on:
                break
        assert judged is not None  # noqa: S101 - the last segment of a manifest has an exit
        answers = Answers.of_one(judged, step.exit, class_names=self.class_names, exit_names=self.exit_names)
        answers.ms[0] = (time.perf_counter() - started) * 1000
        left = np.arange(int(goes_on))
        replies = (
            self._ask(self._offload, answers, left, h) if goes_on and self._offload is not None else None
        )
        return Begun(answers, left, replies)

    def _ask(
        self, offload: Offload, answers: Answers, rows: NDArray[np.int64], h: NDArray[np.float32]
    ) -> Callable[[], Sequence[Reply]] | None:
        answers.offloaded[rows] = True
        try:
            return offload(h)
        except HseeError:
            answers.fallback[rows] = True  # the exits' own answers stand: no link trouble may cost an answer
            return None

    def _checked(self, x: NDArray[Any]) -> NDArray[np.float32]:
        if not isinstance(x, np.ndarray):
            raise DataError(
                f"The model takes samples as a numpy array; it was given a {type(x).__name__}.",
                hint="Make one of them: np.asarray(samples, np.float32).",
            )
        if x.shape == self.input_shape:
            x = x[None]
        if x.shape[1:] != self.input_shape:
            raise ShapeError(
                f"The model takes samples of shape {self.input_shape}, channels first; it was given {x.shape[1:]}.",
                expected=self.input_shape,
                got=x.shape[1:],
            )
        raw = scale(x, name="The batch")
        if raw.size and not (math.isfinite(raw.max()) and math.isfinite(raw.min())):
            sample = int(np.flatnonzero(~np.isfinite(raw).reshape(len(raw), -1).all(axis=1))[0])
            raise DataError(f"Sample {sample} of the batch holds NaN or Inf.", sample=sample)
        return raw


def _policy(exit_: Exit, kind: str | None, threshold: float | None) -> ExitPolicy:
    own = exit_.policy
    if kind is not None and kind != own.kind and threshold is None:
        raise ExitPolicyError(
            f"The bundle's threshold {own.threshold:.4g} is for policy {own.kind!r}, not for {kind!r}.",
            hint="Give a threshold together with the policy.",
        )
    return ExitPolicy(kind or own.kind, own.threshold if threshold is None else threshold, own.temperature)


def _unsure(
    verdict: Verdict, rows: NDArray[np.int64], h: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those of ``rows`` that go on, with their activations; these are copied only where some leave and some go on."""
    n_sure = np.count_nonzero(verdict.sure)
    if n_sure == 0:
        return rows, h
    if n_sure == len(rows):
        return rows[:0], h[:0]
    return rows[~verdict.sure], h[~verdict.sure]


def _check_finite(verdict: Verdict, rows: NDArray[np.int64]) -> None:
    if not math.isfinite(verdict.entropy.sum()):
        raise _not_finite(int(rows[~np.isfinite(verdict.entropy)][0]))


def _not_finite(sample: int) -> DataError:
    return DataError(
        f"The model's logits for sample {sample} of the batch are not finite.",
        hint="Its values lie too far from those that the model was trained on.",
        sample=sample,
    )

"""Who plays the coordinator: what it says to one device, waits for, and writes down of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toolkit.conformance.stage import Batch, Stage
from toolkit.findings import Finding
from toolkit.wire.job import Job, ModelSpec, Scalar
from toolkit.wire.messages import Assignment, Hello, Phase, State, Welcome

QUIET_S = 1.0
"""Who may not send has so long to send nothing: by our clock, however fast the device's runs."""
SETTLE_S = 0.25
"""A message has reached the device by then."""
ROUND_STEPS = 6
WINDOW = 2


class Player:
    """Speaks as coordinator to one device and keeps what it finds; what is said when stands in the script.

    Args:
        stage: connected.
        model: name, options; shape and classes come from the device's hello.
        cut: a layer of it.
        codec: for the activations.
        batch_size: as the stage's.
        cap_s: how long anything may take that the protocol gives no time for.
        pace: times of PROTOCOL.md are divided by it, for a device whose clock runs so much faster.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        model: str,
        options: Mapping[str, Scalar],
        cut: str,
        codec: str,
        batch_size: int,
        cap_s: float,
        pace: float = 1.0,
    ) -> None:
        self._stage = stage
        self._model = model
        self._options = options
        self._cut = cut
        self._codec = codec
        self._batch_size = batch_size
        self._cap_s = cap_s
        self._pace = pace
        self._n = 0
        self._term = 2
        self._incarnation = 5
        self._plan = 3
        self._taken = 0
        self.findings: list[Finding] = []

    def _welcome(self) -> None:
        """Answer the hello as a coordinator does that has a job: welcome, assignment."""
        welcome = Welcome(
            boot_nonce=self._nonce(),
            run=self._stage.run,
            term=self._term,
            incarnation=self._incarnation,
            protocol=1,
        )
        self._stage.say(welcome, Assignment(term=self._term, plan_version=self._plan, job=self._job()))

    def _expect(self, section: str, seqs: Sequence[int], *, round_: int, sentence: str) -> bool:
        """Wait for batches and judge what came: seqs, order, orders named."""
        stage = self._stage
        stage.wait_for(lambda: self._n_new() >= len(seqs), self._cap_s)
        fresh = stage.batches[self._taken : self._taken + len(seqs)]
        self._taken += len(fresh)
        came = [batch.header.seq for batch in fresh]
        self._judge(
            int(section),
            sentence,
            wrong=unless(came == list(seqs), f"asked for {list(seqs)}, it sent {came}"),
        )
        orders = (round_, self._term, self._incarnation, self._plan)
        wrong = [o for o in map(orders_of, fresh) if o != orders]
        self._judge(
            6,
            "under whose orders it was made",
            wrong=unless(not wrong, f"(round, term, incarnation, plan) is {wrong[:1]}, not {orders}"),
        )
        return came == list(seqs)

    def _keep_quiet(self) -> None:
        """Give a device that may not send the time to do so; ends with the first batch that comes all the same."""
        self._stage.wait_for(lambda: self._n_new() > 0, QUIET_S)

    def _no_faults(self) -> None:
        faults = self._stage.faults
        self._judge(
            1,
            "*To refuse a message* is to drop it, count it and go on",
            wrong=unless(not faults, f"it sent {len(faults)} messages that a receiver refuses: {faults[:1]}"),
        )

    def _judge(self, section: int, sentence: str, *, wrong: str) -> None:
        check = f"{section}: {sentence}"
        if wrong:
            finding = Finding(check, "failed", wrong, fix=f"Read PROTOCOL.md, section {section}.")
        else:
            finding = Finding(check, "ok", "")
        earlier = [f for f in self.findings if f.check == check]
        if not earlier:
            self.findings.append(finding)
        elif wrong and earlier[0].verdict == "ok":
            self.findings[self.findings.index(earlier[0])] = finding

    def _state(
        self,
        *,
        round_: int,
        next_: int,
        limit: int,
        term: int | None = None,
        incarnation: int | None = None,
        plan_version: int | None = None,
        n: int | None = None,
        phase: Phase = "training",
    ) -> State:
        if n is None:
            self._n += 1
        return State(
            term=self._term if term is None else term,
            incarnation=self._incarnation if incarnation is None else incarnation,
            n=self._n if n is None else n,
            phase=phase,
            round=round_,
            next=next_,
            limit=limit,
            watermark_round=0,
            watermark_seq=0,
            plan_version=self._plan if plan_version is None else plan_version,
        )

    def _job(self) -> Job:
        data = self._hello().data
        return Job(
            run=self._stage.run,
            model=ModelSpec(
                name=self._model,
                input_shape=data.input_shape,
                n_classes=len(data.classes),
                options=dict(self._options),
            ),
            cut=self._cut,
            classes=data.classes,
            mean=data.mean,
            std=[math.sqrt(var) or 1.0 for var in data.var],
            seed=7,
            rounds=2,
            batch_size=self._batch_size,
            round_steps=ROUND_STEPS,
            eval_samples=self._batch_size,
            codec=self._codec,
        )

    def _hello(self) -> Hello:
        return self._stage.greetings[-1].hello

    def _nonce(self) -> bytes:
        return self._hello().boot_nonce

    def _n_train(self) -> int:
        return ROUND_STEPS

    def _n_eval(self) -> int:
        return 1 if self._hello().data.n_eval else 0

    def _n_new(self) -> int:
        return len(self._stage.batches) - self._taken

    def _seqs(self) -> list[int]:
        return [batch.header.seq for batch in self._stage.batches[self._taken :]]


def unless(right: bool, wrong: str) -> str:  # noqa: FBT001 - reads as a sentence
    """Say what is wrong, if it is not right."""
    return "" if right else wrong


def orders_of(batch: Batch) -> tuple[int, int, int, int]:
    """Under whose orders a batch says it was made: round, term, incarnation, plan."""
    header = batch.header
    return header.round, header.term, header.incarnation, header.plan_version


def codec_of(batch: Batch) -> str:
    """How a batch's activations were encoded, as a job names it."""
    spec = batch.header.tensors[0]
    return spec.codec + ("+zstd" if spec.compression == "zstd" else "")

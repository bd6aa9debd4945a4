"""One valid message of every type, and a payload: what golden bytes and state tables are tested with."""

from __future__ import annotations

import numpy as np

from toolkit.wire.job import Job, ModelSpec
from toolkit.wire.messages import (
    Answer,
    Ask,
    Assignment,
    Bye,
    Chunk,
    DataSummary,
    Declined,
    Fenced,
    Fetch,
    Hello,
    Lowered,
    MeasureRequest,
    Message,
    Offer,
    Pace,
    Payload,
    Piece,
    Receipt,
    Refusal,
    State,
    TensorSpec,
    Want,
    Weights,
    Welcome,
)
from toolkit.wire.payloads import Batch, PayloadAddress
from toolkit.wire.weights import FlatWeights, LoweredAddress, RowLengths, WeightsAddress

NONCE = bytes(range(16))
OTHER_NONCE = bytes(range(16, 32))
MODEL = ModelSpec(name="mlp", input_shape=[3], n_classes=2)
MEASURE = MeasureRequest(model=MODEL, batch_size=8, exit_head="pooled")
JOB = Job(
    run="run1",
    model=MODEL,
    cut="layer1",
    classes=["a", "b"],
    mean=[0.0, 0.5, 1.0],
    std=[1.0, 1.0, 2.0],
    seed=7,
    rounds=3,
    batch_size=8,
)
HELLO = Hello(
    device="dev1",
    boot_nonce=NONCE,
    protocols=[1],
    software="hsee 0",
    data=DataSummary(
        classes=["a", "b"],
        input_shape=[3],
        n_train=20,
        n_eval=4,
        mean=[0.0, 0.5, 1.0],
        var=[1.0, 1.0, 4.0],
        fingerprint="0123abcd",
    ),
)
BYE = Bye(device="dev1", boot_nonce=NONCE, reason="stopped")
PACE = Pace(device="dev1", round=2, n_steps=3, step_ms=1.5, n_sent=4, sent_bytes=500, upload_ms=0.25)
CHUNK = Chunk(payload_id=NONCE, index=1, n_chunks=2, total_bytes=5)
PAYLOAD = Payload(
    device="dev1",
    kind="train",
    round=1,
    seq=2,
    term=3,
    incarnation=4,
    plan_version=5,
    cut="layer1",
    segment_step=6,
    exit_loss=0.5,
    exit_correct=1,
    tensors=[TensorSpec(name="h", shape=[2, 3], codec="float32", n_bytes=24)],
    sha256=bytes(range(32)),
)
WELCOME = Welcome(boot_nonce=NONCE, run="run1", term=1, incarnation=1, protocol=1)
ASSIGNMENT = Assignment(term=1, plan_version=1, job=JOB)
STATE = State(
    term=1,
    incarnation=1,
    n=1,
    phase="training",
    round=1,
    next=1,
    limit=3,
    watermark_round=0,
    watermark_seq=0,
    plan_version=1,
)
REFUSAL = Refusal(boot_nonce=NONCE, code="late", message="The run began without this device.")
FENCED = Fenced(boot_nonce=NONCE, incarnation=2)
ASK = Ask(
    boot_nonce=NONCE,
    n=1,
    device="dev1",
    run="run1",
    cut="layer1",
    round=3,
    origin=bytes(range(32)),
    ttl_ms=200,
    tensors=[TensorSpec(name="h", shape=[2, 3], codec="float32", n_bytes=24)],
    sha256=bytes(range(32)),
)
ANSWER = Answer(
    boot_nonce=NONCE,
    n=1,
    origin=bytes(range(32)),
    theta_round=4,
    tensors=[TensorSpec(name="logits", shape=[2, 2], codec="float32", n_bytes=16)],
    sha256=bytes(range(32)),
)
DECLINED = Declined(boot_nonce=NONCE, n=1, code="run", message="Another run is served here.")
WEIGHTS = Weights(
    device="dev1",
    round=1,
    seq=3,
    term=3,
    incarnation=4,
    plan_version=5,
    cut="layer1",
    segment_step=6,
    tensors=[TensorSpec(name="values", shape=[3], codec="float32", n_bytes=12)],
    sha256=bytes(range(32)),
)
LOWERED = Lowered(
    device="dev1",
    round=1,
    term=3,
    incarnation=4,
    plan_version=5,
    tensors=[TensorSpec(name="values", shape=[3], codec="float32", n_bytes=12)],
    sha256=bytes(range(32)),
)
FETCH = Fetch(device="dev1", term=3, incarnation=4, round=1)
OFFER = Offer(archive=bytes(range(32)), n_bytes=1000)
WANT = Want(archive=bytes(range(32)), offset=0, n_pieces=8)
PIECE = Piece(archive=bytes(range(32)), offset=0)
RECEIPT = Receipt(archive=bytes(range(32)), outcome="installed", message="1 exits on 4 stored samples")
MESSAGES: tuple[Message, ...] = (
    HELLO,
    BYE,
    PACE,
    CHUNK,
    FETCH,
    PAYLOAD,
    WEIGHTS,
    LOWERED,
    WELCOME,
    ASSIGNMENT,
    STATE,
    REFUSAL,
    FENCED,
    ASK,
    ANSWER,
    DECLINED,
    OFFER,
    WANT,
    PIECE,
    RECEIPT,
)

ADDRESS = PayloadAddress(
    device="dev1", round=1, seq=2, term=3, incarnation=4, plan_version=5, cut="layer1", run="run1"
)
BATCH = Batch(
    kind="train",
    h=np.array([[1.0, -2.0, 0.5], [0.25, 127.0, -0.125]], np.float32),
    y=np.array([0, 1], np.int64),
    exit_loss=0.5,
    exit_correct=1,
    segment_step=6,
)
FLAT = FlatWeights(
    values=np.array([0.5, -1.0, 3.0], np.float32),
    counters=np.array([7], np.int64),
    momentum=np.array([0.25, -0.125], np.float32),
)
ROWS = RowLengths(values=3, counters=1, momentum=2)
LOGITS = np.array([[1.0, -1.0]], np.float32)
WEIGHTS_ADDRESS = WeightsAddress(
    device="dev1", round=1, seq=3, term=3, incarnation=4, plan_version=5, cut="layer1", segment_step=6
)
LOWERED_ADDRESS = LoweredAddress(device="dev1", round=1, term=3, incarnation=4, plan_version=5)

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.protocol.samples import ADDRESS, BATCH
from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire import payloads, tensors

JOB = {"activation_shape": [3], "n_classes": 2, "batch_size": 2}


@pytest.mark.parametrize("codec", tensors.CODECS)
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_batch_comes_out_as_it_went_in(codec, kind):
    sent = replace(BATCH, kind=kind, remade=True)
    header, body = payloads.decode(payloads.encode(ADDRESS, sent, codec), device="dev1")
    got = payloads.to_batch(header, body, **JOB)
    assert {name: getattr(header, name) for name in ADDRESS.__struct_fields__} == msgspec.structs.asdict(
        ADDRESS
    )
    assert (got.kind, got.exit_loss, got.exit_correct, got.segment_step, got.remade) == (
        kind,
        0.5,
        1,
        6,
        True,
    )
    assert (got.y == sent.y).all()
    assert np.abs(got.h - sent.h).max() <= (0.5 if codec.startswith("int8") else 0)


def test_a_batch_does_not_keep_its_frame_alive():
    frame = payloads.encode(ADDRESS, BATCH, "float32")
    header, body = payloads.decode(frame, device="dev1")
    batch = payloads.to_batch(header, body, **JOB)
    body.release()
    frame[:] = bytes(len(frame))
    assert (batch.h == BATCH.h).all()


def test_only_the_topics_device_may_send():
    frame = payloads.encode(ADDRESS, BATCH, "float32")
    with pytest.raises(RemoteProtocolError, match="in the name of 'dev1'"):
        payloads.decode(frame, device="dev2")


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ({"batch_size": 1}, "2 samples"),
        ({"n_classes": 1}, "labels outside"),
        ({"activation_shape": [4]}, "its cut gives"),
        ({"activation_shape": [3, 1]}, "its cut gives"),
    ],
)
def test_a_batch_is_held_to_the_job(job, why):
    header, body = payloads.decode(payloads.encode(ADDRESS, BATCH, "float32"), device="dev1")
    with pytest.raises(RemoteProtocolError, match=why):
        payloads.to_batch(header, body, **(JOB | job))


def test_one_sample_is_too_few_to_train_on_and_enough_to_evaluate():
    for kind in ("train", "eval"):
        one = replace(BATCH, kind=kind, h=BATCH.h[:1], y=BATCH.y[:1])
        header, body = payloads.decode(payloads.encode(ADDRESS, one, "float32"), device="dev1")
        if kind == "eval":
            assert len(payloads.to_batch(header, body, **JOB).y) == 1
        else:
            with pytest.raises(RemoteProtocolError, match=r"asks for 2\.\.2"):
                payloads.to_batch(header, body, **JOB)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.0])
def test_a_loss_that_no_receiver_takes_is_not_sent(loss):
    with pytest.raises(LocalProtocolError, match="exit_loss"):
        payloads.encode(ADDRESS, replace(BATCH, exit_loss=loss), "float32")


@pytest.mark.parametrize("codec", tensors.CODECS)
def test_no_batch_of_a_job_is_longer_than_the_receiver_collects(codec):
    """Noise, which zstd makes longer."""
    noise = np.random.default_rng(1).integers(0, 2**31, (8, 4096)).astype(np.int32).view(np.float32)
    batch = replace(BATCH, h=np.nan_to_num(noise), y=np.zeros(8, np.int64))
    n_bytes = len(payloads.encode(ADDRESS, batch, codec))
    assert n_bytes <= payloads.largest_payload_bytes([4096], batch_size=8) <= 8 * 4096 * 4 + 2**18
    assert payloads.largest_payload_bytes([2**24], batch_size=8) == 2**26

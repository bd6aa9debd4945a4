import numpy as np
import pytest

from toolkit.errors import LocalProtocolError, UsageError
from toolkit.wire import tensors

SHAPES = [(2, 3), (1, 1), (4, 5, 6), (3, 2, 4, 4), (2, 1, 1, 1, 3)]


def activations(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)


def through(array: np.ndarray, codec: str) -> np.ndarray:
    encoded = tensors.encode_activations("h", array, codec)
    decoded = tensors.decode(encoded.spec, memoryview(encoded.content))
    assert decoded.dtype == np.float32
    assert decoded.flags.owndata
    assert decoded.flags.writeable
    return decoded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codec", ["float32", "float32+zstd"])
def test_float32_is_exact(shape, codec):
    array = activations(shape)
    assert through(array, codec).tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codec", ["float16", "float16+zstd"])
def test_float16_is_off_by_half_a_unit_in_the_last_place(shape, codec):
    array = activations(shape)
    error = np.abs(through(array, codec) - array)
    assert (error <= np.maximum(np.abs(array) * 2**-11, 2**-25)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codec", ["int8", "int8+zstd"])
def test_int8_is_off_by_half_a_step_of_its_channel(shape, codec):
    array = activations(shape) * (10.0 ** np.arange(shape[1])).reshape(1, -1, *[1] * (len(shape) - 2))
    array = array.astype(np.float32)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    step = np.abs(array).max(axis=axes, keepdims=True) / 127
    assert (np.abs(through(array, codec) - array) <= step * 0.5001).all()


@pytest.mark.parametrize("codec", ["int8", "int8+zstd"])
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1.8e-43, 1e-38, 1e-36, 3.4e38])
def test_int8_takes_channels_of_any_size(codec, largest):
    """Below float32's normal range a scale loses its digits: codes then ran over, and signs flipped."""
    array = np.linspace(-largest, largest, 14, dtype=np.float32).reshape(7, 2)
    error = np.abs(through(array, codec).astype(np.float64) - array)
    assert error.max() <= max(largest / 127, 2**-126) * 0.5001


def test_a_channel_of_zeros_stays_zero():
    assert not through(np.zeros((2, 3, 2), np.float32), "int8").any()


def test_float16_saturates_and_counts_it():
    array = np.array([[70000.0, -1e38, 65504.0, 1.0]], np.float32)
    encoded = tensors.encode_activations("h", array, "float16")
    assert encoded.n_saturated == 2
    assert through(array, "float16").tolist() == [[65504.0, -65504.0, 65504.0, 1.0]]
    assert tensors.encode_activations("h", array, "int8").n_saturated == 0


@pytest.mark.parametrize("codec", tensors.CODECS)
def test_sizes_are_those_announced(codec):
    array = np.zeros((4, 3, 8), np.float32)
    encoded = tensors.encode_activations("h", array, codec)
    assert encoded.spec.n_bytes == len(encoded.content)
    assert encoded.spec.shape == [4, 3, 8]
    if "zstd" in codec:
        assert len(encoded.content) < tensors.activation_bytes(array.size, codec)
    else:
        scales = 4 * 3 if codec == "int8" else 0
        assert len(encoded.content) == tensors.activation_bytes(array.size, codec) + scales


def test_memory_order_does_not_matter():
    array = np.asfortranarray(activations((4, 3, 2)))
    for codec in tensors.CODECS:
        assert (through(array, codec) == through(np.ascontiguousarray(array), codec)).all()


def test_labels_are_exact():
    labels = np.array([0, 5, 2**40, -1], np.int64)
    encoded = tensors.encode_labels("y", labels)
    decoded = tensors.decode(encoded.spec, memoryview(encoded.content))
    assert decoded.dtype == np.int64
    assert decoded.tolist() == labels.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", tensors.CODECS)
def test_what_no_receiver_takes_is_not_sent(codec, value):
    array = np.array([[1.0, value]], np.float32)
    with pytest.raises(LocalProtocolError, match="finite"):
        tensors.encode_activations("h", array, codec)


def test_int8_needs_a_channel_axis():
    with pytest.raises(LocalProtocolError, match="channel"):
        tensors.encode_activations("h", np.zeros(3, np.float32), "int8")


def test_an_unknown_codec_is_named():
    with pytest.raises(UsageError, match="float16"):
        tensors.check_codec("flaot16")
    assert tensors.check_codec("int8+zstd") == "int8+zstd"

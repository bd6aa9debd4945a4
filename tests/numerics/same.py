"""Equal bit for bit: names, types, shapes and every value."""

import hashlib

import torch


def digest(tensors) -> str:
    """SHA-256 over named tensors."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(repr((name, tensors[name].dtype, tuple(tensors[name].shape))).encode())
        made.update(tensors[name].contiguous().numpy().tobytes())
    return made.hexdigest()


def assert_same(got, expected) -> None:
    only_one_has = sorted(got.keys() ^ expected.keys())
    assert not only_one_has, f"only one has: {', '.join(only_one_has)}"
    differing = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert not differing, f"not equal: {', '.join(differing)}"
    assert digest(got) == digest(expected)

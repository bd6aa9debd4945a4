"""Ed25519 verification, and nothing else: a board checks signatures and holds no key.

Written out because the inference path takes nothing but numpy and ONNX Runtime, and because verification knows no
secret: nothing here has to run in constant time. Signing is ``cryptography``'s (``toolkit/access/signing.py``).

Source: RFC 8032, sections 5.1.3 and 5.1.7; the equation is checked without the cofactor, as OpenSSL does.
"""

from __future__ import annotations

import hashlib

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
"""Order of the base point."""
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_LOW_255 = 2**255 - 1

_Point = tuple[int, int, int, int]
"""Extended homogeneous coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, x y = T/Z."""
_NEUTRAL: _Point = (0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature of a message was made with the key that belongs to a public key.

    Args:
        public_key: 32 bytes.
        message: of any length.
        signature: 64 bytes; of any other length it is none.
    """
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    key = _decode(public_key)
    s = int.from_bytes(signature[32:], "little")
    if key is None or s >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    h = int.from_bytes(digest, "little") % _L
    minus_key = (-key[0] % _P, key[1], key[2], -key[3] % _P)
    return _encode(_add(_times(s, _BASE), _times(h, minus_key))) == signature[:32]


def _add(a: _Point, b: _Point) -> _Point:
    """Section 5.1.4, complete: it doubles too."""
    left, right = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    c, d = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    e, f, g, h = right - left, d - c, d + c, right + left
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(n: int, point: _Point) -> _Point:
    result = _NEUTRAL
    while n:
        if n & 1:
            result = _add(result, point)
        point = _add(point, point)
        n >>= 1
    return result


def _decode(encoded: bytes) -> _Point | None:
    """A point from its 32 bytes; None where they are none, or not the shortest way to write it."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & _LOW_255
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * _ROOT_OF_MINUS_ONE % _P
    if x * x % _P != square or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _encode(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _base() -> _Point:
    point = _decode((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert point is not None  # noqa: S101 - a constant
    return point


_BASE = _base()

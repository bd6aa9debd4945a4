"""What a refusal may cost."""

import tracemalloc
from collections.abc import Callable

import pytest

from toolkit.errors import RemoteProtocolError

SLACK_BYTES = 64 * 1024


def allocated_by(call: Callable[[], object], *, refusal: type[Exception] = RemoteProtocolError) -> int:
    """Peak bytes that a refused call allocated."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(refusal):
            call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

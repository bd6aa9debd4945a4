"""Caps of the protocol: every one is checked before anything is allocated for what it bounds."""

from __future__ import annotations

PROTOCOL_VERSION = 1
MAGIC = b"HSEE"

MAX_HEADER_BYTES = 64 * 1024
MAX_FIELDS = 64
"""Keys of a header, unknown ones among them."""
MAX_WORD_BYTES = 1024
"""A retained word, JSON."""
MAX_JOINING_BYTES = 4096
"""A message about joining, JSON."""
MAX_TENSORS = 256
MAX_NDIM = 8
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
MAX_CHUNKS = 4096
MAX_MESSAGE_BYTES = 384 * 1024
"""The largest MQTT packet hsee sends: a chunk, or a header of full length; a broker must take it."""
MAX_OPEN_PAYLOADS = 8
"""Payloads of one device that may be incomplete at a time; the oldest is abandoned first."""
MAX_ASK_BYTES = 4 * 1024 * 1024
"""An offloaded question or its answer, whole."""
MAX_ASK_SAMPLES = 256
MAX_ASK_TTL_MS = 60_000
MAX_BUNDLE_BYTES = 512 * 1024 * 1024
"""An archive that travels to a board."""
PIECE_BYTES = 256 * 1024
MAX_WANTED_PIECES = 32
MAX_CLASSES = 65_536
MAX_CHANNELS = 4096
MIN_TRAIN_SAMPLES = 2
"""Batch norm has no statistics over one sample."""
MAX_NAME_BYTES = 64
MAX_PROFILE_BYTES = 32 * 1024
MAX_PACE_MS = 1_000_000_000
"""Of one step or upload, as a device tells it: eleven days."""
MAX_TEXT_CHARACTERS = 1024
"""Of a sentence for a person: why a run ended, why a hello is refused."""
MAX_TELEMETRY_BYTES = 4096
MAX_LOG_BYTES = 32 * 1024
MAX_LOG_LINES = 32
"""In one message."""

DEFAULT_CHUNK_BYTES = 256 * 1024
"""A chunk of this size costs no more than larger ones and passes every common broker but AWS IoT's (120 KiB)."""
CHUNK_OVERHEAD_BYTES = 512
"""Frame and header of a chunk message never exceed this."""

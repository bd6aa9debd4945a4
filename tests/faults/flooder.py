"""A device that sends what nobody asked for: garbage, first chunks of payloads that never end, in its own name.

python -m tests.faults.flooder --broker HOST:PORT --run RUN
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.faults.stubs import FLEET, device_name
from toolkit.link.base import parse_broker
from toolkit.link.mqtt import MqttLink
from toolkit.wire import frames
from toolkit.wire.limits import MAX_MESSAGE_BYTES
from toolkit.wire.messages import Chunk

MESSAGES_A_SECOND = 400
N_BYTES = 8 * 1024


def main() -> int:
    """Flood until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--run", required=True)
    args = parser.parse_args()
    link = MqttLink(parse_broker(args.broker), "flooder", max_packet_bytes=MAX_MESSAGE_BYTES)
    link.start()
    # One that has a job, and one that nobody knows.
    topics = [FLEET.up(args.run, device_name(0)), FLEET.up(args.run, "stranger")]
    n = 0
    while True:
        link.poll(1 / MESSAGES_A_SECOND)
        header = Chunk(payload_id=os.urandom(16), index=0, n_chunks=4, total_bytes=4 * N_BYTES)
        garbage = os.urandom(N_BYTES)
        link.publish(topics[n % 2], frames.encode(header, [garbage]) if n % 4 < 2 else garbage)
        n += 1
        time.sleep(0)


if __name__ == "__main__":
    sys.exit(main())

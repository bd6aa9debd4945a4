"""What the network gives to a program that does nothing but publish: paho with its own defaults.

    python -m tests.faults.bare --broker HOST:PORT --broker-folder F --run r1 --device stub000 --seconds 60

Prints acknowledged messages a second; each is as long as a stub's batch.
"""

from __future__ import annotations

import argparse
import ssl
import sys
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.faults.stubs import FLEET, WIDTH, add_broker, address_of

N_BYTES = 4 * WIDTH * 4 + 400
"""A batch of four in float32, its labels and its headers."""
MOST_OUTSTANDING = 64


def main() -> int:
    """Publish for a while."""
    parser = argparse.ArgumentParser()
    add_broker(parser)
    parser.add_argument("--run", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    address = address_of(args, args.device)
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=args.device)
    client.username_pw_set(address.username, address.password)
    client.tls_set_context(ssl.create_default_context(cafile=address.ca_file))
    client.connect(address.host, address.port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    waiting: list[paho.MQTTMessageInfo] = []
    n, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < args.seconds:
        done = [info for info in waiting if info.is_published()]
        n += len(done)
        waiting = [info for info in waiting if not info.is_published()]
        while len(waiting) < MOST_OUTSTANDING:
            waiting.append(client.publish(FLEET.up(args.run, args.device), b"\0" * N_BYTES, qos=1))
        time.sleep(0.01)
    sys.stdout.write(f"{n / (time.monotonic() - began_s)}\n")
    client.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())

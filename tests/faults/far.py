"""An address that is far away: what is sent there comes back to this machine late, twice, in another order, or never.

    python -m tests.faults.far --near 10.203.7.1 --delay-ms 150 --loss 0.05 --double 0.01 --reorder 0.02

A TUN device owns the near address and the one after it, the far one. Each packet to the far one is given back with its
two addresses exchanged (which leaves every checksum right), so that who connects to FAR:PORT reaches a server of this
machine at NEAR:PORT, and each packet of either side has crossed a link of this shape. Real TCP and TLS under real loss, in kernels
that have no netem. Needs root and /dev/net/tun; the device is gone with the process.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 1500
IPV4 = 4
SOURCE, TARGET = slice(12, 16), slice(16, 20)
"""Of the two addresses in an IPv4 header."""
REFUSED = "no far link can be made here"
MOST_UNDER_WAY = 4000
"""Packets: a router's queue ends too."""


def find_ip() -> str | None:
    """Return the program that gives devices their addresses; root's PATH may not have it."""
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")


def is_possible() -> bool:
    """Whether this machine can have a far address."""
    return os.geteuid() == 0 and Path("/dev/net/tun").exists() and find_ip() is not None


def open_device(near: str) -> int:
    """Make a TUN device with an address and its neighbour's; returns its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    made = fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"hsee%d", IFF_TUN | IFF_NO_PI))
    name = made[:16].rstrip(b"\0").decode()
    program = find_ip()
    assert program is not None
    subprocess.run([program, "address", "add", f"{near}/30", "dev", name], check=True)
    subprocess.run([program, "link", "set", name, "mtu", str(MTU), "up"], check=True)
    return descriptor


def mirrored(packet: bytes) -> bytes:
    """Exchange source and target."""
    turned = bytearray(packet)
    turned[SOURCE], turned[TARGET] = packet[TARGET], packet[SOURCE]
    return bytes(turned)


class Way:
    """What is under way; each packet is drawn its fate when it sets out."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._random = random.Random(args.seed)
        self._under_way: list[tuple[float, int, bytes]] = []
        self._n = 0

    def send(self, packet: bytes, now_s: float) -> None:
        draw, args = self._random.random, self._args
        if draw() < args.loss or len(self._under_way) >= MOST_UNDER_WAY:
            return
        for _ in range(1 + (draw() < args.double)):
            late_s = args.delay_ms / 1e3 * (1.0 + (draw() if draw() < args.reorder else 0.0))
            self._n += 1
            heapq.heappush(self._under_way, (now_s + late_s, self._n, packet))

    def arrived(self, now_s: float) -> list[bytes]:
        found = []
        while self._under_way and self._under_way[0][0] <= now_s:
            found.append(heapq.heappop(self._under_way)[2])
        return found

    def wait_s(self, now_s: float) -> float:
        return max(0.0, self._under_way[0][0] - now_s) if self._under_way else 1.0


def main() -> int:
    """Carry packets until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--near", required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way; half of the round trip")
    parser.add_argument("--loss", type=float, default=0.0, help="of packets, each way")
    parser.add_argument("--double", type=float, default=0.0)
    parser.add_argument("--reorder", type=float, default=0.0, help="packets that take up to twice as long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        descriptor = open_device(args.near)
    except (OSError, subprocess.CalledProcessError) as exc:
        sys.stdout.write(f"{REFUSED}: {exc}\n")
        return 1
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    way = Way(args)
    while True:
        readable, _, _ = select.select([descriptor], [], [], way.wait_s(time.monotonic()))
        now_s = time.monotonic()
        while readable:
            try:
                packet = os.read(descriptor, 2 * MTU)
            except BlockingIOError:
                break
            if packet[0] >> 4 == IPV4:
                way.send(mirrored(packet), now_s)
        for packet in way.arrived(now_s):
            try:
                os.write(descriptor, packet)
            except BlockingIOError:
                break  # as any full queue: lost


if __name__ == "__main__":
    sys.exit(main())

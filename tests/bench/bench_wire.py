"""What the wire costs (issue 5, item 8): ratios in one run, printed as JSON and as the table of docs/results/wire.md.

python -m tests.bench.bench_wire [--only throughput,buffers,pipelined,embedded,codec,memory,join]

Both sides of every ratio take turns in the same minutes, on one Mosquitto with ``set_tcp_nodelay``, in processes of
their own with one compute thread each. Run it on a quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.bench.wire_agents import bench_join, bench_memory
from tests.bench.wire_codec import bench_codec
from tests.bench.wire_embedded import bench_embedded
from tests.bench.wire_pipelined import bench_pipelined
from tests.bench.wire_throughput import bench_buffers, bench_throughput
from toolkit.profile.board import machine_name

BENCHES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "throughput": bench_throughput,
    "buffers": bench_buffers,
    "pipelined": bench_pipelined,
    "embedded": bench_embedded,
    "codec": bench_codec,
    "memory": bench_memory,
    "join": bench_join,
}
ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("throughput", "ratio", "activations over MQTT, of a bare paho loop", "at least 0.8"),
    ("throughput", "ratio_of_hashed", "the same, of a bare loop that hashes as both sides must", ""),
    ("throughput", "ratio_undigested", "the same, of a bare loop, if a digest cost nothing", ""),
    ("buffers", "faults_a_batch", "page faults a batch: encode, cut, assemble, decode", ""),
    ("pipelined.broker", "ratio", "pipelined / synchronous, through a broker", "at most 0.80"),
    ("pipelined.raw", "ratio", "pipelined / synchronous, raw link", "at most 0.70"),
    ("embedded", "embedded_mb_per_s", "embedded broker at 1 MB, MB/s", "at least 250"),
    ("codec", "encode_ratio", "int8+zstd encode / library calls", "at most 1.2"),
    ("codec", "decode_ratio", "int8+zstd decode / library calls", "at most 1.2"),
    ("memory", "over_mib", "agent's memory over the bare loop, MiB", "at most 64"),
    ("join.mosquitto_tls", "seconds", "200 agents join, Mosquitto with TLS, s", "at most 10"),
    ("join.embedded", "seconds", "200 agents join, embedded broker, s", "at most 10"),
)


def table(found: dict[str, Any]) -> str:
    """The table for docs/results/wire.md."""
    lines = ["| what | measured | goal |", "|---|---|---|"]
    for path, key, what, goal in ROWS:
        value: Any = found
        for part in path.split("."):
            value = value.get(part, {})
        if key in value:
            lines.append(f"| {what} | {value[key]:.2f} | {goal} |")
    return "\n".join(lines)


def main() -> int:
    """Run the benches asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(BENCHES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "machine": machine_name(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "paho-mqtt", "amqtt", "zstandard")},
    }
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = BENCHES[name](Path(folder))
        sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n\n" + table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An agent written from PROTOCOL.md alone, with nothing but the standard library: it shows that the page is enough.

    python tests/conformance/agent_from_the_page.py HOST PORT DEVICE FLEET [PACE]

It speaks for a device whose first layer is a random projection that never learns, and stops when its run ends. PACE
makes its clock run so much faster. It imports nothing of hsee, and nothing of hsee imports it.
"""

import hashlib
import json
import math
import os
import random
import select
import socket
import struct
import sys
import time

CLASSES, N_FEATURES, WIDTH = ["a", "b", "c"], 8, 128
N_TRAIN, N_EVAL = 120, 10
CHUNK_BYTES = 4096
N_PARAMETERS = (N_FEATURES + 1) * WIDTH + 2 * WIDTH + (WIDTH + 1) * len(CLASSES)
"""Of a linear layer with batch norm, and a linear exit behind it: stage hidden1 of the model mlp."""
PROFILE = """\
schema = 1
name = "bare"
partial = true
[provenance]
kind = "measured"
date = 2026-11-25
machine = "a board"
[board]
cpu = "a processor"
architecture = "any"
n_cores = 1
memory_bytes = 1073741824
[model]
name = "{name}"
input_shape = {input_shape}
n_classes = {n_classes}
[training]
batch_size = {batch_size}
exit_head = "{exit_head}"
threads = 1
[[cuts]]
cut = "hidden1"
step_ms_mean = 5.0
step_ms_p50 = 5.0
step_ms_p95 = 6.0
n_steps = 20
peak_memory_mb = 10.0
flop = 2048
suffix_flop = 100000
n_parameters = {n_parameters}
activation_bytes = 512
"""


# msgpack: what headers are made of


def pack(value):
    """Write a value in msgpack, every length in its widest form."""
    match value:
        case None | bool():
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return struct.pack(">BQ", 0xCF, value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str() | bytes():
            is_text = isinstance(value, str)
            content = value.encode() if is_text else value
            return struct.pack(">BI", 0xDB if is_text else 0xC6, len(content)) + content
        case list():
            return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
        case dict():
            entries = (pack(key) + pack(entry) for key, entry in value.items())
            return struct.pack(">BI", 0xDF, len(value)) + b"".join(entries)
    raise TypeError(value)


NUMBERS = dict(zip([0xCA, 0xCB, *range(0xCC, 0xD4)], "fdBHIQbhiq", strict=True))
LENGTHS = dict(
    zip(
        [0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF],
        zip(
            ["bin", "bin", "bin", "text", "text", "text", "list", "list", "map", "map"],
            "BHIBHIHIHI",
            strict=True,
        ),
        strict=True,
    )
)
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data, at=0):
    """Read the value at an offset; returns it and where the next one begins."""
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return first - (first >= 0xE0) * 256, at
    if first in CONSTANTS:
        return CONSTANTS[first], at
    if first in NUMBERS:
        kind = ">" + NUMBERS[first]
        return struct.unpack_from(kind, data, at)[0], at + struct.calcsize(kind)
    if first < 0xC0:
        kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
        n = first & (0x1F if kind == "text" else 0x0F)
    else:
        kind, size = LENGTHS[first]
        n, at = struct.unpack_from(">" + size, data, at)[0], at + struct.calcsize(size)
    if kind in ("bin", "text"):
        content = data[at : at + n]
        if len(content) < n:
            raise ValueError("cut")
        return content if kind == "bin" else content.decode(), at + n
    values = []
    for _ in range(n * (2 if kind == "map" else 1)):
        value, at = unpack(data, at)
        values.append(value)
    return dict(zip(values[::2], values[1::2], strict=True)) if kind == "map" else values, at


def frame(header, body=b""):
    """Section 2."""
    packed = pack(header)
    return struct.pack("<4sB3xI", b"HSEE", 1, len(packed)) + packed + body


def unframe(message):
    """Read a header. Raises: ValueError: the message is to be refused."""
    magic, version, n = struct.unpack_from("<4sB3xI", message)
    header, end = unpack(message, 12)
    if magic != b"HSEE" or version != 1 or n > 65536 or end != 12 + n or not isinstance(header, dict):
        raise ValueError("no frame")
    return header


# MQTT 3.1.1: as much of it as section 1 needs


class Mqtt:
    """One connection with a clean session and a will."""

    def __init__(self, host, port, client_id, will):
        self._socket = socket.create_connection((host, port), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread, self._packet_id, self._sent_at = b"", 0, time.monotonic()
        topic, word = will
        flags = 0b00101110  # the will is retained, of QoS 1; a clean session
        texts = text(client_id.encode()) + text(topic) + text(word)
        self._send(0x10, text(b"MQTT") + struct.pack(">BBH", 4, flags, 20) + texts)
        if self._receive(10.0) != (0x20, b"\0\0"):
            raise ConnectionError("the broker says no")

    def subscribe(self, topic):
        self._send(0x82, self._new_id() + text(topic) + b"\1")

    def publish(self, topic, payload, *, retain=False):
        self._send(0x32 | retain, text(topic) + self._new_id() + payload)

    def poll(self, timeout_s):
        """Wait for the next message: (topic, payload), or None."""
        if time.monotonic() - self._sent_at > 10:
            self._send(0xC0, b"")
        kind, body = self._receive(timeout_s)
        if kind >> 4 != 3:
            return None
        end = 2 + int.from_bytes(body[:2], "big")
        if not kind & 0b110:
            return body[2:end], body[end:]
        self._send(0x40, body[end : end + 2])
        return body[2:end], body[end + 2 :]

    def leave(self):
        self._send(0xE0, b"")
        self._socket.close()

    def _new_id(self):
        self._packet_id = self._packet_id % 65535 + 1
        return self._packet_id.to_bytes(2, "big")

    def _send(self, kind, body):
        length, left = b"", len(body)
        while True:
            left, digit = divmod(left, 128)
            length += bytes([digit | (128 if left else 0)])
            if not left:
                break
        self._socket.sendall(bytes([kind]) + length + body)
        self._sent_at = time.monotonic()

    def _receive(self, timeout_s):
        """The next packet: (kind, body), or (0, nothing)."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            n, at = 0, 1
            while at < len(self._unread):
                n |= (self._unread[at] & 127) << 7 * (at - 1)
                at += 1
                if self._unread[at - 1] < 128:
                    if len(self._unread) < at + n:
                        break
                    kind, body = self._unread[0], self._unread[at : at + n]
                    self._unread = self._unread[at + n :]
                    return kind, body
            if not select.select([self._socket], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
                return 0, b""
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("the broker hung up")
            self._unread += more


def text(content):
    return len(content).to_bytes(2, "big") + content


# Data, and what stands for a network


def sample(number):
    draw = random.Random(number)
    return [draw.gauss(number % len(CLASSES), 1.0) for _ in range(N_FEATURES)]


SAMPLES = [sample(number) for number in range(N_TRAIN + N_EVAL)]
MEAN = [sum(x[c] for x in SAMPLES[:N_TRAIN]) / N_TRAIN for c in range(N_FEATURES)]
VAR = [sum((x[c] - MEAN[c]) ** 2 for x in SAMPLES[:N_TRAIN]) / N_TRAIN for c in range(N_FEATURES)]
_draw = random.Random(0)
WEIGHTS = [[_draw.gauss(0, 0.5) for _ in range(N_FEATURES)] for _ in range(WIDTH)]


def list_of(job, round_):
    """Section 9: training batches, and held-out ones behind them."""
    size, n_train = job["batch_size"], job.get("round_steps", 0)
    if not n_train:
        n_train = N_TRAIN // size + (N_TRAIN % size >= 2)
    evaluates = round_ == job["rounds"] or round_ % job.get("eval_every", 1) == 0
    return n_train, math.ceil(min(N_EVAL, job.get("eval_samples", 256)) / size) if evaluates else 0


def batch_of(job, round_, seq):
    """A pure function: activations (n, WIDTH) and labels (n,), as bytes, and n."""
    size, (n_train, _) = job["batch_size"], list_of(job, round_)
    if seq <= n_train:
        numbers = list(range(N_TRAIN))
        random.Random(f"{job['seed']} {round_}").shuffle(numbers)
        last = seq * size if job.get("round_steps", 0) else min(seq * size, N_TRAIN)
        numbers = [numbers[k % N_TRAIN] for k in range((seq - 1) * size, last)]
    else:
        numbers = list(range(N_TRAIN, N_TRAIN + N_EVAL))[(seq - n_train - 1) * size : (seq - n_train) * size]
    h = []
    for number in numbers:
        x = [(v - m) / s for v, m, s in zip(SAMPLES[number], job["mean"], job["std"], strict=True)]
        h += [max(0.0, sum(w * v for w, v in zip(row, x, strict=True))) for row in WEIGHTS]
    y = [job["classes"].index(CLASSES[number % len(CLASSES)]) for number in numbers]
    return struct.pack(f"<{len(h)}f", *h), struct.pack(f"<{len(y)}q", *y), len(y)


# The device of section 10


class Agent:
    def __init__(self, host, port, device, fleet, pace):
        self._broker, self._device, self._pace = (host, port), device, pace
        self._topics = f"hsee/v1/{fleet}/"
        self._nonce = os.urandom(16)
        self._phase, self._run, self._profile = "offline", "", ""
        self._term = self._incarnation = self._plan = self._n_steps = 0
        self._job = self._state = None
        self._trained = (0, 0)
        self._next = 1
        self._named = (0, 0.0)
        self._heard = self._asked = 0.0

    def live(self):
        while self._phase not in ("finished", "failed", "refused", "fenced"):
            try:
                self._connect()
                while self._phase not in ("finished", "failed", "refused", "fenced"):
                    self._turn()
                self._mqtt.publish(self._topic("state"), self._word("offline"), retain=True)
                self._mqtt.leave()
            except OSError:
                self._phase = "offline"
                time.sleep(0.5)
        return self._phase

    def _now(self):
        return time.monotonic() * self._pace

    def _topic(self, leaf):
        middle = f"device/{self._device}" if leaf == "state" else f"data/{self._run}/{self._device}"
        return f"{self._topics}{middle}/{leaf}".encode()

    def _word(self, state):
        return json.dumps({"state": state, "boot_nonce": self._nonce.hex()}).encode()

    def _connect(self):
        self._mqtt = Mqtt(*self._broker, self._device, (self._topic("state"), self._word("offline")))
        self._mqtt.subscribe(f"{self._topics}bridge/state".encode())
        self._mqtt.publish(self._topic("state"), self._word("online"), retain=True)
        self._phase, self._state, self._heard = "seeking", None, self._now()

    def _turn(self):
        may_send = self._may_send()
        came = self._mqtt.poll(0.0 if may_send else 0.05)
        if came is not None:
            try:
                self._take(*came)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
                return  # refused: dropped, and it goes on
        elif may_send:
            self._send(self._next)
            self._next += 1
        elif self._phase == "joining" and self._now() - self._asked > 5:
            self._say_hello()
        elif self._phase in ("joined", "training") and self._now() - self._heard > 30:
            self._heard = self._now()
            self._say_hello()
        elif self._phase == "seeking" and self._now() - self._heard > 30:
            self._heard = self._now()
            self._mqtt.subscribe(f"{self._topics}bridge/state".encode())

    def _say_hello(self):
        self._phase, self._asked, self._state = "joining", self._now(), None
        data = {
            "classes": CLASSES,
            "input_shape": [N_FEATURES],
            "n_train": N_TRAIN,
            "n_eval": N_EVAL,
            "mean": MEAN,
            "var": VAR,
            "fingerprint": "made-up-data",
        }
        hello = {
            "type": "hello",
            "device": self._device,
            "boot_nonce": self._nonce,
            "protocols": [1],
            "software": "from the page",
            "data": data,
            "profile": self._profile,
        }
        self._mqtt.subscribe(self._topic("down"))
        self._mqtt.publish(self._topic("up"), frame(hello))

    # What is heard

    def _take(self, topic, payload):
        if topic == f"{self._topics}bridge/state".encode():
            self._on_word(json.loads(payload))
            return
        message = unframe(payload)
        getattr(self, f"_on_{message['type']}")(message)

    def _on_word(self, word):
        if word["run"] != self._run:
            if word["state"] == "online" and self._job is None:
                self._run, self._term = word["run"], word["term"]
                self._say_hello()
        elif word["term"] >= self._term:
            if word["state"] == "online":
                self._say_hello()
            elif self._job is not None and word.get("ended"):
                self._phase = word["ended"]
            else:
                self._phase, self._state = "seeking", None

    def _on_welcome(self, welcome):
        if self._phase != "joining" or welcome["boot_nonce"] != self._nonce or welcome["term"] < self._term:
            return
        self._term, self._incarnation, self._heard = welcome["term"], welcome["incarnation"], self._now()
        self._phase, measure = "joined", welcome.get("measure")
        if measure is not None:
            self._profile = PROFILE.format(**measure["model"], **measure, n_parameters=N_PARAMETERS)
            self._say_hello()

    def _on_assignment(self, assignment):
        in_session = self._phase in ("joined", "training")
        if in_session and assignment["term"] == self._term and assignment["plan_version"] >= self._plan:
            self._job, self._plan = assignment["job"], assignment["plan_version"]
            self._phase, self._heard = "training", self._now()

    def _on_state(self, state):
        if self._phase not in ("joined", "training") or state["incarnation"] != self._incarnation:
            return
        old = self._state or {"term": self._term, "n": 0, "round": -1}
        if (state["term"], state["n"]) <= (old["term"], old["n"]) or state["term"] < self._term:
            return
        self._heard = self._now()
        if state["phase"] in ("finished", "failed"):
            self._phase = state["phase"]
        elif state["plan_version"] > self._plan:
            self._say_hello()
        elif self._phase == "training":
            self._state = state
            self._obey(state, is_new_round=state["round"] != old["round"])

    def _obey(self, state, *, is_new_round):
        if is_new_round or state["next"] >= self._next:
            self._next, self._named = state["next"], (0, 0.0)
        elif self._named[0] != state["next"]:
            self._named = (state["next"], self._now())
        elif self._now() - self._named[1] >= 5:
            self._next, self._named = state["next"], (0, 0.0)

    def _on_refusal(self, refusal):
        if refusal["boot_nonce"] == self._nonce:
            self._phase = "refused"

    def _on_fenced(self, fenced):
        if fenced["boot_nonce"] == self._nonce:
            self._phase = "fenced"

    # What is sent

    def _may_send(self):
        if self._phase != "training" or self._state is None or self._state["phase"] != "training":
            return False
        return self._next < self._state["limit"] and self._next <= sum(
            list_of(self._job, self._state["round"])
        )

    def _send(self, seq):
        round_ = self._state["round"]
        is_training = seq <= list_of(self._job, round_)[0]
        remade = (round_, seq) <= self._trained
        h, y, n = batch_of(self._job, round_, seq)
        tensors = [
            {"name": "h", "shape": [n, WIDTH], "codec": "float32", "n_bytes": len(h)},
            {"name": "y", "shape": [n], "codec": "int64", "n_bytes": len(y)},
        ]
        header = {
            "type": "payload",
            "device": self._device,
            "kind": "train" if is_training else "eval",
            "round": round_,
            "seq": seq,
            "term": self._term,
            "incarnation": self._incarnation,
            "plan_version": self._plan,
            "cut": self._job["cut"],
            "segment_step": self._n_steps,
            "exit_loss": math.log(len(CLASSES)),
            "exit_correct": 0,
            "tensors": tensors,
            "sha256": hashlib.sha256(h + y).digest(),
            "remade": remade,
            "run": self._run,
        }
        if is_training and not remade:
            self._n_steps, self._trained = self._n_steps + 1, (round_, seq)
        payload, payload_id = frame(header, h + y), os.urandom(16)
        n_chunks = math.ceil(len(payload) / CHUNK_BYTES)
        size = math.ceil(len(payload) / n_chunks)
        for index in range(n_chunks):
            chunk = {
                "type": "chunk",
                "payload_id": payload_id,
                "index": index,
                "n_chunks": n_chunks,
                "total_bytes": len(payload),
            }
            self._mqtt.publish(self._topic("up"), frame(chunk, payload[index * size : (index + 1) * size]))


if __name__ == "__main__":
    host, port, device, fleet, *pace = sys.argv[1:]
    ended = Agent(host, int(port), device, fleet, float(pace[0]) if pace else 1.0).live()
    sys.stdout.write(f"{ended}\n")
    sys.exit(0 if ended == "finished" else 1)

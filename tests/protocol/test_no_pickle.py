"""H5: no pickle in link, wire, bundle and checkpoint code: the interpreter itself is asked, and our sources are read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USE = """
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from coordinator.store.checkpoints import CommittedState
from coordinator.store.run_folder import RunFolder
from device_agent.state import DeviceFolder
from tests.protocol.samples import ADDRESS, BATCH, JOB, MESSAGES
from tests.tiny_bundles import write_tiny_bundle
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.nn.datasets import load_source
from toolkit.nn.weights import content_of, tensors_of
from toolkit.wire import chunks, frames, payloads, tensors

SEEN = []
sys.addaudithook(lambda event, args: SEEN.append(args) if event == "pickle.find_class" else None)

hub = MemoryBroker()
link = MemoryLink(hub, "ant")
link.start()
link.poll(0)
link.subscribe("a/b")
for message in MESSAGES:
    link.publish("a/b", frames.encode(message))
for event in link.poll(0):
    frames.decode(event.payload)
for codec in tensors.CODECS:
    assembler = chunks.Assembler()
    for chunk in chunks.split(payloads.encode(ADDRESS, BATCH, codec), payload_id=bytes(16), chunk_bytes=64):
        whole = assembler.add(*frames.decode(chunk)) or b""
    header, body = payloads.decode(whole, device=ADDRESS.device)
    payloads.to_batch(header, body, activation_shape=[3], n_classes=2, batch_size=8)
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    run = RunFolder(folder / "run", "run1")
    state = CommittedState(
        round=1, plan_version=1, jobs={"ant": JOB}, lists={"ant": (2, 1)}, activation_shapes={"ant": [3]}
    )
    run.checkpoints.commit(state, [("model.safetensors", content_of({"w": torch.zeros(3)}))])
    (kept,) = run.checkpoints.kept()
    kept.check(), kept.state(), kept.tensors()
    device = DeviceFolder(folder / "ant")
    device.save_training(content_of({"w": torch.zeros(3)}))
    device.load_training(lambda content, path: tensors_of(content, where=path))
    device.save_held_out(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
    bundle = write_tiny_bundle(folder / "bundle")
    open_bundle(write_archive(bundle, folder / "one.hsee"))
load_source("digits")
assert not SEEN, SEEN
import pickle
pickle.loads(pickle.dumps(Path))
assert SEEN
print("nothing was unpickled")
"""
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_what_reads_foreign_bytes_unpickles_nothing():
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "nothing was unpickled\n", done.stderr


@pytest.mark.parametrize("room", ["toolkit", "coordinator", "device_agent"])
def test_no_source_names_pickle(room):
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    assert not {alias.name.split(".")[0] for alias in names} & FORBIDDEN, path
                case ast.ImportFrom(module=str(module)):
                    assert module.split(".")[0] not in FORBIDDEN, path
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save")):
                    pytest.fail(f"{path} calls torch.{node.func.attr}")
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                    pytest.fail(f"{path} allows pickled arrays")

"""Boards with different class folders train under one ordered class list, and each label means what its folder says."""

import numpy as np
import pytest
from PIL import Image

from coordinator.fleet.events import RoundClosed
from device_agent.local_data import load_local_data
from tests.numerics.fleet import RUN, TOPICS, Fleet, Member
from toolkit.config import Device, Run
from toolkit.link.memory import MemoryLink
from toolkit.nn.recipe import train_recipe
from toolkit.nn.segment_record import read_record
from toolkit.wire import frames, payloads
from toolkit.wire.chunks import Assembler
from toolkit.wire.messages import Chunk

N_BRIGHT_ROWS = {"ant": 1, "bee": 4, "cat": 7}
"""A picture is known by its bright rows: content and class can be compared without asking anybody."""
SIDE = 8


def draw(folder, classes, *, n, seed):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(n):
            pixels = rng.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
            bright = rng.permutation(SIDE)[: N_BRIGHT_ROWS[name]]
            pixels[bright] = rng.integers(200, 255, (len(bright), SIDE))
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def class_of(picture) -> str:
    n_bright = int((picture[0].mean(1) > 0.5).sum())
    return next(name for name, n in N_BRIGHT_ROWS.items() if n == n_bright)


def member_of(name, cut, folder):
    return Member(name, cut, load_local_data(Device(data=f"folder:{folder}", held_out=0.25)))


class Spy:
    """Listens to what a device sends."""

    def __init__(self, hub, device):
        self.link = MemoryLink(hub, f"spy-{device}")
        self.link.start()
        self.link.subscribe(TOPICS.up(RUN, device))
        self.device = device

    def batches(self, shape):
        assembler = Assembler()
        for event in self.link.poll(0.0):
            if not hasattr(event, "payload"):
                continue
            message, body = frames.decode(event.payload)
            if isinstance(message, Chunk) and (whole := assembler.add(message, body)) is not None:
                header, body = payloads.decode(whole, device=self.device)
                batch = payloads.to_batch(header, body, activation_shape=shape, n_classes=3, batch_size=8)
                yield header, batch


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    members = [
        member_of("dev1", "stem", draw(folder / "one", ["ant", "bee"], n=40, seed=1)),
        member_of("dev2", "layer1", draw(folder / "two", ["bee", "cat"], n=40, seed=2)),
    ]
    settings = Run(
        model="resnet_small",
        model_options={"width": 4},
        rounds=25,
        round_steps=2,
        devices=2,
        batch_size=8,
        exit_head="pooled",
        strategy="sequential",
        lr=0.05,
    )
    with Fleet(folder / "fleet", members, settings) as fleet:
        fleet.spies = {name: Spy(fleet.hub, name) for name in fleet.members}
        fleet.start()
        fleet.run_until(lambda: fleet.coordinator.over)
    return fleet


def test_both_get_the_one_class_list(fleet):
    assert [member.data.train.classes for member in fleet.members.values()] == [
        ("ant", "bee"),
        ("bee", "cat"),
    ]
    assert [job.classes for job in fleet.jobs().values()] == [["ant", "bee", "cat"]] * 2
    assert {job.model.n_classes for job in fleet.jobs().values()} == {3}


def test_every_label_that_is_trained_on_is_its_pictures_class(fleet):
    for name, data in fleet.data().items():
        raw = fleet.members[name].data.train.x
        assert [fleet.jobs()[name].classes[label] for label in data.y] == [class_of(x) for x in raw]


def test_every_label_that_is_sent_is_its_pictures_class(fleet):
    for name, spy in fleet.spies.items():
        member, job = fleet.members[name], fleet.jobs()[name]
        shape = fleet.coordinator._underway.state.activation_shapes[name]
        seen = set()
        for header, batch in spy.batches(shape):
            if header.kind == "eval":
                continue
            recipe = train_recipe(
                seed=job.seed,
                device=name,
                fingerprint=member.data.fingerprint,
                n_train=len(member.data.train),
                batch_size=job.batch_size,
                round_steps=job.round_steps,
                round_=header.round,
                seq=header.seq,
            )
            expected = [class_of(member.data.train.x[index]) for index in recipe.indices]
            assert [job.classes[label] for label in batch.y] == expected
            seen |= set(expected)
        assert seen == set(member.data.train.classes)


def test_what_is_held_out_for_export_counts_in_the_runs_order(fleet):
    for name in fleet.members:
        folder = fleet.path / "devices" / name
        classes = read_record(folder).job.classes
        with np.load(folder / "held_out.npz") as held:
            assert [classes[label] for label in held["y"]] == [class_of(x) for x in held["x"]]


def test_both_learn_on_both_routes(fleet):
    last = [event.report for event in fleet.events if isinstance(event, RoundClosed)][-1]
    for device in last.devices:
        assert device.n_eval == 20
        assert device.exit_accuracy >= 0.9
        assert device.server_accuracy >= 0.9

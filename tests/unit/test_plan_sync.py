"""Weights that travel between rounds: their bytes and their time are a plan's business too."""

import msgspec
import pytest

from coordinator.fleet.planning import sync_of
from tests.unit.boards import FAST_SERVER, board
from toolkit.config import Run
from toolkit.errors import PlanError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, cut_cost, sync_bytes
from toolkit.wire.job import SyncSpec

EVERY_FIFTH = SyncSpec(mode="prefix", every=5)


def heavy(**changes: float):
    """A board on which a deeper segment costs little but weighs much: 1, 10 and 100 thousand parameters."""
    profile = board(step_ms=(2.0, 2.1, 2.2), kb=(64, 64, 64), **changes)
    rows = tuple(
        msgspec.structs.replace(row, n_parameters=n)
        for row, n in zip(profile.cuts, (1_000, 10_000, 100_000), strict=True)
    )
    return msgspec.structs.replace(profile, cuts=rows)


@pytest.mark.parametrize(
    ("sync", "n_bytes"),
    [
        (SyncSpec(), 0),
        (SyncSpec(mode="prefix"), 40_000),
        (SyncSpec(mode="same_cut", every=5), 8_000),
        (SyncSpec(mode="prefix", momentum="average"), 80_000),
        (SyncSpec(mode="prefix", momentum="reset"), 40_000),
        (SyncSpec(mode="prefix", codec="int8+zstd"), 10_000),
    ],
)
def test_what_weighs_is_what_travels(sync: SyncSpec, n_bytes: int):
    assert sync_bytes(heavy().cuts[1], sync) == n_bytes


def test_weights_take_time_both_ways_at_a_rounds_end():
    profile = heavy(up_bytes_per_s=1e6)
    assert profile.link is not None
    slow_down = msgspec.structs.replace(profile.link, down_bytes_per_s=2e6)
    device = DeviceInput(
        name="a", profile=msgspec.structs.replace(profile, link=slow_down), n_batches=10, sync=EVERY_FIFTH
    )
    row = profile.cuts[2]
    alone, shared = (
        cut_cost(d, row, depth=2, batch_size=32, server_ms=0.0, objective="bytes")
        for d in (DeviceInput(name="a", profile=device.profile, n_batches=10), device)
    )
    # 80 KB up at 1 MB/s and down at 2 MB/s.
    assert shared.device_ms - alone.device_ms == pytest.approx(80 + 40)
    assert shared.sync_bytes == shared.round_bytes - alone.round_bytes == 160_000
    assert shared.price - alone.price == 160_000


def test_a_deep_segment_that_travels_often_is_cut_shallower():
    profile = heavy(up_bytes_per_s=1e9)
    wishes = {"server": FAST_SERVER, "objective": "bytes", "slack": 0.0}
    deep = choose_cuts([DeviceInput(name="a", profile=profile, n_batches=2)], **wishes)
    often = SyncSpec(mode="prefix")
    shallow = choose_cuts([DeviceInput(name="a", profile=profile, n_batches=2, sync=often)], **wishes)
    assert deep.cuts == {"a": "layer3"}
    assert shallow.cuts == {"a": "layer1"}
    assert shallow.devices[0].sync_bytes == 8_000
    assert shallow.round_bytes == 2 * shallow.devices[0].batch_bytes + 8_000


def test_the_runs_settings_say_how_it_is_synchronised():
    assert sync_of(Run(client_sync="prefix", sync_every=5, sync_codec="int8")) == SyncSpec(
        mode="prefix", every=5, codec="int8"
    )
    with pytest.raises(PlanError, match="no codec 'int4'"):
        DeviceInput(name="a", profile=heavy(), n_batches=1, sync=SyncSpec(mode="prefix", codec="int4"))

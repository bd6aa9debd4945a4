"""The way to the broker, measured through real ones: what is found, what is left behind, what is said when it goes."""

import threading

import pytest

from tests.mosquitto import Mosquitto, free_port
from tests.served_broker import ServedBroker
from tests.slow_link import Shape, SlowLink
from toolkit.errors import BrokerError, BrokerLostError, BrokerUnreachableError
from toolkit.link.base import BrokerAddress, Received
from toolkit.link.connect import make_link
from toolkit.profile.link_apart import measure_apart
from toolkit.profile.measure_link import LinkMeasurement, LinkPace, Load
from toolkit.profile.schema import Limits

TOPIC = "hsee/v1/home/check/kitchen"
LOADS = [Load("deep", (32, 16), 8), Load("stem", (16, 64), 128), Load("twin", (16, 64), 128)]
MOST_TRIES = 3
"""Of a measurement that a machine which stands still for a moment makes too low, never too high."""
BRIEF = LinkPace(stream_s=0.05, n_small=5, n_round_trips=2, n_down=2, transfer_s=60.0)


def measurement(address: BrokerAddress, *, topic: str = TOPIC, client: str = "kitchen") -> LinkMeasurement:
    link = make_link(address, client_id=client, will=(topic, b""))
    return LinkMeasurement(link, topic=topic, name=str(address), pace=BRIEF)


def retained(address: BrokerAddress) -> list[bytes]:
    """What a subscriber finds on the topic, before an answer to its own word."""
    link = make_link(address, client_id="onlooker", will=("hsee/v1/home/check/onlooker", b""))
    link.start()
    try:
        link_events = []
        for _ in range(500):
            link_events += link.poll(0.01)
            if link_events:
                break
        link.subscribe(TOPIC)
        link.publish(TOPIC, b"that was all")
        got: list[bytes] = []
        for _ in range(500):
            got += [event.payload for event in link.poll(0.01) if isinstance(event, Received)]
            if b"that was all" in got:
                break
        return got
    finally:
        link.close()


@pytest.fixture
def no_link_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still makes a link look slow, over which only what is small goes whole."""
    monkeypatch.setattr("toolkit.profile.measure_link.MOST_UP_S", 1e6)


@pytest.mark.usefixtures("no_link_is_slow")
@pytest.mark.needs_mosquitto
def test_real_chunks_go_up_and_come_back_whole(mosquitto: Mosquitto):
    link = measurement(mosquitto.address).run(LOADS)
    assert (link.provenance, link.codec, link.tls) == ("measured", "float32", False)
    assert 0 < link.rtt_ms <= link.rtt_ms_p95
    small, large = link.transfers
    assert (small.n_chunks, large.n_chunks) == (1, 3)
    # 128 samples of 1024 float32 and their labels, and not much more.
    assert 525_312 <= large.payload_bytes < 527_000
    assert [(t.n_sent, t.n_lost) for t in link.transfers] == [(2, 0), (2, 0)]
    assert all(t.send_ms > 0 and t.round_trip_ms_p50 > 0 for t in link.transfers)
    assert retained(mosquitto.address) == [b"that was all"]


def test_the_embedded_broker_is_measured_with_its_accounts(embedded_broker, accounts):
    address = embedded_broker.address.with_login("dev1", accounts["dev1"])
    link = measurement(address, topic="hsee/v1/home/check/dev1", client="dev1").run(LOADS[:1])
    assert link.down_bytes_per_s > 0
    assert link.transfers[0].n_lost == 0


def test_nobody_there_is_told_at_once():
    address = BrokerAddress(host="127.0.0.1", port=free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.profile.measure_link.CONNECT_S", 0.2)
        with pytest.raises(BrokerUnreachableError):
            measurement(address).run(LOADS)


@pytest.mark.needs_mosquitto
def test_a_broker_that_goes_away_in_the_middle_leaves_what_was_found(mosquitto: Mosquitto):
    made = measurement(mosquitto.address)
    stop = threading.Event()

    def kill_once_it_has_begun() -> None:
        # The round trips come last: until then there is a link to keep.
        while made.found() is None and not stop.is_set():
            stop.wait(0.001)
        mosquitto.kill()

    made._pace = LinkPace(stream_s=0.05, n_small=5, n_round_trips=100_000, n_down=2, transfer_s=60.0)
    killer = threading.Thread(target=kill_once_it_has_begun)
    killer.start()
    try:
        with pytest.raises(BrokerLostError, match="went away while it was measured"):
            made.run(LOADS)
    finally:
        stop.set()
        killer.join()
    found = made.found()
    assert found is not None
    assert [t.n_sent for t in found.transfers] != []


@pytest.mark.needs_mosquitto
def test_a_slow_link_is_measured_as_slow_as_it_is(mosquitto: Mosquitto):
    shape = Shape(up_bytes_per_s=300_000, down_bytes_per_s=600_000, delay_s=0.03)
    for _ in range(MOST_TRIES):
        with SlowLink(mosquitto.address, shape) as slow:
            made = measurement(slow.address)
            made._pace = LinkPace(stream_s=1.0, n_small=5, n_round_trips=2, n_down=3, transfer_s=2.0)
            link = made.run([LOADS[0], Load("stem", (16, 16), 128)])
        if (
            link.up_bytes_per_s > 0.5 * shape.up_bytes_per_s
            and link.down_bytes_per_s > 0.4 * shape.down_bytes_per_s
        ):
            break
    # Hardly faster than it is; slower by acknowledgements, a round trip for each stream, and a busy machine.
    assert 0.5 * shape.up_bytes_per_s < link.up_bytes_per_s < 1.2 * shape.up_bytes_per_s
    assert 0.4 * shape.down_bytes_per_s < link.down_bytes_per_s < 1.2 * shape.down_bytes_per_s
    assert 60 <= link.rtt_ms <= link.rtt_ms_p95
    small, large = link.transfers
    assert 132_000 < large.payload_bytes < 134_000
    assert large.round_trip_ms_p50 > large.payload_bytes / 1.2 / shape.up_bytes_per_s * 1e3
    assert large.n_lost == 0
    # A slow link is not filled with megabytes that take it minutes.
    assert slow.n_up_bytes < 5_000_000
    # A plan counts with what a cut would send.
    assert link.upload_ms(525_000) == pytest.approx(525_000 / link.up_bytes_per_s * 1e3)
    assert link.upload_ms(small.payload_bytes) < link.upload_ms(large.payload_bytes)


@pytest.mark.needs_mosquitto
def test_a_payload_too_large_for_its_link_is_begun_to_learn_the_rate(mosquitto: Mosquitto):
    shape = Shape(up_bytes_per_s=100_000, down_bytes_per_s=400_000)
    for _ in range(MOST_TRIES):
        with SlowLink(mosquitto.address, shape) as slow, pytest.MonkeyPatch.context() as patch:
            patch.setattr("toolkit.profile.measure_link.MOST_UP_S", 1.0)
            link = measurement(slow.address).run(LOADS[1:2])
        (begun,) = link.transfers
        if begun.up_bytes_per_s > 40_000:
            break
    assert begun.payload_bytes < 200_000
    assert begun.n_sent == 0
    assert 40_000 < begun.up_bytes_per_s < 130_000


@pytest.mark.needs_mosquitto
def test_a_connection_that_breaks_under_way_is_told_as_lost(mosquitto: Mosquitto):
    with SlowLink(mosquitto.address, Shape(up_bytes_per_s=400_000, down_bytes_per_s=400_000)) as slow:
        made = measurement(slow.address)
        stop = threading.Event()

        def cut_in_the_middle() -> None:
            while slow.n_up_bytes < 100_000 and not stop.is_set():
                stop.wait(0.001)
            slow.cut()

        cutter = threading.Thread(target=cut_in_the_middle)
        cutter.start()
        try:
            with pytest.raises(BrokerLostError, match="went away while it was measured"):
                made.run(LOADS)
        finally:
            stop.set()
            cutter.join()
    assert made.found() is None


@pytest.mark.needs_mosquitto
@pytest.mark.usefixtures("no_link_is_slow")
def test_tls_and_an_account_are_measured_on_the_accounts_own_topic(tmp_path):
    served = ServedBroker(tmp_path / "broker", ["dev1", "dev2"])
    served.start()
    try:
        address = served.folder.login("dev1")
        link = make_link(address, client_id="dev1", will=(served.topics.check("dev1"), b""))
        topic = served.topics.check("dev1")
        made = LinkMeasurement(link, topic=topic, name=str(address), tls=address.tls, pace=BRIEF).run(LOADS)
        assert made.tls
        assert made.name.startswith("mqtts://")
        assert [t.n_lost for t in made.transfers] == [0, 0]
        # Its neighbour's topic is closed to it: what it sends there never comes back.
        theirs = served.topics.check("dev2")
        link = make_link(address, client_id="dev1", will=(topic, b""))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("toolkit.profile.measure_link.SILENCE_S", 0.2)
            with pytest.raises(BrokerError):
                LinkMeasurement(link, topic=theirs, name=str(address), pace=BRIEF).run(LOADS[:1])
    finally:
        served.stop()


@pytest.mark.needs_mosquitto
def test_an_account_without_the_right_to_receive_is_named(tmp_path):
    (tmp_path / "acl").write_text(f"topic write {TOPIC}\n")
    broker = Mosquitto(tmp_path, settings=f"acl_file {tmp_path / 'acl'}")
    broker.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("toolkit.profile.measure_link.SILENCE_S", 1.5)
            with pytest.raises(BrokerError, match=r"took messages on .* and delivered none"):
                measurement(broker.address).run(LOADS[:1])
    finally:
        broker.kill()


@pytest.mark.needs_mosquitto
def test_an_emulated_board_sends_at_its_own_cost(mosquitto: Mosquitto):
    def cpu_ms(limits: Limits | None) -> float:
        outcome = measure_apart(lambda: measurement(mosquitto.address), LOADS[:1], limits=limits)
        assert outcome.link is not None, outcome.failed
        return outcome.link.transfers[0].send_ms

    # Room for what this process holds already: it has run other tests, and the fork counts as much.
    assert cpu_ms(Limits(cpu_percent=10, memory_mb=8192)) > 3 * min(cpu_ms(None) for _ in range(3))


def test_what_goes_wrong_in_the_fork_is_told_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.profile.measure_link.CONNECT_S", 0.2)
        address = BrokerAddress(host="127.0.0.1", port=free_port())
        outcome = measure_apart(lambda: measurement(address), [], limits=None)
    assert outcome.link is None
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1"):
        raise outcome.error()

"""The desk beside a real run: what it knows of devices, what its socket answers, and that nobody can slow the run."""

import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.events import RoundClosed
from coordinator.watching import local_socket
from coordinator.watching.ask import ANSWER_S, ask_log, ask_status, dismiss, is_answering
from coordinator.watching.desk import Desk
from coordinator.watching.fleet_view import SILENT_S
from coordinator.watching.history import HISTORY_FILE, History
from coordinator.watching.local_socket import (
    MAX_CLIENTS,
    MAX_QUESTION_BYTES,
    SOCKET_FILE,
    STALL_S,
    AskLog,
    AskStatus,
    short_path,
)
from device_agent.telemetry import BoardReading, Reporter
from tests.integration.test_coordinator import SETTINGS, is_over, member
from tests.numerics.fleet import RUN, SWEEP_S, TOPICS, Fleet
from toolkit.errors import RunError
from toolkit.wire.words import DeviceWord, encode_word

CAP_S = 30.0


class Watched(Fleet):
    """A fleet whose coordinator has a desk and whose agents report."""

    def __init__(self, folder, members, settings):
        self.warnings = []
        self.reporters = {}
        self.n_heard = 0
        self.pool = ThreadPoolExecutor()
        self.desk = Desk(
            folder / "run",
            topics=TOPICS,
            broker="memory",
            warn=self.warnings.append,
            clock=lambda: self.clock.now,
            wall_clock=lambda: 1e9 + self.clock.now,
        )
        super().__init__(folder, members, settings, services=self.desk.services)
        self.desk.open(self.coordinator)

    def sweep(self):
        super().sweep()
        for event in self.events[self.n_heard :]:
            self.desk.hear(event)
        self.n_heard = len(self.events)
        for name, one in self.members.items():
            if one.agent is None:
                self.reporters.pop(name, None)
                continue
            if name not in self.reporters:
                self.reporters[name] = Reporter(
                    one.agent._link,
                    topics=TOPICS,
                    device=name,
                    boot_nonce=b"\1" * 16,
                    read_board=lambda: BoardReading(61.5, ("hot",), 3, 4, 0.5),
                    clock=self.clock,
                    wall_clock=lambda: 5.0,  # a board whose clock is wrong
                )
            self.reporters[name].tick(one.agent)

    def ask(self, question, *values):
        """Ask on the socket while the run goes on."""
        return self.answered(self.pool.submit(question, self.path / "run", *values))

    def answered(self, future):
        """What another thread comes to while the run goes on, whose clock does not outrun that thread."""
        while not future.done():
            self.sweep()
            time.sleep(SWEEP_S)
        return future.result()

    def status(self):
        """The answer on the socket, its devices by name."""
        told = self.ask(ask_status)
        return told, {device.device: device for device in told.devices}

    def raw(self):
        """A client that can do anything."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CAP_S)
        with short_path(self.path / "run" / SOCKET_FILE) as name:
            client.connect(name)
        return client

    def close_coordinator(self):
        self.coordinator.close()
        self.coordinator.close = lambda: None  # nobody may close it twice

    def sweeps(self, n=5):
        for _ in range(n):
            self.sweep()


@pytest.fixture
def make_fleet(tmp_path):
    opened = []

    def make(folder=tmp_path, **changes):
        settings = msgspec.structs.replace(SETTINGS, **changes)
        fleet = Watched(folder, (member("ant"), member("bee", cut="hidden2")), settings)
        opened.append(fleet)
        return fleet

    yield make
    for fleet in opened:
        fleet.__exit__()
        fleet.pool.shutdown()


def rounds(fleet):
    return [event.report.round for event in fleet.events if isinstance(event, RoundClosed)]


def test_while_it_gathers_it_says_what_it_waits_for(make_fleet):
    fleet = make_fleet()
    fleet.start("ant")
    fleet.run_until(lambda: fleet.events and fleet.events[-1].ready == ("ant",))
    fleet.run_until(lambda: fleet.status()[1]["ant"].phase == "joined")
    told, devices = fleet.status()
    assert (told.status, told.n_ready, told.n_expected, told.is_live) == ("waiting", 1, 2, True)
    assert 0 < told.left_s <= SETTINGS.wait_s
    assert (devices["ant"].state, devices["ant"].phase) == ("online", "joined")


def test_it_says_how_every_device_stands(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 2)
    fleet.run_until(lambda: fleet.status()[1]["ant"].phase == "training")
    told, devices = fleet.status()
    assert (told.run, told.fleet, told.status, told.rounds) == (RUN, "test", "training", 500)
    assert told.round >= 3
    assert told.is_good
    ant = devices["ant"]
    assert (ant.state, ant.cut, ant.phase) == ("online", "hidden1", "training")
    assert (ant.temperature_c, ant.throttled, ant.load) == (61.5, ["hot"], 0.5)
    assert ant.last_seen_s < 1
    assert ant.n_owed > 0
    assert ant.exit_accuracy is not None
    assert ant.server_accuracy is not None
    assert ant.software.startswith("hsee ")
    fleet.reporters["bee"].line("no room on the disk", "error")
    fleet.run_until(lambda: fleet.status()[1]["bee"].last_error)
    assert fleet.status()[1]["bee"].last_error == "no room on the disk"


def test_a_last_will_and_a_goodbye_are_told_apart(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    fleet.stop("ant")
    bee = fleet.members["bee"]
    fleet.hub.drop(bee.agent._link)
    word = DeviceWord("offline", bee.agent._session.boot_nonce.hex())
    fleet.hub.publish(TOPICS.device_state("bee"), encode_word(word), retain=True)
    bee.folder.close()
    bee.agent = None
    fleet.sweeps()
    told, devices = fleet.status()
    assert {name: device.state for name, device in devices.items()} == {"ant": "left", "bee": "offline"}
    assert not told.is_good


def test_a_lost_broker_is_told(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    fleet.hub.stop()
    fleet.sweeps()
    told, _ = fleet.status()
    assert (told.is_connected, told.is_good) == (False, False)
    fleet.hub.start()
    fleet.run_until(lambda: fleet.status()[0].is_good)


def test_a_device_that_was_thrown_out_is_waited_for_no_longer(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    hung = fleet.members["bee"].agent
    fleet.members["bee"].agent = None
    assert fleet.ask(dismiss, "bee") is True
    assert fleet.status()[1]["bee"].state == "left"
    reached = len(rounds(fleet))
    fleet.run_until(lambda: len(rounds(fleet)) > reached + 1)
    assert fleet.ask(dismiss, "nobody") is False
    fleet.members["bee"].agent = hung


def test_connected_but_not_heard_is_silent(make_fleet):
    fleet = make_fleet(rounds=500, round_deadline_s=1e6)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    frozen = fleet.members["bee"].agent
    fleet.members["bee"].agent = None
    fleet.clock.now += SILENT_S
    fleet.sweeps()  # the other one reports
    _, devices = fleet.status()
    fleet.members["bee"].agent = frozen
    assert (devices["bee"].state, devices["ant"].state) == ("silent", "online")
    assert devices["bee"].last_seen_s >= SILENT_S
    fleet.run_until(lambda: fleet.status()[1]["bee"].state == "online")


def test_the_log_holds_both_sides_and_can_be_followed_to_the_end(make_fleet):
    fleet = make_fleet()
    fleet.sweeps()  # the socket listens
    everything = fleet.pool.submit(lambda: list(ask_log(fleet.path / "run", AskLog(follow=True))))
    of_bee = fleet.pool.submit(lambda: list(ask_log(fleet.path / "run", AskLog(device="bee", follow=True))))
    while sum(client.is_answered for client in fleet.desk._socket._clients) < 2:
        fleet.sweep()
        time.sleep(SWEEP_S)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    fleet.reporters["bee"].line("hello from bee")
    fleet.run_until(is_over(fleet))
    fleet.sweeps()
    fleet.close_coordinator()
    entries = everything.result(CAP_S)
    assert [e.number for e in entries] == sorted({e.number for e in entries})
    texts = [(e.device, e.text) for e in entries]
    assert ("bee", "hello from bee") in texts
    assert ("", "finished: All 3 rounds are done.") in texts
    assert all(e.at > 1e9 for e in entries)  # by this machine's clock
    assert {e.device for e in of_bee.result(CAP_S)} == {"bee"}
    assert not (fleet.path / "run" / SOCKET_FILE).exists()
    assert ask_status(fleet.path / "run") is None
    assert list(ask_log(fleet.path / "run", AskLog())) == []
    assert dismiss(fleet.path / "run", "bee") is False


def test_the_newest_lines_come_first_of_all(make_fleet):
    fleet = make_fleet()
    fleet.sweeps()  # it has said what it waits for
    for number in range(20):
        fleet.desk.log.add(str(number))
    newest = fleet.ask(lambda folder: list(ask_log(folder, AskLog(n=3))))
    assert [entry.text for entry in newest] == ["17", "18", "19"]
    assert fleet.ask(lambda folder: list(ask_log(folder, AskLog(n=0)))) == []
    assert fleet.ask(lambda folder: list(ask_log(folder, AskLog(device="nobody")))) == []


def test_after_the_run_its_history_is_what_the_folder_holds(make_fleet):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(is_over(fleet))
    fleet.sweeps()
    fleet.close_coordinator()
    with History(fleet.path / HISTORY_FILE) as kept, History.of_folder(fleet.path / "run") as read:
        assert kept.is_complete(fleet.path / "run")
        assert kept.metrics(RUN) == read.metrics(RUN)
        assert {m.round for m in kept.metrics(RUN)} == {1, 2, 3}
        kinds = [event.kind for event in kept.events(RUN)]
        assert kinds[0] == "term"
        assert kinds[-1] == "ended"
        assert kinds.count("round") == 3
        assert kinds.count("plan") == 2
        seen = kept.seen()
    assert set(seen) == {"ant", "bee"}
    assert seen["ant"].status.cut == "hidden1"
    assert 1e9 < seen["ant"].at <= 1e9 + fleet.clock.now
    assert fleet.warnings == []


def test_only_its_owner_may_ask(make_fleet):
    fleet = make_fleet()
    mode = (fleet.path / "run" / SOCKET_FILE).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b'{"ask":"weights"}\n', b'{"ask":"log","n":"all"}\n', b"\xff\n", b"[" * 4000 + b"\n"],
    ids=lambda line: str(line[:20]),
)
def test_what_is_no_question_is_answered_so(make_fleet, line):
    fleet = make_fleet()
    with fleet.raw() as client:
        client.sendall(line)
        answer = fleet.answered(fleet.pool.submit(lambda: client.makefile("rb").read()))
    assert answer.startswith(b'{"error":"This is no question: ')


def test_a_question_without_an_end_is_none(make_fleet):
    fleet = make_fleet()
    with fleet.raw() as client:
        client.sendall(b" " * (MAX_QUESTION_BYTES + 1))
        answer = fleet.answered(fleet.pool.submit(lambda: client.makefile("rb").read()))
    assert answer.startswith(b'{"error"')


def test_a_question_may_come_in_pieces(make_fleet):
    fleet = make_fleet()
    with fleet.raw() as client:
        for byte in msgspec.json.encode(AskStatus()) + b"\n":
            client.sendall(bytes([byte]))
            fleet.sweep()
        answer = fleet.answered(fleet.pool.submit(lambda: client.makefile("rb").readline()))
    assert msgspec.json.decode(answer)["run"] == RUN


def test_who_asks_nothing_is_cut_off_after_a_while(make_fleet):
    fleet = make_fleet(wait_s=1e6)
    with fleet.raw() as client:
        fleet.sweeps()
        fleet.clock.now += STALL_S / 2
        fleet.sweeps()
        assert fleet.desk._socket.n_cut_off == 0
        fleet.clock.now += STALL_S
        fleet.sweeps()
        assert client.recv(1) == b""
    assert fleet.desk._socket.n_cut_off == 1


def test_a_follower_that_does_not_read_is_cut_off_and_the_run_goes_on(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    with fleet.raw() as client:
        client.sendall(msgspec.json.encode(AskLog(follow=True)) + b"\n")
        fleet.sweeps()
        for _ in range(100):
            for _ in range(400):
                fleet.desk.log.add("x" * 500)
            fleet.sweep()
            if fleet.desk._socket.n_cut_off:
                break
        assert fleet.desk._socket.n_cut_off == 1
        assert fleet.desk._socket._clients == []
        before = len(rounds(fleet))
        fleet.run_until(lambda: len(rounds(fleet)) > before)


def test_a_follower_that_leaves_is_forgotten(make_fleet):
    fleet = make_fleet()
    client = fleet.raw()
    client.sendall(msgspec.json.encode(AskLog(follow=True)) + b"\n")
    fleet.sweeps()
    assert len(fleet.desk._socket._clients) == 1
    client.close()
    fleet.sweeps()
    assert fleet.desk._socket._clients == []
    assert fleet.desk._socket.n_cut_off == 0


def test_more_clients_than_there_is_room_for_are_turned_away(make_fleet):
    fleet = make_fleet()
    clients = []
    for _ in range(MAX_CLIENTS + 3):
        clients.append(fleet.raw())
        fleet.sweep()
    assert len(fleet.desk._socket._clients) == MAX_CLIENTS
    assert clients[-1].recv(1) == b""
    for client in clients:
        client.close()
    fleet.sweeps()
    assert fleet.status()[0].run == RUN


def test_a_socket_left_by_a_killed_coordinator_is_replaced(tmp_path, make_fleet):
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead, short_path(tmp_path / "run" / SOCKET_FILE) as name:
        dead.bind(name)
    assert not is_answering(tmp_path / "run")
    assert ask_status(tmp_path / "run") is None
    fleet = make_fleet()
    assert fleet.status()[0].run == RUN


def test_a_folder_deeper_than_a_socket_s_address_is_long(tmp_path, make_fleet):
    folder = tmp_path.joinpath(*["a-long-name-of-a-folder"] * 8)
    folder.mkdir(parents=True)
    assert len(str(folder)) > 150
    fleet = make_fleet(folder)
    assert fleet.status()[0].run == RUN


def test_a_coordinator_that_is_busy_for_too_long_is_told(make_fleet, monkeypatch):
    assert ANSWER_S >= 10
    fleet = make_fleet()
    monkeypatch.setattr("coordinator.watching.ask.ANSWER_S", 0.05)
    with pytest.raises(RunError, match=r"runs, but has not answered for 0\.05 s"):
        ask_status(fleet.path / "run")


def test_where_no_socket_can_be_made_the_run_goes_on_and_says_so(make_fleet, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no sockets here")

    monkeypatch.setattr(local_socket.socket, "socket", refuse)
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(is_over(fleet))
    assert len(fleet.warnings) == 1
    assert fleet.warnings[0].startswith("Commands can't ask this coordinator: no socket can be made in ")


def test_a_socket_whose_name_can_t_be_removed_does_not_hold_up_the_end(make_fleet):
    """As on a disk that has turned read-only: the error that ended the run is the one that is told."""
    fleet = make_fleet()
    fleet.desk._socket._path = Path("/proc/version")  # no name that anybody can remove
    fleet.coordinator.close()


def test_a_history_that_can_t_be_written_is_kept_in_memory(tmp_path, make_fleet):
    (tmp_path / HISTORY_FILE).mkdir()
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(is_over(fleet))
    assert len(fleet.warnings) == 1
    assert fleet.warnings[0].endswith("It is kept in memory only.")


def test_hostile_telemetry_is_refused_counted_and_shown_nowhere(make_fleet):
    fleet = make_fleet(rounds=500)
    fleet.start()
    fleet.run_until(lambda: len(rounds(fleet)) >= 1)
    link = fleet.members["ant"].agent._link
    before = fleet.coordinator.n_refused_messages
    for payload in (b"", b"null", b"{}", b"x" * 5000):
        link.publish(TOPICS.device_telemetry("ant"), payload)
        link.publish(TOPICS.device_log("ant"), payload)
    fleet.sweeps(50)
    told, devices = fleet.status()
    assert told.n_refused == before + 8
    assert devices["ant"].state == "online"

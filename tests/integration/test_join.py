"""Row T7, and T4 before a board has an account: join tokens as an operator and a board meet them, on a real Mosquitto."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Hsee, Running, wait_until
from tests.mosquitto import find_mosquitto
from tests.served_broker import ServedBroker
from toolkit.access import authority, join_window
from toolkit.access.accounts import grants_of
from toolkit.access.dynamic_security import DynamicSecurity
from toolkit.access.join_window import JoinWindow, open_window
from toolkit.access.joining import join_fleet
from toolkit.access.probe import Probe
from toolkit.access.tokens import Token, digest_of, draw_token
from toolkit.errors import BrokerError, BrokerLoginError, BrokerTlsError, UsageError
from toolkit.link.broker import generate_password
from toolkit.wire.joining import JoinAsk, JoinDone, encode_joining, read_answer

pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
NONCE, OTHER_NONCE = "0" * 32, "1" * 32


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[ServedBroker]:
    broker = ServedBroker(tmp_path_factory.mktemp("join") / "broker", ["dev1"])
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def board(tmp_path) -> Iterator[Hsee]:
    """Processes on a board of its own."""
    (tmp_path / "board").mkdir()
    started = Hsee(tmp_path / "board")
    yield started
    started.kill_all()


@pytest.fixture
def desk(served) -> Iterator[Hsee]:
    """Processes on the operator's machine, beside the broker's folder."""
    started = Hsee(served.folder.path.parent)
    yield started
    started.kill_all()


def accounts(served: ServedBroker) -> list[str]:
    with served.probe("op-admin") as probe:
        return DynamicSecurity(probe, served.topics).accounts()


def invite(desk: Hsee, *words: object) -> tuple[Running, dict[str, list[str]], dict[str, str]]:
    """Open a window; returns it, the words of each board's line, and each one's secret."""
    window = desk.start("broker", "invite", *words, "--json")
    devices = [word for word in words if str(word).startswith("new")]
    wait_until(
        lambda: len(window.events) >= len(devices) or window.process.poll() is not None, window.describe
    )
    told = window.events[: len(devices)]
    assert [event.get("event") for event in told] == ["invited"] * len(devices), window.describe()
    assert all("secret" not in event for event in told), "nobody watches a terminal"
    for event in told:
        assert stat.S_IMODE(Path(event["secret_file"]).stat().st_mode) == 0o600
    return (
        window,
        {event["device"]: event["line"].split() for event in told},
        {event["device"]: Path(event["secret_file"]).read_text() for event in told},
    )


def paste(board: Hsee, line: list[str], secret: str) -> Running:
    """Run the pasted line, with the secret on standard input."""
    assert line[0] == "hsee"
    (board.folder / "typed").write_text(secret)
    joining = board.start(*line[1:], stdin=board.folder / "typed")
    joining.end()
    return joining


def texts_under(folder: Path) -> dict[Path, str]:
    return {path: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


def test_a_pasted_line_makes_the_folder_that_user_add_makes(served, desk, board):
    window, lines, secrets = invite(desk, "new1")
    with served.probe("op-admin") as spy:
        # An operator may hear all of the fleet, and even so learns no password.
        spy.subscribe("#", served.topics.everything)
        assert spy.fence(served.topics.check("op-admin"))
        joined = paste(board, lines["new1"], secrets["new1"])
        assert joined.end() == 0, joined.describe() + window.describe()
        assert window.end() == 0, window.describe()
        assert spy.fence(served.topics.check("op-admin"))
        heard = b"\n".join(message.payload for message in spy.received)
    assert json.loads(window.out.splitlines()[-1]) == {"success": True, "joined": ["new1"]}
    folder = board.folder / "new1"
    served.folder.write_account("twin", "x")
    for name in ("hsee.toml", "password", "ca.pem"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    twin = served.folder.account_folder("twin")
    assert (folder / "ca.pem").read_bytes() == (twin / "ca.pem").read_bytes()
    assert (folder / "hsee.toml").read_text() == (twin / "hsee.toml").read_text().replace("twin", "new1")
    served.folder.remove_account("twin")
    assert accounts(served) == ["dev1", "new1", "op-admin"], "the token and the window's account are gone"

    # T7: used twice.
    (folder / "hsee.toml").rename(board.folder / "away.toml")
    again = paste(board, [*lines["new1"], "--folder", "elsewhere"], secrets["new1"])
    assert again.end() == 4, again.describe()
    assert "used up" in again.err
    assert not (board.folder / "elsewhere").exists()
    (board.folder / "away.toml").rename(folder / "hsee.toml")

    password = (folder / "password").read_text().strip()
    assert password.encode() not in heard
    assert secrets["new1"].strip().encode() not in heard
    for secret in (password, secrets["new1"].strip(), secrets["new1"].strip().replace("-", "")):
        said = joined.out + joined.err + window.out + window.err + again.out + again.err + served.log
        assert secret not in said
        held = [path for path, text in texts_under(served.folder.path).items() if secret in text]
        assert held == [], "nothing of it stays on the operator's machine"
    holders = [path.name for path, text in texts_under(board.folder).items() if password in text]
    assert holders == ["password"]

    # The account is a whole one: the production check passes with it, and revocation ends it.
    at_board = Hsee(folder)
    checked = at_board.run("broker", "check")
    assert checked.end() == 0, checked.describe()
    login = served.folder.login("dev1").with_login("new1", password)
    with Probe(login) as probe:
        removed = desk.run("broker", "user", "remove", "new1", "--yes")
        assert removed.end() == 0, removed.describe()
        assert probe.wait_until(lambda: not probe.is_connected, 10.0)


def test_two_boards_by_one_window_and_the_operator_stays_free(desk, board):
    window, lines, secrets = invite(desk, "new1", "new2")
    listed = desk.run("broker", "user", "list", "--json")
    kinds = [entry["kind"] for entry in json.loads(listed.out)["accounts"]]
    assert sorted(kinds) == ["device", "join token", "join token", "join window", "operator"]
    assert {e["grants"] for e in json.loads(listed.out)["accounts"]} == {"as it should be"}
    for device in ("new2", "new1"):
        assert paste(board, lines[device], secrets[device]).end() == 0
    assert window.end() == 0, window.describe()
    assert desk.run("broker", "user", "remove", "new1", "new2", "--yes").end() == 0


def test_late_and_left_over_tokens_are_refused(served, desk, board):
    window, lines, secrets = invite(desk, "new1", "--minutes", "0.1")
    assert window.end() == 5, window.describe()
    late = paste(board, lines["new1"], secrets["new1"])
    assert (late.end(), "lapsed" in late.err) == (4, True), late.describe()
    assert "Traceback" not in late.err
    assert accounts(served) == ["dev1", "op-admin"]
    assert not (served.folder.path / "invites").exists()

    killed, lines, secrets = invite(desk, "new1", "--minutes", "0.1")
    killed.kill()
    # Its token is still let in, and nobody is there to answer: that gives no account.
    login = served.folder.login("dev1")
    with pytest.raises(BrokerError, match="Nobody answered"):
        join(served, line=lines["new1"], secret=secrets["new1"], ask_for_s=0.2, folder=board.folder / "new1")
    wait_until(lambda: time.time() > int(lines["new1"][lines["new1"].index("--token") + 1][:8], 16), str)
    with open_window(login.with_login("op-admin", password_of(served)), served.topics, ["new1"], lasts_s=60):
        assert len([name for name in accounts(served) if name.startswith("join-")]) == 2, "the old are gone"
    assert accounts(served) == ["dev1", "op-admin"]


def password_of(served: ServedBroker) -> str:
    return (served.folder.account_folder("op-admin") / "password").read_text().strip()


def join(served: ServedBroker, *, line: list[str], secret: str, **options) -> bool:
    return join_fleet(
        served.folder.login("dev1").with_login("", ""),
        served.topics,
        device=line[3],
        token=line[line.index("--token") + 1],
        secret=secret,
        authority=line[line.index("--authority") + 1],
        **options,
    )


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def opened(served) -> Iterator[tuple[JoinWindow, Token, Clock]]:
    """A window in this process, whose time stands still."""
    clock = Clock()
    operator = served.folder.login("op-admin")
    with open_window(operator, served.topics, ["new1"], lasts_s=900, clock=clock) as window:
        window._control.accounts()  # answered on the same connection, once the broker has its subscription
        yield window, window.tokens[0], clock
    with served.probe("op-admin") as probe:
        control = DynamicSecurity(probe, served.topics)
        if "new1" in control.accounts():
            control.remove("new1")


def as_token(served: ServedBroker, token: Token) -> Probe:
    probe = Probe(served.folder.login("dev1").with_login(token.account, token.secret))
    probe.subscribe(served.topics.join_answer(token.id))
    return probe


def say(served: ServedBroker, probe: Probe, token: Token, message) -> None:
    probe.publish(served.topics.join_request(token.id), encode_joining(message))


def wait_for(window: JoinWindow, outcome: str) -> None:
    seen: list[str] = []

    def has_come() -> bool:
        seen.extend(event.outcome for event in window.poll(0.1))
        return outcome in seen

    wait_until(has_come, lambda: f"{outcome} never came: {seen}", 10)


def answers(probe: Probe) -> list:
    return [read_answer(message.payload) for message in probe.received]


def test_a_second_board_with_the_token_is_refused_in_words(served, opened):
    window, token, _ = opened
    with as_token(served, token) as probe:
        probe.publish(served.topics.join_request(token.id), b"\xff{")
        say(served, probe, token, JoinDone(NONCE))
        say(served, probe, token, JoinAsk(NONCE))
        say(served, probe, token, JoinAsk(NONCE))
        say(served, probe, token, JoinAsk(OTHER_NONCE))
        wait_for(window, "asked twice")
        assert probe.wait_until(lambda: len(answers(probe)) == 3, 10)
        first, again, refusal = answers(probe)
        assert first == again, "a question doubled on its way has one answer"
        assert (refusal.nonce, "Another board" in refusal.message) == (OTHER_NONCE, True)
        say(served, probe, token, JoinDone(OTHER_NONCE))
        say(served, probe, token, JoinDone(NONCE))
        wait_for(window, "joined")
        assert probe.wait_until(lambda: not probe.is_connected, 10.0), "the token outlives its use"
    assert window.is_over


def test_an_account_that_nobody_confirmed_is_taken_back(served, opened):
    window, token, clock = opened
    with as_token(served, token) as probe:
        say(served, probe, token, JoinAsk(NONCE))
        wait_until(lambda: window.poll(0.1) == [] and answers_came(probe), str, 10)
        assert "new1" in accounts(served)
        clock.now_s += join_window.CONFIRM_S + 1
        wait_for(window, "not confirmed")
    assert accounts_without_window(served) == ["dev1", "op-admin"]


def answers_came(probe: Probe) -> bool:
    return probe.wait_until(lambda: bool(probe.received), 0.05)


def accounts_without_window(served: ServedBroker) -> list[str]:
    return [name for name in accounts(served) if not name.endswith(".host")]


def test_a_token_may_do_nothing_but_ask(served, opened):
    window, token, _ = opened
    grants = grants_of(token.account, served.topics)
    assert (len(grants.publish), len(grants.receive)) == (1, 1)
    other = draw_token("new2", lapses_s=time.time() + 60)
    topics = served.topics
    with (
        as_token(served, token) as thief,
        served.probe("dev1") as neighbour,
        served.probe("op-admin") as all_,
    ):
        neighbour.subscribe(
            topics.check("dev1"), topics.bridge_state, topics.down("r1", "dev1"), topics.join_answer(token.id)
        )
        thief.subscribe("#", topics.everything, topics.join_answer(other.id), topics.bridge_state)
        all_.subscribe(topics.everything)
        assert all_.fence(topics.check("op-admin"))
        tried = [topics.bridge_state, topics.up("r1", "dev1"), topics.join_request(other.id)]
        for topic in [*tried, topics.device_state("new1"), topics.join_answer(token.id)]:
            thief.publish(topic, b"forged")
        thief.publish("$CONTROL/dynamic-security/v1", b'{"commands":[{"command":"listClients"}]}')
        say(served, thief, token, JoinAsk(NONCE))
        wait_until(lambda: window.poll(0.1) == [] and answers_came(thief), str, 10)
        assert neighbour.fence(topics.check("dev1"))
        assert all_.fence(topics.check("op-admin"))
        assert [m for m in all_.received if m.payload == b"forged"] == []
        assert len(thief.received) == 1, "it heard more than its answer"


def test_a_window_that_loses_the_broker_comes_back(served, opened):
    window, token, _ = opened
    served.stop()
    served.start()
    with as_token(served, token) as probe:
        say(served, probe, token, JoinAsk(NONCE))

        def is_answered() -> bool:
            window.poll(0.1)
            say(served, probe, token, JoinAsk(NONCE))
            return answers_came(probe)

        wait_until(is_answered, str, 20)


def test_a_name_that_has_an_account_is_not_invited(served, desk):
    window = desk.run("broker", "invite", "new1", "dev1")
    assert window.end() == 2, window.describe()
    assert "already; nobody was invited" in window.err
    assert desk.run("broker", "invite", "op-x").end() == 2
    assert desk.run("broker", "invite", "join-x").end() == 2
    assert accounts(served) == ["dev1", "op-admin"]


@pytest.mark.parametrize("what", ["rogue authority", "wrong digest", "wrong name"])
def test_a_false_broker_learns_nothing(tmp_path, what):
    own = ServedBroker(tmp_path / "broker", ["dev1"])
    path = own.folder.path
    expected = digest_of((path / "ca.pem").read_bytes())
    ours = authority.KeyPair((path / "ca.pem").read_bytes(), (path / "ca.key").read_bytes())
    rogue = authority.make_authority("home")
    shown = {
        # It shows our authority, which is public, beside a certificate that another has signed.
        "rogue authority": (authority.issue_server(rogue, ["localhost"]), ours),
        "wrong digest": (authority.issue_server(rogue, ["localhost"]), rogue),
        "wrong name": (authority.issue_server(ours, ["another.local"]), ours),
    }[what]
    (path / "server.pem").write_bytes(shown[0].certificate + shown[1].certificate)
    (path / "server.key").write_bytes(shown[0].key)
    own.start()
    try:
        with pytest.raises(BrokerTlsError):
            join_fleet(
                own.folder.login("dev1").with_login("", ""),
                own.topics,
                device="new1",
                token="0" * 16,
                secret="a" * 26,
                authority=expected,
                folder=tmp_path / "new1",
            )
        assert not (tmp_path / "new1").exists()
        assert "join-" not in own.log, "a login went out"
    finally:
        own.stop()


def test_words_that_can_not_be_are_refused_before_anything_is_sent(served, tmp_path, board):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    line = ["hsee", "agent", "join", "new1", "--token", "0" * 16, "--authority", "0" * 64]
    with pytest.raises(UsageError, match="not empty"):
        join(served, line=line, secret="a" * 26, folder=tmp_path / "full")
    for secret in ("", "tooshort", "1" * 26, generate_password()):
        with pytest.raises(UsageError, match="letters and digits") as caught:
            join(served, line=line, secret=secret, folder=tmp_path / "new")
        assert not secret or secret not in str(caught.value)
    plain = paste(board, [*line, "--broker", "mqtt://localhost"], "a" * 26)
    assert (plain.end(), "over TLS" in plain.err) == (2, True), plain.describe()


def test_a_wrong_secret_is_no_login(served, opened, tmp_path):
    _, token, _ = opened
    line = ["hsee", "agent", "join", "new1", "--token", token.id, "--authority"]
    line.append(digest_of((served.folder.path / "ca.pem").read_bytes()))
    with pytest.raises(BrokerLoginError, match="the secret is another"):
        join(served, line=line, secret="a" * 26, folder=tmp_path / "new1")

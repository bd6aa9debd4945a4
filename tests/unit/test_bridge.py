"""What a coordinator makes of words that it reads in its fleet."""

from dataclasses import dataclass, field

import pytest

from coordinator.fleet.bridge import DOUBT_S, RESTATE_S, Bridge
from coordinator.fleet.rivals import SETTLE_S
from toolkit.errors import BrokerLostError, RunError
from toolkit.link.base import identity_conflict
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, read_bridge_word

TOPICS = Topics("home")
LOW, OWN, HIGH = "11" * 16, "77" * 16, "ee" * 16
LOST = BrokerLostError("The connection was lost.")
EVICTED = identity_conflict("coord-r1", 4)


@dataclass
class Spoken:
    """Takes what is published, and says what time it is."""

    words: list[BridgeWord] = field(default_factory=list)
    now: float = 100.0

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:  # noqa: ARG002 - a link's
        assert (topic, retain) == (TOPICS.bridge_state, True)
        self.words.append(read_bridge_word(payload))


def word(state="online", *, run="r1", term=3, nonce=OWN, ended=""):
    return BridgeWord(state, run, term, ended, nonce)


@pytest.fixture
def spoken():
    return Spoken()


@pytest.fixture
def bridge(spoken):
    made = Bridge(spoken, topics=TOPICS, run="r1", term=3, boot_nonce=OWN, clock=lambda: spoken.now)
    made.arrive()
    return made


def hears(bridge, *words):
    """What comes of words, one after the other."""
    return [bridge.hear(each) for each in words]


@pytest.mark.parametrize(
    ("state", "term", "nonce"),
    [("offline", 3, OWN), ("offline", 2, HIGH), ("online", 2, LOW), ("online", 2, "")],
)
@pytest.mark.parametrize("is_echoed", [False, True])
def test_an_earlier_word_is_answered_whether_its_own_came_back_or_not(
    bridge, spoken, state, term, nonce, is_echoed
):
    """Found by seed 9178 of the simulator: the will of term 2 stayed retained, and no device found term 3."""
    if is_echoed:
        bridge.hear(word())
    assert len(spoken.words) == 1
    assert bridge.hear(word(state, term=term, nonce=nonce)) is None
    assert spoken.words[1:] == [word()]


def test_its_own_word_is_no_reason_to_say_it_again(bridge, spoken):
    bridge.hear(word())
    assert len(spoken.words) == 1


@pytest.mark.parametrize("state", ["online", "offline"])
def test_a_higher_term_goes_on_in_its_place(bridge, state):
    (lost,) = hears(bridge, word(state, term=4, nonce=LOW))
    assert isinstance(lost, RunError)
    assert lost.message == "Another coordinator has taken up run r1 (term 4; this one has 3)."
    assert "at most 2 are needed" in lost.hint


@pytest.mark.parametrize("elder", [word(nonce=HIGH), word(run="r0", nonce=HIGH)], ids=["copy", "other run"])
class TestOneThatWasThereBefore:
    def test_goes_on_where_it_speaks_again(self, bridge, spoken, elder):
        assert hears(bridge, elder, word()) == [None, None]
        (lost,) = hears(bridge, elder)
        assert isinstance(lost, RunError)
        assert len(spoken.words) == 1

    def test_that_speaks_no_more_is_gone(self, bridge, spoken, elder):
        hears(bridge, elder, word())
        spoken.now += SETTLE_S
        bridge.tick()
        assert bridge.lose_connection(LOST) is None

    def test_and_has_the_account_comes_back_to_it(self, bridge, elder):
        """Its word stands where the newcomer's stood. A coordinator of another run has another account."""
        hears(bridge, elder, word())
        assert bridge.lose_connection(LOST) is None
        bridge.arrive()
        assert isinstance(bridge.hear(elder), RunError) == (elder.run == "r1")

    def test_and_is_gone_did_not_cut_the_connection(self, bridge, elder):
        hears(bridge, elder, word())
        assert bridge.lose_connection(LOST) is None
        bridge.arrive()
        assert hears(bridge, word("offline"), word()) == [None, None]

    def test_answers_a_newcomer_at_once_and_stays(self, bridge, spoken, elder):
        newcomer = elder
        hears(bridge, word())
        spoken.now += 60.0
        assert hears(bridge, newcomer) == [None]
        assert spoken.words[1:] == [word()]
        assert bridge.lose_connection(LOST) is None

    def test_and_was_away_meanwhile_gives_way_to_who_stands(self, bridge, spoken, elder):
        newcomer = elder
        hears(bridge, word())
        spoken.now += 3600.0
        assert bridge.lose_connection(LOST) is None
        bridge.arrive()
        assert hears(bridge, newcomer, word()) == [None, None]
        assert isinstance(bridge.hear(newcomer), RunError)


def test_the_two_sides_of_a_meeting_agree(spoken):
    """One says its word at the broker first; whatever they read of each other, exactly one of them gives way."""
    first, second = (
        Bridge(spoken, topics=TOPICS, run="r1", term=3, boot_nonce=nonce, clock=lambda: spoken.now)
        for nonce in (HIGH, LOW)
    )
    for each in (first, second):
        each.arrive()
    of_first, of_second = spoken.words
    assert hears(first, of_first, of_second) == [None, None]
    assert [bool(lost) for lost in hears(second, of_first, of_second, spoken.words[-1])] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(("nonce", "gives_way"), [(LOW, True), (HIGH, False)])
def test_two_that_both_stand_settle_it_by_their_nonces(bridge, spoken, nonce, gives_way):
    """The broker lost what it retained while one of them was away."""
    hears(bridge, word())
    twin = word(nonce=nonce)
    outcomes = []
    for _ in range(8):
        outcomes += hears(bridge, twin)
        spoken.now += RESTATE_S
        bridge.tick()
    assert any(outcomes) is gives_way
    assert not any(outcomes[: int(SETTLE_S / RESTATE_S)])
    assert len(spoken.words) > SETTLE_S / RESTATE_S


@pytest.mark.parametrize(("nonce", "gives_way"), [(LOW, True), (HIGH, False)])
def test_two_of_one_account_that_cut_each_other_off_settle_it_too(bridge, spoken, nonce, gives_way):
    hears(bridge, word())
    outcomes = []
    for _ in range(6):
        outcomes.append(bridge.lose_connection(EVICTED))
        bridge.arrive()
        hears(bridge, word("offline", nonce=nonce), word())
        spoken.now += 10.0
    assert any(outcomes) is gives_way


def test_what_a_broker_kept_of_a_run_of_the_same_name_holds_nobody_up(bridge):
    """Its folder was deleted, so that its terms begin anew; and the broker that was killed brings its word back."""
    for ended in ("finished", "failed"):
        before = word("offline", nonce=HIGH, ended=ended)
        assert hears(bridge, before, word()) == [None, None]
        assert bridge.lose_connection(LOST) is None
        bridge.arrive()
    assert bridge.lose_connection(EVICTED) is None


def test_a_twin_that_ended_the_run_meanwhile_ended_it_for_both(bridge):
    """Found by seed 4417: two of one account cut each other off until one of them had finished."""
    hears(bridge, word(), word("offline", nonce=HIGH))
    assert bridge.lose_connection(LOST) is None
    bridge.arrive()
    assert hears(bridge, word("online", nonce=HIGH), word()) == [None, None]
    assert bridge.lose_connection(LOST) is None
    bridge.arrive()
    assert isinstance(bridge.hear(word("offline", nonce=HIGH, ended="finished")), RunError)


def test_a_lower_term_at_work_is_told_until_it_has_heard(bridge, spoken):
    hears(bridge, word(), word(term=2, nonce=LOW))
    for _ in range(20):
        spoken.now += 1.0
        bridge.tick()
    assert spoken.words[1:] == [word()] * 3


def test_a_device_of_a_higher_term_makes_it_ask_but_not_end(bridge, spoken):
    """Found by seed 4516: the word of who took the run over was lost. A device may lie, too."""
    hears(bridge, word())
    for _ in range(40):
        bridge.doubt()
        bridge.tick()
        spoken.now += DOUBT_S / 10
    assert spoken.words[1:] == [word()] * 4


def test_a_twin_that_ends_the_run_ends_it_for_both(bridge):
    hears(bridge, word())
    assert bridge.hear(word("offline", nonce=HIGH)) is None
    assert isinstance(bridge.hear(word("offline", nonce=HIGH, ended="finished")), RunError)


def test_a_twin_of_an_earlier_version_can_not_give_way(bridge):
    hears(bridge, word())
    assert isinstance(bridge.hear(word(nonce="")), RunError)


def test_another_runs_last_word_is_spoken_over_but_not_for_ever(bridge, spoken):
    hears(bridge, word())
    for _ in range(3):
        assert bridge.hear(word("offline", run="r0", nonce=HIGH)) is None
    assert spoken.words[1:] == [word()]
    spoken.now += RESTATE_S
    for _ in range(3):
        bridge.tick()
    assert len(spoken.words) == 3


def test_a_word_that_does_not_come_back_is_said_again(bridge, spoken):
    said = []
    for _ in range(4):
        spoken.now += RESTATE_S / 2
        bridge.tick()
        said.append(len(spoken.words))
    assert said == [1, 2, 2, 3]
    bridge.hear(word())
    spoken.now += RESTATE_S
    bridge.tick()
    assert len(spoken.words) == 3

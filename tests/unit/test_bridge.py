"""What a coordinator makes of words that it reads in its fleet."""

import pytest

from coordinator.fleet.bridge import Bridge
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, read_bridge_word

TOPICS = Topics("home")


class Spoken:
    """Takes what is published."""

    def __init__(self) -> None:
        self.words: list[BridgeWord] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:  # noqa: ARG002 - a link's
        assert (topic, retain) == (TOPICS.bridge_state, True)
        self.words.append(read_bridge_word(payload))


@pytest.fixture
def spoken():
    return Spoken()


@pytest.fixture
def bridge(spoken):
    made = Bridge(spoken, topics=TOPICS, run="r1", term=3, clock=lambda: 0.0)
    made.say("online")
    return made


@pytest.mark.parametrize(("state", "term"), [("offline", 3), ("offline", 2), ("online", 2)])
@pytest.mark.parametrize("is_echoed", [False, True])
def test_an_earlier_word_is_answered_whether_its_own_came_back_or_not(bridge, spoken, state, term, is_echoed):
    """Found by seed 9178 of the simulator: the will of term 2 stayed retained, and no device found term 3."""
    if is_echoed:
        bridge.hear(BridgeWord("online", "r1", 3, ""))
    assert len(spoken.words) == 1
    bridge.hear(BridgeWord(state, "r1", term, ""))
    assert spoken.words[1:] == [BridgeWord("online", "r1", 3, "")]


def test_its_own_word_is_no_reason_to_say_it_again(bridge, spoken):
    bridge.hear(BridgeWord("online", "r1", 3, ""))
    assert len(spoken.words) == 1

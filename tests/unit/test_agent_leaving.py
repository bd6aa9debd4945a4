"""How an agent's process comes to its end: a run that is over, a refusal, a stop signal, no broker."""

import pytest

from device_agent.agent import ADVICE
from device_agent.identity import HeldIdentity, device_id
from tests.unit.lone_agent import NONCE, TOPICS, World
from toolkit.errors import (
    BrokerLoginError,
    BrokerUnreachableError,
    FencedError,
    MachineError,
    RefusedError,
    RunError,
    UsageError,
)
from toolkit.link.base import Disconnected, Received
from toolkit.link.memory import MemoryLink
from toolkit.wire.messages import (
    Bye,
    Fenced,
    Refusal,
)
from toolkit.wire.words import DeviceWord, encode_word


@pytest.fixture
def world():
    return World()


def test_the_end_of_the_run_is_a_good_end(world):
    world.join()
    world.state(1, 1, phase="finished", detail="All 3 rounds are done.")
    world.poll()
    assert world.agent.over
    assert world.agent.result() == "All 3 rounds are done."


@pytest.mark.parametrize("code", [*ADVICE, "unheard-of"])
def test_a_refusal_ends_the_process_with_its_reason_and_advice(world, code):
    world.join()
    world.tell(Refusal(boot_nonce=NONCE, code=code, message="Because."))
    world.poll()
    with pytest.raises(RefusedError, match=r"The coordinator refused 'ant': Because\.") as caught:
        world.agent.result()
    assert caught.value.hint == ADVICE.get(code, "")
    assert caught.value.facts["reason"] == code


def test_a_failed_run_is_told_with_its_reason(world):
    world.join()
    world.state(1, 1, phase="failed", detail="The disk is full.")
    world.poll()
    with pytest.raises(RunError, match=r"The run failed at the coordinator: The disk is full\."):
        world.agent.result()


def test_a_revoked_account_is_told_once_with_what_to_do(world):
    world.join()
    world.hub.stop()
    world.poll()
    for _ in range(3):  # each try is refused
        world.agent._link.cut_off(
            BrokerLoginError("The broker refused the login.", hint="Ask for a new account.")
        )
        world.poll()
    told = [line for line in world.said if "lets this device in no more" in line]
    assert told == [
        "the broker lets this device in no more: The broker refused the login. Ask for a new account. Trying again."
    ]


def test_leaving_saves_and_says_goodbye(world):
    world.join()
    world.agent.close()
    assert world.trainer.did[-1] == ("save", 0, 0)
    assert [type(message) for message in world.heard()] == [Bye]
    late = MemoryLink(world.hub, "late")
    late.start()
    late.poll(0)
    late.subscribe(TOPICS.device_state("ant"))
    assert late.poll(0) == [
        Received(TOPICS.device_state("ant"), encode_word(DeviceWord("offline", NONCE.hex())))
    ]


def test_a_fenced_process_speaks_for_the_device_no_more(world):
    world.join()
    world.tell(Fenced(boot_nonce=NONCE, incarnation=2))
    world.poll()
    with pytest.raises(FencedError, match="Another process took over the device id 'ant'") as caught:
        world.agent.result()
    assert "--id" in caught.value.hint
    before = list(world.trainer.did)
    world.agent.close()
    assert world.heard() == []
    assert world.trainer.did == before


def test_a_state_that_can_not_be_saved_does_not_keep_the_process_from_leaving(world):
    def refuse():
        raise MachineError("The disk is full.")

    world.join()
    world.trainer.save = refuse
    with pytest.raises(MachineError):
        world.agent.close()
    assert [type(message) for message in world.heard()] == [Bye]


def test_a_disk_that_refused_something_is_not_tried_again(world):
    def refuse():
        raise MachineError("Input/output error.")

    world.join()
    world.trainer.finish_round = world.trainer.train_next = refuse
    world.state(1, 4)
    with pytest.raises(MachineError):
        world.poll()
    before = list(world.trainer.did)
    world.agent.close()
    assert world.trainer.did == before


def test_no_broker_is_told_at_once_and_given_up_in_time(world):
    world.hub.stop()
    world.agent.start()
    world.poll()
    assert world.said == ["The memory broker is not running. Trying again for 20 s."]
    world.now = 21.0
    world.agent._link._events.append(
        Disconnected(BrokerUnreachableError("The memory broker is not running."))
    )
    with pytest.raises(BrokerUnreachableError):
        world.poll()


def test_an_identity_is_one_process_in_its_home(tmp_path):
    held = HeldIdentity(tmp_path, fleet="home", device="ant")
    with pytest.raises(RunError, match=f"An agent of device 'ant' runs already in {tmp_path}") as caught:
        HeldIdentity(tmp_path, fleet="home", device="ant")
    assert "another --id" in caught.value.hint
    for other in ({"fleet": "yard", "device": "ant"}, {"fleet": "home", "device": "bee"}):
        HeldIdentity(tmp_path, **other).close()
    held.close()
    HeldIdentity(tmp_path, fleet="home", device="ant").close()


def test_a_device_id_is_one_level_of_a_topic(monkeypatch):
    assert device_id("hall-camera") == "hall-camera"
    with pytest.raises(UsageError, match=r"The device id 'a/b'"):
        device_id("a/b")
    monkeypatch.setattr("socket.gethostname", lambda: "the board")
    with pytest.raises(
        UsageError, match=r"The host's name 'the board'.*can't serve as a device id"
    ) as caught:
        device_id("")
    assert caught.value.hint == "Name one with --id."

"""Whether accounts are apart, judged by delivery: another's topics, and another's client id."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolkit.access.accounts import OPERATOR_PREFIX, grants_of
from toolkit.access.probe import Probe
from toolkit.errors import BrokerError
from toolkit.findings import Finding
from toolkit.link.base import BrokerAddress, matches
from toolkit.wire.topics import Topics

APART = (
    "Give each account its own device's topics only, by hsee broker init and hsee broker user add;"
    " an ACL file that grants # to all is not enough."
)


def check_neighbours(
    probe: Probe, topics: Topics, *, other: BrokerAddress | None = None
) -> Iterator[Finding]:
    """Try what an account must not be able to do.

    Args:
        probe: the account, connected.
        topics: of the fleet.
        other: a second account's login; without it only what one account can see is judged.
    Yields: findings.
    Raises: BrokerError: the second account was not let in.
    """
    if not probe.address.username:
        yield Finding(
            "others' topics",
            "skipped",
            "without a login nobody can be told apart: every topic is everybody's",
        )
        return
    if other is None:
        yield _alone(probe, topics)
        return
    with Probe(replace(other, insecure=True)) as second:
        yield from _between(probe, second, topics)
        yield _theft(probe, second, topics)


def leaks(sender: Probe, listener: Probe, topics: Topics, topic: str) -> bool:
    """Send on a topic, listen wherever it could be heard, and tell whether it was delivered.

    It waits for proof that the broker is done, not for time.

    Args:
        sender: may be the listener too.
        listener: subscribes to the topic, to all of the fleet, and to everything.
        topics: of the fleet; both accounts' check topics carry the proof.
        topic: published to.
    Raises: BrokerError: an account's own check topic does not deliver, so that nothing is proved.
    """
    secret = secrets.token_bytes(32)
    for topic_filter in (topic, topics.everything, "#"):
        listener.subscribe(topic_filter)
    _settle(listener, topics)
    sender.publish(topic, secret)
    _settle(sender, topics)
    _settle(listener, topics)
    return any(message.payload == secret for message in listener.received)


def _settle(probe: Probe, topics: Topics) -> None:
    own = topics.check(probe.address.username)
    probe.subscribe(own)
    if not probe.fence(own):
        raise BrokerError(
            f"Account {probe.address.username!r} does not get what it sends to {own}, so nothing can be judged.",
            hint="Let it publish and subscribe there: hsee broker user refresh",
        )


def _alone(probe: Probe, topics: Topics) -> Finding:
    """With one account only the loop can be seen: what it sends on a stranger's topic and hears there itself."""
    stranger, run = f"check-{secrets.token_hex(4)}", f"check-{secrets.token_hex(4)}"
    tried = [topics.up(run, stranger), topics.down(run, stranger)]
    if not probe.address.username.startswith(
        OPERATOR_PREFIX
    ):  # it says "offline" for a device that it removes
        tried.append(topics.device_state(stranger))
    try:
        leaking = [topic for topic in tried if leaks(probe, probe, topics, topic)]
    except BrokerError as exc:
        return Finding("others' topics", "failed", exc.message, exc.hint)
    if leaking:
        return Finding(
            "others' topics",
            "failed",
            f"it sent on {leaking[0]} and heard it there: no account is apart",
            APART,
        )
    return Finding(
        "others' topics",
        "ok",
        "it can't both send and hear on a stranger's topics; --other ACCOUNT tries each alone",
    )


def _between(first: Probe, second: Probe, topics: Topics) -> Iterator[Finding]:
    """Each tries to say what only the other may say, and to hear what only the other may hear."""
    for one, two in ((first, second), (second, first)):
        thief, victim = one.address.username, two.address.username
        may, owns = grants_of(thief, topics), grants_of(victim, topics)
        spoken = [t for t in _foreign(owns.receive, may.publish) if leaks(one, two, topics, t)]
        heard = [t for t in _foreign(owns.publish, may.receive) if leaks(two, one, topics, t)]
        if spoken or heard:
            what = f"could send on {spoken[0]}" if spoken else f"could hear {heard[0]}"
            yield Finding(f"{thief} on {victim}", "failed", f"{thief!r} {what}", APART)
        else:
            detail = (
                f"{thief!r} could neither speak to {victim!r} nor overhear it where only {victim!r} belongs"
            )
            yield Finding(f"{thief} on {victim}", "ok", detail)


def _foreign(owned: Sequence[str], granted: Sequence[str]) -> list[str]:
    """Give a topic for each filter that one account owns, where another's grants don't reach it."""
    # '+' stands for a run or a device: one that there never was disturbs nobody.
    topics = [owner.replace("+", f"check-{secrets.token_hex(4)}") for owner in owned if "#" not in owner]
    return [t for t in topics if not t.startswith("$") and not any(matches(grant, t) for grant in granted)]


def _theft(first: Probe, second: Probe, topics: Topics) -> Finding:
    """Come in as the first account under the second's client id, and under it with a wrong password."""
    n_before, victim = second.n_connections, second.address.username
    wrong = replace(second.address, password=secrets.token_urlsafe(24), insecure=True)
    right = replace(first.address, insecure=True)
    # The last is let in under its own name, where client id is account: it takes over no other connection than its own.
    for thief in (wrong, replace(wrong, username=first.address.username), right):
        try:
            Probe(thief, client_id=victim).close()
        except BrokerError:
            continue
        if thief is not right:
            return Finding("client-id theft", "failed", f"a wrong password was let in as {victim!r}", APART)
    if not second.fence(topics.check(victim)) or second.n_connections != n_before:
        return Finding(
            "client-id theft",
            "failed",
            f"another account, or a wrong password, with the client id {victim!r} cut its connection off",
            "Use a Mosquitto with use_username_as_clientid true; hsee broker init writes it.",
        )
    return Finding("client-id theft", "ok", f"nobody could take {victim!r}'s connection over")

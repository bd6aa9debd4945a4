"""A join window: the operator's side of join tokens, open for some minutes, answering each token once."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from toolkit.access.dynamic_security import DynamicSecurity
from toolkit.access.probe import Probe
from toolkit.access.tokens import Token, draw_token, has_lapsed, window_account
from toolkit.errors import BrokerError, HseeError, RemoteProtocolError, UsageError
from toolkit.link.base import BrokerAddress
from toolkit.link.broker import generate_password
from toolkit.wire.joining import (
    JoinAnswer,
    JoinAsk,
    JoinDone,
    JoinRefusal,
    derive_password,
    derive_proof,
    encode_joining,
    read_request,
)
from toolkit.wire.topics import Topics

CONFIRM_S = 60.0
"""A board that asked and did not confirm for so long has not heard its answer: its account is taken back."""
RECONNECT_S = 30.0
_NONCE_BYTES = 16

Outcome = Literal["joined", "asked twice", "not confirmed", "not used", "failed"]


@dataclass(frozen=True, slots=True)
class WindowEvent:
    """What became of a board's token.

    Attributes:
        device: whose it is.
        outcome: ``asked twice`` leaves it as it was; after the others it is gone.
        detail: for a person.
    """

    device: str
    outcome: Outcome
    detail: str


class Certifier(Protocol):
    """Who issues accounts' certificates (``toolkit.access.broker_folder.BrokerFolder``)."""

    def certify(self, account: str, request: bytes) -> bytes:
        """Issue an account's certificate, PEM, for the key of a request, DER."""
        ...

    def require_fresh(self, account: str, control: DynamicSecurity) -> None:
        """Refuse a name whose revoked certificate the running broker would still let in."""
        ...

    def remove_account(self, account: str) -> None:
        """Revoke an account's certificate."""
        ...


@dataclass(slots=True)
class _Standing:
    """A token that is not used up."""

    token: Token
    nonce: str = ""
    salt: str = ""
    certificate: bytes = b""
    asked_s: float = 0.0


@contextmanager
def open_window(
    operator: BrokerAddress,
    topics: Topics,
    devices: Sequence[str],
    *,
    lasts_s: float,
    entry: BrokerAddress | None = None,
    certifier: Certifier | None = None,
    clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
) -> Iterator[JoinWindow]:
    """Make a token for each device, and take all that was not used back at the end.

    The window speaks by an account of its own, so that the operator's is free for other commands meanwhile.

    Args:
        operator: the broker, with an operator's login.
        topics: of the fleet.
        devices: to invite; none of them has an account.
        lasts_s: how long tokens can be used.
        entry: where tokens are let in; by default where the operator is.
        certifier: where accounts log in by certificates: issues them; None where they have passwords.
        clock: seconds that go on while the machine sleeps.

    Raises:
        UsageError: a device has an account already.
        BrokerError: the broker refused, did not answer, or keeps something else than was asked.
    """
    lapses_s = time.time() + lasts_s
    tokens = [draw_token(device, lapses_s=lapses_s) for device in devices]
    own, password = window_account(lapses_s=lapses_s), generate_password()
    with Probe(operator) as probe:
        control = DynamicSecurity(probe, topics)
        known = control.accounts()
        if taken := [device for device in devices if device in known]:
            raise UsageError(
                f"There is an account {taken[0]!r} already; nobody was invited.",
                hint=f"Choose another name, or remove it first: hsee broker user remove {taken[0]}",
            )
        if certifier is not None:
            for device in devices:
                certifier.require_fresh(device, control)
        sweep(control)
        control.add(own, password)
        for token in tokens:
            control.add(token.account, token.secret)
    with Probe((entry or operator).with_login(own, password)) as probe:
        window = JoinWindow(probe, topics, tokens, lasts_s=lasts_s, certifier=certifier, clock=clock)
        try:
            yield window
        finally:
            window.close()


def sweep(control: DynamicSecurity) -> list[str]:
    """Remove what killed windows have left behind; returns the accounts.

    Raises: BrokerError: the broker refused or did not answer.
    """
    stale = [name for name in control.accounts() if has_lapsed(name, now_s=time.time())]
    for account in stale:
        control.remove(account)
    return stale


class JoinWindow:
    """Answers the boards that hold its tokens; made by :func:`open_window`.

    Attributes:
        tokens: that it was opened with.
    """

    def __init__(
        self,
        probe: Probe,
        topics: Topics,
        tokens: Sequence[Token],
        *,
        lasts_s: float,
        certifier: Certifier | None,
        clock: Callable[[], float],
    ) -> None:
        self.tokens = tuple(tokens)
        self._certifier = certifier
        self._probe = probe
        self._topics = topics
        self._clock = clock
        self._ends_s = clock() + lasts_s
        self._standing = {token.id: _Standing(token) for token in tokens}
        self._n_taken = 0
        self._is_closed = False
        self._listen()

    @property
    def left_s(self) -> float:
        """Seconds until it ends."""
        return max(0.0, self._ends_s - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether every token is used up, or time is."""
        return not self._standing or self.left_s == 0

    def poll(self, timeout_s: float) -> list[WindowEvent]:
        """Answer what boards have asked, waiting at most so long for the first.

        Raises: BrokerError: the broker is lost, or keeps something else than was asked.
        """
        self._probe.wait_until(
            lambda: len(self._probe.received) > self._n_taken or not self._probe.is_connected, timeout_s
        )
        if not self._probe.is_connected or self._probe.n_connections != self._n_connections:
            self._come_back()
        events: list[WindowEvent] = []
        while self._n_taken < len(self._probe.received):
            message = self._probe.received[self._n_taken]
            self._n_taken += 1
            try:
                standing = self._standing.get(self._topics.token_of(message.topic))
                if standing is not None:
                    events += self._answer(standing, read_request(message.payload))
            except RemoteProtocolError:
                continue  # the broker's answer to a command of ours, or a message to be dropped
        return events + self._overdue()

    def close(self) -> list[WindowEvent]:
        """Take back every token that was not used up, and the window's own account. May be called twice.

        Raises: BrokerError: the broker is lost; what is left there gives nobody an account, and the next window removes it.
        """
        if self._is_closed:
            return []
        self._is_closed = True
        events = [
            self._take_back(standing, "not confirmed" if standing.nonce else "not used")
            for standing in list(self._standing.values())
        ]
        self._control.remove_itself()
        return events

    def _listen(self) -> None:
        self._n_connections = self._probe.n_connections
        self._control = DynamicSecurity(self._probe, self._topics)
        self._probe.subscribe(self._topics.join_request("+"))

    def _come_back(self) -> None:
        if not self._probe.wait_until(lambda: self._probe.is_connected, RECONNECT_S):
            raise self._probe.lost or BrokerError("The broker is lost.")
        self._listen()

    def _answer(self, standing: _Standing, request: JoinAsk | JoinDone) -> Iterator[WindowEvent]:
        token, nonce = standing.token, request.nonce
        if standing.nonce and standing.nonce != nonce:
            if isinstance(request, JoinAsk):
                self._say(token, JoinRefusal(nonce, "Another board has asked with this token already."))
                yield WindowEvent(token.device, "asked twice", "a second board asked, and was refused")
        elif isinstance(request, JoinAsk):
            yield from self._admit(standing, request)
        elif standing.nonce:
            self._control.remove(token.account)
            del self._standing[token.id]
            yield WindowEvent(token.device, "joined", "it is in; its token is used up")

    def _admit(self, standing: _Standing, ask: JoinAsk) -> Iterator[WindowEvent]:
        token, nonce = standing.token, ask.nonce
        if not standing.nonce:
            salt = secrets.token_hex(_NONCE_BYTES)
            values = {"token": token.id, "device": token.device, "nonce": nonce, "salt": salt}
            try:
                if self._certifier is not None:
                    if not ask.request:
                        raise UsageError("This broker asks for certificates: paste the whole line.")
                    standing.certificate = self._certifier.certify(token.device, ask.request)
                    self._control.add(token.device)
                else:
                    self._control.add(token.device, derive_password(token.secret, **values))
            except HseeError as exc:
                self._say(token, JoinRefusal(nonce, exc.message[:500]))
                self._control.remove(token.account)
                del self._standing[token.id]
                yield WindowEvent(token.device, "failed", exc.message)
                return
            standing.nonce, standing.salt, standing.asked_s = nonce, salt, self._clock()
        values = {"token": token.id, "device": token.device, "nonce": nonce, "salt": standing.salt}
        proof = derive_proof(token.secret, **values)
        issued = standing.certificate.decode()
        certificate = ssl.PEM_cert_to_DER_cert(issued) if issued else b""
        self._say(token, JoinAnswer(nonce, token.device, standing.salt, proof, certificate))

    def _overdue(self) -> list[WindowEvent]:
        return [
            self._take_back(standing, "not confirmed")
            for standing in list(self._standing.values())
            if standing.nonce and self._clock() - standing.asked_s > CONFIRM_S
        ]

    def _take_back(self, standing: _Standing, outcome: Outcome) -> WindowEvent:
        token = standing.token
        self._control.remove(token.account)
        if standing.nonce:
            self._control.remove(token.device)
            if self._certifier is not None:
                self._certifier.remove_account(token.device)
        del self._standing[token.id]
        detail = {
            "not used": "its token was not used, and is gone",
            "not confirmed": "it asked and did not confirm: its account was taken back",
        }[outcome]
        return WindowEvent(token.device, outcome, detail)

    def _say(self, token: Token, message: JoinAnswer | JoinRefusal) -> None:
        self._probe.publish(self._topics.join_answer(token.id), encode_joining(message))

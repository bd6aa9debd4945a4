"""Accounts in Mosquitto's dynamic-security plugin: its state on disk as we begin it, and its accounts while it runs.

Every change is read back: ``mosquitto_ctrl`` 2.0.11 says that it has set the default access and has not.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from toolkit.access.accounts import CONTROL, CONTROL_ANSWERS, INFER_SUFFIX, grants_of
from toolkit.access.probe import Probe
from toolkit.errors import BrokerError, BrokerLoginError, RemoteProtocolError, UsageError
from toolkit.link.grants import Grants
from toolkit.wire.topics import Topics
from toolkit.wire.words import DeviceWord, encode_word, read_device_word

PASSWORD_ITERATIONS = 101
"""PBKDF2 rounds, the plugin's own number: a password of 192 random bits needs none."""
UPTIME = "$SYS/broker/uptime"
_SALT_BYTES = 12
DENY_ALL: Final = {
    "publishClientSend": False,
    "publishClientReceive": False,
    "subscribe": False,
    "unsubscribe": True,
}
Acl = dict[str, str | int | bool]


def initial_state(passwords: Mapping[str, str], topics: Topics) -> dict[str, Any]:
    """Make the plugin's state file: the accounts, a role each, and nothing for anybody else.

    Args:
        passwords: by account; empty for one that has a certificate, which no password lets in then.
        topics: of the fleet.
    Raises: UsageError: a name that can't be an account's.
    """
    return {
        "defaultACLAccess": DENY_ALL,
        "clients": [
            {**_client(account), **(_hashed(password) if password else {})}
            for account, password in sorted(passwords.items())
        ],
        "groups": [],
        "roles": [
            {"rolename": account, "acls": acls_of(grants_of(account, topics))}
            for account in sorted(passwords)
        ],
    }


def acls_of(grants: Grants) -> list[Acl]:
    """Write grants as the plugin's access list."""
    kinds = [
        *(("publishClientSend", topic) for topic in grants.publish),
        *(("publishClientReceive", topic) for topic in grants.receive),
        *(("subscribePattern", topic) for topic in grants.receive),
    ]
    return [{"acltype": kind, "topic": topic, "priority": 0, "allow": True} for kind, topic in kinds]


class DynamicSecurity:
    """The accounts of a running broker.

    Args:
        probe: logged in as an operator.
        topics: of the fleet.
    """

    def __init__(self, probe: Probe, topics: Topics) -> None:
        self._probe = probe
        self._topics = topics
        probe.subscribe(CONTROL_ANSWERS)

    @property
    def account(self) -> str:
        """The operator's own."""
        return self._probe.address.username

    def accounts(self) -> list[str]:
        """List the accounts.

        Raises: BrokerError: the broker refused or did not answer.
        """
        return sorted(str(name) for name in self._ask("listClients")["clients"])

    def add(self, account: str, password: str = "") -> None:
        """Add an account with its grants, and read both back.

        Args:
            account: its name.
            password: empty for one that has a certificate, which no password lets in then.

        Raises:
            UsageError: it is there already, or its name can't be an account's.
            BrokerError: the broker refused, did not answer, or keeps something else than was asked.
        """
        acls = acls_of(grants_of(account, self._topics))
        if account in self.accounts():
            raise UsageError(
                f"There is an account {account!r} already.",
                hint="Choose another name, or remove that one first: hsee broker user remove.",
            )
        if account in self._ask("listRoles")["roles"]:  # left by an addition that was cut short
            self._ask("deleteRole", rolename=account)
        self._ask("createRole", rolename=account, acls=acls)
        self._ask("createClient", **({"password": password} if password else {}), **_client(account))
        self.check(account)

    def remove(self, account: str) -> None:
        """Remove an account; the broker cuts its connection off at once.

        A removed device's last will is let through no more, so its word "offline" is said for it.

        Raises: UsageError: there is none. BrokerError: the broker refused, did not answer, or still knows it.
        """
        state_topic = self._topics.device_state(account)
        self._probe.subscribe(state_topic)
        known = self.accounts()
        if account not in known:
            raise UsageError(
                f"There is no account {account!r}.", hint=f"There are: {', '.join(known)}.", known=known
            )
        self._ask("deleteClient", username=account)
        if account in self._ask("listRoles")["roles"]:
            self._ask("deleteRole", rolename=account)
        if account in self.accounts():
            raise _not_kept(f"account {account!r} is still there after its removal")
        words = [message.payload for message in self._probe.received if message.topic == state_topic]
        with suppress(RemoteProtocolError):
            if words and (word := read_device_word(words[-1])).state == "online":
                gone = encode_word(DeviceWord("offline", word.boot_nonce))
                self._probe.publish(state_topic, gone, retain=True)

    def remove_device(self, device: str) -> list[str]:
        """Remove every account of a device; the broker cuts their connections off at once.

        Returns: the accounts that there were.
        Raises: UsageError: there is none. BrokerError: the broker refused, did not answer, or still knows one.
        """
        known = self.accounts()
        own = [name for name in (device, f"{device}{INFER_SUFFIX}") if name in known]
        if not own:
            raise UsageError(
                f"There is no account of a device {device!r}.", hint=f"There are: {', '.join(known)}."
            )
        for account in own:
            self.remove(account)
        return own

    def remove_itself(self) -> None:
        """Remove the account that this login is; the broker cuts it off, and refuses it from then on.

        Raises: BrokerError: the broker lets it in all the same.
        """
        own = self._probe.address.username
        # One message: after the first of these commands nobody would hear a second.
        self._send({"command": "deleteClient", "username": own}, {"command": "deleteRole", "rolename": own})
        is_out = self._probe.wait_until(
            lambda: isinstance(self._probe.lost, BrokerLoginError), 2 * self._probe.answer_s
        )
        if not is_out:
            raise _not_kept(f"account {own!r} is still let in after its removal")

    def uptime_s(self) -> float | None:
        """Ask how long the broker has run, in seconds; None where it does not say (it does, ten seconds after its start)."""
        self._probe.subscribe(UPTIME)
        told: list[bytes] = []

        def is_told() -> bool:
            told.extend(m.payload for m in self._probe.received if m.topic == UPTIME)
            return bool(told)

        self._probe.wait_until(is_told, self._probe.answer_s)
        digits = told[-1].split(b" ")[0] if told else b""
        return float(digits) if digits.isdigit() else None

    def grant(self, account: str) -> None:
        """Give an account the grants of this version of hsee, and read them back.

        Raises: BrokerError: the broker refused, did not answer, or keeps something else than was asked.
        """
        self._ask("modifyRole", rolename=account, acls=acls_of(grants_of(account, self._topics)))
        self.check(account)

    def check(self, account: str) -> None:
        """Read an account, its grants and the default access back.

        Raises: BrokerError: any of them is not what ``grants_of`` says, or the default is not to deny.
        """
        client = self._ask("getClient", username=account)["client"]
        roles = [role["rolename"] for role in client.get("roles", [])]
        if client.get("disabled") or client.get("clientid") != account or roles != [account]:
            raise _not_kept(
                f"account {account!r} is disabled, not bound to its client id, or has other roles"
            )
        kept = _ordered(self._ask("getRole", rolename=account)["role"]["acls"])
        if kept != _ordered(acls_of(grants_of(account, self._topics))):
            raise _not_kept(f"the grants of {account!r} are others than were asked for")
        self.check_default()

    def check_default(self) -> None:
        """Read the default access back.

        Raises: BrokerError: it is not to deny.
        """
        told = self._ask("getDefaultACLAccess")["acls"]
        default = {entry["acltype"]: entry["allow"] for entry in told}
        if default != DENY_ALL:
            raise _not_kept(f"what no role grants is not denied: {default}")

    def _ask(self, command: str, **values: object) -> dict[str, Any]:
        tag = secrets.token_hex(8)
        n_before = len(self._probe.received)
        self._send({"command": command, "correlationData": tag, **values})
        found: list[dict[str, Any]] = []

        def is_answered() -> bool:
            for message in self._probe.received[n_before:]:
                if message.topic == CONTROL_ANSWERS:
                    found.extend(
                        answer
                        for answer in msgspec.json.decode(message.payload).get("responses", [])
                        if answer.get("correlationData") == tag
                    )
            return bool(found)

        self._probe.wait_until(lambda: is_answered() or not self._probe.is_connected, self._probe.answer_s)
        if not found:
            raise BrokerError(
                f"{self._probe.address} does not answer the command {command!r} about accounts.",
                hint="Log in as an operator (op-...), on a Mosquitto with the dynamic-security plugin:"
                " hsee broker init writes its configuration.",
                broker=str(self._probe.address),
            )
        if "error" in found[0]:
            raise BrokerError(
                f"{self._probe.address} refused {command!r}: {found[0]['error']}.",
                hint="hsee broker user list shows the accounts there are.",
                broker=str(self._probe.address),
            )
        data: dict[str, Any] = found[0].get("data", {})
        return data

    def _send(self, *commands: Mapping[str, object]) -> None:
        self._probe.publish(CONTROL, msgspec.json.encode({"commands": commands}))


def _client(account: str) -> dict[str, Any]:
    # Bound to its client id as well: another account that names it as client id is refused, not just renamed.
    return {"username": account, "clientid": account, "roles": [{"rolename": account, "priority": 0}]}


def _hashed(password: str) -> dict[str, str | int]:
    salt = os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PASSWORD_ITERATIONS)
    return {
        "password": base64.b64encode(digest).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": PASSWORD_ITERATIONS,
    }


def _ordered(acls: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    return sorted((str(acl["acltype"]), str(acl["topic"]), bool(acl["allow"])) for acl in acls)


def _not_kept(what: str) -> BrokerError:
    return BrokerError(
        f"The broker did not keep what it was told: {what}.",
        hint="Look into its log; try again with a newer Mosquitto (2.0.11 at least).",
    )

"""Accounts, one a process, and what each may say and hear: pure, and the same for every broker.

An account's name says what it is: ``<device>``, ``<device>.infer``, ``coord-<run>``, ``op-<name>``, and for some minutes
``join-<token>`` and ``join-<window>.host``. Its client id is its name, so that two processes of one account evict each
other and nobody else.
"""

from __future__ import annotations

from typing import Literal

from toolkit.errors import UsageError
from toolkit.link.grants import Grants
from toolkit.wire.topics import Topics, check_name

AccountKind = Literal["device", "infer", "coordinator", "operator", "join token", "join window"]

COORDINATOR_PREFIX = "coord-"
OPERATOR_PREFIX = "op-"
INFER_SUFFIX = ".infer"
JOIN_PREFIX = "join-"
WINDOW_SUFFIX = ".host"

CONTROL = "$CONTROL/dynamic-security/v1"
CONTROL_ANSWERS = f"{CONTROL}/response"
BROKER_STATISTICS = "$SYS/#"


def kind_of(account: str) -> AccountKind:
    """Read what an account is out of its name.

    Raises: UsageError: it can't be an account's name.
    """
    check_name(account, what="The account")
    if account.startswith(JOIN_PREFIX):
        return "join window" if account.endswith(WINDOW_SUFFIX) else "join token"
    for prefix, kind in ((COORDINATOR_PREFIX, "coordinator"), (OPERATOR_PREFIX, "operator")):
        if account.startswith(prefix):
            check_name(account.removeprefix(prefix), what=f"What follows {prefix!r} in the account")
            return "coordinator" if kind == "coordinator" else "operator"
    if account.endswith(INFER_SUFFIX):
        return "infer"
    return "device"


def check_new(account: str) -> str:
    """Return a name that somebody chose for an account, if an account may have it.

    Raises: UsageError: it can't be an account's name, or is kept for join tokens.
    """
    if kind_of(account) in ("join token", "join window"):
        raise UsageError(
            f"The account {account!r} begins with {JOIN_PREFIX!r}, which is kept for join tokens.",
            hint="Choose another name; hsee broker invite DEVICE makes a join token.",
        )
    return account


def grants_of(account: str, topics: Topics) -> Grants:
    """Say what an account may do in a fleet.

    Args:
        account: its name.
        topics: of the fleet.
    Raises: UsageError: it can't be an account's name.
    """
    own = topics.check(account)
    match kind_of(account):
        case "device":
            return Grants(
                publish=(
                    topics.device_state(account),
                    topics.device_info(account),
                    topics.device_telemetry(account),
                    topics.device_log(account),
                    topics.up("+", account),
                    own,
                ),
                receive=(topics.bridge_state, topics.down("+", account), own),
            )
        case "infer":
            device = account.removesuffix(INFER_SUFFIX)
            return Grants(
                publish=(topics.ask(device), topics.want(device), own),
                receive=(topics.bridge_state, topics.answer(device), topics.offer(device), own),
            )
        case "coordinator":
            run = account.removeprefix(COORDINATOR_PREFIX)
            return Grants(
                publish=(topics.bridge_state, topics.down(run, "+"), topics.answer("+"), own),
                receive=(
                    topics.bridge_state,
                    topics.all_up(run),
                    topics.all_device_states,
                    topics.device_info("+"),
                    topics.all_asks,
                    topics.device_telemetry("+"),
                    topics.device_log("+"),
                    own,
                ),
            )
        case "operator":
            # Of a device that it removes it says "offline", as the broker lets the last will through no more.
            return Grants(
                publish=(CONTROL, topics.all_device_states, topics.offer("+"), own),
                receive=(CONTROL_ANSWERS, BROKER_STATISTICS, topics.everything),
            )
        case "join token":
            token = account.removeprefix(JOIN_PREFIX)
            return Grants(publish=(topics.join_request(token),), receive=(topics.join_answer(token),))
        case "join window":
            return Grants(
                publish=(CONTROL, topics.join_answer("+")),
                receive=(CONTROL_ANSWERS, topics.join_request("+")),
            )

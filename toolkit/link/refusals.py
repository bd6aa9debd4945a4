"""Why a broker can't be used, in our error tree: one place for what sockets, TLS and CONNACKs say."""

from __future__ import annotations

import socket
import ssl
from typing import Final

from toolkit.errors import BrokerError, BrokerLoginError, BrokerTlsError, BrokerUnreachableError
from toolkit.link.base import BrokerAddress

# Return codes of a CONNACK as MQTT 5 numbers them; paho renames the 3.1.1 codes 2 to 5 to these.
_BAD_CLIENT_ID: Final = 133
_BAD_LOGIN: Final = 134
_NOT_AUTHORIZED: Final = 135
_UNAVAILABLE: Final = 136
# Of OpenSSL: a certificate that does not hold yet, and one that holds no more.
_DATE_CODES: Final = (9, 10)
_CLOCK_HINT: Final = "Is this machine's clock right? Type: date. If it is, the broker's certificate is over: hsee broker renew, and a restart."


def connect_error(exc: Exception, address: BrokerAddress, *, timeout_s: float) -> BrokerError:
    """Translate what connecting raised; its stages are name, TCP, TLS."""
    broker = str(address)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return BrokerTlsError(
            f"The certificate of {broker} can't be trusted: {exc.verify_message.rstrip('.')}.",
            hint=_CLOCK_HINT
            if exc.verify_code in _DATE_CODES
            else "Name the authority that signed it (ca_file), and the host as it stands in the certificate.",
            broker=broker,
        )
    if isinstance(exc, ssl.SSLError):
        return BrokerTlsError(
            f"{broker} does not answer in TLS ({exc.reason or exc}).",
            hint="Check the port: TLS is usually on 8883; without it write mqtt://.",
            broker=broker,
        )
    if isinstance(exc, socket.gaierror | UnicodeError):
        return BrokerUnreachableError(
            f"The host name {address.host!r} can't be found.",
            hint="Check the spelling, or use the IP address.",
            broker=broker,
        )
    if isinstance(exc, ConnectionRefusedError):
        return BrokerUnreachableError(
            f"Nobody listens at {broker}.",
            hint="Start the broker, or check host and port; a Mosquitto without a 'listener' line serves only its own machine.",
            broker=broker,
        )
    if isinstance(exc, TimeoutError):
        return BrokerUnreachableError(
            f"{broker} did not answer within {timeout_s:g} s.",
            hint="Check that the machine is up, and the firewall between.",
            broker=broker,
        )
    return BrokerUnreachableError(f"{broker} can't be reached: {exc}.", broker=broker)


def connack_error(code: int, text: str, address: BrokerAddress, client_id: str) -> BrokerError:
    """Translate a CONNACK that says no."""
    broker = str(address)
    if code in (_BAD_LOGIN, _NOT_AUTHORIZED):
        who = f"user {address.username!r}" if address.username else "a connection without a user name"
        return BrokerLoginError(
            f"{broker} refused {who}: {text.lower()}.",
            hint="Check the user name, and its password in HSEE_BROKER_PASSWORD or the password file.",
            broker=broker,
            username=address.username,
        )
    if code == _UNAVAILABLE:
        return BrokerUnreachableError(f"{broker} says that it is not available now.", broker=broker)
    if code == _BAD_CLIENT_ID:
        return BrokerError(
            f"{broker} does not accept the client id {client_id!r}.",
            hint="Use another device id, or allow this one on the broker.",
            broker=broker,
            client_id=client_id,
        )
    return BrokerError(f"{broker} refused the connection: {text.lower()}.", broker=broker)


def silent_error(reason: str, address: BrokerAddress) -> BrokerError:
    """Name a connection that ended before the other side answered our CONNECT."""
    return BrokerUnreachableError(
        f"{address} ended the connection before it answered ({reason.lower()}).",
        hint="Check that an MQTT broker listens there, and whether that port wants TLS (mqtts://).",
        broker=str(address),
    )

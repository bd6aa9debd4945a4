"""Why a broker can't be used, in our error tree: one place for what sockets, TLS and CONNACKs say."""

from __future__ import annotations

import re
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
_CERTIFICATE_ALERT: Final = re.compile("ALERT_(.*CERTIFICATE.*|UNKNOWN_CA|ACCESS_DENIED|DECRYPT_ERROR)")
_CLOCK_HINT: Final = "Is this machine's clock right? Type: date. If it is, the broker's certificate is over: hsee broker renew, and a restart."


def connect_error(exc: Exception, address: BrokerAddress, *, timeout_s: float) -> BrokerError:
    """Translate what connecting raised; its stages are name, TCP, TLS."""
    broker = str(address)
    if isinstance(exc, ssl.SSLError):
        return _tls_error(exc, address)
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


def _tls_error(exc: ssl.SSLError, address: BrokerAddress) -> BrokerTlsError:
    broker = str(address)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return BrokerTlsError(
            f"The certificate of {broker} can't be trusted: {exc.verify_message.rstrip('.')}.",
            hint=_CLOCK_HINT
            if exc.verify_code in _DATE_CODES
            else "Name the authority that signed it (ca_file), and the host as it stands in the certificate.",
            broker=broker,
        )
    if alert := _CERTIFICATE_ALERT.search(exc.reason or ""):
        return _refused_certificate(alert[1], address)
    return BrokerTlsError(
        f"{broker} does not answer in TLS ({exc.reason or exc}).",
        hint="Check the port: TLS is usually on 8883; without it write mqtt://.",
        broker=broker,
    )


def _refused_certificate(alert: str, address: BrokerAddress) -> BrokerTlsError:
    """Name what a broker thinks of our certificate, or of there being none."""
    said = alert.replace("_", " ").lower()
    if "required" in said or address.cert_file is None:
        message = f"{address} asks for a certificate of this account, and none was shown."
        hint = "Set broker.cert_file and broker.key_file, or start in the account's folder: its hsee.toml names them."
    else:
        message = f"{address} refused the certificate {address.cert_file}: {said}."
        hint = (
            "Is the clock right, here and at the broker? Type: date. If it is, the certificate is over, revoked, or of"
            " another fleet: ask for a new one, hsee broker invite."
        )
    return BrokerTlsError(message, hint=hint, broker=str(address))


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

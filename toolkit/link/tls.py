"""TLS to a broker: its context, and a socket that hears the broker's verdict on our certificate."""

from __future__ import annotations

import select
import ssl

from toolkit.errors import UsageError
from toolkit.link.base import BrokerAddress

VERDICT_S = 1.0
"""So long a new TLS connection waits for the broker's first word about it; it comes one round trip after our last."""


def tls_context(address: BrokerAddress) -> ssl.SSLContext:
    """Make the context of connections to a broker: who may have signed its certificate, and our own where we have one.

    Raises: UsageError: a file can't be read, or is no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
    except OSError as exc:
        raise UsageError(
            f"The certificate authority's file {address.ca_file} can't be used: {exc}.",
            hint="Give the PEM file of the authority that signed the broker's certificate.",
        ) from exc
    if address.cert_file is not None and address.key_file is not None:
        try:
            # A key that needs a password is refused: nobody is there to type it.
            context.load_cert_chain(address.cert_file, address.key_file, password=lambda: b"")
        except OSError as exc:
            raise UsageError(
                f"The certificate {address.cert_file} and the key {address.key_file} can't be used: {exc}.",
                hint="Both are PEM files, and belong together; hsee agent join writes them.",
            ) from exc
    context.sslsocket_class = _TlsSocket
    return context


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails, which paho would leave to the garbage collector, and hears it out.

    In TLS 1.3 a broker judges a client's certificate after the client's handshake is over. What it thinks of it comes
    with the first read, and would be lost to a reset if we had sent something before.
    """

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 (ssl's signature)
        try:
            super().do_handshake(block)
            if self.version() == "TLSv1.3":
                self._take_verdict()
        except OSError:
            self.close()
            raise

    def _take_verdict(self) -> None:
        """Read what the broker says of the handshake: tickets for a next one, or an alert."""
        verdict = select.poll()
        verdict.register(self, select.POLLIN)
        if not verdict.poll(VERDICT_S * 1e3):
            return
        timeout_s = self.gettimeout()
        self.settimeout(0.0)
        try:
            self.recv(1)  # no byte of MQTT: the client speaks first
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        finally:
            self.settimeout(timeout_s)

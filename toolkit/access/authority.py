"""The fleet's own certificate authority: one key that signs the broker's certificate, and nothing else.

Boards trust this authority alone, so no public one can vouch for a false broker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from toolkit.errors import UsageError, require

require("cryptography", part="access", purpose="Making certificates")

from cryptography import x509  # noqa: E402 (only after the friendly refusal above)
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

AUTHORITY_DAYS = 20 * 365
SERVER_DAYS = 5 * 365
_MAX_COMMON_NAME = 64
_EARLY = timedelta(days=2)
"""Certificates begin to hold so long ago: a board's clock may be behind."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


def make_authority(name: str, *, days: int = AUTHORITY_DAYS) -> KeyPair:
    """Make an authority.

    Args:
        name: of the fleet; shown by programs that print certificates.
        days: how long it holds, from now.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"hsee fleet {name}")
    builder = (
        _builder(days)
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue_server(authority: KeyPair, hosts: Sequence[str], *, days: int = SERVER_DAYS) -> KeyPair:
    """Issue a broker's certificate.

    Args:
        authority: signs it.
        hosts: names and addresses that clients will reach the broker by; the first names the certificate.
        days: how long it holds, from now; below zero it has ended already.
    Raises: UsageError: no host, or an authority that can't be read.
    """
    if not hosts:
        raise UsageError("A broker's certificate needs a host name.", hint="Give one with --host.")
    try:
        issuer = x509.load_pem_x509_certificate(authority.certificate)
        issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as exc:
        raise UsageError(
            f"The certificate authority can't be read: {exc}.", hint="Restore ca.pem and ca.key from a copy."
        ) from exc
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            "The certificate authority's key is none that hsee made.", hint="Restore ca.key from a copy."
        )
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(days)
        .subject_name(_name(hosts[0]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _EARLY)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_MAX_COMMON_NAME])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )

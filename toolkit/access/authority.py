"""The fleet's own certificate authority: one key that signs the broker's certificate, and accounts' where a broker asks.

Boards trust this authority alone, so no public one can vouch for a false broker. A broker's certificate is good for no
account, and an account's for no broker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from toolkit.errors import UsageError, require

require("cryptography", part="access", purpose="Making certificates")

from cryptography import x509  # noqa: E402 (only after the friendly refusal above)
from cryptography.exceptions import InvalidSignature  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

AUTHORITY_DAYS = 20 * 365
SERVER_DAYS = 5 * 365
ACCOUNT_DAYS = 5 * 365
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
    issuer, issuer_key = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _leaf(
        issuer, issuer_key, hosts[0], key.public_key(), use=ExtendedKeyUsageOID.SERVER_AUTH, days=days
    ).add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def issue_account(authority: KeyPair, account: str, request: bytes, *, days: int = ACCOUNT_DAYS) -> bytes:
    """Issue an account's certificate for a key that its process made; returns it, PEM.

    Args:
        authority: signs it.
        account: the certificate's common name, whatever the request says.
        request: as :func:`make_request` wrote it, DER.
        days: how long it holds, from now; below zero it has ended already.
    Raises: UsageError: the request can't be read, or was not signed by its own key; an authority that can't be read.
    """
    issuer, issuer_key = _load(authority)
    try:
        asked = x509.load_der_x509_csr(request)
        key = asked.public_key()
        is_signed = asked.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise UsageError(f"The request for a certificate can't be read: {exc}.") from exc
    if not is_signed or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise UsageError("The request for a certificate is for a key of another kind, or not signed by it.")
    builder = _leaf(issuer, issuer_key, account, key, use=ExtendedKeyUsageOID.CLIENT_AUTH, days=days)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def make_request(account: str) -> tuple[bytes, bytes]:
    """Make a key, and a request for a certificate of it.

    Returns: the request, DER; the private key, PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(account)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER), _key_text(key)


def is_for(certificate: bytes, *, account: str, key: bytes) -> bool:
    """Tell whether a certificate is of this account and this key; both PEM. Who signed it is what a login shows."""
    try:
        issued = x509.load_pem_x509_certificate(certificate)
        own = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        return False
    return issued.subject == _name(account) and issued.public_key() == own.public_key()


def revoke(authority: KeyPair, certificates: Sequence[bytes], *, known: bytes = b"") -> bytes:
    """Write a list of revoked certificates, PEM.

    Args:
        authority: that issued them.
        certificates: to be revoked, PEM.
        known: the list until now; its entries stay.
    Raises: UsageError: one of them, the list or the authority can't be read.
    """
    issuer, issuer_key = _load(authority)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - _EARLY)
        .next_update(issuer.not_valid_after_utc)
    )
    try:
        serials = [x509.load_pem_x509_certificate(certificate).serial_number for certificate in certificates]
        entries = {entry.serial_number: entry for entry in (x509.load_pem_x509_crl(known) if known else ())}
    except (ValueError, TypeError) as exc:
        raise UsageError(
            f"What is to be revoked can't be read: {exc}.", hint="Restore the broker's folder from a copy."
        ) from exc
    for serial in serials:
        new = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        entries.setdefault(serial, new)
    for entry in entries.values():
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _load(authority: KeyPair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        issuer = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as exc:
        raise UsageError(
            f"The certificate authority can't be read: {exc}.", hint="Restore ca.pem and ca.key from a copy."
        ) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            "The certificate authority's key is none that hsee made.", hint="Restore ca.key from a copy."
        )
    return issuer, key


def _leaf(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    name: str,
    key: ec.EllipticCurvePublicKey,
    *,
    use: x509.ObjectIdentifier,
    days: int,
) -> x509.CertificateBuilder:
    return (
        _builder(days)
        .subject_name(_name(name))
        .issuer_name(issuer.subject)
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )


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
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _key_text(key))


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

"""The daemon's own certificate, and TLS contexts that trust one certificate instead of authorities.

Callers decide what is served with it, and who is told its fingerprint.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CERTIFICATE, KEY = "tls.crt", "tls.key"  # in the home directory

# A host without a clock must not find a certificate "not yet valid"; 9999 means "no end" (RFC 5280,
# 4.1.2.5). The card expires instead.
_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


class TlsError(Exception):
    """No trustworthy connection: unreachable, no TLS 1.3, or another certificate than promised."""


def fingerprint_of(der: bytes) -> str:
    """Return the SHA-256 of a certificate's DER as 64 hex characters."""
    return hashlib.sha256(der).hexdigest()


def make_certificate(path: Path) -> tuple[Path, Path, str]:
    """Return certificate file, key file (both PEM, 0600) and fingerprint in the directory `path`.

    They are made on the first call and kept from then on, since peers hold the fingerprint. Raises
    TlsError when an existing file cannot be read.
    """
    certificate_path, key_path = path / CERTIFICATE, path / KEY
    if not (certificate_path.exists() and key_path.exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # The key first: a crash in between leaves a key alone, which the next start replaces.
        _write(key_path, secret)
        _write(certificate_path, _self_signed(key).public_bytes(serialization.Encoding.PEM))
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except ValueError:
        raise TlsError(f"{certificate_path}: not a certificate") from None
    der = certificate.public_bytes(serialization.Encoding.DER)
    return certificate_path, key_path, fingerprint_of(der)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "colonyd")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # Peers pin the certificate; the names are for SDKs that were given it as an authority.
        .add_extension(x509.SubjectAlternativeName(_names()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _names() -> list[x509.GeneralName]:
    """Return the names by which programs on this machine and near it call this machine."""
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    host = socket.gethostname()
    for name in (host, f"{host}.local"):
        if name.isascii() and "." not in name[:1] and name.partition(".")[0] != "localhost":
            names.append(x509.DNSName(name))
    return [*names, *(x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1"))]


def _write(path: Path, data: bytes) -> None:
    """Write `data` to `path` with mode 0600, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the listener's context: TLS 1.3 only, HTTP/1.1. Raises TlsError for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    # Without tickets nothing is written after the handshake: a peer that only reads the certificate
    # and leaves does not show up as a broken connection.
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise TlsError(f"{certificate} and {key} are not usable together: {error}") from None
    return context


def trusting(der: bytes) -> ssl.SSLContext:
    """Return a client context that completes a handshake with this one certificate only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # colonies have ids, not host names
    try:
        context.load_verify_locations(cadata=der)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"not a certificate: {error}") from None
    return context


def rpc_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context like that of `server_context`, but with TLS 1.2 for SDKs. Raises
    TlsError.
    """
    context = server_context(certificate, key)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context

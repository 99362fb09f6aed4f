"""The TLS hop between colonies: the daemon's certificate, and pinning a peer's before any byte.

A certificate is only what a signed card says it is, so names and dates in it prove nothing here;
who the peer is, the envelope's signature tells.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = [
    "TlsError",
    "fetch_certificate",
    "fingerprint_of",
    "make_certificate",
    "pinned_context",
    "server_context",
    "trusting",
]

# A host without a clock must not find a certificate "not yet valid"; 9999 means "no end"
# (RFC 5280, 4.1.2.5). What expires is the card.
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
    TlsError when what is there cannot be read.
    """
    certificate_path, key_path = path / "tls.crt", path / "tls.key"
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
        .sign(key, hashes.SHA256())
    )


def _write(path: Path, data: bytes) -> None:
    """Put `data` at `path` with mode 0600, whole or not at all."""
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
    # Without tickets nothing is written after the handshake, so a peer that only looks at the
    # certificate and leaves does not show up as a broken connection.
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


async def fetch_certificate(host: str, port: int, *, timeout: float = 5.0) -> bytes:
    """Return the DER of the certificate shown at `host`, by a handshake alone: no byte is sent.

    It bounds itself to `timeout` seconds. Raises TlsError, which names the address.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is trusted yet; the caller compares
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port)
            async with trio.SSLStream(stream, context, https_compatible=True) as tls:
                await tls.do_handshake()
                der: bytes | None = tls.getpeercert(binary_form=True)
    except trio.TooSlowError:
        raise TlsError(f"{host}:{port}: no TLS handshake within {timeout:g} s") from None
    except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
        raise TlsError(f"{host}:{port}: {error.__cause__ or error}") from None
    if der is None:
        raise TlsError(f"{host}:{port}: showed no certificate")
    return der


async def pinned_context(
    host: str, port: int, fingerprint: str, *, timeout: float = 5.0
) -> ssl.SSLContext:
    """Return a context for `host` that trusts exactly the certificate with `fingerprint`.

    Raises TlsError when another is shown there, before anything was sent to it.
    """
    der = await fetch_certificate(host, port, timeout=timeout)
    shown = fingerprint_of(der)
    if shown != fingerprint:
        raise TlsError(f"{host}:{port}: shows certificate {shown}, the card says {fingerprint}")
    return trusting(der)

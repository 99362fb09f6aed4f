"""TLS between colonies: the peer's certificate is pinned before any byte is sent.

A certificate is what a signed card says it is: names and dates in it prove nothing. The signature
of an envelope proves the peer. `node.host.certificate` makes our own certificate.
"""

from __future__ import annotations

import ssl
from functools import cache

import trio

from colonyd.http import reason_of
from node.host.certificate import (
    TlsError,
    fingerprint_of,
    make_certificate,
    server_context,
    trusting,
)

__all__ = [
    "TlsError",
    "fetch_certificate",
    "fingerprint_of",
    "make_certificate",
    "pinned_context",
    "server_context",
    "trusting",
]


@cache
def _curious() -> ssl.SSLContext:
    """Return the context of handshakes that only read the certificate: it trusts any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is trusted yet; the caller compares
    return context


async def fetch_certificate(host: str, port: int, *, timeout: float = 5.0) -> bytes:
    """Return the DER of the certificate shown at `host`, by a handshake alone: no byte is sent.

    The handshake takes at most `timeout` seconds. Raises TlsError, which names the address.
    """
    try:
        with trio.fail_after(timeout):
            stream = await trio.open_tcp_stream(host, port)
            async with trio.SSLStream(stream, _curious(), https_compatible=True) as tls:
                await tls.do_handshake()
                der: bytes | None = tls.getpeercert(binary_form=True)
    except trio.TooSlowError:
        raise TlsError(f"{host}:{port}: no TLS handshake within {timeout:g} s") from None
    except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
        raise TlsError(f"{host}:{port}: {reason_of(error.__cause__ or error)}") from None
    if der is None:
        raise TlsError(f"{host}:{port}: showed no certificate")
    return der


async def pinned_context(
    host: str, port: int, fingerprint: str, *, timeout: float = 5.0
) -> ssl.SSLContext:
    """Return a context for `host` that accepts only the certificate with `fingerprint`.

    Raises TlsError if another certificate is shown there, before anything is sent to it.
    """
    der = await fetch_certificate(host, port, timeout=timeout)
    shown = fingerprint_of(der)
    if shown != fingerprint:
        raise TlsError(f"{host}:{port}: shows certificate {shown}, the card says {fingerprint}")
    return trusting(der)

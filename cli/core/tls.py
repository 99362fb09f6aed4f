"""The certificates of a daemon that the command line accepts: a pinned one, the home's, or any
signed.

Connections are made by `cli.core.client`.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cli.core.errors import DENIED, UNREACHABLE, USAGE, Failure

if TYPE_CHECKING:
    from cli.core.session import Session

PIN = "COLONIES_SERVER_PIN"
_PATIENCE = 5.0  # seconds


def verification(session: Session, url: str) -> ssl.SSLContext | bool:
    """Return what checks the certificate at `url`; True: the authorities of the system.

    $COLONIES_SERVER_PIN names the SHA-256 of the only one; on this machine it is the home's own.
    Raises Failure.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    if pin := session.environ.get(PIN, "").replace(":", "").lower():
        return _pinned(host, port, pin)
    if session.own or is_local(host):
        rpc = session.config().rpc
        own = session.home / (rpc.certificate or "tls.crt")
        if own.exists():
            return _trusting(own)
    return True


def is_local(host: str) -> bool:
    """Return whether a host of a URL is this machine."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _trusting(path: Path) -> ssl.SSLContext:
    """Return a context that trusts the first certificate of a PEM file, whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"{path}: not a readable certificate: {error}", code=DENIED) from None
    return context


def _pinned(host: str, port: int, pin: str) -> ssl.SSLContext:
    """Return a context for the certificate that the server shows, if it has that fingerprint."""
    from node.host.certificate import fingerprint_of, trusting

    if len(pin) != 64 or not all(c in "0123456789abcdef" for c in pin):
        raise Failure(f"{PIN}: the SHA-256 of a certificate is 64 hex characters", code=USAGE)
    looking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    looking.check_hostname = False
    looking.verify_mode = ssl.CERT_NONE  # nothing is sent; the shown certificate is compared
    try:
        with (
            socket.create_connection((host, port), _PATIENCE) as plain,
            looking.wrap_socket(plain, server_hostname=host) as tls,
        ):
            der = tls.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise Failure(
            f"daemon not reachable at {host}:{port}: {error}",
            code=UNREACHABLE,
            next_step="start it with `colony up`, or name another with --server",
        ) from None
    shown = fingerprint_of(der)
    if shown != pin:
        raise Failure(
            f"{host}:{port} shows the certificate {shown}, not the one pinned",
            code=DENIED,
            next_step=f"ask its owner; {PIN} names the one to expect",
        )
    context = trusting(der)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context

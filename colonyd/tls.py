"""The certificates of a server that a client accepts: a pinned one, the home's, or any signed.

Connections are made by `colonyd.rpc`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colonyd.errors import NotPermitted, WrongSetting
from colonyd.rpc import Unreachable

PIN = "COLONIES_SERVER_PIN"
_PATIENCE = 5.0  # seconds


def verification(url: str, *, pin: str = "", own: Path | None = None) -> ssl.SSLContext | bool:
    """Return what checks the certificate at `url`; True: the authorities of the system.

    `pin` is the SHA-256 of the only one that is accepted, as hex. `own` is the file of the daemon's
    own certificate, if that is on this machine. Raises ColonyError, Unreachable.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    if pin := pin.replace(":", "").lower():
        return _pinned(host, port, pin)
    if own is not None and own.exists():
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
    try:
        return _accepting(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise NotPermitted(f"{path}: not a readable certificate: {error}") from None


def _accepting(**which: Any) -> ssl.SSLContext:
    """Return a context that accepts one certificate, whatever its name and its issuer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(**which)
    return context


def _pinned(host: str, port: int, pin: str) -> ssl.SSLContext:
    """Return a context for the certificate that the server shows, if it has that fingerprint."""
    if len(pin) != 64 or not all(c in "0123456789abcdef" for c in pin):
        raise WrongSetting(f"{PIN}: the SHA-256 of a certificate is 64 hex characters")
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
        raise Unreachable(f"{host}:{port}: {error}", sent=False) from None
    shown = hashlib.sha256(der).hexdigest()
    if shown != pin:
        raise NotPermitted(
            f"{host}:{port} shows the certificate {shown}, not the one pinned",
            next_step=f"ask its owner; {PIN} names the one to expect",
        )
    return _accepting(cadata=der)

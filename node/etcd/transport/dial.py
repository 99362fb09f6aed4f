"""Dialling etcd: the members of a cluster in turn, over TLS and with a password where needed.

The messages on a connection are in `channel`.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from node.etcd.generated import pb

AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
# The errors of a non-blocking socket that would have to wait, with TLS or without.
LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Access:
    """The address of etcd and the credentials.

    `targets` are "unix:/path" or "host:port", at least one.
    """

    targets: tuple[str, ...]
    tls: ssl.SSLContext | None = None
    user: str = ""
    password: str = ""

    def login(self) -> bytes:
        """Return the message that asks for a token; empty without a user."""
        if not self.user:
            return b""
        return bytes(
            pb.AuthenticateRequest(name=self.user, password=self.password).SerializeToString()
        )


def read_token(answer: bytes) -> str:
    """Return the token in the answer to a login."""
    found: Any = pb.AuthenticateResponse.FromString(answer)
    return str(found.token)


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the authority in `ca` (None: those of the system) and shows
    a certificate, if given.

    Raises OSError, of which ssl.SSLError is one.
    """
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def authority(target: str) -> str:
    """Return the name of the server in a call."""
    return "localhost" if target.startswith("unix:") else plain(target)


def plain(target: str) -> str:
    """Return a target as host:port, without the scheme that etcd's own tools write before it."""
    return target.removeprefix("http://").removeprefix("https://").rstrip("/")


async def connect(target: str, tls: ssl.SSLContext | None) -> socket.socket:
    """Return a connected, non-blocking socket. Raises OSError."""
    if target.startswith("unix:"):
        stream = await trio.open_unix_socket(target.removeprefix("unix:").removeprefix("//"))
        return _detach(stream)
    host, _, port = plain(target).rpartition(":")
    if not port.isdecimal():
        raise OSError(f"{target!r} is not host:port")
    host = host.strip("[]")
    connected = _detach(await trio.open_tcp_stream(host, int(port)))
    if tls is None:
        return connected
    try:
        secure = tls.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        connected.close()
        raise
    try:
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secure)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secure)
            else:
                return secure
    except BaseException:
        secure.close()
        raise


def _detach(stream: trio.SocketStream) -> socket.socket:
    connected = socket.socket(fileno=stream.socket.detach())
    connected.setblocking(False)
    return connected

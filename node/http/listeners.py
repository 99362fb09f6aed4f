"""Listeners: an address of the settings becomes sockets, or an error that says what is in the way.

`http.server` serves on them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any, TypeAlias

import trio

from node.host.log import get_logger
from node.host.ports import holder_of

ANYWHERE = ("", "*")  # all addresses, IPv4 and IPv6

_BACKLOG = 65_535  # connections that wait to be accepted; the kernel's own bound is lower
_TRIES = 50  # of finding a port that is free in both families
_ABSENT = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

Listener: TypeAlias = trio.abc.Listener[trio.abc.Stream]
_Address: TypeAlias = tuple[int, tuple[Any, ...]]  # family, and what bind() takes

log = get_logger("listeners")


class ListenError(Exception):
    """An address can't be listened on; the message names the setting, why, and what to do.

    `lasting`: it will not get better by trying again.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


async def open_listeners(
    host: str, port: int, ssl_context: SSLContext | None = None, *, section: str = "rpc"
) -> list[Listener]:
    """Bind `host`:`port`, a name or address; "*" is all addresses, IPv4 and IPv6.

    Port 0 picks a free one, the same for all addresses. An address that this machine does not have
    is left out where there are others. `section` of the settings is named in errors. Raises
    ListenError.
    """
    addresses = await _addresses(host, port, section)
    for left in reversed(range(_TRIES)):
        try:
            sockets = await _bind_all(addresses, section)
            break
        except _Busy as busy:
            # The kernel chose a port that is taken in the other family: try another one.
            if port or not left:
                raise ListenError(await _in_use(busy.address, section)) from None
    if ssl_context is None:
        return list(sockets)
    return [trio.SSLListener(each, ssl_context, https_compatible=True) for each in sockets]


class _Busy(Exception):
    def __init__(self, address: tuple[Any, ...]) -> None:
        super().__init__(address)
        self.address = address


async def _addresses(host: str, port: int, section: str) -> list[_Address]:
    try:
        found = await trio.socket.getaddrinfo(
            None if host in ANYWHERE else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ListenError(
            f"{section}.host: {host!r} is not found ({reason}): name an address of this machine"
            ' (`ip address` shows them), or "*" for all'
        ) from None
    return list(dict.fromkeys((int(family), tuple(address)) for family, *_, address in found))


async def _bind_all(addresses: Sequence[_Address], section: str) -> list[trio.SocketListener]:
    """Return listeners on all of these addresses that this machine has. Raises ListenError,
    _Busy.
    """
    opened: list[trio.SocketListener] = []
    refusal: ListenError | None = None
    try:
        for family, address in addresses:
            if opened and address[1] == 0:
                address = (address[0], bound_port(opened), *address[2:])
            try:
                opened.append(await _bind(family, address))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _Busy(address) from None
                refusal = _refusal(error, address, section)
                if error.errno not in _ABSENT or len(addresses) == 1:
                    raise refusal from None
                log.info("not listening", address=_text(address), because=error.strerror)
        if refusal is not None and not opened:
            raise refusal
    except BaseException:
        with trio.CancelScope(shield=True):
            for listener in opened:
                await listener.aclose()
        raise
    return opened


async def _bind(family: int, address: tuple[Any, ...]) -> trio.SocketListener:
    made = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own, so that none of its addresses looks like one of IPv6.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await made.bind(address)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return trio.SocketListener(made)


def _refusal(error: OSError, address: tuple[Any, ...], section: str) -> ListenError:
    host, port = address[0], address[1]
    if error.errno in _ABSENT:
        return ListenError(
            f"{section}.host: this machine has no address {host} now ({error.strerror}):"
            ' `ip address` shows those it has; "*" is all of them'
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ListenError(
            f"{section}.port: this user may not listen on port {port} ({error.strerror}): choose"
            " one from 1024 on, or give the service CAP_NET_BIND_SERVICE",
            lasting=True,
        )
    return ListenError(f"{section}.host: {_text(address)}: {error.strerror}")


async def _in_use(address: tuple[Any, ...], section: str) -> str:
    port = int(address[1])
    flag = "--port" if section == "rpc" else f"--{section}-port"
    holder = await trio.to_thread.run_sync(holder_of, port)
    if holder is not None and holder.pid == os.getpid():
        return f"{section}.port: port {port} is this daemon's other port too: choose two ({flag})"
    who = holder or "a process that is not shown to this user"
    return (
        f"{section}.port: {_text(address)} is in use by {who}: stop that, or choose another port"
        f" ({flag}, or {section}.port in config.toml; 0 picks a free one)"
    )


def _text(address: tuple[Any, ...]) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket_of(listener: Any) -> Any:
    if isinstance(listener, trio.SSLListener):
        listener = listener.transport_listener
    return listener.socket


def bound_port(listeners: Sequence[Listener]) -> int:
    """Return the TCP port that the first of `listeners` is bound to."""
    return int(_socket_of(listeners[0]).getsockname()[1])


def addresses_of(listeners: Sequence[Listener]) -> list[str]:
    """Return the addresses that are bound, as "host:port"."""
    return [_text(_socket_of(listener).getsockname()) for listener in listeners]

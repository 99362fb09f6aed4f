"""The addresses of a home's daemon, as a file in that home: for commands on the same machine.

`http.listeners` binds addresses; the command line decides which server it talks to.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from node.host.home import HomeError
from node.host.log import get_logger
from node.model.ids import NAME

FILE = "listening.json"
_LONGEST = 65_536  # bytes of the file that are read

Address = Annotated[str, msgspec.Meta(pattern=r"^.+:[0-9]{1,5}\Z", max_length=300)]

log = get_logger("listening")


@dataclass
class Serving:
    """The address of RPC (`host` as configured), and that of the store if it is not the daemon's
    own.

    The parts of a node hold it before a port is open (it is 0 until then) and an extension runs.
    """

    host: str = ""
    store: str = ""
    port: int = 0
    _extension: Callable[[], dict[str, Any]] | None = None

    def opened(self, port: int) -> None:
        """Note the port, once it is open."""
        self.port = port

    def extended(self, status: Callable[[], dict[str, Any]]) -> None:
        """Note the function that returns the extension's state, once it runs."""
        self._extension = status

    def status(self) -> dict[str, Any]:
        """Return the extension's state, by name; {} without one."""
        return self._extension() if self._extension is not None else {}


class Listening(msgspec.Struct, frozen=True):
    """The addresses of a running daemon, as "host:port", as they were bound.

    `serverid` is that of the store as the daemon started.
    """

    pid: int
    colony: Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}")]
    serverid: str
    rpc: list[Address]
    tls: bool = False
    federation: list[Address] = []

    @property
    def url(self) -> str:
        """Return the URL by which a program on this machine calls RPC."""
        # IPv4 before IPv6: of two addresses, the one that more programs can speak to.
        first = min(self.rpc, key=lambda address: address.startswith("["))
        host, _, port = first.rpartition(":")
        return url_of(host.strip("[]"), int(port), tls=self.tls)


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Return the URL by which a program on this machine reaches the address `host`."""
    if host in ("", "*"):
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def withdrawn(home: Path) -> Iterator[None]:
    """Remove the file before this run writes it, and after the run."""
    withdraw(home)
    try:
        yield
    finally:
        withdraw(home)


def withdraw(home: Path) -> None:
    """Remove the file. Raises HomeError."""
    try:
        (home / FILE).unlink(missing_ok=True)
    except OSError as error:
        raise HomeError(
            f"cannot remove {home / FILE}: {error.strerror}. The daemon tells there where it"
            " listens: move away what is in its place, or let the daemon's user write there"
        ) from None


def announce(home: Path, listening: Listening) -> None:
    """Write the addresses for commands on this machine; if that fails, log it."""
    path = home / FILE
    fresh = path.with_name(f".{FILE}.new")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(listening)) + b"\n")
        fresh.chmod(0o644)  # it is no secret, whatever the umask is
        fresh.replace(path)
    except OSError as error:
        # A full disk, for one: commands are not worth staying down for.
        log.warning(
            "commands are not told where the daemon listens",
            file=str(path),
            because=error.strerror,
            next="give them --server",
        )


def read_listening(home: Path) -> Listening | None:
    """Return the addresses that the daemon of a home last wrote, None if it stopped in order, or
    wrote none.

    After a kill the file stays: then no daemon answers at that address, or another one does.
    """
    # The home of another user may be read: a special file there must not make us wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(home / FILE, flags), "rb") as file:
            found = msgspec.json.decode(file.read(_LONGEST) or b"", type=Listening)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.rpc else None

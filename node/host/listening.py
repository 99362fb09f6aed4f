"""The addresses of a home's daemon, as a file in that home: for commands on the same machine.

`http.listeners` binds addresses; the command line decides which server it talks to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from colonyd.places import LISTENING, Listening
from node.host.home import HomeError
from node.host.log import get_logger

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
        (home / LISTENING).unlink(missing_ok=True)
    except OSError as error:
        raise HomeError(
            f"cannot remove {home / LISTENING}: {error.strerror}. The daemon tells there where it"
            " listens: move away what is in its place, or let the daemon's user write there"
        ) from None


def announce(home: Path, listening: Listening) -> None:
    """Write the addresses for commands on this machine; if that fails, log it."""
    path = home / LISTENING
    fresh = path.with_name(f".{LISTENING}.new")
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

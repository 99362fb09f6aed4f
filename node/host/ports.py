"""Owners of ports of this machine, as far as the kernel tells this user (Linux).

The code that fails to bind a port says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from colonyd.places import read_listening, user_name

_LISTEN = "0A"  # TCP_LISTEN, in /proc/net/tcp
_UNMAPPED = 65534  # what the kernel shows for users outside of our user namespace (PrivateUsers=)


@dataclass(frozen=True)
class PortOwner:
    """A process that has a port. `pid` is 0 where only its user is known."""

    pid: int
    text: str

    def __str__(self) -> str:
        return f"{self.text}, pid {self.pid}" if self.pid else self.text


@dataclass(frozen=True)
class _SocketInfo:
    inode: str
    uid: int
    listens: bool


def holder_of(port: int, protocol: str = "tcp", proc: Path = Path("/proc")) -> PortOwner | None:
    """Return the owner of a port of "tcp" or "udp", a listener before others; None if none is
    seen.
    """
    found = sorted(_sockets(port, protocol, proc), key=lambda each: not each.listens)
    if not found:
        return None
    wanted = {f"socket:[{each.inode}]" for each in found}
    for process in proc.glob("[0-9]*"):
        held = list(_open_files(process))
        if wanted.intersection(held):
            with suppress(OSError):  # it just ended
                return PortOwner(int(process.name), _described(process, held, port))
    uid = found[0].uid
    return PortOwner(
        0, "another user's process" if uid == _UNMAPPED else f"a process of user {user_name(uid)}"
    )


def _sockets(port: int, protocol: str, proc: Path) -> Iterator[_SocketInfo]:
    """Return the sockets that have this local port, of either family."""
    for name in (protocol, f"{protocol}6"):
        with suppress(OSError):
            for line in (proc / "net" / name).read_text("ascii").splitlines()[1:]:
                columns = line.split()
                if len(columns) > 9 and int(columns[1].rpartition(":")[2], 16) == port:
                    yield _SocketInfo(columns[9], int(columns[7]), columns[3] == _LISTEN)


def _open_files(process: Path) -> Iterator[str]:
    """Return the open files of a process; none if it ended, or is another user's."""
    with suppress(OSError):
        for entry in (process / "fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                yield os.readlink(entry)


def _described(process: Path, held: list[str], port: int) -> str:
    """Return a process in words: another daemon by its colony and home, any other by its name."""
    for path in held:
        # A daemon holds the lock of its home open, and writes its addresses there.
        told = read_listening(Path(path).parent) if path.endswith("/lock") else None
        if told and any(each.endswith(f":{port}") for each in (*told.rpc, *told.federation)):
            return _plain(f"colonyd of colony {told.colony} (home {Path(path).parent})")
    return _plain((process / "comm").read_text("utf-8", "replace").strip())


def _plain(text: str) -> str:
    """Return text of other programs without anything that a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text)

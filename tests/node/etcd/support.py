"""A real etcd for tests, run by the supervisor under test, and ways to look at its process.

No test lives here.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from node.etcdserver.supervisor import supervise

QUOTA = 64 * 1024 * 1024


@dataclass(frozen=True)
class Store:
    """A supervised etcd: where it is reached and where it lives."""

    target: str
    directory: Path

    def pid(self) -> int:
        """The process id of the etcd that runs now."""
        return int((self.directory / "etcd.pid").read_text().split()[0])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to etcd itself; after a SIGSTOP it has really stopped."""
        os.kill(self.pid(), number)
        if number == signal.SIGSTOP:
            # The signal is only asked for: a thread could still answer the next request.
            os.waitid(os.P_PID, self.pid(), os.WSTOPPED | os.WNOWAIT)


async def start_store(nursery: trio.Nursery, directory: Path, *, quota: int = QUOTA) -> Store:
    """A supervised etcd that ends with the nursery."""
    target: str = await nursery.start(partial(supervise, directory, quota_bytes=quota))
    return Store(target, directory)


def socket_inodes(pid: int) -> set[str]:
    """Inode numbers of the sockets a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
        except FileNotFoundError:
            continue
        if match:
            found.add(match[1])
    return found


def network_inodes(pid: int, *tables: str) -> set[str]:
    """Inode numbers in the process's tables of sockets, such as tcp or unix."""
    found: set[str] = set()
    for table in tables:
        lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        found.update(line.split()[6 if table == "unix" else 9] for line in lines)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@contextmanager
def logged(event: str, logger: str) -> Iterator[trio.Event]:
    """An event that is set when the daemon logs `event` to `logger`."""
    seen = trio.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == event:
                seen.set()

    handler = Handler()
    target = logging.getLogger(f"colonyd.{logger}")
    target.addHandler(handler)
    level = target.level
    target.setLevel(logging.DEBUG)
    try:
        yield seen
    finally:
        target.removeHandler(handler)
        target.setLevel(level)

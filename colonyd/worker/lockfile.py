"""The lock file of a worker: it keeps a second one out, and tells which process holds it.

What the worker does is in `engine`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from colonyd.pids import start_time, user_of

_LONGEST = 4096  # bytes of a lock file


class Holder(msgspec.Struct, frozen=True):
    """The worker that holds a lock: its process, and the executor that it is."""

    pid: int
    started: str  # clock ticks since the machine's start; with the pid it names one process
    colony: str
    name: str
    kind: str

    @property
    def alive(self) -> bool:
        """Return whether that process lives."""
        try:
            return start_time(self.pid) == self.started
        except (OSError, IndexError):
            return False


@contextlib.contextmanager
def hold(path: Path, colony: str, name: str, kind: str) -> Iterator[None]:
    """Hold the lock and tell in its file who does. Raises BlockingIOError if a worker has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A full disk keeps nobody from work, nor a system without /proc.
        with contextlib.suppress(OSError):
            own = os.getpid()
            told = msgspec.json.encode(Holder(own, start_time(own), colony, name, kind))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, told, 0)
        yield
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> Holder | None:
    """Return the worker that holds the lock now; None for a lock that nobody holds.

    Also None where its file does not name a process of this machine and of the file's owner, as one
    that a worker of an earlier version holds, or one in a container. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            holder = msgspec.json.decode(os.read(descriptor, _LONGEST), type=Holder)
        except msgspec.MsgspecError:
            return None
        # The process first: the lock of a live worker is never taken, not even for a moment.
        if holder.pid <= 1 or not holder.alive:
            return None
        # Whoever writes a lock file must not name the processes of others.
        if user_of(holder.pid) != os.fstat(descriptor).st_uid:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder
        return None
    finally:
        os.close(descriptor)

"""What befalls the daemons of a storm: kills, stalls, a full disk, steps of the clock.

Each takes a host, does its harm for a moment, and returns once that is over; that all is well again
is for the storm to wait for.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from colonyd.keys import PrivateKey, read_key
from tests.support.daemons import REPOSITORY, Daemon
from tests.support.faketime_daemons import clocked, faketime, set_clock

__all__ = ["NEMESES", "Host", "Nemesis", "host"]

_DISK = 400  # MiB
_STALL = 7.0  # seconds, at most
_FULL = 5.0  # seconds
_STEP = 400  # seconds that a clock is wrong at most: below that, markers are kept


class Host(Daemon):
    """A daemon whose disk can be filled and whose clock can be set, where the machine allows it."""

    def __init__(self, place: Path, name: str) -> None:
        super().__init__(place / name, name)
        self.environ["PYTHONPATH"] = str(REPOSITORY)
        self.ahead = self.latest = 0  # seconds; `latest` is the most so far
        self.inside = self.home
        self.disk = False
        self.clock: Path | None = None
        if faketime() is not None:
            self.clock = place / f"{name}.clock"
            set_clock(self.clock, 0)
            self.environ |= clocked(self.clock)

    def key(self, name: str) -> PrivateKey:
        """A key of the home directory, which may be on a disk that only the daemon sees."""
        return read_key(self.inside / "keys" / f"{name}.key")

    def show(self, ahead: int) -> None:
        """Set the clock to so many seconds ahead of the true one."""
        self.ahead, self.latest = ahead, max(self.latest, ahead)
        if self.clock is not None:
            set_clock(self.clock, ahead)

    def fill(self) -> None:
        """Leave nothing on the disk."""
        with (self.inside / "ballast").open("wb") as file:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.inside).free - 2**20)
            os.lseek(file.fileno(), 0, os.SEEK_END)
            with suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))

    def free(self) -> None:
        """Give it back."""
        (self.inside / "ballast").unlink(missing_ok=True)


@contextmanager
def host(place: Path, name: str) -> Iterator[Host]:
    """A host, with a small disk of its own if this user may mount one; it is not started."""
    made = Host(place, name)
    made.home.mkdir()
    script = f"mount -t tmpfs -o size={_DISK}m,mode=0700 tmpfs {made.home} && echo there && cat"
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() == b"there\n":
            made.disk = True
            made.inside = Path(f"/proc/{holder.pid}/root{made.home}")
            made.prefix = ["nsenter", f"--target={holder.pid}", "--user", "--mount"]
            made.prefix += ["--preserve-credentials", "--"]
        yield made
    finally:
        if made.process is not None:
            made.free()
            made.stop()
        holder.communicate()


async def _in_thread(act: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(act)


async def kill(host: Host, dice: random.Random) -> None:
    """SIGKILL of the daemon; it is started again."""
    await _in_thread(host.kill)
    await trio.sleep(dice.random())
    await _in_thread(host.start)


async def kill_store(host: Host, dice: random.Random) -> None:
    """SIGKILL of etcd; the daemon starts it again."""
    mark = len(host.events)
    try:
        host.kill_etcd()
    except ProcessLookupError:
        return  # it has ended by itself, and is being started
    await _in_thread(lambda: host.await_event('event="etcd serves"', after=mark))


async def _stall(pid: int, seconds: float) -> None:
    """Let a process stand still; it may have ended by itself, as etcd does on a full disk."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            await trio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)


async def stall(host: Host, dice: random.Random) -> None:
    """The daemon stands still."""
    assert host.process is not None
    await _stall(host.process.pid, _STALL * dice.random())


async def stall_store(host: Host, dice: random.Random) -> None:
    """etcd stands still."""
    await _stall(host.etcd_pid, _STALL * dice.random())


async def fill_disk(host: Host, dice: random.Random) -> None:
    """The disk is full to the last byte, and then it is not."""
    try:
        await _in_thread(host.fill)
        await trio.sleep(_FULL * dice.random())
    finally:
        host.free()


async def step_clock(host: Host, dice: random.Random) -> None:
    """The wall clock jumps, forward or back, and stays so."""
    assert host.clock is not None
    host.show(dice.randint(-_STEP, _STEP))


Nemesis = Callable[[Host, random.Random], Awaitable[None]]
NEMESES: dict[str, Nemesis] = {
    "kill": kill,
    "kill-store": kill_store,
    "stall": stall,
    "stall-store": stall_store,
    "disk": fill_disk,
    "clock": step_clock,
}


def able(name: str, host: Host) -> bool:
    """Whether a nemesis can befall a host here."""
    return {"disk": host.disk, "clock": host.clock is not None}.get(name, True)

"""The workers of this machine as `colony chaos` sees them: found by their locks, killed, restarted.

Who is killed, and what it did to the processes, is judged in `cli.chaos.judge`.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from cli.chaos.judge import victim
from colonyd.pids import user_of
from colonyd.worker.lockfile import Holder, holder_of

SERVICES = Path("/var/lib/colony-worker")  # a directory for each colonyd-worker@NAME.service
BACK = 60.0  # seconds for a killed worker to be up again
_UNIT = re.compile(r"/([^/]+\.service)(?:/|$)")
_LOOK = 0.1  # seconds between looks whether a worker is up again


class Target(Protocol):
    """A worker that may be killed."""

    @property
    def name(self) -> str:
        """Return the name of its executor."""

    def up(self) -> bool:
        """Return whether it takes work."""

    async def kill(self, number: signal.Signals) -> bool:
        """Send it a signal; return whether it was there to get it."""


@dataclass
class Storm:
    """Kills one worker at a time. `down` of its workers at once is the most it saw."""

    targets: Sequence[Target]
    bound: int
    every: float
    number: signal.Signals
    dice: random.Random
    say: Callable[[str], None]
    kills: list[str] = field(default_factory=list)  # names, in the order of the kills
    down: int = 0
    skipped: int = 0  # turns at which one more would have been too many

    async def rage(self, seconds: float, stop: trio.Event) -> None:
        """Kill one each `every` seconds until `stop` is set or the time is over."""
        until = trio.current_time() + seconds
        while trio.current_time() + self.every <= until:
            with trio.move_on_after(self.every):
                await stop.wait()
                return
            up = [target for target in self.targets if target.up()]
            chosen = victim(up, len(self.targets), self.bound, self.dice)
            if chosen is None:
                self.skipped += 1
            elif await chosen.kill(self.number):
                self.kills.append(chosen.name)
                self.say(f"{self.number.name} for {chosen.name}")
            self.down = max(self.down, len(self.targets) - sum(t.up() for t in self.targets))

    async def calm(self, seconds: float = BACK) -> list[str]:
        """Wait until all are up; return the names of those that are not, `seconds` later."""
        until = trio.current_time() + seconds
        while True:
            missing = [target.name for target in self.targets if not target.up()]
            if not missing or trio.current_time() >= until:
                return missing
            await trio.sleep(_LOOK)


@dataclass
class Command:
    """How a process was started; enough to start it again as it was."""

    words: list[bytes]
    environ: dict[bytes, bytes]
    directory: str
    outputs: tuple[int, int]  # descriptors of its stdout and stderr, ours to close

    @classmethod
    def of(cls, pid: int) -> Command:
        """Read how a process was started. Raises OSError."""
        proc = Path(f"/proc/{pid}")
        words = (proc / "cmdline").read_bytes().split(b"\0")[:-1]
        pairs = (pair.partition(b"=") for pair in (proc / "environ").read_bytes().split(b"\0"))
        environ = {name: value for name, _, value in pairs if name}
        directory = os.readlink(proc / "cwd")
        return cls(words, environ, directory, (_reopened(proc / "fd/1"), _reopened(proc / "fd/2")))

    def start(self) -> subprocess.Popen[bytes]:
        """Start it again, in a session of its own. Raises OSError."""
        return subprocess.Popen(
            self.words,
            env=self.environ,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self.outputs[0],
            stderr=self.outputs[1],
            start_new_session=True,
        )

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self.outputs:
            os.close(descriptor)


def _reopened(path: Path) -> int:
    # A pipe or a terminal opens anew by its name below /proc; a socket does not.
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        os.set_blocking(descriptor, True)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return descriptor


@dataclass
class Found:
    """A worker that runs on this machine."""

    lock: Path
    holder: Holder
    uid: int
    unit: str = ""  # the systemd unit that starts it again; "" if nothing does
    restart: bool = False  # this command starts it again
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.holder.name

    def up(self) -> bool:
        """Return whether a worker holds the lock."""
        for child in self._started:
            child.poll()
        with contextlib.suppress(OSError):
            return holder_of(self.lock) is not None
        return False

    async def kill(self, number: signal.Signals) -> bool:
        """Send the worker a signal, and start it again once it is gone if nobody else does."""
        try:
            holder = holder_of(self.lock)
            if holder is None:
                return False
            # From here on the number can't be given to another process unnoticed.
            pidfd = os.pidfd_open(holder.pid)
        except OSError:
            return False
        command: Command | None = None
        try:
            # Its file may name another process by now, of a user whose words are not to be run.
            if not holder.alive or user_of(holder.pid) != self.uid:
                return False
            command = Command.of(holder.pid) if self.restart else None
            with trio.CancelScope(shield=True):
                signal.pidfd_send_signal(pidfd, number)
                with trio.move_on_after(BACK) as scope:
                    await trio.lowlevel.wait_readable(pidfd)
                if scope.cancelled_caught:  # it had the time to finish
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    await trio.lowlevel.wait_readable(pidfd)
                if command is not None:
                    with contextlib.suppress(OSError):  # it is told as not up again
                        self._started.append(command.start())
            return True
        except OSError:
            return False
        finally:
            os.close(pidfd)
            if command is not None:
                command.close()


def find(places: Sequence[Path], colony: str) -> list[Found]:
    """Return the workers of a colony whose locks lie in `places`, by name."""
    found: dict[int, Found] = {}
    for place in places:
        for lock in sorted(place.glob("worker-*.lock")):
            with contextlib.suppress(OSError):
                holder = holder_of(lock)
                if holder is None or holder.colony != colony:
                    continue
                if (uid := user_of(holder.pid)) is not None:
                    found.setdefault(holder.pid, Found(lock, holder, uid))
    return sorted(found.values(), key=lambda each: each.name)


def unit_of(cgroup: str) -> tuple[str, bool]:
    """Return the service that a process is in, by the text of its /proc/PID/cgroup, and whether a
    user's systemd runs it.
    """
    for line in cgroup.splitlines():
        units = [unit for unit in _UNIT.findall(line) if not unit.startswith("user@")]
        if units:
            return units[-1], "/user@" in line
    return "", False


def _cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text("utf-8", "replace")


async def service_of(pid: int) -> str:
    """Return the service whose main process this is and that is restarted when it is killed."""
    try:
        unit, of_user = unit_of(_cgroup(pid))
        if not unit:
            return ""
        words = ["systemctl", *(["--user"] if of_user else []), "show", unit]
        asked = await trio.run_process(
            [*words, "--property=MainPID,Restart"], capture_stdout=True, check=False
        )
    except OSError:
        return ""
    told = dict(line.partition("=")[::2] for line in asked.stdout.decode().splitlines())
    restarts = told.get("Restart") in ("always", "on-failure", "on-abnormal", "on-abort")
    return unit if restarts and told.get("MainPID") == str(pid) else ""

"""Preflight of the embedded etcd: the locked home, its directory, the binary, no leftover process.

Each obstacle is refused with a message that says what to do; `supervisor` runs etcd.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from colonyd.pids import start_time
from node.etcd.errors import StoreRefused
from node.etcd.pressure import MIN_FREE
from node.etcdserver.faults import CUT_OFF, DAMAGE, following
from node.etcdserver.wal import is_cut_off
from node.host.home import HomeError, require_owner
from node.host.log import get_logger

log = get_logger("etcd")

_SOCKET, _PEER_SOCKET = "localhost:1", "localhost:2"
_PID_FILE = "etcd.pid"
_VERSION_FILE = "etcd.version"
_DAMAGE_FILE = "damaged"  # beside the data, and moved aside with them
_MAX_SOCKET_PATH = 107  # bytes, by Linux
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TZ", "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG")


@contextmanager
def lock_home(path: Path) -> Iterator[None]:
    """Hold the home directory `path` for this process alone; raises `StoreRefused` if another does.

    The lock ends with the process however that ends, so it never needs to be removed by hand.
    """
    try:
        require_owner(path)
    except HomeError as error:
        raise StoreRefused(str(error)) from None
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreRefused(f"cannot lock {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            who = f" (pid {holder})" if holder.isdigit() else ""
            raise StoreRefused(
                f"another daemon{who} runs with the home {path}: stop it, or choose another --home"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of etcd: no ETCD_* that would change its configuration, and no
    secrets.
    """
    return {name: environ[name] for name in _KEPT_VARIABLES if name in environ}


@dataclass(frozen=True)
class EtcdInstallation:
    """A directory fit for etcd, the binary, and the address of its socket."""

    directory: Path
    binary: str
    setpriv: str | None
    target: str

    def remember(self, pid: int) -> None:
        """Note the running etcd, for a later daemon that finds it orphaned."""
        (self.directory / _PID_FILE).write_text(f"{pid} {start_time(pid)}\n")

    def clear_sockets(self) -> None:
        """Remove the sockets of a killed etcd: etcd refuses to listen where one exists."""
        for name in (_SOCKET, _PEER_SOCKET):
            (self.directory / name).unlink(missing_ok=True)

    def note_damage(self, what: str) -> None:
        """Have later starts refused: some would succeed, with a part of the data lost."""
        with suppress(OSError):
            (self.directory / "data" / _DAMAGE_FILE).write_text(what + "\n")

    def forget(self) -> None:
        """Remove the note of the running etcd."""
        (self.directory / _PID_FILE).unlink(missing_ok=True)


@contextmanager
def open_installation(directory: Path, binary: str) -> Iterator[EtcdInstallation]:
    """Check and prepare `directory` (made when missing, 0700); raises `StoreRefused`."""
    found = shutil.which(binary)
    if found is None:
        raise StoreRefused(
            f"there is no program `{binary}`: install etcd (Debian: apt install etcd-server), "
            "or set [etcd] endpoints to use one that runs elsewhere"
        )
    directory = directory.absolute()
    _prepare_directory(directory)
    _check_space(directory)
    _check_version(directory, _version_of(found))
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = str(directory / _SOCKET)
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            # The kernel's limit is on the text of the path, not on the place: name it through our
            # descriptor.
            path = f"/proc/self/fd/{descriptor}/{_SOCKET}"
        yield EtcdInstallation(directory, found, shutil.which("setpriv"), f"unix:{path}")
    finally:
        os.close(descriptor)


def _prepare_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (directory, directory / "data", directory / "data" / "member"):
            if path.exists():
                _check_owner(path)
        directory.chmod(0o700)
    except OSError as error:
        raise StoreRefused(
            f"cannot use {error.filename} for the store: {error.strerror}: who owns it, and how is"
            " its file system mounted?"
        ) from error
    data = directory / "data"
    if data.exists() and any(data.iterdir()) and not (data / "member").is_dir():
        raise StoreRefused(f"{data} holds something that is not etcd's: move it away")
    with suppress(FileNotFoundError):
        raise StoreRefused(
            f"the store in {directory} does not start: at an earlier start"
            f" {(data / _DAMAGE_FILE).read_text().strip()}: {following(DAMAGE, directory)}"
        )
    with suppress(OSError):  # etcd tells what it can't read
        if is_cut_off(data / "member"):
            raise StoreRefused(
                f"the store in {directory} does not start: {CUT_OFF}: "
                + following(DAMAGE, directory)
            )


def _check_owner(path: Path) -> None:
    entry = path.stat()
    if not stat.S_ISDIR(entry.st_mode):
        raise StoreRefused(f"{path} is not a directory")
    if entry.st_uid != os.geteuid():
        raise StoreRefused(
            f"{path} belongs to user {entry.st_uid}, this daemon runs as user {os.geteuid()}: "
            "start it as that user, or give it the directory (chown -R)"
        )


def _check_space(directory: Path) -> None:
    """Refuse to begin a store without room for its first files; an existing store may do."""
    free = shutil.disk_usage(directory).free
    if free >= MIN_FREE:
        return
    trouble = (
        f"the disk of {directory} is full: {free // 2**20} MiB free, "
        f"the store needs {MIN_FREE // 2**20} MiB"
    )
    if not (directory / "data" / "member").is_dir():
        raise StoreRefused(trouble)
    log.error("the store starts nevertheless", because=trouble)


def _version_of(binary: str) -> tuple[int, int]:
    try:
        result = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment(os.environ),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreRefused(f"{binary} does not run: {error}") from error
    match = re.search(r"etcd Version: (\d+)\.(\d+)", result.stdout)
    if match is None:
        said = (result.stdout + result.stderr).strip()[:200]
        raise StoreRefused(f"{binary} is not an etcd: `--version` says {said!r}")
    return int(match[1]), int(match[2])


def _check_version(directory: Path, version: tuple[int, int]) -> None:
    """Refuse data of a newer etcd: an older one would fail on it in the middle of its start."""
    note = directory / _VERSION_FILE
    try:
        major, minor = note.read_text().strip().split(".")
        last = (int(major), int(minor))
    except (FileNotFoundError, ValueError):
        last = (0, 0)
    if last > version:
        raise StoreRefused(
            f"the store in {directory} was written by etcd {last[0]}.{last[1]}, the installed one "
            f"is {version[0]}.{version[1]}, which cannot read it: install the newer one again"
        )
    if last != version:
        note.write_text(f"{version[0]}.{version[1]}\n")


def _is_ours(pid: int, started: str, directory: Path) -> bool:
    return start_time(pid) == started and os.path.samefile(f"/proc/{pid}/cwd", directory)


async def wait_exit(pidfd: int) -> None:
    """Wait until the process behind `pidfd` has ended."""
    await trio.lowlevel.wait_readable(pidfd)


async def stop_orphan(directory: Path, *, patience: float) -> None:
    """End the etcd a killed daemon left on `directory`: SIGTERM, SIGKILL after `patience` s."""
    note = directory / _PID_FILE
    try:
        pid_text, started = note.read_text().split()
        pid = int(pid_text)
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        note.unlink(missing_ok=True)
        return
    try:
        # Checked after opening: the pidfd stays with this process even if the pid is used again.
        if not _is_ours(pid, started, directory):
            return
        log.warning("an etcd left behind by a killed daemon is stopped", pid=pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        with trio.move_on_after(patience):
            await wait_exit(pidfd)
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await wait_exit(pidfd)
    except (FileNotFoundError, ProcessLookupError):
        return
    finally:
        os.close(pidfd)
        note.unlink(missing_ok=True)

"""The daemon that is measured: a real `colonyd` in a home of its own, and what /proc says of it."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 40.0  # seconds


class BenchError(Exception):
    """The daemon or the load did not do its part."""


def free_port() -> int:
    """A TCP port that nobody holds at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB; NaN when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return math.nan


def child_called(pid: int, name: str) -> int | None:
    """The child of `pid` whose command is `name`."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == name:
                    return int(child)
    return None


class Daemon:
    """A real `colonyd` in a home of its own on a free port; `settings` are of its environment."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.port = free_port()
        # A developer's own colony must not leak in.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("COLON")}
        self._environ = environ | {
            "COLONYD_HOME": str(home),
            "COLONYD_RPC__HOST": "127.0.0.1",
            "COLONYD_RPC__PORT": str(self.port),
            "COLONYD_FEDERATION__HOST": "127.0.0.1",
            "COLONYD_FEDERATION__PORT": str(free_port()),
            "COLONYD_FEDERATION__INTERFACES": "127.0.0.1",
            **settings,
        }
        self._programs = Path(sys.executable).parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def init(self) -> None:
        """`colony init`."""
        done = subprocess.run(
            [self._programs / "colony", "init"],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise BenchError(f"colony init: {done.stderr.strip() or done.stdout.strip()}")

    def start(self) -> float:
        """Start it; seconds from there until it answers /health with 200."""
        log = self.home / "colonyd.log"
        begun = time.perf_counter()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [self._programs / "colonyd", "--home", self.home],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        while not self._healthy():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            if self._process.poll() is not None:
                raise BenchError(f"colonyd left with {self._process.returncode}:\n{tail}")
            if time.perf_counter() - begun > START_TIMEOUT:
                raise BenchError(f"colonyd not ready after {START_TIMEOUT:.0f} s:\n{tail}")
            time.sleep(0.005)
        return time.perf_counter() - begun

    def _healthy(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as s,
        ):
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return s.recv(64).startswith(b"HTTP/1.1 200")
        return False

    def stop(self) -> float:
        """SIGTERM and wait; the seconds that took. Kills it when it won't go."""
        process, self._process = self._process, None
        if process is None:
            return 0.0
        begun = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BenchError(f"colonyd did not stop within {STOP_TIMEOUT:.0f} s") from None
        return time.perf_counter() - begun


def filesystem(path: Path) -> str:
    """Type of the file system below `path`: figures on a tmpfs have no fsync in them."""
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def machine(place: Path) -> str:
    """Return what figures depend on: cores, versions, and the file system of `place`."""
    told = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
    etcd = told.stdout.partition("\n")[0].lower().replace(" version:", "")
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return (
        f"{os.cpu_count()} cores, {release}, Python {platform.python_version()}, {etcd},"
        f" {filesystem(place)}"
    )

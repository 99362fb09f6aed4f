"""Real daemons for tests: started as a user starts them, watched by their log, killed by pid.

What they are asked and what they must answer is in the tests.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import trio

from colonyd.keys import PrivateKey, read_key
from colonyd.rpc import RpcClient

REPOSITORY = Path(__file__).parents[2]
_COLONYD = [sys.executable, "-m", "cli.daemon.colonyd"]


# Each worker of a test run takes ports from its own slice, below those that connections get:
# whoever starts later than it asked still finds its port free.
_SLICE = 4_000
_FIRST = 12_000 + _SLICE * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    while True:
        port = _FIRST + next(_ports) % _SLICE
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Daemon:
    """One colonyd process on its own home; `events` are the log lines so far."""

    def __init__(self, home: Path, name: str, environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.name = name
        self.port = free_port()
        self.peer_port = free_port()
        self.events: list[str] = []
        self.environ = dict(environ or {})
        self.prefix: list[str] = []  # a command that runs another one
        self.program = _COLONYD
        self._changed = threading.Condition()
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, seconds: float = 120) -> Daemon:
        """Start and wait until it says that it is ready."""
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("COLONIES_", "COLONYD_"))
        }
        environ |= {
            "COLONYD_RPC__HOST": "127.0.0.1",
            "COLONYD_RPC__PORT": str(self.port),
            "COLONYD_FEDERATION__HOST": "127.0.0.1",
            "COLONYD_FEDERATION__PORT": str(self.peer_port),
            "COLONYD_FEDERATION__INTERFACES": "127.0.0.1",
        }
        environ |= self.environ
        mark = len(self.events)
        self.process = subprocess.Popen(
            [*self.prefix, *self.program, "--home", str(self.home), "--name", self.name],
            cwd=REPOSITORY,
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=[self.process], daemon=True)
        self._reader.start()
        try:
            self.await_event("event=ready ", after=mark, seconds=seconds)
        except BaseException:
            self.kill()
            raise
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self._changed:
                    self.events.append(line.rstrip())
                    self._changed.notify_all()
        with self._changed:
            self.events.append("event=gone ")
            self._changed.notify_all()

    def await_event(self, text: str, *, after: int = 0, seconds: float = 120) -> str:
        """The first log line since line `after` that contains `text`."""

        def found() -> str | None:
            lines = self.events[after:]
            hit = next((line for line in lines if text in line), None)
            if hit is None and "event=gone " in lines:
                raise AssertionError("the daemon ended:\n" + "\n".join(lines))
            return hit

        with self._changed:
            if not self._changed.wait_for(found, seconds):
                tail = "\n".join(self.events[-20:])
                raise AssertionError(f"no {text!r} within {seconds} s:\n{tail}")
            line = found()
        assert line is not None
        return line

    @property
    def etcd_pid(self) -> int:
        """Process id of the store as last started."""
        line = next(line for line in reversed(self.events) if 'event="etcd serves"' in line)
        match = re.search(r"pid=(\d+)", line)
        assert match is not None
        return int(match[1])

    def kill(self) -> None:
        """SIGKILL the daemon, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)
        self._join()

    def kill_etcd(self) -> None:
        """SIGKILL the store below the daemon."""
        os.kill(self.etcd_pid, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(120)
        self._join()
        return code

    def _join(self) -> None:
        """Its last lines must not be taken for those of the next start."""
        if self._reader is not None:
            self._reader.join(20)

    def key(self, name: str) -> PrivateKey:
        """A key of the home directory."""
        return read_key(self.home / "keys" / f"{name}.key")

    def client(self) -> RpcClient:
        """An RPC client of this daemon."""
        return RpcClient(f"http://127.0.0.1:{self.port}")

    def health(self) -> int:
        """Status of `GET /health`."""
        return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=10).status_code


def seeded_dice() -> random.Random:
    """Chance for a test that kills at random moments.

    COLONYD_TEST_SEED repeats a run; the seed is printed, so that pytest shows it on failure.
    """
    seed = int(os.environ.get("COLONYD_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"COLONYD_TEST_SEED={seed}")
    return random.Random(seed)


async def until(seconds: float, check: object, *, step: float = 0.05) -> Any:
    """Poll an async callable until it returns something true; for states that send no event."""
    assert callable(check)
    with trio.fail_after(seconds):
        while True:
            value = await check()
            if value:
                return value
            await trio.sleep(step)

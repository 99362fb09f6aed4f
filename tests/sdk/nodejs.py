"""Workers of the JavaScript library, in Node.js."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colonyd.keys import PrivateKey
from tests.support.daemons import REPOSITORY, Daemon

PACKAGE = REPOSITORY / "js"
SCRIPTS = Path(__file__).parent / "js"
OLDEST = (20, 19)  # the oldest Node.js that the signing library takes


def node_version() -> tuple[int, ...]:
    """Return the version of Node.js here, (0,) without one."""
    if shutil.which("node") is None:
        return (0,)
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.strip().lstrip("v").split("."))


def require_node() -> None:
    """Skip without Node.js and the packages; in CI, that's a failure."""
    there = (PACKAGE / "node_modules" / "@noble" / "curves").exists()
    if not there or node_version() < OLDEST:
        reason = "no Node.js 20.19 or packages of js/ here: `scripts/setup --test` installs them"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def environ(daemon: Daemon | None, key: PrivateKey | None = None) -> dict[str, str]:
    """Return the SDKs' variables for a daemon; its user signs unless a key is given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    if daemon is None:
        return clean
    return clean | {
        "COLONIES_SERVER_HOST": "127.0.0.1",
        "COLONIES_SERVER_PORT": str(daemon.port),
        "COLONIES_COLONY_NAME": "dev",
        "COLONIES_PRVKEY": (key or daemon.key("user")).hex,
    }


class NodeWorker:
    """A running `worker.mjs`; `said` are its lines so far."""

    def __init__(self, daemon: Daemon, name: str, store: Path, key: PrivateKey, slots: int) -> None:
        self.said: list[str] = []
        self.key = key
        self._changed = threading.Condition()
        variables = environ(daemon, key) | {"NAME": name, "OWNER": daemon.key("colony").hex}
        self.process = subprocess.Popen(
            ["node", str(SCRIPTS / "worker.mjs"), str(store), str(slots)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                with self._changed:
                    self.said.append(line.rstrip())
                    self._changed.notify_all()

    def heard(self, text: str, times: int = 1, seconds: float = 60) -> None:
        """Wait until it has said a text so many times."""

        def enough() -> bool:
            return sum(text in line for line in self.said) >= times

        with self._changed:
            assert self._changed.wait_for(enough, seconds), f"no {text!r} in {self.said}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        code = self.process.wait(60)
        self._reader.join(20)
        return code


@contextmanager
def at_work(
    daemon: Daemon, name: str, store: Path, slots: int = 1, key: PrivateKey | None = None
) -> Iterator[NodeWorker]:
    worker = NodeWorker(daemon, name, store, key or PrivateKey.generate(), slots)
    try:
        worker.heard("ready: waiting for work")
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.kill()

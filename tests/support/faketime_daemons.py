"""Daemons whose wall clock is wrong, and set while they run: by libfaketime.

Only the daemon's wall clock is changed: etcd gets an environment of its own, and what is steady
stays so. The tests that use them say what follows.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey, sign_payload
from colonyd.rpc import RpcClient, RpcError
from tests.support.daemons import REPOSITORY, Daemon

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PATIENCE = 60.0  # seconds for a daemon whose store does not answer


def faketime() -> str | None:
    """Path of the library that gives a process another clock."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return str(found[0]) if found else None


def require_faketime() -> None:
    """Skip where the library is not installed; in CI that is a failure."""
    if faketime():
        return
    reason = "no libfaketime here: `scripts/setup --test` installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def signed_at(now: int, payloadtype: str, fields: dict[str, Any], key: PrivateKey) -> bytes:
    """A request as a client signs it whose clock shows `now`, in Unix seconds."""
    payload = {"msgtype": payloadtype, "nonce": secrets.token_hex(16), "issuedat": now, **fields}
    text = base64.b64encode(json.dumps(payload).encode()).decode("ascii")
    envelope = {
        "payloadtype": payloadtype,
        "payload": text,
        "signature": sign_payload(key, text),
    }
    return json.dumps(envelope).encode()


def clocked(clock: Path) -> dict[str, str]:
    """The environment of a daemon whose wall clock is told by a file: seconds ahead, as `+5`.

    The file is read again whenever the time is asked for.
    """
    library = faketime()
    assert library is not None
    here = Path(__file__).with_name("faketime")
    assert (here / "sitecustomize.py").exists(), here
    return {
        "LD_PRELOAD": library,
        "PYTHONPATH": f"{here}:{REPOSITORY}",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(clock: Path, ahead: int) -> None:
    """Set such a clock, in seconds ahead of the true one."""
    fresh = clock.with_suffix(".new")
    fresh.write_text(f"{ahead:+d}\n")
    fresh.replace(clock)


class Visitor(RpcClient):
    """A client on the same host as its daemon: with the same clock, `ahead` of ours by seconds."""

    def __init__(self, url: str, ahead: Callable[[], int]) -> None:
        super().__init__(url)
        self.ahead = ahead

    async def call(
        self,
        payloadtype: str,
        fields: dict[str, Any],
        key: PrivateKey | None,
        timeout: float = 10.0,
        *,
        attempts: int = 1,
    ) -> Any:
        """As `RpcClient.call`, again while the store does not answer."""
        assert key is not None
        body = signed_at(int(time.time()) + self.ahead(), payloadtype, fields, key)
        with trio.move_on_after(_PATIENCE):
            while True:
                try:
                    return await self._post(payloadtype, body, timeout)
                except RpcError as error:
                    # On a busy machine; the same bytes are the same request.
                    if error.status != 503:
                        raise
                await trio.sleep(0.5)
        return await self._post(payloadtype, body, timeout)


class ClockedDaemon(Daemon):
    """A daemon with a wall clock of its own, `ahead` of ours by seconds."""

    def __init__(self, place: Path, name: str, ahead: int = 0) -> None:
        super().__init__(place / name, name)
        self._clock = place / f"{name}.clock"
        self.environ = clocked(self._clock)
        self.set_clock(ahead)

    def set_clock(self, ahead: int) -> None:
        """Set the daemon's clock, in seconds ahead of the true one."""
        self.ahead = ahead
        set_clock(self._clock, ahead)

    def reboot(self) -> None:
        """From the next start on the machine is one that was started anew.

        Skips where this user may not mount.
        """
        place = self._clock.with_suffix(".boot")
        place.write_text(f"{uuid.uuid4()}\n")
        script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
        prefix = ["unshare", "-m", "sh", "-c", script, str(place)]
        if subprocess.run([*prefix, "true"], capture_output=True, timeout=20).returncode != 0:
            pytest.skip("a machine that was started anew needs root")
        self.prefix = prefix

    def visitor(self, url: str = "") -> Visitor:
        """A client with the daemon's clock."""
        return Visitor(url or f"http://127.0.0.1:{self.port}", lambda: self.ahead)

    def colony(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the `colony` command where the daemon is, as somebody who sits there."""
        environ = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "COLONYD_RPC__PORT": str(self.port),
            **self.environ,
        }
        command = [*self.prefix, sys.executable, "-m", "cli.main", "--home", str(self.home), *words]
        return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)

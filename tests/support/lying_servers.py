"""Colonies and servers that lie: real sockets, real TLS, real signatures, hostile answers.

What they are told to answer, and what must become of it, is in the tests.
"""

from __future__ import annotations

import gzip
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from colonyd.keys import PrivateKey
from federation.transport.tls import make_certificate, server_context
from federation.wire.card import VERSION, Card, sign_card
from federation.wire.envelope import MAX_LIFETIME, Kind, seal
from tests.support.daemons import Daemon

__all__ = ["BOMB_SIZE", "ENCODED", "LyingColony", "Said", "bomb", "knows", "peak", "serve_lies"]

BOMB_SIZE = 2**28
ENCODED = (("content-encoding", "gzip, gzip"),)


def bomb() -> bytes:
    """`BOMB_SIZE` bytes, encoded twice: about a kilobyte."""
    return gzip.compress(gzip.compress(b"\0" * BOMB_SIZE, 1), 9)


class Said(msgspec.Struct, frozen=True):
    """An answer as it goes out."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Lies = Callable[[str, bytes], Said]


def peak(daemon: Daemon) -> int:
    """The most memory that a daemon had resident so far, in bytes."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def knows(daemon: Daemon, *ports: int) -> Daemon:
    """Have the configuration of a daemon name the peers at these ports of 127.0.0.1."""
    daemon.home.mkdir(mode=0o700, exist_ok=True)
    peers = [f'[[peers]]\nurl = "https://127.0.0.1:{port}"\n' for port in ports]
    (daemon.home / "config.toml").write_text("".join(peers))
    return daemon


async def serve_lies(
    nursery: trio.Nursery,
    lies: Lies,
    context: ssl.SSLContext | None = None,
    scope: trio.CancelScope | None = None,
) -> int:
    """Answer every request on 127.0.0.1 as `lies` says, until `scope` ends; returns the port."""

    async def one(stream: trio.abc.Stream) -> None:
        try:
            await _serve(stream, lies)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # who hears a lie may well hang up
        finally:
            await trio.aclose_forcefully(stream)

    opened = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = int(opened[0].socket.getsockname()[1])
    listeners: list[trio.abc.Listener[trio.abc.Stream]] = list(opened)
    if context is not None:
        listeners = [trio.SSLListener(each, context, https_compatible=True) for each in opened]

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        with scope or trio.CancelScope():
            await trio.serve_listeners(one, listeners, task_status=task_status)

    await nursery.start(serve)
    return port


async def _serve(stream: trio.abc.Stream, lies: Lies) -> None:
    while True:
        data = b""
        while b"\r\n\r\n" not in data:
            more = bytes(await stream.receive_some(65_536))
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(body) < int(headers.get("content-length", "0")):
            body += bytes(await stream.receive_some(65_536))
        said = lies(lines[0].split(" ")[1], body)
        out = [f"HTTP/1.1 {said.status} Fine", f"content-length: {len(said.body)}"]
        out += [f"{name}: {value}" for name, value in said.headers]
        await stream.send_all("\r\n".join([*out, "", ""]).encode() + said.body)


class LyingColony:
    """A colony with a key, a certificate and a card of its own, and the answers that it is told.

    `answers` go by path; what is not there gets a card at /v1/card, and 404 elsewhere. `heard` are
    the paths that were asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.key = PrivateKey.generate()
        self.directory = directory
        self.answers: dict[str, Callable[[bytes], Said]] = {}
        self.endpoints: list[str] = []
        self.heard: list[str] = []
        self.scope = trio.CancelScope()  # of its listener
        self.port = 0
        self.fingerprint = ""
        self.sequence = int(time.time())

    async def start(self, nursery: trio.Nursery) -> LyingColony:
        """Listen on 127.0.0.1."""
        self.directory.mkdir(exist_ok=True)
        certificate, key, self.fingerprint = make_certificate(self.directory)
        context = server_context(certificate, key)
        self.port = await serve_lies(nursery, self._answer, context, self.scope)
        return self

    def _answer(self, path: str, body: bytes) -> Said:
        self.heard.append(path)
        if path in self.answers:
            return self.answers[path](body)
        return Said(self.card()) if path == "/v1/card" else Said(b"{}", 404)

    def card(self) -> bytes:
        """The signed card."""
        key, now = self.key, int(time.time())
        card = Card(
            key.id,
            key.public_key,
            "liar",
            self.sequence,
            self.fingerprint,
            self.endpoints or [f"127.0.0.1:{self.port}"],
            [VERSION],
            now + MAX_LIFETIME - 3600,
        )
        return sign_card(key, card)

    def seal(self, kind: Kind, to: str, payload: bytes) -> bytes:
        """A signed message with whatever payload."""
        now = int(time.time())
        name = os.urandom(16)
        return seal(self.key, kind, to, payload, cti=name, issued=now, expires=now + 600)

"""Ends of processes as they happen: one WebSocket to `/pubsub` for all that a client waits for.

It only tells sooner: whoever waits also polls, since a server may have no WebSocket, and upstream's
tells of one awaited state only. So nothing here fails; a lost socket is opened again.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from colonyd.client.values import OddReply, Process, State, read
from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from colonyd.rpc import NoEnvelope, RpcClient, Unreachable, decode, encode

MOST = 60  # subscriptions of a socket: colonyd takes 64
LONGEST_FRAME = 64 << 20  # bytes of one message
_CHUNK = 65_536
_TYPE = "subscribeprocessmsg"
_SECONDS = 86_400  # of one subscription; then it is made again
_FIRST_PAUSE, _LAST_PAUSE = 0.2, 30.0  # seconds before a lost socket is opened again
_PATIENCE = 10.0  # seconds for the handshake
_QUIET = 90.0  # seconds without a byte (colonyd pings each 30) after which a socket is opened anew


class Watched:
    """A process that somebody waits for; `process` is its end once the socket has told it."""

    def __init__(self, processid: str) -> None:
        self.id = processid
        self.process: Process | None = None
        self.news = anyio.Event()
        self.live = False  # whether the socket tells of its end, however it ends
        self.watchers = 0

    def tell(self, process: Process) -> None:
        """Take a state that the socket told."""
        if process.state.ended:
            self.process = process
            self.news.set()

    def lost(self) -> None:
        """Wake those who rely on the socket: it tells nothing any more."""
        if self.live and self.process is None:
            self.live = False
            self.news.set()
            self.news = anyio.Event()


class _Lost(Exception):
    """The socket is of no use any more."""


class Events:
    """The socket of one key to one server; `run` serves it."""

    def __init__(self, client: RpcClient, key: PrivateKey) -> None:
        """Subscribe at the server of `client`, signing with `key`."""
        self._client, self._key = client, key
        self._watched: dict[str, Watched] = {}
        self._wanted = anyio.Event()
        self._subscribed: set[str] = set()  # on the present socket
        self._sending = anyio.Lock()

    @contextmanager
    def watch(self, processid: str) -> Iterator[Watched]:
        """Watch a process while the context lasts."""
        watched = self._watched.setdefault(processid, Watched(processid))
        watched.watchers += 1
        self._wanted.set()
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[processid]

    async def run(self) -> None:
        """Keep a socket open while anything is watched, until this is cancelled.

        Not at a server of upstream: of several subscriptions on one socket, each is written by a
        goroutine of its own there, and two at once end the whole server ("concurrent write to
        websocket connection", seen with d89bd386).
        """
        pause = _FIRST_PAUSE
        while True:
            while not self._watched:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            if (several := await self._takes_several()) is False:
                return
            began = anyio.current_time()
            try:
                if several:
                    await self._serve()
            except (
                _Lost,
                OSError,
                EOFError,
                ssl.SSLError,
                RpcError,
                Unreachable,
                TimeoutError,
                ValueError,
                anyio.BrokenResourceError,
                anyio.ClosedResourceError,
                anyio.EndOfStream,
                LocalProtocolError,
                RemoteProtocolError,
            ):
                pass
            finally:
                self._subscribed.clear()
                for each in self._watched.values():
                    each.lost()
            if anyio.current_time() - began > _LAST_PAUSE:
                pause = _FIRST_PAUSE
            await anyio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    async def _takes_several(self) -> bool | None:
        """Return whether the server takes several subscriptions on a socket, as a colonyd does;
        None while it does not answer.
        """
        try:
            told = await self._client.call("getserverinfomsg", {}, None)
        except RpcError as error:
            return None if error.status >= 500 else False  # it starts, or a proxy answers for it
        except Unreachable:
            return None
        return isinstance(told, dict) and isinstance(told.get("serverid"), str)

    async def _serve(self) -> None:
        """Open a socket and use it to its end. Raises one of many errors, when it ends."""
        stream, socket, ahead = await self._open()
        try:
            ended: list[BaseException] = []
            async with anyio.create_task_group() as group:

                async def half(work: Any, *args: Any) -> None:
                    # An error of one half ends the other, and is not wrapped in a group.
                    try:
                        await work(*args)
                    except Exception as error:
                        ended.append(error)
                    group.cancel_scope.cancel()

                group.start_soon(half, self._subscribe, stream, socket)
                group.start_soon(half, self._read, stream, socket, ahead)
            if ended:
                raise ended[0]
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    async def _open(self) -> tuple[anyio.abc.ByteStream, WSConnection, list[Any]]:
        parts = urlsplit(self._client.url)
        host, tls = parts.hostname or "", parts.scheme.lower() == "https"
        port = parts.port or (443 if tls else 80)
        with anyio.fail_after(_PATIENCE):
            plain: anyio.abc.ByteStream = await anyio.connect_tcp(host, port)
            try:
                stream = await self._secured(plain, host) if tls else plain
                socket = WSConnection(ConnectionType.CLIENT)
                target = f"{parts.path.rstrip('/')}/pubsub"
                await stream.send(socket.send(Request(host=parts.netloc, target=target)))
                while True:
                    socket.receive_data(await stream.receive(_CHUNK))
                    events = list(socket.events())
                    if any(isinstance(each, AcceptConnection) for each in events):
                        return stream, socket, events
                    if any(isinstance(each, RejectConnection) for each in events):
                        raise _Lost
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await anyio.aclose_forcefully(plain)
                raise

    async def _secured(self, plain: anyio.abc.ByteStream, host: str) -> anyio.abc.ByteStream:
        verify = self._client.verify
        context = verify if isinstance(verify, ssl.SSLContext) else ssl.create_default_context()
        return await TLSStream.wrap(
            plain, hostname=host, ssl_context=context, standard_compatible=False
        )

    async def _send(self, stream: anyio.abc.ByteStream, data: bytes) -> None:
        async with self._sending:
            await stream.send(data)

    async def _subscribe(self, stream: anyio.abc.ByteStream, socket: WSConnection) -> None:
        """Subscribe to what is watched, as far as the socket has room."""
        while True:
            self._wanted = anyio.Event()
            fresh = [each for each in self._watched if each not in self._subscribed]
            stale = self._subscribed - self._watched.keys()
            if len(self._subscribed) + len(fresh) > MOST and len(stale) > MOST // 2:
                return  # a new socket has room for those that are still waited for
            for processid in fresh[: MOST - len(self._subscribed)]:
                watched = self._watched.get(processid)
                if watched is None:
                    continue
                self._subscribed.add(processid)
                fields = {
                    "processid": processid,
                    "executortype": "",
                    "state": int(State.SUCCESSFUL),
                    "timeout": _SECONDS,
                }
                audience = await self._client.audience()
                body = encode(_TYPE, fields, self._key, audience).decode()
                await self._send(stream, socket.send(TextMessage(data=body)))
                # Upstream's servers, which have no id, tell of successful ends only.
                watched.live = bool(audience)
            await self._wanted.wait()

    async def _read(
        self, stream: anyio.abc.ByteStream, socket: WSConnection, ahead: list[Any]
    ) -> None:
        """Take what comes until the socket ends."""
        parts: list[str] = []
        size = 0
        events = ahead
        while True:
            for event in events:
                if isinstance(event, Ping):
                    await self._send(stream, socket.send(event.response()))
                elif isinstance(event, CloseConnection):
                    raise _Lost
                elif isinstance(event, TextMessage):
                    size += len(event.data)
                    if size > LONGEST_FRAME:
                        raise _Lost
                    parts.append(event.data)
                    if event.message_finished:
                        self._take("".join(parts).encode())
                        parts, size = [], 0
            with anyio.fail_after(_QUIET):
                socket.receive_data(await stream.receive(_CHUNK))
            events = list(socket.events())

    def _take(self, message: bytes) -> None:
        """Take a frame. Raises _Lost for what is none of a Colonies server's."""
        try:
            process = read(Process, decode(_TYPE, 200, message))
        except (NoEnvelope, OddReply):
            raise _Lost from None
        except RpcError:
            # Which one is refused is not told: none counts as live, and polling tells why.
            for each in self._watched.values():
                each.lost()
            return
        if process.state.ended:
            self._subscribed.discard(process.id)
            self._wanted.set()  # there is room for another
        if (watched := self._watched.get(process.id)) is not None:
            watched.tell(process)

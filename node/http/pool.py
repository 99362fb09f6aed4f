"""Connections to one HTTP/1.1 server that are kept, for requests that are sent often.

`http_client` is for all other requests; a request there costs several times as much.
"""

from __future__ import annotations

import select
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import h11
import msgspec
import trio

from colonyd.http import reason_of

_MOST, _IDLE = 16, 8  # connections, and those that are kept while no request needs them
_KEPT = 90.0  # seconds that a connection is kept without a request
_FREE, _CONNECT, _WRITE = 10.0, 5.0, 15.0  # seconds for each of these
_PIECE = 65_536  # bytes
_EARLY = 8  # informational answers (1xx) before an answer
_PIECES, _SMALLEST = 1024, 64  # pieces of an answer from which on they have so many bytes each


class NotSent(Exception):
    """No byte of the request left."""


class NoSlot(NotSent):
    """As many requests as may be are under way."""


class NoAnswer(Exception):
    """The request may have arrived, and no whole answer came."""


class PoolReply(msgspec.Struct, frozen=True):
    """A whole answer; names of headers are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Connection:
    stream: trio.abc.Stream
    socket: trio.socket.SocketType
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))
    since: float = 0.0

    def usable(self) -> bool:
        """Return whether the server has neither closed it nor sent anything unasked."""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return trio.current_time() - self.since < _KEPT and not poll.poll(0)


@dataclass
class Pool:
    """Up to 16 connections to the server `host`; `connect` opens one, and returns its socket.

    `remote` is the IP address that the latest one led to, "" before the first.
    """

    host: str
    connect: Callable[[], Awaitable[tuple[trio.abc.Stream, trio.socket.SocketType]]]
    remote: str = ""
    _idle: list[_Connection] = field(default_factory=list)
    _busy: set[_Connection] = field(default_factory=set)
    _slots: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_MOST))
    _closed: bool = False

    async def post(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        limit: Callable[[int], int],
        patience: float,
    ) -> PoolReply:
        """Send a request and return its answer.

        `limit` returns the most bytes of an answer with a status, `patience` is in seconds without
        a byte of the answer. Raises NotSent (NoSlot if no connection gets free) or NoAnswer.
        """
        with trio.move_on_after(_FREE) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            raise NoSlot("no connection was free")
        try:
            connection = await self._take()
            self._busy.add(connection)
            kept = False
            try:
                reply = await self._exchange(connection, path, body, headers, limit, patience)
                kept = self._keep(connection)
                return reply
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise NoAnswer(reason_of(error)) from None
            except h11.LocalProtocolError as error:
                raise NotSent(f"the request is no HTTP: {error}") from None
            except h11.RemoteProtocolError as error:
                raise NoAnswer(f"the answer is no HTTP: {error}") from None
            finally:
                self._busy.discard(connection)
                if not kept:
                    await trio.aclose_forcefully(connection.stream)
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        """Close all connections; requests that are under way get no answer."""
        self._closed = True
        open_ones, self._idle = [*self._idle, *self._busy], []
        for connection in open_ones:
            await trio.aclose_forcefully(connection.stream)

    async def _take(self) -> _Connection:
        # The last one is used first: those that nobody needs any more are in front.
        while self._idle and not self._idle[0].usable():
            await trio.aclose_forcefully(self._idle.pop(0).stream)
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            await trio.aclose_forcefully(connection.stream)
        if self._closed:
            raise NotSent("the connection was closed")
        try:
            with trio.fail_after(_CONNECT):
                connection = _Connection(*await self.connect())
                self.remote = _remote(connection.socket)
                return connection
        except trio.TooSlowError:
            raise NotSent(f"no connection within {_CONNECT:g} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise NotSent(reason_of(error.__cause__ or error)) from None

    def _keep(self, connection: _Connection) -> bool:
        """Keep a connection for the next request. Return False if it has to be closed."""
        http = connection.http
        if (http.our_state, http.their_state) != (h11.DONE, h11.DONE):
            return False
        if http.trailing_data != (b"", False):
            return False  # it would be taken for the next answer
        if self._closed or len(self._idle) >= _IDLE:
            return False
        http.start_next_cycle()
        connection.since = trio.current_time()
        self._idle.append(connection)
        return True

    async def _exchange(
        self,
        connection: _Connection,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        limit: Callable[[int], int],
        patience: float,
    ) -> PoolReply:
        http, stream = connection.http, connection.stream
        head = {
            "host": self.host,
            "accept-encoding": "identity",
            **headers,
            "content-length": str(len(body)),
        }
        request = h11.Request(method="POST", target=path, headers=list(head.items()))
        data = [http.send(request), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage())]
        with trio.move_on_after(_WRITE) as writing:
            await stream.send_all(b"".join(filter(None, data)))
        if writing.cancelled_caught:
            raise NoAnswer(f"the request was not taken within {_WRITE:g} s")
        status, named, parts, room, early = 0, dict[str, str](), list[bytes](), 0, 0
        while True:
            event = http.next_event()
            match event:
                case h11.NEED_DATA:
                    with trio.move_on_after(patience) as reading:
                        http.receive_data(bytes(await stream.receive_some(_PIECE)))
                    if reading.cancelled_caught:
                        raise NoAnswer(f"no answer within {patience:g} s")
                case h11.Response():
                    status, room = event.status_code, limit(event.status_code)
                    named = {
                        name.decode(): value.decode("latin-1") for name, value in event.headers
                    }
                    _require_plain(named, room)
                case h11.InformationalResponse():
                    early += 1
                    if early > _EARLY:
                        raise NoAnswer("the answer never begins")
                case h11.Data():
                    room -= len(event.data)
                    if room < 0:
                        raise NoAnswer(f"the answer is longer than {limit(status)} bytes")
                    parts.append(bytes(event.data))
                    if len(parts) > _PIECES and limit(status) - room < _SMALLEST * len(parts):
                        raise NoAnswer("the answer arrives in too small pieces")
                case h11.EndOfMessage():
                    return PoolReply(status, named, b"".join(parts))
                case h11.ConnectionClosed():
                    raise NoAnswer("the server closed the connection")


def _require_plain(headers: Mapping[str, str], limit: int) -> None:
    """Raise NoAnswer for a body in a content coding, or one that is announced as too long."""
    coding = headers.get("content-encoding", "")
    if any(each.strip().lower() not in ("", "identity") for each in coding.split(",")):
        raise NoAnswer(
            f"the answer has the content coding {coding[:40]!r}, and only answers without one are "
            "taken; a proxy in between must not compress"
        )
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise NoAnswer(f"the answer is longer than {limit} bytes")


def _remote(socket: trio.socket.SocketType) -> str:
    try:
        peer = socket.getpeername()
    except OSError:
        return ""
    return str(peer[0]) if isinstance(peer, tuple) else ""

"""One HTTP/1.1 connection on a trio stream: parsing, limits, answers, and noticing a vanished peer.

Accepting, counting and draining connections is in `http.server`; handlers interpret requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import h11
import trio

from node.host.log import get_logger
from node.http.delivery import UNTAKEN, Deliveries
from node.http.fastpath import PlainHeads, parse_plain
from node.http.message import Handler, Request, Response, head
from node.http.slots import ConnectionSlots, source_of

log = get_logger("http")

_CHUNK = 65_536  # bytes asked of the kernel at a time
_READ_AHEAD = 65_536  # bytes kept of requests pipelined behind a running one
_SLOWEST_BODY = 16_384  # bytes per second a body must sustain once the read timeout is used up
_SMALL_BODY = 65_536  # bytes; a body up to this is read, or sent, whatever other connections do
_PATIENCE = 5.0  # seconds in which an answer should be taken, when there is no room for others
_CLOSE_SECONDS = 2.0  # bound on saying goodbye to a peer that may be stuck
_PART = 1 << 20  # bytes of a large answer that are sent at once
_WRITING = 1.0  # seconds in which no connection that is being answered makes room for others
_LAST_WORD = 0.1  # seconds
_LINGER_BYTES = 4_194_304  # read and dropped after a refusal, so that the peer sees the answer
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_MOST_HEADS = 64  # beginnings of responses that are kept for a second
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one peer may use: sizes in bytes, times in seconds.

    `max_held` is for all request bodies in memory together: beyond it only small ones are read on.
    `max_unread` is for all large answers that clients have not taken yet. `max_unsigned` is for
    connections on which no right was shown, `max_connections` for the others. `names` is the
    beginning of these settings' names, for messages.
    """

    max_body: int = 2_000_000
    max_header: int = 16_384
    read_timeout: float = 10.0
    idle_timeout: float = 120.0
    max_connections: int = 4096
    max_per_signer: int = 512
    max_unsigned: int = 1024
    max_unsigned_per_address: int = 512
    max_held: int = 67_108_864
    max_unread: int = 268_435_456
    names: str = ""


class _RefusedRequest(Exception):
    """A request that gets an error answer and ends its connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ConnectionPool:
    """The state that the connections of one server share: which are idle, which run a handler."""

    def __init__(
        self, handler: Handler, limits: Limits, error: Callable[[int, str], Response]
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.error = error
        self.draining = False
        self.starved = 0  # accept loops that wait for a connection to end
        # Dicts are ordered sets here: the longest idle connection comes first.
        self.idle: dict[Connection, None] = {}
        self.slots = ConnectionSlots(limits, self._is_busy, self.idle)
        self.upgraded: set[Connection] = set()
        self.plain = PlainHeads()
        self.running: dict[Connection, None] = {}
        self.running_long: dict[Connection, None] = {}
        self.held = 0  # bytes of bodies that are not dealt with
        self.unread = 0  # bytes of large answers that are not taken
        self._sending: dict[Connection, tuple[int, float]] = {}  # bytes, and since when
        self._first: trio.Event | None = None
        self._heads: dict[tuple[int, str, tuple[tuple[str, str], ...]], bytes] = {}
        self._heads_second = 0

    def _is_busy(self, connection: Connection) -> bool:
        if connection in self.running or connection in self.running_long:
            return True
        # An answer that is just being written; a slow client of it has had its time.
        return connection not in self.idle and trio.current_time() - connection.wrote < _WRITING

    def may_send(self, connection: Connection, size: int) -> bool:
        """Return whether there is room for a large answer.

        If there is none, the oldest answer under way loses its connection once it had its time.
        """
        if self.unread and self.unread + size > self.limits.max_unread:
            other, (_, began) = next(iter(self._sending.items()))
            if trio.current_time() - began < _PATIENCE:
                return False
            self.sent(other)
            other.evict()
            if self.unread and self.unread + size > self.limits.max_unread:
                return False
        self._sending[connection] = (size, trio.current_time())
        self.unread += size
        return True

    def sent(self, connection: Connection) -> None:
        """Note that a large answer is taken, or will not be."""
        size, _ = self._sending.pop(connection, (0, 0.0))
        self.unread -= size

    def begin(self, connection: Connection) -> None:
        """Note that `connection` runs a handler now."""
        self.running[connection] = None
        if self._first is not None:
            self._first.set()
            self._first = None

    def end(self, connection: Connection) -> None:
        """Note that the handler of `connection` is over."""
        self.running.pop(connection, None)
        self.running_long.pop(connection, None)

    async def wait_for_running(self) -> None:
        """Return when at least one handler runs; for one caller only."""
        while not self.running and not self.running_long:
            self._first = trio.Event()
            await self._first.wait()

    def take_long_running(self) -> list[Connection]:
        """Return, once each, the connections whose handler ran at the last call already."""
        taken = list(self.running_long)
        self.running_long, self.running = self.running, {}
        return taken

    def head(self, response: Response) -> bytes:
        """Return the lines of a response that are the same for all of its kind in this second."""
        second = int(time.time())
        if second != self._heads_second or len(self._heads) >= _MOST_HEADS:
            self._heads_second = second
            self._heads.clear()
        kind = (response.status, response.content_type, response.headers)
        known = self._heads.get(kind)
        if known is None:
            known = self._heads[kind] = head(response, second)
        return known


class Connection:
    """One connection, one task: read a request, run the handler, write the answer, again.

    A single cancel scope bounds every phase: its deadline moves along, and a vanished peer and the
    drain cancel it. That is cheaper than a scope for each phase of each request.
    """

    __slots__ = (
        "_ahead",
        "_deliveries",
        "_evicted",
        "_held",
        "_limits",
        "_pool",
        "_reading",
        "_watched",
        "_watcher",
        "arrived",
        "http",
        "remote",
        "scope",
        "signer",
        "source",
        "stream",
        "wrote",
    )

    def __init__(self, pool: ConnectionPool, stream: trio.abc.Stream) -> None:
        self._pool = pool
        self.stream = stream
        self._limits = pool.limits
        self.remote = _remote(stream)
        self.source = source_of(self.remote)
        self.signer = ""  # the signer who has shown a right on it
        self.arrived = trio.current_time()
        self.wrote = -math.inf  # when the last answer began to be written
        self._deliveries = Deliveries(stream)
        self._evicted = False
        self._held = 0  # bytes of a body that is not dealt with
        # Made for a request that is not plain, or not here in one piece, and dropped after it.
        self.http: h11.Connection | None = None
        self._ahead = b""  # read behind the last request
        # Clients open pools ahead of their first request; the clock of a request starts with it.
        self.scope = trio.CancelScope(deadline=trio.current_time() + self._limits.idle_timeout)
        self._reading = False
        self._watcher: trio.CancelScope | None = None
        self._watched = trio.Event()

    async def run(self) -> None:
        """Serve the connection to its end; only a cancellation from outside gets out."""
        self._deliveries.attend()
        try:
            with self.scope:
                await self._serve()
            if self.scope.cancelled_caught and self._reading:
                if self._evicted:
                    await self._make_room()
                else:
                    await self._refuse(408, "the request did not arrive in time")
        except* _GONE:
            pass
        except* Exception:
            # What is left are faults of ours, among them a handler's that came mixed with a
            # cancellation, which goes on.
            log.exception("connection failed", remote=self.remote)
        finally:
            self._pool.slots.leave(self)
            self._let_go()
            if self._watcher is not None:
                self._watcher.cancel()
            if self._deliveries:
                hurried = self._evicted or self._pool.draining
                with trio.CancelScope(shield=True):
                    await self._deliveries.end(_CLOSE_SECONDS if hurried else UNTAKEN)
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self.stream.aclose()

    def evict(self) -> None:
        """End the connection to free its place."""
        self._evicted = True
        self.scope.cancel()

    def _let_go(self) -> None:
        self._pool.held -= self._held
        self._held = 0

    async def _serve(self) -> None:
        pool = self._pool
        while True:
            try:
                request = await self._read_request()
            except _RefusedRequest as refusal:
                return await self._refuse(refusal.status, str(refusal))
            except h11.RemoteProtocolError as fault:
                assert self.http is not None
                if self.http.trailing_data[1]:
                    return None  # cut off in the middle: no client is left to answer
                return await self._refuse(fault.error_status_hint, str(fault))
            if request is None:
                return None
            if self._deliveries:
                self._deliveries.settle()
            method = request.method
            response = await self._handle(request)
            del request  # its body may be large
            if self._held:
                self._let_go()
            if response.upgrade is not None:
                pool.upgraded.add(self)
                self.scope.deadline = math.inf
                ahead = self.http.trailing_data[0] if self.http is not None else self._ahead
                try:
                    return await response.upgrade(self.stream, ahead)
                finally:
                    pool.upgraded.discard(self)
            # A state other than DONE means: the client asked for a close, speaks HTTP/1.0, or hoped
            # for an upgrade.
            parser = self.http
            ends = parser is not None and parser.their_state is not h11.DONE
            close = ends or pool.draining or pool.starved > 0
            await self._respond(response, method, close=close)
            del response  # its body may be large, and the next request be long in coming
            if close:
                return None
            if parser is not None:
                # An end that was read already will be read again.
                self._ahead = parser.trailing_data[0]
                self.http = None

    async def _read_request(self) -> Request | None:
        """Return the next request, or None when the peer has closed the connection."""
        if self._ahead:
            # A client that sends many requests at once takes turns with others.
            await trio.lowlevel.checkpoint()
        else:
            self._pool.idle[self] = None
            try:
                self._ahead = bytes(await self.stream.receive_some(_CHUNK))
            finally:
                self._pool.idle.pop(self, None)
            if not self._ahead or self.scope.cancel_called:
                # Drained or evicted just when the bytes came: do not start a handler that would be
                # cancelled at its first await.
                return None
        limits = self._limits
        plain = parse_plain(self._ahead, limits.max_header, limits.max_body, self._pool.plain)
        if plain is not None:
            method, target, headers, body, end = plain
            self._ahead = self._ahead[end:]
            return self._request(method, target, headers, body)
        self.http = parser = h11.Connection(h11.SERVER, limits.max_header)
        parser.receive_data(self._ahead)
        self._ahead = b""
        event = parser.next_event()
        if event is h11.NEED_DATA:
            self._reading = True
            self.scope.deadline = trio.current_time() + self._limits.read_timeout
            while event is h11.NEED_DATA:
                await self._receive(parser)
                event = parser.next_event()
        if not isinstance(event, h11.Request):
            return None
        headers = {}
        size = len(event.target)
        for raw_name, raw_value in event.headers:
            size += len(raw_name) + len(raw_value) + 4
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if size > self._limits.max_header:
            raise _RefusedRequest(431, f"headers exceed {self._limits.max_header} bytes")
        body = await self._read_body(parser, int(headers.get("content-length", "0")))
        self._reading = False
        return self._request(
            event.method.decode("ascii"), event.target.decode("ascii"), headers, body
        )

    def _request(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
        path, _, query = target.partition("?")
        if not path.startswith("/") and "://" in path:  # absolute form, as sent to proxies
            path = "/" + path.partition("://")[2].partition("/")[2]
        if "%" in path:
            path = unquote(path)
        return Request(method, path, query, headers, body, self.remote, self._sign)

    def _sign(self, identity: str) -> str:
        return self._pool.slots.sign(self, identity)

    async def _receive(self, parser: h11.Connection) -> None:
        parser.receive_data(bytes(await self.stream.receive_some(_CHUNK)))

    async def _read_body(self, parser: h11.Connection, declared: int) -> bytes:
        limit = self._limits.max_body
        too_large = f"the body exceeds {limit} bytes, which is the most here (rpc.max_body)"
        if declared > limit:
            raise _RefusedRequest(413, too_large)
        return await self._gather_body(parser, limit, too_large)

    async def _gather_body(self, parser: h11.Connection, limit: int, too_large: str) -> bytes:
        pool = self._pool
        body = bytearray()
        pieces = 0
        began = 0.0
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                pool.held += len(event.data)
                self._held += len(event.data)
                pieces += 1
                if len(body) > limit:
                    raise _RefusedRequest(413, too_large)
                if pool.held > self._limits.max_held and len(body) > _SMALL_BODY:
                    raise _RefusedRequest(
                        503,
                        f"too many large requests at once: they hold {self._limits.max_held} bytes,"
                        " which is the most; try again",
                    )
                if pieces > 1024 and len(body) < 64 * pieces:
                    # Each piece costs the parser as much as a kilobyte does.
                    raise _RefusedRequest(400, "the body arrives in too small pieces")
            elif event is h11.NEED_DATA:
                if not began:
                    began = trio.current_time()
                    self._reading = True
                    if parser.they_are_waiting_for_100_continue:
                        await self.stream.send_all(_CONTINUE)
                allowance = self._limits.read_timeout + len(body) / _SLOWEST_BODY
                self.scope.deadline = began + allowance
                await self._receive(parser)
            else:
                return bytes(body)

    async def _handle(self, request: Request) -> Response:
        pool = self._pool
        # Handlers have no deadline. Quick ones are over before the present one comes; of the others
        # `new_watcher` hears long before.
        if self.scope.deadline - trio.current_time() < max(0.5 * self._limits.idle_timeout, 5):
            self.scope.deadline = math.inf
        pool.begin(self)
        try:
            response = await pool.handler(request)
        except Exception:
            log.exception("handler failed", method=request.method, path=request.path)
            response = pool.error(500, "internal error")
        finally:
            pool.end(self)
        if self._watcher is not None:
            self._watcher.cancel()
            await self._watched.wait()
            self._watcher = None
        return response

    def new_watcher(self) -> trio.CancelScope:
        """Prepare a watch beside the running handler."""
        self.scope.deadline = math.inf
        self._deliveries.keep_alive()
        self._watcher = trio.CancelScope()
        self._watched = trio.Event()
        return self._watcher

    async def watch(self, scope: trio.CancelScope) -> None:
        """Read ahead while the handler runs; cancel the connection when the peer is gone."""
        watched = self._watched
        try:
            with scope:
                room = _READ_AHEAD
                while room > 0:
                    data = await self.stream.receive_some(room)
                    if self.http is not None:
                        self.http.receive_data(bytes(data))
                    else:
                        self._ahead += data
                    room -= len(data)
                    if not data:
                        self.scope.cancel()
                        return
        except _GONE:
            self.scope.cancel()
        except Exception:
            log.exception("connection not watched", remote=self.remote)
            self.scope.cancel()
        finally:
            watched.set()

    async def _respond(self, response: Response, method: str, *, close: bool) -> None:
        # This deadline bounds the writing and the idle time after it. One that is nearly so stays:
        # to move it costs more than to write the response.
        idle = self._limits.idle_timeout
        self.wrote = now = trio.current_time()
        if not 0.9 * idle < self.scope.deadline - now <= idle:
            self.scope.deadline = now + idle
        size = len(response.body)
        if size > _SMALL_BODY and not self._pool.may_send(self, size):
            why = (
                f"answers of {self._pool.unread} bytes are not taken by those who asked"
                f" ({self._limits.names}max_unread); try again"
            )
            response = self._pool.error(503, why)
        if not self._deliveries.making:
            return await self._write(response, method, close=close)
        if response.status != 200:
            await self._deliveries.fail()
        self._deliveries.sending()
        await self._write(response, method, close=close)
        self._deliveries.sent()

    async def _write(self, response: Response, method: str, *, close: bool) -> None:
        body = response.body
        out = self._pool.head(response)
        bodiless = response.status in (204, 304)
        if not bodiless:
            out += b"content-length: %d\r\n" % len(body)
        out += b"connection: close\r\n\r\n" if close else b"\r\n"
        if bodiless or method == "HEAD":
            await self.stream.send_all(out)
        elif len(body) <= _SMALL_BODY:
            await self.stream.send_all(out + body)
        else:
            try:
                await self.stream.send_all(out)
                # In parts, since TLS would encrypt all of it in one piece.
                whole = memoryview(body)
                for start in range(0, len(body), _PART):
                    await self.stream.send_all(whole[start : start + _PART])
            finally:
                self._pool.sent(self)

    async def _make_room(self) -> None:
        """Refuse a request that is not read on for want of room, if that takes no time."""
        limits = self._limits
        why = (
            f"too many connections without a right to call are open ({limits.names}max_unsigned:"
            f" {limits.max_unsigned}, {limits.names}max_unsigned_per_address:"
            f" {limits.max_unsigned_per_address}); try again"
        )
        with trio.move_on_after(_LAST_WORD):
            await self._respond(self._pool.error(503, why), "", close=True)

    async def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, then read on for a moment: unread bytes would reset the answer."""
        self._let_go()
        log.debug("request refused", status=status, reason=message, remote=self.remote)
        with trio.move_on_after(_CLOSE_SECONDS):
            await self._respond(self._pool.error(status, message), "", close=True)
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            room = _LINGER_BYTES
            while room > 0 and (data := await self.stream.receive_some(_CHUNK)):
                room -= len(data)


def _remote(stream: trio.abc.Stream) -> str:
    """Return the peer's address without its port; IPv4 stays IPv4 on a socket that serves both."""
    transport: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        peer = transport.socket.getpeername()
    except (AttributeError, OSError):
        return ""
    return str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else ""

"""The HTTP/1.1 server on trio: the accept loop, the limit of connections, and draining.

The life of one connection is in `connection`; no routing, payload or signature is known here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import trio

from node.host.log import get_logger
from node.http.connection import Connection, ConnectionPool, Limits
from node.http.listeners import Listener
from node.http.message import Handler, Request, Response, Upgrade, plain_error
from node.http.stream import PromptStream
from node.tasks.containment import contained

__all__ = [
    "Handler",
    "Limits",
    "Request",
    "Response",
    "Upgrade",
    "plain_error",
    "serve_http",
]

log = get_logger("http")

_WATCH_AFTER = 0.05  # seconds; a handler running for one to two of these gets a disconnect watch
_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


async def serve_http(
    handler: Handler,
    listeners: Sequence[Listener],
    *,
    limits: Limits,
    drain: trio.Event,
    grace: float,
    error: Callable[[int, str], Response] = plain_error,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `drain` is set, then return once all is answered or `grace` seconds are over.

    The listeners are closed in every case. Idle connections close at once on drain; a handler that
    still runs when the grace is over is cancelled.
    """
    async with trio.open_nursery() as nursery:
        server = _Server(ConnectionPool(handler, limits, error), nursery)
        try:
            async with trio.open_nursery() as acceptors:
                for listener in listeners:
                    acceptors.start_soon(server.accept, listener)
                nursery.start_soon(server.watch_slow_handlers)
                task_status.started()
                await drain.wait()
                acceptors.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await listener.aclose()
        with trio.move_on_after(grace):
            await server.drain()
        nursery.cancel_scope.cancel()


class _Server:
    """The accept loops and the tasks beside them; all run in one nursery."""

    def __init__(self, pool: ConnectionPool, nursery: trio.Nursery) -> None:
        self._pool = pool
        self._nursery = nursery
        self._slots = trio.Semaphore(pool.limits.max_connections + pool.limits.max_unsigned)
        self._open = 0
        self._ended = trio.Event()

    async def accept(self, listener: Listener) -> None:
        """Accept connections, until cancelled; at a limit, another connection makes room."""
        while True:
            try:
                stream = await listener.accept()
            except Exception as failure:
                # Whatever went wrong with one connection, the next ones are to be accepted.
                log.warning("accept failed", error=failure)
                if isinstance(failure, OSError) and failure.errno in _OUT_OF_RESOURCES:
                    self._pool.slots.make_room()
                await trio.sleep(0.1)
                continue
            try:
                # Only now: a slot taken before would evict a connection with none waiting for its
                # place.
                await self._take_slot()
            except trio.Cancelled:
                await trio.aclose_forcefully(stream)
                raise
            self._open += 1
            if isinstance(stream, trio.SocketStream):
                stream = PromptStream(stream)
            self._nursery.start_soon(self._serve, stream)

    async def _take_slot(self) -> None:
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            self._pool.slots.make_room()
            self._pool.starved += 1
            try:
                await self._slots.acquire()
            finally:
                self._pool.starved -= 1

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            connection = Connection(self._pool, stream)
            self._pool.slots.arrive(connection)
            with contained("connection"):
                await connection.run()
        finally:
            self._open -= 1
            self._slots.release()
            self._ended.set()

    async def drain(self) -> None:
        """Close idle connections and return when no connection is left."""
        self._pool.draining = True
        for connection in [*self._pool.idle, *self._pool.upgraded]:
            connection.scope.cancel()
        while self._open:
            self._ended = trio.Event()
            await self._ended.wait()

    async def watch_slow_handlers(self) -> None:
        """Start a disconnect watch beside each handler that runs for a while.

        A nursery and a task per request would cost as much as parsing it; so quick handlers run
        without one, and only handlers that outlive a tick (long polls) get theirs.
        """
        while True:
            await self._pool.wait_for_running()
            await trio.sleep(_WATCH_AFTER)
            for connection in self._pool.take_long_running():
                self._nursery.start_soon(connection.watch, connection.new_watcher())

"""The sessions of trusted peers: each peer's tasks, from trust to the end of trust.

Other modules hold the tasks; this one starts, restarts and ends them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from federation.peers.registry import PeerState
from federation.transport.connection import PeerConnection
from federation.transport.errors import Unsent
from node.tasks.containment import contained, keep_going


@dataclass
class PeerSessions:
    """Runs `tasks` for each peer over a connection that `connection_to` makes.

    Tasks of `later` start once `needed` returns: a thousand peers may be away for long.
    `connections` holds the connections. Tasks start only between `open` and `close`.
    """

    connections: dict[str, PeerConnection]
    connection_to: Callable[[PeerState], PeerConnection]
    tasks: Sequence[Callable[[PeerConnection], Awaitable[None]]]
    later: Sequence[Callable[[PeerConnection], Awaitable[None]]] = ()
    needed: Callable[[PeerConnection], Awaitable[None]] | None = None
    _nursery: trio.Nursery | None = None
    _scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    def open(self, nursery: trio.Nursery) -> None:
        """Allow tasks of peers to start, in `nursery`."""
        self._nursery = nursery

    def close(self) -> None:
        """Allow no more tasks to start."""
        self._nursery = None

    @asynccontextmanager
    async def connection(self, entry: PeerState) -> AsyncIterator[PeerConnection]:
        """Return the peer's open connection, or a new one for this caller alone. Raises Unsent."""
        if not entry.peer.public_key:
            raise Unsent("no card of this colony was seen yet")
        if used := self.connections.get(entry.peer.id):
            yield used
            return
        connection = self.connection_to(entry)
        try:
            yield connection
        finally:
            await connection.close()

    def begin(self, peerid: str, entry: PeerState) -> None:
        """Start the tasks of a peer that do not run yet."""
        if self._nursery is not None and peerid not in self._scopes:
            scope = self._scopes[peerid] = trio.CancelScope()
            self._nursery.start_soon(self._serve, entry, scope)

    def end(self, peerid: str) -> bool:
        """End the tasks of a peer. Return False if it has none."""
        scope = self._scopes.pop(peerid, None)
        if scope is not None:
            scope.cancel()
        return scope is not None

    async def _serve(self, entry: PeerState, scope: trio.CancelScope) -> None:
        with contained("tasks of a peer", peer=entry.peer.id):
            connection = self.connection_to(entry)
            self.connections[connection.id] = connection
            try:
                with scope:
                    async with trio.open_nursery() as nursery:
                        self._start(nursery, connection, self.tasks)
                        if self.needed is not None:
                            await self.needed(connection)
                        self._start(nursery, connection, self.later)
            finally:
                if self.connections.get(connection.id) is connection:
                    del self.connections[connection.id]
                await connection.close()

    @staticmethod
    def _start(
        nursery: trio.Nursery,
        connection: PeerConnection,
        tasks: Sequence[Callable[[PeerConnection], Awaitable[None]]],
    ) -> None:
        for task in tasks:
            name = f"{task.__name__} of {connection.id[:12]}"
            nursery.start_soon(keep_going, name, partial(task, connection))

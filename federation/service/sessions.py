"""The tasks of every trusted peer, from the moment that it is trusted until it is no more.

What the tasks do is in modules of their own; here they are kept alive.
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
    """Runs `tasks` for each peer over a link that `connection_to` makes, which is then in
    `connections`.

    Nothing begins but between `open` and `close`.
    """

    connections: dict[str, PeerConnection]
    connection_to: Callable[[PeerState], PeerConnection]
    tasks: Sequence[Callable[[PeerConnection], Awaitable[None]]]
    _nursery: trio.Nursery | None = None
    _scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    def open(self, nursery: trio.Nursery) -> None:
        """Let the tasks of peers begin, in a nursery."""
        self._nursery = nursery

    def close(self) -> None:
        """Begin no more tasks."""
        self._nursery = None

    @asynccontextmanager
    async def connection(self, entry: PeerState) -> AsyncIterator[PeerConnection]:
        """Give the link to a peer that is in use, else one for this alone. Raises Unsent."""
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
        """Start what is not started yet of a peer's."""
        if self._nursery is not None and peerid not in self._scopes:
            scope = self._scopes[peerid] = trio.CancelScope()
            self._nursery.start_soon(self._serve, entry, scope)

    def end(self, peerid: str) -> bool:
        """End the tasks of a peer; False when there are none."""
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
                        for task in self.tasks:
                            name = f"{task.__name__} of {connection.id[:12]}"
                            nursery.start_soon(keep_going, name, partial(task, connection))
            finally:
                if self.connections.get(connection.id) is connection:
                    del self.connections[connection.id]
                await connection.close()

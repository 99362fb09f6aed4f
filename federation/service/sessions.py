"""The tasks of every trusted peer, from the moment that it is trusted until it is no more.

What the tasks do is in modules of their own; here they are kept alive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from federation.peers.registry import Known
from federation.transport.errors import Unsent
from federation.transport.link import Link
from node.host.containment import contained, keep_going


@dataclass
class Tending:
    """Runs `tasks` for each peer over a link that `link_to` makes, which is then in `links`.

    Nothing begins but between `open` and `close`.
    """

    links: dict[str, Link]
    link_to: Callable[[Known], Link]
    tasks: Sequence[Callable[[Link], Awaitable[None]]]
    _nursery: trio.Nursery | None = None
    _scopes: dict[str, trio.CancelScope] = field(default_factory=dict)

    def open(self, nursery: trio.Nursery) -> None:
        """Let the tasks of peers begin, in a nursery."""
        self._nursery = nursery

    def close(self) -> None:
        """Begin no more tasks."""
        self._nursery = None

    @asynccontextmanager
    async def link(self, entry: Known) -> AsyncIterator[Link]:
        """Give the link to a peer that is in use, else one for this alone. Raises Unsent."""
        if not entry.peer.public_key:
            raise Unsent("no card of this colony was seen yet")
        if used := self.links.get(entry.peer.id):
            yield used
            return
        link = self.link_to(entry)
        try:
            yield link
        finally:
            await link.close()

    def begin(self, peerid: str, entry: Known) -> None:
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

    async def _serve(self, entry: Known, scope: trio.CancelScope) -> None:
        with contained("tasks of a peer", peer=entry.peer.id):
            link = self.link_to(entry)
            self.links[link.id] = link
            try:
                with scope:
                    async with trio.open_nursery() as nursery:
                        for task in self.tasks:
                            name = f"{task.__name__} of {link.id[:12]}"
                            nursery.start_soon(keep_going, name, partial(task, link))
            finally:
                if self.links.get(link.id) is link:
                    del self.links[link.id]
                await link.close()

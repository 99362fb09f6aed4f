"""Tells subscribers what became of processes without this daemon: another one did it, or the
store did not answer when we did.

The watch of the live keys says which; what we changed ourselves is told by whoever changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from node.etcd.errors import EtcdError
from node.etcd.watch import Event
from node.log import get_logger
from node.processes import Processes
from node.store import keys
from node.subscriptions import Subscriptions

__all__ = ["Elsewhere"]

# Seconds that what is heard is collected for: the answer to our own write may come after the watch.
_COLLECT = 0.05
_AGAIN = 1.0  # seconds after which a store that failed is asked again

log = get_logger("elsewhere")


def _place(key: str) -> tuple[str, str] | None:
    """Colony and process id of a live key; None for one that is about a workflow."""
    if key.startswith(keys.QUEUE):
        colony, _, _, processid = keys.parse_queue(key)
        return colony, processid
    if key.startswith(keys.RUNNING):
        return keys.parse_running(key)
    return None


@dataclass
class Elsewhere:
    """What was heard of processes and is not yet told, with the revision of it."""

    processes: Processes
    subscriptions: Subscriptions
    _heard: dict[tuple[str, str], int] = field(default_factory=dict)
    _bell: trio.Event = field(default_factory=trio.Event)

    def hear(self, events: Sequence[Event]) -> None:
        """Changes of live keys; free while nobody subscribes."""
        if not self.subscriptions.any_open:
            return
        for event in events:
            place = _place(event.key)
            if place is not None and self._is_news(place, event.mod_revision):
                self._heard[place] = event.mod_revision
                self._bell.set()

    def _is_news(self, place: tuple[str, str], revision: int) -> bool:
        return self.processes.remembered(place[1]) < revision

    async def run(self) -> None:
        """Tell, for ever."""
        while True:
            await self._bell.wait()
            await trio.sleep(_COLLECT)
            self._bell = trio.Event()
            heard, self._heard = self._heard, {}
            colonies: dict[str, list[str]] = {}
            for place, revision in heard.items():
                if self._is_news(place, revision):
                    colonies.setdefault(place[0], []).append(place[1])
            try:
                for colony, pids in colonies.items():
                    for process in await self.processes.load_many(colony, pids):
                        self.subscriptions.changed(process)
            except EtcdError as error:
                log.warning("store", error=error)
                self._heard = heard | self._heard
                self._bell.set()
                await trio.sleep(_AGAIN)

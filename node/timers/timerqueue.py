"""The timer queue: keys in the order of their moments, and the loop that acts on them.

Values only, and a loop around an action that is handed in; `timers.runner` decides who may act.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Generic, TypeVar

import trio
from sortedcontainers import SortedSet

from colonyd.errors import RpcError
from node.etcd.errors import EtcdError
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.types import SECOND
from node.processes.queue import count_owner
from node.tasks.fairqueue import FairQueue

T = TypeVar("T")

log = get_logger("timers")

# Seconds after which the clock is read again in any case: it may have been set.
_LONGEST_SLEEP = 30.0
# Actions under way at a time, and of one member; more would only queue up in the store.
_AT_ONCE, _EACH = 16, 4
# Seconds for which a key is left alone after its action failed unexpectedly.
_AFTER_A_FAULT = 60.0


@dataclass
class TimerQueue:
    """Keys and the moments at which they are due, in Unix ns. A key that is held back is not
    due.
    """

    changed: trio.Event = field(default_factory=trio.Event)
    _moments: dict[str, int] = field(default_factory=dict)
    _order: SortedSet[tuple[int, str]] = field(default_factory=SortedSet)
    _held: set[str] = field(default_factory=set)

    def set(self, key: str, moment: int | None) -> None:
        """Set the moment at which `key` is due, None for never.

        Wakes tasks that wait for `changed`.
        """
        before = self._moments.pop(key, None)
        if before is not None:
            self._order.discard((before, key))
        if moment is not None:
            self._moments[key] = moment
            if key not in self._held:
                self._order.add((moment, key))
        if before != moment:
            self.look_again()

    def clear(self) -> None:
        """Remove all keys; keys that are held back stay so when they return."""
        self._moments.clear()
        self._order.clear()
        self.look_again()

    def hold(self, key: str) -> None:
        """Hold `key` back until `let_go`: a task deals with it."""
        self._held.add(key)
        moment = self._moments.get(key)
        if moment is not None:
            self._order.discard((moment, key))

    def let_go(self, key: str) -> None:
        """End a `hold`."""
        self._held.discard(key)
        moment = self._moments.get(key)
        if moment is not None:
            self._order.add((moment, key))
        self.look_again()

    def due(self, now: int) -> list[str]:
        """Return the keys whose moment has come, the earliest first."""
        found: list[str] = []
        for moment, key in self._order:
            if moment > now:
                break
            found.append(key)
        return found

    def next(self) -> int | None:
        """Return the earliest moment, or None."""
        return self._order[0][0] if self._order else None

    def look_again(self) -> None:
        """Make `follow` read the clock again."""
        self.changed.set()
        self.changed = trio.Event()


@dataclass
class TimerIndex(Generic[T]):
    """Values of one class of keys with their revisions, and when each is `due` in Unix ns."""

    kind: type[T]
    due: Callable[[T], int | None]
    # Gives the colony and the member of a value.
    owner: Callable[[T], tuple[str, str]]
    # Gives the name of a value, which no other one of the colony has, and which never changes.
    name: Callable[[T], str] = attrgetter("name")
    timer_queue: TimerQueue = field(default_factory=TimerQueue)
    # How many values each member has, by colony and id, and all members together, by colony and "".
    owners: dict[tuple[str, str], int] = field(default_factory=dict)
    _known: dict[str, tuple[T, int]] = field(default_factory=dict)
    # The name and key of each value, by colony.
    _names: dict[str, SortedSet[tuple[str, str]]] = field(default_factory=dict)

    def get(self, key: str) -> tuple[T, int] | None:
        """Return the value as last known, and its revision."""
        return self._known.get(key)

    def first(self, colony: str, count: int) -> list[T]:
        """Return the values of a colony, the first `count` of them by name."""
        names = self._names.get(colony, ())
        return [self._known[key][0] for _, key in islice(names, count)]

    def all_keys(self) -> list[str]:
        """Return the keys of all values."""
        return list(self._known)

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Apply one change of the store, unless a newer revision is known."""
        known = self._known.get(key)
        if known is not None and known[1] >= revision:
            return
        if value is None:
            self.forget(key)
        else:
            self.learn(key, unpack(value, self.kind), revision)

    def replace(self, items: Sequence[tuple[str, bytes, int]]) -> None:
        """Replace the index after a new listing: (key, value, revision) of everything."""
        self._known.clear()
        self._names.clear()
        self.owners.clear()
        self.timer_queue.clear()
        for key, value, revision in items:
            self.apply(key, value, revision)

    def learn(self, key: str, value: T, revision: int) -> None:
        """Note the value written at `revision`, unless a newer one is known."""
        known = self._known.get(key)
        if known is not None and known[1] > revision:
            return
        if known is None:
            names = self._names.setdefault(self.owner(value)[0], SortedSet())
            names.add((self.name(value), key))
        self._uncount(known)
        self._known[key] = (value, revision)
        count_owner(self.owners, *self.owner(value), 1)
        self.timer_queue.set(key, self.due(value))

    def forget(self, key: str) -> None:
        """Remove a key that is gone from the store."""
        known = self._known.pop(key, None)
        if known is not None:
            colony, _ = self.owner(known[0])
            names = self._names[colony]
            names.discard((self.name(known[0]), key))
            if not names:
                del self._names[colony]
        self._uncount(known)
        self.timer_queue.set(key, None)

    def put_off(self, key: str) -> None:
        """Let a key not become due until `resume`, or until it has another value."""
        self.timer_queue.set(key, None)

    def resume(self, key: str) -> None:
        """Let a key become due when its value says."""
        known = self._known.get(key)
        if known is not None:
            self.timer_queue.set(key, self.due(known[0]))

    def _uncount(self, known: tuple[T, int] | None) -> None:
        if known is not None:
            count_owner(self.owners, *self.owner(known[0]), -1)


async def follow(
    index: TimerIndex[T], now: Callable[[], int], act: Callable[[str], Awaitable[float]]
) -> None:
    """Act on each key of an index when it is due, until cancelled. `now` gives Unix ns.

    Colonies take turns, and the members of each: many keys of one member delay no other. `act`
    returns the seconds for which its key is then left alone, 0 for none; after EtcdError or
    RpcError it is one second.
    """
    turns, timer_queue = FairQueue(_AT_ONCE, _EACH), index.timer_queue

    async def one(key: str) -> None:
        pause = 1.0
        try:
            known = index.get(key)
            async with turns.of(index.owner(known[0]) if known is not None else ("", "")):
                try:
                    pause = await act(key)
                except (EtcdError, RpcError) as error:
                    log.warning("due, and not done", key=key, error=error)
                except Exception:
                    # One cron or generator must not end the others.
                    pause = _AFTER_A_FAULT
                    log.exception("due, and failed", key=key, seconds=pause)
            if pause > 0:
                await trio.sleep(pause)
        finally:
            timer_queue.let_go(key)

    async with trio.open_nursery() as nursery:
        while True:
            changed = timer_queue.changed
            for key in timer_queue.due(now()):
                timer_queue.hold(key)
                nursery.start_soon(one, key)
            moment = timer_queue.next()
            pause = _LONGEST_SLEEP
            if moment is not None:
                pause = min(pause, max(0.0, (moment - now()) / SECOND))
            with trio.move_on_after(pause):
                await changed.wait()

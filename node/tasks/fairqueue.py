"""A fair queue: at most so many turns at once, and waiting parties take turns.

A party is a path, such as colony and member: colonies take turns first, and within a colony its
members do. Nothing here knows what a turn is for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

Party = tuple[str, ...]


@dataclass
class FairQueue:
    """At most `room` turns at once in all, and `each` of one party; 0 is no limit.

    All parties of one object have paths of the same length.
    """

    room: int = 0
    each: int = 0
    _inside: dict[Party, int] = field(default_factory=dict)
    _total: int = 0
    # The waiting tasks: by the first name of a path, then the next; the last has a queue of its
    # own.
    _waiting: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    @asynccontextmanager
    async def of(self, party: Party) -> AsyncIterator[None]:
        """Hold a turn of a party during the block; waits for it first."""
        await self.enter(party)
        try:
            yield
        finally:
            self.leave(party)

    def may(self, party: Party) -> bool:
        """Take a turn if one is free at once, and return whether it was; `leave` ends it."""
        if self._full(party) or (self._waiting and self._queued(party)):
            return False
        self._admit(party)
        return True

    async def enter(self, party: Party) -> None:
        """Wait for a turn; `leave` ends it."""
        if self.may(party):
            return
        turn, queue = trio.Event(), self._queue(party)
        queue.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.leave(party)
            else:
                queue.remove(turn)
                self._prune(party)
            raise

    def leave(self, party: Party) -> None:
        """End a turn; a waiting task goes on."""
        self._total -= 1
        left = self._inside[party] - 1
        if left:
            self._inside[party] = left
        else:
            del self._inside[party]
        if not self.room:
            # No task waits for parties other than its own.
            if self._waiting and self._queued(party):
                self._admit(party)
                self._queue(party).popleft().set()
                self._prune(party)
            return
        while self._total < self.room:
            if not self._next(self._waiting, ()):
                return

    def _admit(self, party: Party) -> None:
        self._total += 1
        self._inside[party] = self._inside.get(party, 0) + 1

    def _full(self, party: Party) -> bool:
        if self.room and self._total >= self.room:
            return True
        return bool(self.each) and self._inside.get(party, 0) >= self.each

    def _queue(self, party: Party) -> deque[trio.Event]:
        place = self._waiting
        for name in party[:-1]:
            place = place.setdefault(name, OrderedDict())
        found: deque[trio.Event] = place.setdefault(party[-1], deque())
        return found

    def _queued(self, party: Party) -> bool:
        place: Any = self._waiting
        for name in party:
            if name not in place:
                return False
            place = place[name]
        return bool(place)

    def _prune(self, party: Party) -> None:
        """Remove the empty parts of a party's path."""
        places: list[Any] = [self._waiting]
        for name in party:
            places.append(places[-1][name])
        for name in reversed(party):
            if not places.pop():
                del places[-1][name]

    def _next(self, waiting: OrderedDict[str, Any], above: Party) -> bool:
        """Let the first waiting task go on that may; return False when none may."""
        for name in list(waiting):
            below, party = waiting[name], (*above, name)
            if isinstance(below, OrderedDict):
                if not self._next(below, party):
                    continue
            elif self.each and self._inside.get(party, 0) >= self.each:
                continue
            else:
                self._admit(party)
                below.popleft().set()
            waiting.move_to_end(name)
            if not below:
                del waiting[name]
            return True
        return False

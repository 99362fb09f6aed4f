"""The queue in memory: which waiting process an executor gets, and whose deadline has passed.

Values in, values out: an index that store events rebuild, without I/O. The order is upstream's
priority time, smallest first, then the process id. `due_at` translates stored deadlines to a clock
that is never set: setting the wall clock must neither hasten nor delay an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice

import msgspec
from sortedcontainers import SortedList, SortedSet

from node.model.types import SECOND, Running, Waiting
from node.processes.fitting import UNLIMITED, Shelf, Track

# Revisions before and after those of all entries, for a search by place.
_BEFORE, _AFTER = -1, 1 << 63

# A shelf: colony, executor type, name of the executor or "", location in small letters or "".
Place = tuple[str, str, str, str]


@dataclass(frozen=True)
class Candidate:
    """What an executor brings to a match; `cpu` and `mem` None means unlimited."""

    colony: str
    executortype: str
    name: str
    location: str = ""
    cpu: int | None = None
    mem: int | None = None


class QueueEntry(msgspec.Struct, frozen=True, order=True, gc=False):
    """One waiting process in the index, with the revision of its queue key.

    Entries sort by their first two fields, which no two have in common.

    `prioritytime` is its place here, which is never in the future (`host.clock.place`); with
    `moved` the store has another one. A `blocked` process waits for others: it is listed and has
    deadlines, and no executor gets it.
    """

    prioritytime: int
    processid: str
    revision: int
    colony: str
    executortype: str
    waiting: Waiting
    blocked: bool = False
    moved: bool = False

    @property
    def cpu(self) -> int:
        """Return the CPU that it takes, in millicores."""
        return self.waiting.cpu

    @property
    def mem(self) -> int:
        """Return the memory that it takes, in bytes."""
        return self.waiting.mem


def matches(candidate: Candidate, waiting: Waiting) -> bool:
    """Return whether an executor may have a process; type and colony are equal already."""
    if waiting.executornames and candidate.name not in waiting.executornames:
        return False
    if waiting.locationname and waiting.locationname.lower() != candidate.location.lower():
        return False
    if candidate.cpu is not None and waiting.cpu > candidate.cpu:
        return False
    return candidate.mem is None or waiting.mem <= candidate.mem


# Deadlines that one call of `before` looks at: some 3 ms.
_PAGE = 1024


@dataclass
class Deadlines:
    """Deadlines of processes, in ns of one clock."""

    _now: dict[str, int] = field(default_factory=dict)
    _order: SortedList[tuple[int, str]] = field(default_factory=SortedList)

    def set(self, processid: str, deadline: int) -> None:
        """Set the deadline of a process, 0 for none."""
        if self._now.get(processid, 0) == deadline:
            return
        self.drop(processid)
        if deadline:
            self._now[processid] = deadline
            self._order.add((deadline, processid))

    def get(self, processid: str) -> int:
        """Return the deadline of a process, 0 for none."""
        return self._now.get(processid, 0)

    def drop(self, processid: str) -> None:
        """Remove the deadline of a process."""
        deadline = self._now.pop(processid, 0)
        if deadline:
            self._order.remove((deadline, processid))

    def before(self, now: int) -> list[str]:
        """Return the ids of the next processes that were due before `now`, earliest first, each
        once: as many as one step may look at.
        """
        late = self._order[: min(_PAGE, self._order.bisect_left((now, "")))]
        del self._order[: len(late)]
        for _, processid in late:
            del self._now[processid]
        return [processid for _, processid in late]

    def __len__(self) -> int:
        """Return the number of deadlines."""
        return len(self._order)


def _as_stored(deadline: int, limit: int) -> int:
    """Return a stored deadline unchanged: for a queue without another clock."""
    return deadline


# The earliest deadline: the next call of `overdue` returns the process.
_AT_ONCE = 1


@dataclass
class Queue:
    """The waiting processes of all colonies.

    A process that an executor may have is in the lane of its executor type, or in one for each
    executor that it names. A lane has a shelf for each location, and one for processes without any;
    a shelf has a group for each colony that processes came from. So a search passes nothing that
    waits for other executors, for another location, or for more CPU or memory.
    """

    entries: dict[str, QueueEntry] = field(default_factory=dict)
    # All in order: by (colony,), (colony, executor type), (colony, "", "", label), and (colony, "",
    # "", "", initiator); the lanes by (colony, executor type, name of the executor or "").
    _tracks: dict[tuple[str, ...], Track[QueueEntry]] = field(default_factory=dict)
    _shelves: dict[Place, Shelf[QueueEntry]] = field(default_factory=dict)
    # How many processes each member has, by colony and name, and all members together, by colony
    # and "".
    owners: dict[tuple[str, str], int] = field(default_factory=dict)
    # How many of each colony that processes came from there are, in all and by shelf.
    _origins: Counter[str] = field(default_factory=Counter)
    _sent: dict[str, Counter[Place]] = field(default_factory=dict)
    # How many there are in the lanes of an executor type, by colony and type.
    _depths: Counter[tuple[str, str]] = field(default_factory=Counter)
    _taken: dict[str, int] = field(default_factory=dict)
    due: Deadlines = field(default_factory=Deadlines)
    # Gets a stored deadline (Unix ns) and the ns it was given for, 0 if unknown.
    due_at: Callable[[int, int], int] = field(default=_as_stored, repr=False, compare=False)

    def _stand(self, entry: QueueEntry) -> None:
        """Add an entry to all orders."""
        lanes, origin = _lanes_of(entry), entry.waiting.origin
        for name in _orders_of(entry, lanes):
            track = self._tracks.get(name)
            if track is None:
                track = self._tracks[name] = Track(finds=False)
            track.add(entry)
        for place in places_of(entry, lanes):
            shelf = self._shelves.get(place)
            if shelf is None:
                shelf = self._shelves[place] = Shelf()
            shelf.add(entry, origin)
            if origin:
                self._sent.setdefault(origin, Counter())[place] += 1
        if lanes:
            self._depths[entry.colony, entry.executortype] += len(lanes)

    def _leave(self, entry: QueueEntry) -> None:
        """Remove an entry from all orders."""
        lanes, origin = _lanes_of(entry), entry.waiting.origin
        for name in _orders_of(entry, lanes):
            track = self._tracks[name]
            track.discard(entry)
            if not track:
                del self._tracks[name]
        for place in places_of(entry, lanes):
            shelf = self._shelves[place]
            shelf.discard(entry, origin)
            if not shelf:
                del self._shelves[place]
            if origin:
                sent = self._sent[origin]
                sent[place] -= 1
                if not sent[place]:
                    del sent[place]
                    if not sent:
                        del self._sent[origin]
        if lanes:
            kind = (entry.colony, entry.executortype)
            self._depths[kind] -= len(lanes)
            if not self._depths[kind]:
                del self._depths[kind]

    def add(self, entry: QueueEntry) -> bool:
        """Add or replace an entry. Returns False unless it is newer than the known or taken one."""
        if self.is_old(entry.processid, entry.revision):
            return False
        known = self.entries.get(entry.processid)
        waiting, due = entry.waiting, 0
        if known is not None:
            if known.waiting.waitdeadline == waiting.waitdeadline:
                due = self.due.get(entry.processid)
            self._drop(known)
        self._taken.pop(entry.processid, None)
        self.entries[entry.processid] = entry
        origin = waiting.origin
        if origin:
            self._origins[origin] += 1
        else:
            count_owner(self.owners, entry.colony, waiting.initiatorname, 1)
        self._stand(entry)
        limit = waiting.maxwaittime * SECOND
        self.due.set(entry.processid, due or self.due_at(waiting.waitdeadline, limit))
        return True

    def move(self, processid: str, prioritytime: int) -> None:
        """Give a waiting process another place in the order."""
        known = self.entries.get(processid)
        if known is None or known.prioritytime == prioritytime:
            return
        self._leave(known)
        moved = msgspec.structs.replace(known, prioritytime=prioritytime, moved=True)
        self._stand(moved)
        self.entries[processid] = moved

    def complete(self, entry: QueueEntry, waiting: Waiting) -> None:
        """Add the fields that the key of an entry lacks, if the entry is still here; set its
        deadline anew.
        """
        if self.entries.get(entry.processid) is entry:
            self._drop(entry)
            self.add(msgspec.structs.replace(entry, waiting=waiting))

    def is_old(self, processid: str, revision: int) -> bool:
        """Return whether `add` would refuse this revision: asking first saves decoding the
        value.
        """
        if self._taken.get(processid, -1) >= revision:
            return True
        known = self.entries.get(processid)
        return known is not None and known.revision >= revision

    def _drop(self, entry: QueueEntry) -> None:
        del self.entries[entry.processid]
        self.due.drop(entry.processid)
        origin = entry.waiting.origin
        if origin:
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]
        else:
            count_owner(self.owners, entry.colony, entry.waiting.initiatorname, -1)
        self._leave(entry)

    def remove(self, processid: str, revision: int | None = None) -> None:
        """Remove an entry whose queue key is gone, since `revision` if that is known."""
        if revision is None or self._taken.get(processid, -1) <= revision:
            self._taken.pop(processid, None)
        entry = self.entries.get(processid)
        if entry is not None and (revision is None or entry.revision < revision):
            self._drop(entry)

    def find(
        self, candidate: Candidate, held: Callable[[str], bool] | None = None
    ) -> QueueEntry | None:
        """Return the first process in order that the executor may have, or None.

        Processes of a colony for which `held` returns True are passed over: it has as much running
        as it may.
        """
        may = None if held is None else lambda origin: not (origin and held(origin))
        best: QueueEntry | None = None
        for shelf in self._shelves_for(candidate):
            best = shelf.first(*_limits(candidate), best, may)
        return best

    def offers(self, candidate: Candidate, origin: str) -> bool:
        """Return whether a process of the colony `origin` waits that the executor may have."""
        return any(
            shelf.first(*_limits(candidate), may=origin.__eq__) is not None
            for shelf in self._shelves_for(candidate)
        )

    def _shelves_for(self, candidate: Candidate) -> Iterator[Shelf[QueueEntry]]:
        for place in places_for(candidate):
            if (shelf := self._shelves.get(place)) is not None:
                yield shelf

    def places_of(self, origin: str) -> list[Place]:
        """Return the shelves with processes of the colony `origin` that executors may have."""
        return list(self._sent.get(origin, ()))

    def count_of(self, origin: str) -> int:
        """Return how many processes of the colony `origin` wait."""
        return self._origins[origin]

    def take(self, entry: QueueEntry) -> None:
        """Hide an entry while its transaction runs, so that no other poll of this daemon
        tries it.
        """
        self._drop(entry)
        self._taken[entry.processid] = entry.revision

    def give_back(self, entry: QueueEntry) -> None:
        """Show a hidden entry again: its transaction did not happen."""
        if self._taken.get(entry.processid) == entry.revision:
            del self._taken[entry.processid]
            self.add(entry)

    def keep(self, listed: Set[str], revision: int) -> list[tuple[str, str]]:
        """Remove all that a listing of the store as of `revision` has not, unless it is newer.

        Returns the colonies and ids of what it removed.
        """
        taken, entries = self._taken, self.entries
        for processid in [p for p in taken if p not in listed and taken[p] <= revision]:
            del taken[processid]
        gone = [e for p, e in entries.items() if p not in listed and e.revision <= revision]
        for entry in gone:
            self._drop(entry)
        return [(entry.colony, entry.processid) for entry in gone]

    def overdue(self, now: int) -> list[QueueEntry]:
        """Return the next entries that were due before `now`, by the clock of `due_at`; each is
        returned once.
        """
        return [self.entries[processid] for processid in self.due.before(now)]

    def again(self, entry: QueueEntry) -> None:
        """Let `overdue` return an entry once more, which could not be dealt with."""
        if entry.processid in self.entries and not self.due.get(entry.processid):
            self.due.set(entry.processid, _AT_ONCE)

    def in_order(
        self,
        colony: str,
        *,
        executortype: str = "",
        label: str = "",
        initiator: str = "",
        after: QueueEntry | None = None,
    ) -> Iterator[QueueEntry]:
        """Return the waiting processes of a colony in order; the queue must not change meanwhile.

        Only those of `executortype`, with `label` or of the member `initiator`, if one is given,
        and only those behind `after`.
        """
        name: tuple[str, ...] = (colony, executortype) if executortype else (colony,)
        if label:
            name = (colony, "", "", label)
        elif initiator:
            name = (colony, "", "", "", initiator)
        order = self._tracks.get(name, Track())
        if after is None:
            return iter(order)
        return order.behind(msgspec.structs.replace(after, revision=_AFTER))

    def lanes(self, colony: str, most: int) -> Iterator[tuple[str, Iterator[QueueEntry], int]]:
        """Return the lanes of a colony: executor type, its processes, and how many there are.

        A process that names several executors comes with the first one only, and is counted for
        each. Looks at `most` lanes of all colonies; the queue must not change meanwhile.
        """
        lanes = (name for name in self._tracks if len(name) == 3)
        for home, executortype, name in islice(lanes, most):
            if home == colony:
                track = self._tracks[home, executortype, name]
                entries = (
                    entry for entry in track if not name or entry.waiting.executornames[0] == name
                )
                yield executortype, entries, len(track)

    def ahead(self, entry: QueueEntry) -> int:
        """Return how many processes come before an entry in its lanes."""
        place = msgspec.structs.replace(entry, revision=_BEFORE)
        return sum(self._tracks.get(lane, Track()).rank(place) for lane in _lanes_of(entry))

    def depths(self, colony: str) -> dict[str, int]:
        """Return how many processes of a colony wait, by executor type.

        A process that names several executors is counted once for each: this measures load.
        """
        return {kind: count for (home, kind), count in self._depths.items() if home == colony}

    def count(self, colony: str) -> int:
        """Return how many processes of a colony wait."""
        return len(self._tracks.get((colony,), ()))


def count_owner(owners: dict[tuple[str, str], int], colony: str, name: str, more: int) -> None:
    """Add `more` to the count of a member, and to that of its colony."""
    # The same lines twice: they run for every process, and a loop costs as much again.
    place = (colony, name)
    if there := owners.get(place, 0) + more:
        owners[place] = there
    else:
        del owners[place]
    place = (colony, "")
    if there := owners.get(place, 0) + more:
        owners[place] = there
    else:
        del owners[place]


def _lanes_of(entry: QueueEntry) -> list[tuple[str, str, str]]:
    """Return the lanes of an entry: none for a blocked one."""
    if entry.blocked:
        return []
    names = entry.waiting.executornames
    if not names:
        return [(entry.colony, entry.executortype, "")]
    return [(entry.colony, entry.executortype, name) for name in dict.fromkeys(names)]


def _orders_of(entry: QueueEntry, lanes: list[tuple[str, str, str]]) -> Iterator[tuple[str, ...]]:
    yield (entry.colony,)
    yield (entry.colony, entry.executortype)
    if entry.waiting.label:
        yield (entry.colony, "", "", entry.waiting.label)
    if entry.waiting.initiatorname:
        yield (entry.colony, "", "", "", entry.waiting.initiatorname)
    yield from lanes


def places_of(entry: QueueEntry, lanes: list[tuple[str, str, str]] | None = None) -> list[Place]:
    """Return the shelves that an entry is on."""
    place = entry.waiting.locationname.lower()
    return [(*lane, place) for lane in (_lanes_of(entry) if lanes is None else lanes)]


def places_for(candidate: Candidate) -> list[Place]:
    """Return the shelves with what an executor may have."""
    colony, kind = candidate.colony, candidate.executortype
    name, place = candidate.name, candidate.location.lower()
    found: list[Place] = [(colony, kind, "", "")]
    if name:
        found.append((colony, kind, name, ""))
    if place:
        found.append((colony, kind, "", place))
    if name and place:
        found.append((colony, kind, name, place))
    return found


def _limits(candidate: Candidate) -> tuple[int, int]:
    """Return the most CPU and memory that a process may take."""
    cpu, mem = candidate.cpu, candidate.mem
    return UNLIMITED if cpu is None else cpu, UNLIMITED if mem is None else mem


@dataclass
class RunningSet:
    """The running processes of all colonies and their deadlines.

    Revisions are those of the writes. Our own transactions and the watch report the same change;
    the later report must not undo what has happened since.
    """

    entries: dict[str, tuple[str, Running, int]] = field(default_factory=dict)
    # As in `Queue`.
    owners: dict[tuple[str, str], int] = field(default_factory=dict)
    _order: dict[str, SortedSet[tuple[int, str]]] = field(default_factory=dict)
    # The processes of each executor, by its colony and id.
    _executors: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict)
    _origins: Counter[str] = field(default_factory=Counter)
    due: Deadlines = field(default_factory=Deadlines)
    due_at: Callable[[int, int], int] = field(default=_as_stored, repr=False, compare=False)

    def is_old(self, processid: str, revision: int) -> bool:
        """Return whether `add` would refuse this revision: asking first saves decoding the
        value.
        """
        known = self.entries.get(processid)
        if known is not None and known[2] >= revision:
            return True
        return self._ended.get(processid, -1) >= revision

    def add(self, colony: str, processid: str, running: Running, revision: int) -> None:
        """Add or replace a process, unless a newer revision of it is known."""
        if self.is_old(processid, revision):
            return
        known, due = self.entries.get(processid), 0
        if known is not None and known[1].execdeadline == running.execdeadline:
            due = self.due.get(processid)
        self._drop(processid)
        self._ended.pop(processid, None)
        self.entries[processid] = (colony, running, revision)
        order = self._order.get(colony)
        if order is None:
            order = self._order[colony] = SortedSet()
        order.add((running.starttime, processid))
        self._executors.setdefault((colony, running.executorid), {})[processid] = None
        if running.origin:
            self._origins[running.origin] += 1
        else:
            count_owner(self.owners, colony, running.initiatorname, 1)
        limit = running.execdeadline - running.starttime
        self.due.set(processid, due or self.due_at(running.execdeadline, limit))

    def _drop(self, processid: str) -> None:
        known = self.entries.pop(processid, None)
        if known is None:
            return
        self.due.drop(processid)
        colony, running, _ = known
        if running.origin:
            self._origins[running.origin] -= 1
            if not self._origins[running.origin]:
                del self._origins[running.origin]
        else:
            count_owner(self.owners, colony, running.initiatorname, -1)
        mine = self._executors[colony, running.executorid]
        del mine[processid]
        if not mine:
            del self._executors[colony, running.executorid]
        order = self._order[colony]
        order.discard((running.starttime, processid))
        if not order:
            del self._order[colony]

    def end(self, processid: str, revision: int) -> None:
        """Remove a process that a transaction of this daemon ended; the watch has yet to report
        that.
        """
        known = self.entries.get(processid)
        if known is not None and known[2] < revision:
            self._drop(processid)
            self._ended[processid] = revision

    def remove(self, processid: str, revision: int) -> None:
        """Remove a process whose running key is gone from the store."""
        if self._ended.get(processid, -1) <= revision:
            self._ended.pop(processid, None)
        known = self.entries.get(processid)
        if known is not None and known[2] < revision:
            self._drop(processid)

    def keep(self, listed: Set[str], revision: int) -> list[tuple[str, str]]:
        """Remove all that a listing of the store as of `revision` has not, unless it is newer.

        Returns the colonies and ids of what it removed.
        """
        ended, entries = self._ended, self.entries
        for processid in [p for p in ended if p not in listed and ended[p] <= revision]:
            del ended[processid]
        gone = [(e[0], p) for p, e in entries.items() if p not in listed and e[2] <= revision]
        for _, processid in gone:
            self._drop(processid)
        return gone

    def overdue(self, now: int) -> list[tuple[str, str, Running]]:
        """Return (colony, process id, running) of the next processes that were due before `now`;
        each once.
        """
        found = []
        for processid in self.due.before(now):
            colony, running, _ = self.entries[processid]
            found.append((colony, processid, running))
        return found

    def again(self, processid: str) -> None:
        """Let `overdue` return a process once more, which could not be dealt with."""
        if processid in self.entries and not self.due.get(processid):
            self.due.set(processid, _AT_ONCE)

    def of_executor(self, colony: str, executorid: str) -> list[str]:
        """Return the ids of the processes that an executor runs."""
        return list(self._executors.get((colony, executorid), ()))

    def origin_of(self, processid: str) -> str:
        """Return the id of the colony that a running process came from; "" if it is ours or
        unknown.
        """
        known = self.entries.get(processid)
        return known[1].origin if known else ""

    def count_of(self, origin: str) -> int:
        """Return how many processes of the colony `origin` run."""
        return self._origins[origin]

    def in_order(
        self, colony: str, after: tuple[str, Running] | None = None
    ) -> Iterator[tuple[str, Running]]:
        """Return the running processes of a colony by start time; the set must not change
        meanwhile.

        Only those behind `after`, if given.
        """
        begin = None if after is None else (after[1].starttime, after[0])
        order = self._order.get(colony, SortedSet())
        for _, processid in order.irange(begin, inclusive=(begin is None, True)):
            yield processid, self.entries[processid][1]

    def count(self, colony: str) -> int:
        """Return how many processes of a colony run."""
        return len(self._order.get(colony, ()))

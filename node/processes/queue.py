"""Which waiting process an executor gets, who waits for one, and whose deadline has passed.

Values in, values out: an index that store events rebuild, without I/O. The order is upstream's
priority time, smallest first, then the process id. When a stored deadline has come is told by the
function that is handed in as `due_at`: a clock that is set must neither hasten nor put off an end.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from sortedcontainers import SortedSet

from node.model.types import SECOND, Running, Waiting

# The lane of those that nobody may have yet: no executor's name has a "/".
_NOBODY = "/"


@dataclass(frozen=True)
class Candidate:
    """What an executor brings to a match; `cpu` and `mem` None means unlimited."""

    colony: str
    executortype: str
    name: str
    location: str = ""
    cpu: int | None = None
    mem: int | None = None


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One waiting process in the index, with the revision of its queue key.

    `prioritytime` is the one that it stands by here, which is not of the future (`steps.place`);
    `moved` is whether the store has another one.
    A `blocked` one waits for others: it is listed and has deadlines, and nobody gets it.
    """

    colony: str
    executortype: str
    prioritytime: int
    processid: str
    waiting: Waiting
    revision: int
    blocked: bool = False
    moved: bool = False


def matches(candidate: Candidate, waiting: Waiting) -> bool:
    """Whether the executor may be handed the process (type and colony are already equal)."""
    if waiting.executornames and candidate.name not in waiting.executornames:
        return False
    if waiting.locationname and waiting.locationname.lower() != candidate.location.lower():
        return False
    if candidate.cpu is not None and waiting.cpu > candidate.cpu:
        return False
    return candidate.mem is None or waiting.mem <= candidate.mem


@dataclass
class DeadlineHeap:
    """When which process is due, in ns of one clock; who has left before leaves nothing for long.

    `least` is how long the heap may always be. Beyond it, no more than half of it is of those
    who left: a heap can't be searched, and deadlines may be days away.
    """

    least: int = 1024
    _now: dict[str, int] = field(default_factory=dict)
    _heap: list[tuple[int, str]] = field(default_factory=list)

    def set(self, processid: str, deadline: int) -> None:
        """From now on the process is due at `deadline`, 0 for never."""
        if not deadline:
            self.drop(processid)
            return
        if self._now.get(processid) == deadline:
            return
        self._now[processid] = deadline
        heapq.heappush(self._heap, (deadline, processid))
        if len(self._heap) > max(self.least, 2 * len(self._now)):
            self._heap = [(when, known) for known, when in self._now.items()]
            heapq.heapify(self._heap)

    def get(self, processid: str) -> int:
        """When the process is due, 0 for never."""
        return self._now.get(processid, 0)

    def drop(self, processid: str) -> None:
        """The process is not due any more."""
        self._now.pop(processid, None)

    def before(self, now: int) -> list[str]:
        """Ids of the processes that were due before `now`, the first first; each is told once."""
        found = []
        while self._heap and self._heap[0][0] < now:
            deadline, processid = heapq.heappop(self._heap)
            if self._now.get(processid) == deadline:
                del self._now[processid]
                found.append(processid)
        return found

    def __len__(self) -> int:
        """How much is kept."""
        return len(self._heap)


def _as_stored(deadline: int, limit: int) -> int:
    """When a deadline has come, for who has no clock beside that of the deadlines."""
    return deadline


# Due as soon as anybody looks: the earliest moment that is one.
_AT_ONCE = 1


@dataclass
class Queue:
    """The waiting processes of all colonies.

    Processes that name executors stand in a lane of each name, so that they never slow the
    scan of an executor that they do not name. Each lane has a track for every colony that
    processes came from.
    """

    entries: dict[str, QueueEntry] = field(default_factory=dict)
    _lanes: dict[tuple[str, str, str], dict[str, SortedSet[tuple[int, str]]]] = field(
        default_factory=dict
    )
    # How many are of a member, by colony and name, and of all members, by colony and "".
    owners: dict[tuple[str, str], int] = field(default_factory=dict)
    _labels: dict[tuple[str, str], SortedSet[tuple[int, str]]] = field(default_factory=dict)
    _origins: Counter[str] = field(default_factory=Counter)
    _taken: dict[str, int] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    due: DeadlineHeap = field(default_factory=DeadlineHeap)
    # From a stored deadline (Unix ns) and the ns it was given for, 0 if unknown.
    due_at: Callable[[int, int], int] = field(default=_as_stored, repr=False, compare=False)

    def _lanes_of(self, entry: QueueEntry) -> list[tuple[str, str, str]]:
        names = [_NOBODY] if entry.blocked else entry.waiting.executornames or [""]
        return [(entry.colony, entry.executortype, name) for name in names]

    def add(self, entry: QueueEntry) -> bool:
        """Add or replace; False if it is old news of an entry already taken or known."""
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
        self._counts[entry.colony] += 1
        origin = waiting.origin
        if origin:
            self._origins[origin] += 1
        else:
            count_owner(self.owners, entry.colony, waiting.initiatorname, 1)
        for lane in self._lanes_of(entry):
            tracks = self._lanes.setdefault(lane, {})
            places = tracks.get(origin)
            if places is None:  # making a set costs more than all else here
                places = tracks[origin] = SortedSet()
            places.add(_place(entry))
        if waiting.label:
            label = (entry.colony, waiting.label)
            self._labels.setdefault(label, SortedSet()).add(_place(entry))
        limit = waiting.maxwaittime * SECOND
        self.due.set(entry.processid, due or self.due_at(waiting.waitdeadline, limit))
        return True

    def move(self, processid: str, prioritytime: int) -> None:
        """Let a waiting process stand elsewhere in the order."""
        known = self.entries.get(processid)
        if known is None or known.prioritytime == prioritytime:
            return
        moved = replace(known, prioritytime=prioritytime, moved=True)
        sets = [self._lanes[lane][known.waiting.origin] for lane in self._lanes_of(known)]
        if known.waiting.label:
            sets.append(self._labels[known.colony, known.waiting.label])
        for places in sets:
            places.discard(_place(known))
            places.add(_place(moved))
        self.entries[processid] = moved

    def complete(self, entry: QueueEntry, waiting: Waiting) -> None:
        """Let an entry that still stands here have what its key lacks; its deadline is due anew."""
        if self.entries.get(entry.processid) is entry:
            self._drop(entry)
            self.add(replace(entry, waiting=waiting))

    def is_old(self, processid: str, revision: int) -> bool:
        """Whether `add` would refuse this news: it is cheaper to ask than to decode them."""
        if self._taken.get(processid, -1) >= revision:
            return True
        known = self.entries.get(processid)
        return known is not None and known.revision >= revision

    def _drop(self, entry: QueueEntry) -> None:
        del self.entries[entry.processid]
        self.due.drop(entry.processid)
        self._counts[entry.colony] -= 1
        if not self._counts[entry.colony]:
            del self._counts[entry.colony]
        origin = entry.waiting.origin
        if origin:
            self._origins[origin] -= 1
            if not self._origins[origin]:
                del self._origins[origin]
        else:
            count_owner(self.owners, entry.colony, entry.waiting.initiatorname, -1)
        for lane in self._lanes_of(entry):
            tracks = self._lanes[lane]
            tracks[origin].discard(_place(entry))
            if not tracks[origin]:
                del tracks[origin]
                if not tracks:
                    del self._lanes[lane]
        if entry.waiting.label:
            label = (entry.colony, entry.waiting.label)
            self._labels[label].discard(_place(entry))
            if not self._labels[label]:
                del self._labels[label]

    def remove(self, processid: str, revision: int | None = None) -> None:
        """The queue key is gone from the store, since `revision` if that is known."""
        if revision is None or self._taken.get(processid, -1) <= revision:
            self._taken.pop(processid, None)
        entry = self.entries.get(processid)
        if entry is not None and (revision is None or entry.revision < revision):
            self._drop(entry)

    def find(
        self, candidate: Candidate, held: Callable[[str], bool] | None = None
    ) -> QueueEntry | None:
        """The first process in order that the executor may have.

        `held` tells which colonies have as much running as they may: none of theirs is found.
        """
        best: QueueEntry | None = None
        for name in ("", candidate.name):
            lane = (candidate.colony, candidate.executortype, name)
            for origin, places in self._lanes.get(lane, {}).items():
                if origin and held is not None and held(origin):
                    continue
                for _, processid in places:
                    entry = self.entries[processid]
                    if best is not None and _place(best) < _place(entry):
                        break
                    if matches(candidate, entry.waiting):
                        best = entry
                        break
        return best

    def offers(self, candidate: Candidate, origin: str) -> bool:
        """Whether a process waits that came from one colony and that the executor may have."""
        return any(
            matches(candidate, self.entries[processid].waiting)
            for name in ("", candidate.name)
            for _, processid in self._lanes.get(
                (candidate.colony, candidate.executortype, name), {}
            ).get(origin, ())
        )

    def count_of(self, origin: str) -> int:
        """How many processes that came from one colony wait."""
        return self._origins[origin]

    def take(self, entry: QueueEntry) -> None:
        """Hide an entry while its transaction runs, so that nobody else here tries it."""
        self._drop(entry)
        self._taken[entry.processid] = entry.revision

    def give_back(self, entry: QueueEntry) -> None:
        """The transaction did not happen: the entry is as before."""
        if self._taken.get(entry.processid) == entry.revision:
            del self._taken[entry.processid]
            self.add(entry)

    def replace(self, entries: dict[str, QueueEntry]) -> None:
        """The store was listed anew: what is not in `entries` is gone."""
        for processid in [known for known in self.entries if known not in entries]:
            self.remove(processid)
        for processid in [taken for taken in self._taken if taken not in entries]:
            del self._taken[processid]
        for entry in entries.values():
            self.add(entry)

    def overdue(self, now: int) -> list[QueueEntry]:
        """Entries that were due before `now`, by the clock of `due_at`; each is returned once."""
        return [self.entries[processid] for processid in self.due.before(now)]

    def again(self, entry: QueueEntry) -> None:
        """An overdue entry could not be dealt with: `overdue` returns it once more."""
        if entry.processid in self.entries and not self.due.get(entry.processid):
            self.due.set(entry.processid, _AT_ONCE)

    def in_order(
        self,
        colony: str,
        *,
        executortype: str = "",
        label: str = "",
        after: QueueEntry | None = None,
    ) -> Iterator[QueueEntry]:
        """The waiting processes of a colony, in order; the queue must not change meanwhile.

        Those of one executor type or with one label, if it is given, and those behind `after`.
        """
        if label:
            tracks = [self._labels.get((colony, label), SortedSet())]
        else:
            tracks = [
                places
                for lane, tracks in self._lanes.items()
                if lane[0] == colony and executortype in ("", lane[1])
                for places in tracks.values()
            ]
        last = begin = None if after is None else _place(after)
        for place in heapq.merge(*(track.irange(begin) for track in tracks)):
            # Who names several executors stands in as many lanes, and so comes as often in a row.
            if place != last:
                yield self.entries[place[1]]
            last = place

    def lanes(self, colony: str, most: int) -> Iterator[tuple[str, Iterator[QueueEntry], int]]:
        """What executors may be handed, by what it asks: the type, the processes, how many.

        One that names several executors comes with the first of them only, and is counted for
        each. Looks at `most` lanes of all colonies; the queue must not change meanwhile.
        """
        for (name, executortype, lane), tracks in islice(self._lanes.items(), most):
            if name == colony and lane != _NOBODY:
                entries = (
                    entry
                    for places in tracks.values()
                    for _, processid in places
                    for entry in [self.entries[processid]]
                    if not lane or entry.waiting.executornames[0] == lane
                )
                yield executortype, entries, sum(map(len, tracks.values()))

    def ahead(self, entry: QueueEntry) -> int:
        """How many processes that ask for the same come before one."""
        place = _place(entry)
        return sum(
            places.bisect_left(place)
            for lane in self._lanes_of(entry)
            for places in self._lanes.get(lane, {}).values()
        )

    def depths(self, colony: str) -> dict[str, int]:
        """How many processes of a colony wait for each executor type.

        Who names several executors counts once for each: it is a measure of load.
        """
        found: Counter[str] = Counter()
        for (name, executortype, lane), tracks in self._lanes.items():
            if name == colony and lane != _NOBODY:
                found[executortype] += sum(map(len, tracks.values()))
        return dict(found)

    def count(self, colony: str) -> int:
        """How many processes of a colony wait."""
        return self._counts[colony]


def count_owner(owners: dict[tuple[str, str], int], colony: str, name: str, more: int) -> None:
    """Count something of a member, and of its colony, up or down."""
    # Twice the same lines: this is in the way of every process, and a loop costs as much again.
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


def _place(entry: QueueEntry) -> tuple[int, str]:
    return (entry.prioritytime, entry.processid)


@dataclass
class RunningSet:
    """The running processes of all colonies and their deadlines.

    Revisions are those of the writes: our own transactions and the watch tell the same news, and
    the later of the two to arrive must not undo what has happened since.
    """

    entries: dict[str, tuple[str, Running, int]] = field(default_factory=dict)
    # As in `Queue`.
    owners: dict[tuple[str, str], int] = field(default_factory=dict)
    _order: dict[str, SortedSet[tuple[int, str]]] = field(default_factory=dict)
    _ended: dict[str, int] = field(default_factory=dict)
    _origins: Counter[str] = field(default_factory=Counter)
    due: DeadlineHeap = field(default_factory=DeadlineHeap)
    due_at: Callable[[int, int], int] = field(default=_as_stored, repr=False, compare=False)

    def is_old(self, processid: str, revision: int) -> bool:
        """Whether `add` would refuse this news: it is cheaper to ask than to decode them."""
        known = self.entries.get(processid)
        if known is not None and known[2] >= revision:
            return True
        return self._ended.get(processid, -1) >= revision

    def add(self, colony: str, processid: str, running: Running, revision: int) -> None:
        """Add or replace, unless it is old news."""
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
        order = self._order[colony]
        order.discard((running.starttime, processid))
        if not order:
            del self._order[colony]

    def end(self, processid: str, revision: int) -> None:
        """A transaction of ours took the running key away; the watch has yet to say so."""
        known = self.entries.get(processid)
        if known is not None and known[2] < revision:
            self._drop(processid)
            self._ended[processid] = revision

    def remove(self, processid: str, revision: int) -> None:
        """The running key is gone from the store."""
        if self._ended.get(processid, -1) <= revision:
            self._ended.pop(processid, None)
        known = self.entries.get(processid)
        if known is not None and known[2] < revision:
            self._drop(processid)

    def replace(self, entries: dict[str, tuple[str, Running, int]]) -> None:
        """The store was listed anew."""
        for processid in [known for known in self.entries if known not in entries]:
            self._drop(processid)
        for processid in [ended for ended in self._ended if ended not in entries]:
            del self._ended[processid]
        for processid, (colony, running, revision) in entries.items():
            self.add(colony, processid, running, revision)

    def overdue(self, now: int) -> list[tuple[str, str, Running]]:
        """(colony, process id, running) that were due before `now`, as in `Queue`; each once."""
        found = []
        for processid in self.due.before(now):
            colony, running, _ = self.entries[processid]
            found.append((colony, processid, running))
        return found

    def again(self, processid: str) -> None:
        """An overdue process could not be dealt with: `overdue` returns it once more."""
        if processid in self.entries and not self.due.get(processid):
            self.due.set(processid, _AT_ONCE)

    def of_executor(self, colony: str, executorid: str) -> list[str]:
        """Ids of the processes that an executor runs."""
        return [
            processid
            for processid, (home, running, _) in self.entries.items()
            if home == colony and running.executorid == executorid
        ]

    def origin_of(self, processid: str) -> str:
        """Id of the colony that a running process came from, "" for ours and unknown ones."""
        known = self.entries.get(processid)
        return known[1].origin if known else ""

    def count_of(self, origin: str) -> int:
        """How many processes that came from one colony run."""
        return self._origins[origin]

    def in_order(
        self, colony: str, after: tuple[str, Running] | None = None
    ) -> Iterator[tuple[str, Running]]:
        """The running processes of a colony by start time; the set must not change meanwhile.

        Those behind `after`, if it is given.
        """
        begin = None if after is None else (after[1].starttime, after[0])
        order = self._order.get(colony, SortedSet())
        for _, processid in order.irange(begin, inclusive=(begin is None, True)):
            yield processid, self.entries[processid][1]

    def count(self, colony: str) -> int:
        """How many processes of a colony run."""
        return len(self._order.get(colony, ()))

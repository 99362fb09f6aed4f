"""The entries of the outbox in memory, indexed: what a look at them costs goes by what it returns.

`outbox.outbox` keeps them in step with the store; nothing here waits or writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from sortedcontainers import SortedDict

from federation.forward import machine
from federation.forward.machine import Forward, ForwardState

_PLACING = frozenset(
    ("forward", "due", "tries", "busy")
)  # the fields that decide the place in the index


@dataclass(eq=False)
class OutboxEntry:
    """A forward in the outbox; `due` is in trio's time, in seconds.

    `withdrawn` is the last revision at which a cancel tried to remove the forward as never sent.
    """

    forward: Forward
    revision: int
    due: float = 0.0
    tries: int = 0
    busy: bool = False
    withdrawn: int = 0
    number: int = field(default=0, init=False)  # entries that came earlier have lower ones
    index: OutboxEntries | None = field(default=None, init=False, repr=False)

    def __setattr__(self, name: str, value: Any) -> None:
        index = getattr(self, "index", None) if name in _PLACING else None
        if index is not None:
            index.take_out(self)
        super().__setattr__(name, value)
        if index is not None:
            index.put_in(self)

    @property
    def to_send(self) -> bool:
        """Return whether a message of this forward must be sent."""
        state = self.forward.state
        if state == ForwardState.CANCELLING:
            return not self.forward.receipt
        return state in (ForwardState.QUEUED, ForwardState.DOUBT)


@dataclass
class _OfPeer:
    """The entries of one peer. `ready` and `later` are to be sent: at once, or at a time."""

    entries: dict[int, OutboxEntry] = field(default_factory=dict)
    ready: SortedDict[int, OutboxEntry] = field(default_factory=SortedDict)
    later: SortedDict[tuple[float, int], OutboxEntry] = field(default_factory=SortedDict)
    tried: dict[int, OutboxEntry] = field(default_factory=dict)  # in vain
    followed: SortedDict[int, OutboxEntry] = field(default_factory=SortedDict)
    busy: int = 0
    outstanding: int = 0


class OutboxEntries(dict[str, OutboxEntry]):
    """The entries by process id. An entry's place in the index follows its fields."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = 0
        self._numbers = count(1)
        self._peers: dict[str, _OfPeer] = {}
        self._origins = Counter[str]()
        self._states = Counter[ForwardState]()
        self._deadlines: SortedDict[tuple[int, int], OutboxEntry] = SortedDict()

    # -- changes -------------------------------------------------------------------------------

    def __setitem__(self, processid: str, entry: OutboxEntry) -> None:
        self.pop(processid, None)
        super().__setitem__(processid, entry)
        entry.number, entry.index = next(self._numbers), self
        self.put_in(entry)

    def __delitem__(self, processid: str) -> None:
        entry = self[processid]
        super().__delitem__(processid)
        self.take_out(entry)
        entry.index = None

    def pop(self, processid: str, *default: Any) -> Any:
        """Remove an entry and return it; the default, if one is given, for an unknown id."""
        if processid not in self and default:
            return default[0]
        entry = self[processid]
        del self[processid]
        return entry

    def clear(self) -> None:
        """Remove all entries."""
        for processid in list(self):
            del self[processid]

    def put_in(self, entry: OutboxEntry) -> None:
        """Add an entry to the index, as its fields are now."""
        forward, number = entry.forward, entry.number
        there = self._peers.setdefault(forward.peer, _OfPeer())
        there.entries[number] = entry
        there.outstanding += forward.outstanding
        if forward.state in (ForwardState.ACCEPTED, ForwardState.CANCELLING):
            there.followed[number] = entry
        if entry.tries:
            there.tried[number] = entry
        if entry.busy:
            there.busy += 1
            self.busy += 1
        elif entry.to_send and entry.due:
            there.later[entry.due, number] = entry
        elif entry.to_send:
            there.ready[number] = entry
        self._origins[forward.origin] += 1
        self._states[forward.state] += 1
        self._deadlines[machine.next_deadline(forward), number] = entry

    def take_out(self, entry: OutboxEntry) -> None:
        """Remove an entry from the index, before its fields change."""
        forward, number = entry.forward, entry.number
        there = self._peers[forward.peer]
        del there.entries[number]
        there.outstanding -= forward.outstanding
        there.followed.pop(number, None)
        there.ready.pop(number, None)
        there.later.pop((entry.due, number), None)
        there.tried.pop(number, None)
        there.busy -= entry.busy
        self.busy -= entry.busy
        if not there.entries:
            del self._peers[forward.peer]
        self._states[forward.state] -= 1
        self._origins[forward.origin] -= 1
        if not self._origins[forward.origin]:
            del self._origins[forward.origin]
        del self._deadlines[machine.next_deadline(forward), number]

    # -- looks ---------------------------------------------------------------------------------

    def _of(self, peerid: str) -> _OfPeer:
        return self._peers.get(peerid) or _OfPeer()

    def peers(self) -> set[str]:
        """Return the peers that have entries."""
        return set(self._peers)

    def of_peer(self, peerid: str) -> list[OutboxEntry]:
        """Return the entries of one peer."""
        return list(self._of(peerid).entries.values())

    def count_of(self, peerid: str) -> int:
        """Return how many entries a peer has."""
        return len(self._of(peerid).entries)

    def outstanding(self, peerid: str) -> int:
        """Return for how many entries a peer may owe an outcome."""
        return self._of(peerid).outstanding

    def busy_of(self, peerid: str) -> int:
        """Return how many messages to a peer are under way."""
        return self._of(peerid).busy

    def count_in(self, state: ForwardState) -> int:
        """Return how many entries are in a state."""
        return self._states[state]

    def relayed(self, origin: str) -> int:
        """Return how many entries belong to processes of another colony."""
        return self._origins[origin]

    def followed(self, peerid: str) -> SortedDict[int, OutboxEntry]:
        """Return the entries that a peer may have updates of, in the order in which they came."""
        return self._of(peerid).followed

    def ready(self, peerid: str, now: float) -> Iterator[OutboxEntry]:
        """Yield the entries to send now, the first that came first. Do not change them meanwhile.

        `now` is in trio's time.
        """
        there = self._of(peerid)
        while there.later and there.later.peekitem(0)[0][0] <= now:
            _, entry = there.later.popitem(0)
            there.ready[entry.number] = entry
        yield from there.ready.values()

    def next_due(self, peerid: str) -> float | None:
        """Return when the next entry that is not ready is due, in trio's time; None for never."""
        later = self._of(peerid).later
        return later.peekitem(0)[0][0] if later else None

    def tried(self, peerid: str) -> list[OutboxEntry]:
        """Return the entries of a peer of which a message was sent in vain."""
        return list(self._of(peerid).tried.values())

    def late(self, now: int) -> list[OutboxEntry]:
        """Return the entries of which a deadline has passed at `now` (Unix ns)."""
        return [self._deadlines[place] for place in self._deadlines.irange(maximum=(now, 0))]


class Marks(dict[tuple[str, str], None]):
    """Marked forwards, as (process id, peer id), found by peer as well."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[str, dict[str, None]] = {}

    def __setitem__(self, place: tuple[str, str], value: None) -> None:
        super().__setitem__(place, value)
        self._of.setdefault(place[1], {})[place[0]] = None

    def pop(self, place: tuple[str, str], *default: Any) -> Any:
        """Remove a mark, if there is one."""
        pids = self._of.get(place[1], {})
        pids.pop(place[0], None)
        if not pids:
            self._of.pop(place[1], None)
        return super().pop(place, *default)

    def of(self, peerid: str) -> list[str]:
        """Return the ids of the marked processes of a peer."""
        return list(self._of.get(peerid, ()))

    def peers(self) -> list[str]:
        """Return the peers with marks."""
        return list(self._of)

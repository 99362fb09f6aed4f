"""What a trusted colony may cost here: messages, what is under way at once, and what it leaves.

`policy` has the limits. What it leaves is counted by the markers of its processes and what stands
beside them in the store, so that a restart, or another daemon, comes to the same sum.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from federation.peers.policy import TokenBucket
from federation.peers.registry import Peers
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from federation.wire.refusals import Refusal
from node.etcd.client import EtcdClient, KeyValue

_PAGE = 500  # keys read at once: what follows of them must not hold up everybody else
_AT_ONCE = 128  # messages of one colony that are worked on at a time
_WAITING = {Kind.POLL: 16, Kind.COLLECT: 96}  # of these, which may wait for long
# Messages a minute of kinds that nobody has to send often, and that wake much.
_RATES = {Kind.HELLO: 120, Kind.CAPABILITIES: 240}
_CARDS = 12  # newer cards of one colony that are taken in a minute
_FULL_AGAIN = 60  # seconds after which a colony may ask whether there is room again
_DAY = 86_400.0


@dataclass
class Pages:
    """A listing of what is below a prefix, page by page: `async for items in Pages(...)`.

    Not a generator, so that it may be left in the middle. Raises EtcdError.
    """

    client: EtcdClient
    prefix: str
    _start: str | None = None
    _over: bool = False

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> list[KeyValue]:
        if self._over:
            raise StopAsyncIteration
        listing = await self.client.range(self.prefix, limit=_PAGE, start=self._start)
        self._over = not listing.more
        if listing.more:
            self._start = listing.items[-1].key + "\0"
        return listing.items


class StorageUsage(msgspec.Struct):
    """What a colony left: how many entries, and their bytes, with those of what they stand for."""

    entries: int = 0
    size: int = 0

    def add(self, entries: int, size: int) -> None:
        """Count more, or less."""
        self.entries += entries
        self.size += size


@dataclass
class PeerQuotas:
    """The accounts of all trusted colonies, by the id under which each is kept.

    Room is taken before something is written, so that what is under way counts as well. Each `take`
    is followed by one `settle`, that tells whether it was written.
    """

    peers: Peers
    clock: SigningClock
    _stocks: dict[str, StorageUsage] = field(default_factory=dict)
    _taken: dict[str, StorageUsage] = field(default_factory=dict)  # for what is under way
    _since: dict[str, StorageUsage] | None = None  # what came while the store is being read
    _messages: dict[str, TokenBucket] = field(default_factory=dict)
    _tombstones: dict[str, TokenBucket] = field(default_factory=dict)
    _kinds: dict[tuple[str, Kind], TokenBucket] = field(default_factory=dict)
    _cards: dict[str, TokenBucket] = field(default_factory=dict)
    _news: dict[str, TokenBucket] = field(default_factory=dict)
    _under_way: Counter[tuple[str, Kind | None]] = field(default_factory=Counter)

    # -- messages --------------------------------------------------------------------------

    @contextmanager
    def message(self, peerid: str, kind: Kind) -> Iterator[None]:
        """Count a message, and work on it.

        Raises Refusal (policy_messages, peer_rate, peer_at_once).
        """
        self.weigh(peerid, 1)
        if kind in _RATES:
            bucket = self._kinds.setdefault((peerid, kind), TokenBucket())
            if wait := bucket.take(_RATES[kind], self.clock.steady()):
                text = f"more than {_RATES[kind]} messages of kind {kind.value} a minute"
                raise Refusal(429, "peer_rate", text, again=math.ceil(wait))
        bounds: dict[Kind | None, int] = {None: _AT_ONCE}
        if kind in _WAITING:
            bounds[kind] = _WAITING[kind]
        for which, most in bounds.items():
            if self._under_way[peerid, which] >= most:
                what = f"of kind {which.value} " if which else ""
                text = f"{most} messages {what}of your colony are under way here; at most so many"
                raise Refusal(429, "peer_at_once", text, again=1)
        self._under_way.update((peerid, which) for which in bounds)
        try:
            yield
        finally:
            for which in bounds:
                self._under_way[peerid, which] -= 1
                if not self._under_way[peerid, which]:
                    del self._under_way[peerid, which]

    def weigh(self, peerid: str, count: int) -> None:
        """Count so many messages, or one that costs as much. Raises Refusal (policy_messages)."""
        limit = self.peers.policy(peerid).messages
        if not limit:
            return
        bucket = self._messages.setdefault(peerid, TokenBucket())
        if wait := bucket.take(limit, self.clock.steady(), float(count)):
            text = f"more than {limit} messages a minute of your colony (policy.messages)"
            raise Refusal(429, "policy_messages", text, again=math.ceil(wait))

    def card(self, peerid: str) -> None:
        """Count a newer card, whose writing costs more than most. Raises Refusal (card_rate)."""
        wait = self._cards.setdefault(peerid, TokenBucket()).take(_CARDS, self.clock.steady())
        if wait:
            text = f"more than {_CARDS} newer cards a minute of your colony"
            raise Refusal(429, "card_rate", text, again=math.ceil(wait))

    # -- what stays in the store -----------------------------------------------------------

    def take(self, peerid: str, size: int, entries: int = 1) -> Refusal | None:
        """Take room for what is about to be written, or say why there is none."""
        policy, stock = self.peers.policy(peerid), self.stock(peerid)
        taken = self._taken.get(peerid) or StorageUsage()
        there = StorageUsage(stock.entries + taken.entries, stock.size + taken.size)
        if policy.max_entries and there.entries + entries > policy.max_entries:
            text = (
                f"{there.entries} entries of your colony are in the store here; at most "
                f"{policy.max_entries} (policy.max_entries); they go some days after the end"
            )
            return Refusal(429, "policy_entries", text, again=_FULL_AGAIN)
        if policy.max_kept and there.size + size > policy.max_kept:
            text = (
                f"{there.size} bytes of your colony are in the store here; at most "
                f"{policy.max_kept} (policy.max_kept); they go some days after the end"
            )
            return Refusal(429, "policy_kept", text, again=_FULL_AGAIN)
        self._taken.setdefault(peerid, StorageUsage()).add(entries, size)
        return None

    def settle(self, peerid: str, size: int, entries: int = 1, *, left: bool) -> None:
        """What room was taken for is over; `left` is whether it may be in the store."""
        taken = self._taken[peerid]
        taken.add(-entries, -size)
        if not taken.entries and not taken.size:
            del self._taken[peerid]
        if left:
            self._count(peerid, entries, size)

    def leave(self, peerid: str, size: int) -> Refusal | None:
        """Count one thing that is written at once, or say why there is no room for it."""
        full = self.take(peerid, size)
        if full is None:
            self.settle(peerid, size, left=True)
        return full

    def lighten(self, peerid: str, size: int) -> None:
        """What a marker stands for has left the store."""
        self._count(peerid, 0, -size)

    def tombstone(self, peerid: str, size: int) -> Refusal | None:
        """Take room for the mark of what never was here, as often as the rate of submissions.

        As `take`.
        """
        rate = self.peers.policy(peerid).rate
        if rate:
            wait = self._tombstones.setdefault(peerid, TokenBucket()).take(
                rate, self.clock.steady()
            )
            if wait:
                text = f"more than {rate} a minute about what is not here (policy.rate)"
                return Refusal(429, "policy_rate", text, again=math.ceil(wait))
        return self.take(peerid, size)

    def _count(self, peerid: str, entries: int, size: int) -> None:
        self.stock(peerid).add(entries, size)
        if self._since is not None:
            self._since.setdefault(peerid, StorageUsage()).add(entries, size)

    def stock(self, peerid: str) -> StorageUsage:
        """What a colony left, as far as this daemon knows."""
        return self._stocks.setdefault(peerid, StorageUsage())

    def crowded(self, peerid: str) -> bool:
        """Whether a colony has taken more than half of the room that it may."""
        policy, stock = self.peers.policy(peerid), self.stock(peerid)
        return 0 < policy.max_kept < 2 * stock.size or 0 < policy.max_entries < 2 * stock.entries

    def begin(self) -> None:
        """The store is about to be read: `counted` tells what is in it."""
        self._since = {}

    def counted(self, listed: dict[str, StorageUsage]) -> None:
        """What the store has. What came meanwhile may be in it or not, and is counted twice."""
        for peerid, more in (self._since or {}).items():
            listed.setdefault(peerid, StorageUsage()).add(max(0, more.entries), max(0, more.size))
        self._stocks, self._since = listed, None

    # -- what it tells of our processes ----------------------------------------------------

    def news(self, peerid: str, size: int) -> bool:
        """Whether so many bytes are kept of what a colony tells of the processes that it runs.

        They are kept with our own processes, so this counts by the day: `max_kept` in one.
        """
        limit = self.peers.policy(peerid).max_kept
        if not limit:
            return True
        bucket = self._news.setdefault(peerid, TokenBucket(period=_DAY))
        return bucket.take(limit, self.clock.steady(), float(size)) == 0

    def told(self, peerid: str) -> int:
        """How many bytes of news a colony may not tell now, of those of a day."""
        limit, bucket = self.peers.policy(peerid).max_kept, self._news.get(peerid)
        if not limit or bucket is None:
            return 0
        bucket.take(limit, self.clock.steady(), 0.0)
        return max(0, limit - int(bucket.level or 0))

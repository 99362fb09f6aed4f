"""Quotas of trusted colonies: messages, work at once, and use of the store.

`policy` has the limits. The use of the store is counted from receipt records and what belongs to
them, so after a restart, or in another daemon, the sum is the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from federation.peers.policy import TokenBucket
from federation.peers.registry import Peers
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.refusals import Refusal
from node.etcd.client import EtcdClient, KeyValue

_PAGE = 500  # keys read at once: the work on them must not delay other tasks
_AT_ONCE = 128  # messages of one colony that are worked on at a time
_WAITING = {
    Kind.POLL: 16,
    Kind.COLLECT: 96,
    Kind.DIAL: 1,
}  # of these kinds, which may wait for long
# Messages a minute, of kinds that are needed rarely and cause much work.
_RATES = {Kind.HELLO: 120, Kind.CAPABILITIES: 240, Kind.DIAL: 6}
_CARDS = 12  # newer cards of one colony in a minute
_FULL_AGAIN = 60  # seconds after which a colony may ask again whether there is room
_DAY = 86_400.0
_Place: TypeAlias = tuple[str, str]


@dataclass
class Pages:
    """A listing of all keys below a prefix, page by page: `async for items in Pages(...)`.

    It is not a generator, so that a loop may stop in the middle. Raises EtcdError.
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
    """A colony's use of the store: entries, and the bytes of these and of what belongs to them."""

    entries: int = 0
    size: int = 0

    def add(self, entries: int, size: int) -> None:
        """Count more, or (with negative numbers) less."""
        self.entries += entries
        self.size += size


@dataclass
class PeerQuotas:
    """The quotas of all trusted colonies, by the id under which each is kept.

    Room is reserved before a write, so that writes under way count as well. After each `take` comes
    one `settle`, which tells whether the write happened.
    """

    peers: Peers
    clock: SigningClock
    _stocks: dict[str, StorageUsage] = field(default_factory=dict)
    _taken: dict[str, StorageUsage] = field(default_factory=dict)  # reserved for writes under way
    _since: dict[str, StorageUsage] | None = None  # written while the store is being read
    # By id and the mailbox that brought the message, "" if none did.
    _messages: dict[_Place, TokenBucket] = field(default_factory=dict)
    _tombstones: dict[str, TokenBucket] = field(default_factory=dict)
    _kinds: dict[tuple[_Place, Kind], TokenBucket] = field(default_factory=dict)
    _cards: dict[str, TokenBucket] = field(default_factory=dict)
    _news: dict[str, TokenBucket] = field(default_factory=dict)
    _under_way: Counter[tuple[_Place, Kind | None]] = field(default_factory=Counter)

    # -- messages --------------------------------------------------------------------------

    @contextmanager
    def message(self, opened: VerifiedMessage, kind: Kind) -> Iterator[None]:
        """Count a message, and hold its place while it is worked on.

        Each mailbox has counts of its own: it may bring old messages again, which are valid, and
        must not use up what the peer has by other ways. Raises Refusal (policy_messages,
        peer_rate, peer_at_once).
        """
        self.weigh(opened, 1)
        place = opened.issuer, opened.way
        if kind in _RATES:
            bucket = self._kinds.setdefault((place, kind), TokenBucket())
            if wait := bucket.take(_RATES[kind], self.clock.steady()):
                text = f"more than {_RATES[kind]} messages of kind {kind.value} a minute"
                raise Refusal(429, "peer_rate", text, again=math.ceil(wait))
        bounds: dict[Kind | None, int] = {None: _AT_ONCE}
        if kind in _WAITING:
            bounds[kind] = _WAITING[kind]
        for which, most in bounds.items():
            if self._under_way[place, which] >= most:
                what = f"of kind {which.value} " if which else ""
                text = f"{most} messages {what}of your colony are under way here; at most so many"
                raise Refusal(429, "peer_at_once", text, again=1)
        self._under_way.update((place, which) for which in bounds)
        try:
            yield
        finally:
            for which in bounds:
                self._under_way[place, which] -= 1
                if not self._under_way[place, which]:
                    del self._under_way[place, which]

    def prune(self) -> None:
        """Forget the counts that are as new: peers and mailboxes come and go for years."""
        now = self.clock.steady()
        self._messages = {at: each for at, each in self._messages.items() if not each.is_full(now)}
        self._kinds = {at: each for at, each in self._kinds.items() if not each.is_full(now)}

    def weigh(self, opened: VerifiedMessage, count: int) -> None:
        """Count a message as `count`, which cost as much. Raises Refusal (policy_messages)."""
        limit = self.peers.policy(opened.issuer).messages
        if not limit:
            return
        bucket = self._messages.setdefault((opened.issuer, opened.way), TokenBucket())
        if wait := bucket.take(limit, self.clock.steady(), float(count)):
            text = f"more than {limit} messages a minute of your colony (policy.messages)"
            raise Refusal(429, "policy_messages", text, again=math.ceil(wait))

    def card(self, peerid: str) -> None:
        """Count a newer card, whose write costs more than most. Raises Refusal (card_rate)."""
        wait = self._cards.setdefault(peerid, TokenBucket()).take(_CARDS, self.clock.steady())
        if wait:
            text = f"more than {_CARDS} newer cards a minute of your colony"
            raise Refusal(429, "card_rate", text, again=math.ceil(wait))

    # -- use of the store ---------------------------------------------------------------------

    def take(self, peerid: str, size: int, entries: int = 1) -> Refusal | None:
        """Reserve room for a write. Return the refusal if there is none."""
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
        """End a reservation; `left` is whether the write may have happened."""
        taken = self._taken[peerid]
        taken.add(-entries, -size)
        if not taken.entries and not taken.size:
            del self._taken[peerid]
        if left:
            self._count(peerid, entries, size)

    def leave(self, peerid: str, size: int) -> Refusal | None:
        """Count a write that happens at once. Return the refusal if there is no room."""
        full = self.take(peerid, size)
        if full is None:
            self.settle(peerid, size, left=True)
        return full

    def lighten(self, peerid: str, size: int) -> None:
        """Uncount what belonged to a receipt record and has left the store."""
        self._count(peerid, 0, -size)

    def tombstone(self, peerid: str, size: int) -> Refusal | None:
        """Reserve room for the record of a process that never came, at the rate of submissions.

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
        """Return a colony's use of the store, as far as this daemon knows."""
        return self._stocks.setdefault(peerid, StorageUsage())

    def crowded(self, peerid: str) -> bool:
        """Return whether a colony uses more than half of its room."""
        policy, stock = self.peers.policy(peerid), self.stock(peerid)
        return 0 < policy.max_kept < 2 * stock.size or 0 < policy.max_entries < 2 * stock.entries

    def begin(self) -> None:
        """Start a count: the store is about to be read, and `counted` gets the result."""
        self._since = {}

    def counted(self, listed: dict[str, StorageUsage]) -> None:
        """Set the use of the store to a count. Writes meanwhile are added: some may count twice."""
        for peerid, more in (self._since or {}).items():
            listed.setdefault(peerid, StorageUsage()).add(max(0, more.entries), max(0, more.size))
        self._stocks, self._since = listed, None

    # -- updates of our processes -------------------------------------------------------------

    def news(self, peerid: str, size: int) -> bool:
        """Return whether there is room for so many bytes of a colony's updates of our processes.

        They are kept with our own processes, so this counts by the day: `max_kept` bytes a day.
        """
        limit = self.peers.policy(peerid).max_kept
        if not limit:
            return True
        bucket = self._news.setdefault(peerid, TokenBucket(period=_DAY))
        return bucket.take(limit, self.clock.steady(), float(size)) == 0

    def told(self, peerid: str) -> int:
        """Return how many bytes of a day's updates are used up."""
        limit, bucket = self.peers.policy(peerid).max_kept, self._news.get(peerid)
        if not limit or bucket is None:
            return 0
        bucket.take(limit, self.clock.steady(), 0.0)
        return max(0, limit - int(bucket.level or 0))

"""The queue of announced addresses, whose cards are to be fetched.

Any host on the network can announce anything, so all of this is limited: how many addresses wait,
how many fetches a second, how often one address or one host is tried. Values in, values out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from federation.wire.address import host_of, source_of

_BACKOFF = (20.0, 600.0)  # seconds until the next try of an address that showed no card
_AGAIN = 60.0  # ... of one that showed a card


class AddressCandidate(msgspec.Struct, frozen=True):
    """An announced address of the colony `id`. Nothing of it is proven.

    `sought`: we asked for the colony, and the card of another one there means nothing.
    """

    id: str
    address: str  # "host:port", "[v6%scope]:port"
    sought: bool = False

    @property
    def place(self) -> str:
        """Return what counts as one try: the address; for a sought colony, at its address.

        A mailbox at one address may have the cards of many, and of one that we seek none.
        """
        return f"{self.id}@{self.address}" if self.sought else self.address


@dataclass
class _ProbedAddress:
    """An address that was tried; it is not tried again before `due`."""

    due: float
    failures: int


@dataclass
class CandidateQueue:
    """Announced addresses, and when to try which. Times are seconds of a steady clock.

    A try costs a connection, so addresses count: a thousand announced ids at one address are one
    try, and the card there has the real id. Hosts take turns, the one heard last first, with one
    try each at a time. So neither many ports nor many ids of one host keep others waiting, and
    after a flood the next true announcement is tried at once.
    """

    most_hosts: int = 128
    most_each: int = 16  # addresses of one host
    most_tried: int = 1024
    rate: float = 4.0  # tries a second
    burst: float = 8.0
    at_once: int = 8
    dropped: int = 0
    _waiting: OrderedDict[str, OrderedDict[str, AddressCandidate]] = field(
        default_factory=OrderedDict
    )
    _tried: OrderedDict[str, _ProbedAddress] = field(default_factory=OrderedDict)
    _busy: set[str] = field(default_factory=set)  # hosts being tried now
    _allowance: float = -1.0
    _counted: float = 0.0

    def __len__(self) -> int:
        return sum(len(each) for each in self._waiting.values())

    @property
    def remembered(self) -> int:
        """Return how many tried addresses are remembered."""
        return len(self._tried)

    def offer(self, candidate: AddressCandidate, now: float) -> bool:
        """Return whether an address was added; False if it was tried lately, or waits already."""
        tried = self._tried.get(candidate.place)
        if tried is not None and now < tried.due:
            return False
        host = source_of(host_of(candidate.address))
        mine = self._waiting.get(host)
        if mine is None:
            if len(self._waiting) >= self.most_hosts:
                _, lost = self._waiting.popitem(last=False)
                self.dropped += len(lost)
            mine = self._waiting[host] = OrderedDict()
        self._waiting.move_to_end(host)
        if candidate.place in mine:
            return False
        if len(mine) >= self.most_each:
            mine.popitem(last=False)
            self.dropped += 1
        mine[candidate.place] = candidate
        return True

    def take(self, now: float) -> AddressCandidate | None:
        """Return the next address to try, or None. The caller passes it to `done` afterwards."""
        self._refill(now)
        if self._allowance < 1.0 or len(self._busy) >= self.at_once:
            return None
        host = next((each for each in reversed(self._waiting) if each not in self._busy), None)
        if host is None:
            return None
        mine = self._waiting[host]
        _, candidate = mine.popitem(last=False)
        if not mine:
            del self._waiting[host]
        else:
            self._waiting.move_to_end(host, last=False)  # the other hosts first
        self._busy.add(host)
        self._allowance -= 1.0
        return candidate

    def wait(self, now: float) -> float:
        """Return the seconds until `take` may have an address, if nothing else happens."""
        self._refill(now)
        if not self._waiting or self._allowance >= 1.0:
            return float("inf")
        return (1.0 - self._allowance) / self.rate

    def done(self, candidate: AddressCandidate, now: float, *, ok: bool) -> None:
        """End a try; `ok` is whether there was a valid card."""
        self._busy.discard(source_of(host_of(candidate.address)))
        before = self._tried.pop(candidate.place, None)
        failures = 0 if ok else (before.failures if before else 0) + 1
        pause = _AGAIN if ok else min(_BACKOFF[1], _BACKOFF[0] * 2.0 ** (failures - 1))
        self._tried[candidate.place] = _ProbedAddress(now + pause, failures)
        while len(self._tried) > self.most_tried:
            self._tried.popitem(last=False)

    def forget(self) -> None:
        """Forget all tries after a change of the network: they say nothing now."""
        self._tried.clear()

    def _refill(self, now: float) -> None:
        if self._allowance < 0:
            self._allowance, self._counted = self.burst, now
        passed = max(0.0, now - self._counted)
        # Rounded: after `wait` seconds it is 1.0, and not a little less.
        self._allowance = min(self.burst, round(self._allowance + passed * self.rate, 9))
        self._counted = now

"""Addresses at which a colony may live, waiting for a look at the card there: which is next.

Anybody on the network can announce anything, so all of this is bounded: how many wait, how many
looks a second, how often one address or one host is tried. Values in, values out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from federation.wire.address import host_of, source_of

_BACKOFF = (20.0, 600.0)  # seconds until an address is looked at again that showed no card
_AGAIN = 60.0  # ... that showed one


class AddressCandidate(msgspec.Struct, frozen=True):
    """That `id` was announced to live at `address`. Nothing of it is proven."""

    id: str
    address: str  # "host:port", "[v6%scope]:port"


@dataclass
class _ProbedAddress:
    """An address that was looked at; it is not again before `due`."""

    due: float
    failures: int


@dataclass
class CandidateQueue:
    """Times are seconds of a steady clock.

    A look costs a connection, so what counts is the address: thousands of ids at one address are
    one look, and its card tells who lives there. Hosts take turns, the one heard last first, with
    one look each at a time: so neither many ports nor many ids of one host keep others waiting,
    and after a flood the next true announcement is looked at at once.
    """

    most_hosts: int = 128
    most_each: int = 16  # addresses of one host
    most_tried: int = 1024
    rate: float = 4.0  # looks a second
    burst: float = 8.0
    at_once: int = 8
    dropped: int = 0
    _waiting: OrderedDict[str, OrderedDict[str, AddressCandidate]] = field(
        default_factory=OrderedDict
    )
    _tried: OrderedDict[str, _ProbedAddress] = field(default_factory=OrderedDict)
    _busy: set[str] = field(default_factory=set)  # hosts that are looked at now
    _allowance: float = -1.0
    _counted: float = 0.0

    def __len__(self) -> int:
        return sum(len(each) for each in self._waiting.values())

    @property
    def remembered(self) -> int:
        """How many addresses are remembered as looked at."""
        return len(self._tried)

    def offer(self, candidate: AddressCandidate, now: float) -> bool:
        """Whether it will be looked at; False for what was, or waits already."""
        tried = self._tried.get(candidate.address)
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
        if candidate.address in mine:
            return False
        if len(mine) >= self.most_each:
            mine.popitem(last=False)
            self.dropped += 1
        mine[candidate.address] = candidate
        return True

    def take(self, now: float) -> AddressCandidate | None:
        """The next to look at, which must be given back to `done`; None for nothing now."""
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
            self._waiting.move_to_end(host, last=False)  # the others first
        self._busy.add(host)
        self._allowance -= 1.0
        return candidate

    def wait(self, now: float) -> float:
        """Seconds until `take` may give something that it does not now, if nothing else happens."""
        self._refill(now)
        if not self._waiting or self._allowance >= 1.0:
            return float("inf")
        return (1.0 - self._allowance) / self.rate

    def done(self, candidate: AddressCandidate, now: float, *, ok: bool) -> None:
        """It was looked at: whether a card was there that proved itself."""
        self._busy.discard(source_of(host_of(candidate.address)))
        before = self._tried.pop(candidate.address, None)
        failures = 0 if ok else (before.failures if before else 0) + 1
        pause = _AGAIN if ok else min(_BACKOFF[1], _BACKOFF[0] * 2.0 ** (failures - 1))
        self._tried[candidate.address] = _ProbedAddress(now + pause, failures)
        while len(self._tried) > self.most_tried:
            self._tried.popitem(last=False)

    def forget(self) -> None:
        """The network is another one: what was tried before says nothing now."""
        self._tried.clear()

    def _refill(self, now: float) -> None:
        if self._allowance < 0:
            self._allowance, self._counted = self.burst, now
        passed = max(0.0, now - self._counted)
        self._allowance = min(self.burst, self._allowance + passed * self.rate)
        self._counted = now

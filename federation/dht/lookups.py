"""The plan for the DHT: when to announce and look up which ids, and which answers count.

Values in, values out: `node` has the sockets, `wide` the tasks. Any node of the DHT can answer
anything, so all of this is limited: look-ups a minute, answers remembered, addresses handed over.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from federation.wire.address import host_of, source_of

PREFIX = b"colonyd dht 1\n"
_ANNOUNCE = 900.0  # seconds; nodes forget an announcement after half an hour
_SETTLING = (5.0, 20.0, 60.0)  # seconds between the first announcements, while the table fills
_CONTACT = 20.0  # seconds between pings of the bootstrap nodes while no other node is known
_GATHER = (2.0, 8.0)  # seconds of a look-up after which answers are handed over
_HANDED = 4  # addresses handed over each time
_OF_A_HOST = 2  # ... of one host in a look-up: nobody is to be flooded by false answers
_HEARD = 2048  # addresses remembered of one look-up
_OF_AN_ANSWER = 128  # ... of one answer; a datagram has room for about so many
_TRIED = 64  # addresses handed over for one colony that are remembered
_AGAIN = (20.0, 90.0)  # seconds between look-ups of one colony, soon after it was lost
_LATELY = 3600.0  # seconds after which a colony is not lost lately
_RARELY = 900.0  # seconds between look-ups of such a colony
_RATE, _BURST = 0.2, 4.0  # look-ups a second
MOST_ASKED = 16  # colonies that are looked up on demand at once
_ASKED = 60.0  # seconds for which such a look-up is worked on


def target(colony: str) -> bytes:
    """Return the key (20 bytes) of a colony in the DHT: SHA-1 of PREFIX and the 32 bytes of its id.

    Raises ValueError for text that is no id.
    """
    return hashlib.sha1(PREFIX + bytes.fromhex(colony), usedforsecurity=False).digest()


@dataclass(frozen=True)
class Announce:
    """Announce our port under a key."""

    target: bytes


@dataclass(frozen=True)
class Ask:
    """Ask the DHT for a key."""

    target: bytes


@dataclass(frozen=True)
class Contact:
    """Ping the bootstrap nodes."""


Step = Announce | Ask | Contact


@dataclass
class _Sought:
    """A colony that is looked up."""

    since: float
    due: float
    until: float = float("inf")
    pressing: bool = False
    tries: int = 0
    tried: dict[str, None] = field(default_factory=dict)


@dataclass
class _Lookup:
    """A look-up under way: how many answers name each address."""

    colony: str
    began: float
    turn: int = 0
    votes: dict[str, int] = field(default_factory=dict)
    # The host of each, as `source_of` has it: taken when it is heard, as thousands take too long.
    sources: dict[str, str] = field(default_factory=dict)
    handed: Counter[str] = field(default_factory=Counter)  # addresses handed over, by host
    given: set[str] = field(default_factory=set)  # ... themselves


@dataclass
class Lookups:
    """Plans the use of the DHT. Times are seconds of one steady clock.

    Call `step` until it returns nothing, then again after `wait` seconds or a change.
    """

    chance: random.Random = field(default_factory=random.Random)
    nodes: int = 0  # other nodes that are known
    asked: int = 0  # look-ups since the start
    dropped: int = 0  # answers that were not remembered
    _own: dict[str, tuple[float, int]] = field(default_factory=dict)  # due, times
    _left: dict[str, tuple[float, int]] = field(default_factory=dict)  # that were announced lately
    _sought: dict[str, _Sought] = field(default_factory=dict)
    _running: dict[bytes, _Lookup] = field(default_factory=dict)
    _turn: bool = False  # whether the latest look-up was on demand
    _contact: float = 0.0
    _allowance: float = _BURST
    _counted: float = 0.0

    # -- wishes --------------------------------------------------------------------------

    def own(self, ids: Collection[str], now: float) -> None:
        """Announce these ids, and no others."""
        known = self._left | self._own
        self._own = {each: known.get(each, (now, 0)) for each in ids}
        # A client of our mailbox that comes and goes is not announced each time.
        self._left = {
            each: last
            for each, last in known.items()
            if each not in self._own and now - last[0] < _ANNOUNCE
        }

    def restart(self, now: float) -> None:
        """Announce at once, and soon again, after a change of the network."""
        self._own = dict.fromkeys(self._own, (now, 0))
        self._left.clear()
        self._contact = now
        for sought in self._sought.values():
            sought.due, sought.tries = now, 0
            sought.tried.clear()

    def want(self, lost: Collection[str], pressing: Collection[str], now: float) -> None:
        """Look up the peers that are lost, again and again. Work waits for those in `pressing`."""
        for peerid, sought in list(self._sought.items()):
            if sought.until == float("inf") and peerid not in lost:
                del self._sought[peerid]
        for peerid in lost:
            sought = self._sought.setdefault(peerid, _Sought(now, now))
            sought.until, sought.pressing = float("inf"), peerid in pressing

    def request(self, colony: str, now: float, *, named: bool = False) -> bool:
        """Look up a colony once or twice, at once. Return False if too many are looked up.

        `named`: not our owner asks, but a peer's card names it; half of the room is for these,
        and however often it is asked for, its room is given to another after a minute.
        """
        sought = self._sought.get(colony)
        if sought is None:
            most = MOST_ASKED // 2 if named else MOST_ASKED
            if sum(each.until < float("inf") for each in self._sought.values()) >= most:
                return False
            self._sought[colony] = _Sought(now, now, now + _ASKED)
        elif sought.until < float("inf") and not named:
            sought.until = now + _ASKED
        return True

    def is_sought(self, colony: str) -> bool:
        """Return whether a colony is looked up."""
        return colony in self._sought

    def sought(self) -> int:
        """Return how many colonies are looked up."""
        return len(self._sought)

    # -- answers -------------------------------------------------------------------------

    def known(self, nodes: int, now: float) -> None:
        """Note how many nodes are known. With the first, announcements and look-ups go out."""
        if nodes and not self.nodes:
            self.nodes = nodes
            self.restart(now)
        self.nodes = nodes

    def heard(self, key: bytes, addresses: Iterable[str]) -> None:
        """Count one node's answer. Answers that nobody asked for are ignored."""
        lookup = self._running.get(key)
        if lookup is None:
            return
        told, votes = list(set(addresses)), lookup.votes
        if len(told) > _OF_AN_ANSWER:
            self.dropped += len(told) - _OF_AN_ANSWER
            told = self.chance.sample(told, _OF_AN_ANSWER)
        for address in told:
            if address not in votes:
                lookup.sources[address] = source_of(host_of(address))
            votes[address] = votes.pop(address, 0) + 1
            if len(votes) > _HEARD:
                # The oldest goes, but what several nodes told gets another turn.
                oldest = next(iter(votes))
                count = votes.pop(oldest)
                self.dropped += 1
                if count > 1:
                    votes[oldest] = count - 1
                else:
                    del lookup.sources[oldest]

    def found(self, now: float) -> list[tuple[str, list[str]]]:
        """Return the ids looked up, each with the addresses to try next, best first.

        Addresses that were not tried for the colony come first, then those that many nodes name.
        """
        ready: list[tuple[str, list[str]]] = []
        for key, lookup in list(self._running.items()):
            if now < lookup.began + _GATHER[lookup.turn]:  # as `wait` computes it
                continue
            lookup.turn += 1
            sought = self._sought.get(lookup.colony)
            if lookup.turn == len(_GATHER) or sought is None:
                del self._running[key]
            if sought is not None and (best := self._best(lookup, sought)):
                ready.append((lookup.colony, best))
        return ready

    def _best(self, lookup: _Lookup, sought: _Sought) -> list[str]:
        order = sorted(
            (each for each in lookup.votes if each not in lookup.given),
            key=lambda each: (each in sought.tried, -lookup.votes[each], self.chance.random()),
        )
        best: list[str] = []
        for each in order:
            if len(best) == _HANDED:
                break
            host = lookup.sources[each]
            if lookup.handed[host] < _OF_A_HOST:
                lookup.handed[host] += 1
                best.append(each)
        lookup.given.update(best)
        for each in best:
            sought.tried.pop(each, None)
            sought.tried[each] = None
        while len(sought.tried) > _TRIED:
            del sought.tried[next(iter(sought.tried))]
        return best

    # -- the plan ------------------------------------------------------------------------

    def step(self, now: float) -> Step | None:
        """Return what to do now, if there is anything."""
        self._refill(now)
        if not self.nodes and now >= self._contact:
            self._contact = now + _CONTACT
            return Contact()
        for peerid, (due, times) in self._own.items():
            if now >= due:
                settling = _SETTLING[times] if times < len(_SETTLING) else _ANNOUNCE
                pause = settling * self.chance.uniform(0.8, 1.0)
                self._own[peerid] = (now + pause, times + 1)
                return Announce(target(peerid))
        for peerid in [each for each, sought in self._sought.items() if sought.until <= now]:
            del self._sought[peerid]
        waiting = [each for each, sought in self._sought.items() if now >= sought.due]
        if not waiting or self._allowance < 1.0:
            return None
        # On demand, then of a lost peer: neither kind keeps the other waiting.
        demand = not self._turn
        peerid = min(waiting, key=lambda each: self._rank(self._sought[each], demand))
        self._turn = self._sought[peerid].until < float("inf")
        sought, key = self._sought[peerid], target(peerid)
        sought.due = now + self._pause(sought, now)
        sought.tries += 1
        self._allowance -= 1.0
        self.asked += 1
        self._running[key] = _Lookup(peerid, now)
        return Ask(key)

    @staticmethod
    def _rank(sought: _Sought, demand: bool) -> tuple[bool, float]:
        return (sought.until < float("inf")) != demand, sought.due

    def _pause(self, sought: _Sought, now: float) -> float:
        least, most = _AGAIN
        pause = min(most, least * 2.0 ** min(sought.tries, 8))
        lately = now - sought.since < _LATELY
        if not (lately or sought.pressing):
            pause = _RARELY
        return pause * self.chance.uniform(0.8, 1.0)

    def wait(self, now: float) -> float:
        """Return the seconds until `step` or `found` may have something, if nothing happens."""
        times = [due for due, _ in self._own.values()]
        times += [each.began + _GATHER[each.turn] for each in self._running.values()]
        if not self.nodes:
            times.append(self._contact)
        if self._sought:
            due = min(each.due for each in self._sought.values())
            self._refill(now)
            times.append(max(due, now + max(0.0, 1.0 - self._allowance) / _RATE))
        return max(0.0, min(times, default=float("inf")) - now)

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._counted) if self._counted else 0.0
        # Rounded: after `wait` seconds it is 1.0, and not a little less.
        self._allowance = min(_BURST, round(self._allowance + passed * _RATE, 9))
        self._counted = now

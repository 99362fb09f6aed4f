"""Admission of strangers: signature checks, limited by address and in all.

Values in, values out: `service.server` asks before it checks a signature. `accounts` has the quotas
of trusted colonies; `membership.invitations` counts attempts to join.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from federation.peers.policy import TokenBucket
from federation.wire.address import source_of
from federation.wire.refusals import BROUGHT, Refusal

# Messages a minute whose signatures are checked: of one address (an IPv6 /64 counts as one), and of
# all strangers together.
STRANGER_RATE, STRANGERS_RATE = 60, 600
# False signatures a minute in the name of a trusted colony: from an address that the colony does
# not use, after which nothing from there is checked; and from an address that it does use.
_FALSE_RATE, _FALSE_RATE_AT_HOME = 60, 600
_SOURCES = 1024  # addresses remembered; the one silent for longest makes room
_HOMES = 4  # addresses of one trusted colony that are remembered
_COLONIES = 1024  # colonies whose addresses are remembered


@dataclass
class Admission:
    """Decides whose signatures are checked now. Times are seconds of one steady clock.

    Trusted colonies never wait for strangers, which have buckets of their own. A message in the
    name of a trusted colony is checked unless its address sent too many false signatures; if the
    colony itself was heard from that address, more are allowed.
    """

    _all: TokenBucket = field(default_factory=TokenBucket)
    _each: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _false: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _false_all: TokenBucket = field(default_factory=TokenBucket)
    _homes: OrderedDict[str, OrderedDict[str, None]] = field(default_factory=OrderedDict)

    def stranger(self, remote: str, now: float) -> None:
        """Count a message of a colony that is not trusted. Raises Refusal (stranger_rate)."""
        bucket = _bucket(self._each, source_of(remote))
        wait = bucket.take(STRANGER_RATE, now)
        if not wait and (wait := self._all.take(STRANGERS_RATE, now)):
            bucket.put_back()
        if wait:
            raise _too_many(wait)

    def trusted(self, peerid: str, remote: str, now: float) -> bool:
        """Return whether to look for the mistake in a message in a trusted colony's name.

        To find it costs a check for each kind of message. Raises Refusal (stranger_rate).
        """
        place, rate = self._place(peerid, remote)
        bucket = self._false.get(place)
        if bucket is not None and (wait := _left(bucket, rate, now)):
            raise _too_many(wait)
        return not _left(self._false_all, STRANGERS_RATE, now)

    def failed(self, peerid: str, remote: str, now: float) -> None:
        """Count a false signature in the name of a trusted colony."""
        place, rate = self._place(peerid, remote)
        _bucket(self._false, place).take(rate, now)
        self._false_all.take(STRANGERS_RATE, now)

    def _place(self, peerid: str, remote: str) -> tuple[str, int]:
        """Return the place where false signatures of an address are counted, and their limit."""
        source = source_of(remote)
        if source in self._homes.get(peerid, ()):
            return f"{peerid} at {source}", _FALSE_RATE_AT_HOME
        # A mailbox brings messages of many colonies, and one of them must not keep out the others.
        return (f"{peerid} at {source}" if remote.startswith(BROUGHT) else source), _FALSE_RATE

    def held(self, peerid: str, remote: str) -> None:
        """Note an address from which a trusted colony was heard."""
        source = source_of(remote)
        homes = self._homes.get(peerid)
        if homes is not None and source in homes:
            return
        homes = self._homes.setdefault(peerid, OrderedDict())
        homes[source] = None
        if len(homes) > _HOMES:
            homes.popitem(last=False)
        if len(self._homes) > _COLONIES:
            self._homes.popitem(last=False)


def _bucket(buckets: OrderedDict[str, TokenBucket], source: str) -> TokenBucket:
    bucket = buckets.get(source)
    if bucket is None:
        bucket = buckets[source] = TokenBucket()
        if len(buckets) > _SOURCES:
            buckets.popitem(last=False)
    buckets.move_to_end(source)
    return bucket


def _left(bucket: TokenBucket, rate: int, now: float) -> float:
    """Return 0 while a bucket has something left, else the seconds until it has."""
    wait = bucket.take(rate, now)
    if not wait:
        bucket.put_back()
    return wait


def _too_many(wait: float) -> Refusal:
    message = (
        f"this colony does not trust yours, and checks {STRANGER_RATE} such messages a minute from "
        f"one address, {STRANGERS_RATE} in all; its owner can trust or invite yours"
    )
    return Refusal(429, "stranger_rate", message, again=math.ceil(wait))

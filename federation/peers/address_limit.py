"""A limit for what strangers ask: some a minute from one address, and more from all together."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from federation.peers.policy import TokenBucket
from federation.wire.address import source_of


@dataclass
class AddressLimiter:
    """Allows `each` a minute from one address (an IPv6 /64 counts as one), and `total` in all.

    It remembers `most` addresses; the one silent for longest makes room. Times are seconds of one
    steady clock.
    """

    each: int
    total: int
    most: int = 512
    _each: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)
    _all: TokenBucket = field(default_factory=TokenBucket)

    def take(self, remote: str, now: float) -> float:
        """Count one from an address. Return 0, or the seconds until there may be another."""
        return self.of(source_of(remote)).take(self.each, now) or self._all.take(self.total, now)

    def of(self, source: str) -> TokenBucket:
        """Return what is left to one address, or to whatever else is counted by a name."""
        bucket = self._each.pop(source, None) or TokenBucket()
        self._each[source] = bucket
        if len(self._each) > self.most:
            self._each.popitem(last=False)
        return bucket

"""A limit for log lines that others cause: some a minute, then the number left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from federation.peers.policy import TokenBucket


@dataclass
class LogLimiter:
    """Allows `rate` lines a minute, and as many at once. Times are seconds of one steady clock."""

    rate: int = 20
    _bucket: TokenBucket = field(default_factory=TokenBucket)
    _left_out: int = 0

    def line(self, now: float) -> dict[str, int] | None:
        """Return what to add to a line (how many were left out before it); None to leave it out."""
        if self._bucket.take(self.rate, now):
            self._left_out += 1
            return None
        told = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        return told

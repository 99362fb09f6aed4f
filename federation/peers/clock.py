"""The measured clock of a peer, and how far messages are adapted to it.

Colonies whose clocks are an hour apart must work together, without giving up any check of time. So
the side that connects translates. A hello carries a fresh nonce. The peer's signed answer, or its
signed refusal of that hello, repeats the nonce and tells the peer's clock: only the peer can have
made it, and only after the nonce. From then on, requests to a *trusted* peer are signed with times
of its clock, and its answers are judged by its clock. The peer itself checks every message by its
own clock alone, as strictly as ever.

A peer that lies about its clock changes only the times of messages between the two colonies. These
are made for it alone, and it could sign its own messages with any time as well. The difference is
bounded (`MOST`): a card, which every colony reads, is valid a day more than necessary at both ends,
and no longer. For strangers nothing is translated; they are told both clocks.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import msgspec

from federation.wire.messages import MOST

SLACK = 5  # seconds that two right clocks may differ; whole seconds are told


class ClockReading(msgspec.Struct, frozen=True):
    """How many seconds a peer's clock is ahead of ours; `judging` is the one it judges messages by.

    The two differ while the peer's clock is behind the latest time that it remembers. `at` is the
    time of the measurement by our clock.
    """

    ahead: int
    judging: int
    at: int
    within: float  # seconds of uncertainty


def read(told: int, latest: int, sent: float, received: float) -> ClockReading:
    """Return the reading of an answer: `told` and `latest`, `sent` by us, and `received` by us.

    All are seconds since the epoch. `latest` is 0 if the peer remembers no later time.
    """
    middle = (sent + received) / 2
    ahead = round(told - middle)
    judging = max(ahead, round(latest - middle)) if latest else ahead
    return ClockReading(ahead, judging, int(received), max(0.0, received - sent) / 2 + 1.0)


@dataclass
class PeerClock:
    """The clock of one peer, as far as it is known."""

    reading: ClockReading | None = None

    def learn(self, reading: ClockReading) -> bool:
        """Store a reading. Return whether the known difference of the clocks has changed."""
        before = self.reading
        self.reading = reading
        if before is None:
            return abs(reading.ahead) > SLACK
        return abs(reading.ahead - before.ahead) > SLACK

    @property
    def issuing(self) -> int:
        """Return the offset, in seconds, from our clock to the clock that this peer signs with."""
        return _bounded(self.reading.ahead) if self.reading else 0

    @property
    def judging(self) -> int:
        """Return the offset, in seconds, from our clock to the clock that this peer judges by."""
        return _bounded(self.reading.judging) if self.reading else 0


def _bounded(ahead: int) -> int:
    """Return the part of a difference that is bridged: 0 for a small one, and for one too large."""
    return ahead if SLACK < abs(ahead) <= MOST else 0


def bridgeable(theirs: int, ours: int) -> bool:
    """Return whether two clocks (seconds since the epoch) are close enough to be bridged."""
    return abs(theirs - ours) <= MOST


def apart(theirs: int, ours: int) -> str:
    """Return both clocks and the difference, as text."""
    word = "ahead of" if theirs >= ours else "behind"
    return (
        f"its clock says {_moment(theirs)}, ours {_moment(ours)}: "
        f"{told(abs(theirs - ours))} {word} ours"
    )


def told(seconds: int) -> str:
    """Return a span of time as text."""
    minutes, rest = divmod(abs(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0 s"


def _moment(seconds: int) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s since 1970"

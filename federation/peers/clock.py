"""What a peer's clock says compared with ours, as measured, and how far that is taken into account.

Colonies whose clocks are an hour apart are to work together, and no check of time is to be given
up for that. So who connects translates. A hello carries a fresh nonce; the peer's signed answer, or
its signed refusal of that very hello, repeats it and tells its clock: nobody else can have made it,
and not before the nonce existed. From then on requests to a *trusted* peer are sealed with the
times that its own clock shows, and its answers are judged by that clock. The peer checks what it
gets by its own clock alone, as strictly as ever, and learns nothing it could be deceived with.

A peer that lies about its clock changes only the times of messages between the two of us: those
are made for it alone, and it could sign its own ones with any time as well. How far the difference
may be is bounded (`MOST`), since cards, which everybody reads, hold a day more than they need on
both ends and no longer. Strangers get no such favour; they are told both clocks.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import msgspec

from federation.wire.messages import MOST

SLACK = 5  # seconds that clocks are apart without being set wrong; whole seconds are told


class ClockReading(msgspec.Struct, frozen=True):
    """How many seconds a clock is ahead of ours; `judging` is the one that messages are judged by.

    They differ while that host's clock is behind the latest time it remembers. `at` is when this
    was measured, by our clock.
    """

    ahead: int
    judging: int
    at: int
    within: float  # seconds of uncertainty


def read(told: int, latest: int, sent: float, received: float) -> ClockReading:
    """The reading from an answer: what it told, and when the request left and the answer came.

    All are seconds since the epoch; `latest` is 0 when the answerer remembers nothing later.
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
        """Take a reading; whether the clocks are further apart, or less, than was known."""
        before = self.reading
        self.reading = reading
        if before is None:
            return abs(reading.ahead) > SLACK
        return abs(reading.ahead - before.ahead) > SLACK

    @property
    def issuing(self) -> int:
        """Seconds to add to our time for a time by which its messages are made."""
        return _bounded(self.reading.ahead) if self.reading else 0

    @property
    def judging(self) -> int:
        """Seconds to add to our time for a time by which it judges messages."""
        return _bounded(self.reading.judging) if self.reading else 0


def _bounded(ahead: int) -> int:
    """What of a difference is made up for: nothing of a small one, nor of one beyond all bounds."""
    return ahead if SLACK < abs(ahead) <= MOST else 0


def bridgeable(theirs: int, ours: int) -> bool:
    """Whether clocks (seconds since the epoch) are not too far apart."""
    return abs(theirs - ours) <= MOST


def apart(theirs: int, ours: int) -> str:
    """Both clocks and the difference, for people."""
    word = "ahead of" if theirs >= ours else "behind"
    return (
        f"its clock says {_moment(theirs)}, ours {_moment(ours)}: "
        f"{told(abs(theirs - ours))} {word} ours"
    )


def told(seconds: int) -> str:
    """A span of time as people say it."""
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

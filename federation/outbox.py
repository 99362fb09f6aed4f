"""A forward at its origin, as a state machine without I/O: what happened, what follows.

Sending, storing and closing processes is done by `delivery`; nothing here waits or writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from federation.envelope import MAX_LIFETIME
from federation.messages import cti_of
from node.model import SECOND, Process

__all__ = [
    "ACCEPTED",
    "CANCELLING",
    "CLOSED",
    "DOUBT",
    "QUEUED",
    "REFUSED",
    "Act",
    "Forward",
    "Move",
    "cancelled",
    "cancelling",
    "concluded",
    "deadline_passed",
    "delay",
    "lost",
    "new_forward",
    "received",
    "refused",
    "sending",
    "unsent",
]

QUEUED, DOUBT, ACCEPTED, CANCELLING = "queued", "doubt", "accepted", "cancelling"
CLOSED, REFUSED = "closed", "refused"  # only in the record of a finished forward

# An outcome made at the last moment needs this long (ns) to come back.
_GRACE = 3 * SECOND
# How long (ns) a cancel is tried, and the outcome awaited that it leads to.
_CANCEL_FOR = 86_400 * SECOND
_FIRST_DELAY, _LAST_DELAY = 1.0, 300.0


class Forward(msgspec.Struct, frozen=True):
    """One process on its way to one peer. Times are Unix ns.

    `deliver` is when a spec that never left is given up, `unheard` when one without a receipt is,
    `finish` when the outcome of one with a receipt is. `sent` counts the copies that may have
    arrived, `attempts` the tries. `envelope` is made once, so every copy
    is the same bytes.
    """

    processid: str
    peer: str
    attempt: int
    deliver: int
    unheard: int
    finish: int
    state: str = QUEUED
    attempts: int = 0
    sent: int = 0
    firstsent: int = 0
    lasterror: str = ""
    envelope: bytes = b""
    receipt: bytes = b""
    remoteprocessid: str = ""
    outcome: bytes = b""
    ended: int = 0

    @property
    def cti(self) -> bytes:
        """The name of the submission, the same on every repeat."""
        return cti_of(self.processid, self.attempt)

    @property
    def outstanding(self) -> bool:
        """Whether the peer may owe an outcome."""
        return self.state != QUEUED


class Act(Enum):
    """What becomes of the process in the same transaction."""

    NOTHING = "nothing"
    START = "start"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Move:
    """What follows: the forward, whether it stays in the outbox, and the process's fate."""

    forward: Forward
    stays: bool
    act: Act = Act.NOTHING
    errors: list[str] = field(default_factory=list)


def new_forward(process: Process) -> Forward:
    """The forward of a process that was just submitted."""
    spec, begin = process.spec, process.submissiontime
    longest = begin + MAX_LIFETIME * SECOND
    wait, run, retries = spec.maxwaittime, spec.maxexectime, spec.maxretries
    deliver = unheard = finish = longest
    if wait > 0:
        deliver = min(longest, begin + wait * SECOND)
        unheard = min(longest, deliver + _GRACE)
        # Without a limit on running, only delivery has a deadline of its own.
        if run > 0 and retries >= 0:
            total = (wait + run) * (1 + retries)
            unheard = finish = min(longest, begin + total * SECOND + _GRACE)
    attempt = process.attempt + 1
    return Forward(process.processid, process.peer, attempt, deliver, unheard, finish)


def delay(tries: int, chance: random.Random) -> float:
    """Seconds until the next try after `tries` failures: 1 s to 5 min, jittered."""
    longest = min(_LAST_DELAY, _FIRST_DELAY * 2.0 ** min(max(tries - 1, 0), 16))
    return longest * chance.uniform(0.5, 1.0)


def sending(forward: Forward, envelope: bytes, now: int) -> Forward:
    """A copy is about to leave. From here on, only an answer tells that the peer has none."""
    return msgspec.structs.replace(
        forward,
        state=DOUBT,
        envelope=envelope,
        attempts=forward.attempts + 1,
        sent=forward.sent + 1,
        firstsent=forward.firstsent or now,
    )


def unsent(forward: Forward, error: str) -> Forward:
    """The copy certainly did not arrive, or was turned away for now."""
    sent = max(0, forward.sent - 1)
    state = QUEUED if forward.state == DOUBT and sent == 0 else forward.state
    return msgspec.structs.replace(
        forward,
        state=state,
        sent=sent,
        firstsent=forward.firstsent if sent else 0,
        lasterror=error,
    )


def lost(forward: Forward, error: str) -> Forward:
    """No answer came, so the copy may have arrived."""
    return msgspec.structs.replace(forward, lasterror=error)


def received(forward: Forward, status: str, remote: str, receipt: bytes) -> Move:
    """The peer signed that it has the submission."""
    after = msgspec.structs.replace(
        forward, receipt=receipt, remoteprocessid=remote or forward.remoteprocessid, lasterror=""
    )
    if status == "accepted":
        after = msgspec.structs.replace(after, state=ACCEPTED)
        return Move(after, True, Act.START)
    # Only our own cancel makes a peer answer so: it overtook the submission.
    return Move(msgspec.structs.replace(after, state=CLOSED), False, Act.CANCEL)


def cancelled(forward: Forward, remote: str, receipt: bytes, now: int) -> Move:
    """The peer signed that it knows of the cancel."""
    after = msgspec.structs.replace(
        forward, receipt=receipt, remoteprocessid=remote or forward.remoteprocessid, lasterror=""
    )
    if remote:
        # The outcome that the cancel led to is still owed, and must be acknowledged.
        return Move(after, True)
    return Move(msgspec.structs.replace(after, state=CLOSED, ended=now), False)


def refused(forward: Forward, code: str, message: str, peername: str, now: int) -> Move:
    """The peer turned the message away for good."""
    error = f"peer {peername} refused: {code}: {message}"
    after = msgspec.structs.replace(forward, lasterror=error, ended=now)
    if forward.state == CANCELLING:
        return Move(msgspec.structs.replace(after, state=CLOSED), False)
    if forward.sent > 1:
        if code == "expired":
            # Says nothing about the earlier copies: the outcome is awaited.
            return Move(msgspec.structs.replace(after, deliver=0, ended=0), True)
        error += "; an earlier copy may have arrived: in doubt, the peer may still run it"
        return Move(msgspec.structs.replace(after, state=DOUBT), False, Act.FAIL, [error])
    return Move(msgspec.structs.replace(after, state=REFUSED), False, Act.FAIL, [error])


def deadline_passed(forward: Forward, now: int, peername: str, lasterror: str) -> Move | None:
    """What follows from the time alone; None when nothing does."""
    if forward.state == QUEUED and now > forward.deliver:
        reason = forward.lasterror or lasterror or "it was never reached"
        error = f"forward to peer {peername} not delivered by its deadline: {reason}"
        after = msgspec.structs.replace(forward, state=CLOSED, lasterror=error, ended=now)
        return Move(after, False, Act.FAIL, [error])
    if now <= (forward.unheard if forward.state == DOUBT else forward.finish):
        return None
    if forward.state == CANCELLING:
        return Move(msgspec.structs.replace(forward, state=CLOSED, ended=now), False)
    error = f"no outcome from peer {peername} by the deadline: in doubt, the peer may still run it"
    # The peer is asked to stop: nobody waits any more.
    after = cancelling(msgspec.structs.replace(forward, lasterror=error), now)
    return Move(after, True, Act.FAIL, [error])


def cancelling(forward: Forward, now: int) -> Forward:
    """The process was ended here; the peer must be told."""
    return msgspec.structs.replace(
        forward, state=CANCELLING, finish=now + _CANCEL_FOR, envelope=b"", receipt=b""
    )


def concluded(forward: Forward, outcome: bytes, remote: str, now: int) -> Forward:
    """The record of a forward whose signed outcome came."""
    return msgspec.structs.replace(
        forward,
        state=CLOSED,
        outcome=outcome,
        envelope=b"",
        remoteprocessid=remote,
        lasterror="",
        ended=now,
    )

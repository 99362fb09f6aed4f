"""A forward at its origin, as a state machine without I/O: what happened, what follows.

Sending, storing and closing processes is done by `outbox.sender`; nothing here waits or writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from federation.forward.path import Request, request_of
from federation.wire.envelope import MAX_LIFETIME, Refused
from federation.wire.signer import cti_of
from node.model.types import SECOND, Process

QUEUED, DOUBT, ACCEPTED, CANCELLING = "queued", "doubt", "accepted", "cancelling"
# Only in the record of a finished forward; a returned one is back in the queue of its colony.
CLOSED, REFUSED, RETURNED = "closed", "refused", "returned"

# An outcome made at the last moment needs this long (ns) to come back.
_GRACE = 3 * SECOND
# How long (ns) a cancel is tried, and the outcome awaited that it leads to.
_CANCEL_FOR = 86_400 * SECOND
_FIRST_DELAY, _LAST_DELAY = 1.0, 300.0
# How long (ns) a forward with somewhere else to go waits for its peer to be reached, at most.
_SHARE = 30 * SECOND


class Tried(msgspec.Struct, frozen=True):
    """A peer that surely will not run the process, and why. `at` in Unix ns.

    `final`: it said so; else it was not reached, and may be tried again once it says something
    newer than its statement number `seq`. `asked` and `askedby` as in the forward to it.
    """

    peer: str
    error: str
    at: int
    final: bool
    seq: int = -1
    asked: bytes = b""
    askedby: str = ""


@dataclass(frozen=True)
class Way:
    """Why a process goes to its peer when it named none, and where it was tried before.

    `retry` is whether it may go elsewhere when its peer surely will not run it; `places` how many
    more there are.
    """

    route: str = ""
    retry: bool = False
    places: int = 0
    tried: tuple[Tried, ...] = ()


class Forward(msgspec.Struct, frozen=True):
    """One process on its way to one peer. Times are Unix ns.

    `deliver` is when a spec that never left is given up, `unheard` when one without a receipt is,
    `finish` when the outcome of one with a receipt is. `sent` counts the copies that may have
    arrived, `attempts` the tries. `envelope` is made once, so every copy is the same bytes.
    `route` says why it goes there when the process named no colony, `share` is when one that may go
    elsewhere (`retry`) does so if it never left. `aside`: a person let the process go on without
    this forward.

    `asked` is the SHA-256 of the origin's own submission in the envelope, `askedby` the id that
    signed it: what a receipt or an outcome has to answer, also when the envelope is gone. `meant`
    are the ids, by name, of the colonies beyond the peer that we trusted under those names when it
    was sealed.
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
    route: str = ""
    retry: bool = False
    share: int = 0
    tried: list[Tried] = []
    origin: str = ""  # of one that is passed on: the colony that it came from
    aside: bool = False
    asked: bytes = b""
    askedby: str = ""
    meant: dict[str, list[str]] = {}

    @property
    def cti(self) -> bytes:
        """The name of the submission, the same on every repeat."""
        return cti_of(self.processid, self.attempt)

    @property
    def request(self) -> Request | None:
        """Return what a receipt or an outcome has to answer; None when nothing is known of it.

        Of a forward that an earlier release sent, the envelope tells while it is there.
        """
        if self.asked:
            return Request(self.askedby, self.asked)
        try:
            if not self.envelope:
                return None
            return request_of(self.envelope, relayed=bool(self.origin))
        except Refused:
            return None

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
    """What follows: the forward, whether it stays in the outbox, and the process's fate.

    `certain`: the peer surely will not run it, so another may.
    """

    forward: Forward
    stays: bool
    act: Act = Act.NOTHING
    errors: list[str] = field(default_factory=list)
    certain: bool = False


def new_forward(process: Process, way: Way | None = None, now: int = 0) -> Forward:
    """The forward of a process that was just submitted, or at `now` (Unix ns) sent elsewhere."""
    spec, begin = process.spec, process.submissiontime
    longest = max(begin, now) + MAX_LIFETIME * SECOND
    wait, run, retries = spec.maxwaittime, spec.maxexectime, spec.maxretries
    deliver = unheard = finish = longest
    if wait > 0:
        # A retry began to wait later.
        deliver = min(longest, process.waitdeadline or begin + wait * SECOND)
        unheard = min(longest, deliver + _GRACE)
        # Without a limit on running, only delivery has a deadline of its own.
        if run > 0 and retries >= 0:
            total = (wait + run) * (1 + retries)
            unheard = finish = min(longest, begin + total * SECOND + _GRACE)
    attempt = process.attempt + 1
    forward = Forward(
        process.processid,
        process.peer,
        attempt,
        deliver,
        unheard,
        finish,
        origin=process.origin,
    )
    if way is None:
        return forward
    begin = max(now, begin)
    share = begin + min(_SHARE, max(0, deliver - begin) // (way.places + 1))
    return msgspec.structs.replace(
        forward,
        route=way.route,
        retry=way.retry,
        share=share if way.retry else 0,
        tried=list(way.tried),
    )


def delay(tries: int, chance: random.Random) -> float:
    """Seconds until the next try after `tries` failures: 1 s to 5 min, jittered."""
    longest = min(_LAST_DELAY, _FIRST_DELAY * 2.0 ** min(max(tries - 1, 0), 16))
    return longest * chance.uniform(0.5, 1.0)


def sending(forward: Forward, envelope: bytes, now: int, request: Request | None = None) -> Forward:
    """A copy is about to leave. From here on, only an answer tells that the peer has none.

    `request` is what the envelope asks for, and whose word that is.
    """
    asked = request or Request(forward.askedby, forward.asked)
    return msgspec.structs.replace(
        forward,
        state=DOUBT,
        envelope=envelope,
        asked=asked.digest,
        askedby=asked.origin,
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


def untimely(forward: Forward, error: str, signed: bool) -> Forward:
    """The peer's clock shows another time than we thought, so it did not take the copy.

    If that is certain, and it was the only one, the next is sealed with other times. Else the
    bytes stay the same ones, as an earlier copy may have arrived.
    """
    if not signed or forward.sent > 1:
        return lost(forward, error)
    return msgspec.structs.replace(
        unsent(forward, error), envelope=b"", asked=b"", askedby="", meant={}
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


def refused(
    forward: Forward,
    code: str,
    message: str,
    peername: str,
    now: int,
    *,
    signed: bool = False,
    brought: bool = False,
    kept: bool = False,
) -> Move:
    """The peer turned the message away for good; `signed` is whether it put its name to that.

    `brought`: another colony brought it there, and may have before, or may again. `kept`: the peer
    put its name to that it took no copy and will take none.
    """
    error = f"peer {peername} refused: {code}: {message}"
    after = msgspec.structs.replace(forward, lasterror=error, ended=now)
    if forward.state == CANCELLING:
        return Move(msgspec.structs.replace(after, state=CLOSED), False)
    if (forward.sent > 1 or brought) and not kept:
        if code == "expired":
            # Says nothing about the other copies: the outcome is awaited.
            return Move(msgspec.structs.replace(after, deliver=0, ended=0), True)
        error += "; another copy may have arrived: in doubt, the peer may still run it"
        return Move(msgspec.structs.replace(after, state=DOUBT), False, Act.FAIL, [error])
    # Another message under this id, which it has, may be one of ours that a lost store forgot.
    certain = (signed or kept) and code != "id_reuse"
    return Move(msgspec.structs.replace(after, state=REFUSED), False, Act.FAIL, [error], certain)


def unsendable(forward: Forward, error: str, now: int) -> Move:
    """It can't be put into a message at all, and never left."""
    after = msgspec.structs.replace(forward, state=CLOSED, lasterror=error, ended=now)
    return Move(after, False, Act.FAIL, [error])


def deadline_passed(forward: Forward, now: int, peername: str, lasterror: str) -> Move | None:
    """What follows from the time alone; None when nothing does."""
    if forward.state == QUEUED and now > forward.deliver:
        reason = forward.lasterror or lasterror or "it was never reached"
        error = f"forward to peer {peername} not delivered by its deadline: {reason}"
        after = msgspec.structs.replace(forward, state=CLOSED, lasterror=error, ended=now)
        return Move(after, False, Act.FAIL, [error], True)
    if now <= (forward.unheard if forward.state == DOUBT else forward.finish):
        return None
    if forward.state == CANCELLING:
        return Move(msgspec.structs.replace(forward, state=CLOSED, ended=now), False)
    error = f"no outcome from peer {peername} by the deadline: in doubt, the peer may still run it"
    # The peer is asked to stop: nobody waits any more.
    after = cancelling(msgspec.structs.replace(forward, lasterror=error), now)
    return Move(after, True, Act.FAIL, [error])


def shifted(forward: Forward, by: int, before: int) -> Forward:
    """The forward when the clock was set by so many ns, at `before` by what it showed until then.

    What had not passed keeps what was left of it.
    """

    def moved(at: int) -> int:
        return at + by if at > before else at

    return msgspec.structs.replace(
        forward,
        deliver=moved(forward.deliver),
        unheard=moved(forward.unheard),
        finish=moved(forward.finish),
        share=moved(forward.share),
    )


def stranded(forward: Forward, now: int, peername: str, lasterror: str) -> Move | None:
    """What follows for one that may go elsewhere and never left by its share of the time.

    Without another place the caller lets it be: it ends at its own deadline.
    """
    if forward.state != QUEUED or not forward.retry or now <= forward.share:
        return None
    error = f"peer {peername} not reached: {forward.lasterror or lasterror or 'no connection'}"
    after = msgspec.structs.replace(forward, state=CLOSED, lasterror=error, ended=now)
    return Move(after, False, Act.FAIL, [error], True)


def returned(forward: Forward, tried: tuple[Tried, ...], now: int) -> Forward:
    """The record of a forward whose process is back in our queue."""
    return msgspec.structs.replace(
        forward,
        state=RETURNED,
        envelope=b"",
        asked=b"",
        askedby="",
        meant={},
        tried=list(tried),
        ended=now,
    )


def resolved(forward: Forward, peername: str, now: int, *, aside: bool) -> Move:
    """A person ended the doubt; `aside`: the process goes on without this forward."""
    error = f"given up by the owner: in doubt, peer {peername} may still run it"
    after = cancelling(msgspec.structs.replace(forward, lasterror=error, aside=aside), now)
    return Move(after, True, Act.NOTHING if aside else Act.FAIL, [error])


def overruled(move: Move, now: int) -> Forward:
    """The record of a process that a person put back into our queue, without its old peer."""
    forward = move.forward
    this = Tried(
        forward.peer, forward.lasterror, now, True, asked=forward.asked, askedby=forward.askedby
    )
    tried = (*(each for each in forward.tried if each.peer != forward.peer), this)
    return returned(msgspec.structs.replace(forward, aside=False), tried, now)


def blocked(forward: Forward, peername: str, now: int) -> Move:
    """The owner blocked the peer: nobody waits for it any more, and nothing more is sent to it."""
    if forward.state == CANCELLING:
        error = f"peer {peername} is blocked here; whether it stopped is not known"
        after = msgspec.structs.replace(forward, state=CLOSED, lasterror=error, ended=now)
        return Move(after, False)
    state, error = CLOSED, f"peer {peername} was blocked here before this was sent: it never ran"
    if forward.state != QUEUED:
        state = DOUBT
        error = f"peer {peername} was blocked here: in doubt, the peer may still run it"
    after = msgspec.structs.replace(forward, state=state, lasterror=error, ended=now)
    return Move(after, False, Act.FAIL, [error], state == CLOSED)


def emptied(forward: Forward) -> Forward:
    """Return a forward without its envelope, but with what that asked for."""
    asked = forward.request or Request()
    return msgspec.structs.replace(forward, envelope=b"", asked=asked.digest, askedby=asked.origin)


def cancelling(forward: Forward, now: int) -> Forward:
    """The process was ended here; the peer must be told."""
    return msgspec.structs.replace(
        emptied(forward), state=CANCELLING, finish=now + _CANCEL_FOR, receipt=b""
    )


def concluded(forward: Forward, outcome: bytes, remote: str, now: int) -> Forward:
    """The record of a forward whose signed outcome came."""
    return msgspec.structs.replace(
        emptied(forward),
        state=CLOSED,
        outcome=outcome,
        remoteprocessid=remote,
        lasterror="",
        ended=now,
    )

"""The state machine of a forward at its origin, without I/O: events and their effects.

`outbox.sender` sends, stores and closes processes; nothing here waits or writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

import msgspec

from federation.forward.path import OriginRequest, request_of
from federation.wire.envelope import MAX_LIFETIME, Rejected
from federation.wire.refusals import Proof
from federation.wire.signer import cti_of
from node.model.types import SECOND, Process

# Extra time (ns) for an outcome made at the last moment to come back.
_GRACE = 3 * SECOND
# How long (ns) a cancel is sent, and the outcome that it leads to is awaited.
_CANCEL_FOR = 86_400 * SECOND
_FIRST_DELAY, _LAST_DELAY = 1.0, 300.0
# The longest time (ns) that a forward with another place to go waits to reach its peer.
_SHARE = 30 * SECOND


class ForwardState(StrEnum):
    """The state of a forward; the last three occur only in the record of a finished forward."""

    QUEUED = "queued"  # no copy left, or no copy arrived
    DOUBT = "doubt"  # a copy may have arrived
    ACCEPTED = "accepted"
    CANCELLING = "cancelling"
    CLOSED = "closed"
    REFUSED = "refused"
    RETURNED = "returned"  # the process is back in the queue of its colony


# Those of a forward that is in the outbox.
OPEN_STATES = (
    ForwardState.QUEUED,
    ForwardState.DOUBT,
    ForwardState.ACCEPTED,
    ForwardState.CANCELLING,
)


class ForwardEvent(Enum):
    """An event of a forward; the values are the words of the documentation."""

    SENDING = "a copy is about to leave"
    UNSENT = "the only copy did not arrive"
    SILENCE = "no answer, or another copy may have arrived"
    ACCEPTED = "a receipt: accepted"
    OVERTAKEN = "a receipt: our cancel came first"
    REFUSED = "refused"
    DENIED = "refused for certain: by the peer's word, and no other copy counts"
    COPY_REFUSED = "refused, and another copy may have arrived"
    COPY_EXPIRED = "refused as expired, and another copy may have arrived"
    UNSENDABLE = "no message can be made of it"
    UNDELIVERED = "the deadline for delivery passed"
    STRANDED = "not reached in its share of the time, and it may go elsewhere"
    OVERDUE = "no outcome by the deadline"
    ENDED = "the process was ended here"
    WITHDRAWN = "the process was ended here, and no copy left"
    ENDS_THERE = "a receipt of the cancel: its outcome comes"
    NOT_THERE = "a receipt of the cancel: it never begins"
    FAILED = "the owner: it has failed"
    REQUEUED = "the owner: it runs here"
    BLOCKED = "the peer was blocked"
    OUTCOME = "the signed outcome"
    RETURNED = "the process is back in our queue"


class FailedAttempt(msgspec.Struct, frozen=True):
    """A peer that surely will not run the process, and why. `at` in Unix ns.

    `final`: the peer refused for good. Otherwise the peer was not reached, and is tried again once
    it sends a statement newer than number `seq`. `asked` and `askedby` are those of the forward to
    it.
    """

    peer: str
    error: str
    at: int
    final: bool
    seq: int = -1
    asked: bytes = b""
    askedby: str = ""


@dataclass(frozen=True)
class RouteTrace:
    """Why a process that named no colony goes to its peer, and which peers were tried before.

    `retry`: the process may be rerouted if its peer surely will not run it. `places` counts the
    other places that it may go to.
    """

    route: str = ""
    retry: bool = False
    places: int = 0
    tried: tuple[FailedAttempt, ...] = ()


class Forward(msgspec.Struct, frozen=True):
    """One process on its way to one peer. Times are Unix ns.

    `deliver` is the deadline of a submission that never left, `unheard` that of a submission
    without a receipt, `finish` that of an outcome after the receipt. `sent` counts the copies that
    may have arrived, `attempts` the tries. `envelope` is made once, so every copy has the same
    bytes.

    `route` says why the process goes to this peer, if it named no colony. If `retry` is set and no
    copy has left by `share`, the process is rerouted. `aside`: a person let the process go on
    without this forward.

    `asked` is the SHA-256 of the origin's own submission in the envelope, `askedby` the id that
    signed it. A receipt or an outcome has to answer them, also when the envelope is gone. `meant`
    holds, by name, the ids of the colonies beyond the peer that we trusted under that name when the
    envelope was signed.
    """

    processid: str
    peer: str
    attempt: int
    deliver: int
    unheard: int
    finish: int
    state: ForwardState = ForwardState.QUEUED
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
    tried: list[FailedAttempt] = []
    origin: str = ""  # of a process that is passed on: the colony that sent it to us
    aside: bool = False
    asked: bytes = b""
    askedby: str = ""
    meant: dict[str, list[str]] = {}

    @property
    def cti(self) -> bytes:
        """Return the name (CWT ID) of the submission, the same on every repeat."""
        return cti_of(self.processid, self.attempt)

    @property
    def request(self) -> OriginRequest | None:
        """Return the request that a receipt or an outcome has to answer; None if it is not known.

        A forward of an earlier release has it only in its envelope.
        """
        if self.asked:
            return OriginRequest(self.askedby, self.asked)
        try:
            if not self.envelope:
                return None
            return request_of(self.envelope, relayed=bool(self.origin))
        except Rejected:
            return None

    @property
    def outstanding(self) -> bool:
        """Return whether the peer may owe an outcome."""
        return self.state is not ForwardState.QUEUED


class ProcessAction(Enum):
    """The change of the process in the same transaction."""

    NOTHING = "nothing"
    START = "start"
    FAIL = "fail"
    CANCEL = "cancel"


@dataclass(frozen=True)
class Step:
    """A row of the table: next state, action on the process, and whether the forward stays stored.

    `certain`: the peer surely will not run the process, so another peer may.
    """

    to: ForwardState
    act: ProcessAction = ProcessAction.NOTHING
    stays: bool = True
    certain: bool = False


@dataclass(frozen=True)
class Effect:
    """The effect of an event: the new forward, what its row says, and errors for the process."""

    forward: Forward
    stays: bool
    act: ProcessAction = ProcessAction.NOTHING
    errors: list[str] = field(default_factory=list)
    certain: bool = False


_GOES_ON = Step(ForwardState.DOUBT)
# The peer is told to stop: no process waits any more.
_STOPPED = Step(ForwardState.CANCELLING, ProcessAction.FAIL)
_OVER = Step(ForwardState.CLOSED, stays=False)
_NEVER_RAN = Step(ForwardState.CLOSED, ProcessAction.FAIL, stays=False, certain=True)
_NO = Step(ForwardState.REFUSED, ProcessAction.FAIL, stays=False)
_CERTAIN_NO = Step(ForwardState.REFUSED, ProcessAction.FAIL, stays=False, certain=True)
_UNKNOWN = Step(ForwardState.DOUBT, ProcessAction.FAIL, stays=False)
_BACK = Step(ForwardState.RETURNED, stays=False)

# All possible pairs of state and event. Any other pair is a bug.
TRANSITIONS: dict[tuple[ForwardState, ForwardEvent], Step] = {
    (ForwardState.QUEUED, ForwardEvent.SENDING): _GOES_ON,
    (ForwardState.QUEUED, ForwardEvent.REFUSED): _NO,
    (ForwardState.QUEUED, ForwardEvent.UNSENDABLE): Step(
        ForwardState.CLOSED, ProcessAction.FAIL, stays=False
    ),
    (ForwardState.QUEUED, ForwardEvent.UNDELIVERED): _NEVER_RAN,
    (ForwardState.QUEUED, ForwardEvent.STRANDED): _NEVER_RAN,
    (ForwardState.QUEUED, ForwardEvent.OVERDUE): _STOPPED,
    (ForwardState.QUEUED, ForwardEvent.ENDED): Step(ForwardState.CANCELLING),
    (ForwardState.QUEUED, ForwardEvent.WITHDRAWN): _OVER,
    (ForwardState.QUEUED, ForwardEvent.BLOCKED): _NEVER_RAN,
    (ForwardState.QUEUED, ForwardEvent.OUTCOME): _OVER,
    (ForwardState.DOUBT, ForwardEvent.SENDING): _GOES_ON,
    (ForwardState.DOUBT, ForwardEvent.UNSENT): Step(ForwardState.QUEUED),
    (ForwardState.DOUBT, ForwardEvent.SILENCE): _GOES_ON,
    (ForwardState.DOUBT, ForwardEvent.ACCEPTED): Step(ForwardState.ACCEPTED, ProcessAction.START),
    (ForwardState.DOUBT, ForwardEvent.OVERTAKEN): Step(
        ForwardState.CLOSED, ProcessAction.CANCEL, stays=False
    ),
    (ForwardState.DOUBT, ForwardEvent.REFUSED): _NO,
    (ForwardState.DOUBT, ForwardEvent.DENIED): _CERTAIN_NO,
    (ForwardState.DOUBT, ForwardEvent.COPY_REFUSED): _UNKNOWN,
    (ForwardState.DOUBT, ForwardEvent.COPY_EXPIRED): _GOES_ON,
    (ForwardState.DOUBT, ForwardEvent.OVERDUE): _STOPPED,
    (ForwardState.DOUBT, ForwardEvent.ENDED): Step(ForwardState.CANCELLING),
    (ForwardState.DOUBT, ForwardEvent.FAILED): _STOPPED,
    (ForwardState.DOUBT, ForwardEvent.REQUEUED): Step(ForwardState.CANCELLING),
    (ForwardState.DOUBT, ForwardEvent.BLOCKED): _UNKNOWN,
    (ForwardState.DOUBT, ForwardEvent.OUTCOME): _OVER,
    (ForwardState.ACCEPTED, ForwardEvent.OVERDUE): _STOPPED,
    (ForwardState.ACCEPTED, ForwardEvent.ENDED): Step(ForwardState.CANCELLING),
    (ForwardState.ACCEPTED, ForwardEvent.FAILED): _STOPPED,
    (ForwardState.ACCEPTED, ForwardEvent.REQUEUED): Step(ForwardState.CANCELLING),
    (ForwardState.ACCEPTED, ForwardEvent.BLOCKED): _UNKNOWN,
    (ForwardState.ACCEPTED, ForwardEvent.OUTCOME): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.ENDS_THERE): Step(ForwardState.CANCELLING),
    (ForwardState.CANCELLING, ForwardEvent.NOT_THERE): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.REFUSED): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.OVERDUE): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.ENDED): Step(ForwardState.CANCELLING),
    (ForwardState.CANCELLING, ForwardEvent.BLOCKED): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.OUTCOME): _OVER,
    (ForwardState.CANCELLING, ForwardEvent.RETURNED): _BACK,
    (ForwardState.CLOSED, ForwardEvent.RETURNED): _BACK,
    (ForwardState.REFUSED, ForwardEvent.RETURNED): _BACK,
}


def _move(forward: Forward, event: ForwardEvent, error: str = "", **changes: Any) -> Effect:
    """Return the effect of an event. `error` is for a process that fails by it."""
    step = TRANSITIONS[forward.state, event]
    after = msgspec.structs.replace(forward, state=step.to, **changes)
    errors = [error] if error and step.act is ProcessAction.FAIL else []
    return Effect(after, step.stays, step.act, errors, step.certain)


def new_forward(process: Process, route_trace: RouteTrace | None = None, now: int = 0) -> Forward:
    """Return the forward of a process just submitted, or rerouted at `now` (Unix ns)."""
    spec, begin = process.spec, process.submissiontime
    longest = max(begin, now) + MAX_LIFETIME * SECOND
    wait, run, retries = spec.maxwaittime, spec.maxexectime, spec.maxretries
    deliver = unheard = finish = longest
    if wait > 0:
        # The wait of a retry began later.
        deliver = min(longest, process.waitdeadline or begin + wait * SECOND)
        unheard = min(longest, deliver + _GRACE)
        # Without a limit on the run, only the delivery has a deadline of its own.
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
    if route_trace is None:
        return forward
    begin = max(now, begin)
    share = begin + min(_SHARE, max(0, deliver - begin) // (route_trace.places + 1))
    return msgspec.structs.replace(
        forward,
        route=route_trace.route,
        retry=route_trace.retry,
        share=share if route_trace.retry else 0,
        tried=list(route_trace.tried),
    )


def delay(tries: int, chance: random.Random) -> float:
    """Return the seconds until the next try after `tries` failures: 1 s to 5 min, with jitter."""
    longest = min(_LAST_DELAY, _FIRST_DELAY * 2.0 ** min(max(tries - 1, 0), 16))
    return longest * chance.uniform(0.5, 1.0)


def sending(
    forward: Forward, envelope: bytes, now: int, request: OriginRequest | None = None
) -> Forward:
    """Return the forward as a copy is about to leave: from now on the copy may have arrived.

    `request` is what the envelope asks for, and which id signed that.
    """
    asked = request or OriginRequest(forward.askedby, forward.asked)
    return _move(
        forward,
        ForwardEvent.SENDING,
        envelope=envelope,
        asked=asked.digest,
        askedby=asked.origin,
        attempts=forward.attempts + 1,
        sent=forward.sent + 1,
        firstsent=forward.firstsent or now,
    ).forward


def unsent(forward: Forward, error: str) -> Forward:
    """Return the forward after its copy certainly did not arrive, or was refused for now."""
    sent = max(0, forward.sent - 1)
    event = ForwardEvent.SILENCE if sent else ForwardEvent.UNSENT
    first = forward.firstsent if sent else 0
    return _move(forward, event, sent=sent, firstsent=first, lasterror=error).forward


def untimely(forward: Forward, error: str, signed: bool) -> Forward:
    """Return the forward after the peer's clock found its copy too early or too late.

    The next copy is signed with new times if the peer `signed` the refusal and no other copy was
    sent. Otherwise the bytes stay the same, as an earlier copy may have arrived. That is so for a
    copy from the future, too: the peer's clock may have been set back, or a mailbox may hold the
    earlier copy.
    """
    if not signed or forward.sent > 1:
        return lost(forward, error)
    return _unsealed(unsent(forward, error))


def lost(forward: Forward, error: str) -> Forward:
    """Return the forward after no answer came: the copy may have arrived."""
    return _move(forward, ForwardEvent.SILENCE, lasterror=error).forward


def received(forward: Forward, status: str, remote: str, receipt: bytes) -> Effect:
    """Return the effect of the peer's receipt: it has the submission, or our cancel came first."""
    event = ForwardEvent.ACCEPTED if status == "accepted" else ForwardEvent.OVERTAKEN
    remote = remote or forward.remoteprocessid
    return _move(forward, event, receipt=receipt, remoteprocessid=remote, lasterror="")


def cancelled(forward: Forward, remote: str, receipt: bytes, now: int) -> Effect:
    """Return the effect of the peer's receipt for a cancel.

    If the process was there, the peer still owes the outcome, and we still acknowledge that.
    """
    event, ended = (
        (ForwardEvent.ENDS_THERE, forward.ended) if remote else (ForwardEvent.NOT_THERE, now)
    )
    remote = remote or forward.remoteprocessid
    return _move(forward, event, receipt=receipt, remoteprocessid=remote, lasterror="", ended=ended)


def refused(
    forward: Forward,
    code: str,
    message: str,
    peername: str,
    now: int,
    proof: Proof = Proof.NONE,
) -> Effect:
    """Return the effect of the peer's final refusal."""
    error = f"peer {peername} refused: {code}: {message}"
    told, event = error, ForwardEvent.REFUSED
    if forward.state is not ForwardState.CANCELLING:
        if (forward.sent > 1 or proof.carried) and proof is not Proof.KEPT:
            if code == "expired":
                # An expired copy says nothing about the other copies: the outcome is awaited.
                return _move(
                    forward, ForwardEvent.COPY_EXPIRED, lasterror=error, deliver=0, ended=0
                )
            told += "; another copy may have arrived: in doubt, the peer may still run it"
            event = ForwardEvent.COPY_REFUSED
        elif proof.certain and code != "id_reuse":
            # The peer has another message of this id. That may be ours, forgotten with a lost
            # store: so the refusal proves nothing.
            event = ForwardEvent.DENIED
    return _move(forward, event, told, lasterror=error, ended=now)


def unsendable(forward: Forward, error: str, now: int) -> Effect:
    """Return the effect of a process that fits in no message: it never left."""
    return _move(forward, ForwardEvent.UNSENDABLE, error, lasterror=error, ended=now)


def withdrawn(forward: Forward, now: int) -> Forward:
    """Return the record of a process that ended here before a copy left."""
    return _move(forward, ForwardEvent.WITHDRAWN, ended=now).forward


def deadline_passed(forward: Forward, now: int, peername: str, lasterror: str) -> Effect | None:
    """Return the effect of a deadline that has passed; None if none has."""
    if forward.state is ForwardState.QUEUED and now > forward.deliver:
        reason = forward.lasterror or lasterror or "it was never reached"
        error = f"forward to peer {peername} not delivered by its deadline: {reason}"
        return _move(forward, ForwardEvent.UNDELIVERED, error, lasterror=error, ended=now)
    if now <= (forward.unheard if forward.state is ForwardState.DOUBT else forward.finish):
        return None
    if forward.state is ForwardState.CANCELLING:
        return _move(forward, ForwardEvent.OVERDUE, ended=now)
    error = f"no outcome from peer {peername} by the deadline: in doubt, the peer may still run it"
    return _stopping(forward, ForwardEvent.OVERDUE, now, error, lasterror=error)


def next_deadline(forward: Forward) -> int:
    """Return the first time (Unix ns) after which `deadline_passed` or `stranded` may tell more."""
    match forward.state:
        case ForwardState.QUEUED:
            share = forward.share if forward.retry else forward.deliver
            return min(forward.deliver, forward.finish, share)
        case ForwardState.DOUBT:
            return forward.unheard
        case _:
            return forward.finish


def shifted(forward: Forward, by: int, before: int) -> Forward:
    """Return the forward after the clock was set by `by` ns, when it showed `before` (Unix ns).

    Deadlines that have not passed move with the clock; others stay.
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


def stranded(forward: Forward, now: int, peername: str, lasterror: str) -> Effect | None:
    """Return the effect on a forward with another place to go that never left by its `share`.

    None if that is not the case. If the caller finds no other place, it ignores the effect, and the
    forward ends at its own deadline.
    """
    if forward.state is not ForwardState.QUEUED or not forward.retry or now <= forward.share:
        return None
    error = f"peer {peername} not reached: {forward.lasterror or lasterror or 'no connection'}"
    return _move(forward, ForwardEvent.STRANDED, error, lasterror=error, ended=now)


def returned(forward: Forward, tried: tuple[FailedAttempt, ...], now: int) -> Forward:
    """Return the record of a forward whose process is back in our queue."""
    return _move(_unsealed(forward), ForwardEvent.RETURNED, tried=list(tried), ended=now).forward


def resolved(forward: Forward, peername: str, now: int, *, aside: bool) -> Effect:
    """Return the effect of a person's decision; `aside`: the process goes on without this."""
    error = f"given up by the owner: in doubt, peer {peername} may still run it"
    event = ForwardEvent.REQUEUED if aside else ForwardEvent.FAILED
    return _stopping(forward, event, now, error, lasterror=error, aside=aside)


def overruled(effect: Effect, now: int) -> Forward:
    """Return the record of a process that a person put back into our queue."""
    forward = effect.forward
    this = FailedAttempt(
        forward.peer, forward.lasterror, now, True, asked=forward.asked, askedby=forward.askedby
    )
    tried = (*(each for each in forward.tried if each.peer != forward.peer), this)
    return returned(msgspec.structs.replace(forward, aside=False), tried, now)


def blocked(forward: Forward, peername: str, now: int) -> Effect:
    """Return the effect of a block of the peer: nothing is awaited from it or sent to it."""
    match forward.state:
        case ForwardState.CANCELLING:
            error = f"peer {peername} is blocked here; whether it stopped is not known"
        case ForwardState.QUEUED:
            error = f"peer {peername} was blocked here before this was sent: it never ran"
        case _:
            error = f"peer {peername} was blocked here: in doubt, the peer may still run it"
    return _move(forward, ForwardEvent.BLOCKED, error, lasterror=error, ended=now)


def emptied(forward: Forward) -> Forward:
    """Return a forward without its envelope, but with the request of the envelope."""
    asked = forward.request or OriginRequest()
    return msgspec.structs.replace(forward, envelope=b"", asked=asked.digest, askedby=asked.origin)


def _unsealed(forward: Forward) -> Forward:
    return msgspec.structs.replace(forward, envelope=b"", asked=b"", askedby="", meant={})


def cancelling(forward: Forward, now: int) -> Forward:
    """Return the forward after its process ended here: the peer is told to cancel."""
    return _stopping(forward, ForwardEvent.ENDED, now).forward


def _stopping(
    forward: Forward, event: ForwardEvent, now: int, error: str = "", **changes: Any
) -> Effect:
    """Return the effect of an end here: the peer is told to cancel, for `_CANCEL_FOR` ns."""
    finish = now + _CANCEL_FOR
    return _move(emptied(forward), event, error, finish=finish, receipt=b"", **changes)


def concluded(forward: Forward, outcome: bytes, remote: str, now: int) -> Forward:
    """Return the record of a forward whose signed outcome came."""
    return _move(
        emptied(forward),
        ForwardEvent.OUTCOME,
        outcome=outcome,
        remoteprocessid=remote,
        lasterror="",
        ended=now,
    ).forward

"""The state machine of a forward: what follows from each event. Nothing is sent here."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.forward import machine
from federation.forward.machine import Forward, ProcessAction
from node.model.codec import pack, unpack
from node.model.types import SECOND, Conditions, FunctionSpec, Process
from tests.support import forward_states

PEER = "b" * 64
BEGIN = 1_700_000_000 * SECOND
WEEK = 7 * 86_400 * SECOND


def forward_of(wait: int = 10, run: int = 20, retries: int = 0) -> Forward:
    spec = FunctionSpec(
        funcname="f",
        maxwaittime=wait,
        maxexectime=run,
        maxretries=retries,
        conditions=Conditions(colonyname="lab", executortype="t"),
    )
    process = Process("a" * 64, "c" * 64, "me", "home", spec, BEGIN, BEGIN, peer=PEER)
    return machine.new_forward(process)


def test_deadlines_come_from_the_spec() -> None:
    both = forward_of(wait=10, run=20)
    assert both.deliver == BEGIN + 10 * SECOND
    assert BEGIN + 30 * SECOND <= both.finish <= BEGIN + 35 * SECOND
    assert forward_of(wait=10, run=20, retries=2).finish >= BEGIN + 90 * SECOND
    endless = forward_of(wait=10, run=-1)
    assert endless.deliver == BEGIN + 10 * SECOND
    assert endless.finish == BEGIN + WEEK, "work without a limit must not be failed after the wait"
    assert endless.unheard < BEGIN + 20 * SECOND
    assert forward_of(wait=0, run=20).deliver == BEGIN + WEEK


def test_the_entry_survives_the_store() -> None:
    forward = machine.sending(forward_of(), b"\x00sealed", BEGIN)
    assert unpack(pack(forward), Forward) == forward


def test_the_name_of_a_submission_depends_on_process_and_attempt_only() -> None:
    first = forward_of()
    assert machine.sending(first, b"x", BEGIN).cti == first.cti
    assert len(first.cti) == 16


def test_a_copy_that_left_is_in_doubt_until_it_certainly_did_not() -> None:
    sent = machine.sending(forward_of(), b"sealed", BEGIN + 1)
    assert (sent.state, sent.sent, sent.firstsent) == (machine.ForwardState.DOUBT, 1, BEGIN + 1)
    back = machine.unsent(sent, "connection refused")
    assert (back.state, back.sent, back.firstsent) == (machine.ForwardState.QUEUED, 0, 0)
    assert back.attempts == 1
    assert back.envelope == b"sealed", "a repeat must be the same bytes"


def test_a_lost_answer_is_not_undone_by_a_later_refused_connection() -> None:
    sent = machine.lost(machine.sending(forward_of(), b"sealed", BEGIN), "no answer")
    again = machine.unsent(machine.sending(sent, b"sealed", BEGIN + 5), "connection refused")
    assert (again.state, again.sent, again.firstsent) == (machine.ForwardState.DOUBT, 1, BEGIN)


def test_an_accepted_receipt_starts_the_process() -> None:
    effect = machine.received(
        machine.sending(forward_of(), b"s", BEGIN), "accepted", "r" * 64, b"rc"
    )
    assert (effect.act, effect.stays) == (ProcessAction.START, True)
    assert effect.forward.state == machine.ForwardState.ACCEPTED
    assert effect.forward.remoteprocessid == "r" * 64
    assert effect.forward.receipt == b"rc"


def test_a_receipt_that_says_cancelled_ends_it() -> None:
    effect = machine.received(machine.sending(forward_of(), b"s", BEGIN), "cancelled", "", b"rc")
    assert (effect.act, effect.stays) == (ProcessAction.CANCEL, False)


def test_a_refusal_of_the_only_copy_is_final() -> None:
    sent = machine.sending(forward_of(), b"s", BEGIN)
    effect = machine.refused(sent, "untrusted", "not yet", "lab", BEGIN)
    assert (effect.act, effect.stays, effect.forward.state) == (
        ProcessAction.FAIL,
        False,
        machine.ForwardState.REFUSED,
    )
    assert effect.errors == ["peer lab refused: untrusted: not yet"]


def test_a_refusal_after_a_lost_answer_leaves_doubt() -> None:
    twice = machine.sending(machine.sending(forward_of(), b"s", BEGIN), b"s", BEGIN + 5)
    effect = machine.refused(twice, "untrusted", "not any more", "lab", BEGIN + 5)
    assert effect.forward.state == machine.ForwardState.DOUBT
    assert "the peer may still run it" in effect.errors[0]
    expired = machine.refused(twice, "expired", "late", "lab", BEGIN + 5)
    assert expired.stays, "that a repeat is too old says nothing of the first copy"
    assert expired.act is ProcessAction.NOTHING
    assert machine.deadline_passed(expired.forward, BEGIN + 6, "lab", "") is None


def test_what_never_left_fails_at_its_delivery_deadline_with_the_reason() -> None:
    queued = forward_of()
    assert machine.deadline_passed(queued, queued.deliver, "lab", "") is None
    effect = machine.deadline_passed(queued, queued.deliver + 1, "lab", "connection refused")
    assert effect is not None
    assert (effect.act, effect.stays) == (ProcessAction.FAIL, False)
    assert effect.errors == [
        "forward to peer lab not delivered by its deadline: connection refused"
    ]


def test_silence_after_sending_is_shown_as_doubt_and_the_peer_is_told_to_stop() -> None:
    sent = machine.sending(forward_of(), b"s", BEGIN)
    accepted = machine.received(sent, "accepted", "r" * 64, b"rc").forward
    for forward in (sent, accepted):
        assert machine.deadline_passed(forward, forward.deliver + 1, "lab", "") is None
        effect = machine.deadline_passed(forward, forward.finish + 1, "lab", "")
        assert effect is not None
        assert effect.errors == [
            "no outcome from peer lab by the deadline: in doubt, the peer may still run it"
        ]
        assert (effect.act, effect.stays) == (ProcessAction.FAIL, True)
        assert effect.forward.state == machine.ForwardState.CANCELLING


def test_a_cancel_waits_for_the_outcome_only_where_the_process_was_known() -> None:
    wish = machine.cancelling(machine.sending(forward_of(), b"s", BEGIN), BEGIN)
    unknown = machine.cancelled(wish, "", b"rc", BEGIN + 1)
    assert (unknown.stays, unknown.forward.state) == (False, machine.ForwardState.CLOSED)
    known = machine.cancelled(wish, "r" * 64, b"rc", BEGIN + 1)
    assert known.stays
    assert known.forward.receipt == b"rc"
    given_up = machine.deadline_passed(wish, wish.finish + 1, "lab", "")
    assert given_up is not None
    assert not given_up.stays


def test_back_off_grows_from_one_second_to_five_minutes_with_jitter() -> None:
    chance = random.Random(1)
    for tries in range(1, 60):
        longest = min(300.0, 2.0 ** (tries - 1))
        assert longest / 2 <= machine.delay(tries, chance) <= longest
    assert len({machine.delay(5, chance) for _ in range(20)}) > 10


def test_the_table_is_drawn_in_the_documentation() -> None:
    """`scripts/states` makes the drawing; each event and each state is somewhere in the table."""
    page = forward_states.PAGE.read_text("utf-8")
    assert forward_states.diagram() in page
    assert {event for _, event in machine.TRANSITIONS} == set(machine.ForwardEvent)
    reached = {step.to for step in machine.TRANSITIONS.values()}
    assert {state for state, _ in machine.TRANSITIONS} | reached == set(machine.ForwardState)
    for (state, event), step in machine.TRANSITIONS.items():
        # What a peer may run stays in the outbox, or the process is said to be in doubt.
        if step.certain:
            assert (step.act, step.stays) == (ProcessAction.FAIL, False), (state, event)


@settings(deadline=None)
@given(st.integers(-(10**18), 10**18), st.integers(0, 10**18))
def test_a_clock_that_is_set_leaves_what_was_left(by: int, passed: int) -> None:
    """Of each deadline; and one that had passed stays so."""
    forward = forward_of()
    before = forward.deliver - 10 * SECOND + passed
    after = machine.shifted(forward, by, before)
    for name in ("deliver", "unheard", "finish"):
        was, now = getattr(forward, name), getattr(after, name)
        if was > before:
            assert now - (before + by) == was - before
        else:
            assert now == was
    assert machine.shifted(forward, 0, before) == forward

"""The index of the outbox: it tells what a walk over all entries would, and what that walk costs it
does not cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from federation.forward import machine
from federation.forward.machine import Forward, ForwardState
from federation.forward.updates import FollowState
from federation.outbox.entries import Marks, OutboxEntries, OutboxEntry
from federation.outbox.outcomes import OutcomePoller
from federation.outbox.revoke import Revocation
from federation.outbox.updates import UpdateConsumer
from node.etcd.client import EtcdClient
from node.model.types import SECOND
from tests.federation.outbox.support import Front
from tests.support.parts import accounts_of, delivery_of

STATES = [
    ForwardState.QUEUED,
    ForwardState.DOUBT,
    ForwardState.ACCEPTED,
    ForwardState.CANCELLING,
]
PIDS = [f"{number:064x}" for number in range(6)]
forwards = st.builds(
    Forward,
    st.just(""),
    st.sampled_from(["bee", "cat"]),
    st.just(1),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 9),
    state=st.sampled_from(STATES),
    receipt=st.sampled_from([b"", b"receipt"]),
    origin=st.sampled_from(["", "dog"]),
    retry=st.booleans(),
    share=st.integers(0, 9),
)
changes: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("forward"), forwards),
    st.tuples(st.just("due"), st.sampled_from([0.0, 1.0, 2.0, 3.0])),
    st.tuples(st.just("tries"), st.integers(0, 2)),
    st.tuples(st.just("busy"), st.booleans()),
    st.tuples(st.just("put"), forwards),
    st.tuples(st.just("remove"), st.none()),
)


def tells(entries: OutboxEntries, peer: str, now: int) -> dict[str, Any]:
    """What the index says, by process id where the order says nothing."""
    ready = {entry.forward.processid for entry in entries.ready(peer, now)}
    # What has become due meanwhile counts as not ready until somebody asks what is.
    later = entries.next_due(peer)
    return {
        "ready": ready,
        "later": later is not None and later > now,
        "busy": entries.busy_of(peer),
        "all": len(entries.of_peer(peer)),
        "count": entries.count_of(peer),
        "outstanding": entries.outstanding(peer),
        "followed": {each.forward.processid for each in entries.followed(peer).values()},
        "tried": {each.forward.processid for each in entries.tried(peer)},
        "late": {each.forward.processid for each in entries.late(now)},
        "relayed": entries.relayed("dog"),
        "states": [entries.count_in(state) for state in STATES],
        "moving": entries.busy,
        "peer": peer in entries.peers(),
    }


def walked(entries: OutboxEntries, peer: str, now: int) -> dict[str, Any]:
    """What a walk over all entries finds."""
    mine = [each for each in entries.values() if each.forward.peer == peer]
    idle = [each for each in mine if each.to_send and not each.busy]
    followed = (ForwardState.ACCEPTED, ForwardState.CANCELLING)

    def late(forward: Forward) -> bool:
        return (
            machine.deadline_passed(forward, now, "", "") is not None
            or machine.stranded(forward, now, "", "") is not None
        )

    return {
        "ready": {each.forward.processid for each in idle if each.due <= now},
        "later": any(each.due > now for each in idle),
        "busy": sum(each.busy for each in mine),
        "all": len(mine),
        "count": len(mine),
        "outstanding": sum(each.forward.outstanding for each in mine),
        "followed": {each.forward.processid for each in mine if each.forward.state in followed},
        "tried": {each.forward.processid for each in mine if each.tries},
        "late": {each.forward.processid for each in entries.values() if late(each.forward)},
        "states": [
            sum(each.forward.state == state for each in entries.values()) for state in STATES
        ],
        "relayed": sum(each.forward.origin == "dog" for each in entries.values()),
        "moving": sum(each.busy for each in entries.values()),
        "peer": bool(mine),
    }


@given(st.lists(st.tuples(st.sampled_from(PIDS), changes), max_size=40), st.integers(0, 10))
def test_the_index_tells_what_a_walk_over_all_entries_finds(
    steps: list[tuple[str, tuple[str, Any]]], now: int
) -> None:
    entries = OutboxEntries()
    for pid, (what, value) in steps:
        if isinstance(value, Forward):
            value = msgspec.structs.replace(value, processid=pid)
        if what == "put":
            entries[pid] = OutboxEntry(value, 1)
        elif what == "remove":
            entries.pop(pid, None)
        elif pid in entries:
            setattr(entries[pid], what, value)
        for peer in ("bee", "cat"):
            assert tells(entries, peer, now) == walked(entries, peer, now)


def test_forwards_leave_in_the_order_in_which_they_came_also_after_a_back_off() -> None:
    entries = OutboxEntries()
    for pid in PIDS[:3]:
        entries[pid] = OutboxEntry(Forward(pid, "bee", 1, 9, 9, 9), 1)
    entries[PIDS[0]].due = 5.0
    assert [each.forward.processid for each in entries.ready("bee", 4.0)] == PIDS[1:3]
    assert [each.forward.processid for each in entries.ready("bee", 5.0)] == PIDS[:3]


def test_marks_are_found_by_peer() -> None:
    marks = Marks()
    marks["1", "bee"] = marks["2", "bee"] = marks["1", "cat"] = None
    assert (marks.of("bee"), marks.of("cat"), marks.peers()) == (["1", "2"], ["1"], ["bee", "cat"])
    marks.pop(("1", "cat"), None)
    marks.pop(("3", "dog"), None)
    assert (marks.of("cat"), marks.peers()) == ([], ["bee"])


@contextmanager
def visits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count how often an entry is looked at meanwhile."""
    count = [0]

    def looked(entry: OutboxEntry, name: str) -> Any:
        count[0] += name == "forward"
        return object.__getattribute__(entry, name)

    with monkeypatch.context() as patch:
        patch.setattr(OutboxEntry, "__getattribute__", looked, raising=False)
        yield count


async def round_of(client: EtcdClient, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many looks at entries one round of all tasks takes, with `size` of each kind."""
    front = Front(client)
    await front.befriend()
    peer, now = front.other.id, time.time_ns()
    far = now + 3600 * SECOND
    for number in range(size):
        for place, state in enumerate(STATES):
            pid = f"{number * 8 + place:064x}"
            forward = Forward(pid, peer, 1, far, far, far, state=state, receipt=b"r")
            entry = front.outbox.entries[pid] = OutboxEntry(forward, 1)
            entry.due, entry.tries = trio.current_time() + 60, 0
        pid = f"{number * 8 + 7:064x}"
        forward = Forward(pid, "f" * 64, 1, far, far, far, origin="e" * 64)
        front.outbox.entries[pid] = OutboxEntry(forward, 1)
    sender, quotas = delivery_of(front.context, front.outbox), accounts_of(front.context)
    updates = UpdateConsumer(front.context, front.outbox, quotas)
    for number in range(size):
        updates.known[f"{number:064x}"] = FollowState("f" * 64, 1, tail=True), 1
    poller = OutcomePoller(front.context, front.outbox, updates)
    with visits(monkeypatch) as count:
        due, _ = sender._plan(peer)
        assert due == []
        await sender.expire()
        assert front.outbox.outstanding(peer) == 4 * size
        assert front.outbox.relayed("e" * 64) == size
        assert updates.tails(peer) == []
        assert poller._awaited(peer)
        front.outbox.retry_now(peer)
        assert Revocation(front.context, front.outbox).due() == set()
        await front.outbox.wait_idle()
    return count[0]


async def test_a_full_window_waits_for_the_end_of_a_message(client: EtcdClient) -> None:
    """An entry whose back-off is over meanwhile must not have the sender plan again and again."""
    front, far = Front(client), time.time_ns() + 3600 * SECOND
    for number in range(9):
        pid = f"{number:064x}"
        entry = front.outbox.entries[pid] = OutboxEntry(Forward(pid, "bee", 1, far, far, far), 1)
        if number < 8:
            entry.busy = True
        else:
            entry.due, entry.tries = trio.current_time() - 1, 1
    sender = delivery_of(front.context, front.outbox)
    due, again = sender._plan("bee")
    assert due == []
    assert again > trio.current_time() + 10
    front.outbox.entries["0" * 64].busy = False
    due, _ = sender._plan("bee")
    assert len(due) == 1


async def test_a_round_costs_what_is_due_and_not_what_is_there(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = await round_of(client, 5, monkeypatch)
    many = await round_of(client, 200, monkeypatch)
    assert many <= few + 20

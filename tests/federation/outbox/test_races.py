"""What memory holds of forwards, news and debts is set right when the store knows better."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from colonyd.errors import RpcError
from federation.forward import machine
from federation.forward.receipt import ReceiptRecord
from federation.forward.updates import FollowState
from federation.outbox import updates as following
from federation.outbox.updates import UpdateConsumer
from federation.wire.envelope import inspect
from federation.wire.messages import Extra, Line, News, Outcome, Outcomes, Poll, dump, load
from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Delete, Txn
from node.host.clock import Clock
from node.host.config import HistoryConfig, Keep, RouteConfig
from node.model.codec import pack, unpack
from node.model.types import Log, Process, State
from node.processes.service import Processes
from node.store import keys
from node.streams.logs import puts
from tests.federation.routing.support import Side, Wire, deliver, three, wire
from tests.support.colonies import Colony, world
from tests.support.interleaved import Meddled
from tests.support.parts import follower_of
from tests.support.processes import retention as retention_of

SECONDS = 40
ALWAYS = RouteConfig(to="bee")

# -- outcomes ----------------------------------------------------------------------------


class Silence:
    """Lets the first write that ends a forward of a colony happen, and says nothing of it."""

    def __init__(self, patch: pytest.MonkeyPatch, colony: Colony) -> None:
        commit = EtcdClient.commit
        self.happened = False

        async def silent(client: EtcdClient, txn: Txn) -> TxnResult:
            result = await commit(client, txn)
            place = colony.fed.keys.outbox
            ends = any(isinstance(op, Delete) and op.key.startswith(place) for op in txn.success)
            if ends and result.succeeded and not self.happened:
                self.happened = True
                raise EtcdUnavailable("no answer from the store")
            return result

        patch.setattr(EtcdClient, "commit", silent)


async def test_an_outcome_that_comes_again_leaves_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, ("ant", "bee")) as there:
        ant, bee = there["ant"], there["bee"]
        await ant.trust(bee)
        await bee.trust(ant)
        silence = Silence(monkeypatch, ant)
        with trio.fail_after(SECONDS):
            processid = await ant.submit("bee")
            await bee.work("done")
            outbox, event = ant.fed.outbox, ant.fed.outbox.activity.event
            while outbox.entries or outbox.stale or outbox.reading or not silence.happened:
                await event.wait()
                event = outbox.activity.event
            assert (await ant.process(processid)).output == ["done"]


# -- news --------------------------------------------------------------------------------


async def followed(client: EtcdClient) -> tuple[Side, Side, Wire, Process]:
    """ant has a process that runs at bee."""
    ant, bee, _ = await three(client, ALWAYS)
    bee.hire()
    process, connection = await ant.submit(), wire(ant, bee)
    await deliver(ant, bee, connection, process)
    await ant.federation.outbox.refresh(bee.key.id)
    assert (
        ant.federation.outbox.entries[process.processid].forward.state
        == machine.ForwardState.ACCEPTED
    )
    return ant, bee, connection, process


def told(process: Process, **news: Any) -> Outcomes:
    """An answer with news of one process."""
    return Outcomes([], [dump(News(process.processid, 1, **news))])


def some_lines(count: int) -> list[Line]:
    return [Line(number + 1, "w", f"line {number}") for number in range(count)]


async def log_of(side: Side, process: Process) -> list[str]:
    prefix = keys.process_logs(side.name, process.processid)
    items, _ = await side.client.range_all(prefix)
    return [unpack(item.value, Log).message for item in items]


class Overtaking:
    """A follower whose cursor another daemon moves before each write."""

    def __init__(self, side: Side, process: Process, peer: Side) -> None:
        self.meddled, self.moves = Meddled(side.client), 0
        self._key = side.federation.keys.followed(process.processid)
        self._peer = peer.key.id
        client, federation = cast(EtcdClient, self.meddled), side.federation
        processes = Processes(client, Clock(time.time_ns))
        context = replace(federation.context, client=client, processes=processes)
        outbox = replace(federation.outbox, context=context)
        self.update_consumer = UpdateConsumer(context, outbox, federation.inbox.peer_quotas)
        self.meddled.first = self._move

    async def _move(self) -> None:
        self.moves += 1
        cursor = FollowState(self._peer, 1, start=self.moves)
        await self.meddled.put(self._key, pack(cursor))
        self.meddled.first = self._move


async def test_lines_after_those_that_are_stored_are_kept(client: EtcdClient) -> None:
    """An answer of the store was lost, or another daemon had the first ones."""
    ant, _, connection, process = await followed(client)
    first = ant.federation.outcome_poller.update_consumer
    behind = follower_of(ant.federation)
    lines = some_lines(100)
    await first.take(connection, told(process, lines=lines[:38]))
    for _ in range(2):
        more = await behind.take(connection, told(process, lines=lines, more=True))
        assert more == {process.processid}, "it was said that there is more, whoever stored these"
        assert await log_of(ant, process) == [line.message for line in lines]


async def test_changes_are_kept_when_the_cursor_was_moved(client: EtcdClient) -> None:
    ant, _, connection, process = await followed(client)
    first, behind = ant.federation.outcome_poller.update_consumer, follower_of(ant.federation)
    await first.take(connection, told(process, lines=some_lines(1)))
    news: dict[str, Any] = {"version": 9, "added": [Extra("k", "v", 1)], "attributes": 1}
    assert await behind.take(connection, told(process, **news)) == set()
    assert [each.key for each in (await ant.load(process)).attributes] == ["k"]
    assert behind.counters["unfit"] == 0
    known = behind.of(process.processid)
    assert known is not None
    assert (known[0].line, known[0].attributes) == (1, 1)


@pytest.mark.parametrize(
    "news",
    [
        {"lines": some_lines(2)},
        {"version": 9, "added": [Extra("k", "v", 1)], "attributes": 1},
    ],
)
async def test_what_is_overtaken_again_and_again_is_asked_for_again(
    client: EtcdClient, news: dict[str, Any]
) -> None:
    ant, bee, connection, process = await followed(client)
    other = Overtaking(ant, process, bee)
    assert await other.update_consumer.take(connection, told(process, **news)) == {
        process.processid
    }
    assert other.moves == following._TRIES
    known = other.update_consumer.of(process.processid)
    assert known is not None
    assert (known[0].line, known[0].attributes, known[0].version) == (0, 0, 0)
    other.meddled.first = None
    assert await other.update_consumer.take(connection, told(process, **news)) == set()
    stored = await ant.load(process)
    assert len(await log_of(ant, process)) + len(stored.attributes) in (1, 2)


async def test_what_takes_nothing_more_is_passed_over_as_before(client: EtcdClient) -> None:
    ant, _, connection, process = await followed(client)
    update_consumer = ant.federation.outcome_poller.update_consumer
    assert (
        await update_consumer.take(connection, told(process, version=9, output=b"x", out=b"{}"))
        == set()
    )
    assert update_consumer.counters["unfit"] == 1
    known = update_consumer.of(process.processid)
    assert known is not None
    assert known[0].version == 9
    await ant.client.delete(keys.process("ant", process.processid))
    more = await update_consumer.take(connection, told(process, lines=some_lines(3), more=True))
    assert more == set(), "of what is gone nothing more is wanted"


async def test_a_tail_that_was_not_asked_about_is_not_dropped(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ant, bee, connection, process = await followed(client)
    update_consumer = ant.federation.outcome_poller.update_consumer
    pids = [digit * 64 for digit in "123"]
    for pid in pids:
        cursor = FollowState(bee.key.id, 1, tail=True)
        revision = await client.put(ant.federation.keys.followed(pid), pack(cursor))
        update_consumer.known[pid] = (cursor, revision)
    del ant.federation.outbox.entries[process.processid]
    monkeypatch.setattr(following, "MOST_FOLLOWED", 1)
    for left in (2, 1, 0):
        await ant.federation.outcome_poller.poll_once(connection)
        assert len(update_consumer.tails(bee.key.id)) == left


async def test_a_repeat_finds_the_rest_that_the_store_has_noted(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing with its note that there is more happened, without an answer."""
    ant, bee, connection, process = await followed(client)
    there = await bee.assign(5)
    await bee.processes.close("bee", there.processid, bee.worker.executorid, State.SUCCESSFUL)
    (sealed,) = (await bee.federation.inbox.outcome_queue._owed(ant.key.id)).values()
    outcome_poller, commit, lost = (
        ant.federation.outcome_poller,
        EtcdClient.commit,
        list[TxnResult](),
    )

    async def silent(store: EtcdClient, txn: Txn) -> TxnResult:
        result = await commit(store, txn)
        if not lost and any(isinstance(op, Delete) and "/outbox/" in op.key for op in txn.success):
            lost.append(result)
            raise EtcdUnavailable("no answer from the store")
        return result

    monkeypatch.setattr(EtcdClient, "commit", silent)
    with pytest.raises(EtcdUnavailable):
        await outcome_poller.settle(connection, sealed, None)
    assert outcome_poller.update_consumer.tails(bee.key.id) == []
    await outcome_poller.settle(connection, sealed, None)
    assert outcome_poller.update_consumer.tails(bee.key.id) == [process.processid]
    await ant.federation.outbox.refresh(bee.key.id)
    assert ant.federation.outbox.entries == {}


# -- debts -------------------------------------------------------------------------------


async def owed(client: EtcdClient) -> tuple[Side, Side, Process]:
    """bee has run a process of ant's to its end, by a daemon that this one did not hear of."""
    ant, bee, _, __ = await followed(client)
    there = await bee.assign(5)
    other = Processes(client, Clock(time.time_ns))
    await other.close("bee", there.processid, bee.worker.executorid, State.SUCCESSFUL, output=[1])
    assert not bee.federation.inbox.outcome_queue.owed
    return ant, bee, await bee.load(there)


async def test_what_is_owed_can_not_be_removed_whatever_memory_says(client: EtcdClient) -> None:
    _, bee, there = await owed(client)
    with pytest.raises(RpcError, match="the colony that it came from has not fetched") as caught:
        await bee.processes.remove("bee", there.processid)
    assert caught.value.status == 409
    assert (await bee.load(there)).output == [1]
    await client.delete(there.notify)
    await bee.processes.remove("bee", there.processid)
    assert await bee.processes.load("bee", there.processid) is None


async def test_what_is_owed_does_not_go_to_history(client: EtcdClient, tmp_path: Path) -> None:
    _, bee, there = await owed(client)
    retention = retention_of(bee.node, tmp_path / "home", HistoryConfig(keep=Keep(1)))
    later = there.endtime + 10**9
    assert await retention._processes("bee", State.SUCCESSFUL, later) == 0
    assert (await bee.load(there)).closed
    await client.delete(there.notify)
    assert await retention._processes("bee", State.SUCCESSFUL, later) == 1
    assert await bee.processes.load("bee", there.processid) is None


@pytest.mark.parametrize("how", ["a poll", "a sweep"])
async def test_memory_of_debts_is_set_right(client: EtcdClient, how: str) -> None:
    ant, bee, there = await owed(client)
    inbox = bee.federation.inbox

    async def look() -> None:
        if how == "a poll":
            await inbox.outcome_queue._owed(ant.key.id)
        else:
            await inbox.sweep()

    assert inbox.removable(there) == ""
    await look()
    assert "has not fetched" in inbox.removable(there)
    # Another daemon took the acknowledgement.
    await client.delete(there.notify)
    assert "has not fetched" in inbox.removable(there)
    await look()
    assert inbox.removable(there) == ""


async def test_the_last_updates_come_with_an_end_that_another_daemon_stored(
    client: EtcdClient,
) -> None:
    """No later answer brings them."""
    ant, bee, _, __ = await followed(client)
    there = await bee.assign(5)
    publisher = bee.federation.inbox.outcome_queue.update_publisher
    pid = there.notify.rpartition("/")[2]
    await publisher.news(ant.key.id, Poll(0, [], []), ())
    await client.commit(Txn([], puts(Log(there.processid, "bee", "w", "the last", 1))))
    publisher.progressed(there)
    assert await publisher.news(ant.key.id, Poll(0, [], []), ()) == ([], False)
    news, _ = await publisher.news(ant.key.id, Poll(0, [], []), (pid,))
    assert [line.message for line in load((news or [])[0], News).lines] == ["the last"]


async def test_a_later_attempt_that_another_daemon_accepted_is_told_as_such(
    client: EtcdClient,
) -> None:
    ant, bee, _, process = await followed(client)
    there = await bee.assign(5)
    publisher = bee.federation.inbox.outcome_queue.update_publisher
    known = await publisher.place(ant.key.id, process.processid)
    assert known is not None
    # Another daemon has accepted the next attempt since.
    place = bee.federation.keys.receipt_record(ant.key.id, process.processid)
    found = await client.get(place)
    assert found is not None
    record = unpack(found.value, ReceiptRecord)
    later = msgspec.structs.replace(record, attempt=2, localpid="9" * 64)
    await client.put(place, pack(later))
    outcome_queue = bee.federation.inbox.outcome_queue
    sealed = await outcome_queue._outcome(ant.key.id, process.processid, "9" * 64)
    outcome = load(inspect(sealed, limit=len(sealed)).payload, Outcome)
    assert (outcome.attempt, outcome.pid) == (2, process.processid)
    assert there.processid == known.localpid


class Between:
    """A store of which something happens after a listing, before who asked has it."""

    def __init__(self, client: EtcdClient, then: Any) -> None:
        self._client, self._then = client, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def range(self, *args: Any, **more: Any) -> Any:
        found = await self._client.range(*args, **more)
        self._then()
        return found

    async def range_all(self, *args: Any, **more: Any) -> Any:
        found = await self._client.range_all(*args, **more)
        self._then()
        return found


@pytest.mark.parametrize("how", ["a poll", "a sweep"])
async def test_what_ends_while_debts_are_listed_is_not_forgotten(
    client: EtcdClient, how: str
) -> None:
    ant, bee, there = await owed(client)
    outcome_queue = bee.federation.inbox.outcome_queue
    await client.delete(there.notify)
    between = cast(EtcdClient, Between(client, lambda: outcome_queue.closed(there)))
    outcome_queue.context = replace(outcome_queue.context, client=between)
    if how == "a poll":
        await outcome_queue._owed(ant.key.id)
    else:
        await outcome_queue.load()
    assert "has not fetched" in bee.federation.inbox.removable(there)


# -- the queue and its routes ------------------------------------------------------------


async def test_what_gets_ready_is_looked_at_anew(client: EtcdClient) -> None:
    ant, _, __ = await three(client, RouteConfig(when="waiting > 1h", to="bee"))
    process = await ant.submit()
    await ant.tick()
    waiting = ant.federation.requeuer
    assert process.processid in waiting._class_of
    waiting.ready(process.processid)
    assert waiting._class_of == {}
    await ant.tick()
    assert process.processid in waiting._class_of
    assert (await ant.load(process)).peer == ""

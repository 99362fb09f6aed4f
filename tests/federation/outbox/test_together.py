"""Several submissions go to a peer in one message; each has its own fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio

from federation.forward.machine import Forward, ForwardState
from federation.outbox.entries import OutboxEntry
from federation.peers.policy import Policy
from federation.transport.connection import PeerResponse
from federation.transport.errors import Lost
from federation.wire.envelope import Kind, inspect
from federation.wire.messages import MOST_TOGETHER, Answer, Capabilities, Offer, Receipts, load
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdUnavailable
from node.model.types import Filesystem, Process, SyncDirMount
from tests.federation.routing.support import BOTH, Side, Wire, three
from tests.support.parts import Led

SECONDS = 60
Lie = Callable[[list[Answer]], list[Answer]]


class Counting(Wire):
    """A way to a peer that counts what goes over it, and changes answers to several."""

    paths: Counter[str]
    bodies: list[bytes]
    lie: Lie | None = None

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        self.paths[path] += 1
        self.bodies.append(body)
        answer = await super().exchange(path, body, wait)
        if path != "/v2/submits" or answer.status != 200 or self.lie is None:
            return answer
        said = load(inspect(answer.data, limit=len(answer.data)).payload, Receipts)
        signer: Signer = self.to.federation.signer
        told = Receipts(self.lie(list(said.answers)))
        return PeerResponse(200, "", signer.seal(Kind.RECEIPTS, self.signer.key.id, told))


class Scene:
    """ant, which sends to bee, and has some processes for it."""

    def __init__(self, ant: Side, bee: Side, processes: list[Process]) -> None:
        self.ant, self.bee, self.processes = ant, bee, processes
        entry = ant.federation.peers.known[bee.key.id]
        self.connection = Counting(entry, ant.federation.signer, Led())
        self.connection.to, self.connection.paths, self.connection.bodies = bee, Counter(), []

    def entries(self) -> list[OutboxEntry]:
        outbox = self.ant.federation.outbox
        return [outbox.entries[each.processid] for each in self.processes]

    async def send(self) -> None:
        """Send what is due, once."""
        sender = self.ant.federation.sender
        await self.ant.federation.outbox.refresh(self.bee.key.id)
        for entry in self.entries():
            entry.due = 0.0
        due, _ = sender._plan(self.bee.key.id)
        async with trio.open_nursery() as nursery:
            for entries in sender._messages(self.connection, due):
                sender._under_way[self.bee.key.id] += 1
                for entry in entries:
                    entry.busy = True
                nursery.start_soon(sender._deliver, self.connection, *entries)

    async def forwards(self) -> list[Forward]:
        found = [await self.ant.forward(self.bee, each) for each in self.processes]
        return [each for each in found if each is not None]

    async def states(self) -> list[tuple[str, int]]:
        return [(each.state, each.sent) for each in await self.forwards()]


async def scene(client: EtcdClient, count: int = 3, together: int = MOST_TOGETHER) -> Scene:
    ant, bee, _ = await three(client, BOTH)
    limits = {"together": together} if together else {}
    said = Capabilities(2, types={"cli": Offer(["*"], executors=1)}, limits=limits)
    ant.federation.capability_cache.take(bee.key.id, said)
    processes = [await ant.submit() for _ in range(count)]
    assert all([(await ant.load(each)).peer == bee.key.id for each in processes])
    return Scene(ant, bee, processes)


async def test_what_waits_goes_in_one_message(client: EtcdClient) -> None:
    here = await scene(client)
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1}
    assert await here.states() == [(ForwardState.ACCEPTED, 1)] * 3
    assert len(here.bee.processes.queue.entries) == 3


async def test_one_goes_at_once_as_ever(client: EtcdClient) -> None:
    here = await scene(client, 1)
    await here.send()
    assert here.connection.paths == {"/v2/submit": 1}


@pytest.mark.parametrize("together", [0, 1])
async def test_a_peer_that_does_not_take_several_gets_one_by_one(
    client: EtcdClient, together: int
) -> None:
    here = await scene(client, together=together)
    await here.send()
    assert here.connection.paths == {"/v2/submit": 3}
    assert await here.states() == [(ForwardState.ACCEPTED, 1)] * 3


async def test_a_message_has_as_many_as_its_receiver_takes(client: EtcdClient) -> None:
    here = await scene(client, 5, together=2)
    await here.send()
    assert here.connection.paths == {"/v2/submits": 2, "/v2/submit": 1}
    assert await here.states() == [(ForwardState.ACCEPTED, 1)] * 5


async def test_without_an_answer_all_are_in_doubt_and_go_alone(client: EtcdClient) -> None:
    here = await scene(client)
    here.connection.trouble = Lost("no answer")
    await here.send()
    assert await here.states() == [(ForwardState.DOUBT, 1)] * 3
    sent = [each.envelope for each in await here.forwards()]
    here.connection.trouble = None
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 3}
    assert sorted(here.connection.bodies[1:]) == sorted(sent)
    assert await here.states() == [(ForwardState.ACCEPTED, 2)] * 3


async def test_a_refusal_of_all_ends_none(client: EtcdClient) -> None:
    """The peer may have a daemon that knows no such message; each then has its own answer."""
    here = await scene(client)
    del here.bee.federation.server._table["/v2/submits"]
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1}
    # The refusal is signed: no copy counts.
    assert await here.states() == [(ForwardState.QUEUED, 0)] * 3
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 3}
    assert await here.states() == [(ForwardState.ACCEPTED, 1)] * 3
    here.processes = [await here.ant.submit() for _ in range(2)]
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 5}


async def test_each_refusal_is_its_own(client: EtcdClient) -> None:
    here = await scene(client)
    await here.bee.federation.peers.set_policy(here.ant.key.id, Policy(max_waiting=2))
    await here.send()
    states = await here.states()
    assert sorted(states) == [(ForwardState.ACCEPTED, 1)] * 2 + [(ForwardState.QUEUED, 0)]


def _swapped(said: list[Answer]) -> list[Answer]:
    return [said[1], said[0], *said[2:]]


def _repeated(said: list[Answer]) -> list[Answer]:
    return [said[2]] * len(said)


def _unsigned(said: list[Answer]) -> list[Answer]:
    return [*(Answer(403, b'{"code":"policy_function","message":"no"}') for _ in said[:2]), said[2]]


def _cut(said: list[Answer]) -> list[Answer]:
    return said[:-1]


def _none(said: list[Answer]) -> list[Answer]:
    return []


ACCEPTED, DOUBT = (ForwardState.ACCEPTED, 1), (ForwardState.DOUBT, 1)


@pytest.mark.parametrize(
    ("lie", "states"),
    [
        (_swapped, [DOUBT, DOUBT, ACCEPTED]),
        (_repeated, [DOUBT, DOUBT, ACCEPTED]),
        (_cut, [DOUBT] * 3),
        (_none, [DOUBT] * 3),
    ],
)
async def test_a_receipt_counts_for_its_own_submission_only(
    client: EtcdClient, lie: Lie, states: list[Any]
) -> None:
    here = await scene(client)
    here.connection.lie = lie
    await here.send()
    assert await here.states() == states


async def test_a_refusal_in_a_signed_answer_is_not_thereby_signed_itself(
    client: EtcdClient,
) -> None:
    """Else a process could go elsewhere although the peer has accepted it."""
    here = await scene(client)
    here.connection.lie = _unsigned
    await here.send()
    loaded = [await here.ant.load(each) for each in here.processes]
    assert [each.peer for each in loaded] == [here.bee.key.id] * 3, "none was rerouted"
    assert await here.ant.forward(here.bee, here.processes[2]) is not None


async def test_what_may_take_long_keeps_no_other(client: EtcdClient) -> None:
    """A submission that is large goes beside the others, in a message of its own."""
    here = await scene(client, 2)
    large = await here.ant.submit(args=["x" * 150_000])
    here.processes.append(large)
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 1}
    # Which of the two leaves first is open.
    assert sorted(len(body) > 100_000 for body in here.connection.bodies) == [False, True]
    assert await here.states() == [ACCEPTED] * 3


async def test_what_was_in_vain_goes_alone_also_once_the_peer_is_back(client: EtcdClient) -> None:
    """Else one that the peer can't answer would take the others with it again and again."""
    here = await scene(client)
    here.connection.trouble = Lost("no answer")
    await here.send()
    here.connection.trouble = None
    here.ant.federation.outbox.retry_now(here.bee.key.id)
    await here.send()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 3}


@pytest.mark.parametrize("error", [EtcdUnavailable("no answer"), ZeroDivisionError()])
async def test_any_error_is_one_of_these_submissions(client: EtcdClient, error: Exception) -> None:
    """The tasks of the peer go on."""
    here = await scene(client)
    here.connection.trouble = error
    await here.send()
    assert [entry.tries for entry in here.entries()] == [1] * 3
    here.connection.trouble = None
    await here.send()
    assert await here.states() == [(ForwardState.ACCEPTED, 2)] * 3


async def test_a_mailbox_that_becomes_the_way_gets_each_alone(
    client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it brings may be brought again: no refusal is then certain."""
    here = await scene(client)
    led, outbox = Led(), here.ant.federation.outbox
    here.connection.guide, save = led, outbox.save

    async def carry(path: str, body: bytes, wait: float) -> PeerResponse:
        raise Lost("nobody carries here")

    async def saved(*args: Any) -> bool:
        led.carrier = carry
        return await save(*args)

    monkeypatch.setattr(outbox, "save", saved)
    await here.send()
    assert here.connection.paths == {"/v2/submit": 3}


class Slow(Counting):
    """A way to a peer by which submissions alone get no answer before `free`."""

    waiting = 0
    free: trio.Event

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        if path == "/v2/submit":
            self.waiting += 1
            await self.free.wait()
        return await super().exchange(path, body, wait)


async def test_what_waits_for_slow_ones_is_not_sent_and_what_is_done_is_free(
    client: EtcdClient,
) -> None:
    here = await scene(client, 2)
    fs = Filesystem(dirs=[SyncDirMount(label="/data", dir="/d")])
    slow = [await here.ant.submit(fs=fs) for _ in range(4)]
    here.processes += slow
    here.connection.__class__ = Slow
    assert isinstance(here.connection, Slow)
    here.connection.free = trio.Event()
    activity = here.ant.federation.outbox.activity
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send)
            event = activity.event
            while here.connection.waiting < 2 or any(each.busy for each in here.entries()[:2]):
                with trio.move_on_after(0.1):
                    await event.wait()
                event = activity.event
            states = await here.states()
            assert states[:2] == [ACCEPTED] * 2
            # Which two of them come first is open.
            assert Counter(states[2:]) == {DOUBT: 2, (ForwardState.QUEUED, 0): 2}
            here.connection.free.set()
    assert here.connection.paths == {"/v2/submits": 1, "/v2/submit": 4}

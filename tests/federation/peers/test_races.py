"""What is decided about a peer holds at every daemon, whatever answer is lost; and what goes on."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.forward.machine import Forward
from federation.outbox.entries import OutboxEntry
from federation.outbox.files import FileTransfer
from federation.outbox.outbox import Outbox
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.owncard import OwnCard
from federation.peers.policy import Policy
from federation.peers.registry import BLOCKED, TRUSTED, Peer, Peers
from federation.service.janitor import Janitor
from federation.service.sessions import PeerSessions
from federation.transport.connection import PeerConnection
from federation.wire.card import Card, open_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import VerifiedMessage, inspect
from federation.wire.messages import Chunk, Fetch, dump, load
from federation.wire.refusals import Refusal
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient, KeyValue, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.host.config import FederationConfig
from node.model.codec import unpack
from node.model.types import Conditions, FunctionSpec
from node.processes.service import Processes
from node.processes.spec import build_process
from tests.federation.inbox.support import take
from tests.federation.membership.support import follows, friends
from tests.federation.outbox.support import Front, furnished, mounts, put
from tests.federation.peers.support import KEY, card, registry
from tests.support.colonies import Colony, world
from tests.support.daemons import until
from tests.support.interleaved import Meddled
from tests.support.parts import ledger_of

SECONDS = 60
ME = "0" * 64

# -- the tasks of a peer -----------------------------------------------------------------


def tended(colony: Colony) -> int:
    """How many sets of tasks of peers run at a colony."""
    nursery = colony.fed.peer_sessions._nursery
    assert nursery is not None
    return sum("PeerSessions._serve" in task.name for task in nursery.child_tasks)


async def meets(one: Colony, other: Colony) -> None:
    """Take in the other's present card, as a greeting does."""
    data = other.fed.own_card.card()
    await one.fed.peers.learn(open_card(data, time.time()), data, near=False)


async def test_a_peer_with_a_new_key_has_one_set_of_tasks_and_a_block_ends_it(
    tmp_path: Path,
) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path) as colonies:
            ant, bee = await friends(colonies, "ant", "bee")
            assert tended(bee) == 1
            await ant.rotate()
            await follows(bee, ant)
            await meets(bee, ant)
            assert tended(bee) == 1
            assert len(bee.fed.connections) == 1
            await bee.fed.trust_admin.block(ant.key.id)

            async def over() -> bool:
                return tended(bee) == 0

            await until(20, over)
            assert bee.fed.connections == {}


async def test_a_task_that_fails_leaves_alone_what_is_being_sent(autojump_clock: MockClock) -> None:
    key, peerid = PrivateKey.generate(), "a" * 64
    peers, none = registry(Peer(peerid, TRUSTED, "bee", b"key", 1)), cast(Any, None)
    outbox = ledger_of(Context("ant", Signer(key, SigningClock()), none, none, peers, Keys("ant")))
    sent = outbox.entries["1" * 64] = OutboxEntry(
        Forward("1" * 64, peerid, 1, 9, 9, 9), 1, busy=True
    )
    again, tries = trio.Event(), 0

    async def fails_once(connection: PeerConnection) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("trouble")
        again.set()
        await trio.sleep_forever()

    class Way:
        id = peerid

        async def close(self) -> None:
            """Nothing was opened."""

    peer_sessions = PeerSessions({}, lambda entry: cast(PeerConnection, Way()), [fails_once])
    entry = peers.get(peerid)
    assert entry is not None
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            peer_sessions.open(nursery)
            peer_sessions.begin(peerid, entry)
            await again.wait()
            assert sent.busy
            peer_sessions.end(peerid)


# -- decisions ---------------------------------------------------------------------------


async def two(client: EtcdClient) -> tuple[Meddled, Peers, Peers, PrivateKey]:
    """Two daemons of one colony that trusts a peer; the first one's store is meddled with."""
    store, key = Meddled(client), PrivateKey.generate()
    signer, keys = Signer(KEY, SigningClock()), Keys("ant")
    one, other = Peers(cast(EtcdClient, store), keys, signer), Peers(client, keys, signer)
    await one.learn(card(key), b"card", near=False)
    await one.trust(key.id)
    await other.load()
    return store, one, other, key


async def stored(peers: Peers, key: PrivateKey) -> Peer:
    """The peer as the store has it."""
    found = await peers.client.get(peers.keys.peer(key.id))
    assert found is not None
    return unpack(found.value, Peer)


async def test_a_block_outlasts_a_change_that_it_overtook_and_that_was_lost(
    client: EtcdClient,
) -> None:
    store, one, other, key = await two(client)

    async def lost() -> None:
        raise EtcdUnavailable("the second write does not get there")

    async def block() -> None:
        store.first = lost
        await other.block(key.id)

    store.first = block
    with pytest.raises(EtcdUnavailable):
        await one.set_policy(key.id, Policy(max_running=1))
    assert one.state(key.id) == BLOCKED
    assert await one.learn(card(key, sequence=2), b"2", near=False) is None
    with pytest.raises(RpcError, match="the colony is blocked"):
        await one.set_policy(key.id, Policy(max_running=2))
    assert (await stored(one, key)).state == BLOCKED


async def test_a_second_daemon_hears_of_decisions(client: EtcdClient) -> None:
    front, heard = Front(client), list[str]()
    await front.befriend()
    front.peers.watch(heard.append)
    other = Peers(client, front.keys, Signer(front.key, SigningClock()))
    await other.load()
    peerid, third = front.other.id, PrivateKey.generate()
    await other.set_policy(peerid, Policy(max_running=3))
    await front.peers.look_again()
    assert front.peers.policy(peerid).max_running == 3
    await other.block(peerid)
    await other.learn(card(third, "third"), b"card", near=False)
    await other.trust(third.id)
    assert front.revocation.due() == set()
    await front.peers.look_again()
    assert (front.peers.state(peerid), front.peers.state(third.id)) == (BLOCKED, TRUSTED)
    assert front.revocation.due() == {peerid}
    assert heard[-2:] == sorted([peerid, third.id])
    await front.revocation.sweep(peerid)
    assert (await stored(front.peers, front.other)).ending is False
    assert front.revocation.due() == set()


async def test_a_second_daemon_hears_of_a_new_key(client: EtcdClient) -> None:
    _, one, other, key = await two(client)
    new = PrivateKey.generate()
    entry = other.find(key.id)
    await other.save(entry, lambda peer: Peer(key.id, TRUSTED, "lab", b"new", 0, current=new.id))
    one.sighted(new.id, "10.0.0.1:1")
    await one.look_again()
    assert one.state(new.id) == TRUSTED
    assert list(one.known) == [key.id]


class Late(Meddled):
    """What is read is known only after something else."""

    then: Callable[[], Awaitable[object]]

    async def range_all(self, prefix: str) -> tuple[list[KeyValue], int]:
        found = await self._client.range_all(prefix)
        await self.then()
        return found

    async def get(self, key: str) -> KeyValue | None:
        found = await self._client.get(key)
        await self.then()
        return found


async def test_what_is_read_late_changes_nothing_that_is_later(client: EtcdClient) -> None:
    store, one, _, key = await two(client)
    late = Late(client)
    one.client = cast(EtcdClient, late)

    async def decide() -> None:
        one.client = cast(EtcdClient, store)
        if one.state(key.id) == TRUSTED:
            await one.block(key.id)
        else:
            await one.trust(key.id)
        one.client = cast(EtcdClient, late)

    late.then = decide
    await one.look_again()
    assert one.state(key.id) == BLOCKED
    await one.reload(key.id)
    assert one.state(key.id) == TRUSTED
    new = PrivateKey.generate()

    async def trust() -> None:
        one.client = cast(EtcdClient, store)
        await one.learn(card(new), b"card", near=False)
        await one.trust(new.id)

    late.then = trust
    await one.reload(new.id)
    assert one.state(new.id) == TRUSTED, "the store did not have it yet when it was asked"


async def test_a_block_whose_answer_is_lost_holds_at_once(client: EtcdClient) -> None:
    store, one, _, key = await two(client)
    heard: list[str] = []
    one.watch(heard.append)
    store.lost = True
    with pytest.raises(EtcdUnavailable):
        await one.block(key.id)
    assert one.state(key.id) == BLOCKED
    assert heard == [key.id]


class Leaving(Meddled):
    """Whoever writes goes away while the store answers."""

    scope: trio.CancelScope

    async def commit(self, txn: Txn) -> TxnResult:
        with trio.CancelScope(shield=True):
            result = await self._client.commit(txn)
        self.scope.cancel()
        await trio.lowlevel.checkpoint()
        return result


async def test_a_block_whose_caller_went_away_holds_at_once(client: EtcdClient) -> None:
    _, one, _, key = await two(client)
    store = Leaving(client)
    one.client = cast(EtcdClient, store)
    with trio.fail_after(SECONDS), trio.CancelScope() as store.scope:
        await one.block(key.id)
    assert store.scope.cancelled_caught
    assert one.state(key.id) == BLOCKED


async def test_a_daemon_takes_up_what_another_one_decided(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with world(tmp_path) as colonies:
            ant, bee = await friends(colonies, "ant", "bee")
            other = Peers(colonies.client, ant.fed.keys, Signer(ant.key, SigningClock()))
            await other.load()
            await other.block(bee.key.id)
            assert tended(ant) == 1
            await ant.fed._keep_clock()
            entry = ant.fed.peers.find(bee.key.id)
            assert entry.peer.state == BLOCKED
            await ant.fed.revocation.wait(entry)

            async def over() -> bool:
                return tended(ant) == 0

            await until(20, over)


async def test_trust_goes_on_when_the_sweep_of_the_block_writes_meanwhile(
    client: EtcdClient,
) -> None:
    store, one, other, key = await two(client)
    await one.block(key.id)
    await other.look_again()
    store.first = lambda: other.ended(key.id)
    entry = await one.trust(key.id, Policy(max_running=5))
    assert not other.find(key.id).peer.ending, "it wrote in between"
    assert (entry.peer.state, one.state(key.id)) == (TRUSTED, TRUSTED)
    there = await stored(one, key)
    assert (there.state, there.policy) == (TRUSTED, Policy(max_running=5))


# -- our card ----------------------------------------------------------------------------


class Failing:
    """A store that fails at one write."""

    def __init__(self, client: EtcdClient) -> None:
        self._client, self.fails = client, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def put(self, key: str, value: bytes) -> int:
        if self.fails:
            self.fails = False
            raise EtcdUnavailable("no answer")
        return await self._client.put(key, value)


async def portrayed(client: EtcdClient) -> tuple[Failing, OwnCard]:
    store, signer = Failing(client), Signer(PrivateKey.generate(), SigningClock())
    settings = FederationConfig(host="one.example")
    meddled, keys, nobody = cast(EtcdClient, store), Keys("ant"), cast(Any, None)
    own_card = OwnCard(Context("ant", signer, meddled, nobody, nobody, keys), settings)
    await own_card.start(1, "f" * 64)
    return store, own_card


def shown(own_card: OwnCard) -> Card:
    return open_card(own_card.card(), time.time())


async def test_a_card_that_could_not_be_renewed_is_renewed_at_the_next_call(
    client: EtcdClient,
) -> None:
    store, own_card = await portrayed(client)
    first = shown(own_card)
    own_card.settings = FederationConfig(host="two.example")
    store.fails = True
    with pytest.raises(EtcdUnavailable):
        await own_card.moved()
    assert await own_card.moved()
    assert not await own_card.moved()
    second = shown(own_card)
    assert second.sequence > first.sequence
    assert second.endpoints == ["two.example:1"]
    store.fails = True
    with pytest.raises(EtcdUnavailable):
        await own_card.polls(["9" * 64])
    assert await own_card.moved(), "whichever comes next"
    third = shown(own_card)
    assert third.sequence > second.sequence
    assert third.mailboxes == ["9" * 64]
    assert not await own_card.polls(["9" * 64])


async def test_a_card_is_by_the_present_key(client: EtcdClient) -> None:
    store, own_card = await portrayed(client)
    assert shown(own_card).id == own_card.context.signer.key.id
    new = PrivateKey.generate()
    own_card.context.signer.succeed(new)
    store.fails = True
    with pytest.raises(EtcdUnavailable):
        await own_card.renew()
    assert shown(own_card).id == new.id
    before = own_card.sequence
    assert await own_card.moved()
    assert own_card.sequence > before


# -- leftovers ---------------------------------------------------------------------------


async def test_a_sweep_goes_on_where_the_last_one_ended(client: EtcdClient) -> None:
    processes, federated = Processes(client, Clock(time.time_ns)), Keys("ant")
    conditions = Conditions("ant", executortype="t")
    there = [f"1{number:063x}" for number in range(5)]
    for pid in there:
        spec = FunctionSpec(funcname="f", conditions=conditions)
        process = build_process(
            spec, processid=pid, initiatorid=ME, initiatorname="me",
            colonyname="ant", now=time.time_ns(),
        )  # fmt: skip
        await processes.submit(process, b"")
    gone = [f"2{number:063x}" for number in range(4)]
    for pid in (*there, *gone):
        await client.put(federated.proof(pid), b"proof")
    signer = Signer(KEY, SigningClock())
    peers = Peers(client, federated, signer)
    janitor = Janitor(Context("ant", signer, client, processes, peers, federated), page=2, pages=2)

    async def left() -> list[str]:
        items, _ = await client.range_all(federated.proofs)
        return [item.key.removeprefix(federated.proofs) for item in items]

    await janitor.sweep()
    assert await left() == [*there, *gone], "it got through what has its process"
    await janitor.sweep()
    await janitor.sweep()
    assert await left() == there
    # And from the beginning again.
    await client.put(federated.proof("0" * 64), b"proof")
    await janitor.sweep()
    await janitor.sweep()
    assert await left() == there


# -- files -------------------------------------------------------------------------------


async def test_a_second_daemon_serves_the_files_of_what_the_first_one_sent(tmp_path: Path) -> None:
    async with furnished(tmp_path, "ant", "bee") as colonies:
        ant, bee = colonies.values()
        file = await put(ant, "/data", "f", b"bytes")
        pid = await ant.submit("bee", fs=mounts("/data"))
        await take(bee)
        fed, first = ant.fed, ant.fed.outbox
        outbox = Outbox(fed.context, fed.router)
        file_transfer = FileTransfer(
            fed.context, outbox, fed.inbox.peer_quotas, fed.connections, fed.file_transfer.files
        )

        def asked(by: str, attempt: int = 1) -> VerifiedMessage:
            fetch = dump(Fetch(pid, attempt, file.checksum, 0))
            return VerifiedMessage(by, ant.key.id, b"", 0, 0, fetch, b"")

        async def served(opened: VerifiedMessage) -> bytes:
            sealed = await file_transfer.serve(opened, b"")
            return load(inspect(sealed, limit=len(sealed)).payload, Chunk).data

        assert await served(asked(bee.key.id)) == b"bytes"
        # Read before the first daemon sent it.
        (entry,) = first.entries.values()
        early = Forward(pid, bee.key.id, 1, 0, 0, 0)
        outbox.entries[pid] = OutboxEntry(early, 1)
        assert await served(asked(bee.key.id)) == b"bytes"
        assert outbox.entries[pid].forward is early
        assert entry.forward.envelope
        for opened in (asked("9" * 64), asked(bee.key.id, 2)):
            with pytest.raises(Refusal, match="no such process"):
                await file_transfer.serve(opened, b"")

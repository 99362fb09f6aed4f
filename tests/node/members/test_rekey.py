"""Changes of ids on real nodes: the old key is out, the new one goes on with the work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from colonyd.errors import RpcError as Refusal
from colonyd.errors import Unavailable
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError
from node.etcd.client import open_client
from node.etcd.txn import Txn
from node.host.clock import Clock
from node.model.codec import unpack
from node.model.types import (
    Colony,
    Conditions,
    Executor,
    ExecutorState,
    FunctionSpec,
    Process,
    State,
    User,
)
from node.processes.queue import Candidate
from node.runtime.node import Node
from node.store import crons, generators, keys
from node.store.crons import Cron
from node.store.generators import Generator
from node.timers.trigger import may_start
from tests.node.etcd.support import start_store
from tests.sdk.support import COLONY, Party
from tests.support.clocked import workflow
from tests.support.daemons import Daemon, until
from tests.support.pairs import two_daemons


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    with two_daemons(tmp_path_factory.mktemp("p"), COLONY) as pair:
        yield pair


async def refused(status: int, client: RpcClient, *call: Any) -> str:
    with pytest.raises(RpcError) as caught:
        await client.call(*call)
    assert caught.value.status == status, caught.value
    return caught.value.message


async def allowed(client: RpcClient, *call: Any) -> bool:
    """Make a call; False when the caller has no right to it, at this daemon not yet."""
    try:
        await client.call(*call)
    except RpcError as error:
        if error.status != 403:
            raise
        return False
    return True


async def heard_at(daemon: Daemon, name: str) -> str:
    """When a daemon last heard from an executor: it says that a poll has arrived."""
    async with daemon.client() as client:
        named = {"colonyname": COLONY, "executorname": name}
        executor = await client.call("getexecutormsg", named, daemon.key("user"))
        return str(executor["lastheardfromtime"])


async def test_an_executor_goes_on_with_its_work(pair: tuple[Daemon, Daemon]) -> None:
    in_thread = trio.to_thread.run_sync
    party, there = Party(pair[0]), Party(pair[1])
    await in_thread(party.join)
    process = await in_thread(party.submit)
    await in_thread(party.assign)
    old, new = PrivateKey.from_hex(party.key), PrivateKey.generate()
    ended = trio.Event()

    async def poll() -> None:
        """The old key waits for work at the other daemon."""
        with pytest.raises(Exception, match="no longer an approved executor"):
            await in_thread(there.colonies.assign, COLONY, 30, old.hex)
        ended.set()

    change = {"colonyname": COLONY, "executorid": new.id}
    async with pair[0].client() as client, trio.open_nursery() as nursery:
        before = await heard_at(pair[1], party.name)
        nursery.start_soon(poll)

        async def waits() -> bool:
            return await heard_at(pair[1], party.name) != before

        await until(50, waits)
        reply = await client.call("changeexecutoridmsg", change, old)
        assert reply == {**change, "msgtype": "changeexecutoridmsg"}
        running = await in_thread(party.colonies.get_process, process.processid, party.user)
        assert (running.state, running.assignedexecutorid) == (1, new.id)
        done = {"processid": process.processid, "out": ["x"]}
        await refused(403, client, "closesuccessfulmsg", done, old)
        await refused(403, client, "changeexecutoridmsg", change, old)
        # The other daemon knows, too: its watch is soon there.
        async with pair[1].client() as other:
            await until(50, partial(allowed, other, "closesuccessfulmsg", done, new))
        # What comes now is not for a poll of the old key.
        later = await in_thread(party.submit)
        party.key = new.hex
        await ended.wait()
        assert (await in_thread(party.assign)).processid == later.processid
    closed = await in_thread(party.colonies.get_process, process.processid, party.user)
    assert (closed.state, closed.output, closed.assignedexecutorid) == (2, ["x"], new.id)


async def test_a_user_goes_on_under_another_id(pair: tuple[Daemon, Daemon]) -> None:
    party = Party(pair[0])
    old, new = PrivateKey.generate(), PrivateKey.generate()
    owner = pair[0].key("colony")
    name = f"u-{old.id[:8]}"
    user = {"colonyname": COLONY, "userid": old.id, "name": name}
    async with pair[0].client() as client:
        await client.call("addusermsg", {"user": user}, owner)
        await trio.to_thread.run_sync(party.join)
        change = {"colonyname": COLONY, "userid": new.id}
        for status, key, wrong in (
            (400, old, {"userid": "ab"}),
            (400, old, {"userid": new.id.upper()}),
            (400, old, {"userid": new.id + "\n"}),
            (409, old, {"userid": party.id}),
            (409, old, {"userid": pair[0].key("user").id}),
            (403, old, {"colonyname": "elsewhere"}),
            (403, PrivateKey.generate(), {}),
            (403, PrivateKey.from_hex(party.key), {}),
            (403, owner, {}),
        ):
            await refused(status, client, "changeuseridmsg", {**change, **wrong}, key)
        await refused(
            403, client, "changeexecutoridmsg", {"colonyname": COLONY, "executorid": new.id}, old
        )
        reply = await client.call("changeuseridmsg", change, old)
        assert reply == {**change, "msgtype": "changeuseridmsg"}
        found = await client.call("getusermsg", {"colonyname": COLONY, "name": name}, new)
        assert found["userid"] == new.id
        await refused(403, client, "getusermsg", {"colonyname": COLONY, "name": name}, old)


async def test_a_hosted_colony_changes_hands_and_the_home_one_does_not(
    pair: tuple[Daemon, Daemon],
) -> None:
    server, home = pair[0].key("server"), pair[0].key("colony")
    old, new, third = (PrivateKey.generate() for _ in range(3))
    name = f"c-{old.id[:8]}"
    async with pair[0].client() as client:
        await client.call("addcolonymsg", {"colony": {"colonyid": old.id, "name": name}}, server)
        change = {"colonyname": name, "colonyid": new.id}
        user = {"colonyname": name, "userid": "0" * 64, "name": "ann"}
        await refused(400, client, "changecolonyidmsg", {**change, "colonyid": "x"}, old)
        await refused(409, client, "changecolonyidmsg", {**change, "colonyid": home.id}, old)
        await refused(403, client, "changecolonyidmsg", change, new)
        reply = await client.call("changecolonyidmsg", change, old)
        assert reply == {**change, "msgtype": "changecolonyidmsg"}
        await refused(403, client, "addusermsg", {"user": user}, old)
        await client.call("addusermsg", {"user": user}, new)
        why = await refused(
            409, client, "changecolonyidmsg", {"colonyname": COLONY, "colonyid": third.id}, home
        )
        assert "keys/colony.key" in why
        await client.call("removecolonymsg", {"colonyname": name}, server)


async def test_the_server_changes_hands_for_good(pair: tuple[Daemon, Daemon]) -> None:
    old, new = pair[0].key("server"), PrivateKey.generate()
    async with pair[0].client() as client, pair[1].client() as other:
        await refused(400, client, "changeserveridmsg", {"serverid": "x"}, old)
        await refused(403, client, "changeserveridmsg", {"serverid": new.id}, new)
        reply = await client.call("changeserveridmsg", {"serverid": new.id}, old)
        assert reply == {"serverid": new.id, "msgtype": "changeserveridmsg"}
        await refused(403, client, "getstatisticsmsg", {}, old)
        await client.call("getstatisticsmsg", {}, new)
        await until(50, partial(allowed, other, "getstatisticsmsg", {}, new))
        await refused(403, other, "getstatisticsmsg", {}, old)
    await trio.to_thread.run_sync(pair[1].stop)
    await trio.to_thread.run_sync(pair[1].start)
    async with pair[1].client() as other:
        await refused(403, other, "getstatisticsmsg", {}, old)
        await other.call("changeserveridmsg", {"serverid": old.id}, new)


async def test_more_work_than_a_transaction_holds_moves_in_parts(
    nursery: trio.Nursery, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut off before its end, the change is as if it had not been: the old key asks again."""
    running = await start_store(nursery, tmp_path_factory.mktemp("s") / "etcd")
    old, new = "a" * 64, "b" * 64
    async with open_client(running.target) as client:
        node = Node.build(client, "home", Clock(lambda: 10**18))
        await node.members.add_colony(Colony("0" * 64, "c"))
        await node.members.add_executor(Executor(old, "t", "worker", "c"))
        await node.members.set_state("c", "worker", ExecutorState.APPROVED)
        executor = node.members.executor("c", "worker")
        candidate = Candidate("c", "t", "worker")
        ids = [f"p{number:03d}" for number in range(130)]
        for number, processid in enumerate(ids):
            # Some are large: their number is not the only limit.
            args = ["x" * 200_000] if number % 10 == 0 else []
            spec = FunctionSpec(args=args, conditions=Conditions(executortype="t"))
            await node.processes.submit(Process(processid, "i", "i", "c", spec, 0, 0), b"")
            await node.assigner.assign(candidate, executor, 0)
        commit, commits = client.commit, 0

        async def dying(txn: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits == 3:
                raise Unavailable("cut off")
            return await commit(txn)

        client.commit = dying  # type: ignore[method-assign]
        with pytest.raises(Refusal, match="cut off"):
            await node.identities.change_executor("c", old, new)
        assert node.members.executor("c", "worker").executorid == old
        moved = len(node.processes.running.of_executor("c", new))
        assert 0 < moved < 130
        client.commit = commit  # type: ignore[method-assign]
        await node.identities.change_executor("c", old, new)
        assert node.members.executor("c", "worker").executorid == new
        assert sorted(node.processes.running.of_executor("c", new)) == ids
        assert node.processes.running.of_executor("c", old) == []
        for processid in ids:
            await node.processes.close("c", processid, new, State.SUCCESSFUL)
        with pytest.raises(Refusal, match="no longer"):
            node.identities.present(executor)


@pytest.fixture
async def node(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Node]:
    """A node that hosts the colony `c`, with ann in it and an executor called worker."""
    running = await start_store(nursery, tmp_path / "etcd")
    async with open_client(running.target) as client:
        node = Node.build(client, "home", Clock(lambda: 10**18))
        await node.members.add_colony(Colony(OWNER, "c"))
        await node.members.add_user(User("c", ANN, "ann"))
        await node.members.add_executor(Executor(WORKER, "t", "worker", "c"))
        await node.members.set_state("c", "worker", ExecutorState.APPROVED)
        yield node


OWNER, ANN, WORKER, NEW = "0" * 64, "a" * 64, "b" * 64, "d" * 64
MAKERS = ((OWNER, "colony/c"), (ANN, "ann"), (WORKER, "worker"))


async def timed(node: Node, identity: str, name: str, number: int) -> None:
    """A cron and a generator that a member made."""
    text = workflow(colony="c")
    cron = Cron("", "c", f"cron {name} {number}", identity, name, interval=3600)
    await node.crons.add(cron, text)
    made = Generator("", "c", f"generator {name} {number}", identity, name, 5)
    await node.generators.add(made, text)


async def makers(node: Node) -> dict[str, tuple[str, int]]:
    """Whose each cron and generator is, and the revision of that."""
    found: dict[str, tuple[str, int]] = {}
    for prefix in (crons.prefix("c"), generators.prefix("c")):
        for item in (await node.client.range_all(prefix))[0]:
            it: Any = unpack(item.value, Cron if prefix == crons.prefix("c") else Generator)
            found[it.name] = (it.initiatorid, item.mod_revision)
    return found


@pytest.mark.parametrize("number", range(3))
async def test_crons_and_generators_follow_their_maker_in_one_transaction(
    node: Node, number: int
) -> None:
    _, name = MAKERS[number]
    for identity, called in MAKERS:
        await timed(node, identity, called, 0)
    change, place = (
        (partial(node.identities.change_colony, "c", NEW), keys.colony("c")),
        (partial(node.identities.change_user, "c", ANN, NEW), keys.user("c", "ann")),
        (partial(node.identities.change_executor, "c", WORKER, NEW), keys.executor("c", "worker")),
    )[number]
    await change()
    member = await node.client.get(place)
    assert member is not None
    for identity, called in MAKERS:
        for what in ("cron", "generator"):
            now_is, revision = (await makers(node))[f"{what} {called} 0"]
            assert now_is == (NEW if called == name else identity)
            assert (revision == member.mod_revision) == (called == name)
            kind = await getattr(node, f"{what}s").find("c", f"{what} {called} 0")
            assert may_start(node.directory, "c", kind.initiatorid, kind.initiatorname)


@pytest.mark.parametrize("number", [1, 2])
async def test_more_than_fit_go_before_and_what_comes_meanwhile_after(
    node: Node, number: int
) -> None:
    old, name = MAKERS[number]
    for each in range(40):
        await timed(node, old, name, each)
    change = (node.identities.change_user, node.identities.change_executor)[number - 1]
    place = (keys.user("c", "ann"), keys.executor("c", "worker"))[number - 1]
    commit, sizes, added = node.client.commit, list[int](), list[str]()

    async def watched(txn: Txn) -> Any:
        if txn.compare:
            sizes.append(len(txn.success))
        if not added and place in {getattr(op, "key", None) for op in txn.success}:
            added.append(name)
            await timed(node, old, name, 99)
        return await commit(txn)

    node.client.commit = watched  # type: ignore[method-assign]
    await change("c", old, NEW)
    assert max(sizes) <= 27
    found = await makers(node)
    assert len(found) == 82
    assert {identity for identity, _ in found.values()} == {NEW}


async def test_one_that_changes_all_the_time_follows_too(node: Node) -> None:
    await timed(node, ANN, "ann", 0)
    (made,) = node.generators.listing("c", 9)
    packed = 0

    async def pack() -> None:
        nonlocal packed
        while True:
            await node.generators.pack("c", made.generatorid, "x")
            packed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pack)
        while packed < 20:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await node.identities.change_user("c", ANN, NEW)
        nursery.cancel_scope.cancel()
    after = await node.generators.get("c", made.generatorid)
    assert after.initiatorid == NEW
    assert after.queuesize >= packed

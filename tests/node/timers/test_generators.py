"""Generators: arguments in order and exactly once each, by number and by time; what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.errors import RpcError
from node.etcd.client import TxnResult
from node.etcd.errors import EtcdError
from node.etcd.txn import Put, Txn
from node.model.types import SECOND
from node.store import generators as store
from node.store.generators import Generator, GeneratorFiring, Packing
from node.timers.generators import REMEMBERED, decide, due
from node.timers.trigger import LATER
from node.workflows.spec import read_workflow
from tests.node.timers.support import generator
from tests.support.clocked import ANN, NOON, World, below, workflow, world
from tests.support.daemons import until

# -- what is decided ---------------------------------------------------------------------


class Model:
    """A queue as a list: what comes, and what must start when."""

    def __init__(self, trigger: int, timeout: int) -> None:
        self.trigger, self.timeout = trigger, timeout
        self.waiting: list[tuple[int, int]] = []

    def fire(self, now: int) -> list[int]:
        """The numbers of the arguments that one workflow takes now."""
        if len(self.waiting) >= self.trigger:
            taken = self.waiting[: self.trigger]
        elif (
            self.waiting and self.timeout > 0 and now >= self.waiting[0][1] + self.timeout * SECOND
        ):
            taken = self.waiting
        else:
            taken = []
        self.waiting = self.waiting[len(taken) :]
        return [number for number, _ in taken]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(-1, 5),
    st.lists(
        st.one_of(
            st.tuples(st.just("pack"), st.integers(1, 7)),
            st.tuples(st.just("wait"), st.integers(0, 4)),
            st.tuples(st.just("look"), st.just(0)),
        )
    ),
)
def test_the_queue_is_a_list(trigger: int, timeout: int, steps: list[tuple[str, int]]) -> None:
    """Through the store's own values: each argument once, in order, when the model says so."""
    model = Model(trigger, timeout)
    queue = generator(generatorid="g" * 64, trigger=trigger, timeout=timeout)
    now, number, times, graphs = NOON, 0, list[int](), set[str]()
    for what, amount in steps:
        if what == "wait":
            now += amount * SECOND
        elif what == "pack":
            packings = [Packing(str(number + more), "") for more in range(amount)]
            queue, _ = store.enqueue(queue, 1, packings, now)
            model.waiting += [(number + more, now) for more in range(amount)]
            times += [now] * amount
            number += amount
        else:
            firing = decide(queue, now)
            taken = list(range(queue.head, firing.upto)) if firing is not None else []
            assert taken == model.fire(now)
            if firing is not None:
                assert firing.graphid not in graphs
                graphs.add(firing.graphid)
                queue, _ = store.fire(queue, 1, firing, ())
                assert due(queue) == 0
                oldest = times[firing.upto] if firing.upto < number else 0
                queue, _ = store.fired(queue, 1, oldest, ())
        moment = due(queue)
        assert (decide(queue, now) is not None) == (moment is not None and moment <= now)
        if moment is not None:
            assert decide(queue, moment or now) is not None
        assert queue.queuesize == len(model.waiting)


# -- on a store --------------------------------------------------------------------------


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.start()
        await made.node.leader.elected()
        yield made


async def pack(dev: World, added: Generator, *args: str) -> None:
    for arg in args:
        await dev.node.generators.pack("dev", added.generatorid, arg)


async def taken(dev: World) -> list[Any]:
    """The arguments of the next process; nothing of them is left in the store then."""
    process = await dev.assign()
    await dev.close(process)
    return list(process.spec.args or [])


async def test_as_many_as_trigger_it_start_a_workflow(dev: World) -> None:
    spec = below("root") | {"args": ["replaced"], "kwargs": {"emptied": 1}}
    three = workflow(
        spec, below("other") | {"args": ["too"]}, below("child", "root") | {"args": ["kept"]}
    )
    added = await dev.node.generators.add(generator(), three)
    await pack(dev, added, *"abcdefgh")
    seen = []
    for _ in range(6):
        process = await dev.assign()
        seen.append((process.spec.nodename, process.spec.args, process.spec.kwargs))
        await dev.close(process)
    roots = [(name, args, kwargs) for name, args, kwargs in seen if name != "child"]
    for name in ("root", "other"):
        mine = sorted(args or [] for node, args, _ in roots if node == name)
        assert mine == [["a", "b", "c"], ["d", "e", "f"]]
    assert {str(kwargs) for _, _, kwargs in roots} == {"{}"}
    assert [args for name, args, _ in seen if name == "child"] == [["kept"]] * 2

    async def settled() -> bool:
        return (await dev.node.generators.get("dev", added.generatorid)).queuesize == 2

    await until(50, settled)
    now = await dev.node.generators.get("dev", added.generatorid)
    assert (now.firstpack, now.lastrun, now.firing) == (NOON, NOON, None)
    left, _ = await dev.client.range_all(store.args_prefix("dev", added.generatorid))
    assert len(left) == 2


async def test_time_counts_from_the_first_that_waits(dev: World) -> None:
    added = await dev.node.generators.add(generator(timeout=10), workflow())
    await pack(dev, added, "a", "b")
    dev.advance(4)
    await pack(dev, added, "c", "d")
    assert await taken(dev) == ["a", "b", "c"]
    dev.advance(9)
    await pack(dev, added, "e")
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    # Ten seconds after "d" came, not after the last run nor after "e".
    dev.advance(1)
    assert await taken(dev) == ["d", "e"]
    dev.advance(1000)
    await pack(dev, added, "f")
    dev.advance(9)
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    dev.advance(1)
    assert await taken(dev) == ["f"]


async def test_packs_at_the_same_time_keep_their_order_and_share_transactions(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=100), workflow())
    before = (await dev.client.status()).revision
    order: list[str] = []

    async def one(arg: str) -> None:
        order.append(arg)
        await pack(dev, added, arg)

    async with trio.open_nursery() as nursery:
        for number in range(120):
            nursery.start_soon(one, f"{number}")
    assert (await dev.client.status()).revision - before < 30
    first = await taken(dev)
    assert first == order[:100]
    await pack(dev, added, *(str(number) for number in range(120, 200)))
    assert await taken(dev) == order[100:] + [str(number) for number in range(120, 200)]
    assert dev.node.generators._lines == {}


async def test_packs_that_go_on_and_on_are_never_in_each_others_way(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=9999), workflow())
    key, commit = store.key("dev", added.generatorid), dev.client.commit
    lost = 0

    async def watched(txn: Txn) -> TxnResult:
        nonlocal lost
        result = await commit(txn)
        lost += not result.succeeded and any(
            isinstance(op, Put) and op.key == key for op in txn.success
        )
        return result

    dev.client.commit = watched  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(pack, dev, added, *(f"{name}{number}" for number in range(40)))
    assert lost == 0
    assert (await dev.node.generators.get("dev", added.generatorid)).queuesize == 120


async def test_a_pack_whose_caller_left_takes_no_other_with_it(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=2), workflow())
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def leaves() -> None:
            with scope:
                await pack(dev, added, "first", "never")

        async def stays() -> None:
            await pack(dev, added, "second")

        nursery.start_soon(leaves)
        nursery.start_soon(stays)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert sorted(await taken(dev)) == ["first", "second"]


async def test_two_daemons_pack_into_one_queue(dev: World) -> None:
    other = (await dev.start()).node
    added = await dev.node.generators.add(generator(trigger=40), workflow())

    async def many(node: Any, name: str) -> None:
        for number in range(20):
            await node.generators.pack("dev", added.generatorid, f"{name}{number}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(many, dev.node, "x")
        nursery.start_soon(many, other, "y")
    args = await taken(dev)
    for name in "xy":
        assert [arg for arg in args if arg[0] == name] == [f"{name}{n}" for n in range(20)]


async def test_a_repeat_of_a_request_packs_once(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=3), workflow())
    generators, key = dev.node.generators, added.generatorid
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(generators.pack, "dev", key, "a", "t1")
    await generators.pack("dev", key, "b", "t2")
    await generators.pack("dev", key, "a", "t1")
    # Another daemon does not remember; the store does.
    other = (await dev.start()).node
    await other.generators.pack("dev", key, "b", "t2")
    await other.generators.pack("dev", key, "c", "t3")
    assert await taken(dev) == ["a", "b", "c"]
    await generators.pack("dev", key, "b", "t2")
    assert (await generators.get("dev", key)).queuesize == 0
    dev.now += REMEMBERED + SECOND
    await generators.pack("dev", key, "d", "t4")
    await generators.sweep()
    left, _ = await dev.client.range_all(store.PACKED)
    assert [kv.key.rpartition("/")[2] for kv in left] == ["t4"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"trigger": 0}, workflow(), "generator.trigger: between 1"),
    ({"trigger": -1}, workflow(), "generator.trigger: between 1"),
    ({"trigger": 10**9}, workflow(), "generator.trigger: between 1"),
    ({"timeout": 10**12}, workflow(), "generator.timeout: at most"),
    ({"name": ""}, workflow(), "generator.name: between"),
    ({}, workflow(colony="other"), "generator.workflowspec.colonyname: 'other' is not"),
    ({}, "nonsense", "generator.workflowspec: "),
    ({"colonyname": "nowhere"}, workflow(colony="nowhere"), "generator.colonyname: 'nowhere'"),
]


async def test_what_is_refused(dev: World) -> None:
    generators = dev.node.generators
    for changes, spec, words in REFUSED:
        with pytest.raises(RpcError, match=words):
            await generators.add(generator(**changes), spec)
    assert generators.listing("dev", 9) == []
    added = await generators.add(generator(trigger=1000), workflow())
    assert await generators.add(added, workflow()) == added
    with pytest.raises(RpcError, match="exists already"):
        await generators.add(generator(), workflow())
    with pytest.raises(RpcError, match="arg: at most 12582 bytes, so that 1000 fit"):
        await pack(dev, added, "ü" * 6292)
    for unknown in ("f" * 64, f"../{added.generatorid}"):
        with pytest.raises(RpcError, match="no generator"):
            await generators.pack("dev", unknown, "x")


async def test_removal_takes_the_queue_along(dev: World) -> None:
    generators = dev.node.generators
    added = await generators.add(generator(), workflow())
    await generators.pack("dev", added.generatorid, "a", "token")
    await generators.remove("dev", added.generatorid)
    with pytest.raises(RpcError, match="no generator"):
        await pack(dev, added, "b")
    left, _ = await dev.client.range_all("/colonyd/")
    assert [kv.key for kv in left if added.generatorid in kv.key] == []
    again = await generators.add(generator(), workflow())
    await generators.pack("dev", again.generatorid, "a", "token")
    await dev.node.members.remove_colony("dev")
    left, _ = await dev.client.range_all("/colonyd/")
    assert [kv.key for kv in left if "generator" in kv.key or "packed" in kv.key] == []


async def test_a_great_workflow_holds_all_that_may_be_packed(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=8), workflow())
    args = [chr(97 + number) * (128 * 1024) for number in range(8)]
    await pack(dev, added, *args)
    assert await taken(dev) == args


# -- firings that were interrupted -------------------------------------------------------


@pytest.mark.parametrize("submitted", [False, True])
async def test_a_firing_that_was_written_down_takes_what_it_said(
    dev: World, submitted: bool
) -> None:
    """Killed after the first of three steps, or after the second; more came since."""
    added = await dev.node.generators.add(generator(trigger=4, timeout=5), workflow())
    await dev.stations[0].stop()
    node = dev.node
    await pack(dev, added, "a", "b")
    key = store.key("dev", added.generatorid)
    known = node.generators.index.get(key)
    assert known is not None
    firing = GeneratorFiring(store.graph_id(added.generatorid, 0), 2, NOON + 5 * SECOND)
    _, txn = store.fire(known[0], known[1], firing, ())
    result = await dev.client.commit(txn)
    node.generators.index.learn(
        key, msgspec.structs.replace(known[0], firing=firing), result.revision
    )
    if submitted:
        _, specs = read_workflow(workflow(), "x")
        await node.workflows.submit(
            "dev",
            specs,
            graphid=firing.graphid,
            initiatorid=ANN,
            initiatorname="ann",
            root_args=["a", "b"],
        )
    await pack(dev, added, "c", "d", "e", "f", "g")
    dev.stations.clear()
    await dev.start()
    assert await taken(dev) == ["a", "b"]
    assert await taken(dev) == ["c", "d", "e", "f"]
    dev.advance(5)
    assert await taken(dev) == ["g"]
    assert len(await dev.graphs()) == 3


async def test_one_that_was_struck_out_is_never_submitted_again(
    dev: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that slept before it submitted, and a graph that came and went meanwhile."""
    generators, sleeper = dev.node.generators, (await dev.start()).node.generators
    added = await generators.add(generator(trigger=2), workflow())
    key = store.key("dev", added.generatorid)
    generators.index.timer_queue.hold(key)
    await pack(dev, added, "a", "b")
    known = generators.index.get(key)
    assert known is not None
    firing = GeneratorFiring(store.graph_id(added.generatorid, 0), 2, NOON)
    half, txn = store.fire(known[0], known[1], firing, ())
    revision = (await dev.client.commit(txn)).revision
    generators.index.learn(key, half, revision)
    # Alone this compare must do; the fence of a daemon that leads no longer is tested below.
    sleeper.leader = dev.node.leader
    asleep, awake, read = trio.Event(), trio.Event(), sleeper._args

    async def slowly(*asked: Any) -> Any:
        found = await read(*asked)
        asleep.set()
        await awake.wait()
        return found

    async def struck_out() -> bool:
        return (await generators.get("dev", added.generatorid)).firing is None

    monkeypatch.setattr(sleeper, "_args", slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper._submit, key, half, revision, firing)
        await asleep.wait()
        generators.index.timer_queue.let_go(key)
        process = await dev.assign()
        await dev.close(process)
        await until(50, struck_out)
        await dev.node.workflows.remove("dev", process.processgraphid)
        awake.set()
    assert process.processgraphid == firing.graphid
    assert await dev.graphs() == []


async def test_a_refused_workflow_keeps_the_arguments(dev: World) -> None:
    generators = dev.node.generators
    added = await generators.add(generator(), workflow())
    spec = store.spec_key("dev", added.generatorid)
    await dev.client.put(spec, b'[{"nodename": "a", "funcname": "f"}]')
    await pack(dev, added, "a", "b", "c")

    async def tried() -> bool:
        return (await generators.get("dev", added.generatorid)).firing is not None

    await until(50, tried)
    await dev.stations[0].stop()
    await dev.client.put(spec, workflow().encode())
    dev.stations.clear()
    await dev.start()
    assert await taken(dev) == ["a", "b", "c"]


async def test_a_workflow_that_an_older_release_took_waits_like_any_refused_one(dev: World) -> None:
    generators = dev.node.generators
    added = await generators.add(generator(), workflow())
    kept = b'{"functionspecs": [{"nodename": "a", "funcname": "f", "fs": 5}]}'
    await dev.client.put(store.spec_key("dev", added.generatorid), kept)
    await pack(dev, added, "a", "b", "c")

    async def told() -> bool:
        return await generators.act(store.key("dev", added.generatorid)) == LATER

    await until(20, told)


async def test_who_left_starts_nothing_and_nothing_is_lost(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=1), workflow())
    await dev.node.members.remove_user("dev", "ann")
    await pack(dev, added, "a")
    with pytest.raises(RpcError, match="no process"):
        await dev.assign(0)
    assert (await dev.node.generators.get("dev", added.generatorid)).queuesize == 1


async def test_a_deposed_leader_fires_nothing(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=1), workflow())
    await dev.stations[0].stop()
    await pack(dev, added, "a")
    await dev.node.generators.act(store.key("dev", added.generatorid))
    assert await dev.graphs() == []
    assert (await dev.node.generators.get("dev", added.generatorid)).firing is None


async def test_what_the_store_does_not_take_is_told_to_each(dev: World) -> None:
    added = await dev.node.generators.add(generator(trigger=1), workflow())
    dev.client.close()
    failed: list[str] = []

    async def one(arg: str) -> None:
        try:
            await pack(dev, added, arg)
        except EtcdError:
            failed.append(arg)

    async with trio.open_nursery() as nursery:
        for arg in "abc":
            nursery.start_soon(one, arg)
    assert sorted(failed) == ["a", "b", "c"]

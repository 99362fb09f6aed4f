"""Two daemons change blueprints at once, and answers get lost: what the store holds then is whole.

Each race is made to happen: the other daemon acts between what one has read and its commit.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from colonyd.errors import RpcError
from node.blueprints.rules import BlueprintRequest, Initiator
from node.blueprints.service import Blueprints
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdUnavailable
from node.etcd.pages import whole
from node.host.clock import Clock
from node.model.ids import new_id
from node.model.types import Colony
from node.runtime.node import Node
from node.store import crons, keys
from node.store.blueprints import CLASSES, Blueprint, Definition, Handler, Metadata, Names
from tests.support.daemons import Daemon
from tests.support.interleaved import Meddled

WHO = Initiator("a" * 64, "ann")


class Pair:
    """The blueprints of two nodes on one store; `meddled` is the first one's client."""

    def __init__(self, client: EtcdClient, colony: str) -> None:
        self.client = client
        self.colony = colony
        self.nodes = [Node.build(client, "dev", Clock(time.time_ns)) for _ in range(2)]
        self.one, self.other = (node.blueprints for node in self.nodes)
        self.definitions = self.nodes[0].definitions
        self.meddled = Meddled(client)
        self.one.client = cast(EtcdClient, self.meddled)
        self.definitions.client = cast(EtcdClient, self.meddled)

    async def define(self) -> None:
        meta, handler = Metadata("def", self.colony), Handler("cli", "reconcile")
        await self.definitions.add(Definition("", "", meta, Names("Kind"), handler))

    def lamp(self, name: str = "lamp", **more: Any) -> BlueprintRequest:
        return BlueprintRequest("Kind", name, self.colony, **more)

    async def add(self, blueprints: Blueprints, name: str = "lamp", **more: Any) -> Blueprint:
        return await blueprints.add(self.lamp(name, **more), WHO)

    async def update(self, blueprints: Blueprints, name: str = "lamp", **more: Any) -> Blueprint:
        return await blueprints.update(self.lamp(name, **more), WHO, force=False)

    async def remove(self, blueprints: Blueprints, name: str = "lamp") -> None:
        await blueprints.remove(self.colony, name, WHO)

    async def get(self, name: str = "lamp") -> Blueprint:
        return await self.one.get(self.colony, name)

    async def crons(self) -> list[str]:
        # No watch feeds the index here.
        items, _ = await self.client.range_all(crons.prefix(self.colony))
        index = self.nodes[0].crons.index
        index.replace([(kv.key, kv.value, kv.mod_revision) for kv in items])
        return [cron.name for cron in self.nodes[0].crons.listing(self.colony, 99)]

    async def processes(self) -> int:
        return await self.client.count(keys.processes(self.colony))


@pytest.fixture
async def pair(lone_daemon: Daemon) -> AsyncIterator[Pair]:
    async with open_client(f"unix:{lone_daemon.home}/etcd/localhost:1") as client:
        pair = Pair(client, f"c{secrets.token_hex(4)}")
        await pair.nodes[0].members.add_colony(Colony(new_id(), pair.colony))
        await pair.define()
        yield pair


async def test_an_update_between_keeps_its_generation(pair: Pair) -> None:
    known = await pair.add(pair.one)

    async def first() -> None:
        await pair.update(pair.other, spec={"n": 1})

    pair.meddled.first = first
    updated = await pair.update(pair.one, spec={"n": 2})
    assert updated.metadata.generation == 3
    rows = await pair.one.history([pair.colony], known.blueprintid, 0)
    assert [(row.generation, row.spec) for row in rows] == [(3, {"n": 2}), (2, {"n": 1}), (1, {})]
    assert await pair.processes() == 3


async def test_a_status_between_is_not_undone(pair: Pair) -> None:
    await pair.add(pair.one)
    pair.meddled.first = lambda: pair.other.set_status(pair.colony, "lamp", {"on": True})
    await pair.update(pair.one, spec={"n": 1})
    known = await pair.get()
    assert (known.status, known.spec) == ({"on": True}, {"n": 1})

    async def first() -> None:
        await pair.update(pair.other, spec={"n": 2})

    pair.meddled.first = first
    await pair.one.set_status(pair.colony, "lamp", {"on": False})
    known = await pair.get()
    assert (known.status, known.spec) == ({"on": False}, {"n": 2})


async def test_the_last_two_that_go_at_once_take_the_cron_along(pair: Pair) -> None:
    await pair.add(pair.one, "a")
    await pair.add(pair.one, "b")
    assert len(await pair.crons()) == 1
    pair.meddled.first = lambda: pair.remove(pair.other, "b")
    await pair.remove(pair.one, "a")
    assert await pair.crons() == []


async def test_one_that_comes_while_the_last_one_goes_keeps_the_cron(pair: Pair) -> None:
    await pair.add(pair.one, "a")
    pair.meddled.first = lambda: pair.add(pair.other, "b")
    await pair.remove(pair.one, "a")
    assert len(await pair.crons()) == 1


async def test_one_that_comes_after_the_last_one_went_has_a_cron(pair: Pair) -> None:
    await pair.add(pair.one, "a")
    pair.meddled.first = lambda: pair.remove(pair.other, "a")
    await pair.add(pair.one, "b")
    assert len(await pair.crons()) == 1


async def test_the_first_two_that_come_at_once_share_a_cron(pair: Pair) -> None:
    pair.meddled.first = lambda: pair.add(pair.other, "b", location="HALL")
    await pair.add(pair.one, "a", location="hall")
    assert len(await pair.crons()) == 1
    found = await whole(pair.one.listing(pair.colony, "Kind", "Hall"))
    assert [blueprint.metadata.name for blueprint in found] == ["a", "b"]


async def test_a_move_and_a_removal_at_once_leave_the_right_crons(pair: Pair) -> None:
    await pair.add(pair.one, "a", location="hall")
    await pair.add(pair.one, "b", location="hall")
    pair.meddled.first = lambda: pair.remove(pair.other, "b")
    await pair.update(pair.one, "a", location="attic")
    assert await pair.crons() == ["reconcile-Kind-attic"]
    assert (await pair.get("a")).metadata.locationname == "attic"
    # Another way to write a location is the same place.
    await pair.update(pair.one, "a", location="Attic")
    assert len(await pair.crons()) == 1


async def test_the_same_name_twice_at_once_is_taken_once(pair: Pair) -> None:
    await pair.add(pair.one, "anchor")
    pair.meddled.first = lambda: pair.add(pair.other, spec={"n": 1})
    with pytest.raises(RpcError) as caught:
        await pair.add(pair.one, spec={"n": 2})
    assert caught.value.status == 409
    assert (await pair.get()).spec == {"n": 1}
    assert await pair.processes() == 2


async def test_a_definition_stays_while_one_of_its_kind_comes(pair: Pair) -> None:
    pair.meddled.first = lambda: pair.add(pair.other)
    with pytest.raises(RpcError) as caught:
        await pair.definitions.remove(pair.colony, "def")
    assert caught.value.status == 409
    assert (await pair.definitions.get(pair.colony, "def")).names.kind == "Kind"


async def test_none_comes_of_a_kind_that_goes(pair: Pair) -> None:
    pair.meddled.first = lambda: pair.nodes[1].definitions.remove(pair.colony, "def")
    with pytest.raises(RpcError, match="has no definition"):
        await pair.add(pair.one)
    assert await whole(pair.one.listing(pair.colony, "", "")) == []
    assert await pair.crons() == []


@pytest.mark.parametrize("force", [False, True])
async def test_a_reconciliation_whose_answer_was_lost_is_not_submitted_twice(
    pair: Pair, force: bool
) -> None:
    await pair.add(pair.one)
    processid = new_id()
    pair.meddled.lost = True
    with pytest.raises(EtcdUnavailable):
        await pair.one.reconcile(pair.colony, "lamp", WHO, force=force, processid=processid)
    again = await pair.other.reconcile(pair.colony, "lamp", WHO, force=force, processid=processid)
    assert again.processid == processid
    known = await pair.get()
    assert known.metadata.generation == 1 + force
    assert known.metadata.reconciledby == processid
    assert await pair.processes() == 2


async def test_an_update_whose_answer_was_lost_can_be_repeated(pair: Pair) -> None:
    await pair.add(pair.one)
    pair.meddled.lost = True
    with pytest.raises(EtcdUnavailable):
        await pair.update(pair.one, spec={"n": 1})
    updated = await pair.update(pair.one, spec={"n": 1})
    assert updated.metadata.generation == 2
    assert await pair.processes() == 2


async def test_a_blueprint_that_went_leaves_nothing(pair: Pair) -> None:
    await pair.add(pair.one, location="hall", blueprintid="mine", generation=5)
    await pair.update(pair.one, spec={"n": 1}, location="hall")
    await pair.remove(pair.one, "lamp")
    await pair.definitions.remove(pair.colony, "def")
    for name in CLASSES:
        assert await pair.client.count(f"{keys.ROOT}{name}/{pair.colony}/") == 0
    # The id may be used again: what follows from this one is not taken for the former's.
    await pair.define()
    again = await pair.add(pair.one, blueprintid="mine", generation=5)
    assert again.blueprintid == "mine"
    assert len(await pair.one.history([pair.colony], "mine", 0)) == 1
    assert await pair.processes() == 4


async def test_history_keeps_the_newest(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.store.blueprints.MAX_HISTORY", 3)
    known = await pair.add(pair.one)
    for n in range(5):
        await pair.update(pair.one, spec={"n": n})
    rows = await pair.one.history([pair.colony], known.blueprintid, 0)
    assert [row.generation for row in rows] == [6, 5, 4]

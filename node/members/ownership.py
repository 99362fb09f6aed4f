"""Ownership: crons and generators follow their member to another id, so that they still start.

`members.rekey` changes ids; `timers.trigger` decides who may start a workflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from node.etcd.client import EtcdClient
from node.etcd.txn import Compare, ModRevision, Op, Put, Txn
from node.model.codec import pack, unpack
from node.store import crons, generators
from node.store.crons import Cron
from node.store.generators import Generator

# Values moved in one transaction, beside its other operations: each takes one of 128.
TOGETHER = 25
_TRIES = 1000


@dataclass
class Handover:
    """The operations of one transaction that give crons and generators to another id."""

    compare: list[Compare] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)


async def prepare(client: EtcdClient, colony: str, old: str, new: str) -> Handover:
    """Return what joins the transaction that changes an id; more than fits there is moved before.

    A timer that was moved before its new id is known may not start in that moment. Raises
    EtcdError.
    """
    while len((found := await _read(client, colony, old, new)).ops) > TOGETHER:
        await _commit(client, found)
    return found


async def move_all(client: EtcdClient, colony: str, old: str, new: str) -> None:
    """Move the timers that were added while the id changed. Raises EtcdError."""
    for _ in range(_TRIES):
        found = await _read(client, colony, old, new)
        if not found.ops:
            return
        await _commit(client, found)


async def _read(client: EtcdClient, colony: str, old: str, new: str) -> Handover:
    """Return all timers of the old id in a colony."""
    found = Handover()
    kinds: tuple[tuple[str, type[Cron] | type[Generator]], ...] = (
        (crons.prefix(colony), Cron),
        (generators.prefix(colony), Generator),
    )
    for prefix, kind in kinds:
        items, _ = await client.range_all(prefix)
        for item in items:
            value = unpack(item.value, kind)
            if value.initiatorid == old:
                moved = msgspec.structs.replace(value, initiatorid=new)
                found.compare.append(ModRevision(item.key, item.mod_revision))
                found.ops.append(Put(item.key, pack(moved)))
    return found


async def _commit(client: EtcdClient, found: Handover) -> None:
    """Move some of them; a timer that changed meanwhile is looked at again."""
    await client.commit(Txn(found.compare[:TOGETHER], found.ops[:TOGETHER]))

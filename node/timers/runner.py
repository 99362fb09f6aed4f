"""What one daemon does by the clock for all that share a store: crons and generators.

Here it is decided who acts and on what; what acting means is in `crons` and `generators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.watch import Batch, Event, watch
from node.host.log import get_logger
from node.model.types import SECOND
from node.runtime.node import Node
from node.store import keys
from node.store.crons import CRONS
from node.timers.agenda import Index, follow
from node.timers.generators import REMEMBERED

T = TypeVar("T")

log = get_logger("timers")

_AGAIN = 1.0  # seconds until a store that did not answer is asked again
_TIMED = keys.ROOT + "timed/"


async def run(node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Keep the indexes of crons and generators, and act on them while this daemon leads.

    Runs until cancelled; started once the indexes are filled.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(_index, node)
        nursery.start_soon(node.leader.run)
        nursery.start_soon(_terms, node)
        task_status.started()


async def _terms(node: Node) -> None:
    """Act while this daemon leads; what is under way ends with its term."""
    while True:
        await node.leader.elected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, node)
            nursery.start_soon(_sweep, node)
            await node.leader.deposed()
            nursery.cancel_scope.cancel()


async def _follow(node: Node) -> None:
    while True:
        try:
            await node.retiming.begin_term()
            break
        except EtcdError as error:
            log.warning("timers begin later", error=error)
            await trio.sleep(_AGAIN)
    # Not by the wall clock: what it says after a step is looked at before anything follows from it.
    late = node.processes.clock.late
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, node.crons.index, late, node.crons.act)
        nursery.start_soon(follow, node.generators.index, late, node.generators.act)


async def _sweep(node: Node) -> None:
    while True:
        try:
            await node.generators.sweep()
        except EtcdError as error:
            log.warning("sweep later", error=error)
        await trio.sleep(REMEMBERED / SECOND / 2)


async def _index(
    node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    sender, receiver = trio.open_memory_channel[Batch](64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, node.client, sender)
        first = True
        async for batch in receiver:
            _take_in(node, batch)
            if first:
                first = False
                task_status.started()


async def _watch(client: EtcdClient, sender: trio.MemorySendChannel[Batch]) -> None:
    await watch(client, _TIMED, sender)


def _take_in(node: Node, batch: Batch) -> None:
    crons = [event for event in batch.events if event.key.startswith(CRONS)]
    others = [event for event in batch.events if not event.key.startswith(CRONS)]
    _apply(node.crons.index, batch.snapshot, crons)
    _apply(node.generators.index, batch.snapshot, others)


def _apply(index: Index[T], snapshot: bool, events: Sequence[Event]) -> None:
    if snapshot:
        index.replace([(e.key, e.value, e.mod_revision) for e in events if e.value is not None])
        return
    for event in events:
        index.apply(event.key, event.value, event.mod_revision)

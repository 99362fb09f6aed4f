"""The runner of timers: on the leader, it acts on crons and generators for all daemons of a store.

It decides who acts and on what; the actions are in `crons` and `generators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.watch import Event, WatchBatch, watch
from node.host.log import get_logger
from node.model.types import SECOND
from node.store import keys
from node.store.crons import CRONS
from node.timers.generators import REMEMBERED
from node.timers.retime import Retiming
from node.timers.timerqueue import TimerIndex, follow

T = TypeVar("T")

log = get_logger("timers")

_AGAIN = 1.0  # seconds until a store that did not answer is asked again
_TIMED = keys.ROOT + "timed/"


async def run(
    timed: Retiming, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep the indexes of crons and generators, and act on them while this daemon leads.

    Runs until cancelled; started once the indexes are filled.
    """
    async with trio.open_nursery() as nursery:
        await nursery.start(_index, timed)
        nursery.start_soon(timed.leader.run)
        nursery.start_soon(_terms, timed)
        task_status.started()


async def _terms(timed: Retiming) -> None:
    """Act while this daemon leads; actions under way end with its term."""
    while True:
        await timed.leader.elected()
        timed.crons.listed()  # an earlier term may have ended in the middle of a look
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, timed)
            nursery.start_soon(_sweep, timed)
            await timed.leader.deposed()
            nursery.cancel_scope.cancel()


async def _follow(timed: Retiming) -> None:
    while True:
        try:
            await timed.begin_term()
            break
        except EtcdError as error:
            log.warning("timers begin later", error=error)
            await trio.sleep(_AGAIN)
    # Not by the wall clock: its time after a step is checked before anything follows from it.
    late = timed.clock.late
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, timed.crons.index, late, timed.crons.act)
        nursery.start_soon(follow, timed.generators.index, late, timed.generators.act)


async def _sweep(timed: Retiming) -> None:
    while True:
        try:
            await timed.generators.sweep()
        except EtcdError as error:
            log.warning("sweep later", error=error)
        await trio.sleep(REMEMBERED / SECOND / 2)


async def _index(
    timed: Retiming, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    sender, receiver = trio.open_memory_channel[WatchBatch](64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, timed.client, sender)
        first = True
        async for batch in receiver:
            _take_in(timed, batch)
            if first:
                first = False
                task_status.started()


async def _watch(client: EtcdClient, sender: trio.MemorySendChannel[WatchBatch]) -> None:
    await watch(client, _TIMED, sender)


def _take_in(timed: Retiming, batch: WatchBatch) -> None:
    crons = [event for event in batch.events if event.key.startswith(CRONS)]
    others = [event for event in batch.events if not event.key.startswith(CRONS)]
    _apply(timed.crons.index, batch.snapshot, crons)
    _apply(timed.generators.index, batch.snapshot, others)


def _apply(index: TimerIndex[T], snapshot: bool, events: Sequence[Event]) -> None:
    if snapshot:
        index.replace([(e.key, e.value, e.mod_revision) for e in events if e.value is not None])
        return
    for event in events:
        index.apply(event.key, event.value, event.mod_revision)

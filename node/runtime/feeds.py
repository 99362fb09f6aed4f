"""Feeds of the indexes in memory: one watch for each prefix of the store, which begins with a
listing.

How a watch survives the store's absence is in `node.etcd.watch`.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from node.etcd.client import EtcdClient
from node.etcd.watch import WatchBatch, watch
from node.processes.service import Processes
from node.runtime.node import Node
from node.store import keys
from node.store.directory import Directory

# Seconds for which a start waits for the whole index of the queue, which nearly always suffices.
_WHOLE = 0.5


async def follow(
    node: Node, prefix: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Feed the index of `prefix` from the store, for ever.

    Reports started once it is filled; a long queue is then still being read.
    """
    sender, receiver = trio.open_memory_channel[WatchBatch](64)
    first, begun = True, trio.current_time()
    pages = keys.LIVE_ORDER if prefix == keys.LIVE else ()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, node.client, prefix, sender, pages)
        async for batch in receiver:
            take_in(node, prefix, batch)
            late = trio.current_time() > begun + _WHOLE
            if first and (not batch.more or (late and node.processes.reading.upto)):
                first = False
                task_status.started()


async def _watch(
    client: EtcdClient,
    prefix: str,
    sender: trio.MemorySendChannel[WatchBatch],
    pages: Sequence[str],
) -> None:
    await watch(client, prefix, sender, pages=pages)


def take_in(node: Node, prefix: str, batch: WatchBatch) -> None:
    """Apply a batch of the watch of `prefix` to its index."""
    if prefix == keys.paused(""):
        if batch.snapshot:
            there = {event.key[len(prefix) :] for event in batch.events}
            for name in node.assigner.paused - there:
                node.assigner.resume(name)
        for event in batch.events:
            name = event.key[len(prefix) :]
            if event.value is None:
                node.assigner.resume(name)
            else:
                node.assigner.paused.add(name)
        return
    if prefix == keys.SERVER:
        for event in batch.events:
            if event.key == prefix and event.value is not None:
                node.directory.serverid = event.value.decode()
        return
    index: Directory | Processes = node.directory if prefix == keys.MEMBERS else node.processes
    if batch.snapshot:
        items = [(e.key, e.value, e.mod_revision) for e in batch.events if e.value is not None]
        if prefix == keys.LIVE:
            _list(node, batch, items)
        else:
            node.directory.replace(items)
        if not batch.more:
            index.told = batch.revision + 1
    else:
        for event in batch.events:
            index.apply(event.key, event.value, event.mod_revision)
        # More changes of this revision may follow in the next batch.
        index.told = max(index.told, batch.events[-1].mod_revision)
    if prefix == keys.LIVE:
        node.remote_changes.hear(batch)


def _list(node: Node, batch: WatchBatch, items: Sequence[tuple[str, bytes, int]]) -> None:
    """Take in a batch of a snapshot of the live keys."""
    if batch.first:
        node.processes.begin_listing(batch.total, batch.revision)
    node.processes.list_some(items)
    if batch.ended == keys.QUEUE:
        node.processes.end_queue()
    if not batch.more:
        node.processes.end_listing()

"""Feeds of the indexes in memory: one watch for each prefix of the store, which begins with a
listing.

How a watch survives the store's absence is in `node.etcd.watch`.
"""

from __future__ import annotations

import trio

from node.etcd.client import EtcdClient
from node.etcd.watch import WatchBatch, watch
from node.processes.service import Processes
from node.runtime.node import Node
from node.store import keys
from node.store.directory import Directory


async def follow(
    node: Node, prefix: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Feed the index of `prefix` from the store, for ever."""
    sender, receiver = trio.open_memory_channel[WatchBatch](64)
    first = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, node.client, prefix, sender)
        async for batch in receiver:
            take_in(node, prefix, batch)
            if first:
                first = False
                task_status.started()


async def _watch(
    client: EtcdClient, prefix: str, sender: trio.MemorySendChannel[WatchBatch]
) -> None:
    await watch(client, prefix, sender)


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
    before = node.remote_changes.live() if batch.snapshot and prefix == keys.LIVE else set()
    if batch.snapshot:
        index.replace(
            [(e.key, e.value, e.mod_revision) for e in batch.events if e.value is not None]
        )
        index.told = batch.revision + 1
    else:
        for event in batch.events:
            index.apply(event.key, event.value, event.mod_revision)
        # More changes of this revision may follow in the next batch.
        index.told = max(index.told, batch.events[-1].mod_revision)
    if prefix == keys.LIVE:
        node.remote_changes.hear(batch, before)

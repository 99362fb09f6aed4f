"""Housekeeping of an etcd of our own: forgets overwritten values, gives space back, clears NOSPACE.

A cluster that others run is kept by them; what is worth keeping at all is decided by the store.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import Compacted, EtcdError
from node.log import get_logger

log = get_logger("etcd")

_WORTH_IT = 1000  # revisions: fewer are not worth a compaction, which costs writes to flash


async def maintain(
    client: EtcdClient, *, quota_bytes: int, interval: float = 30.0, hold: str = ""
) -> NoReturn:
    """Keep the store below its quota, looking every `interval` seconds, until cancelled.

    While there is a key `hold`, nothing is forgotten unless space runs out.

    History is kept for one to two intervals, which a paged listing has to be done in. etcd's own
    compaction, every five minutes at best, lets a busy queue fill the quota in between.
    """
    due = compacted = 0
    while True:
        try:
            status = await client.status()
            if await client.alarms():
                await _make_room(client, status.revision, quota_bytes)
                compacted = status.revision
            elif due - compacted >= _WORTH_IT and not (hold and await client.get(hold)):
                await _compact(client, due)
                compacted = due
            due = status.revision
            # etcd's quota is on the file, free pages included; rewriting it stops everything, so
            # it waits until it gives back a quarter of the quota.
            if status.db_size - status.db_in_use > quota_bytes // 4:
                log.info("store is defragmented", size=status.db_size, used=status.db_in_use)
                await client.defragment()
        except EtcdError as error:
            log.warning("store maintenance failed", because=error)
        await trio.sleep(interval)


async def _compact(client: EtcdClient, revision: int) -> None:
    try:
        await client.compact(revision)
    except Compacted:
        log.debug("store was compacted by others", revision=revision)


async def _make_room(client: EtcdClient, revision: int, quota_bytes: int) -> None:
    """Compact, defragment, and clear the alarm, in the order etcd demands, if that made room."""
    await _compact(client, revision)
    await client.defragment()
    status = await client.status()
    if status.db_size > quota_bytes * 9 // 10:
        log.error("store is full: delete or raise the quota", size=status.db_size)
        return
    await client.disarm()
    log.info("store has room again", size=status.db_size, quota=quota_bytes)

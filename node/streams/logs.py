"""Log lines: how they are written, and how a search goes through them, newest first.

The caller checks rights.
"""

from __future__ import annotations

from contextlib import aclosing

from node.etcd.client import EtcdClient
from node.etcd.pages import Pages, below, last_begin, numbered, oldest_first
from node.etcd.txn import Get, Put, Txn
from node.model.codec import pack, unpack
from node.model.errors import Invalid
from node.model.types import Log
from node.store import keys
from node.store.work import logs as store

# Lines that one search looks at: some seconds.
MAX_LOOKED_AT = 50_000
_PAGE = 50
_FIRST = 8  # lines that are read first: they may be long


async def write(client: EtcdClient, log: Log) -> None:
    """Store a line for its process, if it has one, for its executor, and for the search."""
    await client.commit(Txn([], puts(log)))


def puts(log: Log) -> list[Put]:
    """Return the operations that store a line, for a wider transaction."""
    place = keys.log_place(log.timestamp)
    data = pack(log)
    ops = [
        Put(keys.executor_logs(log.colonyname, log.executorname) + place, data),
        Put(store.place(log.colonyname, log.timestamp, log.executorname), b""),
    ]
    if log.processid:
        ops.append(Put(keys.process_logs(log.colonyname, log.processid) + place, data))
    return ops


async def lines(
    client: EtcdClient, prefix: str, count: int, *, since: int, now: int, latest: bool
) -> Pages[Log]:
    """Return at most `count` lines below a prefix that are newer than `since`, oldest first, in
    pages.

    These are the first such lines or, with `latest`, the last ones. Times in Unix ns. Raises
    EtcdError.
    """
    if count == 0:
        return
    found, skipped = oldest_first(client, prefix, now, since, limit=_PAGE, first=_FIRST), 0
    if latest:
        begin, there = await last_begin(client, prefix, now, since, count)
        found, skipped = below(client, prefix, start=numbered(prefix, begin)), max(0, there - count)
    async with aclosing(found) as pages:
        async for page in pages:
            part, skipped = page[skipped:], max(0, skipped - len(page))
            if part:
                yield [unpack(kv.value, Log) for kv in part[:count]]
            count -= len(part)
            if count <= 0:
                return


async def search(
    client: EtcdClient, colony: str, text: str, count: int, *, since: int, until: int
) -> list[Log]:
    """Return the newest `count` lines that contain `text`, newest first; times in Unix ns.

    Reads back only as far as it must. Raises Invalid when none of the newest `MAX_LOOKED_AT` lines
    has the text and there are more.
    """
    found: list[Log] = []
    looked_at = 0
    for number in range(until // store.BUCKET, since // store.BUCKET - 1, -1):
        prefix = store.bucket(colony, number)
        start: str | None = None
        while True:
            page = await client.range(prefix, limit=_PAGE, start=start, keys_only=True)
            places = [store.parse(kv.key) for kv in page.items]
            gets = [
                Get(keys.executor_logs(colony, name) + keys.log_place(timestamp))
                for timestamp, name in places
                if timestamp > since
            ]
            looked_at += len(gets)
            result = await client.commit(Txn([], gets)) if gets else None
            for kv in (kv for kvs in (result.responses if result else ()) for kv in kvs):
                line = unpack(kv.value, Log)
                if text in line.message:
                    found.append(line)
                    if len(found) == count:
                        return found
            if not page.more or len(gets) < len(places):
                break
            if looked_at >= MAX_LOOKED_AT:
                if found:
                    return found
                raise Invalid(
                    f"text: not in the newest {looked_at} lines; ask for fewer days, or for the"
                    " lines of one process or executor"
                )
            start = page.items[-1].key + "\0"
    return found

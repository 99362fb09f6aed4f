"""Log lines: how they are written, and how a search goes through them, newest first.

The caller checks rights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from colonyd.errors import Invalid
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.pages import (
    Pages,
    below,
    by_number,
    following,
    last_begin,
    numbered,
    oldest_first,
    values,
)
from node.etcd.txn import Put, Txn
from node.model.codec import pack, unpack
from node.model.types import SECOND, Log
from node.store import keys
from node.store.work import logs as store

# Lines that one search looks at: some seconds.
MAX_LOOKED_AT = 50_000
_PAGE = 50
_RECENT = 1_000 * SECOND  # ns before its end which a search reads from first
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
    client: EtcdClient,
    prefix: str,
    count: int,
    *,
    since: int,
    now: int,
    latest: bool,
    begins: Sequence[int] = (),
    last: int = 0,
) -> Pages[Log]:
    """Return at most `count` lines below a prefix that are newer than `since`, oldest first, in
    pages.

    These are the first such lines or, with `latest`, the last ones. The first line may have come
    at one of the times `begins`, the last one at `last`: that only makes it cheaper. Times in Unix
    ns. Raises EtcdError.
    """
    if count == 0:
        return
    skipped = 0
    if latest:
        begin, there = await last_begin(client, prefix, now, since, count, last=last)
        found, skipped = below(client, prefix, start=numbered(prefix, begin)), max(0, there - count)
    else:
        most = max(_PAGE, count)
        found = oldest_first(client, prefix, now, since, limit=most, first=_FIRST, begins=begins)
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
) -> Pages[Log]:
    """Return the newest `count` lines that contain `text`, newest first, in pages; times in Unix
    ns.

    Reads back only as far as it must, a page of lines at a time. Raises Invalid when none of the
    newest `MAX_LOOKED_AT` lines has the text and there are more.
    """
    left, most = count, _FIRST
    looked_at, span = 0, store.BUCKET - until % store.BUCKET + _RECENT
    for prefix, low, high in store.stretches(colony, since, until):
        before = looked_at
        places = by_number(client, prefix, low, high, span=span, limit=_PAGE)
        async with aclosing(places) as pages:
            async for page in pages:
                if looked_at >= MAX_LOOKED_AT:
                    if left < count:
                        return
                    raise Invalid(
                        f"text: not in the newest {looked_at} lines; ask for fewer days, or for the"
                        " lines of one process or executor"
                    )
                looked_at += len(page)
                async with aclosing(values(client, _names(colony, page), first=most)) as parts:
                    async for part in parts:
                        most = following(most, part)
                        found = [unpack(kv.value, Log) for kv in part]
                        hits = [line for line in found if text in line.message][:left]
                        left -= len(hits)
                        if hits:
                            yield hits
                        if not left:
                            return
        # The next bucket may be as full as this one.
        span = max(1, 4 * _PAGE * (high - low) // max(1, looked_at - before))


def _names(colony: str, places: Sequence[KeyValue]) -> list[str]:
    """Return the keys of the lines at places of the index."""
    known = [store.parse(kv.key) for kv in places]
    return [keys.executor_logs(colony, name) + keys.log_place(time) for time, name in known]

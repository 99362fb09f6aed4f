"""Pages of long listings: one page is in memory at a time, and other tasks run between pages.

Callers decide what a page is made of, and who may ask for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import trio

from node.etcd.batch import read
from node.etcd.client import EtcdClient, KeyValue
from node.etcd.errors import EtcdTooLarge
from node.etcd.walk import Walk

T = TypeVar("T")
# A reader that may leave one in the middle does so in `aclosing`.
Pages: TypeAlias = AsyncGenerator[list[T], None]
# The rows of an answer, page by page.
Rows: TypeAlias = Pages[Any]

ROOM = 1 << 20  # bytes of one page, as estimated from the page before it
LOOK = 1_000  # entries in memory that are looked at in one turn of the loop: some ms
_FIRST, _MOST = 8, 40  # keys of a first page, and of any page, that are asked for one by one
_MADE = 100  # things in memory that are made into rows in one turn
_KEYS = 500  # keys of any page of a range
_SPAN = 1_000_000_000  # how far the first range of numbers goes: a second, where they are ns
_WIDER = 16
_DIGITS = 20
_ALL = 1 << 62
_TOP = (1 << 63) - 1  # the largest time; as in `keys`


async def values(
    client: EtcdClient, names: Sequence[str], *, first: int = _FIRST
) -> Pages[KeyValue]:
    """Return the values of the keys `names`, in their order; keys that are gone are left out.

    Each page is of one moment, and of at most `first` keys before any size is known. Raises
    EtcdError.
    """
    at, most = 0, first
    while at < len(names):
        part = names[at : at + most]
        try:
            found = [kv for kv in await read(client, *part) if kv is not None]
        except EtcdTooLarge:
            if most == 1:
                raise
            most = max(1, most // 4)
            continue
        at += len(part)
        yield found
        most = following(most, found)


def following(most: int, page: Sequence[KeyValue], limit: int = _MOST) -> int:
    """Return how many keys the page after one of at most `most` keys has: what fits `ROOM`."""
    size = sum(len(kv.value) for kv in page)
    fitting = ROOM * len(page) // size if size else limit
    return max(1, min(limit, 2 * most, fitting))


async def below(
    client: EtcdClient,
    prefix: str,
    *,
    start: str | None = None,
    limit: int = 0,
    keys_only: bool = False,
    revision: int = 0,
    raw: bool = False,
) -> Pages[KeyValue]:
    """Return all keys with a prefix, in order, from `start` on, at most `limit` (0: all).

    All pages are as of `revision`, or each is of its own moment (0). `raw` as in
    `EtcdClient.range`. Raises EtcdError.
    """
    most, left = _KEYS if keys_only else _FIRST, limit or _ALL
    walk = Walk(prefix if start is None else start)
    while left and not walk.done:
        most = min(most, left)
        try:
            page = await client.range(
                prefix,
                limit=most,
                start=walk.start,
                end=walk.end,
                keys_only=keys_only,
                revision=revision,
                raw=raw,
            )
        except EtcdTooLarge:
            if most == 1:
                raise
            most = max(1, most // 4)
            continue
        if page.items:
            yield page.items
        left -= len(page.items)
        walk.took([kv.key for kv in page.items], page.count, more=page.more)
        if page.more:
            most = following(most, page.items, _KEYS)


async def by_number(
    client: EtcdClient,
    prefix: str,
    low: int,
    high: int,
    *,
    span: int = _SPAN,
    limit: int = _KEYS,
    first: int = 0,
) -> Pages[KeyValue]:
    """Return keys with a prefix and a number of 20 digits from `low` to before `high`, in order.

    A page has at most `limit` keys, the first ones at most `first` (0: `limit`) until a size is
    known. Each range that is read has an end, at first `span` after its begin, since etcd counts
    all keys of a range: so the keys behind a page do not add to its cost. Raises EtcdError.
    """
    start, most, seen = numbered(prefix, low), first or limit, 0
    while low < high:
        bound = min(high, low + span)
        try:
            page = await client.range(prefix, limit=most, start=start, end=numbered(prefix, bound))
        except EtcdTooLarge:
            if most == 1:
                raise
            most = max(1, most // 4)
            continue
        seen += len(page.items)
        if page.items:
            yield page.items
            most = following(most, page.items, limit)
        if page.more:
            last = page.items[-1].key
            start, low = last + "\0", number_of(last, prefix)
            span = max(1, bound - low)
            if page.count > 8 * limit:
                span, seen = max(1, span * 4 * limit // page.count), 0
        else:
            start, low = numbered(prefix, bound), bound
            if seen <= 2 * limit:
                span *= _WIDER if seen <= limit // 4 else 2
            seen = 0


async def newest_first(
    client: EtcdClient, prefix: str, now: int, since: int, *, limit: int = _KEYS
) -> Pages[KeyValue]:
    """Return keys with a prefix and a time as `keys.descending` writes it, after `since`
    (Unix ns).
    """
    near, end = _TOP - now, _TOP - max(since, -1)
    # Few or no keys are later than now: one range has them.
    for low, high, span in ((0, near, near), (near, end, _SPAN)):
        found = by_number(client, prefix, low, high, span=span, limit=limit)
        async with aclosing(found) as pages:
            async for page in pages:
                yield page


async def oldest_first(
    client: EtcdClient,
    prefix: str,
    now: int,
    since: int,
    *,
    limit: int = _KEYS,
    first: int = 0,
    begins: Sequence[int] = (),
) -> Pages[KeyValue]:
    """Return keys with a prefix and a time (Unix ns) in 20 digits, after `since`.

    Pages as of `by_number`. `begins` are times after which many keys may follow: ranges are short
    again there. Until the first of them few keys are expected, if `since` leaves none out.
    """
    low = max(0, since + 1)
    near = max(low, now)
    known = sorted({time for time in begins if low < time < near})
    # Few or no keys are later than now: one range has them.
    spans = [_TOP if known and not low else _SPAN, *(_SPAN for _ in known), _TOP]
    for high, span in zip([*known, near, _TOP + 1], spans, strict=True):
        found = by_number(client, prefix, low, high, span=span, limit=limit, first=first)
        async with aclosing(found) as pages:
            async for page in pages:
                yield page
        low = high


async def last_begin(
    client: EtcdClient, prefix: str, now: int, since: int, count: int, *, last: int = 0
) -> tuple[int, int]:
    """Return a time (Unix ns) from which on there are `count` keys or somewhat more, and how many.

    They are after `since`, and fewer if there are no more. Keys have a time in 20 digits after the
    prefix. Before the time `last`, if it is given, there may be many keys. No values are read.
    Raises EtcdError.
    """
    low = max(0, since + 1)

    async def there(begin: int) -> int:
        start, end = numbered(prefix, begin), numbered(prefix, _TOP + 1)
        page = await client.range(prefix, limit=1, start=start, end=end, keys_only=True)
        return page.count

    near, span = now, _SPAN
    late, begin = _TOP + 1, max(low, now)
    while (count_there := await there(begin)) < count and begin > low:
        late, begin = begin, max(low, near - span)
        span *= _WIDER
        if begin < last < late:
            begin, near, span = last, last, _SPAN
    while count_there > 2 * count and late - begin > 1:
        middle = (begin + late) // 2
        if (fewer := await there(middle)) < count:
            late = middle
        else:
            begin, count_there = middle, fewer
    return begin, count_there


def numbered(prefix: str, number: int) -> str:
    """Return the first key with a prefix and a number."""
    return f"{prefix}{number:0{_DIGITS}d}"


def number_of(key: str, prefix: str) -> int:
    """Return the number after a prefix."""
    return int(key[len(prefix) : len(prefix) + _DIGITS])


async def whole(pages: Pages[T]) -> list[T]:
    """Return everything of a short listing as one list."""
    return [each async for page in pages for each in page]


async def each(pages: Pages[T], row: Callable[[T], Any]) -> Rows:
    """Return a row for each thing of a listing, in pages."""
    async with aclosing(pages) as found:
        async for page in found:
            yield [row(thing) for thing in page]


async def in_memory(things: Sequence[T]) -> Pages[T]:
    """Return things in memory in pages: other tasks run while rows are made of them."""
    for start in range(0, len(things), _MADE):
        yield list(things[start : start + _MADE])
        await trio.lowlevel.checkpoint()

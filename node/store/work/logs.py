"""The index of a colony's log lines by time, newest first, which a search reads.

The lines themselves are under `keys.executor_logs`; the keys here have no value.
"""

from __future__ import annotations

from collections.abc import Iterator

from colonyd.names import in_key, of_key
from node.store import keys

# The span of a bucket in ns, some 2.8 hours.
BUCKET = 10**13
_TOP = (1 << 63) - 1
_TOP_BUCKET = _TOP // BUCKET


def bucket(colony: str, number: int) -> str:
    """Return the prefix of the lines of one bucket, newest first."""
    return f"{keys.ROOT}logtime/{colony}/{_TOP_BUCKET - number:06d}/"


def stretches(colony: str, since: int, until: int) -> Iterator[tuple[str, int, int]]:
    """Return the buckets of all lines after `since` (Unix ns), newest first: the prefix of each,
    and the number in its keys from which on and before which they are.

    Lines after `until` are in the first one, too: those of its bucket.
    """
    for number in range(until // BUCKET, since // BUCKET - 1, -1):
        begin, end = number * BUCKET, (number + 1) * BUCKET
        yield bucket(colony, number), _TOP - end + 1, _TOP - max(since, begin - 1)


def place(colony: str, timestamp: int, executorname: str) -> str:
    """Return the key of a line in the index; `timestamp` in Unix ns."""
    return f"{bucket(colony, timestamp // BUCKET)}{_TOP - timestamp:020d}/{in_key(executorname)}"


def until(colony: str, limit: int) -> tuple[str, str]:
    """Return the prefix of all lines of a colony, newest first, and the key where those up to
    `limit` (Unix ns) begin.
    """
    start = f"{bucket(colony, limit // BUCKET)}{_TOP - limit:020d}/"
    return f"{keys.ROOT}logtime/{colony}/", start


def parse(key: str) -> tuple[int, str]:
    """Return timestamp and executor name of a place."""
    *_, inverted, executorname = key.split("/")
    return _TOP - int(inverted), of_key(executorname)

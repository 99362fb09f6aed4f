"""The index of a colony's log lines by time, newest first, which a search reads.

The lines themselves are under `keys.executor_logs`; the keys here have no value.
"""

from __future__ import annotations

from node.model.names import in_key, of_key
from node.store import keys

# The span of a bucket in ns, some 2.8 hours: etcd counts every key of a range that it reads from,
# so a walk through all of a long history in one range would pay for all of it at each page.
BUCKET = 10**13
_TOP = (1 << 63) - 1
_TOP_BUCKET = _TOP // BUCKET


def bucket(colony: str, number: int) -> str:
    """Return the prefix of the lines of one bucket, newest first."""
    return f"{keys.ROOT}logtime/{colony}/{_TOP_BUCKET - number:06d}/"


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

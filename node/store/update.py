"""One value of the store is changed: read, changed, and written if nobody else wrote meanwhile.

What spans several values, or starts from what memory holds, is a transaction of its module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from node.etcd.client import EtcdClient
from node.etcd.txn import Compare, Get, ModRevision, Op, Put, Txn
from node.model.codec import pack, unpack
from node.model.errors import Conflict

__all__ = ["Unmet", "update"]

S = TypeVar("S")
T = TypeVar("T")


class Unmet(Exception):
    """A condition besides that on the value itself does not hold; nothing was written."""


async def update(
    client: EtcdClient,
    key: str,
    kind: type[S],
    change: Callable[[S | None], T],
    *,
    what: str,
    compare: Sequence[Compare] = (),
    ops: Sequence[Op] = (),
    tries: int = 8,
) -> tuple[T, int]:
    """Write what `change` makes of the value at `key`; return it, and the revision it has.

    `change` gets None where there is nothing, may return None or raise to leave all as it is, and
    is called again with the present value when somebody else wrote meanwhile. If it returned None,
    the revision is that of what is there, 0 for nothing. `ops` go along in the same transaction,
    which happens only if `compare` holds, too. Raises Unmet when that does not, Conflict that
    begins with `what` when all of so many `tries` came too late, and EtcdError.
    """
    found = await client.get(key)
    for _ in range(tries):
        revision = found.mod_revision if found is not None else 0
        value = change(unpack(found.value, kind) if found is not None else None)
        if value is None:
            return value, revision
        unchanged = ModRevision(key, revision)
        txn = Txn([unchanged, *compare], [Put(key, pack(value)), *ops], [Get(key)])
        result = await client.commit(txn)
        if result.succeeded:
            return value, result.revision
        found = next(iter(result.responses[0]), None)
        if (found.mod_revision if found is not None else 0) == revision:
            raise Unmet(f"{key}: a condition of its change does not hold")
    raise Conflict(f"{what} changes too fast; try again")

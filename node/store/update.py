"""The compare-and-swap of one value: read, changed, and written if no other writer was faster.

A change of several values, or from values in memory, is a transaction of its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from colonyd.errors import Conflict
from node.etcd.client import EtcdClient
from node.etcd.txn import Compare, Get, ModRevision, Op, Put, Txn
from node.model.codec import pack, unpack

__all__ = ["Unmet", "update"]

S = TypeVar("S")
T = TypeVar("T")


class Unmet(Exception):
    """A condition other than the one on the value itself does not hold; nothing was written."""


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
    """Write what `change` returns for the value at `key`; return that and its revision.

    `change` gets None where there is no value. It may return None or raise to leave the store as it
    is, and is called again with the present value after a lost race. If it returned None, the
    revision is that of the present value, 0 for none. `ops` join the transaction, which happens
    only if `compare` holds, too.

    Raises Unmet when `compare` does not hold, Conflict that begins with `what` after `tries` lost
    races, and EtcdError.
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

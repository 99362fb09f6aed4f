"""How far the history of a colony goes that a daemon wrote, as the store remembers it.

The history itself is in files of that daemon.
"""

from __future__ import annotations

from node.archive.chain import ChainHead
from node.etcd.txn import Put
from node.model.codec import pack
from node.store import keys


def head(colony: str, home: str) -> str:
    """The last record that the daemon with this home's id wrote for a colony."""
    return f"{keys.ROOT}history/{colony}/{home}"


def put_head(key: str, last: ChainHead) -> Put:
    """Remember it: history that ends before it has lost something."""
    return Put(key, pack(last))

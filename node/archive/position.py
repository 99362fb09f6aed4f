"""The position of a history: its last record, as the store remembers it for each colony and daemon.

The history itself is in files of that daemon.
"""

from __future__ import annotations

from node.archive.chain import ChainHead
from node.etcd.txn import Put
from node.model.codec import pack
from node.store import keys


def head(colony: str, home: str) -> str:
    """Return the key of the last record that the daemon with this home's id wrote for a colony."""
    return f"{keys.ROOT}history/{colony}/{home}"


def put_head(key: str, last: ChainHead) -> Put:
    """Store the last record: a history that ends before it has lost something."""
    return Put(key, pack(last))

"""What may be added to the transactions of a task, without the code that makes them knowing.

What is added, and why, is decided by who sets a guard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from node.etcd.txn import Txn

if TYPE_CHECKING:
    from node.etcd.client import TxnResult


class Guard(Protocol):
    """Sees each transaction of a task before it is sent, and may add to it."""

    async def commit(self, send: Callable[[Txn], Awaitable[TxnResult]], txn: Txn) -> TxnResult:
        """Send `txn`, perhaps with more in it, and give what its caller expects of it."""
        ...


# The guard of the present task's transactions, if it has one.
GUARD: ContextVar[Guard | None] = ContextVar("guard", default=None)

"""Guards of transactions: additions to all transactions of a task, unknown to the code that makes
them.

The code that sets a guard decides what is added.
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
        """Send `txn`, perhaps with additions, and return the result that its caller expects."""
        ...


# The guard of the present task's transactions, if it has one.
GUARD: ContextVar[Guard | None] = ContextVar("guard", default=None)

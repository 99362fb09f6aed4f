"""A store in which somebody else acts between what is read and what is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from node.etcd.client import EtcdClient, TxnResult
from node.etcd.errors import EtcdUnavailable
from node.etcd.txn import Txn


class Meddled:
    """A client for one commit of which something else happens first, or whose answer is lost."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self.first: Callable[[], Awaitable[object]] | None = None
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def commit(self, txn: Txn) -> TxnResult:
        if txn.compare and self.first is not None:
            first, self.first = self.first, None
            await first()
        result = await self._client.commit(txn)
        if txn.compare and self.lost:
            self.lost = False
            raise EtcdUnavailable("the answer is lost")
        return result

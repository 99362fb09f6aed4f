"""A node that follows a store in which others write."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import trio

from node.etcd.client import EtcdClient
from node.host.clock import Clock
from node.model.types import Executor, ExecutorState
from node.runtime import feeds as feeding
from node.runtime.node import Node
from node.store import keys
from node.streams import remote_changes as remote_changes
from tests.support.interleaved import Meddled
from tests.support.processes import enlist

WORKER = Executor("b" * 64, "t", "w", "dev", state=ExecutorState.APPROVED)


@asynccontextmanager
async def fed(client: EtcdClient) -> AsyncIterator[tuple[Node, Meddled]]:
    """A node that follows its store."""
    meddled = Meddled(client)
    node = Node.build(cast(EtcdClient, meddled), "dev", Clock(time.time_ns))
    enlist(node, WORKER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.remote_changes.run)
        await nursery.start(feeding.follow, node, keys.LIVE)
        yield node, meddled
        nursery.cancel_scope.cancel()

"""Fixtures for the tests of etcd: a supervised server and a client of it.

Helpers that are not fixtures are in `node.etcd.support`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from node.etcd.client import EtcdClient, open_client
from tests.node.etcd.support import Store, start_store


@pytest.fixture
async def store(nursery: trio.Nursery, tmp_path: Path) -> Store:
    return await start_store(nursery, tmp_path / "etcd")


@pytest.fixture
async def client(store: Store) -> AsyncIterator[EtcdClient]:
    async with open_client(store.target, timeout=60) as client:
        yield client

"""Checks against replay, taken out one by one: a test says what is then possible."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest

from colonyd.errors import RpcError
from node.etcd.client import EtcdClient
from node.etcd.txn import Absent, Compare
from node.model.types import SECOND
from node.rpc.dispatch import Table
from node.rpc.replay import ReplayGuard
from node.store import replay as store
from tests.node.rpc import test_replay as named

Patch = Callable[[pytest.MonkeyPatch], None]


def unknown_marker(patch: pytest.MonkeyPatch) -> None:
    """Two copies of a request have two markers."""
    marker = store.marker

    def other(identity: str, nonce: str, issued: float, **more: Any) -> str:
        return marker(identity, nonce + secrets.token_hex(4), issued, **more)

    patch.setattr(store, "marker", other)


def trusted_clock(patch: pytest.MonkeyPatch) -> None:
    """That a marker is not there is taken for that there was none."""

    def holds(span: int) -> Compare:
        return Absent(store.FLOOR + "never")

    patch.setattr(store, "kept", holds)


def far_floor(patch: pytest.MonkeyPatch) -> None:
    """Up to when markers were removed is told by the clock of who removed them."""

    async def sweep(self: ReplayGuard) -> None:
        if store.span(self.now() / SECOND) * store.SPAN > 2 * 10**9 + 10**5:
            await self.client.delete_prefix(store.MARKERS)
            await self.client.put(store.FLOOR, store.number(store.span(self.now() / SECOND)))

    patch.setattr(ReplayGuard, "sweep", sweep)


@pytest.mark.parametrize("patch", [unknown_marker, trusted_clock, far_floor])
async def test_the_test_of_time_notices(
    patch: Patch, client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, RpcError)):
        await named.test_markers_go_and_a_clock_that_is_set_back_brings_nothing_back(client)


def test_the_test_of_the_audience_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "_check_audience", lambda self, head: None)
    with pytest.raises(pytest.fail.Exception):
        named.test_what_is_signed_for_one_server_is_nothing_to_another()

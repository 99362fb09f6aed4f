"""Quotas, turns, schemas, room for files: without a check, the test that names it fails."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.errors import RpcError
from node.blueprints import schema
from node.files.blobs import BlobStore
from node.processes.quotas import Quotas
from node.rpc.dispatch import Table
from node.tasks.fairqueue import FairQueue
from tests.node.blueprints import test_schema as schemas
from tests.node.files import test_blobs as files
from tests.node.processes import test_quotas as quotas
from tests.support.noticing import Patch, must_notice


def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No quota is ever reached."""
    monkeypatch.setattr(Quotas, "require", lambda *_, **__: None)


def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being submitted is not counted."""
    monkeypatch.setattr(
        Quotas,
        "open",
        lambda self, colony, name="": self.queue.owners.get((colony, name), 0),
    )


def turnless(monkeypatch: pytest.MonkeyPatch) -> None:
    """One signer's calls are not bounded."""
    monkeypatch.setattr(FairQueue, "_full", lambda self, party: False)


def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had the right when a call came has it when the call's turn comes."""
    authorise = Table.authorise
    known: dict[str, Any] = {}

    def once(self: Table, call: Any, identity: str, request: Any, head: Any, envelope: Any) -> Any:
        key = head.nonce
        if key not in known:
            known[key] = authorise(self, call, identity, request, head, envelope)
        return known[key]

    monkeypatch.setattr(Table, "authorise", once)


def boundless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check may take as long as it likes."""
    monkeypatch.setattr(schema, "MAX_CHECKED", 10**9)


def all_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keywords that are not checked are not refused."""
    monkeypatch.setattr(schema, "_REFUSED", frozenset())


def announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A begun upload takes the room of all that it announces."""
    reserve = BlobStore._reserve

    def whole(self: BlobStore, upload: Any, size: int) -> None:
        reserve(self, upload, size)
        self.used += 500

    monkeypatch.setattr(BlobStore, "_reserve", whole)


def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member may have any number of unfinished uploads."""
    create = BlobStore.__init__

    def unbounded(self: BlobStore, *args: Any, **_: Any) -> None:
        create(self, *args)

    monkeypatch.setattr(BlobStore, "__init__", unbounded)


def staying(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle upload keeps its room."""
    monkeypatch.setattr(BlobStore, "_idle", lambda self: [])


def on_disk(test: Callable[[Path], Awaitable[None]]) -> Callable[[], None]:
    """Return a test of a directory as one without arguments."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as path:
            trio.run(test, Path(path))

    return run


def multiplied() -> None:
    schemas.test_what_multiplies_the_work_is_refused("allOf", 24)


def bounded() -> None:
    schemas.test_the_work_of_a_check_is_bounded(*schemas.HOSTILE[4])


def removed() -> None:
    trio.run(quotas.test_who_loses_the_right_while_a_call_waits_is_refused)


def at_once() -> None:
    trio.run(quotas.test_the_calls_of_one_signer_keep_nobody_else_waiting)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (unlimited, quotas.test_submissions_under_way_count),
        (uncounted, quotas.test_submissions_under_way_count),
        (turnless, at_once),
        (trusting, removed),
        (boundless, bounded),
        (all_keywords, multiplied),
        (announced, on_disk(files.test_announced_bytes_take_no_room)),
        (crowded, on_disk(files.test_the_unfinished_uploads_of_a_member_are_bounded)),
        (staying, on_disk(files.test_an_idle_upload_gives_way_after_minutes)),
    ],
    ids=lambda function: getattr(function, "__name__", "check"),
)
def test_a_named_test_notices(
    patch: Patch, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    must_notice(patch, check, monkeypatch, RpcError, ExceptionGroup)

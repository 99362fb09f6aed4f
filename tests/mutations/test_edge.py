"""Each check of the HTTP edge, taken away: the test that the threat model names for it notices.

What needs a daemon is in `node.http.test_edge`, and is not broken here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from node.daemon import metrics
from node.http import connection
from node.rpc import incremental as large
from node.store.directory import Directory
from tests.node.http import test_edge, test_metrics
from tests.node.rpc import test_incremental as test_large

Patch = Callable[[pytest.MonkeyPatch], None]


def everybody_is_known(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "knows", lambda self, identity: True)


def any_envelope(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(large, "_AROUND", 1 << 40)


def any_host(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(metrics, "_names_this_host", lambda host: True)


def any_answer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(connection.ConnectionPool, "may_send", lambda self, connection, size: True)


async def a_stranger_is_told() -> None:
    with pytest.MonkeyPatch.context() as patch:
        await test_large.test_who_has_no_role_is_told_so_before_anything_is_parsed(b"[]", patch)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (everybody_is_known, a_stranger_is_told),
        (any_envelope, test_large.test_an_envelope_is_little_else_than_its_payload),
        (
            any_host,
            partial(
                test_metrics.test_who_is_on_this_host,
                "127.0.0.1",
                {"host": "rebound.example:50080"},
                local=False,
            ),
        ),
        (any_answer, test_edge.test_answers_that_nobody_reads_are_bounded),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_named_test_notices(
    patch: Patch, check: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await passed(check)
    patch(monkeypatch)
    try:
        await passed(check)
    except (AssertionError, BaseExceptionGroup):
        return
    pytest.fail("nobody noticed")


async def passed(check: Callable[[], Any]) -> None:
    result = check()
    if inspect.isawaitable(result):
        await result

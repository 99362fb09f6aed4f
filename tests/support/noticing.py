"""Whether a check notices a defect: it passes as things are, and fails once they are broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Patch = Callable[[pytest.MonkeyPatch], None]


def must_notice(
    patch: Patch,
    check: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    *failures: type[BaseException],
) -> None:
    """Fail unless `check` passes now and fails after `patch`.

    `failures` are what it may fail with, beside a failed assertion.
    """
    check()
    patch(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, *failures)):
        check()

"""What a simulated world is played on: time that never waits, and an order drawn from a seed.

Both are settings of libraries for the whole program, so one world is played at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import trio
import trio.testing

from federation.wire import cbor, envelope

__all__ = ["stage"]

# Its check of signatures is replaced by one that remembers, while a seed is played.
_ENVELOPE: Any = envelope

_decode = lru_cache(8192)(cbor.decode)
_verify = lru_cache(8192)(_ENVELOPE.verify_es256k)


@contextmanager
def stage(seed: int) -> Iterator[trio.testing.MockClock]:
    """Give the clock to run with; till the end, tasks take turns in the order of this seed."""
    core: Any = trio._core._run  # as trio's own plugin for hypothesis does
    fixed, core._ALLOW_DETERMINISTIC_SCHEDULING = core._ALLOW_DETERMINISTIC_SCHEDULING, True
    core._r.seed(seed)
    exact = cbor.decode, _ENVELOPE.verify_es256k
    cbor.decode, _ENVELOPE.verify_es256k = _decode, _verify  # the same results, remembered
    clock = trio.testing.MockClock(autojump_threshold=0)
    # The same time without asking the real clock, which a clock of rate 0 never needs.
    clock.current_time = lambda: clock._virtual_base  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING = fixed
        cbor.decode, _ENVELOPE.verify_es256k = exact

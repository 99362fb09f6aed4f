"""Decoding of large payloads beside the event loop.

How many values a message may have is in `wire.sizes`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import trio

from federation.wire import cbor
from federation.wire.envelope import Rejected
from federation.wire.messages import load, most_items
from federation.wire.sizes import QUICK

M = TypeVar("M", bound=msgspec.Struct)


async def load_large(payload: bytes, kind: type[M]) -> M:
    """Decode a payload that may have very many values, which then does not hold the event loop.

    Raises Rejected (malformed).
    """
    most = most_items(kind)
    try:
        return load(payload, kind, items=min(QUICK, most))
    except Rejected as rejected:
        if most > QUICK and isinstance(rejected.__cause__, cbor.TooManyItems):
            return await trio.to_thread.run_sync(load, payload, kind)
        raise

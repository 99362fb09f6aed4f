"""Decoding of large payloads in a thread, beside the event loop.

`wire.sizes` says how many values a message may have.
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
    """Return a decoded payload; one with very many values is decoded in a thread.

    Raises Rejected (malformed).
    """
    most = most_items(kind)
    try:
        return load(payload, kind, items=min(QUICK, most))
    except Rejected as rejected:
        if most > QUICK and isinstance(rejected.__cause__, cbor.TooManyItems):
            return await trio.to_thread.run_sync(load, payload, kind)
        raise

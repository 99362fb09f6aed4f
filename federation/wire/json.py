"""JSON from another colony, such as an output: checked against limits before it is decoded.

A message limits its bytes, but a megabyte may be one string or half a million lists. The callers
decide what the values mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

from federation.wire.envelope import Rejected
from node.model.json import MAX_DEPTH
from node.tasks.offload import apart as by_size

MOST_CONTAINERS = 50_000  # lists and objects in one value
# Skip whole strings, so that a bracket inside of one does not count.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]}]', re.DOTALL)
_EMPTY = re.compile(rb"\s*[\]}]")
T = TypeVar("T")


def require_bounded(data: bytes, *, most: int = MOST_CONTAINERS) -> None:
    """Raise Rejected (malformed) for invalid JSON, and for too deep or too many containers.

    The depth is that of a process. `most` is how many lists and objects there may be.
    """
    try:
        # Check the syntax first, without building values: an unclosed string would cost quadratic
        # time.
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Rejected("malformed", str(error)) from None
    if data.count(b"[") + data.count(b"{") <= min(most, MAX_DEPTH):
        return
    count = depth = 0
    for found in _TOKEN.finditer(data):
        token = found[0]
        if token in (b"[", b"{"):
            count += 1
            depth += 1
            # The content of the last container counts as a level, too.
            if depth + (_EMPTY.match(data, found.end()) is None) > MAX_DEPTH:
                raise Rejected("malformed", f"nested deeper than {MAX_DEPTH}")
            if count > most:
                raise Rejected("malformed", f"more than {most} lists and objects in one value")
        elif token in (b"]", b"}"):
            depth -= 1


async def apart(data: bytes, look: Callable[[bytes], T]) -> T:
    """Return `look(data)`, computed in a thread if the data is large."""
    return await by_size(len(data), look, data)

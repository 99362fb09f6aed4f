"""JSON that another colony sent, such as an output: bounded before anything is made of it.

Its bytes are bounded by the message, but a megabyte may be one string or half a million lists. What
the values mean is decided by the callers.
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
# Strings are passed over whole: what looks like a bracket in one is none.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]}]', re.DOTALL)
_EMPTY = re.compile(rb"\s*[\]}]")
T = TypeVar("T")


def require_bounded(data: bytes, *, most: int = MOST_CONTAINERS) -> None:
    """Raise Rejected (malformed) for what is no JSON, nested deeper than a process may be, or many.

    `most` is how many lists and objects there may be.
    """
    try:
        # Syntax first, of which nothing is made: strings that do not end would cost the square.
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
            # What is in the last one counts as a level, too.
            if depth + (_EMPTY.match(data, found.end()) is None) > MAX_DEPTH:
                raise Rejected("malformed", f"nested deeper than {MAX_DEPTH}")
            if count > most:
                raise Rejected("malformed", f"more than {most} lists and objects in one value")
        elif token in (b"]", b"}"):
            depth -= 1


async def apart(data: bytes, look: Callable[[bytes], T]) -> T:
    """Return `look(data)`; what is large does not hold the event loop meanwhile."""
    return await by_size(len(data), look, data)

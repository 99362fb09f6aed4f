"""Replies of a server: times as they are written, and listings that are too long for one reply."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from colonyd.errors import RpcError

# The daemon's message about an answer with too many rows, and the client's about one it stopped
# reading.
TOO_LARGE = re.compile(r"answer (has more|is longer) than \d+ bytes")


def parse_time(text: object) -> datetime | None:
    """Parse an RFC 3339 time with up to ns digits; return None for year 1, which means unset."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(_microseconds(text))
    except ValueError:
        return None


def _microseconds(text: str) -> str:
    # fromisoformat takes any number of digits only from Python 3.11 on, but rejects some; cut at 6.
    head, dot, tail = text.partition(".")
    if not dot:
        return text
    digits = len(tail) - len(tail.lstrip("0123456789"))
    return f"{head}.{tail[:digits][:6]}{tail[digits:]}"


def rows_of(reply: object) -> list[dict[str, Any]]:
    """Return the rows of a listing. What is no row is left out: the server may not be ours."""
    return [row for row in reply if isinstance(row, dict)] if isinstance(reply, list) else []


async def newest(
    call: Callable[[dict[str, Any]], Awaitable[Any]], fields: dict[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    """List with `call`: half of `fields`' count for as long as the answer would be too large.

    Returns the rows and the last requested count. Raises RpcError.
    """
    count: int = fields["count"]
    while True:
        try:
            return rows_of(await call({**fields, "count": count})), count
        except RpcError as error:
            if count == 1 or not TOO_LARGE.search(error.message):
                raise
        count //= 2

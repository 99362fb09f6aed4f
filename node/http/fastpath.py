"""The fast path: a plain HTTP/1.1 request, whole in one piece, taken apart by one strict
expression.

Nearly all requests are plain. All others are left to h11, which would read the plain ones the same:
this module only ever accepts less. Clients send the same head again and again, so a few are
remembered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

_HEAD = re.compile(
    rb"(POST|GET) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+)\r\n"
)
# Headers with a meaning that h11 knows.
_SPECIAL = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer"})
_LONGEST_NUMBER = 15  # digits of a length
_MOST_HEADS = 256  # heads that are remembered, ...
_LONGEST_HEAD = 1024  # ... and the bytes of each

# Method, target, headers, and the length of the body; the headers are shared by all requests.
Head: TypeAlias = tuple[str, str, dict[str, str], int]


@dataclass(slots=True)
class PlainHeads:
    """The heads of plain requests that were read before."""

    _known: dict[bytes, Head] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def read(self, head: bytes) -> Head | None:
        """Return what a head says, up to its empty line; None: ask h11."""
        known = self._known.get(head)
        if known is None:
            known = _read(head)
            if known is not None and len(head) <= _LONGEST_HEAD:
                if len(self._known) >= _MOST_HEADS:
                    self._known.clear()
                self._known[head] = known
        return known


def _read(head: bytes) -> Head | None:
    match = _HEAD.fullmatch(head)
    if match is None:
        return None
    headers: dict[str, str] = {}
    lines = match[3].decode("ascii").split("\r\n")
    lines.pop()
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers or name in _SPECIAL:
            return None
        headers[name] = value.strip(" \t")
    if "host" not in headers or headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = headers.get("content-length", "0")
    if not length.isdigit() or len(length) > _LONGEST_NUMBER:
        return None
    return match[1].decode(), match[2].decode(), headers, int(length)


def parse_plain(
    data: bytes, max_header: int, max_body: int, heads: PlainHeads
) -> tuple[str, str, dict[str, str], bytes, int] | None:
    """Return method, target, headers, body, and where the request ends in `data`; None: ask h11."""
    begin = data.find(b"\r\n\r\n", 0, max_header) + 4
    if begin < 4 or (head := heads.read(data[:begin])) is None:
        return None
    method, target, headers, length = head
    end = begin + length
    if end > len(data) or length > max_body:
        return None
    return method, target, headers, data[begin:end], end

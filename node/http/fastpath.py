"""The fast path: a plain HTTP/1.1 request, whole in one piece, taken apart by one strict
expression.

Nearly all requests are plain. All others are left to h11, which would read the plain ones the same:
this module only ever accepts less.
"""

from __future__ import annotations

import re

_HEAD = re.compile(
    rb"(POST|GET) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+)\r\n"
)
# Headers with a meaning that h11 knows.
_SPECIAL = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer"})
_LONGEST_NUMBER = 15  # digits of a length


def parse_plain(
    data: bytes, max_header: int, max_body: int
) -> tuple[str, str, dict[str, str], bytes, int] | None:
    """Return method, target, headers, body, and where the request ends in `data`; None: ask h11."""
    match = _HEAD.match(data, 0, max_header)
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
    begin = match.end()
    end = begin + int(length)
    if end > len(data) or end - begin > max_body:
        return None
    return match[1].decode(), match[2].decode(), headers, data[begin:end], end

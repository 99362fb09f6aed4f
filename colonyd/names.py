"""Names of executors and others as parts of keys of the store, and as names of files."""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

# Bytes of the name of a file, without an ending of four; and how much of a longer one is kept.
_MOST_FILE, _SEEN = 251, 96


def in_key(name: str) -> str:
    """Return a name as one part of a key. Letters, digits, `_`, `-` and `.` stay as they are."""
    return quote(name, safe="")


def in_file(name: str) -> str:
    """Return a name as that of a file or directory, which has room for an ending of four bytes.

    It is written as in a key, unless that is too long: then it is the beginning of the name and its
    SHA-256. No key has "%~", so the two are never confused.
    """
    part = in_key(name)
    if part in (".", ".."):
        return part.replace(".", "%2E")
    if len(part) <= _MOST_FILE:
        return part
    return f"{part[:_SEEN]}%~{hashlib.sha256(name.encode()).hexdigest()}"


def of_key(part: str) -> str:
    """Return the name in a part of a key."""
    return unquote(part)

"""Names of users, executors and locations, and their form in a key.

Names of colonies are narrower (`ids.valid_name`): they are parts of paths between colonies.
"""

from __future__ import annotations

import hashlib
import unicodedata
from urllib.parse import quote, unquote

from node.model.errors import Invalid

MOST = 200  # characters
# Bytes of the name of a file, without an ending of four; and how much of a longer one is kept.
_MOST_FILE, _SEEN = 251, 96


def check_name(name: str, field: str) -> None:
    """Raise Invalid, which begins with `field`, for a name that no member may have."""
    if not 1 <= len(name) <= MOST:
        raise Invalid(f"{field}: 1 to {MOST} characters")
    if not name.isprintable():
        raise Invalid(
            f"{field}: {name!r} has characters that can't be seen, such as control characters"
        )
    if name != name.strip():
        raise Invalid(f"{field}: {name!r} must not begin or end with a blank")
    if ":" in name:
        raise Invalid(f"{field}: {name!r} must not have a ':'")
    if name.startswith("colony/"):
        raise Invalid(f"{field}: {name!r} is how colonies are named, so nobody else may be")
    if not unicodedata.is_normalized("NFC", name):
        composed = unicodedata.normalize("NFC", name)
        raise Invalid(f"{field}: write it in Unicode's normal form C, as {composed!r}")


def check_id(identity: str, field: str) -> None:
    """Raise Invalid, which begins with `field`, for text that can't be the id of a member.

    An id that is the hash of no key is accepted, as upstream does; no key can sign for it.
    """
    if not 1 <= len(identity) <= MOST or not identity.isprintable():
        raise Invalid(
            f"{field}: 1 to {MOST} printable characters; who signs has 64 lower-case hex ones"
        )


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

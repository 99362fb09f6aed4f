"""Names of users, executors and locations.

Names of colonies are narrower (`ids.valid_name`): they are parts of paths between colonies.
"""

from __future__ import annotations

import unicodedata

from colonyd.errors import Invalid

MOST = 200  # characters


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

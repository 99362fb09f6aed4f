"""Labels and names of files: one spelling for each, and none that leads out of a directory.

Members write these files to their disks under labels and names that other members chose. The
content of a label is in `store.files`.
"""

from __future__ import annotations

from colonyd.errors import Invalid

MAX_LABEL = 1024
MAX_NAME = 255


def normalise_label(text: str, field: str) -> str:
    """Return `text` rooted, with single slashes and none at its end; "" and "/" are the root.

    Raises Invalid naming `field` for a label that could not be a path below a directory.
    """
    parts = [part for part in text.split("/") if part]
    for part in parts:
        _check_part(part, field)
    label = "/" + "/".join(parts)
    if len(label.encode()) > MAX_LABEL:
        raise Invalid(f"{field}: at most {MAX_LABEL} bytes")
    return label


def check_name(name: str, field: str) -> str:
    """Return `name` if it can name a file in any directory. Raises Invalid naming `field`."""
    if not name:
        raise Invalid(f"{field}: must not be empty")
    if "/" in name:
        raise Invalid(f"{field}: no '/' in a name; directories go into the label")
    _check_part(name, field)
    return name


def _check_part(part: str, field: str) -> None:
    if part in (".", ".."):
        raise Invalid(f"{field}: {part!r} is no name")
    # A backslash is a separator to members on other systems.
    if any(ord(c) < 32 or ord(c) == 127 or c == "\\" for c in part):
        raise Invalid(f"{field}: no control characters and no backslash")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise Invalid(f"{field}: not valid Unicode") from None
    if size > MAX_NAME:
        raise Invalid(f"{field}: at most {MAX_NAME} bytes between slashes")

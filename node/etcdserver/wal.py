"""etcd's write-ahead log: whether it still has a state, without which etcd starts and never serves.

To etcd such a log is not damaged: it waits for a leader that can't be elected. A file of the log is
a row of frames: 8 bytes with the size (56 bits, little-endian) and the padding (the last byte, if
its highest bit is set), then a record that begins with its kind, then the padding.
"""

from __future__ import annotations

from pathlib import Path

_KIND = b"\x08"  # the tag of a record's first field
_STATE = b"\x03"  # the kind of a record with the term, the vote and what is committed
# Bytes read of a file: each file begins with a state, behind few small records.
_LOOK = 2**20


def is_cut_off(member: Path) -> bool:
    """Return whether there are files of the log, and surely no state in them. Raises OSError."""
    found = sorted((member / "wal").glob("*.wal"))
    return bool(found) and all(_lacks_state(path) for path in found)


def _lacks_state(path: Path) -> bool:
    with path.open("rb") as file:
        data = file.read(_LOOK)
    start = 0
    while start + 8 <= len(data):
        head = int.from_bytes(data[start : start + 8], "little")
        size = head & (2**56 - 1)
        padding = head >> 56 & 7 if head >> 63 else 0
        record = data[start + 8 : start + 8 + size]
        if not head:
            return True  # room that was never written
        if len(record) < size:
            return len(data) < _LOOK
        if record[:1] != _KIND or record[1:2] == _STATE:
            return False  # it has a state, or is damaged, which etcd tells
        start += 8 + size + padding
    return len(data) < _LOOK

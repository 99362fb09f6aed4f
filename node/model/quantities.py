"""Amounts of CPU and memory as upstream writes them: `500m` and `256Mi`.

Only parsing is here; the queue compares amounts.
"""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "t": 1000**4,
    "tb": 1000**4,
    "ki": 1024,
    "kib": 1024,
    "mi": 1024**2,
    "mib": 1024**2,
    "gi": 1024**3,
    "gib": 1024**3,
    "ti": 1024**4,
    "tib": 1024**4,
}
_MEMORY = re.compile(r"(\d{1,15})\s*([A-Za-z]*)\Z")
_CPU = re.compile(r"(\d{1,12})m\Z")


def parse_cpu(text: str) -> int:
    """Return millicores; "" is 0. Raises ValueError: the unit is `m`."""
    if not text:
        return 0
    found = _CPU.match(text)
    if not found:
        raise ValueError(f"cpu {text[:40]!r}: write millicores, such as '500m'")
    return int(found[1])


def parse_memory(text: str) -> int:
    """Return bytes; "" is 0. Raises ValueError for a missing or unknown unit."""
    if not text:
        return 0
    found = _MEMORY.match(text)
    if not found or found[2].lower() not in _UNITS or not (found[2] or found[1] == "0"):
        raise ValueError(f"memory {text[:40]!r}: write a number and a unit, such as '256Mi'")
    return int(found[1]) * _UNITS[found[2].lower()]

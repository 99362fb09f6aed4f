"""Numbers in users' own data: whether every client can read them.

Numbers in typed fields are bounded by their types in `model.types`.
"""

from __future__ import annotations

from typing import Any

# Clients read a number in free data as a 64-bit float; one of fewer digits always fits.
_DIGITS = 309
_NOUGHTS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * _DIGITS


LONGEST = _DIGITS  # digits that one number may have without a closer look


def long_digits(text: bytes) -> bool:
    """Return whether so many digits are in a row that they may be beyond a float."""
    return text.translate(_NOUGHTS).find(_LONG) >= 0


def beyond_float(text: bytes, value: Any) -> bool:
    """Return whether a JSON text, decoded as `value`, has an integer that no 64-bit float comes
    near.
    """
    # A long run of digits has one at a multiple of its length: most texts end here.
    probes = text[_DIGITS - 1 :: _DIGITS]
    if len(probes) == len(probes.translate(None, b"0123456789")):
        return False
    if not long_digits(text):
        return False
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)
        elif type(current) is int and current.bit_length() > 1023:
            try:
                float(current)
            except OverflowError:
                return True
    return False

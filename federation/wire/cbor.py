"""Deterministic CBOR (RFC 8949, section 4.2) for messages between colonies, and nothing more.

A value has one encoding. The decoder refuses every other, before it spends memory on it. The
callers decide what values mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import cbor2

# Map keys are integers or text; `Any`, because a mapping is invariant in its keys.
Value: TypeAlias = "int | bytes | str | bool | Sequence[Value] | Mapping[Any, Value] | None"

_MAP, _TAG, _SIMPLE = 5, 6, 7  # major types
_LARGEST = (1 << 64) - 1
MOST_ITEMS = 65_536
_SIMPLE_VALUES: dict[int, bool | None] = {20: False, 21: True, 22: None}
_KINDS = ("integer", "negative integer", "bytes", "text", "array", "map", "tag", "simple value")


class CborError(ValueError):
    """Bytes that are not the deterministic encoding of an allowed value; the message says where."""


class TooManyItems(CborError):
    """More items than the caller allows."""


def encode(value: Value, *, tag: int | None = None) -> bytes:
    """Return the deterministic encoding of `value`, inside `tag` if one is given.

    Floats are not allowed: times are whole seconds, and a spec travels as its own bytes. Raises
    CborError for a value without an encoding.
    """
    ordered = _ordered(value)
    return cbor2.dumps(ordered if tag is None else cbor2.CBORTag(tag, ordered))


def _ordered(value: Value) -> Value:
    """Return the value with sorted map keys; cbor2 does the rest of section 4.2.1."""
    if value is None or isinstance(value, str | bytes | bool):
        return value
    if isinstance(value, int):
        if not -_LARGEST - 1 <= value <= _LARGEST:
            raise CborError("integer does not fit in 64 bits")
        return value
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value, key=_place)}
    raise CborError(f"{type(value).__name__} has no place in an envelope")


@lru_cache(1024, typed=True)
def _place(key: int | str) -> bytes:
    """Return the sort place of a key: by its encoding; cbor2 sorts by length, as in RFC 7049."""
    return cbor2.dumps(_ordered(key))


def decode(
    data: bytes, *, depth: int = 8, tag: int | None = None, items: int = MOST_ITEMS
) -> Value:
    """Return the one value that fills `data` exactly, nested at most `depth` containers deep.

    It has at most `items` values, keys of maps included: a larger count raises TooManyItems before
    anything is made of it.

    With `tag` the value must be inside that one tag; no other tag is ever accepted. Raises
    CborError: truncated, trailing bytes, indefinite length, an integer or length longer than
    needed, map keys unsorted or repeated, floats, unknown simple values, invalid UTF-8.
    """
    reader = _Decoder(data, items)
    if tag is not None and reader.head() != (_TAG, tag):
        raise CborError(f"byte 0: not tagged {tag}")
    value = reader.value(depth)
    if reader.at != len(data):
        raise CborError(f"byte {reader.at}: trailing bytes")
    return value


class _Decoder:
    """A cursor over the bytes. It compares every length with the bytes left before using it."""

    def __init__(self, data: bytes, items: int) -> None:
        self.data = data
        self.at = 0
        self.items = items
        self.left = items - 1

    def fail(self, message: str, at: int) -> CborError:
        return CborError(f"byte {at}: {message}")

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise self.fail("truncated", self.at)
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def head(self) -> tuple[int, int]:
        start = self.at
        if start >= len(self.data):
            raise self.fail("truncated", start)
        first = self.data[start]
        self.at = start + 1
        major, number = first >> 5, first & 31
        if number < 24:
            return major, number
        if number == 31:
            raise self.fail("indefinite length", start)
        if number > 27:
            raise self.fail("reserved", start)
        if major == _SIMPLE:
            raise self.fail("float or unknown simple value", start)
        size = 1 << (number - 24)
        number = int.from_bytes(self.take(size), "big")
        if number < (24 if size == 1 else 1 << (4 * size)):
            raise self.fail(f"{_KINDS[major]} not in its shortest form", start)
        return major, number

    def value(self, depth: int) -> Value:
        start = self.at
        major, number = self.head()
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 2:
                return self.take(number)
            case 3:
                return self.text(number, start)
            case 4 | 5:
                if depth == 0:
                    raise self.fail("nested too deep", start)
                # Each item takes a byte at least, so a huge count fails here, before it becomes a
                # list.
                if number > len(self.data) - self.at:
                    raise self.fail("truncated", start)
                # Subtract the items of a container at once, so that a single value costs no more
                # for it.
                self.left -= 2 * number if major == _MAP else number
                if self.left < 0:
                    raise TooManyItems(f"byte {start}: more than {self.items} items")
                if major == _MAP:
                    return self.map(number, depth - 1)
                return [self.value(depth - 1) for _ in range(number)]
            case 7 if number in _SIMPLE_VALUES:
                return _SIMPLE_VALUES[number]
        raise self.fail(f"{_KINDS[major]} {number} not allowed", start)

    def text(self, length: int, start: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.fail("text is not UTF-8", start) from None

    def map(self, count: int, depth: int) -> Value:
        result: dict[int | str, Value] = {}
        before = b""
        for _ in range(count):
            start = self.at
            key = self.value(0)
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise self.fail("map key is neither integer nor text", start)
            encoded = self.data[start : self.at]
            if encoded == before:
                raise self.fail(f"duplicate map key {key!r}", start)
            if encoded < before:
                raise self.fail(f"map key {key!r} out of order", start)
            before = encoded
            result[key] = self.value(depth)
        return result

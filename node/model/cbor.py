"""Deterministic CBOR (RFC 8949, section 4.2) for values that are read back with cbor2.

The bytes are those of cbor2's own canonical mode, made several times faster: what it orders anew
for every value, map keys, has one order for all values of one struct.
"""

from __future__ import annotations

from typing import Any

import cbor2

_SIMPLE = frozenset({str, int, bool, bytes, type(None)})
# Orders that are kept. Users' own maps may end up here too, so both number and size are bounded.
_MOST_ORDERS = 1024
_LONGEST_ORDER = 1024  # characters

_orders: dict[tuple[str, ...], tuple[str, ...]] = {}


class Encoded:
    """A value that is encoded already, to be put where it belongs."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Unusual(Exception):
    """A value that is left to cbor2, such as a float, whose shortest form is to be found."""


def dumps(value: Any) -> bytes:
    """Encode `value`, made of what JSON has, bytes and parts that are `Encoded`.

    Raises cbor2.CBOREncodeError.
    """
    try:
        ordered = _ordered(value)
    except _Unusual:
        return cbor2.dumps(value, canonical=True, default=_put)
    return cbor2.dumps(ordered, default=_put)


def _put(encoder: cbor2.CBOREncoder, value: Any) -> None:
    if not isinstance(value, Encoded):
        raise cbor2.CBOREncodeTypeError(f"{type(value).__name__} has no form in CBOR")
    encoder.write(value.data)


def _ordered(value: Any) -> Any:
    """The same value with the keys of every map in their order."""
    kind = type(value)
    if kind is dict:
        keys = tuple(value)
        order = _orders.get(keys)
        ordered = {}
        for key in _order(keys) if order is None else order:
            inner = value[key]
            ordered[key] = inner if type(inner) in _SIMPLE else _ordered(inner)
        return ordered
    if kind is list or kind is tuple:
        return [inner if type(inner) in _SIMPLE else _ordered(inner) for inner in value]
    if kind in _SIMPLE or kind is Encoded:
        return value
    raise _Unusual


def _order(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not all(type(key) is str for key in keys):
        raise _Unusual
    order = tuple(sorted(keys, key=_rank))
    if len(_orders) < _MOST_ORDERS and sum(map(len, keys)) <= _LONGEST_ORDER:
        _orders[keys] = order
    return order


def _rank(key: str) -> tuple[int, bytes]:
    """Order of the encoded text: its length is written first."""
    encoded = key.encode()
    return len(encoded), encoded

"""Repair of stored values whose types became narrower: the parts that still fit are kept.

Only values that `codec.unpack` could not convert come here; nothing is written back.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec


def mended(value: Any, kind: Any) -> Any:
    """Return as much of a plain value as `kind` has room for.

    Optional fields, items and entries that do not fit are left out; the result is plain, too, and
    converts to `kind`. Raises msgspec.ValidationError when nothing of the value fits.
    """
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        origin, parts = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return mended(value, parts[0]) if isinstance(value, dict | list) else _refuse(value)
        if origin in (Union, types.UnionType):
            return _of_some(value, parts)
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return _fields(value, kind)
        if isinstance(value, list) and origin is list:
            return [item for each in value for item in _tried(each, parts[0])]
        if isinstance(value, dict) and origin is dict:
            return {
                key: item
                for key, each in value.items()
                for item in _tried(each, parts[1])
                if _tried(key, parts[0])
            }
        raise
    return value


def _refuse(value: Any) -> Any:
    raise msgspec.ValidationError(f"{type(value).__name__} does not fit")


def _tried(value: Any, kind: Any) -> tuple[Any, ...]:
    """Return the rest of a value, in a tuple; an empty one for nothing."""
    try:
        return (mended(value, kind),)
    except msgspec.ValidationError:
        return ()


def _of_some(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        if found := _tried(value, kind):
            return found[0]
    return _refuse(value)


def _fields(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of a struct that fit. Raises ValidationError when a needed one does not."""
    left = dict(value)
    for each in msgspec.structs.fields(kind):
        if each.encode_name not in value:
            continue
        found = _tried(value[each.encode_name], each.type)
        if found:
            left[each.encode_name] = found[0]
        elif each.required:
            _refuse(value[each.encode_name])
        else:
            del left[each.encode_name]
    return left

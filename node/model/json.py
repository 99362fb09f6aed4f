"""JSON of the wire: how deep it may be, and which fields are left out when empty."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

MAX_DEPTH = 64
# Below these keys null means null: they hold the user's own data, or objects with types for null.
_OPAQUE = frozenset(
    {
        "args",
        "kwargs",
        "out",
        "in",
        "payload",
        "blueprint",
        "blueprintdefinition",
        "status",
    }
)
# Of a function to be registered: its `args` describe arguments, and are none.
_TYPED = "fun"
_NESTED = frozenset({dict, list})


def depth_of(value: Any) -> int:
    """Return how deep objects and arrays are nested."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        current, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(current, dict):
            stack.extend((inner, depth + 1) for inner in current.values())
        elif isinstance(current, list):
            stack.extend((inner, depth + 1) for inner in current)
    return deepest


def prune(value: Any, opaque: frozenset[str] = _OPAQUE) -> Any:
    """Return a value without keys whose value is null: to upstream's JSON reader, null means the
    zero value.

    Values below an `opaque` key stay as they are.
    """
    if isinstance(value, dict):
        return {
            key: prune(inner, opaque if key != _TYPED else frozenset())
            if type(inner) in _NESTED and key not in opaque
            else inner
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [prune(inner, opaque) if type(inner) in _NESTED else inner for inner in value]
    return value


def null_is_absent(kind: type) -> bool:
    """Return whether a struct that is made of a value with nulls equals that of the pruned value,
    if it can be made at all: then nothing needs to be pruned before.
    """
    return _passes(inspect.type_info(kind), _OPAQUE)


def _passes(kind: inspect.Type, opaque: frozenset[str]) -> bool:
    if isinstance(kind, inspect.StructType):
        return all(
            field.encode_name in opaque
            or (
                # A null for None must be what is there when the key is not.
                (not _takes_null(field.type) or field.default is None)
                and _passes(field.type, opaque if field.encode_name != _TYPED else frozenset())
            )
            for field in kind.fields
        )
    if isinstance(kind, inspect.UnionType):
        return all(_passes(each, opaque) for each in kind.types)
    if isinstance(kind, inspect.ListType):
        return _passes(kind.item_type, opaque)
    if isinstance(kind, inspect.DictType):
        return not _takes_null(kind.value_type) and _passes(kind.value_type, opaque)
    return isinstance(kind, _PLAIN)


_PLAIN = (
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.EnumType,
    inspect.LiteralType,
)


def _takes_null(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return any(_takes_null(each) for each in kind.types)
    return isinstance(kind, (inspect.NoneType, inspect.AnyType))

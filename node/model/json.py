"""JSON of the wire: how deep it may be, and which fields are left out when empty."""

from __future__ import annotations

from typing import Any

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

"""The keywords of a blueprint's schema that upstream has a type for, and values that do not fit it.

Upstream reads a schema into structs of a few fields, and ignores the rest of JSON Schema. Whether a
schema can be used is decided in `schema`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from colonyd.errors import Invalid

_TEXT, _LIST, _TEXTS, _ANY = "a text", "a list", "a list of texts", "any value"
_SCHEMA, _SCHEMAS = "a schema, as an object", "an object of schemas, each an object"
_BELOW = {
    "type": _TEXT,
    "description": _TEXT,
    "enum": _LIST,
    "default": _ANY,
    "properties": _SCHEMAS,
    "items": _SCHEMA,
}
_TOP = {"type": _TEXT, "properties": _SCHEMAS, "required": _TEXTS}


def fitting(schema: dict[str, Any], misfit: Callable[[str, str], None]) -> dict[str, Any]:
    """Return a schema without the values that upstream's clients could not read, nulls among them.

    `misfit` gets the path of each keyword that is left out for its value or its spelling (Go reads
    one in another case as the same), and what would do; it may raise.
    """
    return _level(schema, "", _TOP, misfit)


def refuse(path: str, wanted: str) -> None:
    """Raise Invalid for a keyword of a definition that is sent."""
    raise Invalid(f"blueprintdefinition.spec.schema{path}: must be {wanted}")


def drop(path: str, wanted: str) -> None:
    """Leave a keyword out of a definition that was stored by an earlier version."""


def _level(
    schema: dict[str, Any], path: str, types: dict[str, str], misfit: Callable[[str, str], None]
) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        where, known = f"{path}.{keyword[:80]}", keyword.casefold()
        wanted = types.get(known)
        if wanted is None:
            kept[keyword] = value
        elif keyword != known:
            misfit(where, f"written {known!r}")
        elif value is None and wanted is not _ANY:
            continue
        elif not _fits(value, wanted):
            misfit(where, wanted)
        elif wanted is _SCHEMA:
            kept[keyword] = _level(value, where, _BELOW, misfit)
        elif wanted is _SCHEMAS:
            kept[keyword] = {
                name: _level(inner, f"{where}.{name[:80]}", _BELOW, misfit)
                for name, inner in value.items()
            }
        else:
            kept[keyword] = value
    return kept


def _fits(value: Any, wanted: str) -> bool:
    if wanted is _TEXT:
        return isinstance(value, str)
    if wanted is _LIST:
        return isinstance(value, list)
    if wanted is _TEXTS:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if wanted is _SCHEMA:
        return isinstance(value, dict)
    if wanted is _SCHEMAS:
        return isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())
    return True

"""Schemas of blueprint definitions: whether one can be used, and whether a spec conforms to it.

JSON Schema itself is the library's; here are the bounds that make a hostile schema harmless, the
defaults that a spec leaves out, and errors that name the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import jsonschema_rs

# Subschemas and values in one schema, and how deep they are nested.
MAX_NODES = 2_000
MAX_DEPTH = 32
# Bytes that one compiled pattern may take; matching is linear in the text whatever the pattern.
_PATTERN_BYTES = 1 << 16
# Every part of the schema meets every part of the spec at most once: about a second at worst.
_WORK = 4_000_000
_PATTERN_WORK = 20
# An error of `anyOf` holds one error and one copy of the value for each of its branches.
_DETAIL = 100_000
# Characters and values that defaults may add to one spec.
_MOST_DEFAULTS = 256 * 1024
_MESSAGE = 200

_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_BRANCHING = frozenset({"anyOf", "oneOf"})
_SCHEMAS = frozenset(
    {
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_VALUES = frozenset(
    {
        "const",
        "dependentRequired",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "required",
        "type",
        "uniqueItems",
    }
)
# What points elsewhere: into the network, or in circles.
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$\-]*\Z")


class SchemaError(ValueError):
    """A schema that can't be used, or a value that it forbids; begins with the field's path."""


def check_schema(schema: dict[str, Any], field: str) -> None:
    """Raise SchemaError unless `schema` is JSON Schema (2020-12) within our bounds."""
    _compile(_reduce(schema, field), field)


def conform(spec: dict[str, Any], schema: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the spec with the schema's defaults filled in. Raises SchemaError if it is not valid.

    The schema is one that `check_schema` let pass.
    """
    reduced = _reduce(schema, field)
    validator = _compile(reduced, field)
    _affordable(reduced, _measure(spec), field)
    filled: dict[str, Any] = _fill(spec, schema, _Purse(field))
    size = _measure(filled)
    _affordable(reduced, size, field)
    try:
        if validator.is_valid(filled):
            return filled
    except ValueError as error:
        raise SchemaError(f"{field}: {error}") from None
    if (reduced.branches + 1) * size.nodes > _DETAIL:
        raise SchemaError(f"{field}: does not conform to the schema of its kind")
    raise _fault(validator, filled, field)


@dataclass
class _Reduced:
    """A schema of nothing but keywords with a known effect, and what checking against it costs."""

    field: str
    schema: Any = None
    nodes: int = 0
    patterns: int = 0
    branches: int = 0

    def count(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise SchemaError(f"{self.field}: at most {MAX_NODES} subschemas and values")


def _reduce(schema: Any, field: str) -> _Reduced:
    """Leave out what is without effect: annotations, unknown keywords, null as upstream's nil."""
    reduced = _Reduced(field)
    reduced.schema = _walk(schema, field, 1, reduced)
    return reduced


def _walk(schema: Any, field: str, depth: int, into: _Reduced) -> Any:
    if depth > MAX_DEPTH:
        raise SchemaError(f"{into.field}: nested deeper than {MAX_DEPTH}")
    into.count(1)
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        where = field + _step(keyword)
        if keyword in _REFERENCES:
            raise SchemaError(f"{where}: references are not followed; write the schema in place")
        if _is_empty(keyword, value):
            continue
        if keyword in _MAPS and isinstance(value, dict):
            kept[keyword] = {
                name: _walk(inner, where + _step(name), depth + 1, into)
                for name, inner in value.items()
            }
            into.patterns += len(value) if keyword == "patternProperties" else 0
        elif keyword in _LISTS and isinstance(value, list):
            kept[keyword] = [
                _walk(inner, where + _step(place), depth + 1, into)
                for place, inner in enumerate(value)
            ]
            into.branches += len(value) if keyword in _BRANCHING else 0
        elif keyword in _SCHEMAS:
            kept[keyword] = _walk(value, where, depth + 1, into)
        elif keyword in _VALUES or keyword in _MAPS or keyword in _LISTS:
            into.count(_measure(value).nodes)
            into.patterns += 1 if keyword == "pattern" else 0
            kept[keyword] = value
    return kept


def _is_empty(keyword: str, value: Any) -> bool:
    """Whether upstream takes the value for that of a field which was not sent."""
    if keyword == "const":
        return False
    return value is None or (keyword == "type" and value == "") or (keyword == "enum" and not value)


def _affordable(reduced: _Reduced, size: _Size, field: str) -> None:
    patterns = reduced.patterns * size.characters * _PATTERN_WORK
    if reduced.nodes * size.nodes + patterns > _WORK:
        raise SchemaError(f"{field}: too large to be checked against a schema of this size")


def _compile(reduced: _Reduced, field: str) -> jsonschema_rs.Draft202012Validator:
    # Half of what a node at rest may take, and many a colony has no blueprints.
    import jsonschema_rs

    def refuse(uri: str) -> Any:
        raise ValueError(f"{uri[:80]} is not fetched")

    try:
        return jsonschema_rs.Draft202012Validator(
            reduced.schema,
            pattern_options=jsonschema_rs.RegexOptions(
                size_limit=_PATTERN_BYTES, dfa_size_limit=16 * _PATTERN_BYTES
            ),
            validate_formats=False,
            retriever=refuse,
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(f"{field}{_path(error.instance_path)}: {_cut(error.message)}") from None
    except ValueError as error:
        raise SchemaError(f"{field}: {_cut(str(error))}") from None


def _fault(
    validator: jsonschema_rs.Draft202012Validator, spec: dict[str, Any], field: str
) -> SchemaError:
    """The first thing that is wrong with a spec which is not valid."""
    import jsonschema_rs

    try:
        validator.validate(spec)
    except jsonschema_rs.ValidationError as error:
        path = field + _path(error.instance_path)
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Required):
            return SchemaError(f"{path}{_step(error.kind.property)}: is required")
        return SchemaError(f"{path}: {_cut(error.message)}")
    return SchemaError(f"{field}: does not conform to the schema of its kind")


@dataclass
class _Size:
    nodes: int = 0
    characters: int = 0


def _measure(value: Any) -> _Size:
    """How many values there are in a value, itself included, and characters in its texts."""
    size, stack = _Size(), [value]
    while stack:
        current = stack.pop()
        size.nodes += 1
        if isinstance(current, str):
            size.characters += len(current)
        elif isinstance(current, dict):
            size.characters += sum(map(len, current))
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)
    return size


@dataclass
class _Purse:
    """What defaults may still add: a small default times a long list is a large spec."""

    field: str
    left: int = _MOST_DEFAULTS

    def spend(self, value: Any) -> None:
        size = _measure(value)
        self.left -= size.nodes + size.characters
        if self.left < 0:
            raise SchemaError(f"{self.field}: the schema's defaults would make it too large")


def _fill(value: Any, schema: Any, purse: _Purse) -> Any:
    """The value with the defaults of `properties` where they are missing, at every level."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, dict):
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return value
        filled = dict(value)
        for name, inner in properties.items():
            default = inner.get("default") if isinstance(inner, dict) else None
            if name not in filled and default is not None:
                purse.spend(default)
                filled[name] = default
            if name in filled:
                filled[name] = _fill(filled[name], inner, purse)
        return filled
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [_fill(item, schema["items"], purse) for item in value]
    return value


def _step(key: object) -> str:
    """One step of a path: `.name`, `[3]` or `["any text"]`."""
    if isinstance(key, str):
        return f".{key}" if _PLAIN.match(key) else f"[{msgspec.json.encode(key[:80]).decode()}]"
    return f"[{key}]"


def _path(keys: Any) -> str:
    return "".join(map(_step, keys))


def _cut(message: str) -> str:
    return message if len(message) <= _MESSAGE else message[: _MESSAGE - 1] + "…"

"""Schemas of blueprint definitions: whether one can be used, and whether a spec conforms to it.

The grammar is upstream's (type, description, enum, default, properties, required, items) with the
limits of JSON Schema that look at one value alone. Each value of a spec meets at most one part of
the schema, so a check takes time proportional to the spec, whatever the schema.
"""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

# Subschemas and values in one schema, and how deep they are nested.
MAX_NODES = 2_000
MAX_DEPTH = 32
# Values of one spec that a schema has rules for, with the names it requires in them. A check runs
# in one piece and takes at most 20 ms.
MAX_CHECKED = 20_000
# Characters that defaults may add to one spec.
_MOST_DEFAULTS = 256 * 1024
_MESSAGE = 200

_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
    ),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}
# Limit by keyword: the type of the values it is about, what is compared, how, and in words.
_Limit = tuple[str, Callable[[Any], Any], Callable[[Any, Any], bool], str]
_LIMITS: dict[str, _Limit] = {
    "minimum": ("number", lambda value: value, operator.ge, "is less than {}"),
    "maximum": ("number", lambda value: value, operator.le, "is greater than {}"),
    "exclusiveMinimum": ("number", lambda value: value, operator.gt, "must be greater than {}"),
    "exclusiveMaximum": ("number", lambda value: value, operator.lt, "must be less than {}"),
    "minLength": ("string", len, operator.ge, "is shorter than {} characters"),
    "maxLength": ("string", len, operator.le, "is longer than {} characters"),
    "minItems": ("array", len, operator.ge, "has fewer than {} items"),
    "maxItems": ("array", len, operator.le, "has more than {} items"),
    "minProperties": ("object", len, operator.ge, "has fewer than {} properties"),
    "maxProperties": ("object", len, operator.le, "has more than {} properties"),
}
# Keywords of JSON Schema that restrict values and are not checked here. They are refused, not
# ignored: several of them apply to one value, a pattern takes its own time, and a reference leads
# anywhere. Any other keyword restricts nothing.
_REFUSED = frozenset({
    "$dynamicRef", "$recursiveRef", "$ref", "additionalItems", "allOf", "anyOf", "const",
    "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
    "maxContains", "minContains", "multipleOf", "not", "oneOf", "pattern", "patternProperties",
    "prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
    "uniqueItems",
})  # fmt: skip
_ALLOWED = (
    "type, description, enum, default, properties, required, items, additionalProperties"
    ", or a minimum or maximum"
)
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_$\-]*\Z")


class SchemaError(ValueError):
    """A schema that can't be used, or a value that it forbids; begins with the field's path."""


def check_schema(schema: dict[str, Any], field: str) -> None:
    """Raise SchemaError unless `schema` keeps to the grammar and its bounds."""
    _SchemaParser(field).rule(schema, field, 1)


def conform(spec: dict[str, Any], schema: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the spec with the schema's defaults filled in. Raises SchemaError if it is not valid.

    A schema that `check_schema` refuses is an error, too: an older release may have stored it.
    """
    rule = _SchemaParser(field).rule(schema, f"{field} (schema of its kind)", 1)
    filled: dict[str, Any] = _Check(field).apply(spec, rule, None)
    return filled


@dataclass
class _Rule:
    """What one part of a schema says about a value; `enum` holds keys of values."""

    kind: str = ""
    enum: frozenset[Any] | None = None
    default: Any = None
    properties: dict[str, _Rule] = field(default_factory=dict)
    # Those of the properties that have a default.
    defaults: dict[str, Any] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    items: _Rule | None = None
    # For properties without a rule of their own; False forbids them.
    others: _Rule | bool = True
    limits: list[tuple[_Limit, float]] = field(default_factory=list)


@dataclass
class _SchemaParser:
    """Reads the rules of one schema and counts its parts."""

    field: str
    nodes: int = 0

    def count(self, value: Any) -> None:
        """Count every value inside `value`, itself included."""
        for _ in _values(value):
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise SchemaError(f"{self.field}: at most {MAX_NODES} subschemas and values")

    def rule(self, schema: Any, field: str, depth: int) -> _Rule:
        if depth > MAX_DEPTH:
            raise SchemaError(f"{self.field}: nested deeper than {MAX_DEPTH}")
        self.count(None)
        # Upstream reads null as the empty value of a field, at any place.
        if schema is None:
            return _Rule()
        if not isinstance(schema, dict):
            raise SchemaError(f"{field}: a schema is an object")
        rule = _Rule()
        for keyword, value in schema.items():
            if value is None:
                continue
            self.keyword(rule, keyword, value, field + _step(keyword), depth + 1)
        return rule

    def keyword(self, rule: _Rule, keyword: str, value: Any, field: str, depth: int) -> None:
        if keyword in _REFUSED:
            raise SchemaError(f"{field}: is not supported; a schema has {_ALLOWED}")
        if keyword in ("type", "description"):
            if not isinstance(value, str):
                raise SchemaError(f"{field}: a text is expected")
            if keyword == "type":
                if value and value not in _TYPES:
                    raise SchemaError(f"{field}: is none of {', '.join(_TYPES)}")
                rule.kind = value
        elif keyword in ("enum", "required"):
            if not isinstance(value, list):
                raise SchemaError(f"{field}: a list is expected")
            self.count(value)
            if keyword == "enum":
                rule.enum = frozenset(map(_key, value)) if value else None
            elif not all(isinstance(name, str) for name in value):
                raise SchemaError(f"{field}: a list of names is expected")
            else:
                rule.required = frozenset(value)
        elif keyword == "default":
            self.count(value)
            rule.default = value
        elif keyword == "properties":
            if not isinstance(value, dict):
                raise SchemaError(f"{field}: an object of schemas is expected")
            for name, inner in value.items():
                rule.properties[name] = read = self.rule(inner, field + _step(name), depth)
                if read.default is not None:
                    rule.defaults[name] = read.default
        elif keyword == "items":
            rule.items = self.rule(value, field, depth)
        elif keyword == "additionalProperties":
            rule.others = value if isinstance(value, bool) else self.rule(value, field, depth)
        elif keyword in _LIMITS:
            if not _TYPES["number"](value):
                raise SchemaError(f"{field}: a number is expected")
            rule.limits.append((_LIMITS[keyword], value))


# The place of a value: the place of the value that holds it, and its key there; None is the spec
# itself.
_Place = tuple[Any, str | int] | None


@dataclass
class _Check:
    """One check of a spec, and what it has cost."""

    field: str
    checked: int = 0
    defaults: int = 0

    def count(self, values: int) -> None:
        self.checked += values
        if self.checked > MAX_CHECKED:
            raise SchemaError(
                f"{self.field}: too large; the schema of its kind can be applied to"
                f" {MAX_CHECKED} values"
            )

    def apply(self, value: Any, rule: _Rule, at: _Place) -> Any:
        """Return the value with defaults filled in. Raises SchemaError."""
        if rule.kind and not _TYPES[rule.kind](value):
            raise self.fault(at, f'{_show(value)} is not of type "{rule.kind}"')
        if rule.enum is not None and not self.listed(value, rule.enum):
            raise self.fault(at, f"{_show(value)} is not one of those that the schema lists")
        for (kind, measure, holds, words), bound in rule.limits:
            if _TYPES[kind](value) and not holds(measure(value), bound):
                raise self.fault(at, f"{_show(value)} {words.format(bound)}")
        if isinstance(value, dict):
            return self.members(value, rule, at)
        if isinstance(value, list) and rule.items is not None:
            self.count(len(value))
            items = rule.items
            return [self.apply(item, items, (at, place)) for place, item in enumerate(value)]
        return value

    def listed(self, value: Any, enum: frozenset[Any]) -> bool:
        if isinstance(value, dict | list):
            # No value of a schema has more parts; each is walked twice.
            parts = sum(1 for _ in itertools.islice(_values(value), MAX_NODES))
            self.count(2 * parts)
            if parts == MAX_NODES:
                return False
        return _key(value) in enum

    def members(self, value: dict[str, Any], rule: _Rule, at: _Place) -> dict[str, Any]:
        self.count(len(rule.required))
        filled = dict(value)
        for name, default in rule.defaults.items():
            if name not in filled:
                self.spend(default)
                filled[name] = default
        for name in rule.required:
            if name not in filled:
                raise self.fault((at, name), "is required")
        if not rule.properties and rule.others is True:
            return filled
        self.count(len(filled))
        for name, inner in filled.items():
            rule_of = rule.properties.get(name, rule.others)
            if rule_of is False:
                raise self.fault((at, name), "the schema has no such property")
            if isinstance(rule_of, _Rule):
                filled[name] = self.apply(inner, rule_of, (at, name))
        return filled

    def spend(self, default: Any) -> None:
        """Count what a default adds: a small default times a long list is a large spec."""
        parts = list(_values(default))
        self.count(len(parts))
        self.defaults += sum(len(part) for part in parts if isinstance(part, str))
        if self.defaults > _MOST_DEFAULTS:
            raise SchemaError(f"{self.field}: the schema's defaults would make it too large")

    def fault(self, at: _Place, message: str) -> SchemaError:
        path = ""
        while at is not None:
            at, key = at
            path = _step(key) + path
        return SchemaError(f"{self.field}{path}: {message}")


def _values(value: Any) -> Iterator[Any]:
    """Yield a value, and every value and key inside it."""
    stack = [value]
    while stack:
        current = stack.pop()
        yield current
        if isinstance(current, dict):
            yield from current
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)


def _key(value: Any, room: int = MAX_DEPTH) -> Any:
    """Return what is hashable and equal for equal JSON values: 1 is 1.0, but never true.

    A value nested deeper than `room` equals no other.
    """
    if isinstance(value, dict | list) and not room:
        return object()
    if isinstance(value, dict):
        return frozenset((name, _key(inner, room - 1)) for name, inner in value.items())
    if isinstance(value, list):
        return tuple(_key(inner, room - 1) for inner in value)
    return (isinstance(value, bool), value)


def _step(key: object) -> str:
    """Return one step of a path: `.name`, `[3]` or `["any text"]`."""
    if isinstance(key, str):
        return f".{key}" if _PLAIN.match(key) else f"[{msgspec.json.encode(key[:80]).decode()}]"
    return f"[{key}]"


def _show(value: Any) -> str:
    """Return a value for a message, cut."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        shown = msgspec.json.encode(value[:_MESSAGE]).decode()
        return shown if len(shown) <= _MESSAGE else shown[: _MESSAGE - 1] + "…"
    return str(value) if isinstance(value, float) else json.dumps(value)[:_MESSAGE]

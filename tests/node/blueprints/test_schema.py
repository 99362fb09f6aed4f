"""Schemas of blueprint definitions: what they mean, and that no hostile one does harm."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.blueprints.schema import (
    MAX_CHECKED,
    MAX_DEPTH,
    MAX_NODES,
    SchemaError,
    check_schema,
    conform,
)
from tests.node.blueprints.support import nested

NAMES = st.sampled_from(["a", "b", "$ref", "d e"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, 1.0, "", "x"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "object", "array", "null", ""])


def _schemas(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "enum": st.lists(VALUES, max_size=3),
            "required": st.lists(NAMES, max_size=2, unique=True),
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "items": inner,
            "description": st.just("what it is for"),
            "made-up": VALUES,
        },
    )


SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(st.just({}), _schemas, max_leaves=6)


def alike(one: Any, other: Any) -> bool:
    """Equality of JSON values, in other words than the code's."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return set(one) == set(other) and all(alike(one[key], other[key]) for key in one)
    return bool(one == other)


def is_a(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "": True,
        "string": isinstance(value, str),
        "number": number,
        "integer": number and value == int(value),
        "boolean": isinstance(value, bool),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "null": value is None,
    }[kind]


def allowed(schema: dict[str, Any], value: Any) -> bool:
    """The keywords that upstream documents, at every level."""
    if not is_a(value, schema.get("type", "")):
        return False
    if schema.get("enum") and not any(alike(value, one) for one in schema["enum"]):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return all(name in value for name in schema.get("required", [])) and all(
            allowed(properties[name], inner) for name, inner in value.items() if name in properties
        )
    return not isinstance(value, list) or all(allowed(schema.get("items", {}), v) for v in value)


@settings(deadline=None, max_examples=120)
@given(SCHEMAS, OBJECTS)
def test_what_the_documented_keywords_allow(schema: dict[str, Any], spec: dict[str, Any]) -> None:
    check_schema(schema, "schema")
    if allowed(schema, spec):
        assert conform(spec, schema, "spec") == spec
    else:
        with pytest.raises(SchemaError, match=r"\Aspec"):
            conform(spec, schema, "spec")


POINTERS = ["$ref", "$id", "$schema"]
CHECKS = ["type", "enum", "required", "pattern", "minimum", "maxItems", "default"]
NESTED = ["properties", "additionalProperties", "items", "not"]
KEYWORDS = st.sampled_from([*POINTERS, *CHECKS, *NESTED])
ANYTHING = st.recursive(
    SCALARS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(KEYWORDS, ANYTHING, max_size=4), OBJECTS)
def test_whatever_comes_as_a_schema_is_used_or_refused(
    schema: dict[str, Any], spec: dict[str, Any]
) -> None:
    try:
        check_schema(schema, "schema")
        conform(spec, schema, "spec")
    except SchemaError:
        pass


DISK = {
    "type": "object",
    "properties": {
        "disks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "size": {"type": "integer"},
                    "mode": {"enum": [["ro"], {"rw": True}], "default": ["ro"]},
                    "tags": {"type": "object", "properties": {"n": {"default": 1}}},
                },
                "required": ["size"],
            },
        },
        "limits": {"default": {}, "properties": {"cpu": {"default": "500m"}}},
    },
    "required": ["disks"],
}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "spec.disks: is required"),
        ({"disks": [{"size": 1}, {}]}, "spec.disks[1].size: is required"),
        ({"disks": [{"size": 1.5}]}, 'spec.disks[0].size: 1.5 is not of type "integer"'),
        ({"disks": [{"size": 1, "mode": ["rw"]}]}, "spec.disks[0].mode: "),
        ({"disks": [{"size": True}]}, "spec.disks[0].size: "),
    ],
)
def test_an_error_names_the_path(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        conform(spec, DISK, "spec")
    assert str(caught.value).startswith(message)


def test_defaults_are_filled_in_at_every_level() -> None:
    spec = {"disks": [{"size": 1, "mode": {"rw": True}}, {"size": 2.0, "tags": {}}]}
    assert conform(spec, DISK, "spec") == {
        "disks": [
            {"size": 1, "mode": {"rw": True}},
            {"size": 2.0, "mode": ["ro"], "tags": {"n": 1}},
        ],
        "limits": {"cpu": "500m"},
    }
    assert "limits" not in spec


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"type": "int"}}}, "schema.properties.a.type: "),
        ({"properties": {"a": 7}}, "schema.properties.a: "),
        ({"properties": {"x y": {"items": {"enum": 3}}}}, 'schema.properties["x y"].items.enum: '),
        ({"properties": {"a": True}}, "schema.properties.a: a schema is an object"),
        ({"properties": {"a": {"type": ["string", "null"]}}}, "schema.properties.a.type: "),
        ({"properties": {"a": {"description": 5}}}, "schema.properties.a.description: "),
        ({"required": "a"}, "schema.required: "),
        ({"required": ["a", 1]}, "schema.required: "),
        ({"items": {"minimum": "1"}}, "schema.items.minimum: a number"),
        ({"items": {"$ref": "#"}}, "schema.items.$ref: is not supported; a schema has type, "),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, "schema.properties.a.pattern: is not"),
        ({"allOf": [{"required": ["a"]}]}, "schema.allOf: is not supported"),
        ({"enum": list(range(MAX_NODES))}, "schema: at most 2000"),
        ({"properties": {str(n): {} for n in range(MAX_NODES)}}, "schema: at most 2000"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        check_schema(schema, "schema")
    assert str(caught.value).startswith(message)


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 1):
        schema = {"properties": {"a": schema}}
    check_schema(schema, "schema")
    for _ in range(10_000):
        schema = {"properties": {"a": schema}}
    with pytest.raises(SchemaError, match="deeper than 32"):
        check_schema(schema, "schema")


def test_keywords_that_restrict_nothing_are_kept_and_ignored() -> None:
    schema = {"$schema": "http://127.0.0.1:9/", "$id": "x", "title": 5, "format": "ipv4", "a": [[]]}
    check_schema(schema, "schema")
    assert conform({"b": 1}, schema, "spec") == {"b": 1}


@pytest.mark.parametrize(
    ("limits", "right", "wrong"),
    [
        ({"minimum": 0}, [0, 1.5, "text"], [-1, -0.5]),
        ({"maximum": 2.5}, [2.5, True], [3]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 2}, [1], [0, 2]),
        ({"minLength": 1, "maxLength": 2}, ["a", "åß", 7], ["", "abc"]),
        ({"minItems": 1, "maxItems": 2}, [[0], [0, 0], {}], [[], [0, 0, 0]]),
        ({"minProperties": 1, "maxProperties": 1}, [{"a": 1}, []], [{}, {"a": 1, "b": 2}]),
        ({"additionalProperties": {"type": "string"}}, [{}, {"a": "b"}], [{"a": 1}]),
        ({"additionalProperties": False, "properties": {"a": {}}}, [{"a": 1}], [{"b": 1}]),
    ],
)
def test_limits_of_one_value(limits: dict[str, Any], right: list[Any], wrong: list[Any]) -> None:
    """Upstream's own definition of a deployment has some, and the Go server ignores them."""
    schema = {"properties": {"v": limits}}
    check_schema(schema, "schema")
    for value in right:
        assert conform({"v": value}, schema, "spec") == {"v": value}
    for value in wrong:
        with pytest.raises(SchemaError, match=r"\Aspec\.v"):
            conform({"v": value}, schema, "spec")


def test_a_schema_of_an_older_release_is_refused_when_it_is_met() -> None:
    with pytest.raises(SchemaError, match=r"schema of its kind\)\.pattern: is not supported"):
        conform({"a": 1}, {"pattern": "a"}, "spec")


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "if", "unevaluatedItems"])
@pytest.mark.parametrize("levels", [1, 24])
def test_what_multiplies_the_work_is_refused(keyword: str, levels: int) -> None:
    schema = nested(keyword, levels)
    with pytest.raises(SchemaError, match="is not supported"):
        check_schema({"properties": {"a": schema}}, "schema")
    with pytest.raises(SchemaError, match="is not supported"):
        conform({"a": {"b": 1}}, {"properties": {"a": schema}}, "spec")


def deep(levels: int, value: Any) -> Any:
    """Return `value` in so many lists."""
    for _ in range(levels):
        value = [value]
    return value


HOSTILE: list[tuple[dict[str, Any], Any]] = [
    # Equality of many large values; names required; defaults, small in long lists and long ones.
    ({"items": {"enum": [[n] for n in range(900)]}}, [[899]] * 50_000),
    ({"items": {"enum": list(range(1_900))}}, [1_899] * 50_000),
    ({"items": {"enum": [deep(30, n) for n in range(60)]}}, [deep(30, 59)] * 5_000),
    (
        {"items": {"required": [f"p{n}" for n in range(900)]}},
        [{f"p{n}": 0 for n in range(900)}] * 99,
    ),
    ({"items": {"properties": {f"p{n}": {} for n in range(900)}}}, [{"a": 0, "b": 0}] * 50_000),
    ({"items": {"properties": {f"p{n}": {"default": "x" * 99} for n in range(900)}}}, [{}] * 2000),
    ({"items": {"properties": {"p": {"default": "x" * 9_000}}}}, [{}] * 20_000),
    ({"items": {"properties": {"p": {"default": [0] * 1_900}}}}, [{}] * 20_000),
    ({"additionalProperties": {}}, {str(n): n for n in range(100_000)}),
]


@pytest.mark.parametrize(("schema", "value"), HOSTILE)
def test_the_work_of_a_check_is_bounded(schema: dict[str, Any], value: Any) -> None:
    """A check is one piece of work: 20 ms are meant, ten times that allows a busy machine."""
    outer = {"properties": {"a": schema}}
    check_schema(outer, "schema")
    began = time.process_time()
    with pytest.raises(SchemaError) as caught:
        conform({"a": value}, outer, "spec")
    assert time.process_time() - began < 0.2
    assert len(str(caught.value)) < 300


def test_a_value_nested_deeper_than_any_schema_equals_nothing_in_it() -> None:
    schema = {"properties": {"a": {"enum": [deep(5, 1), deep(900, 1)]}}}
    assert conform({"a": deep(5, 1.0)}, schema, "spec") == {"a": deep(5, 1)}
    for value in (deep(6, 1), deep(900, 1), [0] * MAX_CHECKED):
        with pytest.raises(SchemaError, match=r"spec"):
            conform({"a": value}, schema, "spec")

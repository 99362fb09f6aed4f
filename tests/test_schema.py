"""Schemas of blueprint definitions: what they mean, and that no hostile one does harm."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.schema import MAX_DEPTH, MAX_NODES, SchemaError, check_schema, conform

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
CHECKS = ["type", "enum", "const", "required", "pattern", "minimum", "multipleOf", "default"]
NESTED = ["properties", "patternProperties", "items", "anyOf", "not"]
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
        ({"properties": {"a": {"pattern": "("}}}, "schema.properties.a.pattern: "),
        ({"properties": {"a": {"pattern": r"(.)\1"}}}, "schema.properties.a.pattern: "),
        ({"required": "a"}, "schema.required: "),
        ({"items": {"$ref": "#"}}, "schema.items.$ref: references are not followed"),
        ({"allOf": [{"$dynamicRef": "#x"}]}, "schema.allOf[0].$dynamicRef: "),
        ({"pattern": "(a{1000}){1000}"}, "schema.pattern: "),
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


def test_nothing_is_fetched() -> None:
    """Whether a reference or an id points into the network, nobody is asked."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        with pytest.raises(SchemaError, match="references are not followed"):
            check_schema({"properties": {"a": {"$ref": url}}}, "schema")
        schema = {"$schema": url, "$id": url, "$vocabulary": {url: True}, "type": "object"}
        check_schema(schema, "schema")
        assert conform({"a": 1}, schema, "spec") == {"a": 1}
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)*$", "(a*)*b", "(x+x+)+y", "(.*)*="])
def test_a_catastrophic_pattern_takes_linear_time(pattern: str) -> None:
    schema = {"properties": {"a": {"pattern": pattern}}}
    check_schema(schema, "schema")
    began = time.process_time()
    with pytest.raises(SchemaError, match=r"spec\.a"):
        conform({"a": "a" * 100_000 + "!"}, schema, "spec")
    assert time.process_time() - began < 2


HOSTILE = [
    # Equality of many large values; branches with an error each; patterns that cost most; defaults.
    ({"items": {"enum": [[n] for n in range(900)]}}, [[899]] * 20_000),
    ({"items": {"allOf": [{"minimum": n} for n in range(900)]}}, [5000] * 50_000),
    ({"items": {"pattern": "(a|b)*a(a|b){200}c"}}, ["ab" * 10_000] * 50),
    ({"items": {"properties": {f"p{n}": {"default": "x" * 99} for n in range(900)}}}, [{}] * 2000),
    ({"items": {"properties": {"p": {"default": "x" * 9_000}}}}, [{}] * 20_000),
    ({"uniqueItems": True}, [{"k": [n]} for n in range(20_000)] + [{"k": [0]}]),
]


@pytest.mark.parametrize(("schema", "value"), HOSTILE)
def test_the_work_of_a_check_is_bounded(schema: dict[str, Any], value: Any) -> None:
    outer = {"properties": {"a": schema}}
    check_schema(outer, "schema")
    began = time.process_time()
    with pytest.raises(SchemaError) as caught:
        conform({"a": value}, outer, "spec")
    assert time.process_time() - began < 2
    assert len(str(caught.value)) < 300


def test_branches_are_told_apart_only_where_that_is_cheap() -> None:
    """The library's error for such a choice holds a copy of the value for each branch."""
    schema = {"anyOf": [{"required": [f"z{n}"]} for n in range(600)]}
    with pytest.raises(SchemaError, match="is not valid under any of the schemas"):
        conform({"a": 1}, schema, "spec")
    with pytest.raises(SchemaError, match="does not conform to the schema of its kind"):
        conform({f"k{n}": [n] for n in range(1000)}, schema, "spec")


def test_the_library_is_loaded_when_it_is_needed() -> None:
    """A node without blueprints does not pay 16 MiB for it."""
    program = "import sys, node.schema; sys.exit('jsonschema_rs' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

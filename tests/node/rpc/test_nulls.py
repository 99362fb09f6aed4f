"""Nulls in requests: to upstream's JSON reader null is the zero value."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from cli.ops.rpc import all_calls
from colonyd.errors import Invalid
from federation.service.rpc_peers import TrustPeer
from node.model.json import null_is_absent, prune
from node.rpc import requests as req
from node.rpc.dispatch import RequestHeader, _convert, parse_payload

KINDS = sorted({call.request for call in all_calls()}, key=lambda kind: kind.__name__)
NAMES = {name for kind in KINDS for name in kind.__struct_fields__}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "args", "fun", "status"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """JSON values of a type, with nulls anywhere."""
    found: st.SearchStrategy[Any] = ANY
    if isinstance(kind, inspect.StructType):
        fields = {each.encode_name: st.none() | values(each.type) for each in kind.fields}
        found = st.fixed_dictionaries(
            {each.encode_name: fields[each.encode_name] for each in kind.fields if each.required},
            optional={
                each.encode_name: fields[each.encode_name]
                for each in kind.fields
                if not each.required
            },
        )
    elif isinstance(kind, inspect.UnionType):
        found = st.one_of([values(each) for each in kind.types])
    elif isinstance(kind, inspect.ListType):
        found = st.lists(st.none() | values(kind.item_type), max_size=2)
    elif isinstance(kind, inspect.DictType):
        found = st.dictionaries(st.text("ab", max_size=1), st.none() | values(kind.value_type))
    elif isinstance(kind, inspect.StrType):
        found = st.text("ab", max_size=2)
    elif isinstance(kind, inspect.IntType | inspect.EnumType):
        found = st.integers(-1, 3)
    elif isinstance(kind, inspect.FloatType):
        found = st.floats(-9, 9)
    elif isinstance(kind, inspect.BoolType):
        found = st.booleans()
    elif isinstance(kind, inspect.NoneType):
        found = st.none()
    return found


def by_pruning(fields: dict[str, Any], kind: type) -> Any:
    try:
        return msgspec.convert(prune(fields), kind)
    except msgspec.ValidationError as error:
        return str(error).replace("`$.", "`")


def as_served(fields: dict[str, Any], kind: type) -> Any:
    payload = base64.b64encode(json.dumps(fields).encode()).decode()
    try:
        return _convert(parse_payload(payload, nulls=null_is_absent(kind)), kind)
    except Invalid as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_request_is_read_as_if_it_was_pruned(kind: type, data: st.DataObject) -> None:
    fields = data.draw(values(inspect.type_info(kind)))
    assert as_served(fields, kind) == by_pruning(fields, kind)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(RequestHeader.__struct_fields__, ANY)))
@example({"msgtype": "a", "nonce": None, "issuedat": None, "audience": None})
def test_a_header_is_read_as_if_it_was_pruned(fields: dict[str, Any]) -> None:
    payload = base64.b64encode(json.dumps(fields).encode()).decode()
    try:
        found: Any = _convert(parse_payload(payload, nulls=True), RequestHeader)
    except Invalid as error:
        found = str(error)
    assert found == by_pruning(fields, RequestHeader)


def test_which_requests_need_no_pruning() -> None:
    """All but those with objects of any kind in which null is not the caller's own data."""
    pruned = {kind.__name__ for kind in KINDS if not null_is_absent(kind)}
    assert pruned == {"Invite", "JoinPeer", "SetPolicy", "TrustPeer"}


@pytest.mark.parametrize(
    ("kind", "given", "same"),
    [
        (req.ProcessById, {"processid": "a", "other": None}, {"processid": "a"}),
        (req.GetLogs, {"colonyname": "a", "count": None}, {"colonyname": "a"}),
        (
            req.SubmitProcess,
            {"spec": {"args": [None], "kwargs": {"a": None}, "env": None, "label": None}},
            {"spec": {"args": [None], "kwargs": {"a": None}}},
        ),
        (
            req.SubmitProcess,
            {"spec": {"env": {"a": None, "b": "c"}}},
            {"spec": {"env": {"b": "c"}}},
        ),
        (
            TrustPeer,
            {"peer": "a", "policy": {"b": None, "c": {"d": None}}},
            {"peer": "a", "policy": {"c": {}}},
        ),
    ],
)
def test_null_is_as_nothing(kind: type, given: dict[str, Any], same: dict[str, Any]) -> None:
    assert as_served(given, kind) == msgspec.convert(same, kind)

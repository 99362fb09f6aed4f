"""Stored values: the fast encoder gives the bytes of cbor2's canonical mode, always."""

from __future__ import annotations

from typing import Any

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from node import deterministic
from node.codec import SCHEMA, pack, unpack
from node.model import Conditions, FunctionSpec, Process

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=30), inner, max_size=8)
        | st.dictionaries(st.integers(0, 300), inner, max_size=3)
    ),
    max_leaves=30,
)


@settings(deadline=None)
@given(_VALUES)
def test_the_bytes_are_those_of_cbor2(value: Any) -> None:
    assert deterministic.dumps(value) == cbor2.dumps(value, canonical=True)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=300), st.integers(), max_size=30))
def test_the_order_of_insertion_does_not_show(value: dict[str, int]) -> None:
    turned = dict(reversed(value.items()))
    assert deterministic.dumps(value) == deterministic.dumps(turned)


def test_no_more_orders_are_kept_than_are_worth_it() -> None:
    for number in range(3 * deterministic._MOST_ORDERS):
        deterministic.dumps({f"key-{number}": 1, "b": 2})
        deterministic.dumps({str(number) * 2000: 1})
    assert len(deterministic._orders) <= deterministic._MOST_ORDERS
    longest = max(sum(map(len, keys)) for keys in deterministic._orders)
    assert longest <= deterministic._LONGEST_ORDER


def test_a_process_comes_back() -> None:
    spec = FunctionSpec(
        funcname="f",
        args=[1, 2.5, {"z": None, "aa": [True]}],
        kwargs={"zz": 1, "a": {"b": 1.0}},
        conditions=Conditions(colonyname="c", executortype="t"),
    )
    process = Process("ab" * 32, "cd" * 32, "me", "c", spec, prioritytime=-5, submissiontime=7)
    data = pack(process)
    assert unpack(data, Process) == process
    assert data == cbor2.dumps(cbor2.loads(data), canonical=True)
    assert cbor2.loads(data)[0] == SCHEMA

"""Stored values: the fast encoder gives the bytes of cbor2's canonical mode, always."""

from __future__ import annotations

from typing import Any

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from node.model import cbor as deterministic
from node.model import codec
from node.model.codec import SCHEMA, pack, unpack
from node.model.types import Conditions, FunctionSpec, Process

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


@settings(deadline=None)
@given(_VALUES, _VALUES)
def test_a_part_may_be_encoded_already(value: Any, other: Any) -> None:
    part = deterministic.Encoded(deterministic.dumps(value))
    whole = deterministic.dumps({"b": [other, part], "a": part})
    assert whole == cbor2.dumps({"b": [other, value], "a": value}, canonical=True)


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


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(_JSON, max_size=3), st.dictionaries(st.text(max_size=9), _JSON), st.booleans())
def test_specs_that_are_kept_are_written_as_any_other(
    args: list[Any], kwargs: dict[str, Any], again: bool
) -> None:
    spec = FunctionSpec(funcname="f", args=args, kwargs=kwargs)
    process = Process("ab" * 32, "cd" * 32, "me", "c", spec, prioritytime=-5, submissiontime=7)

    def written() -> bytes:
        """By another implementation: what has its default is left out."""
        plain = {"funcname": "f", "args": spec.args, "kwargs": spec.kwargs}
        told: dict[str, Any] = dict(
            zip(Process.__struct_fields__, ("ab" * 32, "cd" * 32, "me", "c"), strict=False)
        )
        told |= {"prioritytime": -5, "submissiontime": 7, "spec": plain}
        return cbor2.dumps([SCHEMA, told], canonical=True)

    assert pack(process) == written()
    # Equal to Python, not to CBOR: 1, 1.0 and True, or 0.0 and -0.0.
    for other in (1, 1.0, True, 0.0, -0.0, 0, False):
        spec.args = [other]
        assert pack(process) == written()
    spec.args = args
    if again:
        assert pack(process) == written()


def test_few_and_small_specs_are_kept() -> None:
    for number in range(codec._MOST_SPECS + 50):
        spec = FunctionSpec(funcname="f", args=[number, "x" * (3 * number)])
        pack(Process("ab" * 32, "cd" * 32, "me", "c", spec, prioritytime=1, submissiontime=7))
    assert len(codec._specs) <= codec._MOST_SPECS
    assert max(map(len, codec._specs)) <= codec._LARGEST_SPEC

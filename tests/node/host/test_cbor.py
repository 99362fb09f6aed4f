"""Stored values: what is written comes back the same, and so does what earlier versions wrote."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import federation
import node
from federation.wire.messages import Successor
from node.model.codec import SCHEMA, SchemaVersionError, is_older, pack, unpack, whole_spec
from node.model.types import Conditions, FunctionSpec, Graph, Process, State

_INTEGERS = st.integers(-(2**80), 2**80)
_JSON = st.recursive(
    st.none() | st.booleans() | _INTEGERS | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def earlier(value: object) -> bytes:
    """What the releases before schema 2 wrote."""
    return cbor2.dumps([1, msgspec.to_builtins(value)], canonical=True)


def modules() -> Iterator[Any]:
    for package in (node, federation):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def structs() -> dict[str, Any]:
    """All structs of the modules that store values, or tell what the values are."""
    found: dict[str, Any] = {}
    for module in modules():
        name = module.__name__
        if not any(part in name for part in (".store.", ".model.")) and not hasattr(module, "pack"):
            continue
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    # What etcd is asked, settings and messages are never values; but keys' successions are.
    other = ("msgspec", "node.etcd", "node.host", "federation.wire", "federation.outbox.outcomes")
    stored = {name: kind for name, kind in found.items() if not name.startswith(other)}
    return stored | {"Successor": Successor}


STRUCTS = structs()


def exact(value: Any) -> str:
    """A form in which 1, 1.0 and True differ, as do 0.0 and -0.0; keys are in order."""
    return repr(msgspec.to_builtins(value, order="deterministic"))


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a struct, with free data where its type is open."""
    hints: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        hints[field.name] = _told(msgspec.inspect.type_info(field.type))
    return st.builds(kind, **hints)


def _told(info: Any) -> st.SearchStrategy[Any]:
    """Values for what msgspec says of a type."""
    inspect = msgspec.inspect
    match info:
        case inspect.AnyType():
            return _JSON
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            low, high = info.ge, info.le
            return st.integers(
                -(2**63) if low is None else low, 2**63 - 1 if high is None else high
            )
        case inspect.FloatType():
            return st.floats(allow_nan=False)
        case inspect.StrType():
            return st.text(min_size=info.min_length or 0, max_size=12)
        case inspect.BytesType():
            return st.binary(max_size=300)
        case inspect.EnumType():
            return st.sampled_from(info.cls)
        case inspect.LiteralType():
            return st.sampled_from(list(info.values))
        case inspect.ListType():
            return st.lists(_told(info.item_type), max_size=3)
        case inspect.VarTupleType():
            return st.lists(_told(info.item_type), max_size=3).map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(_told, info.item_types))
        case inspect.SetType():
            return st.sets(_told(info.item_type), max_size=3)
        case inspect.FrozenSetType():
            return st.frozensets(_told(info.item_type), max_size=3)
        case inspect.DictType():
            return st.dictionaries(_told(info.key_type), _told(info.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of(*map(_told, info.types))
        case inspect.StructType():
            return of(info.cls)
        case inspect.Metadata():
            return _told(info.type)
    raise AssertionError(f"no values for {info}")


def test_all_that_is_stored_is_looked_at() -> None:
    assert len(STRUCTS) > 60
    for name in ("Process", "Graph", "Waiting", "Running", "Closed", "Executor"):
        assert f"node.model.types.{name}" in STRUCTS
    for name in ("forward.machine.Forward", "forward.updates.FollowState"):
        assert f"federation.{name}" in STRUCTS


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_any_struct_comes_back_from_both_forms(name: str) -> None:
    kind = STRUCTS[name]

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(of(kind))
    def check(value: Any) -> None:
        for stored in (pack(value), earlier(value)):
            found = unpack(stored, kind)
            assert found == value
            assert exact(found) == exact(value)

    check()


@settings(deadline=None)
@given(st.lists(_JSON, max_size=3), st.dictionaries(st.text(max_size=9), _JSON))
def test_free_data_comes_back_the_same(args: list[Any], kwargs: dict[str, Any]) -> None:
    spec = FunctionSpec(funcname="f", args=args, kwargs=kwargs)
    process = Process("ab" * 32, "cd" * 32, "me", "c", spec, -5, 7, output=args)
    for stored in (pack(process), earlier(process)):
        assert exact(unpack(stored, Process)) == exact(process)
    assert exact(unpack(pack(args), list)) == exact(args)


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
def test_integers_of_any_size_are_stored(number: int) -> None:
    spec = FunctionSpec(args=[number, 1.0, {"a": -0.0}])
    assert exact(unpack(pack(spec), FunctionSpec)) == exact(spec)


@pytest.mark.parametrize("size", [0, 200, 230, 250, 251, 252, 253, 254, 255, 256, 300, 70_000])
def test_values_of_any_size_are_stored(size: int) -> None:
    assert unpack(pack("x" * size), str) == "x" * size
    assert unpack(pack(bytes(size)), bytes) == bytes(size)


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        pack(FunctionSpec(args=["\ud800"]))


def test_keys_that_are_numbers_come_back() -> None:
    graph = Graph("a", "b", "c", "d", 1, 2, [0], ended={2: 1, 3: 5}, state=State.FAILED)
    assert unpack(pack(graph), Graph) == graph


def test_an_earlier_version_reads_the_number_of_the_schema() -> None:
    """Up to schema 1 a value was read so: its number, and the refusal, are seen."""
    for value in (Conditions(), "x" * 1000, FunctionSpec(args=["y" * 70_000])):
        version, body = cbor2.loads(pack(value))
        assert (version, type(body)) == (SCHEMA, bytes)
        assert not is_older(pack(value))
    assert is_older(earlier(Conditions()))


def test_a_later_schema_is_refused_with_a_sentence() -> None:
    later = cbor2.dumps([SCHEMA + 1, b"anything"])
    with pytest.raises(
        SchemaVersionError, match=r"schema 3, and this colonyd knows 2: run the colonyd"
    ):
        unpack(later, Process)
    assert not is_older(later)


def test_all_fields_of_a_spec_are_told() -> None:
    spec = FunctionSpec(funcname="f", conditions=Conditions(nodes=2))
    told = whole_spec(spec)
    assert list(told) == [field.name for field in msgspec.structs.fields(FunctionSpec)]
    assert told["conditions"]["nodes"] == 2
    assert told["conditions"]["gpu"] == {"name": "", "mem": "", "count": 0, "nodecount": 0}
    assert msgspec.convert(told, FunctionSpec) == spec

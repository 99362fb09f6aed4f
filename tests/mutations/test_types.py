"""Each check of types and numbers is taken away, and the test that is named for it must notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from federation.forward import updates as progress
from federation.inbox import accept as inbox
from federation.outbox import outcomes as results
from node.handlers import blueprints
from node.model import codec
from node.model import types as model
from node.rpc import dispatch as table
from node.workflows import spec as workflow_specs
from tests.sdk import test_types as named
from tests.support.noticing import Patch, must_notice


def any_number(module: Any) -> Patch:
    """Numbers of any size pass at one door."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "beyond_float", lambda text, value: False)

    return patch


def any_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas of any types are taken."""
    monkeypatch.setattr(blueprints, "fitting", lambda schema, misfit: schema)


def any_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow's text is kept whatever its fields are called."""
    monkeypatch.setattr(workflow_specs, "_NAMES", frozenset[str]())


def any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow's text may be nested at will."""
    monkeypatch.setattr(workflow_specs, "depth_of", lambda value: 0)


def nothing_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version stored has to fit."""
    monkeypatch.setattr(codec, "mended", lambda value, kind: value)


def null_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that nobody gave are shown as null."""
    monkeypatch.setattr(codec, "_listed", lambda value, *names: value)


BIG = named.test_a_number_that_no_float_holds_is_refused_wherever_it_comes_from
SCHEMA = partial(
    named.test_a_schema_that_upstream_refuses_is_refused, {"type": ["string", "null"]}, ".type"
)
OTHERWISE = partial(
    named.test_a_workflow_that_go_reads_otherwise_is_kept_as_we_read_it,
    '{"functionspecs":[{"nodename":"a","FuncName":5,"conditions":{"executortype":"t"}}]}',
)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        *[(any_number(m), BIG) for m in (table, workflow_specs, inbox, results, progress)],
        (any_schema, SCHEMA),
        (any_spelling, OTHERWISE),
        (any_depth, named.test_a_workflow_nested_too_deep_is_refused),
        (nothing_mended, named.test_what_was_stored_with_other_types_hides_nothing_else),
        (null_lists, named.test_a_partial_object_is_filled_and_no_list_is_null),
    ],
)
def test_a_named_test_notices(
    patch: Patch, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    must_notice(patch, check, monkeypatch, msgspec.ValidationError, KeyError)


def test_a_field_of_any_type_is_noticed() -> None:
    """The types themselves: a struct that takes anything there lets the poison pass."""

    class Loose(model.FunctionSpec):
        fs: Any = None

    asked = named.spec(fs={"mount": 7})
    loose = msgspec.convert(asked, Loose)
    with pytest.raises(AssertionError):
        named.shown(codec.wire_process(named.process_of(loose)), "Process")

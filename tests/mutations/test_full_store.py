"""Each check that keeps a store from filling up, broken once: a named test must notice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from node.etcd.errors import StoreFull
from node.etcd.pressure import Level, Need, Pressure
from node.etcdserver import supervisor
from node.rpc.calls import Call
from node.rpc.dispatch import Table
from tests.node.daemon import test_full_store, test_full_store_inside
from tests.node.etcd import test_pressure
from tests.support.noticing import Patch, must_notice


def unasked_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are let in however full the store is."""
    monkeypatch.setattr(Table, "_demand_room", lambda self, call, identity: None)


def talkative_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers are told of the store before they are known to have no right."""
    demand = Pressure.demand
    monkeypatch.setattr(
        Table, "_demand_room", lambda self, call, identity: demand(self.pressure, call.need)
    )


def uncounted_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what etcd tells now and then counts."""
    monkeypatch.setattr(Pressure, "wrote", lambda self, size: None)


def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends is refused together with what grows."""
    monkeypatch.setattr(Pressure, "refuses", lambda self, need: self.tight)


def flickering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is lifted as soon as the use is below it."""
    monkeypatch.setattr("node.etcd.pressure._BACK", 0)


def etcds_limit_is_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full etcd refuses all that could put anything."""
    monkeypatch.setattr(test_full_store_inside, "own_limit", lambda directory, quota: quota)


def growing_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is refused by its default, though it removes."""
    calls = [
        Call(each.payloadtype, each.request, each.who, each.handler, each.colony)
        for each in test_full_store.all_calls()
    ]
    monkeypatch.setattr(test_full_store, "all_calls", lambda: calls)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (
            unasked_table,
            test_full_store_inside.test_members_are_refused_what_grows_and_strangers_are_left_to_the_handler,
        ),
        (
            talkative_table,
            test_full_store_inside.test_members_are_refused_what_grows_and_strangers_are_left_to_the_handler,
        ),
        (uncounted_writes, test_pressure.test_what_is_written_between_two_looks_counts),
        (
            no_reserve,
            partial(
                test_pressure.test_what_grows_is_refused_first_and_what_frees_never,
                80,
                Level.SOFT,
                {Need.GROWS},
            ),
        ),
        (flickering, test_pressure.test_the_level_does_not_flicker),
        (
            growing_removals,
            test_full_store.test_each_call_says_what_it_needs_and_grows_unless_it_does,
        ),
    ],
    ids=lambda function: getattr(function, "__name__", "check"),
)
def test_a_named_test_notices(
    patch: Patch, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    must_notice(patch, check, monkeypatch, StoreFull)


def test_a_limit_of_etcds_own_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = test_full_store_inside.test_etcds_own_limit_is_above_what_its_file_has
    check(tmp_path / "one")
    assert test_full_store_inside.own_limit is supervisor.own_limit
    etcds_limit_is_the_quota(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path / "two")

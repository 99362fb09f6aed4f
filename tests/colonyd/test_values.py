"""Replies as values: upstream's nulls and unset times, and replies that are odd."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from colonyd.client.values import Cron, Log, Message, OddReply, Process, State, read, read_list

UPSTREAM: dict[str, Any] = {
    "processid": "p" * 64,
    "initiatorname": "me",
    "assignedexecutorid": "",
    "isassigned": False,
    "state": 0,
    "prioritytime": 1,
    "submissiontime": "2026-01-02T03:04:05.123456789+01:00",
    "starttime": "0001-01-01T00:00:00Z",
    "attributes": None,
    "spec": {
        "funcname": "f",
        "args": [None, {"starttime": None}],
        "kwargs": None,
        "conditions": {"colonyname": "dev", "executornames": None, "gpu": {"count": 0}},
        "fs": {"mount": "", "dirs": None},
        "env": None,
    },
    "parents": None,
    "in": None,
    "out": [None, {"a": None}],
    "errors": None,
}


def test_a_process_of_upstream_is_read() -> None:
    found = read(Process, UPSTREAM)
    assert (found.state, found.attributes, found.parents, found.errors) == (0, [], [], [])
    assert found.submitted == datetime(2026, 1, 2, 2, 4, 5, 123456, UTC)
    assert found.submitted.tzinfo is UTC
    assert found.started is None
    assert found.spec.args == [None, {"starttime": None}]  # what users wrote stays as it is
    assert found.output == [None, {"a": None}]
    assert found.spec.kwargs == {}
    assert found.spec.conditions.executornames == []


def test_lists_messages_and_logs() -> None:
    assert read_list(Cron, None) == []
    (message,) = read_list(Message, [{"payload": "aGk=", "sequence": 1, "type": "data"}])
    assert (message.payload, message.kind) == (b"hi", "data")
    log = read(Log, {"message": "x", "timestamp": 1_700_000_000_000_000_000})
    assert log.time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"state": "2"}, r"odd process: .*\$\.state"),
        ({"state": 9}, "odd process: .*9"),
        ({"spec": []}, r"\$\.spec"),
        ({"spec": {"args": {}}}, r"\$\.spec\.args"),
        ({"errors": [1]}, r"\$\.errors\[0\]"),
        ({"starttime": "yesterday"}, "starttime: 'yesterday' is no time"),
        ({"starttime": 5}, "starttime"),
        ({"attributes": [None]}, r"\$\.attributes\[0\]"),
        ({"processid": None}, "processid"),
    ],
)
def test_an_odd_reply_names_the_field(change: dict[str, Any], told: str) -> None:
    with pytest.raises(OddReply, match=told):
        read(Process, UPSTREAM | change)


@pytest.mark.parametrize("odd", [3, "x", {"a": 1}, [3], [[]]])
def test_what_is_no_list_of_rows_is_told(odd: Any) -> None:
    with pytest.raises(OddReply, match="the server sent"):
        read_list(Process, odd)


def test_states_say_whether_they_are_the_last() -> None:
    assert [state for state in State if state.ended] == [2, 3, 4]

"""Payloads between colonies: what is no id, no state or no count is refused before any key."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest

from federation.wire.envelope import Rejected
from federation.wire.messages import Outcome, Poll, Submit, dump, load

PID = "a" * 64
SUBMIT = {"pid": PID, "attempt": 1, "spec": b"{}", "initiator": "", "hops": 1, "path": []}
OUTCOME: dict[str, Any] = {
    "pid": PID,
    "attempt": 1,
    "state": 2,
    "out": b"[]",
    "errors": [],
    "localpid": "",
    "executor": "",
    "start": 0,
    "end": 0,
}


def encoded(fields: dict[str, Any]) -> bytes:
    return cbor2.dumps(fields, canonical=True)


@pytest.mark.parametrize("pid", ["", "a" * 63, PID + "\n", "A" * 64, "a" * 32 + "/" + "a" * 31, 7])
def test_a_process_id_is_64_hex_characters(pid: object) -> None:
    with pytest.raises(Rejected) as caught:
        load(encoded(SUBMIT | {"pid": pid}), Submit)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("state", [-1, 0, 1, 5, 2.0, "2"])
def test_an_outcome_is_of_a_closed_process(state: object) -> None:
    with pytest.raises(Rejected):
        load(encoded(OUTCOME | {"state": state}), Outcome)


def test_counts_are_bounded() -> None:
    for fields in (
        {"wait": 31, "ack": []},
        {"wait": -1, "ack": []},
        {"wait": 0, "ack": [PID] * 101},
    ):
        with pytest.raises(Rejected):
            load(encoded(fields), Poll)


def test_a_round_trip_keeps_all() -> None:
    submit = load(encoded(SUBMIT), Submit)
    assert load(dump(submit), Submit) == submit
    assert dump(submit) == encoded(SUBMIT)

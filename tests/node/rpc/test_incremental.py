"""Reading large messages in pieces: the same values as in one piece, and no piece that is long."""

from __future__ import annotations

import base64
import copy
import gc
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.errors import RpcError
from colonyd.keys import PrivateKey, sign_payload
from node.handlers.work.workflows import SubmitWorkflow
from node.model.codec import pack
from node.model.json import _OPAQUE, MAX_DEPTH, depth_of, prune
from node.model.types import Colony, User
from node.rpc import dispatch as table
from node.rpc import incremental as large
from node.rpc.calls import MANY_TOKENS, MAX_TOKENS, Call, Caller, Who
from node.rpc.dispatch import Table, reply
from node.store import keys
from node.store.directory import Directory
from tests.node.rpc.support import Steps

MESSAGE = 8 << 20  # bytes of a request
OWNER, MEMBER, STRANGER = (PrivateKey.generate() for _ in range(3))

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["a,[{", '"\\', "\\\\", "]}", "é\u2028"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=40,
)


def run(steps: large.Steps[Any]) -> Any:
    """What a generator of `rpc.incremental` returns."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def in_pieces(text: bytes, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(large, "_TOKENS", 3)
        return run(large.parse(text, 10**9, 10**6))


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_json_in_pieces_is_json(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        assert in_pieces(text, patch) == value


@given(values, st.data())
def test_what_is_no_json_is_none_in_pieces_either(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b"", *(b"%c" % each for each in b'[]{},":1 \\')])
        )
    try:
        wanted = msgspec.json.decode(bytes(text))
    except (msgspec.DecodeError, UnicodeDecodeError):
        wanted = None
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RpcError):
            in_pieces(bytes(text), patch)
        return
    with pytest.MonkeyPatch.context() as patch:
        assert in_pieces(bytes(text), patch) == wanted


@given(values)
def test_depth_is_told_from_the_text(value: Any) -> None:
    text = json.dumps({"a": value}).encode()
    brackets = depth_of_brackets({"a": value})
    assert not large.nesting(text, brackets)
    assert large.nesting(text, brackets - 1)


def depth_of_brackets(value: Any) -> int:
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return 1 + max((depth_of_brackets(each) for each in inside), default=0)
    return 0


@pytest.mark.parametrize("depth", [MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH])
def test_depth_has_one_bound_in_one_piece_and_in_many(depth: int) -> None:
    """`depth` objects and arrays, and a value in the innermost."""
    text = b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}"
    assert depth_of(json.loads(text)) == depth + 1
    for read in (
        lambda: table.parse_payload(base64.b64encode(text).decode()),
        lambda: run(large.parse(text, 10**9, MAX_DEPTH - 1)),
    ):
        if depth < MAX_DEPTH:
            read()
        else:
            with pytest.raises(RpcError, match="deeper than 64"):
                read()


@given(values)
def test_nulls_are_pruned_alike(value: Any) -> None:
    again = [copy.deepcopy(value) for _ in range(2)]
    fields = {"a": value, "args": again[0], "b": [again[1], {"kwargs": {"x": None}, "y": None}]}
    wanted = prune(copy.deepcopy(fields))
    run(large.prune(fields, _OPAQUE))
    assert fields == wanted


def test_structs_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_ROWS", 2)
    specs: list[dict[str, Any]] = [
        {"nodename": f"n{place}", "funcname": "f", "args": [place]} for place in range(7)
    ]
    fields = {"spec": {"colonyname": "dev", "functionspecs": specs}}
    wanted = msgspec.convert(copy.deepcopy(fields), SubmitWorkflow)
    assert run(large.convert(fields, SubmitWorkflow)) == wanted
    specs[5]["funcname"] = 5
    with pytest.raises(RpcError, match="funcname"):
        run(large.convert({"spec": {"functionspecs": specs}}, SubmitWorkflow))


@settings(max_examples=30)
@given(st.lists(values, max_size=12))
def test_an_answer_in_pieces_is_the_same(value: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "_PIECE", 12)
        assert run(large.answer("x", value)) == reply("x", value)


def test_an_answer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MOST", 3 << 20)
    with pytest.raises(RpcError, match="ask for less"):
        run(large.answer("x", ["y" * (1 << 20)] * 5))


# -- what a request may cost ----------------------------------------------------------------------


class Whole(msgspec.Struct):
    colonyname: str
    x: Any = None


def make(handler: Callable[[Caller, Whole], Awaitable[Any]]) -> Table:
    directory = Directory()
    directory.apply(f"{keys.MEMBERS}dev/colony", pack(Colony(OWNER.id, "dev")), 1)
    directory.apply(f"{keys.MEMBERS}dev/user/u", pack(User("dev", MEMBER.id, "u")), 2)
    made = Table(directory, time.time_ns)
    for name, tokens in (("onemsg", MAX_TOKENS), ("manymsg", MANY_TOKENS)):
        most = 0 if name == "manymsg" else MESSAGE
        made.add(
            Call(name, Whole, Who.MEMBER, handler, lambda r: r.colonyname, most=most, tokens=tokens)
        )
    return made


async def nothing(caller: Caller, request: Whole) -> None:
    return None


def signed(name: str, inside: bytes, key: PrivateKey) -> bytes:
    text = b'{"msgtype":"%b","colonyname":"dev","x":%b}' % (name.encode(), inside)
    payload = base64.b64encode(text).decode()
    return json.dumps(
        {"payloadtype": name, "payload": payload, "signature": sign_payload(key, payload)}
    ).encode()


def filled(item: bytes, size: int) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


ITEMS = [b"[]", b"{}", b'{"a":1}', b"0.12345678901234567e-300", b'"a"', b"1", b"null"]


async def ask(made: Table, body: bytes) -> tuple[int, str]:
    status, answer = await made.answer(body)
    payload = json.loads(base64.b64decode(json.loads(answer)["payload"]))
    return status, payload.get("message", "")


@pytest.mark.parametrize("item", ITEMS)
async def test_who_has_no_role_is_told_so_before_anything_is_parsed(
    item: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    parse, decode = large.parse, large.decode

    def counting(text: bytes, most: int, deepest: int) -> Any:
        parsed.append(len(text))
        return parse(text, most, deepest)

    def counting_decode(text: bytes) -> Any:
        parsed.append(len(text))
        return decode(text)

    monkeypatch.setattr(large, "parse", counting)
    monkeypatch.setattr(large, "decode", counting_decode)
    made = make(nothing)
    status, message = await ask(made, signed("onemsg", filled(item, 70_000), STRANGER))
    assert (status, parsed) == (413, [])
    assert "signer without a role" in message
    assert (await ask(made, signed("onemsg", filled(item, 40_000), STRANGER)))[0] == 403
    assert max(parsed) < table.SMALL


@pytest.mark.slow
@pytest.mark.parametrize("item", [b"[]", b'{"a":1}', b"0.12345678901234567e-300"])
@pytest.mark.parametrize("who", [STRANGER, MEMBER])
async def test_no_request_holds_the_loop(who: PrivateKey, item: bytes) -> None:
    """Whatever is in it. Twenty milliseconds are meant; a busy machine is given some more."""
    made = make(nothing)
    requests = [
        signed(name, filled(item, size), who)
        for name in ("onemsg", "manymsg")
        for size in (40_000, 1_000_000)
    ]
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # as the daemon does: a test run has far more for the collector to look at
    gc.set_threshold(10_000, 20, 50)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        await trio.lowlevel.checkpoint()
        for body in requests:
            await ask(made, body)
    finally:
        trio.lowlevel.remove_instrument(steps)
        gc.set_threshold(*before)
        gc.unfreeze()
    assert steps.longest < 0.1


async def test_an_envelope_is_little_else_than_its_payload() -> None:
    body = b'{"payloadtype":"onemsg","payload":"","x":[' + b"[]," * (5 << 20) + b"1]}"
    status, message = await ask(make(nothing), body)
    assert status == 400
    assert "beside the base64" in message


async def test_a_member_is_told_how_much_is_too_much() -> None:
    made = make(nothing)
    for inside, wanted in (
        (filled(b"1", 200_000), "more than 100000 strings, brackets and commas"),
        (b'"' + b"a" * (9 << 20) + b'"', "a onemsg 8388608"),
    ):
        _, message = await ask(made, signed("onemsg", inside, MEMBER))
        assert wanted in message
    assert (await ask(made, signed("manymsg", filled(b"1", 1_000_000), MEMBER)))[0] == 200


async def test_large_requests_arrive_whole() -> None:
    got: list[Any] = []

    async def keep(caller: Caller, request: Whole) -> None:
        got.append((caller.id, request.x))

    inside = {"a": list(range(9_000)), "b": [{"c": None, "d": ["x" * 300_000]}], "e": 1.5}
    body = signed("onemsg", json.dumps(inside).encode(), MEMBER)
    escaped = body.replace(b"/", b"\\/")  # as some encoders do
    made = make(keep)
    for each in (body, escaped):
        assert await ask(made, each) == (200, "")
    assert got == [(MEMBER.id, inside | {"b": [{"d": ["x" * 300_000]}]})] * 2
    for wrong in (
        body.replace(b"eHh4", b"eH=4", 1),
        body.replace(b'"payload": "', b'"payload": "*'),
    ):
        assert (await ask(made, wrong))[0] in (400, 403, 413)

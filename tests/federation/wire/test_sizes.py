"""What a message costs is bounded by its kind: bytes and items, as a request and as an answer."""

from __future__ import annotations

import gc
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

from colonyd.keys import PrivateKey
from federation.forward import updates as progress
from federation.forward.updates import FollowState
from federation.limits.decoding import load_large
from federation.outbox.outcomes import read_output
from federation.peers.registry import Peer, PeerState
from federation.routing.capabilities import CapacitySnapshot, offers
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost
from federation.wire import cbor, messages
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, Rejected, inspect, open_envelope, seal
from federation.wire.json import MOST_CONTAINERS, require_bounded
from federation.wire.messages import (
    MOST_FILES,
    MOST_FOLLOWED,
    Capabilities,
    Carried,
    Follow,
    News,
    Outcome,
    Poll,
    Submit,
    dump,
    load,
    most_items,
)
from federation.wire.signer import Signer
from federation.wire.sizes import ANSWERS, QUICK, SIZES
from node.model.json import MAX_DEPTH, depth_of
from node.model.types import Executor, ExecutorState, Function, State
from tests.federation.membership.support import friends
from tests.support.colonies import world
from tests.support.daemons import Daemon, until
from tests.support.lying_servers import LyingColony, Said, knows, peak
from tests.support.parts import Led

KEY = PrivateKey.generate()
ME = PrivateKey.generate()
PID = "a" * 64
# One kind, a struct for its payload.
STRUCTS: dict[Kind, Any] = {
    kind: getattr(messages, {"REFUSAL": "SignedRefusal"}.get(kind.name, kind.name.title()))
    for kind in Kind
    if kind is not Kind.CARD
}


def empties(count: int) -> bytes:
    """A list of so many empty lists: a byte each, and the dearest there is."""
    length = next(each for each in (1, 2, 4) if count < 1 << 8 * each)
    return bytes([0x98 + length // 2]) + count.to_bytes(length, "big") + b"\x80" * count


def sealed(kind: Kind, payload: bytes) -> bytes:
    now = int(time.time())
    return seal(KEY, kind, ME.id, payload, cti=b"x", issued=now, expires=now + 600)


async def test_each_kind_has_a_size_and_each_path_an_answer(tmp_path: Path) -> None:
    """One table, for requests and answers alike."""
    assert set(SIZES) == set(Kind)
    async with world(tmp_path) as colonies:
        ant = await colonies.add("ant")
        assert set(ant.fed.server._table) == set(ANSWERS)
    assert all(most_items(STRUCTS[kind]) == SIZES[kind].items for kind in STRUCTS)


def test_the_table_is_documented() -> None:
    """Whoever writes another colony reads it there."""
    text = (Path(__file__).parents[3] / "docs" / "federation.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|$", text, re.M)
    told = {row[0]: tuple(int(each.replace(",", "")) for each in row[1:]) for row in rows}
    assert told == {kind.value: (size.bytes, size.items) for kind, size in SIZES.items()}


@pytest.mark.parametrize("kind", list(STRUCTS))
async def test_the_worst_of_each_kind_is_cheap(kind: Kind) -> None:
    """As many empty lists as its bytes allow are refused before any of them is made."""
    size = SIZES[kind]
    data = sealed(kind, empties(size.bytes - 400))
    assert len(data) <= size.bytes
    gc.collect()
    tracemalloc.start()
    try:
        begin = time.thread_time()
        opened = open_envelope(
            data,
            kind=kind,
            audience=ME.id,
            now=time.time(),
            keys=lambda issuer: KEY.public_key,
            limit=size.bytes,
        )
        with pytest.raises(Rejected, match=f"more than {size.items} items"):
            await load_large(opened.payload, STRUCTS[kind])
        took = time.thread_time() - begin
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < 0.2, "a hundred times that before"
    assert used < 4 * size.bytes + 2**20, "copies of the bytes, and no more"


@pytest.mark.parametrize("kind", list(STRUCTS))
async def test_the_most_items_of_each_kind_take_milliseconds(kind: Kind) -> None:
    """What is let through as well; above `QUICK` it is done in a thread, in which others go on."""
    count = min(SIZES[kind].items, QUICK, SIZES[kind].bytes - 400)
    payload = empties(count - 1)
    best = min(_timed(lambda: load(payload, STRUCTS[kind], items=count)) for _ in range(5))
    assert best < 0.1


def _timed(action: Callable[[], object]) -> float:
    begin = time.thread_time()
    with pytest.raises(Rejected):
        action()
    return time.thread_time() - begin


def test_an_envelope_has_its_four_parts_only() -> None:
    """Items in the place of its header cost nothing either."""
    for part in range(4):
        parts = [cbor.encode(b"x") for _ in range(4)]
        parts[part] = empties(1_000_000)
        data = b"\xd2\x84" + b"".join(parts)
        assert _timed(lambda data=data: inspect(data, limit=2_000_000)) < 0.05  # type: ignore[misc]


def test_a_wrong_signature_of_a_large_message_is_not_explained() -> None:
    """Each of the other kinds would hash it anew."""

    def keys(issuer: str) -> bytes:
        return KEY.public_key

    def refused(payload: bytes) -> str:
        data = sealed(Kind.POLL, payload)
        with pytest.raises(Rejected) as caught:
            open_envelope(
                data, kind=Kind.SUBMIT, audience=ME.id, now=time.time(), keys=keys, limit=len(data)
            )
        return caught.value.code

    assert refused(b"small") == "wrong_kind"
    assert refused(b"x" * 100_000) == "bad_signature"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3) | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=30,
    )
)
def test_items_are_counted_as_they_are(value: Any) -> None:
    """Exactly as many as there are do, one less does not."""

    def count(value: Any) -> int:
        if isinstance(value, list):
            return 1 + sum(map(count, value))
        if isinstance(value, dict):
            return 1 + sum(1 + count(each) for each in value.values())
        return 1

    data, items = cbor.encode(value), count(value)
    assert cbor.decode(data, depth=40, items=items) == value
    if items > 1:
        with pytest.raises(cbor.TooManyItems):
            cbor.decode(data, depth=40, items=items - 1)


# -- what honest colonies send fits ----------------------------------------------------------------


async def test_a_submission_with_all_its_files_fits() -> None:
    """And does not hold the loop: a ticker beside it goes on."""
    files = [Carried("d", f"/label{n}", f"name{n}", n, PID, b"{}") for n in range(MOST_FILES)]
    submit = Submit(PID, 1, b"{}", "me", 1, ["b" * 64] * 4, "t", b"i", [b"k"] * 4, b"[]", files)
    payload = dump(submit)
    with pytest.raises(cbor.TooManyItems):
        cbor.decode(payload, depth=4, items=QUICK)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        assert await load_large(payload, Submit) == submit
        nursery.cancel_scope.cancel()
    assert ticks > 3


@given(st.lists(st.integers(0, 100), min_size=MOST_FOLLOWED, max_size=MOST_FOLLOWED), st.data())
def test_a_poll_asks_about_no_more_than_fits(channels: list[int], data: st.DataObject) -> None:
    """Whatever the processes have of channels, and however these are called."""
    letter = data.draw(st.sampled_from("xü界😀"))
    follows, weight = list[Follow](), 0
    for number, count in enumerate(channels):
        heard = {letter * 190 + str(each): 2**40 for each in range(count)}
        followed = FollowState("p", 10**6, 2**63 - 1, 2**63 - 1, 2**40, b"x" * 32, heard)
        follow = progress.follow_of(f"{number:064x}", followed)
        weight += progress.weight_of(follow)
        if follows and weight > progress.MOST_WEIGHT:
            break
        follows.append(follow)
    payload = dump(Poll(30, [PID] * 100, follows, True))
    assert len(payload) + 500 < SIZES[Kind.POLL].bytes or len(follows) == 1
    assert load(payload, Poll).follow == follows


def test_a_statement_of_a_very_large_colony_fits() -> None:
    """Names that do not fit are left out, and the message is taken."""
    types = [f"type{n}" for n in range(64)]
    executors = [
        Executor(f"{n:064x}", name, f"e{n}", "c", state=ExecutorState.APPROVED)
        for n, name in enumerate(types)
    ]
    for each in executors:
        each.lastheardfromtime = 1
    functions = [
        Function(f"{n}.{m}", f"e{n}", "c", "x" * (m % 2 * 150) + str(m))
        for n in range(64)
        for m in range(256)
    ]
    found = offers(CapacitySnapshot(1, executors, functions))
    payload = dump(Capabilities(1, True, found, ["label"] * 64, {"body": 1}, 1))
    assert len(found) == 64
    assert len(payload) + 500 < SIZES[Kind.CAPABILITIES].bytes
    assert load(payload, Capabilities).types == found


async def test_an_end_that_is_too_large_to_be_sent_is_told_as_one(tmp_path: Path) -> None:
    """A control character takes a byte in the store, and six in JSON."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with trio.fail_after(60):
            pid = await ant.submit("bee")
            await bee.work("\x01" * 700_000)
            process = await ant.closed(pid)
            assert (process.state, process.output) == (State.FAILED, [])
            assert "too large to be sent" in process.errors[0]


# -- JSON ------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=40,
)


@given(_JSON, st.integers(0, 80))
def test_json_is_bounded_as_its_values_are(value: Any, deep: int) -> None:
    """The text alone tells how deep it is, and how many there are, whatever is in its strings."""
    for _ in range(deep):
        value = [value, '[{\\"[\u2028']
    text = msgspec.json.encode(value)

    def count(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value
        return 1 + sum(map(count, inner)) if isinstance(value, list | dict) else 0

    if depth_of(value) > MAX_DEPTH:
        with pytest.raises(Rejected, match="nested deeper"):
            require_bounded(text)
        return
    require_bounded(text)
    # Few ones are not counted: as many as may be nested are no matter.
    if (containers := count(value)) > MAX_DEPTH:
        require_bounded(text, most=containers)
        with pytest.raises(Rejected, match="more than"):
            require_bounded(text, most=containers - 1)


@pytest.mark.parametrize(
    "text",
    [b'["' + b'\\"' * 100_000, b"[" * 100_000, b'{"a":' * 100_000, b'["' * 100_000, b"", b"\xff"],
)
def test_text_that_is_no_json_costs_no_more(text: bytes) -> None:
    """Strings without an end, and brackets without one."""
    assert _timed(lambda: require_bounded(text)) < 0.2


def test_an_output_of_many_lists_is_refused_before_it_is_made() -> None:
    """A hundred thousand lists are 300 kB; the largest honest outputs are long, not branched."""
    many = b"[" + b",".join([b"[]"] * (MOST_CONTAINERS + 1)) + b"]"
    assert _timed(lambda: read_output(many)) < 0.5
    numbers = msgspec.json.encode([0.5] * 300_000)
    assert len(read_output(numbers)) == 300_000
    brackets = msgspec.json.encode(["[" * 1_000_000])
    assert read_output(brackets) == ["[" * 1_000_000]


# -- over a link -----------------------------------------------------------------------------------


class Liar(PeerConnection):
    """The way to a peer that answers what it is told."""

    answer: bytes

    async def connect(self) -> Any:
        """Nothing is connected."""

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        """As `PeerConnection.exchange`."""
        return PeerResponse(200, "", self.answer)


@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.OUTCOMES, Kind.PASSED])
async def test_an_answer_by_whatever_way_has_the_size_of_its_kind(kind: Kind) -> None:
    """A carrier that is no connection of ours brings no larger ones."""

    async def renew(address: str) -> None:
        raise AssertionError

    peer = Peer(KEY.id, state="trusted", public_key=KEY.public_key)
    connection = Liar(PeerState(peer), Signer(ME, SigningClock()), Led())
    connection.answer = sealed(kind, b"x" * SIZES[kind].bytes)
    with pytest.raises(Lost, match="too_large"):
        await connection.post("/v2/submit", b"", kind)
    connection.answer = sealed(kind, b"x" * (SIZES[kind].bytes - 400))
    opened, _ = await connection.post("/v2/submit", b"", kind)
    assert opened.payload == b"x" * (SIZES[kind].bytes - 400)


def test_news_of_one_process_have_a_bound_of_their_own() -> None:
    """They come encoded inside of an answer, many in one."""
    with pytest.raises(Rejected, match="more than 4096 items"):
        load(empties(100_000), News)
    with pytest.raises(Rejected, match="more than 4096 items"):
        load(empties(100_000), Outcome)


# -- a real daemon ---------------------------------------------------------------------------------


@pytest.mark.slow
async def test_answers_of_a_peer_do_not_stall_the_daemon(
    make_daemon: Callable[..., Daemon], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A peer that is trusted, and may do nothing, answers each of our messages with empty lists."""
    liar = await LyingColony(tmp_path / "liar").start(nursery)
    daemon = knows(make_daemon("ant", COLONYD_FEDERATION__DISCOVERY="false"), liar.port).start()
    home = daemon.key("colony")
    async with daemon.client() as client:

        async def met() -> bool:
            found = await client.call("getpeersmsg", {}, home, 30)
            return any(peer["id"] == liar.key.id and peer["name"] for peer in found)

        await until(60, met, step=0.2)
        before = peak(daemon)
        answers = {
            "/v1/hello": Kind.HELLO,
            "/v1/capabilities": Kind.CAPABILITIES,
            "/v2/outcomes": Kind.OUTCOMES,
            "/v1/introductions": Kind.INTRODUCTIONS,
        }
        for path, kind in answers.items():
            # As large as any answer could be before, and as large as one of its kind may be.
            lie = liar.seal(kind, home.id, empties(SIZES[kind].bytes - 400))
            large = liar.seal(kind, home.id, empties(7_900_000))
            told = iter([large, lie])
            liar.answers[path] = lambda body, told=told, lie=lie: Said(next(told, lie))  # type: ignore[misc]
        policy = {"functions": ["none"], "max_waiting": 1}
        await client.call("trustpeermsg", {"peer": liar.key.id, "policy": policy}, home, 60)
        # Its hellos are lies as well, so it is never reached: a process for it has all tasks begin.
        conditions = {"colonyname": liar.key.id, "executortype": "cli"}
        spec = {"funcname": "f", "conditions": conditions}
        await client.call("submitfuncspecmsg", {"spec": spec}, daemon.key("user"), 60)
        slowest = 0.0

        async def answered() -> bool:
            nonlocal slowest
            begin = trio.current_time()
            await client.call("getcolonymsg", {"colonyname": "ant"}, daemon.key("user"), 60)
            slowest = max(slowest, trio.current_time() - begin)
            some = set(answers) - {"/v2/outcomes"} <= set(liar.heard)
            return some and liar.heard.count("/v1/hello") > 1

        await until(90, answered, step=0.02)
    assert slowest < 2.0, "one such answer took six seconds"
    assert peak(daemon) - before < 80 * 2**20

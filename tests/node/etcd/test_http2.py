"""The client's half of HTTP/2 without I/O: however bytes are cut, whatever the server says."""

from __future__ import annotations

from contextlib import suppress
from itertools import cycle

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from node.etcd.errors import EtcdError, EtcdTooLarge, EtcdTooManyOps, EtcdUnavailable
from node.etcd.transport import frames as f
from node.etcd.transport.frames import ProtocolFault
from node.etcd.transport.http2 import MAX_MESSAGE, WINDOW, GrpcCall, Http2Session

ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
GOOD = [("grpc-status", "0"), ("grpc-message", "")]


class Seen(GrpcCall):
    """A call that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(f.request_headers("/x", "localhost", 5000, False))
        self.messages: list[bytes] = []
        self.ends: list[EtcdError | None] = []

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_end(self, error: EtcdError | None) -> None:
        self.ends.append(error)


def message(data: bytes) -> bytes:
    return f.MESSAGE.pack(0, len(data)) + data


def headers(fields: list[tuple[str, str]], flags: int = 0, stream: int = 1) -> bytes:
    """A block that uses no table, as a server sends that was told to have none."""
    block = b"".join(f._literal(name.encode(), value.encode()) for name, value in fields)
    return f.frame(f.HEADERS, f.END_HEADERS | flags, stream, block)


def opened(body: bytes = b"question", *, end: bool = True) -> tuple[Http2Session, Seen]:
    session, call = Http2Session(), Seen()
    session.receive(f.settings({f.INITIAL_WINDOW: 65_535}))
    session.open(call, body, end=end)
    session.take_output()
    return session, call


def sent(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The frames in `data`: kind, flags, stream, payload."""
    found = []
    data = data.removeprefix(f.PREFACE)
    while data:
        head, flags, stream = f.FRAME.unpack_from(data)
        size = 9 + (head >> 8)
        found.append((head & 0xFF, flags, stream, data[9:size]))
        data = data[size:]
    return found


_SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), _SIZES, _SIZES)
def test_an_answer_in_any_pieces(
    messages: list[bytes], frames: list[int], pieces: list[int]
) -> None:
    session, call = opened()
    body = b"".join(map(message, messages))
    raw = headers(ANSWER)
    for size in cycle(frames):
        padded = bytes([size]) + body[:size] + bytes(size)
        raw += f.frame(f.DATA, f.PADDED, 1, padded) + f.frame(0xFA, 0, 0, b"of an extension")
        body = body[size:]
        if not body:
            break
    raw += headers(GOOD, f.END_STREAM)
    for size in cycle(pieces):
        session.receive(raw[:size])
        raw = raw[size:]
        if not raw:
            break
    assert (call.messages, call.ends) == (messages, [None])
    assert not session.calls


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_nonsense_is_a_fault_or_ignored(data: bytes) -> None:
    session, _ = opened()
    with suppress(ProtocolFault):
        session.receive(data)


@pytest.mark.parametrize("table", [0, 4096])
def test_headers_mean_the_same_with_and_without_the_servers_table(table: int) -> None:
    """Blocks are remembered only while equal bytes mean equal headers."""
    session = Http2Session()
    encoder = Encoder()
    encoder.header_table_size = table
    for number in range(1, 12, 2):
        call = Seen()
        session.open(call, b"", end=True)
        fields = [("grpc-status", str(number % 4)), ("grpc-message", f"n{number % 6}")]
        session.receive(f.frame(f.HEADERS, f.END_HEADERS, number, encoder.encode(ANSWER)))
        block = encoder.encode(fields)
        session.receive(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, number, block))
        assert len(call.ends) == 1
        assert f"n{number % 6} " in str(call.ends[0])
    assert bool(session._known) == (table == 0)


def test_a_large_request_goes_out_as_the_windows_open() -> None:
    session, call = Http2Session(), Seen()
    session.receive(f.settings({f.INITIAL_WINDOW: 100}))
    body = bytes(range(256)) * 1000
    session.open(call, body, end=True)
    out = b""
    while session.calls and len(out) < 5 + len(body):
        parts = [part for part in sent(session.take_output()) if part[0] == f.DATA]
        out += b"".join(part[3] for part in parts)
        assert all(len(part[3]) <= 16_384 for part in parts)
        ended = bool(parts) and parts[-1][1] == f.END_STREAM
        assert ended == (len(out) == 5 + len(body))
        session.receive(f.window_update(1, 50_000) + f.window_update(0, 30_000))
    assert out == message(body)


def test_the_server_may_send_on_as_messages_are_taken() -> None:
    session, call = opened(end=False)
    part = f.frame(f.DATA, 0, 1, message(bytes(9_995)))
    session.receive(headers(ANSWER))
    for _ in range(60):
        call.held += 10_000  # as a reader's queue would
        session.receive(part)
    assert sent(session.take_output()) == []
    session.taken(call, 600_000)
    assert sent(session.take_output()) == [(f.WINDOW_UPDATE, 0, 1, f.NUMBER.pack(600_000))]
    # A message larger than the window must not wait for a reader: it could never end.
    session.receive(f.frame(f.DATA, 0, 1, f.MESSAGE.pack(0, 2 * WINDOW)))
    for _ in range(2 * WINDOW // 16_384):
        session.receive(f.frame(f.DATA, 0, 1, bytes(16_384)))
    allowed = sum(f.NUMBER.unpack(part[3])[0] for part in sent(session.take_output()))
    assert allowed > WINDOW
    assert len(call.messages[-1]) == 2 * WINDOW


def test_more_calls_than_the_server_takes_wait_their_turn() -> None:
    session = Http2Session()
    session.receive(f.settings({f.MAX_STREAMS: 1}))
    first, second, third = Seen(), Seen(), Seen()
    for call in (first, second, third):
        session.open(call, b"", end=True)
    assert len(session.calls) == 1
    session.cancel(second, EtcdError("changed my mind"))
    session.receive(headers(ANSWER) + headers(GOOD, f.END_STREAM))
    assert (first.ends, len(second.ends), third.ends) == ([None], 1, [])
    session.receive(headers(ANSWER, 0, 3) + headers(GOOD, f.END_STREAM, 3))
    assert third.ends == [None]


def test_a_server_that_leaves_finishes_what_it_began() -> None:
    session, first = opened()
    second = Seen()
    session.open(second, b"", end=True)
    session.receive(f.frame(f.GOAWAY, 0, 0, bytes([0, 0, 0, 1, 0, 0, 0, 0])))
    assert session.leaving
    assert isinstance(second.ends[0], EtcdUnavailable)
    session.receive(headers(ANSWER) + f.frame(f.DATA, 0, 1, message(b"a")))
    session.receive(headers(GOOD, f.END_STREAM))
    assert (first.messages, first.ends) == ([b"a"], [None])


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (f.frame(f.RST_STREAM, 0, 1, f.NUMBER.pack(7)), EtcdUnavailable),
        (f.frame(f.RST_STREAM, 0, 1, f.NUMBER.pack(2)), EtcdError),
        (headers([(":status", "503")]), EtcdUnavailable),
        (f.frame(f.DATA, 0, 1, b"early"), EtcdError),
        (headers(ANSWER) + f.frame(f.DATA, f.END_STREAM, 1, message(b"")), EtcdError),
        (headers(ANSWER) + f.frame(f.DATA, 0, 1, b"\1\0\0\0\0"), EtcdError),
        (headers(ANSWER) + f.frame(f.DATA, 0, 1, f.MESSAGE.pack(0, MAX_MESSAGE + 1)), EtcdTooLarge),
        (
            headers(ANSWER) + f.frame(f.DATA, 0, 1, b"\0\0\0\0\5ab") + headers(GOOD, f.END_STREAM),
            EtcdError,
        ),
        (headers([*ANSWER, ("grpc-status", "99")], f.END_STREAM), EtcdError),
        (
            headers(
                [
                    *ANSWER,
                    ("grpc-status", "3"),
                    ("grpc-message", "etcdserver: too many%20operations in txn"),
                ],
                f.END_STREAM,
            ),
            EtcdTooManyOps,
        ),
    ],
)
def test_a_call_that_fails(raw: bytes, kind: type[EtcdError]) -> None:
    session, call = opened()
    session.receive(raw)
    assert [type(end) for end in call.ends] == [kind]
    assert not session.calls


@pytest.mark.parametrize(
    "raw",
    [
        f.frame(f.PUSH_PROMISE, 0, 1, bytes(4)),
        f.frame(f.CONTINUATION, f.END_HEADERS, 1, b""),
        f.frame(f.HEADERS, 0, 1, b"\x88") + f.frame(f.PING, 0, 0, bytes(8)),
        f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        f.frame(f.DATA, f.PADDED, 1, b"\5abc"),
        f.FRAME.pack(16_385 << 8, 0, 1),
        f.frame(f.SETTINGS, 0, 0, b"abc"),
    ],
)
def test_a_server_that_breaks_the_rules(raw: bytes) -> None:
    session, _ = opened()
    with pytest.raises(ProtocolFault):
        session.receive(raw)


def test_headers_may_be_continued() -> None:
    session, call = opened()
    raw = headers([*ANSWER, *GOOD])[9:]
    session.receive(f.frame(f.HEADERS, f.END_STREAM, 1, raw[:7]))
    session.receive(f.frame(f.CONTINUATION, 0, 1, raw[7:9]))
    session.receive(f.frame(f.CONTINUATION, f.END_HEADERS, 1, raw[9:]))
    assert call.ends == [None]


def test_pings_are_answered_with_the_next_request() -> None:
    session, _ = opened()
    session.receive(f.frame(f.PING, 0, 0, b"12345678"))
    assert not session.urgent
    session.open(Seen(), b"", end=True)
    assert sent(session.take_output())[-1] == (f.PING, f.ACK, 0, b"12345678")
    for _ in range(20):
        session.receive(f.frame(f.PING, 0, 0, b"12345678"))
    assert session.urgent


def test_a_cancelled_call_hears_no_more() -> None:
    session, call = opened()
    session.cancel(call, EtcdError("enough"))
    assert sent(session.take_output()) == [(f.RST_STREAM, 0, 1, f.NUMBER.pack(f.CANCEL))]
    session.receive(headers(ANSWER) + f.frame(f.DATA, 0, 1, message(b"late")))
    session.receive(headers(GOOD, f.END_STREAM))
    assert (call.messages, len(call.ends)) == ([], 1)


def test_a_lost_connection_ends_each_call_with_an_error_of_its_own() -> None:
    session, first = opened()
    second = Seen()
    session.open(second, b"", end=True)
    session.fail(EtcdUnavailable("lost"))
    assert isinstance(first.ends[0], EtcdUnavailable)
    assert first.ends[0] is not second.ends[0]

"""The fast reader of plain requests says nothing that h11 would not say too."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.http.fastpath import PlainHeads, parse_plain

MAX_HEADER, MAX_BODY = 4096, 200
HEADS = PlainHeads()


def plain(data: bytes) -> tuple[str, str, dict[str, str], bytes, int] | None:
    """What the fast reader says, whether it knows the head or not."""
    read = parse_plain(data, MAX_HEADER, MAX_BODY, PlainHeads())
    for _ in range(2):
        assert parse_plain(data, MAX_HEADER, MAX_BODY, HEADS) == read
    return read


def by_h11(data: bytes) -> tuple[str, str, dict[str, str], bytes, int]:
    """What h11 makes of the first request in `data`. Raises when it is not one, or not whole."""
    parser = h11.Connection(h11.SERVER, MAX_HEADER)
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Request), event
    headers = {name.decode(): value.decode() for name, value in event.headers}
    assert len(headers) == len(event.headers)
    assert event.http_version == b"1.1"
    body = b""
    while not isinstance(part := parser.next_event(), h11.EndOfMessage):
        assert isinstance(part, h11.Data), part
        body += part.data
    assert parser.their_state is h11.DONE
    assert not parser.they_are_waiting_for_100_continue
    end = len(data) - len(parser.trailing_data[0])
    return event.method.decode(), event.target.decode(), headers, body, end


_NAMES = st.sampled_from(
    [
        *(
            b"Host",
            b"content-length",
            b"Content-Length",
            b"Connection",
            b"Transfer-Encoding",
            b"Expect",
        ),
        *(b"Upgrade", b"X-Other", b"x_~!#$%&'*+-.^`|", b"Bad Name", b"", b"Caf\xc3\xa9", b"TE"),
    ]
)
_TEXTS = st.sampled_from(
    [
        *(
            b"x",
            b"0",
            b"3",
            b" 3",
            b"3\t",
            b"+3",
            b"-1",
            b"3, 3",
            b"03",
            b"3 3",
            b"99",
            b"\xb2",
            b"1_0",
        ),
        *(b"keep-alive", b"Keep-Alive", b"close", b"chunked", b"100-continue", b"h2c", b"", b"  "),
        *(b"a b\tc", b"\x00", b"a\rb", b"a\nb", b"\x7f", b"\xff", b"trailers", b"a\x0bb"),
    ]
)
_LINES = st.tuples(_NAMES, st.sampled_from([b":", b": ", b" :", b":\t", b""]), _TEXTS).map(b"".join)
_FIRST = st.sampled_from(
    [
        *(b"POST /api HTTP/1.1", b"GET /a%20b?q HTTP/1.1", b"GET / HTTP/1.0", b"HEAD / HTTP/1.1"),
        *(b"post / HTTP/1.1", b"GET  / HTTP/1.1", b"GET http://x/ HTTP/1.1", b"GET * HTTP/1.1"),
        *(b"GET /\xc3 HTTP/1.1", b"GET / HTTP/1.1 ", b"\r\nGET / HTTP/1.1", b"GET /\t HTTP/1.1"),
    ]
)
_BREAK = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n "])


@settings(deadline=None)
@given(_FIRST, st.lists(st.tuples(_BREAK, _LINES), max_size=5), _BREAK, _BREAK, st.binary())
@example(b"POST /api HTTP/1.1", [(b"\r\n", b"Host: x")], b"\r\n", b"\r\n", b"more")
def test_what_it_reads_h11_reads_too(
    first: bytes, lines: list[tuple[bytes, bytes]], end: bytes, empty: bytes, rest: bytes
) -> None:
    data = first + b"".join(ending + line for ending, line in lines) + end + empty + rest
    read = plain(data)
    if read is not None:
        assert read == by_h11(data)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60), st.binary(max_size=2))
def test_a_byte_changed_anywhere(body: bytes, place: int, other: bytes) -> None:
    data = b"POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    data = data[:place] + other + data[place + 1 :]
    read = plain(data)
    if read is not None:
        assert read == by_h11(data)


def test_what_clients_send_is_read() -> None:
    head = (
        b"POST /api HTTP/1.1\r\nHost: localhost:50080\r\nUser-Agent: python-requests/2.32\r\n"
        b"Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
        b"Content-Type: application/json\r\nContent-Length: 4\r\n\r\n"
    )
    read = plain(head + b"bodyGET")
    assert read is not None
    assert read == by_h11(head + b"bodyGET")
    assert read[3:] == (b"body", len(head) + 4)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbod",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
        + b"x" * (MAX_BODY + 1),
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEADER + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_the_rest_is_left_to_h11(data: bytes) -> None:
    assert plain(data) is None


def test_heads_are_remembered_up_to_a_number() -> None:
    heads = PlainHeads()
    one = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert heads.read(one) is heads.read(one) is not None
    long = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2000 + b"\r\n\r\n"
    assert heads.read(long) is not heads.read(long)
    for number in range(1000):
        assert heads.read(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number) is not None
        assert heads.read(b"PUT /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number) is None
    assert len(heads) <= 256

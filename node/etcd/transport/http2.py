"""HTTP/2 as a gRPC client speaks it (RFC 9113), without I/O: bytes in, bytes out, calls told.

Sockets, deadlines and new connections are in `channel`; the meaning of a message in `client`.
"""

from __future__ import annotations

import struct
from collections import deque

from hpack import Decoder, HPACKError

from node.etcd.errors import EtcdError, EtcdTooLarge, EtcdUnavailable, error_from
from node.etcd.transport import frames as f
from node.etcd.transport.frames import ProtocolFault, frame

# Bytes of one message. A page of a listing that is larger is asked for again in smaller pages.
MAX_MESSAGE = 64 * 1024 * 1024
WINDOW = 1024 * 1024  # bytes that a call may be sent ahead of its reader

_LARGEST_FRAME = 16_384  # what we take, HTTP/2's default
_LARGEST_HEADERS = 65_536
_LARGEST_WINDOW = 2**31 - 1
_LAST_STREAM = 2**31 - 1
_KNOWN_BLOCKS = 64  # header blocks whose meaning is kept


class GrpcCall:
    """One call, with the state of both directions. `channel` has the two kinds."""

    __slots__ = (
        "answered",
        "buffer",
        "finished",
        "headers",
        "held",
        "outgoing",
        "owed",
        "size",
        "stream",
        "window",
    )

    def __init__(self, headers: bytes = b"") -> None:
        self.headers = headers
        self.stream = 0  # none yet
        self.window = 0  # bytes we may send
        self.outgoing = bytearray()  # bytes that wait for the window
        self.finished = False  # nothing will be added to `outgoing`
        self.answered = False  # the response's headers are here
        self.buffer = bytearray()  # the beginning of a message
        self.size = 0  # of that message with its own header, as far as it is known
        self.owed = 0  # bytes received that the sender was not told to send more for
        self.held = 0  # of those, bytes in messages that no reader has taken yet

    def on_message(self, message: bytes) -> None:
        """Take in a message."""
        raise NotImplementedError

    def on_end(self, error: EtcdError | None) -> None:
        """Note that the call is over; called once."""
        raise NotImplementedError


class Http2Session:
    """One connection's state: sends the frames of our calls, and passes what comes in to them."""

    def __init__(self) -> None:
        self.calls: dict[int, GrpcCall] = {}
        self.ready = False  # the server's settings are here
        self.leaving = False  # no new calls: the server said so, or the numbers are used up
        self.pings = 0  # our own that were answered
        self._waiting: deque[GrpcCall] = deque()  # more than the server takes at a time
        self._blocked: dict[GrpcCall, None] = {}  # calls with bytes that found no window
        self._next_stream = 1
        self._buffer = b""
        self._window = 65_535
        self._initial_window = 65_535
        self._largest_frame = 16_384
        self._most_calls = _LARGEST_WINDOW
        self._owed = 0
        self._decoder = Decoder(max_header_list_size=_LARGEST_HEADERS)
        self._known: dict[bytes, list[tuple[str, str]]] = {}
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and headers so far
        self._later: list[bytes] = []
        self._output = [
            f.PREFACE,
            f.settings({f.HEADER_TABLE_SIZE: 0, f.ENABLE_PUSH: 0, f.INITIAL_WINDOW: WINDOW}),
            # Each call's own window is the bound; that of the connection is never in the way.
            f.window_update(0, _LARGEST_WINDOW - 65_535),
        ]

    def take_output(self) -> bytes:
        """Return the bytes to send now."""
        output = b"".join([*self._output, *self._later])
        self._output.clear()
        self._later.clear()
        return output

    @property
    def urgent(self) -> bool:
        """Return whether there is more to send than answers to pings.

        etcd's server pings after nearly each answer, to measure the line: a send for each would be
        a third of all, so they go with the next request.
        """
        return bool(self._output) or len(self._later) > 16

    # -- what we send --------------------------------------------------------------------

    def open(self, call: GrpcCall, message: bytes, *, end: bool) -> None:
        """Begin a call with a first message; `end` when it is the only one."""
        call.outgoing += f.MESSAGE.pack(0, len(message))
        call.outgoing += message
        call.finished = end
        if len(self.calls) >= self._most_calls:
            self._waiting.append(call)
        else:
            self._begin(call)

    def _begin(self, call: GrpcCall) -> None:
        call.stream = self._next_stream
        call.window = self._initial_window
        self._next_stream += 2
        self.leaving = self.leaving or self._next_stream > _LAST_STREAM
        self.calls[call.stream] = call
        self._output.append(frame(f.HEADERS, f.END_HEADERS, call.stream, call.headers))
        self._pump(call)

    def send(self, call: GrpcCall, message: bytes) -> None:
        """Send one more message of a call that is not finished; nothing if the call is over."""
        call.outgoing += f.MESSAGE.pack(0, len(message))
        call.outgoing += message
        if self.calls.get(call.stream) is call:
            self._pump(call)

    def _pump(self, call: GrpcCall) -> None:
        """Send what the windows allow."""
        outgoing, sent = call.outgoing, 0
        room = min(call.window, self._window, len(outgoing))
        while sent < room:
            part = min(self._largest_frame, room - sent)
            last = call.finished and sent + part == len(outgoing)
            payload = bytes(outgoing[sent : sent + part])
            self._output.append(frame(f.DATA, f.END_STREAM if last else 0, call.stream, payload))
            sent += part
        del outgoing[:sent]
        call.window -= sent
        self._window -= sent
        if outgoing:
            self._blocked[call] = None

    def _pump_all(self) -> None:
        for call in list(self._blocked):
            del self._blocked[call]
            self._pump(call)

    def cancel(self, call: GrpcCall, error: EtcdError | None) -> None:
        """Drop a call and tell the server; the call is told `error`."""
        if self.calls.get(call.stream) is call:
            self._output.append(f.reset(call.stream))
            self._end(call, error)
        elif call in self._waiting:
            self._waiting.remove(call)
            call.on_end(error)

    def _end(self, call: GrpcCall, error: EtcdError | None) -> None:
        del self.calls[call.stream]
        self._blocked.pop(call, None)
        call.on_end(error)
        if self._waiting and not self.leaving and len(self.calls) < self._most_calls:
            self._begin(self._waiting.popleft())

    def fail(self, error: EtcdError) -> None:
        """Fail all calls: the connection is lost."""
        self.leaving = True
        calls = [*self.calls.values(), *self._waiting]
        self.calls.clear()
        self._waiting.clear()
        self._blocked.clear()
        for call in calls:
            call.on_end(_again(error))

    def ping(self) -> None:
        """Send a ping; `pings` grows when it is answered."""
        self._output.append(frame(f.PING, 0, 0, b"colonyd!"))

    def taken(self, call: GrpcCall, size: int) -> None:
        """Note that the reader of a call has taken messages of `size` bytes."""
        call.held -= size
        self._allow(call)

    def _allow(self, call: GrpcCall) -> None:
        """Let the server send more: all that came, less what a reader has yet to take."""
        size = call.owed - call.held
        if size >= WINDOW // 4 and self.calls.get(call.stream) is call:
            call.owed -= size
            self._output.append(f.window_update(call.stream, size))

    # -- what we receive -----------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Process received bytes. Raises ProtocolFault."""
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        while end - position >= 9:
            head, flags, stream = f.FRAME.unpack_from(data, position)
            length = head >> 8
            if length > _LARGEST_FRAME:
                raise ProtocolFault(f"a frame of {length} bytes")
            after = position + 9 + length
            if after > end:
                break
            self._take(head & 0xFF, flags, stream & _LAST_STREAM, data[position + 9 : after])
            position = after
        self._buffer = data[position:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != f.CONTINUATION:
            raise ProtocolFault("headers were not continued")
        try:
            if kind == f.DATA:
                self._take_data(flags, stream, payload)
            elif kind == f.HEADERS:
                payload = f.unpadded(flags, payload)
                self._take_block(stream, flags, payload[5:] if flags & f.PRIORITY else payload)
            elif kind == f.CONTINUATION:
                if self._block is None or self._block[0] != stream:
                    raise ProtocolFault("a continuation of nothing")
                _, first_flags, block = self._block
                flags = first_flags | flags & f.END_HEADERS
                self._take_block(stream, flags, block + payload)
            elif kind == f.RST_STREAM:
                self._take_reset(stream, f.NUMBER.unpack(payload)[0])
            elif kind == f.SETTINGS:
                self._take_settings(flags, payload)
            elif kind == f.PING:
                if flags & f.ACK:
                    self.pings += 1
                else:
                    self._later.append(frame(f.PING, f.ACK, 0, payload))
            elif kind == f.GOAWAY:
                self._take_goaway(payload)
            elif kind == f.WINDOW_UPDATE:
                self._take_window(stream, f.NUMBER.unpack(payload)[0] & _LARGEST_WINDOW)
            elif kind == f.PUSH_PROMISE:
                raise ProtocolFault("a push that was never allowed")
            # Kinds that we do not know are to be ignored.
        except (struct.error, IndexError):
            raise ProtocolFault(f"a frame of kind {kind} is malformed") from None

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._owed += len(payload)
        if self._owed >= _LARGEST_WINDOW // 4:
            self._output.append(f.window_update(0, self._owed))
            self._owed = 0
        call = self.calls.get(stream)
        if call is None:  # cancelled by us, and these bytes were on their way
            return
        call.owed += len(payload)
        body = f.unpadded(flags, payload)
        if not call.answered:
            self.cancel(call, EtcdError("a body without headers"))
        elif not self._take_messages(call, body):
            return
        elif flags & f.END_STREAM:
            self._end(call, EtcdError("the answer has no status"))
        else:
            self._allow(call)

    def _take_messages(self, call: GrpcCall, data: bytes) -> bool:
        """Pass on the whole messages, keep the rest; return False when that ended the call."""
        if call.buffer:
            call.buffer += data
            if len(call.buffer) < call.size:
                return True
            data = bytes(call.buffer)
            call.buffer.clear()
        position, end = 0, len(data)
        call.size = 5
        while end - position >= 5:
            compressed, length = f.MESSAGE.unpack_from(data, position)
            if compressed:
                self.cancel(call, EtcdError("a compressed message was never asked for"))
                return False
            if length > MAX_MESSAGE:
                self.cancel(call, EtcdTooLarge(f"an answer of {length} bytes"))
                return False
            after = position + 5 + length
            if after > end:
                call.size = 5 + length
                break
            call.on_message(data[position + 5 : after])
            position = after
        if position < end:
            call.buffer += data[position:]
        return True

    def _take_block(self, stream: int, flags: int, block: bytes) -> None:
        if len(block) > _LARGEST_HEADERS:
            raise ProtocolFault("headers are too long")
        if not flags & f.END_HEADERS:
            self._block = (stream, flags, block)
            return
        self._block = None
        headers = self._headers(block)  # of any stream: the decoder must see all
        call = self.calls.get(stream)
        if call is None:
            return
        found = dict(headers)
        if not call.answered:
            if found.get(":status", "").startswith("1"):
                return
            if found.get(":status") != "200":
                self.cancel(call, EtcdUnavailable(f"HTTP status {found.get(':status')}"))
                return
            call.answered = True
        if flags & f.END_STREAM:
            self._finish(call, found)

    def _headers(self, block: bytes) -> list[tuple[str, str]]:
        """Decode a header block. We ask for an empty table: then equal bytes always mean the
        same.
        """
        remembers = self._decoder.header_table_size > 0
        if not remembers and (known := self._known.get(block)) is not None:
            return known
        try:
            headers = [(str(name), str(value)) for name, value in self._decoder.decode(block)]
        except (HPACKError, UnicodeDecodeError) as fault:
            raise ProtocolFault(f"headers: {fault}") from None
        # A block that begins with a change of the table's size is not one to be skipped.
        if not remembers and block and block[0] & 0xE0 != 0x20 and len(self._known) < _KNOWN_BLOCKS:
            self._known[block] = headers
        return headers

    def _finish(self, call: GrpcCall, trailers: dict[str, str]) -> None:
        error = f.status_error(trailers)
        if error is None and call.buffer:
            error = EtcdError("the answer ends within a message")
        if call.outgoing or not call.finished:
            self._output.append(f.reset(call.stream))
        self._end(call, error)

    def _take_reset(self, stream: int, code: int) -> None:
        call = self.calls.get(stream)
        if call is None:
            return
        name = {f.CANCEL: "CANCELLED", f.REFUSED: "UNAVAILABLE"}.get(code, "INTERNAL")
        self._end(call, error_from(name, f"the server reset the call ({code})"))

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & f.ACK:
            return
        for number, value in f.SETTING.iter_unpack(payload):
            if number == f.INITIAL_WINDOW:
                change = value - self._initial_window
                self._initial_window = value
                for call in self.calls.values():
                    call.window += change
            elif number == f.MAX_FRAME_SIZE:
                self._largest_frame = max(1, min(value, 1 << 20))
            elif number == f.MAX_STREAMS:
                self._most_calls = max(1, value)
        self.ready = True
        self._output.append(frame(f.SETTINGS, f.ACK, 0))
        self._pump_all()

    def _take_goaway(self, payload: bytes) -> None:
        last, code = struct.unpack(">II", payload[:8])
        self.leaving = True
        error = EtcdUnavailable(f"the server is leaving ({code})")
        for number in [number for number in self.calls if number > last & _LAST_STREAM]:
            self._end(self.calls[number], _again(error))
        while self._waiting:
            self._waiting.popleft().on_end(_again(error))

    def _take_window(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
            self._pump_all()
        elif (call := self.calls.get(stream)) is not None:
            call.window += size
            if call in self._blocked:
                del self._blocked[call]
                self._pump(call)


def _again(error: EtcdError) -> EtcdError:
    """Return another exception of the same kind: one that is raised in two tasks would mix
    tracebacks.
    """
    return type(error)(*error.args)

"""The bytes of HTTP/2 frames (RFC 9113) and of a gRPC call's headers: values in, bytes out.

`http2` decides when a frame is sent or expected, and what follows from it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from urllib.parse import unquote

from node.etcd.errors import EtcdError, error_from

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Kinds of frames.
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
# Flags; the first two are of different kinds.
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
# Settings.
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
# Error codes.
REFUSED, CANCEL = 0x7, 0x8

FRAME = struct.Struct(">IBI")  # length and kind, flags, stream
SETTING = struct.Struct(">HI")
NUMBER = struct.Struct(">I")
MESSAGE = struct.Struct(">BI")  # compressed or not, length

# By number, the names of gRPC's status codes.
_CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)


class ProtocolFault(Exception):
    """The other side broke the rules of HTTP/2; the connection is of no use any more."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return FRAME.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """Return a frame with our settings."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in values.items()))


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that allows `size` bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, NUMBER.pack(size))


def reset(stream: int) -> bytes:
    """Return a frame that cancels a call."""
    return frame(RST_STREAM, 0, stream, NUMBER.pack(CANCEL))


def unpadded(flags: int, payload: bytes) -> bytes:
    """Return a payload without its padding. Raises ProtocolFault or IndexError."""
    if not flags & PADDED:
        return payload
    if payload[0] >= len(payload):
        raise ProtocolFault("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header field that neither side remembers (RFC 7541, section 6.2.2), without
    Huffman.
    """
    return b"\0" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(number: int) -> bytes:
    if number < 127:
        return bytes([number])
    out, number = bytearray(b"\x7f"), number - 127
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@lru_cache(maxsize=64)
def request_headers(
    path: str, authority: str, milliseconds: int, leader: bool, token: str = ""
) -> bytes:
    """Return the header block of a call: constant bytes that depend on no earlier block."""
    fields = [
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"colonyd"),
    ]
    if milliseconds:
        fields.append((b"grpc-timeout", b"%dm" % milliseconds))
    if leader:
        fields.append((b"hasleader", b"true"))
    if token:
        fields.append((b"token", token.encode()))
    # 0x83 is `:method: POST`, 0x86 `:scheme: http` of the static table.
    return b"\x83\x86" + b"".join(_literal(name, value) for name, value in fields)


def status_error(trailers: dict[str, str]) -> EtcdError | None:
    """Return the error that the trailers of a call tell; None is success."""
    status = trailers.get("grpc-status", "")
    if status == "0":
        return None
    name = _CODES[int(status)] if status.isdecimal() and int(status) < len(_CODES) else "UNKNOWN"
    return error_from(name, unquote(trailers.get("grpc-message", "")))

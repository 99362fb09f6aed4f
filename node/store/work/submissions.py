"""The signed request of a process as it is stored: without what the process itself tells.

It is restored to the byte, so that its signature holds. A request in another form is stored as it
came.
"""

from __future__ import annotations

import binascii
import heapq
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cbor2
import msgspec

from node.model.types import FunctionSpec

# No request begins with this byte: a request is base64 text, or a COSE message of another colony.
_PACKED = b"\x01"
_LARGE = 64  # characters of a string that may be referred to; others are left to the compression
_MOST = 16  # strings that are referred to, the longest
# Text that requests have in common, the most frequent last. A part of the format: it never changes.
_COMMON = (
    b'"kwargs":null,"env":null,"fs":null,"channels":null,"nodename":"","priority":0,"maxwaittime":0,'
    b'"maxexectime":0,"maxretries":0,"label":"","conditions":{"colonyname":"","executornames":null,'
    b'"executortype":"","locationname":"","dependencies":null,"nodes":0,"cpu":"","processes":0,'
    b'"processespernode":0,"mem":"","storage":"","gpu":{"name":"","mem":"","count":0,"nodecount":0},'
    b'"walltime":0},{"msgtype": "submitfuncspecmsg", "spec": {"funcname": "", "args": ["'
    b'"kwargs": {}, "maxwaittime": 0, "maxexectime": 0, "maxretries": 0, "priority": 0, '
    b'"label": "", "conditions": {"colonyname": "", "executortype": "cli"}}, '
    b'"nonce": "", "issuedat": 1, "audience": ""}'
)


def _go(text: str) -> str:
    """Return a string as JSON, in the form that Go writes by default."""
    plain = json.dumps(text, ensure_ascii=False)
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        plain = plain.replace(character, escaped)
    return plain.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# The forms in which clients write a string; a reference gives a place in this list. New ones go to
# the end.
_WRITTEN: tuple[Callable[[str], str], ...] = (
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False),
    _go,
)


def shrink(submission: bytes, spec: FunctionSpec) -> bytes:
    """Return the stored form of a signed request for a process with `spec`."""
    payload, dot, signature = submission.partition(b".")
    try:
        raw = binascii.a2b_base64(payload)
        signed = bytes.fromhex(signature.decode())
    except ValueError:
        return submission
    if not dot or binascii.b2a_base64(raw, newline=False) != payload:
        return submission
    if signed.hex().encode() != signature:
        return submission
    pieces: list[Any] = [raw]
    for number, text in enumerate(_large(spec)):
        pieces = [part for piece in pieces for part in _refer(piece, number, text)]
    zip_ = zlib.compressobj(zdict=_dictionary(spec))
    plain = cbor2.dumps([signed, *pieces])
    packed = _PACKED + zip_.compress(plain) + zip_.flush()
    return packed if len(packed) < len(submission) else submission


def grow(stored: bytes, spec: FunctionSpec) -> bytes:
    """Return the request as it was signed. Raises ValueError when that is not possible."""
    if not stored.startswith(_PACKED):
        return stored
    try:
        unzip = zlib.decompressobj(zdict=_dictionary(spec))
        signed, *pieces = cbor2.loads(unzip.decompress(stored[1:]) + unzip.flush())
    except (zlib.error, ValueError, cbor2.CBORDecodeError) as error:
        raise ValueError(f"the signed request does not fit its process: {error}") from None
    texts = _large(spec)
    raw = b"".join(
        piece if isinstance(piece, bytes) else _written(texts[piece[0]], piece[1])
        for piece in pieces
    )
    return b".".join([binascii.b2a_base64(raw, newline=False), signed.hex().encode()])


def _large(spec: FunctionSpec) -> list[str]:
    """Return the longest strings among a function's arguments, in a fixed order."""
    return heapq.nlargest(_MOST, _texts(spec), key=len)


def _texts(spec: FunctionSpec) -> Iterator[str]:
    left: list[Any] = [spec.args, spec.kwargs, spec.env]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if len(value) >= _LARGE:
                yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [value[key] for key in sorted(value)]


def _written(text: str, how: int) -> bytes:
    return _WRITTEN[how](text).encode(errors="surrogatepass")


def _refer(piece: Any, number: int, text: str) -> list[Any]:
    """Return a piece of the request, with a reference in each place of this string."""
    if not isinstance(piece, bytes):
        return [piece]
    for how in range(len(_WRITTEN)):
        written = _written(text, how)
        before, found, after = piece.partition(written)
        if found:
            return [before, [number, how], after]
    return [piece]


def _dictionary(spec: FunctionSpec) -> bytes:
    """Return the dictionary of the compression: nothing in it changes while the process lives."""
    own = [spec.env, spec.kwargs, spec.args, spec.label, spec.funcname]
    try:
        return _COMMON + msgspec.json.encode(own, order="deterministic")[-16_000:]
    except (TypeError, ValueError, OverflowError):
        return _COMMON

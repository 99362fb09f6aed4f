"""Large messages read and written in pieces, so that other tasks run in between.

Everything here is a generator that yields after some milliseconds of work at most and returns a
value; `in_turns` runs one. `rpc.dispatch` decides who may send how much.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from math import isinf
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import msgspec
import trio

from colonyd.errors import Invalid
from colonyd.keys import IdentityError, recover_id
from node.model import numbers
from node.store.limits import ANSWER

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

_PIECE = 1 << 20  # bytes that are hashed or decoded from base64 at once; a multiple of 12
_PIECE -= _PIECE % 12
_TOKENS = 2_000  # tokens of JSON that are decoded at once
_ROWS = 2_000  # elements of a list that are converted at once
# Bytes of an envelope that are not base64: type, signature and syntax take a few hundred.
_AROUND = 65_536
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\"
_SPACE = b" \t\r\n"
MOST = ANSWER  # bytes of JSON in one answer
_GROUP = 4  # values that are encoded at once
_TOKEN = re.compile(rb'["\[\]{},]')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


async def in_turns(steps: Steps[T]) -> T:
    """Run a generator of this module; other tasks run between its pieces."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        await trio.lowlevel.checkpoint()


# -- the envelope --------------------------------------------------------------------------------


class _Raw(msgspec.Struct):
    payloadtype: str
    payload: msgspec.Raw = msgspec.Raw(b'""')
    signature: str = ""


@dataclass(frozen=True)
class RawEnvelope:
    """An envelope whose payload is still the bytes of its base64 text."""

    payloadtype: str
    payload: bytes
    signature: str


def read(body: bytes) -> Steps[RawEnvelope]:
    """Take a large envelope apart. Raises Invalid.

    Nearly all of it must be base64: then little is left that keeps a decoder busy.
    """
    around = 0
    for start in range(0, len(body), _PIECE):
        around += len(body[start : start + _PIECE].translate(None, _BASE64))
        if around > _AROUND:
            raise Invalid(f"envelope: more than {_AROUND} bytes beside the base64 of the payload")
        yield
    try:
        raw = msgspec.json.decode(body, type=_Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"envelope: {error}") from None
    yield
    payload = bytes(raw.payload)
    if not payload.startswith(b'"'):
        raise Invalid("envelope: Expected `str` - at `$.payload`")
    payload = payload[1:-1]
    if b"\\" in payload:
        payload = payload.replace(b"\\/", b"/")  # some encoders escape it
    return RawEnvelope(raw.payloadtype, payload, raw.signature)


def signer(posted: RawEnvelope) -> Steps[str]:
    """Return the id that signed the payload. Raises IdentityError."""
    digest = hashlib.sha3_256()
    for start in range(0, len(posted.payload), _PIECE):
        digest.update(posted.payload[start : start + _PIECE])
        yield
    try:
        signature = bytes.fromhex(posted.signature)
    except ValueError:
        raise IdentityError("signature: not hex, or the payload is not ASCII") from None
    return recover_id(digest.digest(), signature)


def text_of(posted: RawEnvelope) -> Steps[bytes]:
    """Return the text in the base64 of the payload. Raises Invalid."""
    pieces = []
    for start in range(0, len(posted.payload), _PIECE):
        piece = posted.payload[start : start + _PIECE]
        try:
            pieces.append(binascii.a2b_base64(piece, strict_mode=True))
        except binascii.Error:
            raise Invalid("payload: not base64") from None
        if len(pieces[-1]) < len(piece) // 4 * 3 and start + _PIECE < len(posted.payload):
            raise Invalid("payload: not base64")  # padding in the middle
        yield
    return b"".join(pieces)


# -- JSON ----------------------------------------------------------------------------------------


def _number(text: str) -> float:
    # Python's own reader: msgspec's takes 8 us for some numbers.
    value = float(text)
    if isinf(value):
        raise ValueError("Number out of range")
    return value


decode = msgspec.json.Decoder(float_hook=_number).decode


def nesting(text: bytes, most: int) -> bool:
    """Return whether valid JSON nests its objects and arrays more than `most` deep."""
    left = _STRING.sub(b"", text).translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(most):
        if not left:
            return False
        left = left.replace(b"[]", b"")  # the innermost of all open ones
    return bool(left)


@dataclass(slots=True)
class _Open:
    """An object or array that is being read: `value` is its part before `start`."""

    begin: int
    array: bool
    start: int
    comma: int = -1  # the last one since `start`
    tokens: int = 0  # since `start`
    value: Any = None
    filled: bool = False  # a value ends at `start`: only a comma or the end may follow

    def is_large(self, place: int) -> bool:
        """Return whether the text between `start` and `place` is enough to be decoded at once."""
        return self.tokens >= _TOKENS or place - self.start >= _PIECE


class _Malformed(Exception):
    pass


def parse(text: bytes, most: int, deepest: int) -> Steps[Any]:
    """Return the value of a JSON text of at most `most` tokens. Raises Invalid.

    Objects and arrays nest at most `deepest` deep; a value in them is one level more. Tokens are
    strings, brackets and commas. Large objects and arrays are decoded piece by piece.
    """
    stack: list[_Open] = []
    seen, place, end, whole = 0, -1, 0, None
    try:
        while (match := _TOKEN.search(text, place + 1)) is not None:
            seen += 1
            if not seen % _TOKENS:
                if seen > most:
                    raise Invalid(f"payload: more than {most} strings, brackets and commas")
                yield
            place = match.start()
            char = text[place]
            if char in b"[{":
                if end:
                    raise _Malformed
                stack.append(_Open(place, char == 91, place + 1))
                if len(stack) > deepest:
                    raise Invalid(f"payload: nested deeper than {deepest + 1}")
                continue
            if not stack:
                if end:
                    raise _Malformed
                break  # no object or array: the decoder is soon done with it
            top = stack[-1]
            top.tokens += 1
            if char == 34:
                place = yield from _end_of_string(text, place)
            elif char == 44:
                top.comma = place
                if top.filled or top.is_large(place):
                    _flush(text, top, place, last=False)
                    yield
            else:
                if (char == 93) is not top.array:
                    raise _Malformed
                stack.pop()
                if top.value is not None or top.is_large(place):
                    _flush(text, top, place, last=True)
                    if stack:
                        _adopt(text, stack[-1], top, place + 1)
                    whole = top.value
                    yield
                elif stack:
                    stack[-1].tokens += top.tokens
                if not stack:
                    end = place + 1
        if seen > most:
            raise Invalid(f"payload: more than {most} strings, brackets and commas")
        if whole is None or stack:
            return decode(text)
        if text[: text.find(b"{") if isinstance(whole, dict) else text.find(b"[")].strip(_SPACE):
            raise _Malformed
        if text[end:].strip(_SPACE):
            raise _Malformed
        return whole
    except _Malformed:
        raise Invalid("payload: JSON is malformed") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Invalid(f"payload: {error}") from None


def _end_of_string(text: bytes, begin: int) -> Steps[int]:
    """Return where the string ends that begins at `begin`: its last quote, or the end of the
    text.
    """
    looked, start = 0, begin + 1
    while True:
        looked += 1
        if not looked % _TOKENS:
            yield
        at = text.find(b'"', start)
        if at < 0:
            return len(text)
        before = text[start:at]
        if not (len(before) - len(before.rstrip(b"\\"))) % 2:
            return at
        start = at + 1


def _flush(text: bytes, top: _Open, place: int, *, last: bool) -> None:
    """Decode the text between `top.start` and the comma or bracket at `place`."""
    piece = text[top.start : place]
    if top.filled:
        if piece.strip(_SPACE):
            raise _Malformed
    elif piece.strip(_SPACE):
        _extend(top, piece)
    elif not last or top.value is not None:
        raise _Malformed  # nothing where a value belongs
    top.start, top.comma, top.tokens, top.filled = place + 1, -1, 0, False
    if top.value is None:
        top.value = [] if top.array else {}


def _extend(top: _Open, piece: bytes) -> None:
    more = decode(b"[" + piece + b"]" if top.array else b"{" + piece + b"}")
    if top.value is None:
        top.value = more
    elif top.array:
        top.value += more
    else:
        top.value.update(more)


def _adopt(text: bytes, parent: _Open, child: _Open, end: int) -> None:
    """Put a child that is decoded already into its parent."""
    if parent.filled:
        raise _Malformed
    before, start = b"", parent.start
    if parent.comma >= 0:
        before, start = text[parent.start : parent.comma], parent.comma + 1
        if not before.strip(_SPACE):
            raise _Malformed
        _extend(parent, before)
    prefix = text[start : child.begin].strip(_SPACE)
    if parent.value is None:
        parent.value = [] if parent.array else {}
    if parent.array:
        if prefix:
            raise _Malformed
        parent.value.append(child.value)
    else:
        if not prefix.endswith(b":"):
            raise _Malformed
        parent.value[msgspec.json.decode(prefix[:-1], type=str)] = child.value
    parent.start, parent.comma, parent.tokens, parent.filled = end, -1, 0, True


def prune(value: Any, opaque: frozenset[str]) -> Steps[None]:
    """Drop in place what `model.json.prune` drops."""
    stack, done = [value], 0
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            for key in [key for key, inner in current.items() if inner is None]:
                del current[key]
            inside: list[Any] = [inner for key, inner in current.items() if key not in opaque]
        else:
            inside = current
        for start in range(0, len(inside), _TOKENS):
            part = inside[start : start + _TOKENS]
            stack.extend(inner for inner in part if isinstance(inner, (dict, list)))
            done += len(part)
            if done > _TOKENS:
                done = 0
                yield
        done += 1


def long_digits(text: bytes) -> Steps[bool]:
    """Return the same as `model.numbers.long_digits`."""
    for start in range(0, len(text), _PIECE):
        if numbers.long_digits(text[start : start + _PIECE + numbers.LONGEST]):
            return True
        yield
    return False


# -- answers ---------------------------------------------------------------------------------------


class ReplyWriter:
    """The reply envelope of a list, as `dispatch.reply` makes it, of rows that come page by page.

    `size` is how many bytes of JSON there are so far.
    """

    def __init__(self, payloadtype: str) -> None:
        self.size = 0
        self._out = [b'{"payloadtype":%b,"payload":"' % _encode(payloadtype)]
        self._held = b"["
        self._fresh = 0

    def add(self, values: list[Any]) -> Steps[None]:
        """Add rows. Raises Invalid above MOST."""
        for start in range(0, len(values), _GROUP):
            piece = _encode(values[start : start + _GROUP])
            self._held += (b"," if self.size else b"") + piece[1:-1]
            self.size += len(piece)
            self._fresh += len(piece)
            if len(self._held) >= _PIECE:
                held = self._held
                for at in range(0, len(held) - _PIECE + 1, _PIECE):
                    self._out.append(binascii.b2a_base64(held[at : at + _PIECE], newline=False))
                    yield
                self._held = held[len(held) - len(held) % _PIECE :]
            elif self._fresh > _PIECE // 4:
                yield
            if self._fresh > _PIECE // 4:
                self._fresh = 0
            if self.size > MOST:
                raise Invalid(
                    f"the answer has more than {MOST} bytes; ask for less at once (count, limit,"
                    " seconds)"
                )

    def end(self) -> bytes:
        """Return the envelope; nothing may be added after that."""
        self._out += [binascii.b2a_base64(self._held + b"]", newline=False), b'","error":false}']
        whole, self._out = b"".join(self._out), []
        return whole


def answer(payloadtype: str, values: list[Any]) -> Steps[bytes]:
    """Return the reply envelope of a list, as `dispatch.reply` does. Raises Invalid above MOST."""
    whole = ReplyWriter(payloadtype)
    yield from whole.add(values)
    return whole.end()


def wrapped(payloadtype: str, text: bytes) -> Steps[bytes]:
    """Return the reply envelope of a value that is JSON already."""
    out = [b'{"payloadtype":%b,"payload":"' % _encode(payloadtype)]
    for start in range(0, len(text), _PIECE):
        out.append(binascii.b2a_base64(text[start : start + _PIECE], newline=False))
        yield
    return b"".join([*out, b'","error":false}'])


# -- structs ---------------------------------------------------------------------------------------


def convert(fields: dict[str, Any], kind: type[T]) -> Steps[T]:
    """Return the same as `msgspec.convert`, with long lists in parts. Raises Invalid.

    Takes the lists out of `fields`.
    """
    long: list[tuple[tuple[str, ...], list[Any], Any]] = []
    _take_out(fields, kind, (), long)
    try:
        made = msgspec.convert(fields, kind)
        for path, values, element in long:
            built: list[Any] = []
            for start in range(0, len(values), _ROWS):
                built += msgspec.convert(values[start : start + _ROWS], list[element])  # type: ignore[valid-type]
                yield
            owner: Any = made
            for name in path[:-1]:
                owner = getattr(owner, name)
            msgspec.structs.force_setattr(owner, path[-1], built)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Invalid(str(error).replace("`$.", "`")) from None
    return made


def _take_out(fields: dict[str, Any], kind: Any, path: tuple[str, ...], long: list[Any]) -> None:
    for field in msgspec.structs.fields(kind):
        value = fields.get(field.encode_name)
        # An annotated list has bounds of its own length, which parts would not show.
        kinds = {list: (field.type,), Annotated: ()}.get(
            get_origin(field.type), get_args(field.type)
        )
        here = (*path, field.name)
        if isinstance(value, list) and len(value) > _ROWS:
            for each in kinds:
                if get_origin(each) is list:
                    fields[field.encode_name] = []
                    long.append((here, value, get_args(each)[0]))
                    break
        elif isinstance(value, dict):
            inner = field.type
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                _take_out(value, inner, here, long)

"""The table of calls as it is served; the fields of a row are in `rpc.calls`.

Envelope, signature, freshness and role are checked here, in that order, before a handler runs; the
calls themselves are in the handler modules.
"""

from __future__ import annotations

import binascii
import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import trio

from colonyd.errors import Denied, Invalid, RpcError, TooLarge, TooMany, Unavailable
from colonyd.keys import IdentityError, recover_payload
from node.etcd.errors import EtcdError, EtcdNoSpace
from node.etcd.pressure import Pressure
from node.model.histogram import Histograms
from node.model.json import _OPAQUE, _TYPED, MAX_DEPTH, prune
from node.model.numbers import beyond_float
from node.rpc import incremental as large
from node.rpc.calls import Call, Caller, Who
from node.rpc.incremental import in_turns
from node.rpc.replay import FRESH, Once, ReplayGuard
from node.tasks.fairqueue import FairQueue

if TYPE_CHECKING:
    from node.store.directory import Directory

# Bytes of a body that is read in one piece, for any signer; more is read in pieces, and only for a
# signer with a role here.
SMALL = 65_536
# Bytes of a body from which on few are served at the same time: each takes several times its size.
_HUGE, _HUGE_AT_ONCE = 1 << 20, 2
# Listings that are made at the same time, and those of one signer; others wait.
_LISTINGS, _OF_ONE = 8, 2
# Bytes of JSON beyond which answers are made one after the other: they are in memory.
_LARGE = 1 << 20
# Seconds that one listing may take.
LONGEST_LISTING = 60.0
# Calls of one signer that are served at a time; more wait, and delay no other signer.
MAX_CALLS = 32
# Bounds in seconds of the durations of calls, and calls that may have a histogram: all of them.
_DURATIONS, _MOST_CALLS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0), 1000


R = TypeVar("R")
_to_json = msgspec.json.Encoder().encode


class Envelope(msgspec.Struct):
    """The posted envelope: the signature covers the ASCII of `payload`."""

    payloadtype: str
    payload: str = ""
    signature: str = ""


class RequestHeader(msgspec.Struct):
    """The signed fields that every request may carry beside its own.

    `audience` is the id of the server that the request is for.
    """

    msgtype: str = ""
    nonce: str = ""
    issuedat: float = 0.0
    audience: str = ""


def _unheard(identity: str) -> str:
    return ""


@dataclass
class Table:
    """All calls of a node; federation adds its own. `now` gives Unix nanoseconds.

    `pressure` is the store's: it decides which kinds of calls are let in.
    """

    directory: Directory
    now: Callable[[], int]
    strict_replay: bool = False
    replays: ReplayGuard | None = None
    pressure: Pressure = field(default_factory=Pressure)
    calls: dict[str, Call[Any]] = field(default_factory=dict)
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    # Of calls that were served: names are those of the table, and refusals tell of no work done.
    durations: Histograms = field(default_factory=lambda: Histograms(_DURATIONS, _MOST_CALLS))
    turns: FairQueue = field(default_factory=lambda: FairQueue(each=MAX_CALLS))
    # Large requests are read one after the other: many at once would share each turn of the loop.
    _reading: trio.Lock = field(default_factory=trio.Lock)
    _huge: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(_HUGE_AT_ONCE))
    _listings: FairQueue = field(default_factory=lambda: FairQueue(room=_LISTINGS, each=_OF_ONE))
    _large: trio.Lock = field(default_factory=trio.Lock)

    def add(self, call: Call[Any]) -> None:
        """Add a row. Raises ValueError when the payload type is taken."""
        if call.payloadtype in self.calls:
            raise ValueError(f"payload type {call.payloadtype} is in the table twice")
        self.calls[call.payloadtype] = call

    async def answer(
        self, body: bytes, signed: Callable[[str], str] = _unheard
    ) -> tuple[int, bytes]:
        """Answer one posted envelope: HTTP status and body. Raises only faults of our own.

        `signed` gets the id of a signer with a right here, and returns why the signer is not served
        now, or "".
        """
        begun = trio.current_time()
        if len(body) <= _HUGE:
            return await self._answer(body, signed, begun)
        async with self._huge:
            return await self._answer(body, signed, begun)

    async def _answer(
        self, body: bytes, signed: Callable[[str], str], begun: float
    ) -> tuple[int, bytes]:
        payloadtype = ""
        try:
            if len(body) <= SMALL:
                envelope = decode_envelope(body)
                payloadtype, payload = envelope.payloadtype, envelope.payload
                call = self.calls.get(payloadtype)
                if call is not None and call.who is Who.ANYONE:
                    caller, request = Caller(""), call.request()
                else:
                    caller, request = self.admit(call, envelope)
            else:
                async with self._reading:
                    posted = await in_turns(large.read(body))
                    payloadtype = posted.payloadtype
                    call = self.calls.get(payloadtype)
                    caller, request = await self._admit_large(call, posted, len(body))
                    payload = posted.payload.decode("ascii")
            assert call is not None  # otherwise it was refused above
            entitled = call.who is not Who.SIGNED or self.directory.knows(caller.id)
            if caller.id and entitled and (refusal := signed(caller.id)):
                raise TooMany(refusal)
            result = await self._served(call, caller, request, payload)
        except RpcError as error:
            self._count(payloadtype, error.status)
            return error.status, failure(error.status, error.message)
        except EtcdError as error:
            self._count(payloadtype, 507 if isinstance(error, EtcdNoSpace) else 503)
            raise
        self._count(payloadtype, 200)
        if call.polls is None or not call.polls(request):  # how long a poll waits says nothing
            self.durations.add(payloadtype, trio.current_time() - begun)
        return 200, result

    def _count(self, payloadtype: str, status: int) -> None:
        # Names that any client may invent must not fill the memory.
        name = payloadtype if payloadtype in self.calls else "unknown"
        self.answered[name, status] += 1

    async def _served(self, call: Call[R], caller: Caller, request: R, payload: str) -> bytes:
        """Run the handler of a call when it is the signer's turn; return the reply envelope.

        Raises RpcError and EtcdError.
        """
        polls = call.polls is not None and call.polls(request)
        if polls or call.who is Who.ANYONE:
            return await self._handled(call, caller, request, payload)
        signer = (caller.id,)
        if waited := not self.turns.may(signer):
            await self.turns.enter(signer)
        try:
            if waited:
                # The right and the room in the store may have changed while the call waited.
                head = RequestHeader(nonce=caller.nonce, issuedat=caller.issued)
                now = self.authorise(call, caller.id, request, head, Envelope(call.payloadtype))
                caller = replace(now, submission=caller.submission)
                if self.pressure.tight:
                    self._demand_room(call, caller.id)
            if call.heavy is not None and call.heavy(request):
                async with self._listings.of(signer):
                    return await self._handled(call, caller, request, payload)
            return await self._handled(call, caller, request, payload)
        finally:
            self.turns.leave(signer)

    async def _handled(self, call: Call[R], caller: Caller, request: R, payload: str) -> bytes:
        if self.replays is None or not caller.nonce or call.reads(request):
            result = await call.handler(caller, request)
        else:
            result = await self._once(self.replays, call, caller, request, payload)
        kind = call.payloadtype
        if isinstance(result, list):
            return await in_turns(large.answer(kind, result))
        if isinstance(result, AsyncGenerator):
            return await self._listed(kind, result)
        kind = call.answers or kind
        text = _to_json({} if result is None else result)
        if len(text) > SMALL:
            return await in_turns(large.wrapped(kind, text))
        return _envelope(kind, text, b"false")

    async def _listed(self, kind: str, rows: AsyncGenerator[list[Any], None]) -> bytes:
        """Make the reply of rows in pages: memory holds the answer so far and one page."""
        whole = large.ReplyWriter(kind)
        with trio.move_on_after(LONGEST_LISTING) as limit:
            async with AsyncExitStack() as stack:
                pages = await stack.enter_async_context(aclosing(rows))
                alone = False
                async for page in pages:
                    await in_turns(whole.add(page))
                    if whole.size > _LARGE and not alone:
                        del page
                        # The time of waiting for other answers does not count.
                        left, limit.deadline = limit.deadline - trio.current_time(), math.inf
                        await stack.enter_async_context(self._large)
                        limit.deadline, alone = trio.current_time() + left, True
                return whole.end()
        raise Unavailable(
            f"the listing took more than {LONGEST_LISTING:.0f} s; ask for less at once (count,"
            " limit, seconds), or again later",
        )

    async def _once(
        self, replays: ReplayGuard, call: Call[R], caller: Caller, request: R, payload: str
    ) -> Any:
        """Serve a signed request that changes something, or answer its repeat."""
        entitled = True
        if call.who is Who.SIGNED:
            # Nothing is stored for a signer without a right.
            entitled = bool(self.directory.colonies_of(caller.id))
            if call.once is not Once.TOGETHER:
                self.directory.demand_colonies(caller.id)

        async def again(place: str) -> Any:
            return None if call.again is None else await call.again(caller, request, place)

        claim = replays.claim(caller.id, caller.nonce, caller.issued, payload, lasting=call.lasting)
        claim.placed = call.again is not None
        return await replays.once(
            claim,
            call.once,
            lambda: call.handler(caller, request),
            again,
            entitled=entitled,
        )

    def admit(self, call: Call[R] | None, envelope: Envelope) -> tuple[Caller, R]:
        """Check signature, freshness, role and the store's room, and read the request.

        Raises RpcError, and StoreFull for calls that the store no longer takes.
        """
        try:
            identity = recover_payload(envelope.payload, envelope.signature)
        except IdentityError as error:
            raise Denied(str(error)) from None
        if call is None:
            raise Denied(f"payloadtype: {envelope.payloadtype[:60]!r} is unknown")
        fields = parse_payload(envelope.payload, nulls=call.takes_nulls)
        return self._judge(call, identity, envelope, fields, _convert)

    async def _admit_large(
        self, call: Call[R] | None, posted: large.RawEnvelope, size: int
    ) -> tuple[Caller, R]:
        """Do the same as `admit` for a large request, which is read in pieces."""
        try:
            identity = await in_turns(large.signer(posted))
        except IdentityError as error:
            raise Denied(str(error)) from None
        if call is None:
            raise Denied(f"payloadtype: {posted.payloadtype[:60]!r} is unknown")
        if not self.directory.knows(identity):
            raise TooLarge(f"the request has {size} bytes; {SMALL} of a signer without a role here")
        if 0 < call.most < size:
            raise TooLarge(f"the request has {size} bytes; a {call.payloadtype} {call.most}")
        text = await in_turns(large.text_of(posted))
        fields = await in_turns(large.parse(text, call.tokens, MAX_DEPTH - 1))
        if not isinstance(fields, dict):
            raise Invalid("payload: a JSON object is expected")
        if b"null" in text:
            await in_turns(large.prune(fields, _OPAQUE))
            if isinstance(fields.get(_TYPED), dict):
                await in_turns(large.prune(fields[_TYPED], frozenset()))
        if await in_turns(large.long_digits(text)) and beyond_float(text, fields):
            raise Invalid("payload: a number beyond what a 64-bit float holds")
        names = ("msgtype", "nonce", "issuedat", "audience")
        head = {name: fields[name] for name in names if name in fields}
        request = await in_turns(large.convert(fields, call.request))
        envelope = Envelope(posted.payloadtype, posted.payload.decode("ascii"), posted.signature)
        await trio.lowlevel.checkpoint()
        return self._judge(call, identity, envelope, head, lambda fields, kind: request)

    def _judge(
        self,
        call: Call[R],
        identity: str,
        envelope: Envelope,
        fields: dict[str, Any],
        convert: Callable[[dict[str, Any], type[R]], R],
    ) -> tuple[Caller, R]:
        """Check freshness and role of a request whose signature holds. Raises RpcError."""
        head = _convert(fields, RequestHeader)
        if head.msgtype != envelope.payloadtype:
            raise Invalid(f"msgtype: {head.msgtype[:60]!r} differs from payloadtype")
        self._check_fresh(head)
        self._check_audience(head)
        request = convert(fields, call.request)
        caller = self.authorise(call, identity, request, head, envelope)
        if self.pressure.tight:
            # Before the nonce is used up: a request that is refused here was not served, and may be
            # repeated.
            self._demand_room(call, identity)
        return caller, request

    def _check_fresh(self, head: RequestHeader) -> None:
        if not head.nonce and not head.issuedat:
            if self.strict_replay:
                raise Invalid("nonce, issuedat: this server demands both (rpc.replay = 'strict')")
            return
        now = self.now() / 1e9
        if not 16 <= len(head.nonce) <= 128:
            raise Invalid("nonce: between 16 and 128 characters, beside issuedat")
        if abs(now - head.issuedat) > FRESH:
            raise Denied(
                f"issuedat: {head.issuedat:.0f} is {head.issuedat - now:+.0f} s from this"
                f" server's clock {now:.0f}; at most {FRESH} s are allowed"
            )

    def _demand_room(self, call: Call[Any], identity: str) -> None:
        """Raise StoreFull for a call that the store no longer takes; handlers refuse strangers."""
        if call.who is not Who.SIGNED or self.directory.colonies_of(identity):
            self.pressure.demand(call.need)

    def _check_audience(self, head: RequestHeader) -> None:
        """Raise RpcError for a request that was signed for another server."""
        if not head.audience:
            if self.strict_replay:
                raise Invalid("audience: this server demands its id in it (rpc.replay = 'strict')")
            return
        if head.audience != self.directory.serverid:
            raise Denied(
                f"audience: signed for server {head.audience[:64]!r}, and this is"
                f" {self.directory.serverid!r}"
            )

    def authorise(
        self, call: Call[R], identity: str, request: R, head: RequestHeader, envelope: Envelope
    ) -> Caller:
        """Check the role that the call demands. Raises Denied."""
        submission = b""
        if call.keeps:
            submission = f"{envelope.payload}.{envelope.signature}".encode()
        if call.who is Who.SIGNED or call.colony is None:
            if call.who is Who.SERVER and identity != self.directory.serverid:
                raise Denied("Access denied: only the server owner may call this")
            return Caller(identity, nonce=head.nonce, submission=submission, issued=head.issuedat)
        name, who = call.colony(request), call.who
        member = self.directory.member(name, identity, approved=who is not Who.LOOSE)
        allowed = member is not None and who is not Who.OWNER
        if not allowed and (who is Who.OWNER or who is Who.BOTH):
            colony = self.directory.colony(name)
            allowed = colony is not None and colony.colonyid == identity
        if not allowed:
            # Clients of upstream look for the first two words.
            raise Denied(
                f"Access denied: colony {name[:80]!r}: only its {call.who.value} may call this"
            )
        return Caller(identity, name, member, head.nonce, submission, head.issuedat)


def reply(payloadtype: str, value: Any) -> bytes:
    """Return the bytes of a reply envelope."""
    return _envelope(payloadtype, _to_json(value), b"false")


def failure(status: int, message: str) -> bytes:
    """Return the bytes of the reply envelope of a refusal."""
    return _envelope("error", _to_json({"status": status, "message": message}), b"true")


def _envelope(payloadtype: str, text: bytes, error: bytes) -> bytes:
    return b'{"payloadtype":%b,"payload":"%b","error":%b}' % (
        _to_json(payloadtype),
        # Base64 needs no escapes: the encoder would look for them in every character.
        binascii.b2a_base64(text, newline=False),
        error,
    )


def decode_envelope(body: bytes) -> Envelope:
    """Return the posted envelope. Raises Invalid."""
    try:
        return msgspec.json.decode(body, type=Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"envelope: {error}") from None


def parse_payload(payload: str, *, nulls: bool = False) -> dict[str, Any]:
    """Return the JSON object inside a base64 payload, pruned unless `nulls` may stay. Raises
    Invalid.
    """
    try:
        text = binascii.a2b_base64(payload, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Invalid("payload: not base64") from None
    try:
        value = large.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"payload: {error}") from None
    if not isinstance(value, dict):
        raise Invalid("payload: a JSON object is expected")
    if text.count(b"{") + text.count(b"[") >= MAX_DEPTH and large.nesting(text, MAX_DEPTH - 1):
        raise Invalid(f"payload: nested deeper than {MAX_DEPTH}")
    if beyond_float(text, value):
        raise Invalid("payload: a number beyond what a 64-bit float holds")
    pruned: dict[str, Any] = prune(value) if not nulls and b"null" in text else value
    return pruned


def _convert(fields: dict[str, Any], kind: type[R]) -> R:
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError):
        pass  # it may have a null that is to be pruned
    try:
        return msgspec.convert(prune(fields), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Invalid(str(error).replace("`$.", "`")) from None

"""WebSocket `/pubsub`: subscriptions to processes and channels, several to a socket.

Each text frame holds a signed envelope that the table checks; each answer is a reply envelope of
type `subscribeprocessmsg` with a process, or of type `subscribechannelmsg` with entries. Differs
from upstream on purpose:

- subscribing takes membership, still held at each event: upstream tells anybody about a process;
- events are a broadcast within the caller's colonies: upstream mixes colonies, and gives each
  event to one subscriber;
- refusals are told in an error envelope: upstream closes the socket or says nothing;
- a process that ends in another state than the awaited one is sent too, as nothing else will
  come: with upstream, a client that waits for success never hears of a failure;
- the end of a process ends the subscriptions to its channels as a timeout does: with upstream,
  no frame tells of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    TextMessage,
)
from wsproto.frame_protocol import FrameProtocol
from wsproto.utilities import ProtocolError, RemoteProtocolError

from colonyd.errors import Denied, Invalid, RpcError, TooMany, Unavailable
from node.etcd.errors import EtcdError
from node.handlers.work.channels import Subscribe
from node.handlers.work.processes import locate
from node.host.log import get_logger
from node.http.message import Request, Response
from node.model.codec import wire_process
from node.model.types import Process, State
from node.rpc import requests as req
from node.rpc.calls import MINE, PARTY, Call, Caller, Calls, Who
from node.rpc.dispatch import Table, decode_envelope, failure, reply
from node.runtime.node import Node
from node.store.work.channels import ChannelEntry
from node.streams.channels import FRAME, frames, wire
from node.streams.subscriptions import ByteCounter, SubscriptionFilter

log = get_logger("pubsub")

PATH = "/pubsub"
MAX_MESSAGE = 65_536  # bytes of one message; an envelope with a subscription has a few hundred
MAX_SUBSCRIPTIONS = 64  # on one socket
IDLE = 30.0  # seconds a socket may stay without a subscription
UNSIGNED_IDLE = 10.0  # likewise, when no right was shown on it yet
PING = 30.0  # seconds between pings; a peer silent for two of these is gone
RECHECK = 10.0  # seconds after which a quiet process is read again, in case an event was lost
_LONGEST = 366 * 86_400
_SEND_SECONDS = 5.0  # a peer that doesn't take a frame in this time is cut off
_CLOSE_SECONDS = 2.0
_CHUNK = 16_384
_NORMAL, _GOING_AWAY, _TOO_BIG, _TOO_SLOW = 1000, 1001, 1009, 1013
_TYPE, _CHANNEL = "subscribeprocessmsg", "subscribechannelmsg"
_CHANNEL_SECONDS = 30  # of a channel subscription that names no timeout, as upstream
_CHANNEL_PAGE = 64  # entries read at once for a subscriber, if they are small
_FRAMES = 8 << 20  # bytes of frames that are kept for other sockets with the same event
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_HANDSHAKE = ("host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version")


def upgrade(node: Node, table: Table, frames: Frames, request: Request) -> Response:
    """Answer `GET /pubsub`: take the connection over. Raises Invalid for a bad handshake."""
    websocket = WSConnection(ConnectionType.SERVER)
    headers = [
        (name.encode(), request.headers[name].encode("latin-1"))
        for name in _HANDSHAKE
        if name in request.headers
    ]
    try:
        websocket.initiate_upgrade_connection(headers, PATH)
        list(websocket.events())
        accept = websocket.send(AcceptConnection())
    except (ProtocolError, ValueError) as error:
        raise Invalid(f"{PATH} speaks WebSocket, version 13: {str(error)[:200]}") from None

    signed = request.signed

    async def take_over(stream: trio.abc.Stream, ahead: bytes) -> None:
        await _WebSocket(node, table, frames, websocket, stream, signed).run(accept, ahead)

    return Response(101, upgrade=take_over)


def _frame(text: bytes) -> bytes:
    """Return a whole message as bytes of the wire: without a mask, it is the same on each
    socket.
    """
    return bytes(FrameProtocol(client=False, extensions=[]).send_data(text.decode(), fin=True))


class Frames:
    """Frames with processes, made once for all sockets that send them at the same time.

    `sending` is the bytes that sockets are sending now, `most` how many these may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.sending = 0
        # The process is kept with its frame, so that its id() is not reused.
        self._made: OrderedDict[int, tuple[Process, bytes]] = OrderedDict()
        self._size = 0

    def of(self, process: Process) -> bytes:
        """Return the frame with a process."""
        known = self._made.get(id(process))
        if known is not None:
            return known[1]
        made = _frame(reply(_TYPE, wire_process(process)))
        self._made[id(process)] = (process, made)
        self._size += len(made)
        while self._size > _FRAMES:
            _, (_, old) = self._made.popitem(last=False)
            self._size -= len(old)
        return made


# The rows that a socket serves, bound to it.
calls: Calls[_WebSocket] = Calls("WebSocket")


class _WebSocket:
    """One WebSocket: a reader, a task that pings, and a task for each subscription."""

    def __init__(
        self,
        node: Node,
        table: Table,
        frames: Frames,
        websocket: WSConnection,
        stream: trio.abc.Stream,
        signed: Callable[[str], str],
    ) -> None:
        self._node = node
        self._table = table
        self._frames = frames
        self._signed = signed
        self._known = False  # whether a right was shown on it
        self._meter = ByteCounter()
        # One event is read and sent at a time, however many subscriptions there are.
        self._reading = trio.Lock()
        self._open_ones: set[tuple[str, str, bytes]] = set()
        self._websocket = websocket
        self._stream = stream
        self._writing = trio.Lock()
        self._broken = False
        self._ending: tuple[int, str] | None = None
        self._scope = trio.CancelScope()
        self._active = 0
        self._idle_since = trio.current_time()
        self._heard = trio.current_time()
        self._calls: dict[str, Call[Any]] = {call.payloadtype: call for call in calls.of(self)}

    async def run(self, accept: bytes, ahead: bytes) -> None:
        """Serve the socket to its end; a drain cancels this, and the peer is told."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await self._write(accept)
                    nursery.start_soon(self._keep_alive)
                    await self._read(nursery, ahead)
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._say_goodbye()

    def _end(self, code: int, reason: str) -> None:
        """Close the socket: the first reason counts."""
        if self._ending is None:
            self._ending = (code, reason)
        self._scope.cancel()

    def _break(self) -> None:
        """Drop the connection without another byte."""
        self._broken = True
        self._scope.cancel()

    # -- writing -------------------------------------------------------------------------

    async def _write(self, data: bytes | Callable[[], bytes]) -> None:
        """Send bytes, or the result of a call at the moment of sending."""
        # Shielded: half a frame would spoil all later ones.
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._broken:
                    return
                if callable(data):
                    if self._websocket.state is not ConnectionState.OPEN:
                        return
                    data = data()
                if self._frames.sending and self._frames.sending + len(data) > self._frames.most:
                    return self._end(
                        _TOO_SLOW, "too much waits to be taken by sockets (rpc.max_unread)"
                    )
                self._frames.sending += len(data)
                sent = False
                try:
                    with trio.move_on_after(_SEND_SECONDS):
                        await self._stream.send_all(data)
                        sent = True
                except _GONE:
                    pass
                finally:
                    self._frames.sending -= len(data)
                if not sent:
                    self._break()

    async def _send(self, event: Event) -> None:
        if not self._broken and self._websocket.state is ConnectionState.OPEN:
            await self._write(self._websocket.send(event))

    async def _tell(self, process: Process) -> None:
        await self._write(lambda: self._frames.of(process))

    async def _refuse(self, error: RpcError) -> None:
        await self._send(TextMessage(data=failure(error.status, error.message).decode()))

    async def _say_goodbye(self) -> None:
        """Send our close frame, or answer the peer's, then read on until the peer has it."""
        state = self._websocket.state
        if self._broken or state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return
        code, reason = self._ending or (
            _GOING_AWAY,
            "the server is stopping, or needs the place (rpc.max_unsigned, rpc.max_connections)",
        )
        try:
            await self._stream.send_all(
                self._websocket.send(CloseConnection(code=code, reason=reason))
            )
            while self._websocket.state is ConnectionState.LOCAL_CLOSING:
                data = bytes(await self._stream.receive_some(_CHUNK))
                if not data:
                    return
                self._websocket.receive_data(data)
                for _ in self._websocket.events():
                    pass
        except (*_GONE, ProtocolError):
            pass

    # -- reading -------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery, ahead: bytes) -> None:
        data, message = ahead, bytearray()
        while True:
            if data:
                self._heard = trio.current_time()
                try:
                    self._websocket.receive_data(data)
                    for event in self._websocket.events():
                        await self._take(nursery, event, message)
                except RemoteProtocolError as error:
                    hint = error.event_hint
                    code = int(hint.code) if isinstance(hint, CloseConnection) else 1002
                    self._end(code, "the frames make no sense")
            # Here, too, so that a peer that sends without pause can't outrun the end.
            await trio.lowlevel.checkpoint()
            try:
                data = bytes(await self._stream.receive_some(_CHUNK))
            except _GONE:
                data = b""
            if not data:
                return self._break()

    async def _take(self, nursery: trio.Nursery, event: Event, message: bytearray) -> None:
        if isinstance(event, Ping):
            await self._send(event.response())
        elif isinstance(event, CloseConnection):
            self._end(int(event.code) if event.code != 1005 else _NORMAL, "")
        elif isinstance(event, (TextMessage, BytesMessage)):
            data = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            message += data
            if len(message) > MAX_MESSAGE:
                self._end(_TOO_BIG, f"a message has at most {MAX_MESSAGE} bytes")
                message.clear()
            elif event.message_finished:
                body = bytes(message)
                message.clear()
                await self._open(nursery, body)

    async def _open(self, nursery: trio.Nursery, body: bytes) -> None:
        """Check an envelope, and start the subscription that it asks for."""
        try:
            envelope = decode_envelope(body)
            call = self._calls.get(envelope.payloadtype)
            caller, request = self._table.admit(call, envelope)
            assert call is not None  # or admit had refused
            if not 0 <= getattr(request, "state", 0) <= State.CANCELLED:
                raise Invalid("state: 0 waiting, 1 running, 2 successful, 3 failed or 4 cancelled")
            self._node.directory.demand_colonies(caller.id)
            key = (call.payloadtype, caller.id, msgspec.json.encode(request))
            if key in self._open_ones:
                return  # it is told already
            self._require_room(caller)
        except RpcError as error:
            return await self._refuse(error)
        self._active += 1
        self._node.subscriptions.signers[caller.id] += 1
        self._open_ones.add(key)
        nursery.start_soon(self._serve, call, caller, request, key)

    def _require_room(self, caller: Caller) -> None:
        """Raise Invalid or TooMany when there are too many subscriptions or connections."""
        if self._active >= MAX_SUBSCRIPTIONS:
            raise Invalid(f"a socket has at most {MAX_SUBSCRIPTIONS} subscriptions")
        subscriptions = self._node.subscriptions
        if subscriptions.signers[caller.id] >= subscriptions.most:
            raise TooMany(
                f"this signer has {subscriptions.most} subscriptions, which is the most"
                " (rpc.max_subscriptions); end some",
            )
        if refusal := self._signed(caller.id):
            raise TooMany(refusal)
        self._known = True

    async def _keep_alive(self) -> None:
        pinged = trio.current_time()
        while True:
            await trio.sleep(1)
            now = trio.current_time()
            patience = IDLE if self._known else UNSIGNED_IDLE
            if not self._active and now - self._idle_since > patience:
                self._end(_NORMAL, f"no subscription for {patience:.0f} seconds")
            if now - self._heard > 2 * PING + _SEND_SECONDS:
                self._break()
            if now - pinged >= PING:
                pinged = now
                await self._send(Ping())

    # -- subscriptions -------------------------------------------------------------------

    async def _serve(
        self, call: Call[Any], caller: Caller, request: Any, key: tuple[str, str, bytes]
    ) -> None:
        try:
            await call.handler(caller, request)
        except RpcError as error:
            await self._refuse(error)
        except EtcdError as error:
            log.warning("store", error=error)
            await self._refuse(Unavailable("the store does not answer; try again"))
        except Exception:
            log.exception("subscription failed", payloadtype=call.payloadtype)
            await self._refuse(RpcError("internal error"))
        finally:
            self._active -= 1
            self._open_ones.discard(key)
            signers = self._node.subscriptions.signers
            signers[caller.id] -= 1
            if not signers[caller.id]:
                del signers[caller.id]
            self._idle_since = trio.current_time()

    @contextmanager
    def _until(self, timeout: int) -> Iterator[None]:
        """Bound the time of a whole subscription; when it is over, so is the socket, as
        upstream.
        """
        with trio.move_on_after(min(max(timeout, 0), _LONGEST)) as scope:
            yield
        if scope.cancelled_caught:
            self._end(_NORMAL, "timeout")

    @calls.row(_TYPE, req.SubscribeProcess, Who.SIGNED, reply="Process, as often", rights=MINE)
    async def _follow_one(self, caller: Caller, request: req.SubscribeProcess) -> None:
        """Told each time a process enters a state, and of its end.

        The end of the process is the subscription's end, too.
        """
        colonies = frozenset(self._node.directory.colonies_of(caller.id))
        wanted = SubscriptionFilter(colonies, request.state, request.processid)
        last = (-1, -1)

        async def told_all(process: Process) -> bool:
            """Send the new states; return True when no other can come."""
            nonlocal last
            mark = (process.attempt, int(process.state))
            if wanted.matches(process) and mark > last:
                last = mark
                self._require_member(caller, process.colonyname)
                await self._tell(process)
            return process.closed

        async def look() -> bool:
            async with self._reading:
                return await told_all(await locate(self._node, caller, request.processid))

        # Registered before the state is read: an event between the two is not lost.
        with self._node.subscriptions.open(wanted, meter=self._meter) as events:
            if await look():
                return
            with self._until(request.timeout):
                while True:
                    process: Process | None = None
                    with trio.move_on_after(RECHECK):
                        try:
                            process = await events.receive()
                        except trio.EndOfChannel:
                            return self._too_slow()
                    if await (look() if process is None else told_all(process)):
                        return

    @calls.row(
        "subscribeprocessesmsg",
        req.SubscribeProcesses,
        Who.SIGNED,
        reply="Process, as often",
        rights="member of the colony",
    )
    async def _follow_any(self, caller: Caller, request: req.SubscribeProcesses) -> None:
        """Told of each process of an executor type that enters a state; one frame each."""
        if request.colonyname:
            self._require_member(caller, request.colonyname)
            colonies = [request.colonyname]
        else:
            colonies = self._node.directory.demand_colonies(caller.id)
        wanted = SubscriptionFilter(
            frozenset(colonies), request.state, executortype=request.executortype
        )
        with (
            self._node.subscriptions.open(wanted, meter=self._meter) as events,
            self._until(request.timeout),
        ):
            while True:
                try:
                    process = await events.receive()
                except trio.EndOfChannel:
                    return self._too_slow()
                self._require_member(caller, process.colonyname)
                await self._tell(process)

    @calls.row(_CHANNEL, Subscribe, Who.SIGNED, reply="MsgEntry[], as often", rights=PARTY)
    async def _follow_channel(self, caller: Caller, request: Subscribe) -> None:
        """Told of each message.

        That is what is in a channel and what comes, then an empty array; the socket stays open.
        Each look goes on from the last entry that was sent: nothing is buffered, missed or sent
        twice, and who reads slowly gets more entries in a frame.
        """
        channels, index = self._node.channels, max(0, request.afterseq)
        page = 4  # few at first: they may be large
        seconds = min(max(request.timeout or _CHANNEL_SECONDS, 0), _LONGEST)
        with channels.hear(request.processid, request.name) as news, trio.CancelScope() as patience:
            while True:
                news.quiet()
                # First the process, then its channel: after its end nothing is appended.
                async with self._reading:
                    process, _ = await channels.find(caller.id, request.processid, request.name)
                    entries = await channels.read(process, request.name, index, page)
                    size = sum(len(entry.payload) for entry in entries)
                    page = max(1, page // 8) if size > FRAME else min(2 * page, _CHANNEL_PAGE)
                    for frame in frames(entries):
                        await self._say(frame)
                        index += len(frame)
                if entries:
                    continue
                if process.closed:
                    break
                # As upstream, the clock runs once the backlog is sent.
                patience.deadline = min(patience.deadline, trio.current_time() + seconds)
                await news.wait(RECHECK)
        await self._say([])

    async def _say(self, entries: list[ChannelEntry]) -> None:
        await self._write(lambda: _frame(reply(_CHANNEL, [wire(entry) for entry in entries])))

    def _too_slow(self) -> None:
        self._end(_TOO_SLOW, "events come faster than they are taken")

    def _require_member(self, caller: Caller, colony: str) -> None:
        if self._node.directory.member(colony, caller.id) is None:
            raise Denied(f"colony {colony[:80]!r}: only its {Who.MEMBER.value} may call this")

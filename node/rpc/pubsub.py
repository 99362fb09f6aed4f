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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
from wsproto.utilities import ProtocolError, RemoteProtocolError

from node.channels import frames, wire
from node.codec import wire_process
from node.errors import RpcError, bad, denied
from node.etcd.errors import EtcdError
from node.handlers.channels import Subscribe
from node.handlers.processes import locate
from node.log import get_logger
from node.model import Process, State
from node.node import Node
from node.rpc import requests as req
from node.rpc.message import Request, Response
from node.rpc.table import Call, Caller, Table, Who, decode_envelope, reply
from node.subscriptions import Wanted

log = get_logger("pubsub")

PATH = "/pubsub"
MAX_MESSAGE = 65_536  # bytes of one message; an envelope with a subscription has a few hundred
MAX_SUBSCRIPTIONS = 64  # on one socket
IDLE = 30.0  # seconds a socket may stay without a subscription
PING = 30.0  # seconds between pings; a peer silent for two of these is gone
RECHECK = 10.0  # seconds after which a quiet process is read again, in case an event was lost
_LONGEST = 366 * 86_400
_SEND_SECONDS = 5.0  # a peer that doesn't take a frame in this time is cut off
_CLOSE_SECONDS = 2.0
_CHUNK = 16_384
_NORMAL, _GOING_AWAY, _TOO_BIG, _TOO_SLOW = 1000, 1001, 1009, 1013
_TYPE, _CHANNEL = "subscribeprocessmsg", "subscribechannelmsg"
_CHANNEL_SECONDS = 30  # of a channel subscription that names no timeout, as upstream
_CHANNEL_PAGE = 64  # entries read at once for a subscriber
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_HANDSHAKE = ("host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version")


def upgrade(node: Node, table: Table, request: Request) -> Response:
    """Answer `GET /pubsub`: take the connection over. Raises RpcError 400 for a bad handshake."""
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
        raise bad(f"{PATH} speaks WebSocket, version 13: {str(error)[:200]}") from None

    async def take_over(stream: trio.abc.Stream, ahead: bytes) -> None:
        await _Socket(node, table, websocket, stream).run(accept, ahead)

    return Response(101, upgrade=take_over)


class _Socket:
    """One WebSocket: a reader, a task that pings, and a task for each subscription."""

    def __init__(
        self, node: Node, table: Table, websocket: WSConnection, stream: trio.abc.Stream
    ) -> None:
        self._node = node
        self._table = table
        self._websocket = websocket
        self._stream = stream
        self._writing = trio.Lock()
        self._broken = False
        self._ending: tuple[int, str] | None = None
        self._scope = trio.CancelScope()
        self._active = 0
        self._idle_since = trio.current_time()
        self._heard = trio.current_time()
        self._calls: dict[str, Call[Any]] = {
            call.payloadtype: call
            for call in (
                Call(_TYPE, req.SubscribeProcess, Who.SIGNED, self._follow_one),
                Call("subscribeprocessesmsg", req.SubscribeProcesses, Who.SIGNED, self._follow_any),
                Call(_CHANNEL, Subscribe, Who.SIGNED, self._follow_channel),
            )
        }

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

    async def _write(self, data: bytes) -> None:
        # Shielded: half a frame would spoil all that follow.
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._broken:
                    return
                sent = False
                try:
                    with trio.move_on_after(_SEND_SECONDS):
                        await self._stream.send_all(data)
                        sent = True
                except _GONE:
                    pass
                if not sent:
                    self._break()

    async def _send(self, event: Event) -> None:
        if not self._broken and self._websocket.state is ConnectionState.OPEN:
            await self._write(self._websocket.send(event))

    async def _tell(self, process: Process) -> None:
        await self._send(TextMessage(data=reply(_TYPE, wire_process(process)).decode()))

    async def _refuse(self, error: RpcError) -> None:
        failure = {"status": error.status, "message": error.message}
        await self._send(TextMessage(data=reply("error", failure, error=True).decode()))

    async def _say_goodbye(self) -> None:
        """Send our close frame, or answer the peer's, then read on until the peer has it."""
        state = self._websocket.state
        if self._broken or state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return
        code, reason = self._ending or (_GOING_AWAY, "the server is stopping")
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
                raise bad("state: 0 waiting, 1 running, 2 successful, 3 failed or 4 cancelled")
            if self._active >= MAX_SUBSCRIPTIONS:
                raise bad(f"a socket has at most {MAX_SUBSCRIPTIONS} subscriptions")
        except RpcError as error:
            return await self._refuse(error)
        self._active += 1
        nursery.start_soon(self._serve, call, caller, request)

    async def _keep_alive(self) -> None:
        pinged = trio.current_time()
        while True:
            await trio.sleep(1)
            now = trio.current_time()
            if not self._active and now - self._idle_since > IDLE:
                self._end(_NORMAL, f"no subscription for {IDLE:.0f} seconds")
            if now - self._heard > 2 * PING + _SEND_SECONDS:
                self._break()
            if now - pinged >= PING:
                pinged = now
                await self._send(Ping())

    # -- subscriptions -------------------------------------------------------------------

    async def _serve(self, call: Call[Any], caller: Caller, request: Any) -> None:
        try:
            await call.handler(caller, request)
        except RpcError as error:
            await self._refuse(error)
        except EtcdError as error:
            log.warning("store", error=error)
            await self._refuse(RpcError(503, "the store does not answer; try again"))
        except Exception:
            log.exception("subscription failed", payloadtype=call.payloadtype)
            await self._refuse(RpcError(500, "internal error"))
        finally:
            self._active -= 1
            self._idle_since = trio.current_time()

    @contextmanager
    def _until(self, timeout: int) -> Iterator[None]:
        """The time of a whole subscription; when it is over, so is the socket, as upstream."""
        with trio.move_on_after(min(max(timeout, 0), _LONGEST)) as scope:
            yield
        if scope.cancelled_caught:
            self._end(_NORMAL, "timeout")

    async def _follow_one(self, caller: Caller, request: req.SubscribeProcess) -> None:
        """Tell each time a process enters a state, and of its end: the subscription's end, too."""
        colonies = frozenset(self._node.directory.colonies_of(caller.id))
        wanted = Wanted(colonies, request.state, request.processid)
        last = (-1, -1)

        async def told_all(process: Process) -> bool:
            """Send what is new; True when nothing can come any more."""
            nonlocal last
            mark = (process.attempt, int(process.state))
            if wanted.matches(process) and mark > last:
                last = mark
                self._require_member(caller, process.colonyname)
                await self._tell(process)
            return process.closed

        # Registered before the state is read: what comes between the two is not lost.
        with self._node.subscriptions.open(wanted) as events:
            if await told_all(await locate(self._node, caller, request.processid)):
                return
            with self._until(request.timeout):
                while True:
                    process: Process | None = None
                    with trio.move_on_after(RECHECK):
                        try:
                            process = await events.receive()
                        except trio.EndOfChannel:
                            return self._too_slow()
                    if process is None:
                        process = await locate(self._node, caller, request.processid)
                    if await told_all(process):
                        return

    async def _follow_any(self, caller: Caller, request: req.SubscribeProcesses) -> None:
        """Tell of each process of an executor type that enters a state."""
        if request.colonyname:
            self._require_member(caller, request.colonyname)
            colonies = [request.colonyname]
        else:
            colonies = self._node.directory.demand_colonies(caller.id)
        wanted = Wanted(frozenset(colonies), request.state, executortype=request.executortype)
        with self._node.subscriptions.open(wanted) as events, self._until(request.timeout):
            async for process in events:
                self._require_member(caller, process.colonyname)
                await self._tell(process)
            self._too_slow()

    async def _follow_channel(self, caller: Caller, request: Subscribe) -> None:
        """Send what is in a channel and what comes, then an empty array; the socket stays open.

        Each look goes on from the last entry that was sent: nothing is buffered, missed or sent
        twice, and who reads slowly gets more entries in a frame.
        """
        channels, index = self._node.channels, max(0, request.afterseq)
        seconds = min(max(request.timeout or _CHANNEL_SECONDS, 0), _LONGEST)
        with channels.hear(request.processid, request.name) as news, trio.CancelScope() as patience:
            while True:
                news.quiet()
                # First the process, then its channel: after its end nothing is appended.
                process, _ = await channels.find(caller.id, request.processid, request.name)
                entries = await channels.read(process, request.name, index, _CHANNEL_PAGE)
                for frame in frames(entries):
                    await self._say([wire(entry) for entry in frame])
                    index += len(frame)
                if entries:
                    continue
                if process.closed:
                    break
                # As upstream, the clock runs once the backlog is sent.
                patience.deadline = min(patience.deadline, trio.current_time() + seconds)
                await news.wait(RECHECK)
        await self._say([])

    async def _say(self, entries: list[dict[str, Any]]) -> None:
        await self._send(TextMessage(data=reply(_CHANNEL, entries).decode()))

    def _too_slow(self) -> None:
        self._end(_TOO_SLOW, "events come faster than they are taken")

    def _require_member(self, caller: Caller, colony: str) -> None:
        if self._node.directory.member(colony, caller.id) is None:
            raise denied(f"colony {colony[:80]!r}: only its {Who.MEMBER.value} may call this")

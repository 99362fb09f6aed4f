"""A WebSocket to a daemon, with messages as they are."""

from __future__ import annotations

import base64
import json
from typing import Any

import crypto  # type: ignore[import-untyped]
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Request, TextMessage


class Raw:
    """A wsproto client that sees every frame."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.events: list[Event] = []

    @classmethod
    async def connect(cls, port: int) -> Raw:
        raw = cls(await trio.open_tcp_stream("127.0.0.1", port))
        try:
            await raw.send(Request(host="x", target="/pubsub"))
            assert isinstance(await raw.next(), AcceptConnection)
        except BaseException:
            await trio.aclose_forcefully(raw.stream)
            raise
        return raw

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.ws.send(event))

    async def next(self) -> Event | None:
        """The next frame; None at the end of the stream. A message comes whole."""
        text = ""
        while True:
            while self.events:
                event = self.events.pop(0)
                if not isinstance(event, Message):
                    return event
                text += event.data
                if event.message_finished:
                    return TextMessage(data=text)
            with trio.fail_after(50):
                data = bytes(await self.stream.receive_some(65536))
            if not data:
                return None
            self.ws.receive_data(data)
            self.events.extend(self.ws.events())

    async def ask(self, key: str, **message: Any) -> None:
        payload = base64.b64encode(json.dumps(message).encode()).decode()
        signature = crypto.Crypto().sign(payload, key)
        envelope = {"payloadtype": message["msgtype"], "payload": payload, "signature": signature}
        await self.send(TextMessage(data=json.dumps(envelope)))

    async def reply(self) -> tuple[str, Any]:
        """Payload type and payload of the next reply."""
        event = await self.next()
        assert isinstance(event, TextMessage), event
        envelope = json.loads(event.data)
        assert envelope["error"] == (envelope["payloadtype"] == "error")
        return envelope["payloadtype"], json.loads(base64.b64decode(envelope["payload"]))

    async def close_code(self) -> int:
        event = await self.next()
        assert isinstance(event, CloseConnection), event
        await self.send(event.response())
        assert await self.next() is None
        return int(event.code)

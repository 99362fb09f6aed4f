"""What tests of files share: a client of one daemon, uploads in parts, and a second colony.

The rules that they are tested against are in the tests.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient
from tests.support.daemons import Daemon


class Files:
    """Calls about files in one colony, as one member."""

    def __init__(self, client: RpcClient, http: httpx.AsyncClient, colony: str, key: PrivateKey):
        self.client = client
        self.http = http
        self.colony = colony
        self.key = key

    async def call(self, payloadtype: str, **fields: Any) -> Any:
        fields = {"colonyname": self.colony, **fields}
        return await self.client.call(payloadtype, fields, self.key, 30.0)

    async def add(self, label: str, name: str, checksum: str = "c", **more: Any) -> Any:
        s3 = {"server": "s3.example", "port": 9000, "object": f"object-{checksum}", "bucket": "b"}
        file = {
            "colonyname": self.colony,
            "label": label,
            "name": name,
            "size": 7,
            "checksum": checksum,
            "checksumalg": "SHA256",
            "ref": {"protocol": "s3", "s3object": s3},
        } | more
        return await self.client.call("addfilemsg", {"file": file}, self.key, 30.0)

    async def add_here(self, label: str, name: str, data: bytes) -> Any:
        digest = hashlib.sha256(data).hexdigest()
        return await self.add(label, name, digest, size=len(data), ref={"protocol": "colonyd"})

    async def ticket(self, method: str, data: bytes, **more: Any) -> Any:
        digest = hashlib.sha256(data).hexdigest()
        fields = {"method": method, "checksum": digest, "size": len(data)} | more
        return await self.call("fileticketmsg", **fields)

    async def part(self, ticket: Any, data: bytes, first: int, last: int) -> httpx.Response:
        """PUT bytes `first` up to `last`, exclusive."""
        span = f"{first}-{last - 1}" if last > first else "*"
        return await self.http.put(
            self.client.url + ticket["url"],
            content=data[first:last],
            headers={"content-range": f"bytes {span}/{len(data)}"},
        )

    async def upload(self, data: bytes) -> Any:
        """Upload from the offset reached to the end."""
        ticket = await self.ticket("PUT", data)
        done, complete = ticket["offset"], ticket["complete"]
        while not complete:
            last = min(len(data), done + ticket["partsize"])
            answer = await self.part(ticket, data, done, last)
            assert answer.status_code == 200, answer.text
            done, complete = answer.json()["offset"], answer.json()["complete"]
        return ticket

    async def put(self, label: str, name: str, data: bytes) -> Any:
        """Upload and add."""
        await self.upload(data)
        return await self.add_here(label, name, data)

    async def bytes_of(self, data: bytes, **headers: str) -> httpx.Response:
        ticket = await self.ticket("GET", data)
        return await self.http.get(self.client.url + ticket["url"], headers=headers)


@asynccontextmanager
async def files_of(daemon: Daemon) -> AsyncIterator[Files]:
    """The home colony's files, as its user."""
    async with daemon.client() as client, httpx.AsyncClient(timeout=60, trust_env=False) as http:
        yield Files(client, http, daemon.name, daemon.key("user"))


async def another_colony(daemon: Daemon, mine: Files) -> Files:
    """The files of a fresh colony at the same daemon, as a user of that one."""
    name, owner, user = (
        f"other-{uuid.uuid4().hex[:8]}",
        PrivateKey.generate(),
        PrivateKey.generate(),
    )
    colony = {"colonyid": owner.id, "name": name}
    await mine.client.call("addcolonymsg", {"colony": colony}, daemon.key("server"))
    fields = {"user": {"colonyname": name, "userid": user.id, "name": "u"}}
    await mine.client.call("addusermsg", fields, owner)
    return Files(mine.client, mine.http, name, user)

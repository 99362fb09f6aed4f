"""Nodes of the DHT that lie (BEP 5): to each look-up they name false addresses and each other.

They claim ids next to whatever is asked for, so a look-up ends at them.
"""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass, field
from typing import Any

import libtorrent
import trio

_ANSWERS = 100  # false addresses in an answer; a datagram has room for so many
_NODES = 8


@dataclass
class HostileNodes:
    """Nodes at one port of several hosts, which name `false` addresses (host, port)."""

    hosts: list[str]
    port: int
    false: list[tuple[str, int]]
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    lied: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            for host in self.hosts:
                socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                await socket.bind((host, self.port))
                nursery.start_soon(self._serve, socket, host)
            task_status.started()

    async def _serve(self, socket: trio.socket.SocketType, host: str) -> None:
        with socket:
            while True:
                data, address = await socket.recvfrom(65536)
                query: Any = libtorrent.bdecode(data)
                if isinstance(query, dict) and query.get(b"y") == b"q":
                    reply = self._reply(query, host)
                    await socket.sendto(bytes(libtorrent.bencode(reply)), address)

    def _reply(self, query: dict[bytes, Any], host: str) -> dict[bytes, Any]:
        asked = query[b"a"]
        wanted = bytes(asked.get(b"info_hash") or asked.get(b"target") or bytes(20))
        body: dict[bytes, Any] = {b"id": self._id(wanted, host)}
        if query[b"q"] in (b"find_node", b"get_peers"):
            near = self.chance.sample(self.hosts, min(_NODES, len(self.hosts)))
            body[b"nodes"] = b"".join(
                self._id(wanted, each) + _compact(each, self.port) for each in near
            )
        if query[b"q"] == b"get_peers":
            self.lied += 1
            told = self.chance.sample(self.false, min(_ANSWERS, len(self.false)))
            body |= {b"token": b"any", b"values": [_compact(*each) for each in told]}
        return {b"t": query[b"t"], b"y": b"r", b"r": body}

    @staticmethod
    def _id(wanted: bytes, host: str) -> bytes:
        """An id that differs from the wanted one in its last byte only."""
        return wanted[:-1] + bytes([ipaddress.ip_address(host).packed[-1]])


def _compact(host: str, port: int) -> bytes:
    return ipaddress.ip_address(host).packed + port.to_bytes(2, "big")

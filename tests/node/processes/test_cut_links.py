"""A worker's link is cut while its poll waits: what it is handed then goes to another one.

Real daemons in network namespaces; the seconds are those of the kernel's timers.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError, decode, encode
from tests.support.daemons import until
from tests.support.netns import House, enter, require, town
from tests.support.sides import Side

pytestmark = pytest.mark.slow

POLL = 90  # seconds that a worker asks for


@dataclass
class Away:
    """A worker in a house of its own, with one connection for each poll."""

    house: House
    url: str
    key: PrivateKey = field(default_factory=PrivateKey.generate)

    def __post_init__(self) -> None:
        self.hands = ThreadPoolExecutor(8, initializer=partial(enter, self.house.space))

    def poll(self) -> Future[Any]:
        """Ask for work; the reply. Its own patience is shorter than what it asks for."""
        fields = {"colonyname": "lab", "timeout": POLL}
        return self.hands.submit(self._post, "assignprocessmsg", fields)

    async def call(self, kind: str, **fields: Any) -> Any:
        """One call from within the house. Raises RpcError and OSError."""
        return await trio.to_thread.run_sync(self.hands.submit(self._post, kind, fields).result)

    def _post(self, kind: str, fields: dict[str, Any]) -> Any:
        connection = http.client.HTTPConnection(self.url, timeout=20)
        try:
            connection.request("POST", "/api", encode(kind, fields, self.key))
            answer = connection.getresponse()
            return decode(kind, answer.status, answer.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[House]]:
    require()
    with town(tmp_path_factory.mktemp("town"), {"lab": 0, "farm": 0}) as houses:
        houses[0].environ["COLONYD_RPC__HOST"] = "0.0.0.0"
        houses[0].start()
        yield houses


@asynccontextmanager
async def scene(houses: list[House]) -> AsyncIterator[tuple[Side, Away]]:
    """The colony, with a worker of its own, and one far away."""
    lab, farm = houses
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lab.door)
        async with lab.visitor(url) as visitor:
            side, away = Side(lab, visitor), Away(farm, f"{lab.address()}:{lab.port}")
            for name, key in (("near", side.worker), ("far", away.key)):
                who = {"colonyname": "lab", "executorname": name}
                new = {**who, "executorid": key.id, "executortype": "cli"}
                await side.call("addexecutormsg", side.owner, executor=new)
                await side.call("approveexecutormsg", side.owner, **who)
            await plugged(away)
            try:
                yield side, away
            finally:
                farm.plug()
                for name in ("near", "far"):
                    who = {"colonyname": "lab", "executorname": name}
                    await side.call("removeexecutormsg", side.owner, **who)
                away.hands.shutdown(wait=False, cancel_futures=True)
        nursery.cancel_scope.cancel()


async def plugged(away: Away) -> None:
    """Return once the link of the house is there again, which the kernel notes in a second."""
    away.house.plug()

    async def there() -> bool:
        try:
            await away.call("getexecutorsmsg", colonyname="lab")
        except OSError:
            return False
        return True

    await until(20, there)


async def polling(side: Side, away: Away, count: int) -> None:
    """Return once the daemon has read so many polls."""
    process = side.daemon.process
    assert process is not None
    table = trio.Path(f"/proc/{process.pid}/net/tcp")
    far = socket.inet_aton(away.house.address())[::-1].hex().upper()

    async def read() -> bool:
        # Local and remote address, state (1: established), bytes to send and to read.
        rows = [line.split()[2:5] for line in (await table.read_text()).splitlines()[1:]]
        return count == sum(
            remote.startswith(far) and state == "01" and queues.endswith(":00000000")
            for remote, state, queues in rows
        )

    await until(20, read)
    # Behind them in the daemon's turn, and behind what they read of the store.
    for _ in range(2):
        await side.call("getexecutorsmsg", colonyname="lab")


async def take(side: Side) -> dict[str, Any]:
    """What the worker in the house is given, sooner or later."""

    async def ask() -> Any:
        try:
            return await side.call("assignprocessmsg", side.worker, colonyname="lab", timeout=20)
        except RpcError as error:
            if error.status != 404:
                raise
            return None

    return dict(await until(100, ask))


@pytest.mark.parametrize(("polls", "seconds"), [(1, 30), (4, 75)])
async def test_what_is_handed_into_a_dead_connection_goes_to_another_worker(
    houses: list[House], polls: int, seconds: int
) -> None:
    async with scene(houses) as (side, away):
        waiting = [away.poll() for _ in range(polls)]
        await polling(side, away, polls)
        away.house.pull()
        processid = await side.submit("lab", maxretries=0)
        began = trio.current_time()

        async def handed() -> bool:
            found = await side.call("getprocessmsg", processid=processid)
            return bool(found["assignedexecutorid"] == away.key.id)

        await until(5, handed)
        taken = await take(side)
        took = trio.current_time() - began
        print(f"{polls} polls: {took:.1f} s")
        assert taken["processid"] == processid
        assert taken["retries"] == 0
        assert took < seconds
        await plugged(away)
        # What it should not have, it can't end; nor is it given it again.
        with pytest.raises(RpcError) as caught:
            await away.call("closesuccessfulmsg", processid=processid, out=["far"])
        assert caught.value.status == 403
        await side.call("closesuccessfulmsg", side.worker, processid=processid, out=["near"])
        assert (await side.closed(processid))["out"] == ["near"]
        for each in waiting:
            with pytest.raises((OSError, RpcError)):
                await trio.to_thread.run_sync(each.result)

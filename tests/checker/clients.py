"""Clients of a colony that note what they are told: submitters, workers, readers, subscribers.

Each repeats the same bytes until there is an answer, and then writes down what that was.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError, decode
from tests.checker.comparer import Final, output_of
from tests.checker.journal import Journal, Kind
from tests.support.daemons import Daemon
from tests.support.faketime_daemons import signed_at
from tests.support.raw import Raw

__all__ = ["Colony", "Crowd"]

_PATIENCE = 10.0  # seconds for one try of a call
_PAUSE = 0.1  # seconds between two tries
_ONCE = ("submitfuncspecmsg", "addlogmsg")  # a second one is another one
_AWAY = (429, 500, 502, 503, 507)  # what is worth another try
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
_LONG_AGO = 10_000_000  # seconds


@dataclass
class Colony:
    """A daemon as its clients see it; its clock may be `ahead` of ours, in seconds."""

    daemon: Daemon
    worker_keys: list[PrivateKey] = field(default_factory=list)
    ahead: Callable[[], int] = lambda: 0
    # One for all: each costs as much as many calls.
    http: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(trust_env=False, verify=False)
    )

    @property
    def name(self) -> str:
        """As in its specs."""
        return self.daemon.name

    def body(self, kind: str, key: PrivateKey, **fields: Any) -> bytes:
        """A signed request, by the daemon's clock."""
        return signed_at(int(time.time()) + self.ahead(), kind, fields, key)

    async def once(self, kind: str, body: bytes, patience: float = _PATIENCE) -> Any:
        """One try. Raises RpcError, and OSError without an answer."""
        try:
            url = f"http://127.0.0.1:{self.daemon.port}/api"
            reply = await self.http.post(url, content=body, timeout=patience)
        except httpx.TransportError as error:
            raise OSError(str(error)) from None
        return decode(kind, reply.status_code, reply.content)

    async def insist(self, kind: str, key: PrivateKey, **fields: Any) -> Any:
        """The same request until it is answered. Raises RpcError for a refusal.

        What does no harm twice is signed anew when the clock went on without it. A submission and a
        line of a log do: an earlier try may have been taken.
        """
        body = self.body(kind, key, **fields)
        while True:
            try:
                return await self.once(kind, body)
            except OSError:
                pass
            except RpcError as error:
                if error.message.startswith("issuedat") and kind not in _ONCE:
                    body = self.body(kind, key, **fields)
                elif error.status not in _AWAY:
                    raise
            await trio.sleep(_PAUSE)

    async def hire(self, count: int) -> None:
        """Add workers."""
        owner = self.daemon.key("colony")
        for number in range(count):
            key = PrivateKey.generate()
            who = {"colonyname": self.name, "executorname": f"w{number}"}
            new = {**who, "executorid": key.id, "executortype": "cli"}
            await self.insist("addexecutormsg", owner, executor=new)
            await self.insist("approveexecutormsg", owner, **who)
            self.worker_keys.append(key)

    async def processes(self) -> list[dict[str, Any]]:
        """All processes there are."""
        user = self.daemon.key("user")
        found: list[dict[str, Any]] = []
        for state in range(5):
            fields = {"colonyname": self.name, "seconds": _LONG_AGO, "state": state}
            found += await self.insist("getprocesshistmsg", user, executorid="", **fields)
        return found

    async def final(self) -> dict[str, Final]:
        """What the colony says in the end, by process id."""
        user, final = self.daemon.key("user"), {}
        for process in await self.processes():
            pid = process["processid"]
            fields = {"colonyname": self.name, "processid": pid, "count": 100}
            lines = await self.insist("getlogsmsg", user, **fields)
            out = process["out"] or [""]
            final[pid] = Final(
                pid,
                str(process["spec"]["args"][0]),
                str(process["state"]),
                str(out[0]),
                tuple(line["message"] for line in lines),
            )
        return final


@dataclass
class Crowd:
    """All clients of a storm. `over` ends the submissions, `rest` all of it."""

    journal: Journal
    dice: random.Random
    colonies: list[Colony]
    over: trio.Event = field(default_factory=trio.Event)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    wanted: list[tuple[Colony, str]] = field(default_factory=list)

    async def run(self, nursery: trio.Nursery) -> None:
        """Start them in a nursery."""
        for colony in self.colonies:
            for other in self.colonies:
                nursery.start_soon(self.submit, colony, other, 0.1 if colony is other else 0.4)
            for number, key in enumerate(colony.worker_keys):
                nursery.start_soon(self.work, colony, f"w{number}", key)
            nursery.start_soon(self.look, colony)
            nursery.start_soon(self.subscribe, colony)

    async def submit(self, colony: Colony, target: Colony, pause: float) -> None:
        """Submit one after the other, until `over`."""
        key = colony.daemon.key("user")
        while not self.over.is_set():
            token, began = f"{colony.name}-{target.name}-{next(self.numbers)}", time.monotonic()
            conditions = {"colonyname": target.name, "executortype": "cli"}
            spec = {"funcname": "f", "args": [token], "conditions": conditions}
            try:
                process = await colony.insist("submitfuncspecmsg", key, spec=spec)
            except RpcError as error:
                await self.journal.note(
                    Kind.UNKNOWN, colony.name, token=token, value=str(error), began=began
                )
            else:
                pid = str(process["processid"])
                await self.journal.note(
                    Kind.SUBMITTED, colony.name, pid=pid, token=token, began=began
                )
                self.wanted.append((colony, pid))
            await trio.sleep(pause * 2 * self.dice.random())

    async def work(self, colony: Colony, name: str, key: PrivateKey) -> None:
        """Poll, do, close; after an answer that is lost, look what is there."""
        while True:
            began = time.monotonic()
            fields = {"colonyname": colony.name, "timeout": 3}
            body = colony.body("assignprocessmsg", key, **fields)
            try:
                process = await colony.once("assignprocessmsg", body)
            except RpcError as error:
                if error.status in _AWAY:
                    await self._adopt(colony, name, key)
                elif error.status != 404:
                    await self.journal.note(Kind.NEMESIS, colony.name, value=f"poll: {error}")
                    await trio.sleep(1)
            except OSError:
                await trio.sleep(_PAUSE)
                await self._adopt(colony, name, key)
            else:
                await self.journal.note(
                    Kind.ASSIGNED, colony.name, who=name, pid=process["processid"], began=began,
                    token=process["spec"]["args"][0], value=process["starttime"],
                )  # fmt: skip
                await self._do(colony, name, key, process)

    async def _adopt(self, colony: Colony, name: str, key: PrivateKey) -> None:
        began = time.monotonic()
        fields = {"colonyname": colony.name, "count": 100, "state": 1}
        for process in await colony.insist("getprocessesmsg", key, **fields):
            if process["assignedexecutorid"] == key.id:
                pid = process["processid"]
                await self.journal.note(Kind.ADOPTED, colony.name, who=name, pid=pid, began=began)
                await self._do(colony, name, key, process)

    async def _do(
        self, colony: Colony, name: str, key: PrivateKey, process: dict[str, Any]
    ) -> None:
        pid, token = process["processid"], str(process["spec"]["args"][0])
        if self.dice.random() < 0.3:
            line, began = f"{name} has {token}", time.monotonic()
            try:
                await colony.insist("addlogmsg", key, processid=pid, message=line)
            except RpcError:
                pass  # it is not known whether it was taken
            else:
                await self.journal.note(Kind.LOGGED, colony.name, pid=pid, value=line, began=began)
        await trio.sleep(0.2 * self.dice.random())
        out, began = output_of(token), time.monotonic()
        await self.journal.note(Kind.CLOSING, colony.name, who=name, pid=pid, value=out)
        kind = Kind.CLOSED
        try:
            await colony.insist("closesuccessfulmsg", key, processid=pid, out=[out])
        except RpcError as error:
            kind, out = Kind.REFUSED, str(error)
        await self.journal.note(kind, colony.name, who=name, pid=pid, value=out, began=began)

    async def look(self, colony: Colony) -> None:
        """Read processes over and over."""
        key = colony.daemon.key("user")
        while True:
            await trio.sleep(_PAUSE)
            mine = [pid for home, pid in self.wanted if home is colony]
            if not mine:
                continue
            pid, began = self.dice.choice(mine[-60:]), time.monotonic()
            try:
                process = await colony.insist("getprocessmsg", key, processid=pid)
            except RpcError:
                continue  # the comparison will tell
            state = str(process["state"])
            await self.journal.note(
                Kind.SEEN, colony.name, who="look", pid=pid, value=state, began=began
            )

    async def subscribe(self, colony: Colony) -> None:
        """Hear of each end, on a socket that is opened again whenever it breaks."""
        key = colony.daemon.key("user")
        while True:
            await trio.sleep(_PAUSE)
            try:
                raw = await Raw.connect(colony.daemon.port)
            except (*_GONE, AssertionError, trio.TooSlowError):
                continue
            try:
                await raw.ask(
                    key.hex,
                    msgtype="subscribeprocessesmsg",
                    colonyname=colony.name,
                    executortype="cli",
                    state=2,
                    timeout=600,
                )
                while True:
                    # What comes was so when it was sent: that is after nothing we know of.
                    kind, process = await raw.reply()
                    if kind == "error":
                        break
                    pid, state = process["processid"], str(process["state"])
                    await self.journal.note(
                        Kind.SEEN, colony.name, who="socket", pid=pid, value=state, began=1e-9
                    )
            except (*_GONE, AssertionError, trio.TooSlowError):
                pass
            finally:
                await trio.aclose_forcefully(raw.stream)

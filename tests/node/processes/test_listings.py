"""Listings of a store with much in it, asked for from outside: what they give, cost, and hold."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, encode
from node.etcd.client import EtcdClient, open_client
from node.etcd.txn import Op, Put, Txn
from node.model.codec import pack
from node.model.types import SECOND, Log, Process, State, User
from node.store import keys
from node.store.work import processes as store
from node.streams import logs as logs
from tests.support.daemons import Daemon
from tests.support.processes import make

CLOSED, WAITING, LINES = 21_000, 10_000, 40_000
TICK = os.sysconf("SC_CLK_TCK")


async def place(client: EtcdClient, batches: Iterator[Sequence[Op]]) -> None:
    """Write what is given, some transactions at a time."""
    sender, receiver = trio.open_memory_channel[Sequence[Op]](0)

    async def write(mine: trio.MemoryReceiveChannel[Sequence[Op]]) -> None:
        async with mine:
            async for ops in mine:
                await client.commit(Txn([], ops))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(write, receiver.clone())
        receiver.close()
        async with sender:
            held: list[Op] = []
            for ops in batches:
                held += ops
                if len(held) > 80:
                    await sender.send(held)
                    held = []
            await sender.send(held)


def process(submitted: int, *, label: str = "bulk", initiator: str = "ann") -> Process:
    """One that was submitted at a time, Unix ns."""
    found = make()
    found.submissiontime = found.prioritytime = submitted
    found.initiatorname = initiator
    found.spec = msgspec.structs.replace(
        found.spec, label=label, kwargs={"text": "x" * 500}, maxwaittime=-1, maxexectime=-1
    )
    return found


def ended(
    one: Process, now: int, state: State = State.SUCCESSFUL, executorid: str = "e" * 64
) -> list[Op]:
    """What a closed process leaves in the store; `now` in Unix ns."""
    one.assignedexecutorid, one.state = executorid, State.RUNNING
    step = store.close(one, 0, state, now, output=["y" * 200])
    return [op for op in step.txn.success if isinstance(op, Put)]


@dataclass
class Party:
    """A daemon with a full store, and two members of its colony."""

    daemon: Daemon
    client: RpcClient
    store: EtcdClient
    ann: PrivateKey
    bob: PrivateKey
    now: int

    async def call(self, kind: str, key: PrivateKey | None = None, /, **fields: Any) -> Any:
        return await self.client.call(
            kind, {"colonyname": "dev"} | fields, key or self.ann, timeout=120
        )

    def peak(self) -> float:
        """The most memory that the daemon ever had, in MiB."""
        return _status(self.daemon, "VmHWM") / 1024

    def forget_peak(self) -> None:
        """Count the peak from what there is now."""
        assert self.daemon.process is not None
        Path(f"/proc/{self.daemon.process.pid}/clear_refs").write_text("5")

    def cpu(self) -> float:
        """Seconds of CPU that daemon and store have used."""
        assert self.daemon.process is not None
        total = 0
        for pid in (self.daemon.process.pid, self.daemon.etcd_pid):
            fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK


def _status(daemon: Daemon, name: str) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text("ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, Any]]]:
    """A daemon whose store holds much: closed processes, waiting ones, log lines."""
    home = tmp_path_factory.mktemp("full") / "dev"
    daemon = Daemon(home, "dev", {"COLONYD_FEDERATION__ENABLED": "false"}).start()
    there: dict[str, Any] = {"now": time.time_ns(), "bob": PrivateKey.generate()}
    trio.run(_fill, daemon, there)
    yield daemon, there
    assert daemon.stop() == 0


async def _fill(daemon: Daemon, there: dict[str, Any]) -> None:
    now = there["now"]
    async with open_client(f"unix:{daemon.home}/etcd/localhost:1", timeout=60) as client:
        await client.put(keys.user("dev", "bob"), pack(User("dev", there["bob"].id, "bob")))

        def closed() -> Iterator[Sequence[Op]]:
            # One a second, the newest just now; a rare one in the midst.
            for number in range(CLOSED):
                submitted = now - number * SECOND
                one = process(submitted)
                if number == CLOSED // 2:
                    one = process(submitted, label="rare", initiator="zoe")
                    one.spec.conditions.executortype = "rare"
                    there["rare"] = one.processid
                yield ended(one, submitted + SECOND // 2)

        def waiting() -> Iterator[Sequence[Op]]:
            for number in range(WAITING):
                one = process(now - number * SECOND)
                if number == 0:
                    one = process(now, label="late", initiator="zoe")
                    there["late"] = one.processid
                yield store.create(one)

        def lines() -> Iterator[Sequence[Op]]:
            for number in range(LINES):
                line = Log(there["rare"], "dev", "cam", f"line {number}", now - number * 10**6)
                yield [op for op in logs.puts(line) if not op.key.startswith(keys.ROOT + "logtime")]

        for batches in (closed(), waiting(), lines()):
            await place(client, batches)
    async with daemon.client() as caller:
        # The watch has told the daemon all of it.
        while True:
            fields = {"colonyname": "dev"}
            found = await caller.call("getcolonystatsmsg", fields, daemon.key("user"))
            if found["waitingprocesses"] == WAITING:
                return
            await trio.sleep(0.1)


@pytest.fixture
async def party(full: tuple[Daemon, dict[str, Any]]) -> AsyncIterator[Party]:
    daemon, there = full
    target = f"unix:{daemon.home}/etcd/localhost:1"
    async with daemon.client() as client, open_client(target, timeout=60) as access:
        yield Party(daemon, client, access, daemon.key("user"), there["bob"], there["now"])


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["processid"] for row in rows]


def of(full: tuple[Daemon, dict[str, Any]], name: str) -> str:
    return str(full[1][name])


HISTORY = "getprocesshistmsg"


@pytest.mark.slow
async def test_looking_back_for_nothing_reads_nearly_nothing(party: Party) -> None:
    """Three at once: 1.7 GB and 42 s with 100,000 processes, when all of them were read."""
    seconds = 1 + (time.time_ns() - party.now) // SECOND
    nothing: list[dict[str, Any]] = [
        {"state": 3, "seconds": 10**6},
        {"state": 2, "seconds": 10**6, "executorid": "f" * 64},
        {"state": 0, "seconds": 10**6, "executorid": "f" * 64},
        {"state": 1, "seconds": 10**6},
        {"state": 9, "seconds": 10**6},
    ]
    party.forget_peak()
    before, cpu = party.peak(), party.cpu()
    async with trio.open_nursery() as nursery:

        async def ask(fields: dict[str, Any]) -> None:
            assert await party.call(HISTORY, **fields) == []

        for fields in nothing:
            nursery.start_soon(ask, fields)
    found = await party.call(HISTORY, state=2, seconds=seconds)
    assert len(found) < seconds + 60
    assert party.peak() - before < 40
    assert party.cpu() - cpu < 5, "it was 3 s for each"


@pytest.mark.slow
async def test_looking_back_gives_all_of_a_time_oldest_first(party: Party) -> None:
    since = (time.time_ns() - party.now) // SECOND
    found = await party.call(HISTORY, state=2, seconds=2_000 + since)
    times = [row["submissiontime"] for row in found]
    assert times == sorted(times)
    assert 1_900 < len(found) <= 2_001 + since
    assert ids(await party.call(HISTORY, state=2, seconds=2_000 + since, executorid="e" * 64))
    waiting = await party.call(HISTORY, state=0, seconds=1_000 + since)
    assert 950 < len(waiting) <= 1_001 + since
    assert {row["state"] for row in waiting} == {0}


@pytest.mark.slow
async def test_looking_back_too_far_is_refused_with_what_to_do(party: Party) -> None:
    with pytest.raises(RpcError, match=r"20000 processes.*fewer seconds") as error:
        await party.call(HISTORY, state=2, seconds=10**7)
    assert error.value.status == 400
    party.forget_peak()
    before = party.peak()
    assert len(await party.call(HISTORY, state=0, seconds=10**9)) == WAITING
    assert party.peak() - before < 150, "the answer, twice, and a page"


@pytest.mark.slow
@pytest.mark.parametrize("field", ["label", "initiator", "executortype"])
async def test_what_few_processes_have_is_found_by_an_index(
    party: Party, full: tuple[Daemon, dict[str, Any]], field: str
) -> None:
    rare = {"label": "rare", "initiator": "zoe", "executortype": "rare"}[field]
    nobodys = {"label": "none", "initiator": "bob", "executortype": "none"}[field]
    cpu = party.cpu()
    for _ in range(10):
        found = await party.call("getprocessesmsg", state=2, count=100, **{field: rare})
        assert ids(found) == [of(full, "rare")]
        nothing = await party.call("getprocessesmsg", state=2, count=9, **{field: nobodys})
        assert nothing == []
    assert party.cpu() - cpu < 2, "each was a second or two"


@pytest.mark.slow
async def test_what_few_waiting_processes_have_is_found(
    party: Party, full: tuple[Daemon, dict[str, Any]]
) -> None:
    for fields in ({"label": "late"}, {"initiator": "zoe"}):
        found = await party.call("getprocessesmsg", state=0, count=100, **fields)
        assert ids(found) == [of(full, "late")]
    for fields in ({"label": "none"}, {"executortype": "none"}):
        assert await party.call("getprocessesmsg", state=0, count=100, **fields) == []


@pytest.mark.slow
async def test_the_newest_closed_come_first(party: Party) -> None:
    found = await party.call("getprocessesmsg", state=2, count=100, label="bulk")
    assert ids(found) == ids(await party.call("getprocessesmsg", state=2, count=100))
    times = [row["endtime"] for row in found]
    assert len(times) == 100
    assert times == sorted(times, reverse=True)


@pytest.mark.slow
async def test_listings_keep_nobody_else_waiting(party: Party) -> None:
    """What another member asks for is answered between the pages."""
    waits: list[float] = []
    with trio.fail_after(240):
        async with trio.open_nursery() as nursery:

            async def look_back() -> None:
                # Beside the loop of this test: what is large is not read there.
                fields = {"colonyname": "dev", "state": 0, "seconds": 10**9}
                body = encode(HISTORY, fields, party.ann)
                await trio.to_thread.run_sync(_post, party.daemon.port, body)

            async def all_of_them() -> None:
                async with trio.open_nursery() as inner:
                    for _ in range(3):
                        inner.start_soon(look_back)
                nursery.cancel_scope.cancel()

            nursery.start_soon(all_of_them)
            while True:
                began = trio.current_time()
                await party.call("getpausestatusmsg", party.bob)
                waits.append(trio.current_time() - began)
                await trio.sleep(0.01)
    waits.sort()
    assert len(waits) > 20
    assert waits[-1] < 3, "it was as long as all of the listing"
    assert waits[len(waits) // 2] < 0.3


def _post(port: int, body: bytes) -> None:
    """Post a request, and take its answer without looking at it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
    connection.request("POST", "/api", body)
    reply = connection.getresponse()
    assert reply.status == 200
    assert len(reply.read()) > WAITING * 1000
    connection.close()


@pytest.mark.slow
async def test_the_last_lines_of_a_long_log_are_read_from_its_end(
    party: Party, full: tuple[Daemon, dict[str, Any]]
) -> None:
    cpu = party.cpu()
    for _ in range(10):
        for fields in ({"processid": of(full, "rare")}, {"executorname": "cam"}):
            found = await party.call("getlogsmsg", count=10, latest=True, **fields)
            assert [line["message"] for line in found] == [f"line {n}" for n in range(9, -1, -1)]
    assert party.cpu() - cpu < 3, "each read all lines: 0.3 s"
    first = await party.call("getlogsmsg", count=3, executorname="cam")
    assert [line["message"] for line in first] == [f"line {LINES - n}" for n in (1, 2, 3)]
    after = first[-1]["timestamp"]
    more = await party.call("getlogsmsg", count=500, executorname="cam", since=after)
    assert [line["message"] for line in more] == [f"line {LINES - n}" for n in range(4, 504)]
    some = {"processid": of(full, "rare"), "latest": True}
    late = await party.call("getlogsmsg", count=500, since=party.now - 5 * 10**6, **some)
    assert [line["message"] for line in late] == [f"line {n}" for n in range(4, -1, -1)]

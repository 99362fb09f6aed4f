"""A thousand workers wait on one daemon, beside two hundred subscriptions: real connections all.

What one waiter is told is in `sdk.test_pycolonies`, what one subscription sends in
`node.http.test_pubsub`.
"""

from __future__ import annotations

import base64
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from wsproto.events import Ping, Pong, TextMessage

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, encode
from node.etcd.client import EtcdClient, open_client
from node.host.clock import Clock
from node.model.types import Conditions, Executor, FunctionSpec, Process, State, Waiting
from node.processes import assignment
from node.processes.queue import Candidate, Queue, QueueEntry, matches
from node.processes.service import Processes
from node.store import keys
from node.streams import subscriptions as subscriptions
from node.streams.subscriptions import SubscriptionFilter, Subscriptions
from tests.node.etcd.support import start_store
from tests.support.daemons import Daemon, until
from tests.support.http_edge import Client as Connection
from tests.support.http_edge import post
from tests.support.processes import assigning, make
from tests.support.raw import Raw

TYPES = 20
WAITERS = 1000
EACH = WAITERS // TYPES
SUBSCRIPTIONS = 200
RUNNING = 1
_SHELLS = 1024  # the open files that a login shell allows, unless told otherwise

WORKER = Executor("b" * 64, "cli", "w", "dev")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is started with a login shell's limit; the test itself needs more files."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * WAITERS:
        pytest.skip(f"only {hard} open files are allowed here, {4 * WAITERS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, _SHELLS), hard))
    running = Daemon(tmp_path / "dev", "dev", {"COLONYD_FEDERATION__ENABLED": "false"})
    try:
        running.start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        yield running
        assert running.stop() == 0
    finally:
        if running.process is not None and running.process.poll() is None:
            running.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def kind(number: int) -> str:
    return f"kind-{number}"


def spec(number: int) -> dict[str, Any]:
    conditions = {"colonyname": "dev", "executortype": kind(number)}
    return {"spec": {"funcname": "f", "conditions": conditions}}


def assign(key: PrivateKey, timeout: int) -> bytes:
    return post(encode("assignprocessmsg", {"colonyname": "dev", "timeout": timeout}, key))


def payload(body: bytes | str) -> Any:
    return json.loads(base64.b64decode(json.loads(body)["payload"]))


async def register(client: RpcClient, daemon: Daemon, number: int) -> PrivateKey:
    """An approved executor of the type `number`."""
    key = PrivateKey.generate()
    executor = {
        "executorid": key.id,
        "executorname": kind(number),
        "executortype": kind(number),
        "colonyname": "dev",
    }
    owner = daemon.key("colony")
    await client.call("addexecutormsg", {"executor": executor}, owner)
    name = {"colonyname": "dev", "executorname": kind(number)}
    await client.call("approveexecutormsg", name, owner)
    return key


class Watched:
    """What the kernel says of the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.process is not None
        self._proc = Path(f"/proc/{daemon.process.pid}")

    def memory(self) -> int:
        """Resident bytes."""
        return int((self._proc / "statm").read_text().split()[1]) * resource.getpagesize()

    async def serves_all(self) -> bool:
        """Whether it holds a connection for each waiter."""
        return len(list((self._proc / "fd").iterdir())) > WAITERS

    def worked(self) -> float:
        """Seconds of CPU time used."""
        times = (self._proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / 100

    async def at_rest(self) -> None:
        """Return when it has dealt with all that it was sent: it uses no CPU time for a while."""
        last = -1.0

        async def unchanged() -> bool:
            nonlocal last
            before, last = last, self.worked()
            return last - before <= 0.01

        await until(50, unchanged, step=0.25)


class Waiters:
    """Connections that each poll for one process; what they got, in order."""

    def __init__(self, connections: list[Connection], keys: list[PrivateKey]) -> None:
        self.connections = connections
        self.keys = keys
        self.got: list[tuple[int, int, Any]] = []  # type, status, payload
        self.answered = trio.Event()

    async def poll(self, nursery: trio.Nursery, timeout: int) -> None:
        """Send a poll of `timeout` seconds on each connection; the answers arrive by themselves."""
        self.got.clear()
        for at, connection in enumerate(self.connections):
            await connection.send(assign(self.keys[at % TYPES], timeout))
            nursery.start_soon(self._await, at % TYPES, connection)

    async def _await(self, number: int, connection: Connection) -> None:
        status, _, body = await connection.reply("POST")
        self.got.append((number, status, payload(body)))
        self.answered.set()

    async def have(self, count: int) -> None:
        """Wait for `count` answers in all."""
        while len(self.got) < count:
            self.answered = trio.Event()
            await self.answered.wait()


async def submit_all(daemon: Daemon, numbers: list[int]) -> Counter[str]:
    """Submit a process for each entry, over a few connections; ids and how often each came."""
    ids: Counter[str] = Counter()
    user = daemon.key("user")
    queue = iter(numbers)

    async def some() -> None:
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", daemon.port))
        async with connection.stream:
            for number in queue:
                await connection.send(post(encode("submitfuncspecmsg", spec(number), user)))
                status, _, body = await connection.reply("POST")
                assert status == 200, body
                ids[payload(body)["processid"]] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(some)
    return ids


async def subscribe(daemon: Daemon, number: int) -> Raw:
    """A WebSocket with a subscription to the processes of a type that start to run."""
    raw = await Raw.connect(daemon.port)
    fields = {"colonyname": "dev", "executortype": kind(number), "state": RUNNING, "timeout": 600}
    envelope = encode("subscribeprocessesmsg", fields, daemon.key("user"))
    await raw.send(TextMessage(data=envelope.decode()))
    # Frames are taken in order: once the ping is answered, the subscription stands.
    await raw.send(Ping())
    assert isinstance(await raw.next(), Pong)
    return raw


async def events(raw: Raw, count: int, told: list[list[str]]) -> None:
    """Read `count` events, and add the process ids to `told`."""
    ids: list[str] = []
    text = ""
    while len(ids) < count:
        raw.ws.receive_data(bytes(await raw.stream.receive_some(65536)))
        for event in raw.ws.events():
            if isinstance(event, Ping):
                await raw.send(event.response())
                continue
            assert isinstance(event, TextMessage), event
            text += event.data
            if event.message_finished:
                ids.append(payload(text)["processid"])
                text = ""
    told.append(ids)


@pytest.mark.slow
async def test_a_thousand_wait_and_each_gets_its_own(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(daemon)
    figures: list[str] = []
    with trio.fail_after(600):
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(daemon.client())
            keys = [await register(client, daemon, number) for number in range(TYPES)]
            # Once, so that what is loaded on first use is not counted as the waiters'.
            warm = Connection(await trio.open_tcp_stream("127.0.0.1", daemon.port))
            async with warm.stream:
                assert (await warm.ask(assign(keys[0], -1)))[0] == 404
            empty = watched.memory()

            connections = []
            for _ in range(WAITERS):
                stream = await trio.open_tcp_stream("127.0.0.1", daemon.port)
                connections.append(Connection(await stack.enter_async_context(stream)))
            waiters = Waiters(connections, keys)
            async with trio.open_nursery() as nursery:
                await waiters.poll(nursery, 550)
                await watched.at_rest()
                waiting = watched.memory()
                figures.append(f"{(waiting - empty) / WAITERS / 1024:.1f} KiB a waiter")
                await until(50, watched.serves_all)

                sockets = []
                for at in range(SUBSCRIPTIONS):
                    raw = await subscribe(daemon, at % TYPES)
                    sockets.append(await stack.enter_async_context(_open(raw)))
                await watched.at_rest()
                each = (watched.memory() - waiting) / SUBSCRIPTIONS / 1024
                figures.append(f"{each:.1f} KiB a subscription")
                told: list[list[str]] = []
                for raw in sockets:
                    nursery.start_soon(events, raw, EACH, told)

                # Nobody has got anything yet, and one process is for one waiter of its type.
                assert waiters.got == []
                idle = watched.worked()
                began = time.perf_counter()
                first = await submit_all(daemon, [7])
                await waiters.have(1)
                figures.append(f"first hand-out {(time.perf_counter() - began) * 1e3:.1f} ms")
                await watched.at_rest()
                figures.append(f"{watched.worked() - idle:.2f} s CPU for it")
                assert [(n, s, p["processid"]) for n, s, p in waiters.got] == [(7, 200, *first)]

                # All the others: each gets one, of its own type.
                began = time.perf_counter()
                rest = [at % TYPES for at in range(WAITERS)]
                rest.remove(7)
                ids = first + await submit_all(daemon, rest)
                await waiters.have(WAITERS)
                figures.append(f"all in {time.perf_counter() - began:.1f} s")
            handed = Counter(process["processid"] for _, _, process in waiters.got)
            assert len(handed) == WAITERS
            assert handed == ids
            for number, status, process in waiters.got:
                assert (status, process["state"]) == (200, RUNNING)
                assert process["spec"]["conditions"]["executortype"] == kind(number)
                assert process["assignedexecutorid"] == keys[number].id

            # Each subscription has heard of all processes of its type, once each.
            assert len(told) == SUBSCRIPTIONS
            assert Counter(id for ids_of_one in told for id in ids_of_one) == Counter(
                dict.fromkeys(handed, SUBSCRIPTIONS // TYPES)
            )
            assert {len(set(ids_of_one)) for ids_of_one in told} == {EACH}

            # And when there is no work, each is told so in time.
            async with trio.open_nursery() as nursery:
                await waiters.poll(nursery, 2)
            assert Counter(status for _, status, _ in waiters.got) == {404: WAITERS}
    with capsys.disabled():
        print("\n  waiters: " + ", ".join(figures))
    assert not [line for line in daemon.events if "level=error" in line or "Traceback" in line]


class _open:
    """The stream of a raw WebSocket, closed with the stack."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw

    async def __aenter__(self) -> Raw:
        return self._raw

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._raw.stream)


class CountingQueue(Queue):
    """The queue, and how often a waiter has looked into it."""

    looks = 0

    def find(
        self, candidate: Candidate, held: Callable[[str], bool] | None = None
    ) -> QueueEntry | None:
        self.looks += 1
        return super().find(candidate, held)


async def test_a_submit_wakes_one_waiter_of_its_type(nursery: trio.Nursery, tmp_path: Path) -> None:
    queue, taken = CountingQueue(), trio.Event()
    got: list[tuple[int, str]] = []
    target = (await start_store(nursery, tmp_path / "etcd")).target
    async with open_client(target) as client, trio.open_nursery() as waiting:
        processes = Processes(client, Clock(time.time_ns), queue=queue)
        assigner = assigning(processes)

        async def wait(number: int, name: str) -> None:
            candidate = Candidate("dev", kind(number), name)
            executor = Executor(name * 64, kind(number), name, "dev")
            process = await assigner.assign(candidate, executor, 60)
            got.append((number, process.processid))
            taken.set()

        for number in range(5):
            for name in "abcdefghij" * 4:
                waiting.start_soon(wait, number, name)
        await wait_all_tasks_blocked()
        for number in (3, 3, 0):
            before = queue.looks
            process = make(executortype=kind(number))
            taken = trio.Event()
            await processes.submit(process, b"")
            with trio.fail_after(50):
                await taken.wait()
            await wait_all_tasks_blocked()
            assert got.pop() == (number, process.processid)
            assert got == []
            assert queue.looks - before == 1
        waiting.cancel_scope.cancel()


async def test_what_one_was_woken_for_goes_to_another_if_it_gets_something_better(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The poll of w is woken for what u could have as well, and finds what only w may have."""
    got: dict[str, str] = {}
    target = (await start_store(nursery, tmp_path / "etcd")).target
    async with open_client(target) as client, trio.open_nursery() as waiting:
        processes = Processes(client, Clock(time.time_ns))
        assigner = assigning(processes)

        async def wait(name: str) -> None:
            executor = Executor(name * 64, "cli", name, "dev")
            process = await assigner.assign(Candidate("dev", "cli", name), executor, 60)
            got[name] = process.processid
            if len(got) == 2:
                waiting.cancel_scope.cancel()

        for name in "wu":
            waiting.start_soon(wait, name)
            await wait_all_tasks_blocked(0.01)
        # Another daemon submits both, and the watch tells of them at once.
        ids = []
        for names, priority in ((["w", "u"], 0), (["w"], 1)):
            process = make()
            process.spec.conditions.executornames = names
            process.prioritytime -= priority * 10**18
            ids.append(
                (await Processes(client, Clock(time.time_ns)).submit(process, b"")).processid
            )
        for kv in sorted((await client.range_all(keys.QUEUE))[0], key=lambda kv: kv.mod_revision):
            processes.apply(kv.key, kv.value, kv.mod_revision)
        with trio.fail_after(20):
            await trio.sleep_forever()
    assert got == {"u": ids[0], "w": ids[1]}


names, places = st.sampled_from(["", "ada", "bob"]), st.sampled_from(["", "Lab", "hall"])
has = st.none() | st.integers(0, 9)
polls = st.builds(Candidate, st.just("dev"), st.sampled_from("cg"), names, places, has, has)
wants = st.builds(
    Waiting,
    st.lists(st.sampled_from(["ada", "bob"]), max_size=2),
    places,
    st.integers(0, 9),
    st.integers(0, 9),
    st.just(0),
    st.just(""),
    st.just("ann"),
)


@given(st.lists(polls, max_size=12), st.lists(st.tuples(st.sampled_from("cg"), wants), max_size=12))
def test_the_first_poll_that_may_have_it_is_woken(
    known: list[Candidate], offered: list[tuple[str, Waiting]]
) -> None:
    assigner = assigning(Processes(cast(EtcdClient, None), Clock(lambda: 1)))
    waiters = [assigner._enter(candidate, WORKER, 0.0) for candidate in known]
    idle = list(waiters)
    for number, (executortype, waiting) in enumerate(offered):
        entry = QueueEntry(number, str(number), 1, "dev", executortype, waiting)
        free = msgspec.structs.replace(waiting, cpu=0, mem=0)
        line = [each for each in idle if each.candidate.executortype == executortype]
        suited = [each for each in line if matches(each.candidate, waiting)]
        assert assigner.asking(entry) == sum(matches(each.candidate, free) for each in line)
        assert assigner.suits(entry) == bool(suited)
        assigner.offered(entry)
        idle = [each for each in idle if each not in suited[:1]]
        assert [each for each in waiters if not each.woken.is_set()] == idle
    for waiter in waiters:
        assigner._exit(waiter)
    assert (assigner._waiters, assigner._idle) == ({}, {})


@given(
    st.lists(polls, max_size=12),
    st.lists(st.tuples(st.sampled_from("cg"), wants, st.sampled_from(["", "a", "b"])), max_size=12),
)
def test_room_for_a_colony_wakes_the_first_poll_of_each_type_that_may_have_one_of_its_processes(
    known: list[Candidate], waiting: list[tuple[str, Waiting, str]]
) -> None:
    processes = Processes(cast(EtcdClient, None), Clock(lambda: 1))
    assigner = assigning(processes)
    waiters = [assigner._enter(candidate, WORKER, 0.0) for candidate in known]
    for number, (executortype, wanted, origin) in enumerate(waiting):
        sent = msgspec.structs.replace(wanted, origin=origin)
        processes.queue.add(QueueEntry(number, str(number), 1, "dev", executortype, sent))
    assigner.freed("a")
    expected = []
    for executortype in "cg":
        there = [
            wanted for kind, wanted, origin in waiting if (kind, origin) == (executortype, "a")
        ]
        line = [each for each in waiters if each.candidate.executortype == executortype]
        expected += [each for each in line if any(matches(each.candidate, w) for w in there)][:1]
    assert {each.number for each in waiters if each.woken.is_set()} == {
        each.number for each in expected
    }


@pytest.mark.parametrize(
    "wanted",
    [
        {"executornames": ["w999"]},
        {"executornames": ["nobody"]},
        {"locationname": "nowhere"},
        {"mem": 2**40},
        {"cpu": 64_000},
    ],
)
def test_a_wake_up_passes_none_that_may_not_have_the_process(
    wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counting(waiter: assignment._Waiter) -> int:
        nonlocal asked
        asked += 1
        return -(waiter.candidate.cpu or 0)

    def visits(count: int) -> int:
        nonlocal asked
        assigner = assigning(Processes(cast(EtcdClient, None), Clock(lambda: 1)))
        for number in range(count):
            place = f"place {number % 7}"
            candidate = Candidate("dev", "cli", f"w{number}", place, 1000, 2**30)
            assigner._enter(candidate, WORKER, 0.0)
        waiting = msgspec.structs.replace(Waiting([], "", 0, 0, 0, "", "ann"), **wanted)
        entry = QueueEntry(1, "p", 1, "dev", "cli", waiting)
        asked = 0
        assigner.offered(entry)
        return asked

    monkeypatch.setattr(assignment._Waiter, "cpu", property(counting))
    assert visits(4000) == visits(1000) <= 8


def test_what_was_told_is_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "REMEMBERED", 3)

    def run(pid: str) -> Process:
        spec = FunctionSpec(conditions=Conditions(executortype="t"))
        return Process(pid, "", "", "dev", spec, 0, 0, State.RUNNING, attempt=1)

    registry = Subscriptions()
    with registry.open(SubscriptionFilter(frozenset({"dev"}), State.RUNNING)) as told:
        for pid in "abc":
            registry.changed(run(pid))
        registry.changed(run("a"))  # has output by now
        for pid in "de":
            registry.changed(run(pid))
        registry.changed(run("a"))
        assert [told.receive_nowait().processid for _ in range(5)] == list("abcde")
        with pytest.raises(trio.WouldBlock):
            told.receive_nowait()
    assert len(registry._told) == 3

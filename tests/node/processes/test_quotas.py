"""Quotas and turns: a flood meets a limit that is named, and keeps nobody else waiting."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError as Refusal
from colonyd.errors import TooMany
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, encode
from node.host.config import QuotasConfig
from node.model.codec import pack
from node.model.ids import new_id
from node.model.types import SECOND, Colony, Conditions, FunctionSpec, Running, User, Waiting
from node.processes.extension import Hooks
from node.processes.queue import Queue, QueueEntry, RunningSet
from node.processes.quotas import Quotas
from node.processes.spec import build_process
from node.rpc.calls import Call, Caller, Who
from node.rpc.dispatch import MAX_CALLS, Table
from node.rpc.requests import Empty
from node.store import crons as cron_store
from node.store import keys
from node.store.directory import Directory
from node.tasks.fairqueue import FairQueue
from node.timers.crons import due, owner
from node.timers.generators import largest_arg
from node.timers.timerqueue import TimerIndex, follow
from node.workflows.spec import read_workflow
from tests.node.timers.support import cron, generator
from tests.support.clocked import ANN, NOON, World, below, workflow, world
from tests.support.daemons import REPOSITORY, Daemon, until

MEMBER, COLONY = 3, 5
LIMITS = {name: MEMBER for name in QuotasConfig.__struct_fields__} | {
    "colony_processes": COLONY,
    "colony_crons": COLONY,
    "colony_generators": COLONY,
    "generator_bytes": 100,
}


@dataclass
class Member:
    """A colony of its own on a daemon, with two users and an executor."""

    client: RpcClient
    colony: str
    owner: PrivateKey
    user: PrivateKey
    other: PrivateKey
    worker: PrivateKey
    number: int = 0

    async def call(self, payloadtype: str, key: PrivateKey, **fields: Any) -> Any:
        return await self.client.call(payloadtype, {"colonyname": self.colony} | fields, key)

    def name(self) -> str:
        self.number += 1
        return f"n{self.number}"

    def spec(self) -> dict[str, Any]:
        conditions = {"colonyname": self.colony, "executortype": "cli"}
        return {"funcname": "f", "conditions": conditions, "maxexectime": -1, "maxwaittime": -1}

    async def member_processes(self, key: PrivateKey) -> None:
        await self.call("submitfuncspecmsg", key, spec=self.spec())

    async def member_crons(self, key: PrivateKey) -> None:
        new = {"colonyname": self.colony, "name": self.name(), "interval": 86_400}
        new["workflowspec"] = workflow(colony=self.colony)
        await self.call("addcronmsg", key, cron=new)

    async def member_generators(self, key: PrivateKey, trigger: int = 1000) -> Any:
        new = {"colonyname": self.colony, "name": self.name(), "trigger": trigger}
        new["workflowspec"] = workflow(colony=self.colony)
        return await self.call("addgeneratormsg", key, generator=new)

    async def executor_functions(self, key: PrivateKey) -> None:
        new = {"executorname": "worker", "colonyname": self.colony, "funcname": self.name()}
        await self.call("addfunctionmsg", self.worker, fun=new)

    async def colony_executors(self, key: PrivateKey) -> None:
        identity = PrivateKey.generate().id
        new = {"executorname": self.name(), "executorid": identity, "executortype": "cli"}
        await self.call("addexecutormsg", self.owner, executor=new | {"colonyname": self.colony})

    async def colony_users(self, key: PrivateKey) -> None:
        new = {"colonyname": self.colony, "userid": PrivateKey.generate().id, "name": self.name()}
        await self.call("addusermsg", self.owner, user=new)

    async def colony_definitions(self, key: PrivateKey) -> str:
        name = self.name()
        definition = {
            "metadata": {"name": name, "colonyname": self.colony},
            "spec": {"names": {"kind": name}},
        }
        await self.call("addblueprintdefinitionmsg", self.owner, blueprintdefinition=definition)
        return name

    async def colony_locations(self, key: PrivateKey) -> None:
        new = {"name": self.name(), "colonyname": self.colony}
        await self.call("addlocationmsg", self.owner, location=new)

    async def colony_files(self, key: PrivateKey) -> None:
        new = {"colonyname": self.colony, "label": "/a", "name": self.name()}
        await self.call("addfilemsg", key, file=new)

    async def colony_snapshots(self, key: PrivateKey) -> None:
        await self.call("createsnapshotmsg", key, label="/", name=self.name())


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with small quotas for the tests here."""
    environ = {f"COLONYD_QUOTAS__{name.upper()}": str(most) for name, most in LIMITS.items()}
    environ["COLONYD_FEDERATION__ENABLED"] = "false"
    made = Daemon(tmp_path_factory.mktemp("quotas") / "dev", "dev", environ).start()
    yield made
    assert made.stop() == 0


@pytest.fixture
async def me(daemon: Daemon) -> AsyncIterator[Member]:
    async with daemon.client() as client:
        made = Member(client, "", *[PrivateKey.generate() for _ in range(4)])  # type: ignore[arg-type]
        made.colony = f"c-{made.owner.id[:8]}"
        colony = {"colonyid": made.owner.id, "name": made.colony}
        await client.call("addcolonymsg", {"colony": colony}, daemon.key("server"))
        for name, key in (("user", made.user), ("other", made.other)):
            new = {"colonyname": made.colony, "userid": key.id, "name": name}
            await made.call("addusermsg", made.owner, user=new)
        worker = {"executorname": "worker", "executorid": made.worker.id, "executortype": "cli"}
        worker["colonyname"] = made.colony
        await made.call("addexecutormsg", made.owner, executor=worker)
        await made.call("approveexecutormsg", made.owner, executorname="worker")
        yield made


async def refused(setting: str, call: Callable[[], Any]) -> None:
    with pytest.raises(RpcError, match=rf"quotas\.{setting}\b") as caught:
        await call()
    assert caught.value.status == 429


# -- every one of them, from outside -------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "there"),
    [
        ("executor_functions", 0),
        ("colony_executors", 1),
        ("colony_users", 2),
        ("colony_definitions", 0),
        ("colony_locations", 0),
        ("colony_files", 0),
        ("colony_snapshots", 0),
    ],
)
async def test_what_is_one_too_many_is_refused_by_name(
    me: Member, setting: str, there: int
) -> None:
    add = getattr(me, setting)
    for _ in range(MEMBER - there):
        await add(me.user)
    await refused(setting, lambda: add(me.user))


@pytest.mark.parametrize("what", ["processes", "crons", "generators"])
async def test_a_member_has_a_limit_and_all_members_together(me: Member, what: str) -> None:
    add = getattr(me, f"member_{what}")
    for _ in range(MEMBER):
        await add(me.user)
    await refused(f"member_{what}", lambda: add(me.user))
    for _ in range(COLONY - MEMBER):
        await add(me.other)
    await refused(f"colony_{what}", lambda: add(me.other))


async def test_what_ends_makes_room(me: Member) -> None:
    for _ in range(MEMBER):
        await me.member_processes(me.user)
    process = await me.call("assignprocessmsg", me.worker, timeout=10)
    # It is open while it runs.
    await refused("member_processes", lambda: me.member_processes(me.user))
    await me.call("closesuccessfulmsg", me.worker, processid=process["processid"], out=[])
    await me.member_processes(me.user)


async def test_a_workflow_counts_with_all_its_nodes(me: Member) -> None:
    specs = [me.spec() | {"nodename": f"n{number}"} for number in range(MEMBER + 1)]
    spec = {"colonyname": me.colony, "functionspecs": specs}
    await refused("member_processes", lambda: me.call("submitworkflowspecmsg", me.user, spec=spec))
    spec["functionspecs"] = specs[:MEMBER]
    await me.call("submitworkflowspecmsg", me.user, spec=spec)
    await refused("member_processes", lambda: me.member_processes(me.user))


async def test_a_repeat_of_what_was_served_is_answered(me: Member) -> None:
    """The answer was lost, and by the time of the repeat the quota is reached."""
    body = encode("submitfuncspecmsg", {"spec": me.spec()}, me.user)
    first = await me.client._post("submitfuncspecmsg", body, 10)
    for _ in range(MEMBER - 1):
        await me.member_processes(me.user)
    assert (await me.client._post("submitfuncspecmsg", body, 10)) == first


async def test_a_blueprint_is_no_way_around(me: Member) -> None:
    kind = await me.colony_definitions(me.user)

    async def add() -> None:
        metadata = {"name": me.name(), "colonyname": me.colony}
        await me.call("addblueprintmsg", me.user, blueprint={"kind": kind, "metadata": metadata})

    for _ in range(MEMBER):
        await add()
    await refused("colony_blueprints", add)
    handler = {"executorType": "cli", "functionName": "reconcile"}
    names = {"kind": "Busy"}
    definition: dict[str, Any] = {"metadata": {"name": "busy", "colonyname": me.colony}}
    definition["spec"] = {"names": names, "handler": handler}
    await me.call("addblueprintdefinitionmsg", me.owner, blueprintdefinition=definition)
    await me.call("removeblueprintmsg", me.user, namespace=me.colony, name="n2")
    blueprint = {"kind": "Busy", "metadata": {"name": "busy", "colonyname": me.colony}}
    await me.call("addblueprintmsg", me.user, blueprint=blueprint)
    for _ in range(MEMBER - 1):
        await me.call("reconcileblueprintmsg", me.user, namespace=me.colony, name="busy")

    async def again() -> None:
        await me.call("reconcileblueprintmsg", me.user, namespace=me.colony, name="busy")

    await refused("member_processes", again)
    # What goes away may always be cleaned up after.
    await me.call("removeblueprintmsg", me.user, namespace=me.colony, name="busy")


async def test_the_queue_of_a_generator_is_bounded(me: Member) -> None:
    made = await me.member_generators(me.user)

    async def pack(arg: str) -> None:
        await me.call("packgeneratormsg", me.user, generatorid=made["generatorid"], arg=arg)

    await pack("x" * 40)
    await pack("x" * 40)
    await refused("generator_bytes", lambda: pack("x" * 40))
    await pack("x")
    await refused("generator_packs", lambda: pack("x"))


async def test_the_lines_of_a_process_are_bounded(me: Member) -> None:
    await me.member_processes(me.user)
    process = await me.call("assignprocessmsg", me.worker, timeout=10)

    async def line() -> None:
        await me.call("addlogmsg", me.worker, processid=process["processid"], message="m")

    for _ in range(MEMBER):
        await line()
    await refused("process_logs", line)


async def test_an_executor_can_not_take_the_function_of_another(me: Member) -> None:
    await me.executor_functions(me.user)
    theirs = (await me.call("getfunctionsmsg", me.user))[0]
    key = PrivateKey.generate()
    thief = {"executorname": "thief", "executorid": key.id, "executortype": "cli"}
    thief["colonyname"] = me.colony
    await me.call("addexecutormsg", me.owner, executor=thief)
    await me.call("approveexecutormsg", me.owner, executorname="thief")
    new = {"executorname": "thief", "colonyname": me.colony, "funcname": "f"}
    new["functionid"] = theirs["functionid"]
    added = await me.call("addfunctionmsg", key, fun=new)
    assert added["functionid"] != theirs["functionid"]
    assert theirs in await me.call("getfunctionsmsg", me.user)


def test_every_quota_is_documented_with_its_default() -> None:
    rows = (REPOSITORY / "docs" / "reference" / "configuration.md").read_text("utf-8")
    for name, default in zip(
        QuotasConfig.__struct_fields__, QuotasConfig.__struct_defaults__, strict=True
    ):
        shown = "64MiB" if name == "generator_bytes" else f"{default:,}".replace(",", "")
        assert re.search(rf"`quotas\.{name}`[^|]*\|[^|]*`{shown}`", rows), name


# -- counting --------------------------------------------------------------------------------


def entry(number: int, name: str, revision: int, origin: str = "") -> QueueEntry:
    waiting = Waiting([], "", 0, 0, 0, "", name, origin)
    return QueueEntry(number, str(number), revision, "dev", "cli", waiting)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "take", "give", "run", "end", "remove"]),
            st.integers(0, 3),
            st.sampled_from(["ann", "eve"]),
            st.sampled_from(["", "peer"]),
        )
    )
)
def test_members_are_counted_as_often_as_they_have_something(
    steps: list[tuple[str, int, str, str]],
) -> None:
    queue, running = Queue(), RunningSet()
    taken: dict[int, QueueEntry] = {}
    for revision, (what, number, name, origin) in enumerate(steps, 1):
        known = queue.entries.get(str(number))
        if what == "add":
            queue.add(entry(number, name, revision, origin))
        elif what == "take" and known is not None:
            queue.take(known)
            taken[number] = known
        elif what == "give" and number in taken:
            queue.give_back(taken.pop(number))
        elif what == "run":
            running.add("dev", str(number), Running("e", "cli", 1, 0, "", name, origin), revision)
        elif what == "end":
            running.end(str(number), revision)
        else:
            queue.remove(str(number), revision)
            running.remove(str(number), revision)
        quotas = Quotas(queue, running)
        waiting = [e.waiting for e in queue.entries.values() if not e.waiting.origin]
        busy = [r for _, r, _ in running.entries.values() if not r.origin]
        for each in ("ann", "eve"):
            have = [w.initiatorname for w in waiting].count(each)
            have += [r.initiatorname for r in busy].count(each)
            assert quotas.open("dev", each) == have
        assert quotas.open("dev") == len(waiting) + len(busy)


def test_submissions_under_way_count() -> None:
    quotas = Quotas(limits=QuotasConfig(member_processes=10))

    def ids(first: int, count: int) -> list[str]:
        return [str(number) for number in range(first, first + count)]

    with quotas.processes("dev", "ann", ids(0, 6)):
        with pytest.raises(TooMany), quotas.processes("dev", "ann", ids(6, 5)):
            pass
        with (
            quotas.processes("dev", "eve", ids(20, 5)),
            quotas.processes("dev", "ann", ids(6, 4)),
        ):
            pass
        # What runs by the clock may have half, so that its member can still submit.
        with pytest.raises(TooMany, match="by the clock"):
            quotas.require_processes("dev", "ann", 1, timed=True)
    assert (quotas.open("dev", "ann"), quotas.open("dev")) == (0, 0)
    with Quotas(limits=QuotasConfig(member_processes=0)).processes("dev", "ann", ids(0, 10**5)):
        pass


@pytest.mark.parametrize(
    "limits",
    [
        QuotasConfig(member_processes=4, colony_processes=0),
        QuotasConfig(member_processes=0, colony_processes=4),
    ],
)
def test_what_the_watch_told_before_its_submission_was_answered_counts_once(
    limits: QuotasConfig,
) -> None:
    quotas = Quotas(limits=limits)
    with quotas.processes("dev", "ann", ["1", "2", "3"]):
        quotas.running.add("dev", "1", Running("e", "cli", 1, 0, "", "ann", ""), 5)
        quotas.running.add("dev", "2", Running("e", "cli", 1, 0, "", "ann", ""), 5)
        with quotas.processes("dev", "ann", ["4"]), pytest.raises(TooMany):
            quotas.require_processes("dev", "ann")
    assert quotas.open("dev", "ann") == 2
    quotas.require_processes("dev", "ann", 2)


class Away(Hooks):
    """A peer that never answers: what goes there stays with it."""

    home = "dev"
    sent = 0

    def forwards(self) -> int:
        return self.sent


async def test_what_is_sent_to_a_peer_that_does_not_answer_is_bounded(dev: World) -> None:
    processes, hooks = dev.node.processes, Away()
    processes.hooks, processes.quotas.limits = hooks, QuotasConfig(colony_forwards=3)
    spec = FunctionSpec(funcname="f", conditions=Conditions("dev", executortype="cli"))

    async def submit(peer: str) -> None:
        process = build_process(
            spec,
            processid=new_id(),
            initiatorid=ANN,
            initiatorname="ann",
            colonyname="dev",
            now=NOON,
            peer=peer,
        )
        await processes.submit(process, b"")

    for hooks.sent in range(3):
        await submit("b" * 64)
    hooks.sent = 3
    with pytest.raises(TooMany, match=r"quotas\.colony_forwards"):
        await submit("b" * 64)
    await submit("")


# -- by the clock ------------------------------------------------------------------------


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.start()
        await made.node.leader.elected()
        made.node.processes.quotas.limits = QuotasConfig(member_processes=4)
        yield made


async def test_a_cron_that_may_not_start_says_so_once_and_goes_on_when_it_may(
    dev: World, caplog: pytest.LogCaptureFixture
) -> None:
    crons = dev.node.crons
    added = [await crons.add(cron(name=f"c{n}", interval=1), workflow()) for n in range(3)]
    dev.advance(1)

    async def all_moved() -> bool:
        now = [await crons.get("dev", each.cronid) for each in added]
        return all(each.nextrun > dev.now and each.firing is None for each in now)

    await until(50, all_moved)
    now = [await crons.get("dev", each.cronid) for each in added]
    kept = [each for each in now if each.skipped]
    assert len(await dev.graphs()) == 2
    assert ["quotas.member_processes" in each.skipped for each in kept] == [True]
    # Due again, over and over: no transaction, and no line, for each time.
    revision = (await dev.client.range(cron_store.prefix("dev"))).revision
    for _ in range(5):
        dev.advance(1)
        await trio.testing.wait_all_tasks_blocked(0.02)
        for each in now:
            await crons.act(cron_store.key("dev", each.cronid))
    assert (await dev.client.range(cron_store.prefix("dev"))).revision <= revision + 4
    assert sum("crons skip their runs" in record.message for record in caplog.records) == 1
    with pytest.raises(TooMany):
        await crons.run_now("dev", added[0].cronid, "token")
    for _ in range(2):
        await dev.close(await dev.assign())
    assert await crons.act(cron_store.key("dev", kept[0].cronid)) == 0.0
    after = await crons.get("dev", kept[0].cronid)
    assert (after.skipped, after.lastrun) == ("", dev.now)


async def test_the_crons_of_a_member_that_left_cost_nothing_for_each_time(
    dev: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Five hundred of them were as many transactions and lines in the log a second, for ever."""
    crons = dev.node.crons
    added = [await crons.add(cron(name=f"c{n}", interval=1), workflow()) for n in range(3)]
    await dev.node.members.remove_user("dev", "ann")
    dev.advance(1)

    async def all_skipped() -> bool:
        return all([(await crons.get("dev", each.cronid)).skipped for each in added])

    await until(50, all_skipped)
    revision = (await dev.client.range(cron_store.prefix("dev"))).revision
    for _ in range(5):
        dev.advance(1)
        for each in added:
            assert await crons.act(cron_store.key("dev", each.cronid)) == 30.0
    assert (await dev.client.range(cron_store.prefix("dev"))).revision <= revision + 2
    assert sum("crons skip their runs" in record.message for record in caplog.records) == 1


async def test_a_workflow_that_is_too_large_for_what_is_left_is_skipped(dev: World) -> None:
    three = workflow(*(below(name) for name in "abc"))
    added = await dev.node.crons.add(cron(interval=1), three)
    dev.advance(1)

    async def skipped() -> bool:
        now = await dev.node.crons.get("dev", added.cronid)
        return bool(now.skipped) and now.firing is None

    await until(50, skipped)
    assert await dev.graphs() == []


async def test_a_generator_that_may_not_start_keeps_its_arguments(dev: World) -> None:
    generators = dev.node.generators
    added = await generators.add(generator(trigger=1), workflow())
    for arg in "abcd":
        await generators.pack("dev", added.generatorid, arg)

    async def two_started() -> bool:
        return len(await dev.graphs()) == 2

    await until(50, two_started)
    await trio.testing.wait_all_tasks_blocked(0.05)
    left = await generators.get("dev", added.generatorid)
    assert (left.queuesize, left.queuebytes, len(await dev.graphs())) == (2, 2, 2)
    for _ in range(2):
        await dev.close(await dev.assign())
    key = f"/colonyd/timed/generator/dev/{added.generatorid}"
    await generators.act(key)
    await generators.act(key)
    left = await generators.get("dev", added.generatorid)
    assert (left.queuesize, left.queuebytes) == (0, 0)


async def test_an_argument_is_not_multiplied_by_the_nodes_that_get_it(dev: World) -> None:
    """A megabyte for each of a thousand roots was a gigabyte in the store for one call."""
    roots = workflow(*(below(f"n{number}") for number in range(1000)))
    added = await dev.node.generators.add(generator(trigger=1), roots)
    assert added.roots == 1000
    assert largest_arg(added) * 1000 <= 2 * 2**20
    with pytest.raises(Refusal, match=r"arg: at most 2097 bytes"):
        await dev.node.generators.pack("dev", added.generatorid, "x" * 100_000)
    with pytest.raises(Refusal, match=r"generator\.trigger"):
        await dev.node.generators.add(generator(trigger=10_000, name="other"), roots)
    _, specs = read_workflow(roots, "spec")
    with pytest.raises(Refusal, match="gets the same arguments"):
        await dev.node.workflows.submit(
            "dev",
            specs,
            graphid="a" * 64,
            initiatorid=ANN,
            initiatorname="ann",
            root_input=["x" * 100_000],
        )


async def test_crons_of_colonies_and_members_take_turns(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    index = TimerIndex(cron_store.Cron, due, owner)

    def learn(colony: str, member: str, count: int) -> None:
        for number in range(count):
            some = cron(cronid=f"{number}", colonyname=colony, initiatorid=member, nextrun=NOON)
            index.learn(f"{colony}/{member}/{number}", some, 1)

    learn("dev", "flood", 300)
    order: list[str] = []

    async def act(key: str) -> float:
        order.append(key)
        await trio.sleep(1)
        index.forget(key)
        return 0.0

    nursery.start_soon(follow, index, lambda: NOON + SECOND, act)
    await trio.sleep(0.5)
    # The rest of the 300 is in line when others become due.
    learn("dev", "honest", 2)
    learn("elsewhere", "owner", 2)
    await trio.sleep(2)
    others = [key for key in order if "flood" not in key]
    assert len(others) == 4
    assert order.index(others[-1]) < 16


# -- turns ---------------------------------------------------------------------------------


@given(
    st.integers(0, 4),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans()), max_size=20),
)
def test_turns_are_bounded_and_everybody_gets_one(
    room: int, each: int, visits: list[tuple[str, str, bool]]
) -> None:
    turns = FairQueue(room, each)
    inside: list[tuple[str, ...]] = []
    done: list[int] = []

    async def visit(number: int, party: tuple[str, ...], leaves: bool) -> None:
        with trio.move_on_after(0.5 if leaves else 1000):
            async with turns.of(party):
                inside.append(party)
                assert not room or len(inside) <= room
                assert not each or inside.count(party) <= each
                try:
                    await trio.sleep(1)
                finally:
                    inside.remove(party)
        done.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number, (colony, member, leaves) in enumerate(visits):
                nursery.start_soon(visit, number, (colony, member), leaves)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(done) == len(visits)
    assert (turns._total, turns._inside, turns._waiting) == (0, {}, {})


async def test_the_calls_of_one_signer_keep_nobody_else_waiting() -> None:
    table = Table(Directory(), time.time_ns)
    server, entered = trio.Event(), list[str]()

    async def slow(caller: Caller, request: Any) -> None:
        entered.append(caller.id)
        await server.wait()

    table.add(Call("slowmsg", Empty, Who.SIGNED, slow))
    eve, ann = PrivateKey.generate(), PrivateKey.generate()
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS + 20):
            nursery.start_soon(table.answer, encode("slowmsg", {}, eve))
        await trio.testing.wait_all_tasks_blocked()
        assert entered == [eve.id] * MAX_CALLS
        nursery.start_soon(table.answer, encode("slowmsg", {}, ann))
        await trio.testing.wait_all_tasks_blocked()
        assert entered[MAX_CALLS:] == [ann.id]
        server.set()
    assert len(entered) == MAX_CALLS + 21


async def test_who_loses_the_right_while_a_call_waits_is_refused() -> None:
    directory = Directory()
    table = Table(directory, time.time_ns)
    server, served = trio.Event(), list[str]()
    eve = PrivateKey.generate()
    user = keys.user("dev", "eve")
    directory.apply(keys.colony("dev"), pack(Colony("0" * 64, "dev")), 1)
    directory.apply(user, pack(User("dev", eve.id, "eve")), 1)

    async def slow(caller: Caller, request: Any) -> None:
        served.append(caller.id)
        await server.wait()

    table.add(Call("slowmsg", Empty, Who.MEMBER, slow, lambda request: "dev"))
    statuses = list[int]()

    async def ask() -> None:
        statuses.append((await table.answer(encode("slowmsg", {}, eve)))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS + 20):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        directory.apply(user, None, 2)
        server.set()
    assert len(served) == MAX_CALLS
    assert sorted(statuses) == [200] * MAX_CALLS + [403] * 20


# -- a flood --------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_flood_of_crons_ends_at_its_quota_and_others_go_on(
    make_daemon: Callable[..., Daemon],
) -> None:
    """Each-second crons of many nodes made 80,000 processes in 25 seconds."""
    flooding = make_daemon(
        "dev", COLONYD_FEDERATION__ENABLED="false", COLONYD_QUOTAS__MEMBER_PROCESSES="800"
    ).start()
    eve = PrivateKey.generate()
    async with flooding.client() as client:
        new = {"colonyname": "dev", "userid": eve.id, "name": "eve"}
        await client.call("addusermsg", {"user": new}, flooding.key("colony"))
        many = workflow(*(below(f"n{number}") for number in range(20)))
        for number in range(60):
            some = {"colonyname": "dev", "name": f"c{number}", "interval": 1, "workflowspec": many}
            await client.call("addcronmsg", {"cron": some}, eve, timeout=30)
        await trio.to_thread.run_sync(
            lambda: flooding.await_event('event="crons skip their runs"', seconds=60)
        )
        mark = len(flooding.events)
        spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
        for _ in range(100):
            await client.call("submitfuncspecmsg", {"spec": spec}, flooding.key("user"))
        stats = await client.call("getcolonystatsmsg", {"colonyname": "dev"}, flooding.key("user"))
        assert stats["waitingprocesses"] == 400 + 100
        lines = [line for line in flooding.events[mark:] if "name=crons" in line]
        assert len(lines) <= 1
        found = await client.call("getcronsmsg", {"colonyname": "dev", "count": 60}, eve)
        assert any("quotas.member_processes" in each.get("skipped", "") for each in found)
        # Its own calls are still let in: the clock takes half.
        await client.call("submitfuncspecmsg", {"spec": spec}, eve)

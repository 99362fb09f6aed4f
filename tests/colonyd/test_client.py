"""The client of a colony against a real daemon with a worker, in trio and in asyncio."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from colonyd.client.blocking import BlockingClient
from colonyd.client.client import Client, NotEnded, ProcessFailed, WorkflowFailed
from colonyd.client.values import Conditions, OddReply, Spec, State
from colonyd.client.workflow import Workflow, task
from colonyd.errors import ColonyError, Invalid, NotFound
from colonyd.rpc import RpcError, Signed, Unreachable
from colonyd.settings import Settings
from tests.support.daemons import REPOSITORY, Daemon, free_port

pytestmark = pytest.mark.slow

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])
NOBODY = Spec(conditions=Conditions(executortype="nobody"))

WORKER = """
import time
from colonyd import Context, Worker
worker = Worker("w", slots=8)

@worker.function
def add(a: int, b: int = 1) -> int:
    return a + b

@worker.function
def pair() -> tuple[int, str]:
    return 1, "b"

@worker.function
def fail() -> None:
    raise ValueError("the tank is empty")

@worker.function
async def slow(seconds: float, context: Context) -> str:
    import trio
    for number in range(3):
        context.log(f"line {number}")
        await trio.sleep(seconds / 3)
    return "done"

worker.run()
"""


def environ_of(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    return kept | {"COLONYD_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}


class Site:
    """A daemon and a worker beside it."""

    def __init__(self, place: Path) -> None:
        self.daemon = Daemon(place / "dev", "dev", {"COLONYD_FEDERATION__ENABLED": "false"})
        self.daemon.start()
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environ_of(self.daemon.home),
            stderr=subprocess.DEVNULL,
        )
        self.settings = Settings.find(home=self.daemon.home, environ={})

    def stop(self) -> None:
        self.worker.terminate()
        self.worker.wait(60)
        self.daemon.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.stop()


def work(
    site: Site, backend: str, block: Callable[[Client], Awaitable[None]], seconds: float = 60
) -> None:
    async def main() -> None:
        with anyio.fail_after(seconds):
            async with Client(site.settings) as colony:
                await block(colony)

    anyio.run(main, backend=backend)


class Sum(msgspec.Struct):
    total: int


@BACKENDS
def test_a_function_is_run_and_its_output_has_a_type(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        assert await colony.run("add", 1, 2, result=int) == 3
        assert await colony.run("add", 1, b=3) == 4
        assert await colony.run("pair") == [1, "b"]
        assert await colony.run(Spec(funcname="add", args=[5])) == 6
        with pytest.raises(OddReply, match="output of add: Expected `str`, got `int`"):
            await colony.run("add", 1, result=str)
        with pytest.raises(ProcessFailed, match="fail failed: ValueError: the tank is empty") as e:
            await colony.run("fail")
        assert e.value.errors == ["ValueError: the tank is empty"]
        assert e.value.process.state is State.FAILED
        with pytest.raises(ColonyError, match="an argument of add has no form in JSON"):
            await colony.run("add", object())
        with pytest.raises(Invalid, match="no form in JSON: Out of range float values"):
            await colony.run("add", float("nan"))

    work(site, backend, block)


@BACKENDS
def test_the_error_of_the_block_is_not_wrapped(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        work(site, backend, block)


@BACKENDS
def test_ends_are_told_by_the_socket(site: Site, backend: str) -> None:
    """The next poll comes 15 s after the last one by then."""

    async def block(colony: Client) -> None:
        job = await colony.submit("none", spec=NOBODY)
        seen: list[Any] = []

        async def wait() -> None:
            seen.append(await job.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            assert colony._events is not None
            while not any(each.live for each in colony._events._watched.values()):  # noqa: ASYNC110
                await anyio.sleep(0.02)
            await anyio.sleep(4)
            await job.cancel()
            with anyio.fail_after(5):
                while not seen:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
        assert seen[0].state is State.CANCELLED
        with pytest.raises(ProcessFailed, match="none was cancelled"):
            await job.result()

    work(site, backend, block)


@BACKENDS
def test_a_lost_socket_is_opened_again_for_those_who_wait(tmp_path: Path, backend: str) -> None:
    """It was opened only when somebody began to wait; the others noticed after up to 15 s."""
    site = Site(tmp_path)
    try:

        async def block(colony: Client) -> None:
            job = await colony.submit("none", spec=NOBODY)
            assert colony._events is not None
            watched = colony._events._watched

            async def until(live: bool) -> None:
                # The longest pause before it is opened again is 30 s.
                with anyio.fail_after(60):
                    while any(each.live for each in watched.values()) is not live:  # noqa: ASYNC110
                        await anyio.sleep(0.02)

            async with anyio.create_task_group() as group:
                group.start_soon(job.wait)
                await until(True)
                woken = next(iter(watched.values())).news
                await anyio.to_thread.run_sync(site.daemon.kill)
                await until(False)
                assert woken.is_set()
                await anyio.to_thread.run_sync(site.daemon.start)
                await until(True)
                group.cancel_scope.cancel()

        work(site, backend, block, 240)
    finally:
        site.stop()


@BACKENDS
def test_waiting_has_an_end(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        job = await colony.submit("none", spec=NOBODY)
        with pytest.raises(NotEnded, match=r"has not ended after 0\.3 s"):
            await job.wait(0.3)
        assert job.id in [each.id for each in await colony.processes(State.WAITING)]
        await job.cancel()
        with pytest.raises(NotFound):
            await colony.wait("0" * 64, 5)

    work(site, backend, block)


@BACKENDS
def test_a_function_is_mapped_over_a_thousand_items(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        found = await colony.map("add", range(1_000), result=int)
        assert found == [*range(1, 1_001)]

    work(site, backend, block, 300)


@BACKENDS
def test_the_first_failure_ends_a_map_and_what_is_in_flight(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        with pytest.raises(ProcessFailed, match="got `str`"):
            await colony.map("add", [1, "x", *range(500)], limit=4)
        assert await colony.processes(State.WAITING) == []

    work(site, backend, block)


@BACKENDS
def test_logs_are_followed_to_the_end(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        job = await colony.submit("slow", 0.6)
        lines = "\n".join([row.message async for row in job.logs()]).split("\n")
        assert [line for line in lines if line] == ["line 0", "line 1", "line 2"]
        assert await job.result() == "done"
        assert [row async for row in colony.logs(job.id)] != []

    work(site, backend, block)


@BACKENDS
def test_workflows_run_and_a_failed_step_is_named(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        # A step gets the outputs of those before it behind its own arguments.
        first, left, right = task("add", 1, 1, name="first"), task("add", 10), task("slow")
        first >> [left, right]
        run = await colony.submit(Workflow(first, left, right))
        found = await run.wait(60)
        assert found == {"first": 2, "add": 12, "slow": "done"}
        bad, after = task("fail", name="bad"), task("pair", name="after")
        bad >> after
        run = await colony.submit(Workflow(bad, after))
        with pytest.raises(WorkflowFailed, match="bad: ValueError: the tank is empty") as caught:
            await run.wait(60)
        assert next(iter(caught.value.failed)) == "bad"
        assert run.id in [each.id for each in await colony.workflows(State.FAILED)]

    work(site, backend, block)


@BACKENDS
def test_crons(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        with pytest.raises(ColonyError, match="either an interval in whole seconds or an expr"):
            await colony.addcron("bad", "pair")
        made = await colony.addcron(f"c-{backend}", "pair", every=3600)
        assert made.id in [each.id for each in await colony.crons()]
        ran = await colony.runcron(made.id)
        graph = await colony.wait_workflow(ran.previous, 30)
        assert graph.state is State.SUCCESSFUL
        await colony.removecron(made.id)
        assert made.id not in [each.id for each in await colony.crons()]

    work(site, backend, block)


@BACKENDS
def test_channels(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        spec = Spec(funcname="none", conditions=NOBODY.conditions, channels=["talk"])
        job = await colony.submit(spec)
        await colony.send(job.id, "talk", "hello", sequence=1)
        await colony.send(job.id, "talk", b"\xff", sequence=2)
        found = []
        async for message in colony.follow(job.id, "talk"):
            found.append(message)
            if len(found) == 2:
                await colony.send(job.id, "talk", "", sequence=3, kind="end")
        assert [(each.payload, each.kind) for each in found] == [
            (b"hello", "data"),
            (b"\xff", "data"),
            (b"", "end"),
        ]
        (one,) = await colony.read(job.id, "talk", after=1, count=1)
        assert one.payload == b"\xff"
        await job.cancel()

    work(site, backend, block)


@BACKENDS
def test_executors_functions_and_attributes(site: Site, backend: str) -> None:
    async def block(colony: Client) -> None:
        assert [each.name for each in await colony.executors()] == ["w"]
        assert {"add", "slow"} <= {each.name for each in await colony.functions("w")}
        job = await colony.submit("none", spec=NOBODY)
        assert await colony.attributes(job.id) == {}
        await job.cancel()
        await colony.remove(job.id)
        with pytest.raises(NotFound):
            await colony.get(job.id)

    work(site, backend, block)


def test_a_program_without_a_loop(site: Site) -> None:
    with BlockingClient(site.settings) as colony:
        assert colony.run("add", 1, 2, result=int) == 3
        job = colony.submit("slow", 0.3)
        assert " ".join(row.message for row in job.logs()).split() == [
            *("line", "0", "line", "1", "line", "2")
        ]
        assert job.result() == "done"
        assert colony.submit(Workflow(task("pair"))).wait() == {"pair": [1, "b"]}
        with pytest.raises(ProcessFailed):
            colony.run("fail")
        with ThreadPoolExecutor(4) as threads:
            assert [*threads.map(lambda n: colony.run("add", n), range(20))] == [*range(1, 21)]
        assert next(iter(colony.logs(job.id))).message  # left before its end
    with pytest.raises(ColonyError, match="the client is not open"):
        colony.run("pair")


@BACKENDS
def test_a_blocking_client_does_not_stop_a_loop(site: Site, backend: str) -> None:
    async def main() -> None:
        with pytest.raises(ColonyError, match="would stop the event loop"):
            BlockingClient(site.settings).__enter__()

    anyio.run(main, backend=backend)


def test_a_blocking_client_has_every_method() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) - {"rpc", "of"} <= methods(BlockingClient)
    for name in methods(Client) & methods(BlockingClient):
        assert inspect.getdoc(vars(BlockingClient)[name])


def test_another_colonys_daemon_in_the_place_of_ours_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is away, not unwilling: what it is asked for is asked again, until it is back."""
    ours, other = Daemon(tmp_path / "dev", "dev"), Daemon(tmp_path / "other", "other")
    settings = Settings.find(home=ours.home, environ={})

    async def main() -> None:
        ours.environ["COLONYD_FEDERATION__ENABLED"] = "false"
        other.environ["COLONYD_FEDERATION__ENABLED"] = "false"
        await anyio.to_thread.run_sync(ours.start)
        async with settings.client() as client:
            mine = Signed(client, settings.member_key())
            fields = {"colonyname": "dev", "state": 0, "count": 10}
            await mine.call("getprocessesmsg", fields)
            await anyio.to_thread.run_sync(ours.kill)
            other.port = ours.port
            await anyio.to_thread.run_sync(other.start)
            send, learned = client._send, await client.audience()
            refusals: list[Exception] = []

            async def ask() -> None:
                try:
                    await mine.call("getprocessesmsg", fields)
                except (RpcError, Unreachable) as error:
                    refusals.append(error)

            async def second(*args: Any) -> Any:
                if args[3] != learned:
                    # Another call begins while this one finds out who answers.
                    monkeypatch.undo()
                    await ask()
                return await send(*args)

            await ask()
            monkeypatch.setattr(client, "_send", second)
            await ask()
            assert [type(each) for each in refusals] == [Unreachable] * 3
            assert all("another server answers there" in str(each) for each in refusals)
            ours.port = free_port()
            await anyio.to_thread.run_sync(ours.start)
            assert await mine.call("getprocessesmsg", fields) == []

    try:
        anyio.run(main, backend="trio")
    finally:
        for daemon in (ours, other):
            if daemon.process is not None:
                daemon.stop()


def test_a_client_goes_nowhere_else_while_its_daemon_is_stopped(tmp_path: Path) -> None:
    """It went to the usual port, where another colony's daemon may be."""
    ours = Daemon(tmp_path / "dev", "dev", {"COLONYD_FEDERATION__ENABLED": "false"})
    settings = Settings.find(home=ours.home, environ={})

    async def main() -> None:
        await anyio.to_thread.run_sync(ours.start)
        async with settings.client() as client:
            mine, url = Signed(client, settings.member_key()), client.url
            await mine.call("getcolonystatsmsg", {"colonyname": "dev"})
            await anyio.to_thread.run_sync(ours.stop)
            for _ in range(2):
                with pytest.raises(Unreachable, match=url):
                    await mine.call("getcolonystatsmsg", {"colonyname": "dev"})

    anyio.run(main, backend="trio")


@BACKENDS
def test_a_daemon_killed_and_started_elsewhere_is_found_again(tmp_path: Path, backend: str) -> None:
    site = Site(tmp_path)
    try:

        async def block(colony: Client) -> None:
            found: dict[str, Any] = {}

            async def mapping() -> None:
                found["map"] = await colony.map("add", range(300), limit=10)

            async def waiting() -> None:
                found["run"] = await colony.run("slow", 3.0)

            async def listening() -> None:
                job = await colony.submit("slow", 3.0)
                found["logs"] = "\n".join([row.message async for row in job.logs()])

            async with anyio.create_task_group() as group:
                for each in (mapping, waiting, listening):
                    group.start_soon(each)
                await anyio.sleep(1)
                await anyio.to_thread.run_sync(site.daemon.kill)
                site.daemon.port = free_port()
                await anyio.to_thread.run_sync(site.daemon.start)
            assert found["map"] == [*range(1, 301)]
            assert found["run"] == "done"
            assert "line 2" in found["logs"]

        work(site, backend, block, 180)
    finally:
        site.stop()

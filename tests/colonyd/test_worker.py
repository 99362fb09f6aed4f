"""Workers in Python as their authors run them: programs of their own beside a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
import trio

from colonyd import Client, ColonyError, Context, Settings, Worker
from colonyd.errors import NotThere
from tests.support.daemons import REPOSITORY, Daemon, until

pytestmark = pytest.mark.slow

WAITING, RUNNING, SUCCESSFUL, FAILED, CANCELLED = range(5)
BACKENDS = ("trio", "asyncio")


@pytest.fixture(scope="module")
def lone_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    environ = {"COLONYD_FEDERATION__ENABLED": "false"}
    daemon = Daemon(tmp_path_factory.mktemp("lone") / "dev", "dev", environ).start()
    yield daemon
    assert daemon.stop() == 0


class Program:
    """A worker's program in a process of its own."""

    def __init__(self, daemon: Daemon, kind: str, body: str, backend: str = "trio") -> None:
        text = f"""
import asyncio, os, sys, time
import trio
from colonyd import BlockingContext, Context, Failed, Withdrawn, Worker
worker = Worker(type={kind!r}, slots=2, grace=20)
{textwrap.dedent(body)}
worker.run(backend={backend!r})
"""
        environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))
        }
        environ |= {"COLONYD_HOME": str(daemon.home), "PYTHONPATH": str(REPOSITORY)}
        self.path = daemon.home.parent / f"{kind}.py"
        self.path.write_text(text)
        self.environ = environ
        self.start()

    def start(self) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(self.path)],
            env=self.environ,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def until(self, text: str) -> str:
        """Read what it says up to a line that begins with `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith(text):
                return line
        raise AssertionError(f"the worker ended without {text!r}: {''.join(self.said)}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.said += self.process.stderr.readlines()
            self.process.stderr.close()
        return self.process.wait(30)


@pytest.fixture
def program(lone_daemon: Daemon) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def make(kind: str, body: str, backend: str = "trio", daemon: Daemon | None = None) -> Program:
        made.append(Program(daemon or lone_daemon, kind, body, backend))
        made[-1].until("ready")
        return made[-1]

    yield make
    for each in made:
        each.end(signal.SIGKILL)


async def submit(daemon: Daemon, kind: str, funcname: str, *args: Any, **more: Any) -> str:
    conditions = {"colonyname": "dev", "executortype": kind}
    spec = {"funcname": funcname, "args": [*args], "conditions": conditions, **more}
    async with daemon.client() as client:
        process = await client.call("submitfuncspecmsg", {"spec": spec}, daemon.key("user"))
        return str(process["processid"])


async def reached(daemon: Daemon, processid: str, state: int) -> dict[str, Any]:
    """Wait until a process is in a state, or closed."""
    async with daemon.client() as client:

        async def look() -> dict[str, Any] | None:
            fields = {"processid": processid}
            found: dict[str, Any] = await client.call("getprocessmsg", fields, daemon.key("user"))
            return found if found["state"] >= min(state, SUCCESSFUL) else None

        found: dict[str, Any] = await until(60, look)
    assert found["state"] == state, found
    return found


def there(path: Path, wanted: bool = True) -> Callable[[], Awaitable[bool]]:
    """What waits for a file to come, or to go."""

    async def look() -> bool:
        return path.exists() is wanted  # noqa: ASYNC240

    return look


async def logs(daemon: Daemon, processid: str) -> str:
    async with daemon.client() as client:
        fields = {"colonyname": "dev", "processid": processid, "count": 100}
        rows = await client.call("getlogsmsg", fields, daemon.key("user"))
        return "\n".join(row["message"] for row in rows)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_sync_and_async_functions_answer(
    lone_daemon: Daemon, program: Callable[..., Program], backend: str
) -> None:
    kind = f"both-{backend}"
    program(
        kind,
        f"""
        @worker.function
        def add(a: int, b: int = 1) -> int:
            return a + b

        @worker.function("name of its own")
        async def loop(context: Context) -> tuple[str, str]:
            if {backend == "asyncio"}:
                await asyncio.sleep(0)
                loop = "asyncio"
            else:
                await trio.sleep(0)
                loop = "trio"
            context.log("one\\ntwo")
            context.progress(0.5)
            await context.attribute("colour", "red")
            await context.output("so far")
            return loop, context.id

        @worker.function
        def slow(context: BlockingContext) -> None:
            context.log("begun")
            context.progress("step 1")
            context.output("half")
            context.attribute("shape", "round")
        """,
        backend,
    )
    added = await reached(lone_daemon, await submit(lone_daemon, kind, "add", 2), SUCCESSFUL)
    assert added["out"] == [3]
    wrong = await reached(lone_daemon, await submit(lone_daemon, kind, "add", "2"), FAILED)
    assert wrong["errors"] == ["a: expected `int`, got `str`"]
    pid = await submit(lone_daemon, kind, "name of its own")
    found = await reached(lone_daemon, pid, SUCCESSFUL)
    assert found["out"] == [backend, pid]
    assert [(each["key"], each["value"]) for each in found["attributes"]] == [("colour", "red")]
    assert {"one", "two", "progress: 50%"} <= set((await logs(lone_daemon, pid)).splitlines())
    pid = await submit(lone_daemon, kind, "slow")
    found = await reached(lone_daemon, pid, SUCCESSFUL)
    assert [(each["key"], each["value"]) for each in found["attributes"]] == [("shape", "round")]
    assert "begun" in await logs(lone_daemon, pid)
    async with lone_daemon.client() as client:
        rows = await client.call("getfunctionsmsg", {"colonyname": "dev"}, lone_daemon.key("user"))
    (row,) = (row for row in rows if row["funcname"] == "add" and row["executortype"] == kind)
    assert [(each["name"], each["type"]) for each in row["args"]] == [("a", "int"), ("b", "int")]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_cancelled_process_ends_its_function(
    lone_daemon: Daemon, program: Callable[..., Program], tmp_path: Path, backend: str
) -> None:
    kind = f"cancel-{backend}"
    running = program(
        kind,
        f"""
        where = {str(tmp_path)!r}

        @worker.function
        async def waits() -> None:
            try:
                await {backend}.sleep(1000)
            finally:
                open(where + "/waits", "w").close()

        @worker.function
        def spins(context: BlockingContext) -> None:
            try:
                while True:
                    context.progress("round")
                    time.sleep(0.05)
            except Withdrawn:
                open(where + "/spins", "w").close()
                raise
        """,
        backend,
    )
    async with lone_daemon.client() as client:
        for name in ("waits", "spins"):
            pid = await submit(lone_daemon, kind, name)
            await reached(lone_daemon, pid, RUNNING)
            await client.call("cancelprocessmsg", {"processid": pid}, lone_daemon.key("user"))
            await trio.to_thread.run_sync(running.until, "withdrawn")
            await until(10, there(tmp_path / name))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_sigterm_finishes_what_is_in_hand(
    lone_daemon: Daemon, program: Callable[..., Program], backend: str
) -> None:
    kind = f"term-{backend}"
    running = program(
        kind,
        """
        @worker.function
        def late(path: str) -> str:
            while not os.path.exists(path):
                time.sleep(0.05)
            return "done"
        """,
        backend,
    )
    flag = lone_daemon.home.parent / f"flag-{backend}"
    pid = await submit(lone_daemon, kind, "late", str(flag))
    await trio.to_thread.run_sync(running.until, "started")
    running.process.send_signal(signal.SIGTERM)
    await trio.to_thread.run_sync(running.until, "finishing")
    other = await submit(lone_daemon, kind, "late", str(flag))
    flag.touch()
    assert (await reached(lone_daemon, pid, SUCCESSFUL))["out"] == ["done"]
    assert await trio.to_thread.run_sync(running.process.wait) == 0
    await reached(lone_daemon, other, WAITING)  # taken by nobody


async def test_a_second_signal_leaves_a_function_that_can_not_be_ended(
    lone_daemon: Daemon, program: Callable[..., Program]
) -> None:
    running = program(
        "stuck",
        """
        @worker.function
        def stuck() -> None:
            time.sleep(1000)
        """,
    )
    pid = await submit(lone_daemon, "stuck", "stuck")
    await trio.to_thread.run_sync(running.until, "started")
    running.process.send_signal(signal.SIGTERM)
    await trio.to_thread.run_sync(running.until, "finishing")
    running.process.send_signal(signal.SIGTERM)
    found = await reached(lone_daemon, pid, FAILED)
    assert found["errors"] == ["the worker was stopped before the process had ended"]
    assert await trio.to_thread.run_sync(running.process.wait) == 0


async def test_a_result_outlives_daemon_and_worker(
    make_daemon: Callable[..., Daemon], program: Callable[..., Program]
) -> None:
    """The daemon is killed while a function runs, then the worker before it told its result."""
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false")
    await trio.to_thread.run_sync(daemon.start)
    body = """
        @worker.function
        def late(path: str) -> str:
            while not os.path.exists(path):
                time.sleep(0.05)
            return "done"
        """
    running = program("kept", body, daemon=daemon)
    flag = daemon.home.parent / "flag"
    pid = await submit(daemon, "kept", "late", str(flag))
    await reached(daemon, pid, RUNNING)
    daemon.kill()
    flag.touch()
    (results,) = (daemon.home / "results").iterdir()
    await until(30, there(results / f"{pid}.json"))
    running.end(signal.SIGKILL)
    assert json.loads((results / f"{pid}.json").read_text()) == {"out": ["done"], "errors": []}
    await trio.to_thread.run_sync(daemon.start)
    running.start()
    assert (await reached(daemon, pid, SUCCESSFUL))["out"] == ["done"]
    await until(30, there(results / f"{pid}.json", False))
    assert running.end() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_serves_in_a_loop_of_its_owner(lone_daemon: Daemon, backend: str) -> None:
    """Several in one program, each ended by `stop` or by cancellation."""
    settings = Settings.find(home=lone_daemon.home, environ={})
    seen: list[str] = []

    def made(kind: str) -> Worker:
        worker = Worker(type=kind, settings=settings, report=lambda event, _: seen.append(event))

        @worker.function
        async def who(context: Context) -> str:
            return kind

        return worker

    async def main() -> None:
        first, second = made(f"first-{backend}"), made(f"second-{backend}")
        async with anyio.create_task_group() as group:
            await group.start(first.serve)
            await group.start(second.serve)
            async with lone_daemon.client() as client:
                for kind in (first.type, second.type):
                    conditions = {"colonyname": "dev", "executortype": kind}
                    spec = {"funcname": "who", "conditions": conditions}
                    key = lone_daemon.key("user")
                    pid = (await client.call("submitfuncspecmsg", {"spec": spec}, key))["processid"]
                    with anyio.fail_after(30):
                        while True:
                            found = await client.call("getprocessmsg", {"processid": pid}, key)
                            if found["state"] == SUCCESSFUL:
                                break
                            await anyio.sleep(0.05)
                    assert found["out"] == [kind]
            first.stop()
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert seen.count("ready") == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sync_function_may_stop_its_worker(lone_daemon: Daemon, backend: str) -> None:
    """It runs in a thread, where an event of the loop can't be set."""
    settings = Settings.find(home=lone_daemon.home, environ={})
    worker = Worker(type=f"last-{backend}", settings=settings)

    @worker.function
    def last() -> str:
        worker.stop()
        return "done"

    async def main() -> None:
        with anyio.fail_after(20):  # less than a poll for the next process takes
            async with anyio.create_task_group() as group:
                await group.start(worker.serve)
                async with lone_daemon.client() as client:
                    conditions = {"colonyname": "dev", "executortype": worker.type}
                    spec = {"funcname": "last", "conditions": conditions}
                    key = lone_daemon.key("user")
                    pid = (await client.call("submitfuncspecmsg", {"spec": spec}, key))["processid"]
            async with lone_daemon.client() as client:
                found = await client.call("getprocessmsg", {"processid": pid}, key)
                assert found["out"] == ["done"]

    anyio.run(main, backend=backend)
    worker.stop()  # after its end, too


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_in_a_running_loop_says_how(lone_daemon: Daemon, backend: str) -> None:
    worker = Worker(settings=Settings.find(home=lone_daemon.home, environ={}))
    worker.function(len)

    async def main() -> None:
        with pytest.raises(
            ColonyError, match=r"an event loop runs .*; use `await worker\.serve\(\)`"
        ):
            worker.run()

    anyio.run(main, backend=backend)


def test_a_program_without_a_colony_says_how_to_name_one(tmp_path: Path) -> None:
    """Where the worker's package is alone, there is no command whose options would help."""
    settings = Settings.find(environ={"HOME": str(tmp_path)})
    for named in ("COLONIES_COLONY_NAME", "COLONIES_SERVER_HOST", "COLONYD_HOME"):
        with pytest.raises(NotThere, match=named):
            Client(settings)


def test_a_signal_ends_a_worker_whose_daemon_is_away(tmp_path: Path) -> None:
    """With one error, not with a group of them that fills the screen."""
    environ = {"COLONIES_PRVKEY": "1" * 64, "COLONIES_COLONY_PRVKEY": "2" * 64}
    text = (
        "from colonyd import Settings, Worker\n"
        f"settings = Settings.find(server='http://127.0.0.1:9', colony='dev', environ={environ})\n"
        f"worker = Worker(settings=settings, state=__import__('pathlib').Path({str(tmp_path)!r}))\n"
        "worker.function(len)\nworker.run()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", text], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert child.stderr is not None
    assert child.stderr.readline().startswith("unreachable")
    child.terminate()
    _, said = child.communicate(timeout=30)
    assert "Unreachable: http://127.0.0.1:9: connection refused" in said.splitlines()[-1]
    assert "ExceptionGroup" not in said
    assert child.returncode == 1


def test_a_worker_that_can_not_begin_says_why(lone_daemon: Daemon, tmp_path: Path) -> None:
    settings = Settings.find(home=lone_daemon.home, environ={})
    with pytest.raises(ColonyError, match="has no functions; declare one"):
        Worker(settings=settings).run()
    nowhere = Worker(settings=Settings.find(home=tmp_path, environ={}))
    nowhere.function(len)
    with pytest.raises(ColonyError, match=f"no colony at {tmp_path}; .*colony init"):
        nowhere.run()
    taken = Worker("taken", type="one", settings=settings)
    taken.function(len)
    with anyio.from_thread.start_blocking_portal("trio") as portal:
        future, _ = portal.start_task(taken.serve)
        again = Worker("taken", type="one", settings=settings)
        again.function(len)
        with pytest.raises(ColonyError, match="a worker called taken runs already"):
            again.run()
        portal.call(taken.stop)
        future.result(30)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_files_channels_and_work_of_its_own(
    lone_daemon: Daemon, program: Callable[..., Program], tmp_path: Path, backend: str
) -> None:
    kind = f"more-{backend}"
    program(
        kind,
        """
        from pathlib import Path

        @worker.function
        def keep(context: BlockingContext, there: str) -> list[str]:
            context.put_file(b"by a thread", "/kept", "one.txt")
            context.get_file("/kept", "one.txt", Path(there))
            context.send("talk", "hello")
            return [each.payload.decode() for each in context.messages("talk")]

        @worker.function
        async def asks(context: Context) -> str:
            async with context.colony() as colony:
                return ", ".join(row.name for row in await colony.executors())
        """,
        backend,
    )
    target = tmp_path / "got"
    pid = await submit(lone_daemon, kind, "keep", str(target), channels=["talk"])
    assert (await reached(lone_daemon, pid, SUCCESSFUL))["out"] == [["hello"]]
    assert target.read_bytes() == b"by a thread"
    pid = await submit(lone_daemon, kind, "asks")
    (name,) = (await reached(lone_daemon, pid, SUCCESSFUL))["out"]
    assert kind in name


@pytest.mark.parametrize("rerun", [True, False])
async def test_what_a_killed_worker_left_is_run_again_if_its_author_says_so(
    lone_daemon: Daemon, program: Callable[..., Program], tmp_path: Path, rerun: bool
) -> None:
    kind = f"rerun-{rerun}"
    running = program(
        kind,
        f"""
        @worker.function("late", rerun={rerun})
        def late(path: str) -> str:
            open(path, "a").write("x")
            while len(open(path).read()) < 2:
                time.sleep(0.05)
            return "done"
        """,
    )
    flag = tmp_path / "flag"
    pid = await submit(lone_daemon, kind, "late", str(flag))
    await until(30, there(flag))
    running.end(signal.SIGKILL)
    running.start()
    found = await reached(lone_daemon, pid, SUCCESSFUL if rerun else FAILED)
    assert found["out"] == (["done"] if rerun else [])
    assert running.end() == 0

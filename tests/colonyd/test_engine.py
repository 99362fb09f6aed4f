"""The engine of workers against servers and functions that misbehave."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from colonyd import BlockingContext, Failed, PrivateKey
from colonyd.rpc import RpcClient
from colonyd.worker.engine import Engine
from colonyd.worker.functions import FunctionHandler, Retry, Signature
from colonyd.worker.handler import Ending, Execution, Handler
from colonyd.worker.registration import Registration
from colonyd.worker.results import Results
from tests.support.rpc_server import Answer, ColonyServer, Queue, Refuse

BACKENDS = ("trio", "asyncio")


@pytest.fixture
def server() -> Iterator[ColonyServer]:
    with ColonyServer() as running:
        yield running


class Rig:
    """An engine beside a server, in a loop of its own; stopped once all processes are closed."""

    def __init__(
        self,
        server: ColonyServer,
        results: Path | None,
        handlers: Mapping[str, Handler],
        slots: int = 1,
    ) -> None:
        self.server, self.results, self.handlers, self.slots = server, results, handlers, slots
        self.queue = Queue(server)
        server.answers["addlogmsg"] = lambda payload, caller: None
        self.key, self.owner = PrivateKey.generate(), PrivateKey.generate()
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.stop_at = ("successful", "failed")

    def report(self, event: str, details: Mapping[str, object]) -> None:
        self.events.append((event, details))
        open_ones = [row for row in self.queue.processes.values() if row["state"] < 2]
        if event in self.stop_at and not open_ones:
            self.stop.set()

    async def work(self) -> None:
        self.stop = anyio.Event()
        async with RpcClient(f"http://{self.server.address}") as client:
            listed: dict[str, list[dict[str, str]]] = {name: [] for name in self.handlers}
            registration = Registration(
                client, "dev", "w", "cli", listed, self.key, lambda: self.owner, True,
                self.report, self.stop,
            )  # fmt: skip
            with anyio.fail_after(20):
                await Engine(registration, self.handlers, Results(self.results), self.slots).work()

    def run(self, backend: str = "trio") -> list[str]:
        anyio.run(self.work, backend=backend)
        return [event for event, _ in self.events]


def function(called: Callable[..., Any]) -> FunctionHandler:
    return FunctionHandler(called, Signature.of(called, "f"), Retry(), anyio.CapacityLimiter(1))


async def lone_surrogate() -> str:
    return "\ud800"


async def text_with_surrogates() -> None:
    raise FileNotFoundError("no file \udcff")


async def too_large() -> str:
    return "a" * 20_000_000


async def too_much_said() -> None:
    raise ValueError("a" * 20_000_000)


async def no_text() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise self

    raise Odd


async def no_string() -> None:
    raise Failed(7)  # type: ignore[arg-type]


async def leaves() -> None:
    sys.exit(3)


def leaves_thread() -> None:
    sys.exit(3)


async def fails_in_a_group() -> None:
    async def fails() -> None:
        raise KeyError("in a group")

    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(fails())
    await fails()


class Panic(BaseException):
    """As extensions in Rust raise it, which is no Exception."""


async def panics() -> None:
    raise Panic("in an extension")


def panics_in_a_thread() -> None:
    raise Panic("in an extension")


def cancels_a_loop_of_its_own() -> None:
    async def work() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    asyncio.run(work())


async def no_number() -> list[float]:
    return [1.0, float("nan")]


async def cancelled_within() -> None:
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task
    raise KeyError("CancelledError")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lone_surrogate, "no form in JSON"),
        (text_with_surrogates, "FileNotFoundError: no file ?"),
        (too_large, "the output is larger than 12000000 bytes as JSON"),
        (too_much_said, "ValueError: aaa"),
        (no_text, "Odd: its text raised Odd"),
        (no_string, "7"),
        (leaves, "SystemExit: 3"),
        (leaves_thread, "SystemExit: 3"),
        (cancelled_within, "CancelledError"),
        (fails_in_a_group, "KeyError: 'in a group'"),
        (panics, "Panic: in an extension"),
        (panics_in_a_thread, "Panic: in an extension"),
        (cancels_a_loop_of_its_own, "CancelledError"),
        (no_number, "the output has no form in JSON: Out of range float values"),
    ],
)
def test_whatever_a_function_does_its_process_fails_and_the_worker_goes_on(
    server: ColonyServer, tmp_path: Path, backend: str, bad: Callable[..., Any], error: str
) -> None:
    async def good() -> str:
        return "done"

    def build() -> dict[str, Handler]:
        return {"bad": function(bad), "good": function(good)}

    async def main() -> None:
        await Rig.work(rig)

    rig = Rig(server, tmp_path, {})
    first, second = rig.queue.add("bad"), rig.queue.add("good")

    async def work() -> None:
        rig.handlers = build()
        await main()

    anyio.run(work, backend=backend)
    assert rig.queue.processes[second]["out"] == ["done"]
    row = rig.queue.processes[first]
    assert row["state"] == 3
    assert error in row["errors"][0]
    assert len(row["errors"][0]) <= 12_000
    assert not list(tmp_path.iterdir())


class Odd:
    """A handler whose process outlives the worker."""

    resumes, reruns = True, False

    def __init__(self) -> None:
        self.begun = 0

    async def __call__(self, execution: Execution) -> Ending:
        self.begun += 1
        self.stop()
        await anyio.sleep_forever()
        raise AssertionError

    stop: Callable[[], None]


def test_what_is_left_running_is_not_begun_again_as_the_worker_stops(
    server: ColonyServer, tmp_path: Path
) -> None:
    handler = Odd()
    rig = Rig(server, tmp_path, {"f": handler}, slots=2)
    processid = rig.queue.add("f")
    handler.stop = lambda: rig.stop.set()
    events = rig.run()
    assert handler.begun == 1
    assert events.count("left running") == 1
    assert rig.queue.processes[processid]["state"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_slots_that_lose_their_replies_run_each_process_once(
    server: ColonyServer, tmp_path: Path, backend: str
) -> None:
    """Both find the same two processes, and the one that ends last must not begin the other's."""
    ran: list[str] = []
    other_ended = threading.Event()

    def count(context: BlockingContext) -> None:
        ran.append(context.id)
        if context.id == first:
            other_ended.wait(10)

    async def work() -> None:
        rig.handlers = {
            "f": FunctionHandler(count, Signature.of(count, "f"), Retry(), anyio.CapacityLimiter(2))
        }
        await rig.work()

    rig = Rig(server, tmp_path, {}, slots=2)
    first, second = rig.queue.add("f"), rig.queue.add("f")
    both = threading.Barrier(2)
    assign, listing = server.answers["assignprocessmsg"], server.answers["getprocessesmsg"]
    server.drop["assignprocessmsg"] = 2

    def assigned(payload: dict[str, Any], caller: str) -> Any:
        if server.drop["assignprocessmsg"]:
            both.wait(10)
        return assign(payload, caller)

    def listed(payload: dict[str, Any], caller: str) -> Any:
        rows = [dict(row) for row in listing(payload, caller)]
        if len(rows) == 2:
            both.wait(10)
        return rows

    close = server.answers["closesuccessfulmsg"]

    def closed(payload: dict[str, Any], caller: str) -> Any:
        answer = close(payload, caller)
        if payload["processid"] == second:
            threading.Timer(0.3, other_ended.set).start()
        return answer

    server.answers |= {
        "assignprocessmsg": assigned, "getprocessesmsg": listed, "closesuccessfulmsg": closed,
    }  # fmt: skip
    anyio.run(work, backend=backend)
    assert sorted(ran) == [first, second]


def first_answer(lie: Any, true: Answer) -> Answer:
    lies = [lie]
    return lambda payload, caller: lies.pop() if lies else true(payload, caller)


@pytest.mark.parametrize("kind", ["getexecutorsmsg", "addexecutormsg", "getfunctionsmsg"])
def test_a_server_whose_store_is_away_does_not_end_a_worker_that_registers(
    server: ColonyServer, tmp_path: Path, kind: str
) -> None:
    async def good() -> str:
        return "done"

    rig = Rig(server, tmp_path, {"f": function(good)})
    processid, true, refusals = rig.queue.add("f"), server.answers[kind], [503, 503]

    def away(payload: dict[str, Any], caller: str) -> Any:
        if refusals:
            raise Refuse(refusals.pop(), "the store does not answer")
        return true(payload, caller)

    server.answers[kind] = away
    rig.run()
    assert rig.queue.processes[processid]["state"] == 2
    assert ("unreachable", {"error": "the store does not answer (status 503)"}) in rig.events


LIES: list[Any] = [None, 7, "text", [], [7], {}, {"processid": 7}, {"processid": ["a"]}, [{}]]


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_does_not_end_a_worker(
    server: ColonyServer, tmp_path: Path, lie: Any
) -> None:
    async def good() -> str:
        return "done"

    rig = Rig(server, tmp_path, {"f": function(good)})
    processid = rig.queue.add("f")
    for kind in ("assignprocessmsg", "getprocessesmsg", "getfunctionsmsg"):
        server.answers[kind] = first_answer(lie, server.answers[kind])
    rig.run()
    assert rig.queue.processes[processid]["state"] == 2

"""Trips through the house: the rooms that a call goes through, and its ways back.

    python -m bench.trips            a line for each trip
    python -m bench.trips --ways     and each way from module to module, in the order first taken

A real daemon gets a spec, and two colonies on a real store forward a process and settle its
outcome. Each call from one module of the product into another is noted, once. A way that leads
into a room that the trip was in before is a *way back*. Imports, threads, and how the etcd client
reaches the store are left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from bench.options import CommandLine
from colonyd.keys import read_key
from colonyd.rpc import RpcClient
from node.daemon.main import StartOptions, run
from node.host.home import Home
from tests.support.colonies import world
from tests.support.daemons import free_port

# Title → qualified name of the function that the trip begins in, and ends with.
TRIPS = {
    "a submitted spec, from the HTTP edge": "http_handler.<locals>.handle",
    "an accepted forward": "Inbox.accept",
    "a settled outcome": "OutcomePoller.settle",
}
Way = tuple[str, str]


def _module(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return name if name.partition(".")[0] in ("node", "federation", "cli") else ""


@contextmanager
def noting(ways: dict[str, dict[Way, None]]) -> Iterator[None]:
    """Add the ways of all trips that are made meanwhile to `ways`, by their beginning."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        entered, back, caller = _module(frame), frame.f_back, ""
        made_up = frame.f_code.co_filename.startswith("<") or frame.f_code.co_name == "<module>"
        if event != "call" or not entered or made_up:
            return
        while back is not None:
            caller = caller or _module(back)
            if caller == entered or caller.startswith("node.etcd."):
                return
            if _module(back) and back.f_code.co_qualname in ways:
                ways[back.f_code.co_qualname][caller, entered] = None
                return
            back = back.f_back

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


async def submit(place: Path, ways: dict[str, dict[Way, None]]) -> None:
    """Submit a spec to a daemon of its own."""
    port = free_port()
    environ = {
        "COLONYD_RPC__HOST": "127.0.0.1",
        "COLONYD_RPC__PORT": str(port),
        "COLONYD_FEDERATION__ENABLED": "false",
        "COLONYD_LOG__LEVEL": "error",
    }
    async with trio.open_nursery() as nursery:
        await nursery.start(run, StartOptions(place, {"node.name": "dev"}, environ))
        spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
        async with RpcClient(f"http://127.0.0.1:{port}") as client:
            with noting(ways):
                await client.call(
                    "submitfuncspecmsg", {"spec": spec}, read_key(Home(place).key("user"))
                )
        nursery.cancel_scope.cancel()


async def forward(place: Path, ways: dict[str, dict[Way, None]]) -> None:
    """Let ant forward a process to bee, and have its outcome."""
    async with world(place, ("ant", "bee")) as colonies:
        ant, bee = colonies["ant"], colonies["bee"]
        await ant.trust(bee)
        await bee.trust(ant)
        with noting(ways), trio.fail_after(120):
            processid = await ant.submit("bee")
            await bee.work("done")
            await ant.closed(processid)


def package(module: str) -> str:
    """Return the room of a module as the map has it: "node.store" of
    "node.store.work.processes".
    """
    return ".".join(module.split(".")[:2])


def measure(ways: Iterable[Way]) -> tuple[int, int]:
    """Return how many rooms the ways connect, and how many of the ways lead back into one."""
    between = {way for way in ways if way[0] != way[1]}
    rooms = {room for way in between for room in way}
    return len(rooms), len(between) - len(rooms) + 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the trips and print them."""
    parser = CommandLine("python -m bench.trips", __doc__)
    parser.add_argument("--ways", action="store_true", help="list each way from module to module")
    options = parser.parse_args(arguments)
    ways: dict[str, dict[Way, None]] = {name: {} for name in TRIPS.values()}
    with tempfile.TemporaryDirectory() as place:
        trio.run(submit, Path(place) / "dev", ways)
        trio.run(forward, Path(place), ways)
    for title, name in TRIPS.items():
        if not ways[name]:
            raise SystemExit(f"trips: {name} was never called; is it still where this trip begins?")
        packages, back = measure((package(one), package(other)) for one, other in ways[name])
        modules, again = measure(ways[name])
        print(
            f"{title}: {packages} packages, {back} ways back; {modules} modules, {again} ways back"
        )
        seen: set[str] = set()
        for caller, entered in ways[name] if options.ways else ():
            print(f"  {'back' if entered in seen else '    '} {caller} -> {entered}")
            seen |= {caller, entered}


if __name__ == "__main__":
    main()

"""`colony demo`: two real daemons on this machine, discovery, trust, one forwarded function.

It drives the installed programs as a user would; nothing here is a shortcut into them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from cli.core.errors import Failure
from cli.core.output import print_json
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command
from cli.core.terminal import print_line
from colonyd.keys import PrivateKey, read_key
from colonyd.places import read_listening
from colonyd.rpc import RpcClient, Unreachable

_TEXT = "hello from the workshop"
_STOP_SECONDS = 20.0


@dataclass
class _DemoColony:
    name: str
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment of its daemon: loopback only, without the caller's settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
        return kept | {
            "COLONYD_HOME": str(self.home),
            "COLONYD_RPC__HOST": "127.0.0.1",
            "COLONYD_RPC__PORT": "0",
            "COLONYD_FEDERATION__HOST": "127.0.0.1",
            "COLONYD_FEDERATION__PORT": "0",
            "COLONYD_FEDERATION__INTERFACES": "127.0.0.1",
        }

    @property
    def owner(self) -> PrivateKey:
        return read_key(self.home / "keys" / "colony.key")

    @property
    def user(self) -> PrivateKey:
        return read_key(self.home / "keys" / "user.key")


@colony_command("demo", "colony demo", "colony demo --keep")
@click.option("--keep", is_flag=True, help="Leave both daemons up and print how to go on.")
@click.option("--seconds", type=Seconds(), default=60.0, help="Give up after this long.")
def demo(session: Session, keep: bool, seconds: float) -> None:
    """Start two colonies, let them find and trust each other, forward one function."""
    if shutil.which("etcd") is None:
        raise Failure("no etcd on PATH", next_step="scripts/setup installs it")
    say = _quiet if session.as_json else print_line
    base = Path(tempfile.mkdtemp(prefix="colonyd-demo-"))
    result: dict[str, Any] = {}

    async def work() -> None:
        with trio.move_on_after(seconds) as scope:
            result.update(await _run(base, say, keep))
        if scope.cancelled_caught:
            raise Failure(
                f"the demo did not end within {seconds:.0f} s", next_step=f"see {base}/*/log"
            )

    try:
        session.run(work)
    except BaseException:
        say(f"logs are kept in {base}")
        raise
    if not keep:
        shutil.rmtree(base)
    if session.as_json:
        print_json(result)


def _quiet(text: str) -> None:
    """Drop the progress that is meant for people."""


async def _run(base: Path, say: Callable[[str], None], keep: bool) -> dict[str, Any]:
    workshop = _DemoColony("workshop", base / "workshop")
    foundry = _DemoColony("foundry", base / "foundry")
    began = trio.current_time()
    say("1. Two colonies start, each with its own key and its own etcd.")
    processes: list[subprocess.Popen[bytes]] = []
    done = False
    try:
        for colony in (workshop, foundry):
            processes.append(_start(colony, "colonyd", ["--name", colony.name]))
        async with AsyncExitStack() as stack:
            clients = []
            for colony in (workshop, foundry):
                told = await _until(_up(colony, processes))
                client = await stack.enter_async_context(RpcClient(told["url"]))
                state = await client.call("getnodestatusmsg", {}, colony.user)
                say(f"   {colony.name:9} {state['colonyid']}  port {state['rpcport']}")
                clients.append(client)
            at_workshop, at_foundry = clients
            say("2. They find each other by mDNS, and each proves its card.")
            for colony, client, other in (
                (workshop, at_workshop, foundry),
                (foundry, at_foundry, workshop),
            ):
                peer = await _until(_peer(client, colony, other.owner.id, "pending"))
                where = ", ".join(peer["endpoints"])
                say(f"   {colony.name} sees {peer['name']} at {where}: {peer['state']}")
            say("3. Trust is given by both owners: colony peer trust <id>.")
            for colony, client, other in (
                (workshop, at_workshop, foundry),
                (foundry, at_foundry, workshop),
            ):
                wanted = {"peer": other.owner.id}
                peer = await client.call("trustpeermsg", wanted, colony.owner)
                say(f"   {colony.name} trusts {peer['name']} ({peer['id'][:12]}…)")
            say("4. A worker starts in foundry: colony worker --func upper='tr a-z A-Z'.")
            worker = ["worker", "--func", "upper=tr a-z A-Z", "--name", "smith"]
            processes.append(_start(foundry, "colony", worker))
            say("5. The workshop's user submits for colony foundry; the spec is signed and sent.")
            process = await at_workshop.call("submitfuncspecmsg", _spec(), workshop.user)
            processid = process["processid"]
            say(f"   process {processid}")
            closed = await _until(_closed(at_workshop, workshop, processid))
            forward = await at_workshop.call(
                "getforwardmsg", {"processid": processid}, workshop.user
            )
        outcome = forward.get("outcome") or {}
        valid = bool(outcome.get("signaturevalid")) and bool(outcome.get("answers"))
        if closed["state"] != 2 or not valid:
            raise Failure(f"the process ended badly: {closed['errors']} {forward}")
        say(f"6. Output: {closed['out'][0]}")
        say(f"   run by {forward['peername']} {outcome['issuer']}")
        say("   signature valid, for the very submission that was sent")
        say(f"   {trio.current_time() - began:.1f} s from the first line to here")
        done = True
    finally:
        if not (keep and done):
            with trio.CancelScope(shield=True):
                await _stop(processes)
    if keep:
        say(_keep_text(base, workshop, foundry, [process.pid for process in processes]))
    return {
        "colonies": {colony.name: colony.owner.id for colony in (workshop, foundry)},
        "process": closed,
        "forward": forward,
        "homes": str(base) if keep else None,
        "pids": [process.pid for process in processes] if keep else [],
    }


def _spec() -> dict[str, Any]:
    spec = {
        "funcname": "upper",
        "args": [_TEXT],
        "maxwaittime": 60,
        "maxexectime": 60,
        "maxretries": 3,
        "conditions": {"colonyname": "foundry", "executortype": "cli"},
    }
    return {"spec": spec}


def _start(colony: _DemoColony, program: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    colony.home.mkdir(mode=0o700, exist_ok=True)
    module = {"colonyd": "cli.daemon.colonyd", "colony": "cli.main"}[program]
    # Where no other package's `cli` may take the place of ours, it may not in the children either.
    isolated = ["-I"] if sys.flags.isolated else []
    with (colony.home / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *isolated, "-m", module, *arguments],
            env=colony.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.terminate()
    with trio.move_on_after(_STOP_SECONDS):
        for process in processes:
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    for process in processes:
        if process.poll() is None:
            process.kill()


async def _until(ask: Callable[[], Awaitable[dict[str, Any] | None]]) -> dict[str, Any]:
    """Ask again until there is an answer; the demo's own time limit ends it."""
    while True:
        try:
            answer = await ask()
        except Unreachable:
            answer = None
        if answer:
            return answer
        await trio.sleep(0.1)


def _up(
    colony: _DemoColony, processes: list[subprocess.Popen[bytes]]
) -> Callable[[], Awaitable[dict[str, Any] | None]]:
    async def ask() -> dict[str, Any] | None:
        if any(process.poll() is not None for process in processes):
            raise Failure(f"{colony.name} did not start", next_step=f"see {colony.home}/log")
        told = read_listening(colony.home)
        return {"url": told.url} if told else None

    return ask


def _peer(
    client: RpcClient, colony: _DemoColony, peer: str, state: str
) -> Callable[[], Awaitable[dict[str, Any] | None]]:
    async def ask() -> dict[str, Any] | None:
        peers = await client.call("getpeersmsg", {}, colony.owner)
        return next((p for p in peers if p["id"] == peer and p["state"] == state), None)

    return ask


def _closed(
    client: RpcClient, colony: _DemoColony, processid: str
) -> Callable[[], Awaitable[dict[str, Any] | None]]:
    async def ask() -> dict[str, Any] | None:
        process: dict[str, Any] = await client.call(
            "getprocessmsg", {"processid": processid}, colony.user
        )
        return process if process["state"] >= 2 else None

    return ask


def _keep_text(base: Path, workshop: _DemoColony, foundry: _DemoColony, pids: list[int]) -> str:
    return f"""
Both daemons and the worker are still up. To try more:
  export COLONYD_HOME={workshop.home}
  colony peer ls
  colony run --func upper "another line" --colony foundry --wait
  colony process ls --state successful
The other side: colony --home {foundry.home} process ls
To stop and clean up: kill {" ".join(map(str, pids))}; rm -r {base}"""

"""A second implementation of the federation protocol, `peer.mjs`, against real daemons.

It is in JavaScript, and written from `docs/federation.md`, its pages and its vectors alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from colonyd.keys import PrivateKey
from tests.sdk.nodejs import OLDEST, node_version
from tests.support.daemons import REPOSITORY, Daemon, until
from tests.support.sides import Side

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FURTHER = {"forward": True, "max_hops": 3}
WAITING, RUNNING, SUCCESSFUL, FAILED, CANCELLED = range(5)

Make = Callable[..., Daemon]


@pytest.fixture(autouse=True)
def needs_node() -> None:
    """Skip without Node.js and the packages; in CI, that's a failure."""
    there = (HERE / "node_modules" / "@noble" / "curves").exists()
    if not there or node_version() < OLDEST:
        reason = (
            "no Node.js 20.19 or packages of tests/interop: `scripts/setup --test` installs them"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class Peer:
    """A running `peer.mjs`; `told` is what happened at its server so far."""

    def __init__(self, name: str, *flaws: str) -> None:
        self.name = name
        self.told: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            ["node", str(HERE / "peer.mjs"), name, *flaws],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        me = self._line()
        self.id: str = me["id"]
        self.address: str = me["address"]

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                if line.startswith("{"):
                    self.told.append(json.loads(line))

    def _line(self) -> Any:
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        if "error" in told:
            raise AssertionError(told["error"])
        return told["value"]

    async def do(self, action: str, *args: Any) -> Any:
        """Do one thing, and return what came of it; raises AssertionError with its error."""

        def ask() -> Any:
            assert self.process.stdin is not None
            with self._lock:
                self.process.stdin.write(json.dumps({"do": action, "args": args}) + "\n")
                self.process.stdin.flush()
                return self._line()

        return await trio.to_thread.run_sync(ask)

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait(20)
        self._reader.join(20)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def count(self, path: str) -> int:
        """Return how many messages to a path were answered."""
        return sum(e["event"] == "answered" and e["path"] == path for e in list(self.told))


@contextmanager
def running(name: str, *flaws: str) -> Iterator[Peer]:
    peer = Peer(name, *flaws)
    try:
        yield peer
    finally:
        peer.end()


@asynccontextmanager
async def colonies(make: Make, *names: str) -> AsyncIterator[tuple[list[Side], Peer]]:
    """Running daemons, and the peer in JavaScript."""
    daemons = [make(name, COLONYD_FEDERATION__DISCOVERY="false") for name in names]
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            nursery.start_soon(partial(trio.to_thread.run_sync, daemon.start))
    with running("node") as peer:
        async with AsyncExitStack() as stack:
            sides = [Side(each, await stack.enter_async_context(each.client())) for each in daemons]
            yield sides, peer


def spec(func: str, *args: str, kind: str = "cli") -> dict[str, Any]:
    return {"funcname": func, "args": list(args), "conditions": {"executortype": kind}}


async def invited(side: Side, peer: Peer) -> None:
    """Let the peer redeem an invitation of the daemon: trust is mutual from then on."""
    made = await side.call("invitepeermsg", side.owner, change=FURTHER)
    assert await peer.do("join", made["token"]) == side.owner.id


async def proven(side: Side, processid: str) -> dict[str, Any]:
    """Return a process that ended at a peer, once the daemon says that its outcome is signed."""
    closed = await side.closed(processid)
    outcome = (await side.forward(processid))["outcome"]
    assert outcome["signaturevalid"] is True
    return closed | {"issuer": outcome["issuer"]}


def test_each_vector_is_read_and_made_again() -> None:
    vectors = REPOSITORY / "docs" / "vectors"
    done = subprocess.run(
        ["node", str(HERE / "vectors.mjs"), str(vectors)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["mistakes"] == []
    assert set(told["counts"]) == {path.name for path in vectors.glob("*.json")}
    assert sum(told["counts"].values()) > 600


async def test_an_invitation_of_a_daemon_and_work_both_ways(make_daemon: Make) -> None:
    async with colonies(make_daemon, "ant") as ([ant], peer):
        await invited(ant, peer)
        await ant.hire()
        known = await ant.call("getpeermsg", ant.owner, peer=peer.id)
        assert (known["id"], known["state"]) == (peer.id, "trusted")
        assert (await ant.call("pingpeermsg", ant.owner, peer=peer.id))["ok"] is True
        # The daemon submits, and believes the outcome.
        there = {"colonyname": "node", "executortype": "js"}
        good = await ant.submit("node", conditions=there)
        closed = await proven(ant, good)
        assert (closed["state"], closed["out"], closed["issuer"]) == (2, ["X"], peer.id)
        bad = await ant.submit("node", conditions=there, funcname="fail", args=["broke"])
        closed = await proven(ant, bad)
        assert (closed["state"], closed["errors"]) == (FAILED, ["broke"])
        # A cancel reaches it too.
        long = await ant.submit("node", conditions=there, funcname="wait")
        await until(60, lambda: _is(ant, long, RUNNING))
        await ant.call("cancelprocessmsg", processid=long)

        async def told() -> bool:
            return peer.count("/v2/cancel") > 0

        await until(60, told)
        # It submits, and believes the daemon.
        [pid] = await peer.do("submit", ant.owner.id, [spec("upper", "y")])
        assert await peer.do("again", pid)
        process = await ant.work("Y", args=["y"])
        assert process["initiatorname"] == "colony/node"
        ended = await peer.do("outcome", pid)
        assert (ended["state"], ended["out"], ended["signers"]) == (2, ["Y"], [ant.owner.id])
        assert await peer.do("cancel", pid) == "already_closed"


async def _is(side: Side, processid: str, state: int) -> bool:
    process = await side.call("getprocessmsg", processid=processid)
    return bool(process["state"] == state)


async def test_an_invitation_of_the_peer_and_several_in_one_message(make_daemon: Make) -> None:
    async with colonies(make_daemon, "ant") as ([ant], peer):
        token = await peer.do("invite")
        joined = await ant.call("joinpeermsg", ant.owner, token=token)
        assert (joined["id"], joined["state"]) == (peer.id, "trusted")
        await ant.hire()

        async def offers() -> bool:
            return bool((await ant.call("getpeermsg", ant.owner, peer=peer.id))["capabilities"])

        await until(60, offers)
        there = {"colonyname": "node", "executortype": "js"}
        made: list[str] = []

        async def one(number: int) -> None:
            made.append(await ant.submit("node", conditions=there, args=[f"a{number}"]))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
        outputs = [(await proven(ant, processid))["out"] for processid in made]
        assert sorted(outputs) == sorted([f"A{number}"] for number in range(12))
        # The daemon takes several in one message as well, and answers each for itself.
        pids = await peer.do("submit", ant.owner.id, [spec("upper", "x"), spec("upper", "z")])
        for output in ("one", "two"):
            await ant.work(output)
        ended = [await peer.do("outcome", pid) for pid in pids]
        assert sorted(each["out"][0] for each in ended) == ["one", "two"]


async def test_over_two_hops_in_both_directions(make_daemon: Make) -> None:
    async with colonies(make_daemon, "ant", "bee") as ([ant, bee], peer):
        await invited(ant, peer)
        made = await bee.call("invitepeermsg", bee.owner, change=FURTHER)
        fields = {"token": made["token"], "change": FURTHER}
        await ant.call("joinpeermsg", ant.owner, **fields)
        await bee.hire()
        # From JavaScript over ant to bee: the chain has both signatures.
        [pid] = await peer.do("submit", ant.owner.id, [spec("upper", "x")], {"way": ["bee"]})
        process = await bee.work("X", args=["x"])
        assert process["initiatorname"] == "colony/ant"
        ended = await peer.do("outcome", pid)
        assert ended["out"] == ["X"]
        assert ended["signers"] == [ant.owner.id, bee.owner.id]
        # From bee over ant to JavaScript, which proves the way that it took.
        conditions = {"colonyname": "ant/node", "executortype": "js"}
        back = await bee.submit("ant/node", conditions=conditions, funcname="path", args=[])
        closed = await proven(bee, back)
        assert closed["out"] == [bee.owner.id, ant.owner.id]


async def test_trust_by_address_on_both_sides(make_daemon: Make) -> None:
    async with colonies(make_daemon, "ant") as ([ant], peer):
        assert await peer.do("trust", f"127.0.0.1:{ant.daemon.peer_port}") == ant.owner.id
        with pytest.raises(AssertionError, match="untrusted"):
            await peer.do("hello", ant.owner.id)
        # The hello of a stranger brought its card: the owner finds it, and decides.
        await until(60, lambda: _pending(ant, peer))
        await ant.call("trustpeermsg", ant.owner, peer=peer.id)
        assert await peer.do("hello", ant.owner.id) > 0
        stranger = PrivateKey.generate()
        with pytest.raises(AssertionError, match="is no peer"):
            await peer.do("submit", stranger.id, [spec("upper", "x")])


async def _pending(side: Side, peer: Peer) -> bool:
    found = await side.call("getpeersmsg", side.owner)
    return any(each["id"] == peer.id for each in found)


async def checked(address: str, token: str = "") -> tuple[int, list[str]]:
    """Run `scripts/conformance`; return its exit code and lines."""
    invited = ["--invitation", token] if token else []
    command = [str(REPOSITORY / "scripts" / "conformance"), address, *invited]
    done = await trio.run_process(command, capture_stdout=True, check=False)
    return done.returncode, done.stdout.decode().splitlines()


async def test_the_conformance_of_a_daemon(make_daemon: Make) -> None:
    async with colonies(make_daemon, "ant") as ([ant], _):
        address = f"127.0.0.1:{ant.daemon.peer_port}"
        made = await ant.call("invitepeermsg", ant.owner)
        code, lines = await checked(address, made["token"])
        assert [line for line in lines[:-1] if not line.startswith("ok ")] == []
        assert code == 0
        assert len(lines) > 60


async def test_the_conformance_of_the_second_implementation() -> None:
    with running("node") as peer:
        code, lines = await checked(peer.address, await peer.do("invite"))
        assert [line for line in lines[:-1] if not line.startswith("ok ")] == []
        assert code == 0
        # Without an invitation only what is open to strangers is checked.
        code, lines = await checked(peer.address)
        assert code == 2
        assert not [line for line in lines if line.startswith("FAIL")]


async def test_wrong_arguments_are_told_before_anything_is_checked() -> None:
    for address in ("", "colony", "http://localhost:50080"):
        assert await checked(address) == (64, [])
    code, lines = await checked("--help")
    assert (code, lines[0][:6]) == (0, "usage:")


async def test_what_does_not_conform_is_told() -> None:
    with running("node", "forgetful") as peer:
        code, lines = await checked(peer.address, await peer.do("invite"))
        assert code == 1
        failed = [line for line in lines if line.startswith("FAIL")]
        assert any("other bytes under the same pid are id_reuse" in line for line in failed)
        peer.end()
        code, lines = await checked(peer.address)
        assert code == 1
        assert any(line.startswith("FAIL Card: the card proves itself") for line in lines)

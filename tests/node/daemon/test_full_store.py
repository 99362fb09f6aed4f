"""A store, or its disk, filled for real: nothing is added, and what ends and frees still works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from click.testing import CliRunner
from pycolonies import Colonies, func_spec

from cli.main import main
from cli.ops.rpc import all_calls
from colonyd.rpc import RpcError
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdError, EtcdNoSpace, EtcdUnavailable
from node.etcd.pressure import Need
from node.etcd.transport.dial import Access
from node.etcdserver.preflight import environment
from node.etcdserver.supervisor import command
from tests.node.daemon.support import doctor
from tests.support.cluster import members, serving
from tests.support.daemons import Daemon, until
from tests.support.sides import Side

Make = Callable[..., Daemon]
QUOTA = 16 * 2**20
SMALL = {"COLONYD_ETCD__QUOTA": str(QUOTA)}
ALONE = {"COLONYD_FEDERATION__ENABLED": "false"}
BULK = "x" * 150_000

EXEMPT = """
    approveexecutormsg assignprocessmsg blockpeermsg cancelprocessgraphmsg cancelprocessmsg
    changecolonyidmsg changeexecutoridmsg changeserveridmsg changeuseridmsg channelreadmsg
    closefailedmsg closesuccessfulmsg explainroutemsg fileticketmsg forgetpeermsg namepeermsg
    opencardmsg pauseassignmentsmsg pingpeermsg rejectexecutormsg removeallprocessesmsg
    removeallprocessgraphsmsg removeallsnapshotmsg removeblueprintdefinitionmsg removeblueprintmsg
    removecolonymsg removecronmsg removeexecutormsg removefilemsg removefunctionmsg
    removegeneratormsg removelocationmsg removeprocessgraphmsg removeprocessmsg removesnapshotmsg
    removeusermsg reportallocationmsg resetclockmsg resolvegeneratormsg resolveprocessmsg
    resumeassignmentsmsg revokeinvitationmsg rotatekeymsg searchlogsmsg setoutputmsg
    setpeerpolicymsg trustpeermsg updateblueprintstatusmsg updateexecutormsg versionmsg
""".split()  # noqa: SIM905


def test_each_call_says_what_it_needs_and_grows_unless_it_does() -> None:
    """A new call is refused by a store that fills up until somebody decides otherwise, here too."""
    found = {call.payloadtype for call in all_calls() if call.need is not Need.GROWS}
    reads = {name for name in found if name.startswith(("get", "subscribe"))}
    assert sorted(found - reads) == EXEMPT
    removes = {
        call.payloadtype: call.need
        for call in all_calls()
        if call.payloadtype.startswith(("remove", "cancel", "block", "revoke", "reject", "get"))
    }
    assert set(removes.values()) == {Need.FREES}, removes


async def fill(side: Side) -> RpcError:
    """Submit until that is refused for good, whatever housekeeping still finds; the refusal."""
    refusals: list[RpcError] = []

    async def lasts() -> bool:
        for _ in range(400):
            try:
                await side.submit(side.daemon.name, args=[BULK])
            except RpcError as error:
                refusals.append(error)
                return len(refusals) >= 6
            refusals.clear()
        raise AssertionError("the store never was full")

    # Seconds between two tries: what is overwritten is forgotten every two.
    await until(120, lasts, step=1.5)
    return refusals[-1]


async def pour(client: EtcdClient, key: str) -> int:
    """Write below `key` until etcd itself refuses; how often."""
    for number in range(4000):
        try:
            # Small enough to be one key: parts are removed with what they belong to, or later.
            await client.put(f"{key}{number:04}", bytes(200_000))
        except EtcdNoSpace:
            return number
    raise AssertionError("etcd never refused")


def takes(side: Side) -> Callable[[], Awaitable[bool]]:
    """Whether a submission is taken again; refusals for another reason than space are errors."""

    async def ask() -> bool:
        try:
            return bool(await side.submit("lab"))
        except RpcError as error:
            if error.status != 507:
                raise
            return False

    return ask


async def write_on(target: str) -> None:
    """Write past the daemon until etcd ends. Raises EtcdUnavailable."""
    async with open_client(target, timeout=5) as client:
        for number in range(1000):
            await client.put(f"/elsewhere/{number % 8}", bytes(1_000_000))


def status(daemon: Daemon) -> str:
    where = ["--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}"]
    return CliRunner().invoke(main, [*where, "status"]).stdout


def number(daemon: Daemon, name: str) -> float:
    """One metric."""
    text = httpx.get(f"http://127.0.0.1:{daemon.port}/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


@pytest.mark.slow
async def test_a_full_store_still_ends_blocks_and_frees(make_daemon: Make) -> None:
    """Filled through the front door; then all that a colony has to do is done nevertheless."""
    lab, field = make_daemon("lab", **SMALL), make_daemon("field")
    async with trio.open_nursery() as starting:
        for daemon in (lab, field):
            starting.start_soon(trio.to_thread.run_sync, partial(daemon.start))
    async with lab.client() as here, field.client() as there:
        a, b = Side(lab, here), Side(field, there)
        await a.find(b)
        await b.find(a)
        await a.trust(b)
        await b.trust(a)
        await a.hire()
        first = await a.submit("lab")
        assigned = await a.call("assignprocessmsg", a.worker, colonyname="lab", timeout=5)
        assert assigned["processid"] == first
        waiting, late = await a.submit("lab"), await a.submit("lab", maxwaittime=2)
        flow = {"colonyname": "lab", "functionspecs": [spec("tick")]}
        cron = {"name": "tick", "colonyname": "lab", "interval": 1, "cronexpression": ""}
        mark = len(lab.events)

        refusal = await fill(a)
        assert refusal.status == 507
        assert "etcd.quota" in refusal.message
        assert "rm --all" in refusal.message
        lab.await_event('event="store is nearly full"', after=mark)

        # What adds is refused, by all kinds of callers, and SDKs of upstream show why.
        for name, key, fields in (
            ("addlogmsg", a.worker, {"processid": first, "message": "x"}),
            (
                "addusermsg",
                a.owner,
                {"user": {"colonyname": "lab", "userid": "a" * 64, "name": "u"}},
            ),
            ("addcronmsg", a.user, {"cron": cron | {"workflowspec": json.dumps(flow)}}),
            ("fileticketmsg", a.user, ticket("PUT")),
        ):
            with pytest.raises(RpcError) as caught:
                await a.call(name, key, **fields)
            assert caught.value.status == 507, name

        def by_sdk() -> None:
            upstream = Colonies("127.0.0.1", lab.port)
            with pytest.raises(Exception, match=r"etcd\.quota"):
                upstream.submit_func_spec(func_spec("f", ["x"], "lab", "cli"), a.user.hex)

        await trio.to_thread.run_sync(by_sdk)
        # A stranger learns nothing of it.
        with pytest.raises(RpcError) as caught:
            await a.call("submitfuncspecmsg", b.user, spec=spec("f"))
        assert caught.value.status == 403

        # What ends and what frees goes on, deadlines among it.
        await a.call("closesuccessfulmsg", a.worker, processid=first, out=["done"])
        await a.call("cancelprocessmsg", processid=waiting)
        for pid, state in ((first, 2), (waiting, 4), (late, 3)):

            async def ended(pid: str = pid, state: int = state) -> bool:
                return bool((await a.call("getprocessmsg", processid=pid))["state"] == state)

            await until(20, ended)

        # A peer's work is refused for now, its own colony keeps it, and routes pass by.
        sent = await b.submit("lab")

        async def told() -> bool:
            forward = await b.call("getforwardmsg", b.owner, processid=sent)
            return "store_full" in json.dumps(forward) and forward["state"] == "queued"

        async def passed_by() -> bool:
            peer = await b.call("getpeermsg", b.owner, peer=a.owner.id)
            return peer["capabilities"]["accepting"] is False

        await until(40, told)
        await until(40, passed_by)

        # Everybody who looks sees it.
        health = await trio.to_thread.run_sync(
            lambda: httpx.get(f"http://127.0.0.1:{lab.port}/health")
        )
        assert (health.status_code, "nearly full" in health.text) == (200, True)
        assert "MiB" not in health.text
        found = await trio.to_thread.run_sync(doctor, lab)
        assert found["store"]["ok"] is False
        assert "history.keep" in found["store"]["next"]
        assert "store is soft" in await trio.to_thread.run_sync(status, lab)
        assert await trio.to_thread.run_sync(number, lab, "colonyd_store_pressure") == 1

        # Its owner decides, too.
        policy = await a.call("setpeerpolicymsg", a.owner, peer=b.owner.id, change={"rate": 60})
        assert policy["policy"]["rate"] == 60
        # Once there is room again, what waited arrives.
        await a.call("removeallprocessesmsg", a.owner, colonyname="lab", state=0)

        async def arrived() -> bool:
            found = await a.call("getprocessesmsg", colonyname="lab", count=10, state=0)
            return any(each["initiatorid"] == b.owner.id for each in found)

        await until(90, arrived)
        await fill(a)
        peer = await a.call("blockpeermsg", a.owner, peer=b.owner.id)
        assert peer["state"] == "blocked"


def spec(name: str) -> dict[str, Any]:
    return {
        "funcname": name,
        "nodename": name,
        "conditions": {"colonyname": "lab", "executortype": "cli"},
    }


def ticket(method: str) -> dict[str, Any]:
    return {"colonyname": "lab", "method": method, "checksum": "a" * 64, "size": 1}


def trap(home: Path, quota: int) -> int:
    """Fill the store of a daemon that is stopped up to etcd's own limit, and leave the alarm."""

    directory = home / "etcd"
    for name in ("localhost:1", "localhost:2"):
        (directory / name).unlink(missing_ok=True)

    async def run() -> int:
        async with open_client(f"unix:{directory}/localhost:1", timeout=30) as client:
            await serving(client)
            written = await pour(client, "/elsewhere/")
            assert (await client.status()).no_space
            return written

    process = subprocess.Popen(
        # It looks at its limit when it has put what was written into its file.
        [*command("etcd", quota), "--backend-batch-interval=100ms"],
        cwd=directory,
        env=environment(os.environ),
        stderr=subprocess.DEVNULL,
    )
    try:
        return trio.run(run)
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_a_store_that_was_trapped_starts_and_can_be_emptied(make_daemon: Make) -> None:
    """etcd's alarm stands and its file is at the quota, as every release before left it."""
    daemon = make_daemon("lab", **SMALL).start()

    async def before() -> str:
        async with daemon.client() as client:
            return await Side(daemon, client).submit("lab")

    known = trio.run(before)
    assert daemon.stop() == 0
    written = trap(daemon.home, QUOTA)
    mark = len(daemon.events)
    daemon.start()
    daemon.await_event('event="store is full"', after=mark)
    assert daemon.health() == 507
    assert doctor(daemon)["store"]["ok"] is False
    assert number(daemon, "colonyd_store_pressure") == 2

    async def empty() -> None:
        async with daemon.client() as client:
            side = Side(daemon, client)
            assert (await fill(side)).status == 507
            await side.call("cancelprocessmsg", processid=known)
            await side.call("removeprocessmsg", processid=known)
        async with open_client(f"unix:{daemon.home}/etcd/localhost:1") as store:
            for number in range(written):
                await store.delete(f"/elsewhere/{number:04}")
        async with daemon.client() as client:
            side = Side(daemon, client)

            await until(60, takes(side))

    trio.run(empty)
    assert daemon.health() == 200
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_larger_quota_is_enough(make_daemon: Make) -> None:
    daemon = make_daemon("lab", **ALONE, **SMALL).start()
    assert daemon.stop() == 0
    trap(daemon.home, QUOTA)
    daemon.environ["COLONYD_ETCD__QUOTA"] = str(4 * QUOTA)
    daemon.start()

    async def work() -> None:
        async with daemon.client() as client:
            assert await Side(daemon, client).submit("lab", args=[BULK])

    trio.run(work)
    assert daemon.health() == 200
    assert doctor(daemon)["store"]["ok"] is True
    assert daemon.stop() == 0


@pytest.mark.slow
async def test_a_full_cluster_is_read_and_emptied(tmp_path: Path, make_daemon: Make) -> None:
    """Others keep it: a daemon starts below their alarm, says what they must do, and takes part."""
    with members(tmp_path / "etcd", 1, f"--quota-backend-bytes={QUOTA}") as one:
        endpoint = one[0].endpoint
        async with open_client(Access((endpoint,)), timeout=30) as store:
            await serving(store)
            cluster = {"COLONYD_ETCD__ENDPOINTS": endpoint} | SMALL
            ant, bee = make_daemon("lab", **cluster), make_daemon("bee", **cluster)
            await trio.to_thread.run_sync(ant.start)
            async with ant.client() as client:
                known = await Side(ant, client).submit("lab")
            assert ant.stop() == 0
            bee.name = "lab"
            bee.home.mkdir(mode=0o700)
            shutil.copytree(ant.home / "keys", bee.home / "keys")
            shutil.copy(ant.home / "colony", bee.home / "colony")
            written = await pour(store, "/elsewhere/")
            for daemon in (ant, bee):
                await trio.to_thread.run_sync(daemon.start)
                async with daemon.client() as client:
                    side = Side(daemon, client)
                    assert (await side.call("getprocessmsg", processid=known))["state"] == 0
                    with pytest.raises(RpcError, match="etcdctl alarm disarm") as caught:
                        await side.submit("lab")
                    assert caught.value.status == 507
                    assert await trio.to_thread.run_sync(daemon.health) == 507
            async with bee.client() as client:
                await Side(bee, client).call("removeprocessmsg", processid=known)
            for number in range(written):
                await store.delete(f"/elsewhere/{number:04}")
            await store.compact((await store.status()).revision)
            await store.defragment()
            await store.disarm()
            for daemon in (ant, bee):
                async with daemon.client() as client:
                    side = Side(daemon, client)
                    await until(60, takes(side))
                assert daemon.stop() == 0


@pytest.mark.slow
def test_a_full_disk_is_told_and_outlasted(tmp_path: Path, make_daemon: Make) -> None:
    """The disk runs full below a daemon: it says so, and comes back when there is room."""
    mount = tmp_path / "lab"
    mount.mkdir()
    script = f"mount -t tmpfs -o size=500m,mode=0700 tmpfs {mount} && echo there && cat"
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"there\n":
            pytest.skip("this user may mount nothing")
        daemon = make_daemon("lab", **ALONE)
        daemon.prefix = ["nsenter", f"--target={holder.pid}", "--user", "--mount"]
        daemon.prefix += ["--preserve-credentials", "--"]
        outlast(daemon, Path(f"/proc/{holder.pid}/root{mount}"))
    finally:
        holder.communicate()


def outlast(daemon: Daemon, inside: Path) -> None:
    """The life of a daemon whose home is seen as `inside`, on a disk of its own."""
    ballast, outside = inside / "ballast", daemon.home

    def leave(free: int) -> None:
        """Have so many MiB left on the disk."""
        ballast.unlink(missing_ok=True)
        with ballast.open("wb") as file:
            room = max(1, shutil.disk_usage(inside).free - free * 2**20)
            while room > 0:
                try:
                    os.posix_fallocate(file.fileno(), 0, room)
                    break
                except OSError:  # the daemon wrote meanwhile
                    room -= 2**20
            os.lseek(file.fileno(), 0, os.SEEK_END)
            with suppress(OSError):
                while not free:
                    os.write(file.fileno(), bytes(4096))

    async def submit(**spec: Any) -> int:
        async with daemon.client() as client:
            try:
                await Side(daemon, client).submit("lab", **spec)
            except RpcError as error:
                return error.status if "the disk of" in error.message else 0
        return 200

    async def until_submit(status: int) -> None:
        async def answered() -> bool:
            return await submit() == status

        await until(60, answered)

    daemon.start()
    daemon.home = inside
    assert trio.run(submit) == 200
    leave(100)
    trio.run(until_submit, 507)
    daemon.await_event("the disk of")
    assert doctor(daemon)["store"]["ok"] is False

    # To the last byte: what etcd writes has no place, and etcd ends.
    leave(0)
    mark = len(daemon.events)
    descriptor = os.open(inside / "etcd", os.O_PATH)
    try:
        with pytest.raises(EtcdUnavailable):
            trio.run(write_on, f"unix:/proc/self/fd/{descriptor}/localhost:1")
    finally:
        os.close(descriptor)
    daemon.await_event("no space left on device", after=mark)
    trio.run(until_submit, 507)
    ballast.unlink()
    trio.run(until_submit, 200)
    assert daemon.health() == 200

    # A daemon that starts on such a disk waits for room instead of giving up.
    leave(0)
    daemon.kill()
    mark, daemon.home = len(daemon.events), outside
    starting = threading.Thread(target=daemon.start)
    starting.start()
    daemon.await_event('event="the store starts nevertheless"', after=mark)
    ballast.unlink()
    starting.join()
    daemon.await_event("event=ready ", after=mark)
    assert daemon.health() == 200
    assert daemon.stop() == 0


async def test_a_full_store_is_no_error_of_the_client(tmp_path: Path) -> None:
    """Nobody there to be asked: nothing is refused, so tools that open a store are as before."""
    async with open_client(f"unix:{tmp_path}/none", timeout=0.2) as client:
        with pytest.raises(EtcdError):
            await client.put("x", b"")
        assert not client.pressure.tight

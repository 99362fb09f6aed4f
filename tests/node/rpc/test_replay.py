"""What recorded bytes of a signed request are worth to whoever sends them again: an answer."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from cli.ops.rpc import all_calls
from colonyd.errors import RpcError as Refusal
from colonyd.keys import PrivateKey, sign_payload
from colonyd.rpc import RpcClient, RpcError, encode
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdNoSpace
from node.etcd.transport.dial import Access
from node.etcd.txn import Delete, Put, Txn
from node.model.types import SECOND
from node.rpc.calls import Call, Caller, Who
from node.rpc.dispatch import Table, decode_envelope
from node.rpc.replay import Once, ReplayGuard
from node.rpc.requests import Empty
from node.store import keys
from node.store import replay as store
from node.store.directory import Directory
from node.timers.election import KEY as LEADER
from tests.node.daemon.support import ALONE, SPEC
from tests.node.etcd.support import start_store
from tests.support.cluster import members, serving
from tests.support.daemons import Daemon, until

Make = Callable[..., Daemon]
FLOW = {"colonyname": "dev", "functionspecs": [SPEC | {"nodename": "a"}]}
KIND = {
    "kind": "Thing",
    "metadata": {"name": "things", "colonyname": "dev"},
    "spec": {
        "group": "g",
        "version": "v1",
        "names": {"kind": "Thing", "singular": "thing", "plural": "things"},
        # Not while a test looks whether the store stays as it is.
        "handler": {
            "executorType": "cli",
            "functionName": "reconcile",
            "reconcileInterval": 99_999,
        },
    },
}


def thing(name: str, size: int = 1) -> dict[str, Any]:
    meta = {"name": name, "colonyname": "dev"}
    return {"blueprint": {"kind": "Thing", "metadata": meta, "spec": {"size": size}}}


class Place:
    """A colony with one of everything, the store below it, and all that a member can sign."""

    def __init__(self, daemon: Daemon, etcd: EtcdClient) -> None:
        self.daemon, self.etcd = daemon, etcd
        self.client = daemon.client()
        self.owner, self.user, self.server = map(daemon.key, ("colony", "user", "server"))
        self.worker, self.loose, self.idle, self.lab = (PrivateKey.generate() for _ in range(4))
        self.ids: dict[str, Any] = {}

    async def call(self, kind: str, key: PrivateKey | None = None, /, **fields: Any) -> Any:
        return await self.client.call(kind, fields, key or self.user, 30.0)

    async def send(self, body: bytes) -> tuple[int, Any]:
        """Status and payload of the answer to these very bytes."""
        try:
            return 200, await self.client._post("any", body, 30.0)
        except RpcError as error:
            return error.status, error.message

    async def join(
        self, name: str, key: PrivateKey, kind: str = "cli", *, yes: bool = True
    ) -> None:
        new = {"executorid": key.id, "executorname": name, "executortype": kind}
        await self.call("addexecutormsg", self.owner, executor=new | {"colonyname": "dev"})
        if yes:
            await self.call("approveexecutormsg", self.owner, colonyname="dev", executorname=name)

    async def submit(self, **changes: Any) -> str:
        return str((await self.call("submitfuncspecmsg", spec=SPEC | changes))["processid"])

    async def assigned(self) -> str:
        fields = {"colonyname": "dev", "timeout": 10}
        return str((await self.call("assignprocessmsg", self.worker, **fields))["processid"])

    async def furnish(self) -> None:
        await self.join("ada", self.worker)
        await self.join("bob", self.loose, yes=False)
        await self.join("eve", self.idle, "idle")
        ids = self.ids
        await self.submit(channels=["talk"])
        ids["running"] = await self.assigned()
        flow = await self.call("submitworkflowspecmsg", spec=FLOW)
        ids["node"] = await self.assigned()
        ids["graph"] = flow["processgraphid"]
        ids["waiting"] = await self.submit()
        again = await self.call("submitworkflowspecmsg", spec=FLOW)
        ids["fresh"] = again["processgraphid"]
        fun = {"executorname": "ada", "colonyname": "dev", "funcname": "f"}
        ids["function"] = (await self.call("addfunctionmsg", self.worker, fun=fun))["functionid"]
        cron = {"colonyname": "dev", "name": "c", "interval": 9999}
        cron["workflowspec"] = json.dumps(FLOW)
        ids["cron"] = (await self.call("addcronmsg", cron=cron))["cronid"]
        generator = {"colonyname": "dev", "name": "g", "trigger": 9}
        generator["workflowspec"] = json.dumps(FLOW)
        made = await self.call("addgeneratormsg", generator=generator)
        ids["generator"] = made["generatorid"]
        file = {"colonyname": "dev", "name": "x", "label": "/l", "checksum": "1"}
        ids["file"] = (await self.call("addfilemsg", file=file))["fileid"]
        snap = {"colonyname": "dev", "name": "s", "label": "/l"}
        ids["snapshot"] = (await self.call("createsnapshotmsg", **snap))["snapshotid"]
        await self.call("addblueprintdefinitionmsg", self.owner, blueprintdefinition=KIND)
        other = KIND | {"kind": "Other", "metadata": {"name": "others", "colonyname": "dev"}}
        other["spec"] = KIND["spec"] | {"names": {"kind": "Other"}}  # type: ignore[operator]
        await self.call("addblueprintdefinitionmsg", self.owner, blueprintdefinition=other)
        await self.call("addblueprintmsg", **thing("b"))
        await self.call(
            "addlocationmsg", self.owner, location={"name": "here", "colonyname": "dev"}
        )
        user = {"name": "ann", "userid": PrivateKey.generate().id, "colonyname": "dev"}
        await self.call("addusermsg", self.owner, user=user)
        await self.call("pauseassignmentsmsg", self.owner, colonyname="dev")
        colony = {"name": "lab", "colonyid": self.lab.id}
        await self.call("addcolonymsg", self.server, colony=colony)

    async def settled(self) -> dict[str, bytes]:
        """What the store has, markers aside, once it is the same for two looks."""
        seen: dict[str, bytes] = {}

        async def quiet() -> bool:
            nonlocal seen
            before, seen = seen, await self.dump()
            return before == seen

        await until(60, quiet, step=0.2)
        return seen

    async def dump(self) -> dict[str, bytes]:
        items, _ = await self.etcd.range_all(keys.ROOT)
        # The index of what is closed is completed at some moment after a colony was added.
        indexed = [keys.closed_by_complete(colony) for colony in ("dev", "lab")]
        aside = (store.MARKERS, store.FLOOR, LEADER, keys.HOLD, *indexed)
        return {kv.key: kv.value for kv in items if not kv.key.startswith(aside)}

    async def restore(self, wanted: dict[str, bytes]) -> None:
        """Undo whatever happened since: the most that anybody can do in between."""
        there = await self.dump()
        ops: list[Put | Delete] = [Delete(key) for key in there.keys() - wanted.keys()]
        ops += [Put(key, value) for key, value in wanted.items() if there.get(key) != value]
        for start in range(0, len(ops), 100):
            await self.etcd.commit(Txn([], ops[start : start + 100]))
        assert await self.settled() == wanted


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One daemon for all of them; what each does is undone."""
    daemon = Daemon(tmp_path_factory.mktemp("replay") / "dev", "dev", ALONE).start()

    async def prepare() -> dict[str, Any]:
        async with open_client(at(daemon), timeout=60) as etcd:
            place = Place(daemon, etcd)
            async with place.client:
                await place.furnish()
            kept = ("worker", "loose", "idle", "lab", "ids")
            return {name: getattr(place, name) for name in kept}

    yield daemon, trio.run(prepare)
    daemon.stop()


def at(daemon: Daemon) -> str:
    return f"unix:{daemon.home}/etcd/localhost:1"


@pytest.fixture
async def place(furnished: Any) -> AsyncIterator[Place]:
    daemon, kept = furnished
    async with open_client(at(daemon), timeout=60) as etcd:
        place = Place(daemon, etcd)
        vars(place).update(kept)
        async with place.client:
            yield place


Request = Callable[[Place], tuple[PrivateKey, dict[str, Any]]]
NEW = "d" * 64
DEV = {"colonyname": "dev"}
ADA = DEV | {"executorname": "ada"}


def running(**more: Any) -> Request:
    return lambda p: (p.worker, {"processid": p.ids["running"], **more})


def owner(**fields: Any) -> Request:
    return lambda p: (p.owner, fields)


def user(**fields: Any) -> Request:
    return lambda p: (p.user, fields)


def server(**fields: Any) -> Request:
    return lambda p: (p.server, fields)


def of(name: str, field: str) -> Request:
    return lambda p: (p.user, {field: p.ids[name]})


# What is asked of each call that changes something.
REQUESTS: dict[str, Request] = {
    "addcolonymsg": server(colony={"name": "new", "colonyid": NEW}),
    "removecolonymsg": server(colonyname="lab"),
    "addusermsg": owner(user={"name": "new", "userid": NEW, **DEV}),
    "removeusermsg": owner(name="ann", **DEV),
    "pauseassignmentsmsg": owner(**DEV),
    "resumeassignmentsmsg": owner(**DEV),
    "addexecutormsg": owner(
        executor={"executorid": NEW, "executorname": "new", "executortype": "cli", **DEV}
    ),
    "approveexecutormsg": owner(executorname="bob", **DEV),
    "rejectexecutormsg": owner(**ADA),
    "removeexecutormsg": owner(**ADA),
    "updateexecutormsg": lambda p: (p.worker, ADA | {"capabilities": {"software": []}}),
    "reportallocationmsg": lambda p: (p.worker, ADA | {"allocations": {"projects": {}}}),
    "addfunctionmsg": lambda p: (p.worker, {"fun": ADA | {"funcname": "new"}}),
    "removefunctionmsg": lambda p: (p.worker, {"functionid": p.ids["function"]}),
    "submitfuncspecmsg": user(spec=SPEC),
    "assignprocessmsg": lambda p: (p.worker, DEV | {"timeout": 5}),
    "setoutputmsg": running(out=["A"]),
    "closesuccessfulmsg": running(out=["A"]),
    "closefailedmsg": running(errors=["E"]),
    "cancelprocessmsg": of("waiting", "processid"),
    "removeprocessmsg": of("waiting", "processid"),
    "removeallprocessesmsg": owner(state=-1, **DEV),
    "addattributemsg": lambda p: (
        p.worker,
        {"attribute": {"targetid": p.ids["running"], "key": "k", "value": "v"}},
    ),
    "addlogmsg": running(message="line"),
    "addexecutorlogmsg": lambda p: (p.worker, ADA | {"message": "line"}),
    "submitworkflowspecmsg": user(spec=FLOW),
    "addchildmsg": lambda p: (
        p.worker,
        {
            "processgraphid": p.ids["graph"],
            "parentprocessid": p.ids["node"],
            "spec": SPEC | {"nodename": "new"},
        },
    ),
    "cancelprocessgraphmsg": of("fresh", "processgraphid"),
    "removeprocessgraphmsg": of("fresh", "processgraphid"),
    "removeallprocessgraphsmsg": owner(state=-1, **DEV),
    "addcronmsg": user(
        cron={"name": "new", "interval": 9999, "workflowspec": json.dumps(FLOW), **DEV}
    ),
    "runcronmsg": of("cron", "cronid"),
    "removecronmsg": of("cron", "cronid"),
    "addgeneratormsg": user(
        generator={"name": "new", "trigger": 9, "workflowspec": json.dumps(FLOW), **DEV}
    ),
    "packgeneratormsg": lambda p: (p.user, {"generatorid": p.ids["generator"], "arg": "1"}),
    "removegeneratormsg": of("generator", "generatorid"),
    "addfilemsg": user(file={"name": "y", "label": "/l", "checksum": "2", **DEV}),
    "removefilemsg": lambda p: (p.user, DEV | {"fileid": p.ids["file"]}),
    "fileticketmsg": user(method="PUT", checksum=hashlib.sha256(b"x").hexdigest(), size=1, **DEV),
    "createsnapshotmsg": user(name="new", label="/l", **DEV),
    "removesnapshotmsg": lambda p: (p.user, DEV | {"snapshotid": p.ids["snapshot"]}),
    "removeallsnapshotmsg": user(**DEV),
    "channelappendmsg": running(name="talk", payload=base64.b64encode(b"hello").decode()),
    "addblueprintdefinitionmsg": owner(
        blueprintdefinition={
            "kind": "New",
            "metadata": {"name": "news", **DEV},
            "spec": KIND["spec"] | {"names": {"kind": "New"}},  # type: ignore[operator]
        }
    ),
    "removeblueprintdefinitionmsg": owner(namespace="dev", name="others"),
    "addblueprintmsg": user(**thing("new")),
    "updateblueprintmsg": user(**thing("b", 2)),
    "removeblueprintmsg": user(namespace="dev", name="b"),
    "updateblueprintstatusmsg": user(blueprintname="b", status={"is": 1}, **DEV),
    "reconcileblueprintmsg": user(namespace="dev", name="b", force=True),
    "addlocationmsg": owner(location={"name": "new", **DEV}),
    "removelocationmsg": owner(name="here", **DEV),
    "changeuseridmsg": user(userid=NEW, **DEV),
    "changeexecutoridmsg": lambda p: (p.idle, DEV | {"executorid": NEW}),
    "changecolonyidmsg": lambda p: (p.lab, {"colonyname": "lab", "colonyid": NEW}),
    "changeserveridmsg": server(serverid=NEW),
}
# They need another colony; the marker comes first in each of them.
PEERS = frozenset(
    {
        "rotatekeymsg",
        "trustpeermsg",
        "setpeerpolicymsg",
        "invitepeermsg",
        "revokeinvitationmsg",
        "joinpeermsg",
        "blockpeermsg",
        "forgetpeermsg",
        "namepeermsg",
        "opencardmsg",
        "pingpeermsg",
        "resolveprocessmsg",
        "resetclockmsg",
    }
)
# A ticket is no more than its answer.
CHANGES_NOTHING = frozenset({"fileticketmsg"})


def test_every_call_that_changes_something_is_tried() -> None:
    told = {call.payloadtype for call in all_calls() if call.section == "WebSocket"}
    changing = {
        call.payloadtype: call
        for call in all_calls()
        if call.who is not Who.ANYONE
        and call.payloadtype not in told
        and not call.reads(SimpleNamespace(method="PUT"))
    }
    assert changing.keys() == REQUESTS.keys() | PEERS
    assert {changing[name].once for name in PEERS} == {Once.FIRST}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(REQUESTS))
async def test_the_same_bytes_change_nothing_again_whatever_happened(
    place: Place, kind: str
) -> None:
    """All that the call did is undone, so that nothing but its marker can tell that it was made."""
    wanted = await place.settled()
    if kind in ("assignprocessmsg", "pauseassignmentsmsg"):
        await place.call("resumeassignmentsmsg", place.owner, **DEV)
    key, fields = REQUESTS[kind](place)
    before = await place.settled()
    body = encode(kind, fields, key)
    first = await place.send(body)
    assert first[0] == 200, first
    after = await place.settled()
    assert (after == before) == (kind in CHANGES_NOTHING)
    # At once, it is a lost answer.
    again = await place.send(body)
    assert await place.settled() == after
    if kind.startswith("change") and kind.endswith("idmsg"):
        assert again[0] == 403, "who signed it is nobody now"
    else:
        assert again == first, "the first answer, again"
    # And once it all is as before.
    await place.restore(before)
    status, _ = await place.send(body)
    assert status in (200, 403, 404)
    assert await place.settled() == before
    await place.restore(wanted)


@pytest.fixture
async def lone(lone_daemon: Daemon) -> AsyncIterator[Place]:
    """A colony with an owner and a user, of whom more is asked below."""
    async with open_client(at(lone_daemon), timeout=60) as etcd:
        place = Place(lone_daemon, etcd)
        async with place.client:
            yield place


async def marked(place: Place) -> int:
    return await place.etcd.count(store.MARKERS)


async def test_copies_at_the_same_moment_take_effect_once(lone: Place) -> None:
    await lone.join("twin", lone.worker, "twin")
    spec = SPEC | {"conditions": {"colonyname": "dev", "executortype": "twin"}}
    generator = {"colonyname": "dev", "name": "twins", "trigger": 99}
    generator["workflowspec"] = json.dumps(FLOW)
    made = await lone.call("addgeneratormsg", generator=generator)
    answers: list[tuple[int, Any]] = []

    async def send(body: bytes) -> None:
        answers.append(await lone.send(body))

    async def at_once(kind: str, fields: dict[str, Any], key: PrivateKey) -> list[Any]:
        answers.clear()
        body = encode(kind, fields, key)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(send, body)
        # Of what is marked first, a copy that comes while it is done is told to look.
        assert {status for status, _ in answers} <= {200, 409}
        return [answer for status, answer in answers if status == 200]

    for _ in range(3):
        await at_once("submitfuncspecmsg", {"spec": spec}, lone.user)
    listing = {"colonyname": "dev", "state": 0, "count": 50, "executortype": "twin"}
    assert len(await lone.call("getprocessesmsg", **listing)) == 3
    given = await at_once("assignprocessmsg", {"colonyname": "dev", "timeout": 5}, lone.worker)
    assert len(given) == 10
    assert len({process["processid"] for process in given}) == 1
    assert len(await lone.call("getprocessesmsg", **listing)) == 2
    fields = {"generatorid": made["generatorid"], "arg": "x"}
    assert await at_once("packgeneratormsg", fields, lone.user)
    got = await lone.call("getgeneratormsg", generatorid=made["generatorid"])
    assert got["queuesize"] == 1


async def test_a_submission_that_meets_a_waiting_poll_keeps_both_from_a_repeat(lone: Place) -> None:
    """One transaction serves two requests: either may be repeated, and gets its first answer."""
    await lone.join("near", lone.worker, "near")
    conditions = {"colonyname": "dev", "executortype": "near"}
    spec = SPEC | {"conditions": conditions}
    large = await lone.call(
        "submitfuncspecmsg", spec=SPEC | {"conditions": conditions | {"cpu": "9000m"}}
    )
    fields = {"colonyname": "dev", "timeout": 60, "availablecpu": "1000m"}
    poll = encode("assignprocessmsg", fields, lone.worker)
    submission = encode("submitfuncspecmsg", {"spec": spec}, lone.user)
    given: list[tuple[int, Any]] = []

    async def wait() -> None:
        given.append(await lone.send(poll))

    async def asks() -> bool:
        why = await lone.call("getwaitingmsg", processid=large["processid"])
        return bool(why["asking"])

    with trio.fail_after(60):
        before = await marked(lone)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(30, asks)
            status, made = await lone.send(submission)
        assert (status, made["state"], made["assignedexecutorid"]) == (200, 0, "")
        [(status, mine)] = given
        assert (status, mine["processid"], mine["state"]) == (200, made["processid"], 1)
        assert await marked(lone) == before + 2
        # However the daemon dies, both requests took effect or none did.
        born = await lone.etcd.get(keys.process("dev", mine["processid"]))
        assert born is not None
        markers = (await lone.etcd.range_all(store.MARKERS))[0]
        assert [kv.mod_revision for kv in markers].count(born.create_revision) == 2
        # Another process waits: neither repeat may touch it.
        other = await lone.call("submitfuncspecmsg", spec=spec)
        assert await lone.send(poll) == (200, mine)
        status, again = await lone.send(submission)
        assert (status, again["processid"]) == (200, made["processid"])
        assert (await lone.call("getprocessmsg", processid=other["processid"]))["state"] == 0
        await lone.call("closesuccessfulmsg", lone.worker, processid=mine["processid"])


async def test_what_was_refused_or_changed_nothing_does_not_change_it_later(lone: Place) -> None:
    """A poll that found nothing hands out nothing afterwards; an approval of whom is approved
    already approves nobody whom the owner rejected since."""
    await lone.join("late", lone.worker, "late")
    poll = encode("assignprocessmsg", {"colonyname": "dev", "timeout": -1}, lone.worker)
    first = await lone.send(poll)
    assert first[0] == 404
    named = {"colonyname": "dev", "executorname": "late"}
    approval = encode("approveexecutormsg", named, lone.owner)
    assert (await lone.send(approval))[0] == 200
    spec = SPEC | {"conditions": {"colonyname": "dev", "executortype": "late"}}
    made = await lone.call("submitfuncspecmsg", spec=spec)
    assert await lone.send(poll) == first
    assert (await lone.call("getprocessmsg", processid=made["processid"]))["state"] == 0
    await lone.call("rejectexecutormsg", lone.owner, **named)
    assert await lone.send(approval) == (200, {})
    assert (await lone.call("getexecutormsg", **named))["state"] == 2


async def test_an_output_does_not_come_back_and_a_removed_process_neither(lone: Place) -> None:
    """As it was found: A, B, A; and submitted, removed, handed out to an executor."""
    await lone.join("abc", lone.worker, "abc")
    spec = SPEC | {"conditions": {"colonyname": "dev", "executortype": "abc"}}
    submit = encode("submitfuncspecmsg", {"spec": spec}, lone.user)
    pid = (await lone.send(submit))[1]["processid"]
    await lone.assigned()
    bodies = [encode("setoutputmsg", {"processid": pid, "out": [out]}, lone.worker) for out in "AB"]
    for body in (*bodies, bodies[0]):
        assert await lone.send(body) == (200, {})
    assert (await lone.call("getprocessmsg", processid=pid))["out"] == ["B"]
    await lone.call("cancelprocessmsg", processid=pid)
    await lone.call("removeprocessmsg", processid=pid)
    for _ in range(3):
        status, said = await lone.send(submit)
        assert (status, "was removed" in said) == (404, True)
        with pytest.raises(RpcError, match="no process is waiting"):
            await lone.call("assignprocessmsg", lone.worker, colonyname="dev", timeout=-1)


async def test_a_nonce_stands_for_one_request(lone: Place) -> None:
    fields = {"nonce": "n" * 16, "user": {"name": "one", "userid": NEW, "colonyname": "dev"}}
    body = json.loads(encode("addusermsg", fields, lone.owner))
    payload = json.loads(base64.b64decode(body["payload"]))
    other = payload | {"user": payload["user"] | {"name": "two"}}
    assert (await lone.send(signed(lone.owner, payload)))[0] == 200
    status, said = await lone.send(signed(lone.owner, other))
    assert (status, said) == (403, "nonce: used already for another request")


def signed(key: PrivateKey, payload: dict[str, Any]) -> bytes:
    """An envelope with just these fields."""
    text = base64.b64encode(json.dumps(payload).encode()).decode()
    envelope = {"payloadtype": payload["msgtype"], "payload": text}
    return json.dumps(envelope | {"signature": sign_payload(key, text)}).encode()


async def test_whoever_has_no_right_leaves_nothing(lone: Place) -> None:
    """Nobody pushes out what is remembered: it is in the store, and strangers are not."""
    user = {"name": "kept", "userid": "e" * 64, "colonyname": "dev"}
    body = encode("addusermsg", {"user": user}, lone.owner)
    assert (await lone.send(body))[0] == 200
    await lone.call("removeusermsg", lone.owner, colonyname="dev", name="kept")
    before, stranger = await marked(lone), PrivateKey.generate()
    for number in range(40):
        for kind, fields in (
            ("cancelprocessmsg", {"processid": f"{number}"}),
            ("setoutputmsg", {"processid": f"{number}", "out": [1]}),
            ("submitfuncspecmsg", {"spec": SPEC}),
            ("addusermsg", {"user": user}),
        ):
            assert (await lone.send(encode(kind, fields, stranger)))[0] == 403
    assert await marked(lone) == before
    assert (await lone.send(body))[0] == 200, "the first answer"
    names = [each["name"] for each in await lone.call("getusersmsg", colonyname="dev")]
    assert "kept" not in names


async def test_reads_and_requests_without_a_nonce_leave_nothing(lone: Place) -> None:
    """What upstream's SDKs send costs what it did."""
    before = await marked(lone)
    for kind, fields in (("getusersmsg", DEV), ("searchlogsmsg", DEV | {"text": "x"})):
        await lone.call(kind, **fields)
    plain = signed(lone.user, {"msgtype": "submitfuncspecmsg", "spec": SPEC})
    assert [(await lone.send(plain))[0] for _ in range(2)] == [200, 200]
    assert await marked(lone) == before
    submit = encode("submitfuncspecmsg", {"spec": SPEC}, lone.user)
    assert [(await lone.send(submit))[0] for _ in range(2)] == [200, 200]
    assert await marked(lone) == before + 1


async def test_what_was_cut_off_is_told_to_look(lone: Place) -> None:
    """A daemon that dies after the marker and before the effect leaves the former."""
    fields = {"colonyname": "dev", "name": "nobody"}
    body = encode("removeusermsg", fields, lone.owner)
    payload = json.loads(body)["payload"]
    said = json.loads(base64.b64decode(payload))
    replays = ReplayGuard(lone.etcd, lambda: 0)
    await replays.claim(lone.owner.id, said["nonce"], said["issuedat"], payload).mark()
    status, message = await lone.send(body)
    assert status == 409
    assert "sign a new request if that did not happen" in message
    with pytest.raises(RpcError, match="is not in colony dev"):
        await lone.call("removeusermsg", lone.owner, **fields)


# -- restarts, other daemons, other servers ------------------------------------------------


async def test_a_recorded_approval_is_worth_nothing_after_a_restart(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE)
    await trio.to_thread.run_sync(daemon.start)
    named = {"colonyname": "dev", "executorname": "ada"}
    async with open_client(at(daemon), timeout=60) as etcd:
        place = Place(daemon, etcd)
        async with place.client:
            await place.join("ada", place.worker, yes=False)
            body = encode("approveexecutormsg", named, place.owner)
            assert await place.send(body) == (200, {})
            await place.call("rejectexecutormsg", place.owner, **named)
    daemon.kill()
    await trio.to_thread.run_sync(daemon.start)
    async with daemon.client() as place.client:
        assert await place.send(body) == (200, {})
        found = await place.call("getexecutormsg", **named)
        assert found["state"] == 2


@pytest.mark.slow
async def test_nor_at_another_daemon_of_the_store(tmp_path: Path, make_daemon: Make) -> None:
    with members(tmp_path / "etcd", 1) as (one,):
        async with open_client(Access((one.endpoint,)), timeout=60) as etcd:
            await serving(etcd)
            ant = make_daemon("dev", **ALONE, COLONYD_ETCD__ENDPOINTS=one.endpoint)
            await trio.to_thread.run_sync(ant.start)
            bee = make_daemon("bee", **ALONE, COLONYD_ETCD__ENDPOINTS=one.endpoint)
            bee.name = "dev"
            bee.home.mkdir(mode=0o700)
            shutil.copytree(ant.home / "keys", bee.home / "keys")
            shutil.copy(ant.home / "colony", bee.home / "colony")
            await trio.to_thread.run_sync(bee.start)
            here, there = Place(ant, etcd), Place(bee, etcd)
            async with here.client, there.client:
                await here.join("ada", here.worker, yes=False)
                named = {"colonyname": "dev", "executorname": "ada"}
                approval = encode("approveexecutormsg", named, here.owner)
                assert (await here.send(approval))[0] == 200
                submit = encode("submitfuncspecmsg", {"spec": SPEC}, here.user)
                pid = (await here.send(submit))[1]["processid"]
                assert (await there.send(submit))[1]["processid"] == pid
                await here.call("removeprocessmsg", processid=pid)
                await here.call("rejectexecutormsg", here.owner, **named)
                before = await here.settled()
                assert await there.send(approval) == (200, {})
                assert (await there.send(submit))[0] == 404
                assert await here.settled() == before


async def test_nor_at_another_server(make_daemon: Make) -> None:
    """The same user's key is a member at both; what it signs is for one of them."""
    ant, bee = make_daemon("ant", **ALONE), make_daemon("bee", **ALONE)
    await trio.to_thread.run_sync(ant.start)
    bee.home.mkdir(mode=0o700)
    (bee.home / "keys").mkdir(mode=0o700)
    shutil.copy(ant.home / "keys" / "user.key", bee.home / "keys" / "user.key")
    await trio.to_thread.run_sync(bee.start)
    user, sent = ant.key("user"), list[bytes]()
    spec = SPEC | {"conditions": {"colonyname": "ant", "executortype": "cli"}}
    async with ant.client() as client, bee.client() as other:
        post = client._post

        async def recorded(payloadtype: str, body: bytes, timeout: float) -> Any:
            sent.append(body)
            return await post(payloadtype, body, timeout)

        client._post = recorded  # type: ignore[method-assign]
        colony = {"name": "ant", "colonyid": PrivateKey.generate().id}
        await other.call("addcolonymsg", {"colony": colony}, bee.key("server"))
        fields = {"colonyname": "ant", "out": [], "spec": spec}
        await client.call("submitfuncspecmsg", fields, user)
        with pytest.raises(RpcError, match="audience: signed for server") as caught:
            await other._post("any", sent[-1], 10.0)
        assert caught.value.status == 403
        # A server that goes on under another key is asked again.
        new = PrivateKey.generate()
        await client.call("changeserveridmsg", {"serverid": new.id}, ant.key("server"))
        await client.call("getcolonymsg", {"colonyname": "ant"}, user)
    async with RpcClient(f"http://127.0.0.1:{ant.port}", audience=bee.key("server").id) as client:
        with pytest.raises(RpcError, match="audience"):
            await client.call("getcolonymsg", {"colonyname": "ant"}, user)


def test_what_is_signed_for_one_server_is_nothing_to_another() -> None:
    async def nothing(caller: Caller, request: Empty) -> None: ...

    here, there, key = NEW, "e" * 64, PrivateKey.generate()
    call = Call("getxmsg", Empty, Who.SIGNED, nothing)
    table = Table(Directory(serverid=here), time.time_ns)
    table.admit(call, decode_envelope(encode("getxmsg", {}, key)))
    table.admit(call, decode_envelope(encode("getxmsg", {}, key, here)))
    with pytest.raises(Refusal, match=f"audience: signed for server '{there}'"):
        table.admit(call, decode_envelope(encode("getxmsg", {}, key, there)))


async def test_strict_demands_nonce_time_and_audience(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE, COLONYD_RPC__REPLAY="strict")
    await trio.to_thread.run_sync(daemon.start)
    user = daemon.key("user")
    async with daemon.client() as client:
        assert await client.call("getusersmsg", DEV, user)
        for body, says in (
            (signed(user, {"msgtype": "getusersmsg", **DEV}), "nonce, issuedat"),
            (encode("getusersmsg", DEV, user), "audience"),
        ):
            with pytest.raises(RpcError, match=says):
                await client._post("any", body, 10.0)


# -- time ----------------------------------------------------------------------------------


async def test_markers_go_and_a_clock_that_is_set_back_brings_nothing_back(
    client: EtcdClient,
) -> None:
    now = [2_000_000_000 * SECOND]
    replays = ReplayGuard(client, lambda: now[0])
    issued = now[0] / SECOND

    async def done() -> str:
        return "done"

    async def never(_: str) -> Any:
        raise AssertionError

    async def once(nonce: str, at: float = issued) -> Any:
        claim = replays.claim("me", nonce, at, f"payload {nonce}")

        return await replays.once(claim, Once.FIRST, done, never, entitled=True)

    assert await once("a") == "done"
    again = await once("a")
    assert isinstance(again, msgspec.Raw)
    assert bytes(again) == b'"done"'
    await replays.sweep()
    assert await client.count(store.MARKERS) == 1, "its request may still come"
    # Far ahead, and back again.
    now[0] += 10**6 * SECOND
    await replays.sweep()
    assert await client.count(store.MARKERS) == 0
    now[0] -= 10**6 * SECOND
    for nonce in ("a", "b"):
        with pytest.raises(Refusal, match="not known to this store any more"):
            await once(nonce)
    # Who signs from then on is not shut out.
    assert await once("c", issued + store.SPAN) == "done"
    # The owner may have it forgotten, whatever the store has seen.
    await client.put(store.FLOOR, store.number(10**10))
    with pytest.raises(Refusal, match="a clock was set back"):
        await once("d", issued + store.SPAN)
    lasting = replays.claim("me", "reset", issued, "payload", lasting=True)
    await replays.once(lasting, Once.FIRST, replays.forget, never, entitled=True)
    assert await once("d", issued + store.SPAN) == "done"
    lasting = replays.claim("me", "reset", issued, "payload", lasting=True)
    assert await replays.once(lasting, Once.FIRST, replays.forget, never, entitled=True)


async def test_a_try_without_an_answer_that_happened_is_the_same_request(
    client: EtcdClient,
) -> None:
    """The store took it and nobody heard: the next try of the same run is no replay."""
    replays = ReplayGuard(client, lambda: 0)
    claim = replays.claim("me", "n", 1000, "payload")
    await claim.mark()
    claim.spent = False
    result = await claim.commit(client._commit, Txn([], [Put("/colonyd/x", b"1")]))
    assert result.succeeded
    assert await client.get("/colonyd/x") is not None


async def test_a_full_store_is_still_made_room_in(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Nothing can be written, a marker neither: what only deletes goes on, and once still."""
    etcd = await start_store(nursery, tmp_path / "small", quota=8 * 1024 * 1024)
    async with open_client(etcd.target, timeout=60) as client:
        replays, removed = ReplayGuard(client, lambda: 0), list[str]()

        async def remove() -> None:
            removed.append("big")
            await client.delete("/colonyd/big")

        async def never(_: str) -> Any:
            raise AssertionError

        async def once(nonce: str) -> Any:
            claim = replays.claim("me", nonce, 1000, "payload")
            return await replays.once(claim, Once.FIRST, remove, never, entitled=True)

        await once("a")

        async def fill() -> None:
            for _ in range(2000):
                await client.put("/colonyd/big", b"x" * 200_000)

        with pytest.raises(EtcdNoSpace):
            await fill()
        await once("a")
        assert len(removed) == 1
        await once("b")
        assert await client.get("/colonyd/big") is None

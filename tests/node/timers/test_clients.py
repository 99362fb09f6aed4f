"""Crons and generators as clients see them: pycolonies' calls, rights, and kills at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import crypto  # type: ignore[import-untyped]
import httpx
import pytest
import trio
from model import Conditions, FuncSpec, Workflow  # type: ignore[import-untyped]
from pycolonies import Colonies

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcError, Unreachable, decode, encode
from node.model.types import SECOND
from node.store import crons
from tests.node.timers.support import seconds_of
from tests.sdk.support import COLONY, Party
from tests.support.daemons import Daemon, seeded_dice, until

Make = Callable[..., Daemon]


@pytest.fixture
def party(lone_daemon: Daemon) -> Party:
    return Party(lone_daemon).join()


def flow(party: Party) -> Any:
    conditions = Conditions(colonyname=COLONY, executortype=party.type)
    spec = FuncSpec(nodename="node1", funcname="f", args=[], kwargs={}, conditions=conditions)
    return Workflow(colonyname=COLONY, functionspecs=[spec])


def test_pycolonies_and_its_crons(party: Party) -> None:
    colonies: Colonies = party.colonies
    before = len(colonies.get_crons(COLONY, 100, party.key))
    name = f"every second {party.name}"
    added = colonies.add_cron(name, "0/1 * * * * *", True, flow(party), COLONY, party.key)
    assert (added["name"], added["initiatorname"]) == (name, party.name)
    # Sent under pycolonies' own name for it.
    assert added["waitforprevprocessgraph"] is True
    assert added["lastrun"].startswith("0001-01-01")
    assert added["nextrun"] > "2020"
    first = party.assign()
    got = colonies.get_cron(added["cronid"], party.user)
    assert got["prevprocessgraphid"] == first.processgraphid
    assert got["checkerperiod"] == 1000
    assert json.loads(got["workflowspec"])["functionspecs"][0]["nodename"] == "node1"
    # Not while the previous one runs.
    assert colonies.run_cron(added["cronid"], party.key)["lastrun"] == got["lastrun"]
    colonies.close(first.processid, ["for the next"], party.key)
    second = party.assign()
    assert second.input == ["for the next"]
    assert len(colonies.get_crons(COLONY, 100, party.key)) == before + 1
    assert len(colonies.get_crons(COLONY, 1, party.key)) == 1
    assert colonies.get_crons(COLONY, 0, party.key) == []
    colonies.del_cron(added["cronid"], party.key)
    with pytest.raises(Exception, match="no cron"):
        colonies.get_cron(added["cronid"], party.key)
    assert len(colonies.get_crons(COLONY, 100, party.key)) == before


def test_run_cron_starts_it_now(party: Party) -> None:
    never = "0 0 0 1 1 ?"
    added = party.colonies.add_cron(party.name, never, False, flow(party), COLONY, party.key)
    ran = party.colonies.run_cron(added["cronid"], party.user)
    assert ran["lastrun"] > "2020"
    assert party.assign().processgraphid == ran["prevprocessgraphid"]
    party.colonies.del_cron(added["cronid"], party.user)


def test_pycolonies_and_its_generators(party: Party) -> None:
    colonies: Colonies = party.colonies
    asked = {
        "colonyname": COLONY,
        "name": party.name,
        "workflowspec": json.dumps(flow(party).model_dump(by_alias=True)),
        "trigger": 2,
        "timeout": -1,
    }
    added = colonies.add_generator(asked, party.key)
    assert (added["initiatorid"], added["trigger"], added["queuesize"]) == (party.id, 2, 0)
    assert added["firstpack"].startswith("0001-01-01")
    for arg in "abc":
        call(party, "packgeneratormsg", generatorid=added["generatorid"], arg=arg)
    assert party.assign().spec.args == ["a", "b"]
    by_name = call(party, "resolvegeneratormsg", colonyname=COLONY, generatorname=party.name)
    got = colonies.get_generator(added["generatorid"], party.user)
    assert by_name["generatorid"] == got["generatorid"]
    assert (got["checkerperiod"], got["queuesize"] % 2) == (1000, 1)
    assert got["firstpack"] > "2020"
    assert party.name in [one["name"] for one in colonies.get_generators(COLONY, party.user)]
    colonies.remove_generator(added["generatorid"], party.user)
    with pytest.raises(Exception, match="no generator"):
        colonies.get_generator(added["generatorid"], party.user)


def call(party: Party, payloadtype: str, key: str = "", **fields: Any) -> Any:
    """A call that pycolonies does not have, signed without a nonce as its own are."""
    message = {"msgtype": payloadtype, **fields}
    return party.colonies._Colonies__rpc(message, key or party.user)


def test_rights(party: Party, lone_daemon: Daemon) -> None:
    """Whoever is not a member learns nothing and starts nothing, here or from elsewhere."""
    colonies: Colonies = party.colonies
    owner, person = crypto.Crypto().prvkey(), crypto.Crypto().prvkey()
    other = f"c-{party.name}"
    colonies.add_colony({"colonyid": crypto.Crypto().id(owner), "name": other}, party.server)
    user = {"colonyname": other, "userid": crypto.Crypto().id(person), "name": "eve"}
    colonies.add_user(user | {"email": "", "phone": ""}, owner)
    never = "0 0 0 1 1 ?"
    cron = colonies.add_cron(party.name, never, False, flow(party), COLONY, party.key)
    workflowspec = json.dumps(flow(party).model_dump(by_alias=True))
    asked = {"colonyname": COLONY, "name": party.name, "workflowspec": workflowspec, "trigger": 1}
    generator = colonies.add_generator(asked, party.key)
    for stranger in (crypto.Crypto().prvkey(), party.owner, person):
        for kind, known in (("cron", cron["cronid"]), ("generator", generator["generatorid"])):
            for verb in ("get", "run" if kind == "cron" else "pack", "remove"):
                told = []
                for asked_for in (known, "0" * 64):
                    with pytest.raises(Exception, match=r"no cron|no generator|member") as refused:
                        call(party, f"{verb}{kind}msg", stranger, **{f"{kind}id": asked_for})
                    told.append(str(refused.value).replace(known, "0" * 64))
                assert told[0] == told[1]
            with pytest.raises(Exception, match="only its"):
                call(party, f"get{kind}smsg", stranger, colonyname=COLONY, count=9)
        with pytest.raises(Exception, match="only its"):
            colonies.add_generator(asked, stranger)
    with pytest.raises(Exception, match="no process"):
        party.assign(1)
    # A member of one colony has nothing started in another.
    for payloadtype, field in (("addcronmsg", "cron"), ("addgeneratormsg", "generator")):
        wish = asked | {"colonyname": other, "interval": 1, "name": "sneak"}
        with pytest.raises(Exception, match=f"{field}.workflowspec.colonyname"):
            call(party, payloadtype, person, **{field: wish})
    colonies.del_colony(other, party.server)


@pytest.mark.slow
async def test_kills(make_daemon: Make) -> None:
    """A seed in COLONYD_TEST_SEED repeats a run; the moments are drawn from it."""
    dice = seeded_dice()
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    user = daemon.key("user")
    cron = await patient(daemon, user, "addcronmsg", cron=asked("beat", "*/1 * * * * *"))
    generator = await patient(daemon, user, "addgeneratormsg", generator=asked("frames"))
    packed = 0
    over = trio.Event()

    async def pack() -> None:
        nonlocal packed
        while not over.is_set():
            generatorid = generator["generatorid"]
            await patient(
                daemon, user, "packgeneratormsg", generatorid=generatorid, arg=f"{packed:04d}"
            )
            packed += 1

    async def beats_so_far() -> set[str]:
        fields = {"colonyname": "dev", "seconds": 3600, "state": 0}
        found = await patient(daemon, user, "getprocesshistmsg", **fields)
        return {p["processgraphid"] for p in found if p["spec"]["nodename"] == "beat"}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pack)
        for _ in range(5):
            await trio.sleep(0.3 + dice.random() * 1.2)
            daemon.kill()
            await trio.to_thread.run_sync(daemon.start)
        enough = packed + 50

        async def went_on() -> bool:
            return packed > enough and len(await beats_so_far()) > 5

        await until(120, went_on)
        over.set()
    await patient(daemon, user, "removecronmsg", cronid=cron["cronid"])
    processes = await everything(daemon, user)

    taken = [p["spec"]["args"] for p in processes if p["spec"]["nodename"] == "frames"]
    count, rest = divmod(packed, 7)
    assert count > 5
    assert [arg for args in taken for arg in args] == [f"{n:04d}" for n in range(count * 7)]
    left = await patient(daemon, user, "getgeneratormsg", generatorid=generator["generatorid"])
    assert left["queuesize"] == rest

    beats = {p["processgraphid"] for p in processes if p["spec"]["nodename"] == "beat"}
    began = seconds_of(cron["nextrun"])
    due = {crons.graph_id(cron["cronid"], (began + s) * SECOND) for s in range(600)}
    assert len(beats) == len([p for p in processes if p["spec"]["nodename"] == "beat"]) > 5
    assert beats <= due


def asked(name: str, expression: str = "") -> dict[str, Any]:
    """A cron or a generator of one node."""
    node = {"nodename": name, "funcname": "f", "conditions": {"executortype": "nobody"}}
    workflow = json.dumps({"colonyname": "dev", "functionspecs": [node]})
    fields = {"colonyname": "dev", "name": name, "workflowspec": workflow}
    return fields | {"cronexpression": expression, "interval": -1, "trigger": 7, "timeout": 0}


async def everything(daemon: Daemon, user: PrivateKey) -> list[dict[str, Any]]:
    """All processes in the order they were submitted, once no more come."""
    found: list[dict[str, Any]] = []
    while True:
        fields = {"colonyname": "dev", "seconds": 3600, "state": 0}
        now = list(await patient(daemon, user, "getprocesshistmsg", **fields))
        if len(now) == len(found):
            return now
        found = now
        await trio.sleep(5)


async def patient(daemon: Daemon, key: PrivateKey, payloadtype: str, **fields: Any) -> Any:
    """Send the same bytes until there is an answer that is not about the daemon's absence."""
    body = encode(payloadtype, fields, key)
    # Making a context for TLS takes longer than all calls of a test.
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        with trio.fail_after(60):
            while True:
                try:
                    url = f"http://127.0.0.1:{daemon.port}/api"
                    reply = await client.post(url, content=body, timeout=10)
                    return decode(payloadtype, reply.status_code, reply.content)
                except (httpx.HTTPError, Unreachable):
                    pass
                except RpcError as error:
                    if error.status != 503:
                        raise
                await trio.sleep(0.05)

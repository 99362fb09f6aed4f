"""Blueprints: pycolonies as their user and their reconciler, and what a race or a crash leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
from crypto import Crypto  # type: ignore[import-untyped]
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycolonies import Workflow

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, decode, encode
from node.blueprints.rules import BlueprintRequest, colony_initiator, revise, same
from node.model.codec import pack
from node.model.types import Colony
from node.store import keys
from node.store.blueprints import Blueprint, Metadata
from node.store.directory import Directory
from node.timers.trigger import may_start
from tests.node.blueprints.support import nested
from tests.sdk.support import COLONY, Party, field, plain
from tests.support.daemons import Daemon

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5, "", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=6,
)
SPECS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


# -- rules -------------------------------------------------------------------------------


def as_upstream(value: Any) -> str:
    """The text that upstream compares: to Go, every number in JSON is a float64."""
    if isinstance(value, dict):
        inner = (f"{json.dumps(key)}:{as_upstream(value[key])}" for key in sorted(value))
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_upstream, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return json.dumps(float(value))
    return json.dumps(value)


@settings(deadline=None, max_examples=60)
@given(JSON, JSON)
@example([{"a": True}], [{"a": 1}])
@example({"a": [False]}, {"a": [0.0]})
@example({"a": 1}, {"a": 1.0})
def test_specs_are_the_same_when_upstream_says_so(one: Any, other: Any) -> None:
    assert same(one, other) == (as_upstream(one) == as_upstream(other))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 2**40), SPECS, st.lists(st.tuples(SPECS, st.booleans(), st.integers(0, 9))))
def test_the_generation_counts_changes_of_the_spec(
    generation: int, spec: dict[str, Any], updates: list[tuple[dict[str, Any], bool, int]]
) -> None:
    meta = Metadata("b", "dev", generation=generation, updatedat=5)
    blueprint = Blueprint("id", "Kind", meta, "seed", spec, {"seen": True})
    for spec, force, now in updates:
        changed = as_upstream(blueprint.spec) != as_upstream(spec)
        # The generation that a client sends is its memory, not an order.
        wanted = BlueprintRequest("Kind", "b", "dev", spec=spec, generation=1)
        generation += 1 if changed or force else 0
        earlier = blueprint.metadata.updatedat
        blueprint = revise(blueprint, wanted, force=force, now=now)
        assert blueprint.metadata.generation == generation
        assert as_upstream(blueprint.spec) == as_upstream(spec)
        assert blueprint.metadata.updatedat >= earlier
        assert blueprint.status == {"seen": True}


@pytest.mark.parametrize(
    ("status", "copied", "left"),
    [(None, 0, {"a": 1}), ({}, 0, {}), ({"b": 2}, 70, {"b": 2}), ({"b": 2}, 69, {"a": 1})],
)
def test_an_old_copy_does_not_bring_back_an_old_status(
    status: dict[str, Any] | None, copied: int, left: dict[str, Any]
) -> None:
    meta = Metadata("b", "dev", updatedat=70_999_999)
    known = Blueprint("id", "Kind", meta, "seed", {}, {"a": 1})
    wanted = BlueprintRequest("Kind", "b", "dev", status=status, copied=copied)
    assert revise(known, wanted, force=False, now=80_000_000).status == left


def test_the_cron_of_a_colony_outlives_its_owner_s_key() -> None:
    directory = Directory()
    directory.apply(keys.colony("dev"), pack(Colony("n" * 64, "dev")), 1)
    old = colony_initiator(Colony("o" * 64, "dev"))
    assert may_start(directory, "dev", old.id, old.name)
    assert not may_start(directory, "dev", old.id, "dev")
    assert not may_start(directory, "other", old.id, old.name)


# -- pycolonies --------------------------------------------------------------------------


class Setting(Party):
    """A kind of its own, with the party's executor as its reconciler."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self.daemon = daemon
        self.kind = f"Kind{self.id[:8]}"

    def settle(self, location: str) -> Setting:
        """Become an executor at a location."""
        executor = {
            "executorname": self.name,
            "executorid": self.id,
            "colonyname": COLONY,
            "executortype": self.type,
            "locationname": location,
        }
        self.colonies.add_executor(executor, self.owner)
        self.colonies.approve_executor(COLONY, self.name, self.owner)
        return self

    def define(self, schema: Any = None, interval: int = 0, **handler: str) -> dict[str, Any]:
        handler = handler or {"executorType": self.type, "functionName": "reconcile"}
        definition: dict[str, Any] = {
            "kind": "BlueprintDefinition",
            "metadata": {"name": f"def-{self.kind}", "colonyname": COLONY},
            "spec": {"names": {"kind": self.kind}, "handler": dict(handler)},
        }
        if schema is not None:
            definition["spec"]["schema"] = schema
        if interval:
            definition["spec"]["handler"]["reconcileInterval"] = interval
        added: dict[str, Any] = self.colonies.add_blueprint_definition(definition, self.owner)
        return added

    def sketch(self, name: str = "lamp", location: str = "", **spec: Any) -> dict[str, Any]:
        blueprint: dict[str, Any] = {
            "kind": self.kind,
            "metadata": {"name": f"{name}-{self.kind}", "colonyname": COLONY},
            "spec": spec,
        }
        if location:
            blueprint["metadata"]["locationname"] = location
        return blueprint

    def add(self, name: str = "lamp", location: str = "", **spec: Any) -> dict[str, Any]:
        blueprint = self.sketch(name, location, **spec)
        added: dict[str, Any] = self.colonies.add_blueprint(blueprint, self.user)
        return added

    def get(self, name: str = "lamp") -> dict[str, Any]:
        found: dict[str, Any] = self.colonies.get_blueprint(
            COLONY, f"{name}-{self.kind}", self.user
        )
        return found

    def crons(self) -> dict[str, dict[str, Any]]:
        crons = plain(self.colonies.get_crons(COLONY, 1000, self.user))
        return {cron["name"]: cron for cron in crons if self.kind in cron["name"]}

    def take(self) -> Any:
        """The next process for the reconciler, closed at once."""
        process = self.assign()
        self.colonies.close(process.processid, [], self.key)
        return process

    def idle(self) -> None:
        """Nothing is left for the reconciler."""
        with pytest.raises(Exception, match="no process"):
            self.colonies.assign(COLONY, -1, self.key)


@pytest.fixture
def setting(lone_daemon: Daemon) -> Setting:
    return Setting(lone_daemon).settle("hall")


def test_a_reconciler_brings_about_what_is_wanted(setting: Setting) -> None:
    """The life of a blueprint, as pycolonies' own documentation has it."""
    setting.define(interval=3600)

    def reconcile() -> dict[str, Any]:
        process = setting.assign()
        assert process.spec.funcname == "reconcile"
        blueprint = setting.colonies.get_blueprint(
            COLONY, process.spec.kwargs["blueprintName"], setting.key
        )
        status = {"power": blueprint["spec"]["power"], "by": process.processid}
        name = blueprint["metadata"]["name"]
        setting.colonies.update_blueprint_status(COLONY, name, status, setting.key)
        setting.colonies.close(process.processid, ["reconciled"], setting.key)
        kwargs: dict[str, Any] = process.spec.kwargs
        return kwargs

    added = setting.add(location="hall", power=False)
    assert added["metadata"]["generation"] == 1
    kwargs = {"kind": setting.kind, "blueprintName": added["metadata"]["name"]}
    assert reconcile() == kwargs
    known = setting.get()
    assert known["status"]["power"] is False
    assert known["status"]["by"] == known["metadata"]["lastReconciliationProcess"]
    assert known["metadata"]["lastReconciliationTime"] > known["metadata"]["createdAt"][:10]
    setting.idle()

    known["spec"]["power"] = True
    updated = setting.colonies.update_blueprint(known, setting.user)
    assert (updated["metadata"]["generation"], updated["blueprintid"]) == (2, added["blueprintid"])
    assert reconcile() == kwargs
    assert setting.get()["status"]["power"] is True
    # The same again is no change; forced, it is.
    setting.colonies.update_blueprint(setting.get(), setting.user)
    setting.idle()
    setting.colonies.update_blueprint(setting.get(), setting.user, force_generation=True)
    assert reconcile() == kwargs

    name = known["metadata"]["name"]
    process = setting.colonies.reconcile_blueprint(COLONY, name, setting.user)
    assert field(process, "state") == 0
    assert reconcile() == kwargs
    forced = setting.colonies.reconcile_blueprint(COLONY, name, setting.user, force=True)
    # As upstream; but pycolonies can't read a process with a boolean in its kwargs.
    assert forced["spec"]["kwargs"] == kwargs | {"force": True}
    setting.colonies.remove_process(forced["processid"], setting.user)
    assert setting.get()["metadata"]["generation"] == 4

    rows = setting.colonies.get_blueprint_history(added["blueprintid"], setting.user)
    assert [(row["generation"], row["changetype"]) for row in rows] == [
        (4, "update"),
        (3, "update"),
        (2, "update"),
        (1, "create"),
    ]
    assert [row["spec"]["power"] for row in rows] == [True, True, True, False]
    user = Crypto().id(setting.user)
    assert {(row["namespace"], row["changedby"]) for row in rows} == {(COLONY, user)}
    assert len({row["historyid"] for row in rows}) == 4
    newest = setting.colonies.get_blueprint_history(added["blueprintid"], setting.user, limit=2)
    assert newest == rows[:2]

    setting.colonies.remove_blueprint(COLONY, name, setting.user)
    process = setting.take()
    assert (process.spec.funcname, process.spec.kwargs) == ("cleanup", kwargs)
    with pytest.raises(Exception, match="no blueprint"):
        setting.get()
    with pytest.raises(Exception, match="no blueprint"):
        setting.colonies.get_blueprint_history(added["blueprintid"], setting.user)
    setting.idle()


def test_what_pycolonies_suite_does_with_a_kind_without_handler(setting: Setting) -> None:
    definition = {
        "kind": setting.kind,
        "metadata": {"name": "d-" + setting.kind, "colonyname": COLONY},
        "spec": {"names": {"kind": setting.kind}},
    }
    colonies, name = setting.colonies, "d-" + setting.kind
    colonies.add_blueprint_definition(definition, setting.owner)
    found = colonies.get_blueprint_definition(COLONY, name, setting.owner)
    assert (found["kind"], found["metadata"]["name"]) == (setting.kind, name)
    assert found in colonies.get_blueprint_definitions(COLONY, setting.user)
    blueprint = setting.sketch(power=False, brightness=0)
    blueprint["handler"] = {"executortype": "test-reconciler"}
    colonies.add_blueprint(blueprint, setting.key)
    assert setting.get()["spec"] == {"power": False, "brightness": 0}
    # The very dictionary that was added, not a copy of what the server has.
    blueprint["spec"]["brightness"] = 100
    colonies.update_blueprint(blueprint, setting.key)
    assert setting.get()["spec"] == {"power": False, "brightness": 100}
    status = {"power": True, "lastSeen": None}
    colonies.update_blueprint_status(COLONY, setting.get()["metadata"]["name"], status, setting.key)
    assert setting.get()["status"] == status
    colonies.update_blueprint_status(
        COLONY, setting.get()["metadata"]["name"], {"x": 1}, setting.key
    )
    assert setting.get()["status"] == {"x": 1}
    assert setting.crons() == {}
    with pytest.raises(Exception, match="no handler"):
        colonies.reconcile_blueprint(COLONY, blueprint["metadata"]["name"], setting.user)
    with pytest.raises(Exception, match=r"1 blueprint\(s\) of kind"):
        colonies.remove_blueprint_definition(COLONY, name, setting.owner)
    colonies.remove_blueprint(COLONY, blueprint["metadata"]["name"], setting.key)
    colonies.remove_blueprint_definition(COLONY, name, setting.owner)
    with pytest.raises(Exception, match="no blueprint definition"):
        colonies.get_blueprint_definition(COLONY, name, setting.owner)


def test_lists_by_kind_and_location(setting: Setting) -> None:
    setting.define()
    for name, location in (("b", "Lab"), ("a", "lab"), ("c", "hall/2")):
        setting.add(name, location)
    names = [f"{name}-{setting.kind}" for name in "abc"]

    def listed(**filters: str) -> list[str]:
        found = setting.colonies.get_blueprints(COLONY, setting.user, **filters)
        return [blueprint["metadata"]["name"] for blueprint in found]

    assert [name for name in listed() if name in names] == names
    assert listed(kind=setting.kind) == names
    assert listed(kind=setting.kind, location="LAB") == names[:2]
    assert listed(kind=setting.kind, location="la") == []
    assert listed(kind=setting.kind[:-1]) == []


def test_the_cron_of_a_kind_at_a_location(setting: Setting) -> None:
    """One for all blueprints there, by the definition's interval, until the last one goes."""
    setting.define(interval=7200)
    setting.add("one", "hall")
    setting.add("two", "hall")
    setting.add("three")
    at_hall, nowhere = f"reconcile-{setting.kind}-hall", f"reconcile-{setting.kind}"
    crons = setting.crons()
    assert set(crons) == {at_hall, nowhere}
    assert crons[at_hall]["interval"] == 7200
    assert crons[at_hall]["waitforprevprocessgraph"] is True
    workflow = json.loads(crons[at_hall]["workflowspec"])
    (spec,) = workflow["functionspecs"]
    assert spec["kwargs"] == {"kind": setting.kind}
    assert (spec["funcname"], spec["conditions"]["locationname"]) == ("reconcile", "hall")
    # A new location moves a blueprint from cron to cron.
    setting.colonies.update_blueprint(setting.sketch("three", "attic"), setting.user)
    assert set(setting.crons()) == {at_hall, f"reconcile-{setting.kind}-attic"}
    for name, left in (("one", True), ("two", False)):
        setting.colonies.remove_blueprint(COLONY, f"{name}-{setting.kind}", setting.user)
        assert (at_hall in setting.crons()) == left


def test_the_interval_of_a_definition_is_the_cron_s(setting: Setting) -> None:
    setting.define(interval=1)
    setting.add()
    assert setting.take().spec.kwargs["blueprintName"]
    ticked = setting.take()
    assert ticked.spec.kwargs == {"kind": setting.kind}
    # Whoever added the blueprint, its cron is the colony's.
    assert ticked.initiatorname == f"colony/{COLONY}"
    setting.colonies.remove_blueprint(COLONY, f"lamp-{setting.kind}", setting.user)


def test_a_cron_s_name_that_is_taken_does_not_stop_the_reconciliation(setting: Setting) -> None:
    setting.define(interval=3600)
    workflow = Workflow(colonyname=COLONY, functionspecs=[setting.spec(nodename="mine")])
    name = f"reconcile-{setting.kind}"
    setting.colonies.add_cron(name, "0 0 0 1 1 *", False, workflow, COLONY, setting.user)
    setting.add()
    crons = setting.crons()
    (ours,) = set(crons) - {name}
    assert ours.startswith(name + "-")
    assert crons[ours]["interval"] == 3600
    setting.colonies.remove_blueprint(COLONY, f"lamp-{setting.kind}", setting.user)
    assert set(setting.crons()) == {name}


def test_the_owner_s_blueprints_are_submitted_as_the_colony(setting: Setting) -> None:
    setting.define(interval=3600)
    setting.colonies.add_blueprint(setting.sketch(power=1), setting.owner)
    first = setting.take()
    owner = setting.daemon.key("colony").id
    assert (first.initiatorid, first.initiatorname) == (owner, f"colony/{COLONY}")
    setting.colonies.update_blueprint(setting.sketch(power=2), setting.owner)
    assert setting.take().initiatorid == owner
    cron = setting.crons()[f"reconcile-{setting.kind}"]
    assert (cron["initiatorid"], cron["initiatorname"]) == (owner, f"colony/{COLONY}")
    ran = setting.colonies.run_cron(field(cron, "cronid"), setting.user)
    assert field(ran, "prevprocessgraphid")
    assert setting.take().initiatorname == f"colony/{COLONY}"
    history = setting.colonies.get_blueprint_history(setting.get()["blueprintid"], setting.owner)
    assert {row["changedby"] for row in history} == {owner}
    setting.colonies.remove_blueprint(COLONY, f"lamp-{setting.kind}", setting.owner)
    assert setting.take().spec.funcname == "cleanup"


SCHEMA = {
    "type": "object",
    "properties": {
        "ports": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"port": {"type": "integer"}, "protocol": {"default": "TCP"}},
                "required": ["port"],
            },
        },
        "replicas": {"type": "integer", "default": 1},
        "mode": {"enum": [["a"], {"b": None}]},
    },
}


def test_a_schema_is_kept_to(setting: Setting) -> None:
    added = setting.define(SCHEMA)
    assert added["spec"]["schema"] == SCHEMA
    with pytest.raises(Exception, match=r"blueprint\.spec\.ports\[1\]\.port: is required"):
        setting.add(ports=[{"port": 1}, {}])
    with pytest.raises(Exception, match=r"blueprint\.spec\.replicas: 1\.5 is not"):
        setting.add(replicas=1.5)
    with pytest.raises(Exception, match=r"blueprint\.spec\.mode: "):
        setting.add(mode=["b"])
    setting.idle()
    added = setting.add(ports=[{"port": 1}], mode={"b": None})
    wanted = {"ports": [{"port": 1, "protocol": "TCP"}], "mode": {"b": None}, "replicas": 1}
    assert added["spec"] == setting.get()["spec"] == wanted
    with pytest.raises(Exception, match=r"blueprint\.spec\.replicas"):
        setting.colonies.update_blueprint(setting.sketch(replicas="2"), setting.user)
    # What the defaults fill in anyway is no change.
    same_again = setting.sketch(ports=[{"port": 1}], mode={"b": None})
    setting.colonies.update_blueprint(same_again, setting.user)
    assert setting.get()["metadata"]["generation"] == 1


def test_what_makes_no_sense_is_refused(setting: Setting) -> None:
    colonies = setting.colonies
    with pytest.raises(Exception, match=r"blueprint\.kind: colony dev has no definition"):
        setting.add()
    with pytest.raises(Exception, match=r"spec\.schema\.properties\.a\.type"):
        setting.define({"properties": {"a": {"type": "text"}}})
    with pytest.raises(Exception, match=r"\.\$ref: is not supported"):
        setting.define({"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}})
    with pytest.raises(Exception, match=r"spec\.schema\.allOf: is not supported"):
        setting.define(nested("allOf", 24))
    with pytest.raises(Exception, match="reconcileInterval"):
        setting.define(interval=-1)
    with pytest.raises(Exception, match="executorType"):
        setting.define(executorType="a/b", functionName="f")
    setting.define()
    with pytest.raises(Exception, match="exists already"):
        setting.define()
    twin = {
        "kind": "BlueprintDefinition",
        "metadata": {"name": f"twin-{setting.kind}", "colonyname": COLONY},
        "spec": {"names": {"kind": setting.kind}},
    }
    with pytest.raises(Exception, match="is defined by"):
        colonies.add_blueprint_definition(twin, setting.owner)
    with pytest.raises(Exception, match="only its colony owner"):
        colonies.add_blueprint_definition(twin, setting.user)
    setting.add(a=1)
    with pytest.raises(Exception, match="exists already"):
        setting.add(a=2)
    assert setting.get()["spec"] == {"a": 1}
    with pytest.raises(Exception, match="no blueprint"):
        colonies.update_blueprint(setting.sketch("other"), setting.user)
    with pytest.raises(Exception, match=r"blueprint\.kind: .* stays so"):
        colonies.update_blueprint(setting.sketch() | {"kind": "Other"}, setting.user)
    with pytest.raises(Exception, match=r"blueprint: at most 4 MiB"):
        colonies.update_blueprint(setting.sketch(a="x" * 4_300_000), setting.user)
    name = setting.get()["metadata"]["name"]
    with pytest.raises(Exception, match="status: at most 4 MiB"):
        colonies.update_blueprint_status(COLONY, name, {"a": "x" * 4_300_000}, setting.user)
    bad = setting.sketch() | {"metadata": {"name": "bad\nname", "colonyname": COLONY}}
    with pytest.raises(Exception, match=r"blueprint\.metadata\.name: "):
        colonies.add_blueprint(bad, setting.user)


# -- what pycolonies does not show -------------------------------------------------------


class Caller:
    """A user of a colony, calling through our own client."""

    def __init__(self, client: RpcClient, key: PrivateKey, colony: str) -> None:
        self.client = client
        self.key = key
        self.colony = colony

    async def call(self, payloadtype: str, **fields: Any) -> Any:
        return await self.client.call(payloadtype, fields, self.key)

    async def refused(self, payloadtype: str, **fields: Any) -> tuple[int, str]:
        with pytest.raises(RpcError) as caught:
            await self.call(payloadtype, **fields)
        return caught.value.status, caught.value.message

    def sketch(self, kind: str, name: str, **spec: Any) -> dict[str, Any]:
        return {
            "kind": kind,
            "metadata": {"name": name, "colonyname": self.colony},
            "spec": spec,
        }


def definition(colony: str, kind: str, executortype: str, **handler: Any) -> dict[str, Any]:
    return {
        "kind": "BlueprintDefinition",
        "metadata": {"name": f"def-{kind}", "colonyname": colony},
        "spec": {
            "names": {"kind": kind},
            "handler": {"executorType": executortype, "functionName": "reconcile", **handler},
        },
    }


async def found_colony(daemon: Daemon, client: RpcClient, name: str) -> tuple[Caller, Caller]:
    """Host another colony; its owner and a user of it."""
    owner, user = PrivateKey.generate(), PrivateKey.generate()
    colony = {"colonyid": owner.id, "name": name}
    await client.call("addcolonymsg", {"colony": colony}, daemon.key("server"))
    ann = {"colonyname": name, "userid": user.id, "name": "ann"}
    await client.call("addusermsg", {"user": ann}, owner)
    return Caller(client, owner, name), Caller(client, user, name)


async def waiting(caller: Caller, executortype: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await caller.call(
        "getprocessesmsg",
        colonyname=caller.colony,
        count=100,
        state=0,
        executortype=executortype,
    )
    return found


async def test_definitions_are_those_of_the_blueprint_s_own_colony(lone_daemon: Daemon) -> None:
    """The same kind elsewhere has another reconciler, and another colony's users see nothing."""
    async with lone_daemon.client() as client:
        people = []
        for name in ("north", "south"):
            owner, user = await found_colony(lone_daemon, client, name)
            definition_ = definition(name, "Pump", f"pumper-{name}")
            await owner.call("addblueprintdefinitionmsg", blueprintdefinition=definition_)
            people.append((owner, user))
        (owner, north), (_, south) = people
        sketch = south.sketch("Pump", "p1", flow=1)
        added = await south.call("addblueprintmsg", blueprint=sketch)
        await south.call("reconcileblueprintmsg", namespace="south", name="p1", force=False)
        await south.call("removeblueprintmsg", namespace="south", name="p1")
        functions = [p["spec"]["funcname"] for p in await waiting(south, "pumper-south")]
        assert functions == ["reconcile", "reconcile", "cleanup"]
        assert await waiting(north, "pumper-north") == []

        added = await south.call("addblueprintmsg", blueprint=sketch)
        foreign = await north.refused("getblueprinthistorymsg", blueprintid=added["blueprintid"])
        unknown = await north.refused("getblueprinthistorymsg", blueprintid="0" * 64)
        assert foreign == unknown
        assert foreign[0] == 404
        for payloadtype, fields in (
            ("getblueprintmsg", {"namespace": "south", "name": "p1"}),
            ("updateblueprintmsg", {"blueprint": sketch}),
            ("removeblueprintmsg", {"namespace": "south", "name": "p1"}),
            ("getblueprintsmsg", {"namespace": "south"}),
            ("getblueprintdefinitionsmsg", {"colonyname": "south"}),
        ):
            assert (await north.refused(payloadtype, **fields))[0] == 403

        # A colony that goes takes all of it along, even for one of the same name.
        server = lone_daemon.key("server")
        await client.call("removecolonymsg", {"colonyname": "south"}, server)
        _, south = await found_colony(lone_daemon, client, "south")
        assert await south.call("getblueprintsmsg", namespace="south") == []
        assert await south.call("getblueprintdefinitionsmsg", colonyname="south") == []
        assert await south.call("getcronsmsg", colonyname="south", count=10) == []
        refused = await south.refused("getblueprinthistorymsg", blueprintid=added["blueprintid"])
        assert refused[0] == 404


async def test_null_and_numbers_stay_what_they_are(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        owner, user = await found_colony(lone_daemon, client, "exact")
        sent = definition("exact", "Exact", "e")
        sent["spec"] |= {"schema": {"properties": {"a": {"enum": [None, 1], "default": None}}}}
        await owner.call("addblueprintdefinitionmsg", blueprintdefinition=sent)
        listed = await user.call("getblueprintdefinitionsmsg", colonyname="exact")
        assert listed[0]["spec"]["schema"] == sent["spec"]["schema"]
        spec = {"a": None, "b": [None, {"c": None}], "n": 2**70, "f": 0.1, "t": True}
        sketch = user.sketch("Exact", "x", **spec)
        sketch["metadata"] |= {"labels": None, "locationname": None}
        sketch["status"] = None
        added = await user.call("addblueprintmsg", blueprint=sketch)
        assert added["spec"] == spec
        assert "labels" not in added["metadata"]
        # true is not 1, if Python says so or not; 1.0 is.
        for value, generation in ((1, 2), (1.0, 2), (True, 3)):
            sketch["spec"]["t"] = value
            updated = await user.call("updateblueprintmsg", blueprint=sketch)
            assert updated["metadata"]["generation"] == generation
        sketch["metadata"]["name"] = 7
        status, message = await user.refused("updateblueprintmsg", blueprint=sketch)
        assert (status, "blueprint.metadata.name" in message) == (400, True)


async def test_concurrent_changes_lose_no_generation(lone_daemon: Daemon) -> None:
    """Each bump has its own number, its own row and its own process; no status is lost."""
    async with lone_daemon.client() as client:
        owner, user = await found_colony(lone_daemon, client, "race")
        sent = definition("race", "Counter", "counter")
        await owner.call("addblueprintdefinitionmsg", blueprintdefinition=sent)
        sketch = user.sketch("Counter", "c", n=0)
        blueprintid = (await user.call("addblueprintmsg", blueprint=sketch))["blueprintid"]
        seen: list[int] = []

        async def update(n: int) -> None:
            changed = user.sketch("Counter", "c", n=n)
            updated = await user.call("updateblueprintmsg", blueprint=changed)
            seen.append(updated["metadata"]["generation"])

        async def force() -> None:
            await user.call("reconcileblueprintmsg", namespace="race", name="c", force=True)

        async def status(n: int) -> None:
            fields = {"colonyname": "race", "blueprintname": "c", "status": {"n": n}}
            await user.call("updateblueprintstatusmsg", **fields)

        async with trio.open_nursery() as nursery:
            for n in range(1, 21):
                nursery.start_soon(update, n)
                nursery.start_soon(status, n)
            for _ in range(5):
                nursery.start_soon(force)
        known = await user.call("getblueprintmsg", namespace="race", name="c")
        assert known["metadata"]["generation"] == 26
        assert len(set(seen)) == 20
        assert known["status"]["n"] in range(1, 21)
        rows = await user.call("getblueprinthistorymsg", blueprintid=blueprintid)
        assert [row["generation"] for row in rows] == list(range(26, 0, -1))
        processes = await waiting(user, "counter")
        assert len(processes) == 26
        last = known["metadata"]["lastReconciliationProcess"]
        assert last in [process["processid"] for process in processes]


async def test_a_repeat_of_the_same_request_changes_nothing(lone_daemon: Daemon) -> None:
    async with lone_daemon.client() as client:
        owner, user = await found_colony(lone_daemon, client, "twice")
        sent = definition("twice", "Once", "onceler")
        await owner.call("addblueprintdefinitionmsg", blueprintdefinition=sent)

        async def repeat(payloadtype: str, **fields: Any) -> Any:
            body = encode(payloadtype, fields, user.key)
            async with httpx.AsyncClient(trust_env=False) as http:
                replies = [await http.post(f"{client.url}/api", content=body) for _ in range(2)]
            first, second = (decode(payloadtype, r.status_code, r.content) for r in replies)
            assert first == second
            return first

        await repeat("addblueprintmsg", blueprint=user.sketch("Once", "o"))
        process = await repeat("reconcileblueprintmsg", namespace="twice", name="o", force=True)
        known = await user.call("getblueprintmsg", namespace="twice", name="o")
        assert known["metadata"]["generation"] == 2
        assert known["metadata"]["lastReconciliationProcess"] == process["processid"]
        assert len(await waiting(user, "onceler")) == 2
        # Without the nonce it is another request, for a name that is taken.
        status, _ = await user.refused("addblueprintmsg", blueprint=user.sketch("Once", "o"))
        assert status == 409


@pytest.mark.slow
async def test_a_crash_leaves_no_half_of_a_change(make_daemon: Callable[..., Daemon]) -> None:
    """Killed while blueprints come, change and go: each has its history, process and cron."""
    daemon = make_daemon("crash", COLONYD_FEDERATION__ENABLED="false").start()
    async with daemon.client() as client:
        owner = Caller(client, daemon.key("colony"), "crash")
        user = Caller(client, daemon.key("user"), "crash")
        for kind in ("A", "B"):
            sent = definition("crash", kind, f"r{kind}")
            await owner.call("addblueprintdefinitionmsg", blueprintdefinition=sent)
        enough = trio.Event()

        async def live(kind: str, worker: int) -> None:
            number = 0
            while True:
                number += 1
                name = f"{kind}-{worker}-{number}"
                sketch = user.sketch(kind, name, n=0)
                sketch["metadata"]["locationname"] = f"place{number % 2}"
                try:
                    await user.call("addblueprintmsg", blueprint=sketch)
                    sketch["spec"]["n"] = 1
                    await user.call("updateblueprintmsg", blueprint=sketch)
                    if number % 3:
                        await user.call("removeblueprintmsg", namespace="crash", name=name)
                except Exception:
                    return
                if number == 4:
                    enough.set()

        async with trio.open_nursery() as nursery:
            for worker in range(2):
                nursery.start_soon(live, "A", worker)
                nursery.start_soon(live, "B", worker)
            await enough.wait()
            daemon.kill()
    daemon.start()
    async with daemon.client() as client:
        user = Caller(client, daemon.key("user"), "crash")
        expected: dict[str, set[str]] = {"A": set(), "B": set()}
        places: set[str] = set()
        for blueprint in await user.call("getblueprintsmsg", namespace="crash"):
            meta, kind = blueprint["metadata"], blueprint["kind"]
            rows = await user.call("getblueprinthistorymsg", blueprintid=blueprint["blueprintid"])
            assert [row["generation"] for row in rows] == list(range(meta["generation"], 0, -1))
            assert rows[0]["spec"] == blueprint["spec"]
            process = await user.call("getprocessmsg", processid=meta["lastReconciliationProcess"])
            assert process["spec"]["kwargs"]["blueprintName"] == meta["name"]
            places.add(f"reconcile-{kind}-{meta['locationname']}")
            expected[kind].add(meta["name"])
        for kind, names in expected.items():
            listed = await user.call("getblueprintsmsg", namespace="crash", kind=kind)
            assert {blueprint["metadata"]["name"] for blueprint in listed} == names
        crons = await user.call("getcronsmsg", colonyname="crash", count=100)
        assert {cron["name"] for cron in crons} == places
        for cron in crons:  # with all its fields, as upstream's server tells it
            (told,) = json.loads(cron["workflowspec"])["functionspecs"]
            assert (told["priority"], told["conditions"]["gpu"]["count"]) == (0, 0)
        assert places

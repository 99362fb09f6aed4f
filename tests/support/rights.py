"""Who may call what, as upstream's protocol has it, and a request for each call that has an effect.

It is written down here once more, apart from the table of calls: a row that grants more, or less,
is found by comparing. The callers and what must hold are in `node.rpc.test_rights`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

# -- callers --------------------------------------------------------------------------------------

# All executors are of the colony dev but `far worker`; what runs is assigned to `worker`, and was
# submitted by `user`. `far` is another colony on the same server. `nobody` does not sign.
CALLERS = (
    "server", "owner", "user", "worker", "other", "pending", "rejected", "gone",
    "far owner", "far user", "far worker", "stranger", "nobody",
)  # fmt: skip
M = frozenset({"user", "worker", "other"})
ROLES: dict[str, frozenset[str]] = {
    "ANYONE": frozenset(CALLERS),
    "SIGNED": frozenset(CALLERS) - {"nobody"},
    "SO": frozenset({"server"}),
    "CO": frozenset({"owner"}),
    "M": M,
    "m": M | {"pending", "rejected", "gone"},
    "M|CO": M | {"owner"},
    # A user that calls, or the executors that do.
    "m user": frozenset({"user"}),
    "m executor": frozenset({"worker", "other", "pending", "rejected", "gone"}),
    "M executor": frozenset({"worker", "other"}),
    # The executor that the message names, that it is assigned to, that runs the parent.
    "SELF": frozenset({"worker"}),
    "AE": frozenset({"worker"}),
    # Who submitted the process, and who runs it.
    "PARTY": frozenset({"user", "worker"}),
    # An executor anywhere on the server, in any state.
    "EXECUTOR": frozenset({"worker", "other", "pending", "rejected", "gone", "far worker"}),
}

_BY_ROLE = {
    "ANYONE": "version getserverinfo",
    "SO": "getstatistics getcluster changeserverid addcolony removecolony getcolonies",
    "CO": "changecolonyid adduser removeuser addlocation removelocation addexecutor"
    " approveexecutor rejectexecutor removeexecutor removeallprocesses pauseassignments"
    " resumeassignments removeallprocessgraphs addblueprintdefinition removeblueprintdefinition",
    "m": "getusers getuser getuserbyid getlocations getlocation getexecutors getpausestatus",
    "m user": "changeuserid",
    "m executor": "changeexecutorid",
    "M executor": "assignprocess",
    "M": "getcolony getcolonystats getexecutor getexecutorbyid getfunctions submitfuncspec"
    " getprocess getprocesses getprocesshist cancelprocess removeprocess getattribute getlogs"
    " searchlogs submitworkflowspec getprocessgraph getprocessgraphs cancelprocessgraph"
    " removeprocessgraph addcron getcron getcrons runcron removecron addgenerator getgenerator"
    " resolvegenerator getgenerators packgenerator removegenerator addfile getfile getfiles"
    " getfilelabels removefile createsnapshot getsnapshot getsnapshots removesnapshot"
    " removeallsnapshot updateblueprintstatus reconcileblueprint",
    "M|CO": "getblueprintdefinition getblueprintdefinitions addblueprint getblueprint"
    " getblueprints updateblueprint removeblueprint getblueprinthistory",
    "SELF": "updateexecutor reportallocation addfunction removefunction addexecutorlog",
    "AE": "setoutput closesuccessful closefailed addattribute addlog addchild",
    "PARTY": "channelappend channelread subscribechannel",
    "SIGNED": "subscribeprocess",
    "EXECUTOR": "subscribeprocesses",
}
UPSTREAM = {f"{name}msg": role for role, names in _BY_ROLE.items() for name in names.split()}

# Calls that upstream does not have: rights as `docs/protocol.md` promises them.
_OURS = {
    "M|CO": "getnodestatus getforward getorigin",
    "M": "fileticket getwaiting",
    "CO": "getpeers getpeer trustpeer setpeerpolicy blockpeer forgetpeer invitepeer"
    " getinvitations revokeinvitation joinpeer pingpeer getclock resetclock resolveprocess"
    " rotatekey getroutes explainroute namepeer getpetnames getcard opencard",
}
OURS = {f"{name}msg": role for role, names in _OURS.items() for name in names.split()}

# Where rights differ on purpose: ours, and the words that `docs/compatibility.md` has for it.
DIFFERENT = {
    "subscribeprocessmsg": ("M", "takes membership"),
    "subscribeprocessesmsg": ("M", "one's own colonies only"),
}


def rights(payloadtype: str) -> frozenset[str]:
    """Who may make a call here. Raises KeyError for a call that has no row."""
    if payloadtype in DIFFERENT:
        return ROLES[DIFFERENT[payloadtype][0]]
    return ROLES[UPSTREAM.get(payloadtype) or OURS[payloadtype]]


# -- requests -------------------------------------------------------------------------------------

SHA = "0" * 64
IN_DEV = {"colonyname": "dev"}


class World:
    """Things to make requests about, made when they are asked for and kept until `forget`.

    `ask(caller, payloadtype, fields)` must succeed; `ids` are the callers' own.
    """

    def __init__(self, ask: Callable[[str, str, dict[str, Any]], Any], ids: dict[str, str]) -> None:
        self.ask, self.ids = ask, ids
        self._made: dict[str, Any] = {}
        self._numbers = itertools.count()

    def forget(self) -> None:
        """Make everything anew from now on."""
        self._made.clear()

    def name(self, kind: str) -> str:
        """A name that nothing has."""
        return f"{kind}{next(self._numbers)}"

    def identity(self) -> str:
        """An id that nobody has."""
        return f"{next(self._numbers):064x}"

    def the(self, kind: str) -> Any:
        """A thing of a kind; the same until `forget`."""
        if kind not in self._made:
            self._made[kind] = getattr(self, f"_{kind}")()
        return self._made[kind]

    def spec(self, **more: Any) -> dict[str, Any]:
        """A function spec for the workers' type."""
        conditions = {**IN_DEV, "executortype": "cli"}
        return {"funcname": "f", "conditions": conditions, "channels": ["chat"], **more}

    def workflow(self) -> dict[str, Any]:
        """A workflow of one node."""
        return {**IN_DEV, "functionspecs": [self.spec(nodename="a")]}

    def _waiting(self) -> Any:
        return self.ask("user", "submitfuncspecmsg", {"spec": self.spec()})

    def _run(self, want: str) -> Any:
        """Hand out until this process is the worker's."""
        while True:
            found = self.ask("worker", "assignprocessmsg", {**IN_DEV, "timeout": 20})
            if want in (found["processid"], found["processgraphid"]):
                return found

    def _running(self) -> Any:
        process = self._run(self._waiting()["processid"])
        said = {"processid": process["processid"], "name": "chat", "payload": "YQ=="}
        self.ask("user", "channelappendmsg", {**said, "sequence": 1})
        return process

    def _attribute(self) -> Any:
        target = self.the("running")["processid"]
        asked = {"targetid": target, "key": self.name("k"), "value": "secret"}
        return self.ask("worker", "addattributemsg", {"attribute": asked})

    def _graph(self) -> Any:
        return self.ask("user", "submitworkflowspecmsg", {"spec": self.workflow()})

    def _node(self) -> Any:
        return self._run(self._graph()["processgraphid"])

    def _cron(self) -> Any:
        asked = {**IN_DEV, "name": self.name("c"), "interval": 10**6}
        asked["workflowspec"] = json.dumps(self.workflow())
        return self.ask("user", "addcronmsg", {"cron": asked})

    def _generator(self) -> Any:
        asked = {**IN_DEV, "name": self.name("g"), "trigger": 100}
        asked["workflowspec"] = json.dumps(self.workflow())
        return self.ask("user", "addgeneratormsg", {"generator": asked})

    def _file(self) -> Any:
        asked = {**IN_DEV, "label": "/l", "name": self.name("f"), "checksum": SHA, "size": 1}
        return self.ask("user", "addfilemsg", {"file": asked})

    def _snapshot(self) -> Any:
        self.the("file")
        asked = {**IN_DEV, "label": "/l", "name": self.name("s")}
        return self.ask("user", "createsnapshotmsg", asked)

    def a_definition(self) -> dict[str, Any]:
        """A definition that is not there yet."""
        name = self.name("Kind")
        names = {"kind": name, "listKind": name, "singular": name, "plural": name}
        handler = {"executorType": "reconciler", "functionName": "f"}
        return {
            "kind": name,
            "metadata": {**IN_DEV, "name": name},
            "spec": {"names": names, "handler": handler},
        }

    def _definition(self) -> Any:
        asked = {"blueprintdefinition": self.a_definition()}
        return self.ask("owner", "addblueprintdefinitionmsg", asked)

    def a_blueprint(self) -> dict[str, Any]:
        """A blueprint that is not there yet."""
        kind = self.the("definition")["spec"]["names"]["kind"]
        return {"kind": kind, "metadata": {**IN_DEV, "name": self.name("b")}, "spec": {"a": 1}}

    def _blueprint(self) -> Any:
        return self.ask("owner", "addblueprintmsg", {"blueprint": self.a_blueprint()})

    def _function(self) -> Any:
        asked = {**IN_DEV, "executorname": "worker", "funcname": self.name("f")}
        return self.ask("worker", "addfunctionmsg", {"fun": asked})

    def _member(self) -> Any:
        asked = {**IN_DEV, "name": self.name("u"), "userid": self.identity()}
        return self.ask("owner", "addusermsg", {"user": asked})

    def an_executor(self) -> dict[str, Any]:
        """An executor that is not there yet."""
        own = {"executorname": self.name("e"), "executorid": self.identity()}
        return {**IN_DEV, "executortype": "t", **own}

    def _executor(self) -> Any:
        return self.ask("owner", "addexecutormsg", {"executor": self.an_executor()})

    def _location(self) -> Any:
        asked = {**IN_DEV, "name": self.name("l")}
        return self.ask("owner", "addlocationmsg", {"location": asked})

    def _colony(self) -> Any:
        asked = {"colonyid": self.identity(), "name": self.name("col")}
        return self.ask("server", "addcolonymsg", {"colony": asked})


def _of(kind: str, key: str, **more: Any) -> Callable[[World], dict[str, Any]]:
    """A request that names a thing by its id."""
    return lambda world: {key: world.the(kind)[key], **more}


def _named(kind: str, key: str, **more: Any) -> Callable[[World], dict[str, Any]]:
    """A request that names a thing of dev by its name."""
    return lambda world: {**IN_DEV, key: world.the(kind)[key], **more}


def _in_dev(**more: Any) -> Callable[[World], dict[str, Any]]:
    return lambda world: {**IN_DEV, **more}


def _meta(kind: str, **more: Any) -> Callable[[World], dict[str, Any]]:
    """A request about a blueprint or a definition."""
    return lambda world: {"namespace": "dev", "name": world.the(kind)["metadata"]["name"], **more}


def _self(**more: Any) -> Callable[[World], dict[str, Any]]:
    return _in_dev(executorname="worker", **more)


def _nothing(world: World) -> dict[str, Any]:
    return {}


_PEER = {"peer": "f" * 64}
REQUESTS: dict[str, Callable[[World], dict[str, Any]]] = {
    "versionmsg": _nothing,
    "getserverinfomsg": _nothing,
    "getstatisticsmsg": _nothing,
    "getclustermsg": _nothing,
    "changeserveridmsg": lambda world: {"serverid": world.ids["server"]},
    "addcolonymsg": lambda w: {"colony": {"colonyid": w.identity(), "name": w.name("col")}},
    "removecolonymsg": lambda world: {"colonyname": world.the("colony")["name"]},
    "getcoloniesmsg": _nothing,
    "getcolonymsg": _in_dev(),
    "getcolonystatsmsg": _in_dev(),
    "changecolonyidmsg": _in_dev(colonyid=SHA),
    "addusermsg": lambda w: {"user": {**IN_DEV, "name": w.name("u"), "userid": w.identity()}},
    "removeusermsg": _named("member", "name"),
    "getusersmsg": _in_dev(),
    "getusermsg": _named("member", "name"),
    "getuserbyidmsg": _named("member", "userid"),
    "changeuseridmsg": _named("member", "userid"),
    "addlocationmsg": lambda world: {"location": {**IN_DEV, "name": world.name("l")}},
    "removelocationmsg": _named("location", "name"),
    "getlocationsmsg": _in_dev(),
    "getlocationmsg": _named("location", "name"),
    "addexecutormsg": lambda world: {"executor": world.an_executor()},
    "approveexecutormsg": _named("executor", "executorname"),
    "rejectexecutormsg": _named("executor", "executorname"),
    "removeexecutormsg": _named("executor", "executorname"),
    "getexecutorsmsg": _in_dev(),
    "getexecutormsg": _named("executor", "executorname"),
    "getexecutorbyidmsg": _named("executor", "executorid"),
    "updateexecutormsg": _self(capabilities={"software": [{"name": "x"}]}),
    "reportallocationmsg": _self(allocations={"projects": {"p": {"usedcpu": 1}}}),
    "changeexecutoridmsg": _named("executor", "executorid"),
    "addfunctionmsg": lambda w: {"fun": _self(funcname=w.name("f"))(w)},
    "removefunctionmsg": _of("function", "functionid"),
    "getfunctionsmsg": _in_dev(),
    "submitfuncspecmsg": lambda world: {"spec": world.spec()},
    "assignprocessmsg": lambda w: {**IN_DEV, "timeout": -1} if w.the("waiting") else {},
    "getprocessmsg": _of("running", "processid"),
    "getprocessesmsg": _in_dev(count=10, state=0),
    "getprocesshistmsg": _in_dev(seconds=3600, state=0),
    "setoutputmsg": _of("running", "processid", out=["x"]),
    "closesuccessfulmsg": _of("running", "processid", out=["x"]),
    "closefailedmsg": _of("running", "processid", errors=["x"]),
    "cancelprocessmsg": _of("waiting", "processid"),
    "removeprocessmsg": _of("waiting", "processid"),
    "removeallprocessesmsg": _in_dev(state=-1),
    "pauseassignmentsmsg": _in_dev(),
    "resumeassignmentsmsg": _in_dev(),
    "getpausestatusmsg": _in_dev(),
    "addattributemsg": lambda w: {
        "attribute": {"targetid": w.the("running")["processid"], "key": w.name("k"), "value": "v"}
    },
    "getattributemsg": _of("attribute", "attributeid"),
    "addlogmsg": _of("running", "processid", message="m"),
    "addexecutorlogmsg": _self(message="m"),
    "getlogsmsg": _in_dev(executorname="worker", count=10),
    "searchlogsmsg": _in_dev(text="m", days=1, count=10),
    "submitworkflowspecmsg": lambda world: {"spec": world.workflow()},
    "getprocessgraphmsg": _of("graph", "processgraphid"),
    "getprocessgraphsmsg": _in_dev(count=10, state=0),
    "addchildmsg": lambda w: {
        "processgraphid": w.the("node")["processgraphid"],
        "parentprocessid": w.the("node")["processid"],
        "childprocessid": "",
        "spec": w.spec(nodename=w.name("n")),
        "insert": False,
    },
    "cancelprocessgraphmsg": _of("graph", "processgraphid"),
    "removeprocessgraphmsg": _of("graph", "processgraphid"),
    "removeallprocessgraphsmsg": _in_dev(state=-1),
    "addcronmsg": lambda w: {
        "cron": {
            **IN_DEV,
            "name": w.name("c"),
            "interval": 10**6,
            "workflowspec": json.dumps(w.workflow()),
        }
    },
    "getcronmsg": _of("cron", "cronid"),
    "getcronsmsg": _in_dev(count=10),
    "runcronmsg": _of("cron", "cronid"),
    "removecronmsg": _of("cron", "cronid"),
    "addgeneratormsg": lambda w: {
        "generator": {
            **IN_DEV,
            "name": w.name("g"),
            "trigger": 10,
            "workflowspec": json.dumps(w.workflow()),
        }
    },
    "getgeneratormsg": _of("generator", "generatorid"),
    "resolvegeneratormsg": lambda w: {**IN_DEV, "generatorname": w.the("generator")["name"]},
    "getgeneratorsmsg": _in_dev(count=10),
    "packgeneratormsg": _of("generator", "generatorid", arg="x"),
    "removegeneratormsg": _of("generator", "generatorid"),
    "addfilemsg": lambda w: {
        "file": {**IN_DEV, "label": "/l", "name": w.name("f"), "checksum": SHA, "size": 1}
    },
    "getfilemsg": _named("file", "fileid"),
    "getfilesmsg": _in_dev(label="/l"),
    "getfilelabelsmsg": _in_dev(),
    "removefilemsg": _named("file", "fileid"),
    "createsnapshotmsg": lambda w: {**IN_DEV, "label": "/l", "name": w.name("s")},
    "getsnapshotmsg": _named("snapshot", "snapshotid"),
    "getsnapshotsmsg": _in_dev(),
    "removesnapshotmsg": _named("snapshot", "snapshotid"),
    "removeallsnapshotmsg": _in_dev(),
    "channelappendmsg": _of("running", "processid", name="chat", sequence=2, payload="YQ=="),
    "channelreadmsg": _of("running", "processid", name="chat"),
    "addblueprintdefinitionmsg": lambda w: {"blueprintdefinition": w.a_definition()},
    "getblueprintdefinitionmsg": lambda w: {
        **IN_DEV,
        "name": w.the("definition")["metadata"]["name"],
    },
    "getblueprintdefinitionsmsg": _in_dev(),
    "removeblueprintdefinitionmsg": _meta("definition"),
    "addblueprintmsg": lambda w: {"blueprint": w.a_blueprint()},
    "getblueprintmsg": _meta("blueprint"),
    "getblueprintsmsg": lambda world: {"namespace": "dev"},
    "updateblueprintmsg": lambda w: {"blueprint": {**w.the("blueprint"), "spec": {"a": 2}}},
    "removeblueprintmsg": _meta("blueprint"),
    "updateblueprintstatusmsg": lambda w: {
        **IN_DEV,
        "blueprintname": w.the("blueprint")["metadata"]["name"],
        "status": {"ok": 1},
    },
    "reconcileblueprintmsg": _meta("blueprint", force=True),
    "getblueprinthistorymsg": _of("blueprint", "blueprintid"),
    "subscribeprocessmsg": _of("waiting", "processid", state=0, timeout=0),
    "subscribeprocessesmsg": _in_dev(executortype="cli", state=0, timeout=0),
    "subscribechannelmsg": _of("running", "processid", name="chat", timeout=1),
    "getnodestatusmsg": _nothing,
    "getwaitingmsg": _of("running", "processid"),
    "fileticketmsg": _in_dev(method="PUT", checksum=SHA, size=1),
    "getpeersmsg": _nothing,
    "getpeermsg": lambda world: _PEER,
    "trustpeermsg": lambda world: _PEER,
    "setpeerpolicymsg": lambda world: {**_PEER, "default": True},
    "blockpeermsg": lambda world: _PEER,
    "forgetpeermsg": lambda world: _PEER,
    "namepeermsg": lambda world: {**_PEER, "name": "lab"},
    "getpetnamesmsg": _nothing,
    "getcardmsg": _nothing,
    "opencardmsg": lambda world: {"link": "colony:A"},
    "invitepeermsg": lambda world: {"addresses": ["127.0.0.1:1"]},
    "getinvitationsmsg": _nothing,
    "revokeinvitationmsg": lambda world: {"invitation": "0" * 16},
    "joinpeermsg": lambda world: {"token": "x"},
    "pingpeermsg": lambda world: _PEER,
    "getforwardmsg": _of("waiting", "processid"),
    "getoriginmsg": _of("waiting", "processid"),
    "resolveprocessmsg": _of("waiting", "processid", decision="failed"),
    "rotatekeymsg": _nothing,
    "getclockmsg": _nothing,
    "resetclockmsg": _nothing,
    "getroutesmsg": _nothing,
    "explainroutemsg": lambda world: {"spec": world.spec()},
}

# What an allowed call answers where its request, though right, comes to nothing: there is no peer,
# no forward, no invitation; an id is taken; the home colony's id stays.
NOT_DONE = {
    "changecolonyidmsg": {409},
    "changeuseridmsg": {409},
    "changeexecutoridmsg": {409},
    "getpeermsg": {404},
    "trustpeermsg": {404},
    "setpeerpolicymsg": {404},
    "blockpeermsg": {404, 400},
    "forgetpeermsg": {404},
    "opencardmsg": {400},
    "revokeinvitationmsg": {404},
    "joinpeermsg": {400},
    "pingpeermsg": {404},
    "getforwardmsg": {404},
    "getoriginmsg": {404},
    "resolveprocessmsg": {404, 409, 400},
}

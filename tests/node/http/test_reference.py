"""The table of calls against upstream's list of payload types, and the documentation made of it."""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec
from click.testing import CliRunner

from cli.main import main
from cli.ops.rpc import all_calls
from federation.service.rpc import calls as federation_calls
from node.daemon import pubsub
from node.daemon.reference import NOT_CALLED, describe, fields_of, markdown, objects
from node.rpc.calls import Call, Caller, Who
from tests.node.http.support import OVER_SOCKET
from tests.support.daemons import REPOSITORY

# Every payload type of upstream that is called over POST /api.
POSTED = frozenset(
    """
    versionmsg getserverinfomsg getstatisticsmsg getclustermsg changeuseridmsg
    changeexecutoridmsg changecolonyidmsg changeserveridmsg addcolonymsg removecolonymsg
    getcoloniesmsg getcolonymsg getcolonystatsmsg addusermsg removeusermsg getusersmsg
    getusermsg getuserbyidmsg addlocationmsg removelocationmsg getlocationsmsg getlocationmsg
    addexecutormsg approveexecutormsg rejectexecutormsg removeexecutormsg getexecutorsmsg
    getexecutormsg getexecutorbyidmsg updateexecutormsg reportallocationmsg addfunctionmsg
    removefunctionmsg getfunctionsmsg submitfuncspecmsg assignprocessmsg getprocessmsg
    getprocessesmsg getprocesshistmsg setoutputmsg closesuccessfulmsg closefailedmsg
    cancelprocessmsg removeprocessmsg removeallprocessesmsg pauseassignmentsmsg
    resumeassignmentsmsg getpausestatusmsg addattributemsg getattributemsg addlogmsg
    addexecutorlogmsg getlogsmsg searchlogsmsg submitworkflowspecmsg getprocessgraphmsg
    getprocessgraphsmsg addchildmsg cancelprocessgraphmsg removeprocessgraphmsg
    removeallprocessgraphsmsg addcronmsg getcronmsg getcronsmsg runcronmsg removecronmsg
    addgeneratormsg getgeneratormsg resolvegeneratormsg getgeneratorsmsg packgeneratormsg
    removegeneratormsg addfilemsg getfilemsg getfilesmsg getfilelabelsmsg removefilemsg
    createsnapshotmsg getsnapshotmsg getsnapshotsmsg removesnapshotmsg removeallsnapshotmsg
    channelappendmsg channelreadmsg addblueprintdefinitionmsg getblueprintdefinitionmsg
    getblueprintdefinitionsmsg removeblueprintdefinitionmsg addblueprintmsg getblueprintmsg
    getblueprintsmsg updateblueprintmsg removeblueprintmsg updateblueprintstatusmsg
    reconcileblueprintmsg getblueprinthistorymsg
    """.split()  # noqa: SIM905
)
# Declared by upstream, never callable: types of replies, and calls without a handler.
REPLIES = frozenset({"pausestatusreplymsg", "error"})
WITHOUT_HANDLER = frozenset({"getnodemsg", "getnodesmsg", "getnodesbylocationmsg"})
OURS = frozenset({"getnodestatusmsg", "getwaitingmsg", "fileticketmsg"})


def _types(calls: list[Call[Any]]) -> set[str]:
    return {call.payloadtype for call in calls}


def test_every_call_of_upstream_is_in_the_table_and_only_ours_are_extra() -> None:
    assert len(POSTED) == 96
    every = all_calls()
    found = _types(every)
    assert len(found) == len(every), "a payload type is there twice"
    assert POSTED - found == set()
    assert _types(pubsub.calls.of(cast(Any, None))) == OVER_SOCKET
    ours = found - POSTED - OVER_SOCKET
    assert ours == OURS | _types(federation_calls(None))  # type: ignore[arg-type]
    assert set(NOT_CALLED) == REPLIES | WITHOUT_HANDLER
    assert not found & set(NOT_CALLED)


def test_every_call_has_its_line_and_every_line_its_call() -> None:
    assert {row.payloadtype for row in describe(all_calls())} == _types(all_calls())
    assert all(row.section and row.about and row.reply and row.who for row in describe(all_calls()))
    # What the handler decides must be said in words.
    vague = [row.payloadtype for row in describe(all_calls()) if row.who == Who.SIGNED.value]
    assert vague == []


def test_the_documentation_is_up_to_date() -> None:
    written = (REPOSITORY / "docs/protocol.md").read_text("utf-8")
    assert written == markdown(all_calls()), "colony rpc ls --markdown > docs/protocol.md"


def test_rpc_ls() -> None:
    plain = CliRunner().invoke(main, ["rpc", "ls"], catch_exceptions=False)
    assert plain.exit_code == 0
    assert "submitfuncspecmsg" in plain.stdout
    rows = json.loads(CliRunner().invoke(main, ["rpc", "ls", "--json"]).stdout)
    assign = next(row for row in rows if row["payloadtype"] == "assignprocessmsg")
    assert assign["fields"]["timeout"] == "int"
    assert "timeout" in assign["optional"]
    assert "colonyname" not in assign["optional"]


class Inner(msgspec.Struct):
    again: Inner | None = None


class Request(msgspec.Struct):
    texts: list[str]
    numbers: dict[str, int]
    either: str | list[int] | None = None
    inner: Inner | None = None
    free: Any = None


def test_types_in_words() -> None:
    told = {field.name: (field.type, field.optional) for field in fields_of(Request)}
    assert told == {
        "texts": ("string[]", False),
        "numbers": ("{string: int}", False),
        "either": ("string or int[]", True),
        "inner": ("Inner", True),
        "free": ("any", True),
    }

    async def handler(caller: Caller, request: Request) -> None: ...

    # An object that holds its own kind ends, too.
    assert list(objects([Call("x", Request, Who.SIGNED, handler)])) == ["Inner"]

"""Whatever is accepted comes back in upstream's types, which every strict client reads.

The decoder is `support.upstream`'s and knows nothing of ours; what is sent is full objects with
poison.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError
from federation.forward.attachments import needs_files
from federation.forward.updates import output_of
from federation.inbox.accept import parse_input, parse_spec
from federation.outbox.outcomes import read_output
from federation.service.rpc_forwards import late_output
from federation.wire.envelope import Kind, Rejected
from federation.wire.messages import Submit
from federation.wire.refusals import Refusal
from node.etcd.client import open_client
from node.handlers.blueprints import AddDefinition, defined, wire_definition
from node.model.codec import pack, unpack, wire_executor, wire_function, wire_process
from node.model.types import Executor, Function, FunctionSpec, Process
from node.processes.spec import build_process
from node.rpc import requests as req
from node.rpc.dispatch import parse_payload
from node.store.blueprints import Definition
from node.workflows.spec import readable
from tests.federation.inbox.support import Lab, code
from tests.node.etcd.support import start_store
from tests.sdk.samples import ID, definition, executor, spec, workflow
from tests.support.poison import dumps, poisoned, raw
from tests.support.upstream import example, problem


def received(payloadtype: str, fields: Any, kind: type[Any]) -> Any:
    """What a handler would get. Raises Invalid or msgspec.ValidationError."""
    text = dumps({"msgtype": payloadtype, **fields})
    return msgspec.convert(parse_payload(base64.b64encode(text.encode()).decode()), kind)


REFUSALS = (RpcError, msgspec.ValidationError, Refusal, Rejected)


def kept(value: Any, kind: type[Any]) -> Any:
    """What is there after a start of the daemon."""
    return unpack(pack(value), kind)


def process_of(given_spec: FunctionSpec) -> Process:
    return build_process(
        given_spec, processid=ID, initiatorid=ID, initiatorname="a", colonyname="dev", now=1
    )


def shown(value: Any, kind: str) -> None:
    """A strict client must read what is sent for a value."""
    text = msgspec.json.encode(value)
    assert not problem(text, kind), text


# -- without a store -----------------------------------------------------------------------------


@given(poisoned({"spec": spec()}))
def test_a_spec_that_is_taken_is_read_by_strict_clients(asked: Any) -> None:
    try:
        process = process_of(received("submitfuncspecmsg", asked, req.SubmitProcess).spec)
    except REFUSALS:
        return
    shown(wire_process(kept(process, Process)), "Process")


@given(poisoned(spec()), poisoned([1, "x", {"a": [2.5, None]}]))
def test_what_a_peer_sends_is_read_by_strict_clients(asked: Any, told: Any) -> None:
    text = dumps(told).encode()
    for read in (parse_input, output_of, read_output):
        try:
            found = read(text)
        except REFUSALS:
            continue
        shown(found, "[]any")
    try:
        process = process_of(parse_spec(dumps(asked).encode()))
        needs_files(process.spec.fs)
    except REFUSALS:
        return
    shown(wire_process(kept(process, Process)), "Process")


@given(poisoned({"executor": executor()}))
def test_an_executor_that_is_taken_is_read_by_strict_clients(asked: Any) -> None:
    try:
        new = received("addexecutormsg", asked, req.AddExecutor).executor
    except REFUSALS:
        return
    added = msgspec.convert(msgspec.to_builtins(new), Executor)
    shown(wire_executor(kept(added, Executor)), "Executor")


@given(poisoned({"fun": example("Function")}))
def test_a_function_that_is_taken_is_read_by_strict_clients(asked: Any) -> None:
    try:
        new = received("addfunctionmsg", asked, req.AddFunction).fun
    except REFUSALS:
        return
    added = msgspec.convert(msgspec.to_builtins(new), Function)
    shown(wire_function(kept(added, Function)), "Function")


@given(poisoned({"blueprintdefinition": definition()}))
def test_a_schema_that_is_taken_is_read_by_strict_clients(asked: Any) -> None:
    try:
        request = received("addblueprintdefinitionmsg", asked, AddDefinition)
        new = defined(request.blueprintdefinition)
    except REFUSALS:
        return
    shown(wire_definition(kept(new, Definition)), "BlueprintDefinition")


@given(st.one_of(poisoned(workflow()), poisoned(workflow()["functionspecs"])))
def test_a_workflow_kept_as_text_is_read_by_strict_clients(asked: Any) -> None:
    try:
        text = readable(dumps(asked), "dev", "spec")
    except REFUSALS:
        return
    assert not problem(text, "WorkflowSpec", whole=False), text


SPECS: list[Any] = [
    {"fs": 5},
    {"fs": "x"},
    {"fs": []},
    {"fs": {"mount": 7}},
    {"fs": {"dirs": ["a"]}},
    {"fs": {"snapshots": [{"keepfiles": 1}]}},
    {"conditions": example("Conditions") | {"nodes": 2**63}},
    {"conditions": example("Conditions") | {"walltime": -(2**63) - 1}},
    {"conditions": example("Conditions") | {"gpu": {"count": 2**64}}},
    {"args": [raw("1" + "0" * 309)]},
    {"kwargs": {"a": [raw("1e999")]}},
    {"env": {"a": 1}},
]


@pytest.mark.parametrize("wrong", SPECS, ids=json.dumps)
def test_a_spec_that_upstream_refuses_is_refused(wrong: Any) -> None:
    with pytest.raises(REFUSALS):
        received("submitfuncspecmsg", {"spec": spec(**wrong)}, req.SubmitProcess)
    with pytest.raises(REFUSALS):
        parse_spec(dumps(spec(**wrong)).encode())
    with pytest.raises(REFUSALS):
        readable(dumps(workflow(spec(nodename="one", **wrong))), "dev", "spec")


@pytest.mark.parametrize(
    "wrong",
    [
        {"capabilities": {"hardware": example("Hardware")}},
        {"capabilities": {"hardware": [example("Hardware") | {"cores": 2**63}]}},
        {"capabilities": {"hardware": [example("Hardware") | {"network": "x"}]}},
        {"capabilities": {"software": [{"version": 2}]}},
        {"allocations": {"projects": {"p": {"usedcpu": 1.5}}}},
        {"allocations": {"projects": []}},
        {"blueprintgen": 2**63},
    ],
    ids=json.dumps,
)
def test_an_executor_that_upstream_refuses_is_refused(wrong: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        received("addexecutormsg", {"executor": executor(**wrong)}, req.AddExecutor)


@pytest.mark.parametrize("args", [["x"], {}, [{"required": "yes"}], [{"enum": [1]}]])
def test_a_function_that_upstream_refuses_is_refused(args: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        received("addfunctionmsg", {"fun": example("Function") | {"args": args}}, req.AddFunction)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": ["string", "null"]}, ".type"),
        ({"properties": {"a": True}}, ".properties"),
        ({"properties": {"a": {"description": 5}}}, ".properties.a.description"),
        ({"properties": {"a": {"items": {"type": ["null"]}}}}, ".properties.a.items.type"),
        ({"properties": {"a": {"items": True}}}, ".properties.a.items"),
        ({"properties": {"a": {"enum": 5}}}, ".properties.a.enum"),
        ({"required": ["a", 5]}, ".required"),
        ({"Type": 5}, ".Type"),
        ({"propertieſ": 5}, ".propertieſ"),
    ],
    ids=str,
)
def test_a_schema_that_upstream_refuses_is_refused(schema: Any, path: str) -> None:
    sent = definition()
    sent["spec"]["schema"] = schema
    asked = received("addblueprintdefinitionmsg", {"blueprintdefinition": sent}, AddDefinition)
    with pytest.raises(RpcError) as refusal:
        defined(asked.blueprintdefinition)
    assert refusal.value.status == 400
    assert f"blueprintdefinition.spec.schema{path}: must be" in refusal.value.message


def test_keywords_that_upstream_does_not_have_stay() -> None:
    sent = definition()
    more = {"minimum": 5, "anyOf": [{"type": ["null"]}], "additionalProperties": False}
    sent["spec"]["schema"]["properties"]["a"] |= more
    asked = received("addblueprintdefinitionmsg", {"blueprintdefinition": sent}, AddDefinition)
    shown_schema = wire_definition(defined(asked.blueprintdefinition))["spec"]["schema"]
    assert shown_schema == sent["spec"]["schema"]


def test_a_partial_object_is_filled_and_no_list_is_null() -> None:
    sparse = spec(fs={"dirs": [{"label": "/a", "onconflicts": None}], "snapshots": None})
    asked = received("submitfuncspecmsg", {"spec": sparse}, req.SubmitProcess)
    fs = wire_process(process_of(asked.spec))["spec"]["fs"]
    mount = {"label": "/a", "dir": "", "keepfiles": False}
    sides = {"onstart": {"keeplocal": False}, "onclose": {"keeplocal": False}}
    assert fs == {"mount": "", "snapshots": [], "dirs": [mount | {"onconflicts": sides}]}
    bare = {"hardware": [{"gpu": None}], "software": None}
    new = executor(capabilities=bare, allocations=None)
    added = received("addexecutormsg", {"executor": new}, req.AddExecutor).executor
    value = wire_executor(msgspec.convert(msgspec.to_builtins(added), Executor))
    shown(value, "Executor")
    assert value["capabilities"]["software"] == []
    assert value["allocations"] == {"projects": {}}


def test_a_workflow_that_all_read_alike_is_kept_byte_for_byte() -> None:
    text = json.dumps(workflow(), indent=3)
    assert readable(text, "dev", "spec") == text
    bare = json.dumps(workflow()["functionspecs"])
    assert json.loads(readable(bare, "dev", "spec"))["colonyname"] == "dev"


@pytest.mark.parametrize(
    "doubtful",
    [
        '{"functionspecs":[{"nodename":"a","FuncName":5,"conditions":{"executortype":"t"}}]}',
        '{"functionspecs":5,"functionspecs":[{"nodename":"a","conditions":{"executortype":"t"}}]}',
        '[{"nodename":"a","fſ":5,"conditions":{"executortype":"t"}}]',
    ],
)
def test_a_workflow_that_go_reads_otherwise_is_kept_as_we_read_it(doubtful: str) -> None:
    assert problem(doubtful, "WorkflowSpec", whole=False)
    text = readable(doubtful, "dev", "spec")
    assert not problem(text, "WorkflowSpec"), text
    assert json.loads(text)["functionspecs"][0]["nodename"] == "a"


def test_a_workflow_nested_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RpcError, match="nested deeper"):
        readable(json.dumps(workflow(spec(nodename="one", args=[deep]))), "dev", "spec")


HUGE = "[" + "9" * 309 + "]"


def test_a_number_that_no_float_holds_is_refused_wherever_it_comes_from() -> None:
    """Free data is a 64-bit float to Go: beyond it a whole listing is unreadable."""
    for read in (parse_input, output_of, read_output):
        with pytest.raises(REFUSALS):
            read(HUGE.encode())
    full = spec(nodename="one", args=[raw(HUGE)])
    with pytest.raises(RpcError, match="64-bit float"):
        received("submitfuncspecmsg", {"spec": full}, req.SubmitProcess)
    with pytest.raises(Refusal, match="64-bit float"):
        parse_spec(dumps(full).encode())
    with pytest.raises(RpcError, match="64-bit float"):
        readable(dumps(workflow(full)), "dev", "spec")


@pytest.mark.parametrize(
    "out", [b"\xff", b'["\xed\xa0\x80"]', b"{", HUGE.encode(), b"[" * 99 + b"]" * 99]
)
def test_a_late_outcome_that_nobody_read_is_shown_without_its_output(out: bytes) -> None:
    assert late_output(out) == []
    assert late_output(b"[1]") == [1]


def test_digits_in_a_text_and_numbers_that_a_float_holds_are_fine() -> None:
    fine = ["9" * 5000, raw("1" + "0" * 308), raw("-" + "9" * 300), raw("0." + "1" * 400)]
    got = received("submitfuncspecmsg", {"spec": spec(args=fine)}, req.SubmitProcess).spec.args
    assert (got[0], got[1]) == ("9" * 5000, 10**308)


async def test_a_peer_can_not_store_what_breaks_strict_clients(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        lab = Lab(client)
        await lab.befriend()
        for place, wrong in enumerate(SPECS):
            there = {"conditions": {"colonyname": "lab", "executortype": "t"}} | wrong
            if "conditions" in wrong:
                there["conditions"] = wrong["conditions"] | {"colonyname": "lab", "cpu": ""}
            text = dumps(there).encode()
            sealed = lab.seal(Kind.SUBMIT, Submit(f"{place:064x}", 1, text, "me", 1, []))
            assert code(await lab.raw("submit", sealed)) == "bad_spec", wrong
        assert not lab.processes.queue.entries
        named = {"funcname": "f", "conditions": {"colonyname": "lab", "executortype": "t"}}
        text, told = json.dumps(named).encode(), HUGE.encode()
        sealed = lab.seal(Kind.SUBMIT, Submit("f" * 64, 1, text, "me", 1, [], input=told))
        assert code(await lab.raw("submit", sealed)) == "bad_input"


# -- what an earlier version stored --------------------------------------------------------------


def test_what_was_stored_with_other_types_hides_nothing_else() -> None:
    """A store that was poisoned before these types is read, and shown without the poison."""
    process: Any = msgspec.to_builtins(process_of(msgspec.convert(spec(), FunctionSpec)))
    process["spec"] |= {"fs": {"mount": 7, "dirs": ["a", {"label": "/l"}]}}
    process["spec"]["conditions"] |= {"nodes": 2**63, "gpu": "x"}
    process["attributes"] = [{"targetid": 5}]
    found = unpack(pack(process), Process)
    shown(wire_process(found), "Process")
    assert found.spec.funcname == "text"
    assert [mount.label for mount in (found.spec.fs and found.spec.fs.dirs) or []] == ["/l"]
    worker: Any = {"executorid": ID, "executortype": "t", "executorname": "e", "colonyname": "dev"}
    worker["capabilities"] = {"hardware": {"model": "m"}, "software": [{"name": "n"}, 5]}
    worker["allocations"] = {"projects": {"p": {"usedcpu": 1.5, "usedgpu": 2}, "q": 7}}
    value = wire_executor(unpack(pack(worker), Executor))
    shown(value, "Executor")
    assert value["capabilities"]["software"] == [{"name": "n", "type": "", "version": ""}]
    assert value["allocations"]["projects"]["p"]["usedgpu"] == 2
    offered: Any = {"executorname": "e", "colonyname": "dev", "funcname": "f", "args": ["x"]}
    shown(wire_function(unpack(pack(offered), Function)), "Function")


def test_what_does_not_fit_at_all_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError):
        unpack(pack({"executorid": 5}), Executor)
    with pytest.raises(msgspec.ValidationError):
        unpack(pack(5), Executor)

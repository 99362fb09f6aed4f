"""The requests of upstream's RPC as structs: one for each payload type served here.

`msgtype`, `nonce` and `issuedat` are common to all and read apart.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.model.types import (
    Allocations,
    Attribute,
    Capabilities,
    Colony,
    FunctionArg,
    FunctionSpec,
    Int64,
    User,
)


class Empty(msgspec.Struct):
    """No fields."""


class AddColony(msgspec.Struct):
    colony: Colony


class ColonyOnly(msgspec.Struct):
    colonyname: str


class AddUser(msgspec.Struct):
    user: User


class MemberNamed(msgspec.Struct):
    colonyname: str
    name: str


class UserById(msgspec.Struct):
    colonyname: str
    userid: str


class NewExecutor(msgspec.Struct):
    """An executor as clients send it; the times in it are ignored."""

    executorid: str
    executortype: str
    executorname: str
    colonyname: str
    requirefuncreg: bool = False
    locationname: str = ""
    capabilities: Capabilities | None = None
    allocations: Allocations | None = None
    blueprintid: str = ""
    blueprintgen: Int64 = 0


class AddExecutor(msgspec.Struct):
    executor: NewExecutor


class ExecutorNamed(msgspec.Struct):
    colonyname: str
    executorname: str


class ExecutorById(msgspec.Struct):
    executorid: str
    colonyname: str = ""


class UpdateExecutor(msgspec.Struct):
    colonyname: str
    executorname: str
    capabilities: Capabilities | None = None


class ReportAllocation(msgspec.Struct):
    colonyname: str
    executorname: str
    allocations: Allocations | None = None


class NewFunction(msgspec.Struct):
    """A function as clients send it; the statistics in it are ignored."""

    executorname: str
    colonyname: str
    funcname: str
    functionid: str = ""
    executortype: str = ""
    description: str = ""
    args: list[FunctionArg] | None = None


class AddFunction(msgspec.Struct):
    fun: NewFunction


class FunctionById(msgspec.Struct):
    functionid: str


class GetFunctions(msgspec.Struct):
    colonyname: str
    executorname: str = ""


class SubmitProcess(msgspec.Struct):
    spec: FunctionSpec


class Assign(msgspec.Struct):
    colonyname: str
    timeout: Int64 = 0
    availablecpu: str = ""
    availablemem: str = ""


class ProcessById(msgspec.Struct):
    processid: str


class GetProcesses(msgspec.Struct):
    colonyname: str
    count: Int64 = 0
    state: Int64 = 0
    executortype: str = ""
    label: str = ""
    initiator: str = ""
    processgraphid: str = ""


class GetProcessHistory(msgspec.Struct):
    colonyname: str
    executorid: str = ""
    seconds: Int64 = 0
    state: Int64 = 0


class SubscribeProcess(msgspec.Struct):
    """`colonyname` and `executortype` are sent and not needed: the id is enough."""

    processid: str
    state: Int64 = 0
    timeout: Int64 = 0


class SubscribeProcesses(msgspec.Struct):
    colonyname: str = ""
    executortype: str = ""
    state: Int64 = 0
    timeout: Int64 = 0


class Output(msgspec.Struct):
    processid: str
    out: list[Any] | None = None


class CloseFailed(msgspec.Struct):
    processid: str
    errors: list[str] = msgspec.field(default_factory=list)


class RemoveAll(msgspec.Struct):
    colonyname: str
    state: Int64 = 0


class AddAttribute(msgspec.Struct):
    attribute: Attribute


class AttributeById(msgspec.Struct):
    attributeid: str


class AddLog(msgspec.Struct):
    processid: str
    message: str


class AddExecutorLog(msgspec.Struct):
    colonyname: str
    executorname: str
    message: str


class GetLogs(msgspec.Struct):
    colonyname: str
    processid: str = ""
    executorname: str = ""
    count: Int64 = 0
    since: Int64 = 0
    latest: bool = False

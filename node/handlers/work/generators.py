"""Calls about generators."""

from __future__ import annotations

from typing import Any

import msgspec

from colonyd.errors import Invalid, NotFound
from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.model.codec import wire_time
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.calls import MINE, Caller, Calls, Who, every
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.directory import name_of
from node.store.generators import Generator
from node.tasks.offload import apart
from node.timers.trigger import CHECKER_PERIOD
from node.workflows.spec import readable


class NewGenerator(msgspec.Struct):
    """A generator as clients send it; its times, its queue and its creator are set here."""

    colonyname: str
    name: str = ""
    workflowspec: str = ""
    trigger: Int64 = 0
    timeout: Int64 = 0


class AddGenerator(msgspec.Struct):
    generator: NewGenerator


class GeneratorById(msgspec.Struct):
    generatorid: str


class ResolveGenerator(msgspec.Struct):
    colonyname: str
    generatorname: str


class GetGenerators(msgspec.Struct):
    colonyname: str
    count: Int64 = 0


class PackGenerator(msgspec.Struct):
    generatorid: str
    arg: str = ""


def wire_generator(generator: Generator, workflowspec: str) -> dict[str, Any]:
    """Return a generator as upstream's SDKs expect it, ready for JSON."""
    return {
        "generatorid": generator.generatorid,
        "initiatorid": generator.initiatorid,
        "initiatorname": generator.initiatorname,
        "colonyname": generator.colonyname,
        "name": generator.name,
        "workflowspec": workflowspec,
        "trigger": generator.trigger,
        "timeout": generator.timeout,
        "firstpack": wire_time(generator.firstpack),
        "lastrun": wire_time(generator.lastrun),
        "queuesize": generator.queuesize,
        "checkerperiod": CHECKER_PERIOD,
    }


calls: Calls[Node] = Calls("Generators")


async def wire(node: Node, generator: Generator) -> dict[str, Any]:
    return wire_generator(generator, await node.generators.spec(generator))


async def locate(node: Node, caller: Caller, generatorid: str) -> Generator:
    """Return a generator in one of the caller's colonies; one of another colony is not found."""
    load = node.generators.load
    known = await node.directory.seek(
        caller.id, lambda colony: load(colony, generatorid), "generatorid", generatorid
    )
    return known[0]


@calls.row(
    "addgeneratormsg",
    AddGenerator,
    Who.MEMBER,
    reply="Generator",
    colony="generator.colonyname",
    once=Once.RESUMED,
)
async def add(node: Node, caller: Caller, request: AddGenerator) -> dict[str, Any]:
    """Start a workflow for so many arguments.

    It also starts once an argument has waited long enough.
    """
    assert caller.member is not None
    asked = request.generator
    text, place = asked.workflowspec, "generator.workflowspec"
    workflow = await apart(len(text), readable, text, asked.colonyname, place)
    generator = Generator(
        generatorid=id_for(caller.id, caller.nonce),
        colonyname=asked.colonyname,
        name=asked.name,
        initiatorid=caller.id,
        initiatorname=name_of(caller.member),
        trigger=asked.trigger,
        timeout=asked.timeout,
    )
    added = await node.generators.add(generator, workflow)
    return wire_generator(added, workflow)


@calls.row("getgeneratormsg", GeneratorById, Who.SIGNED, reply="Generator", rights=MINE)
async def get(node: Node, caller: Caller, request: GeneratorById) -> dict[str, Any]:
    """Show a generator by id, with its waiting arguments."""
    return await wire(node, await locate(node, caller, request.generatorid))


@calls.row(
    "resolvegeneratormsg",
    ResolveGenerator,
    Who.MEMBER,
    reply="Generator",
    need=Need.FREES,
    reads=True,
)
async def resolve(node: Node, caller: Caller, request: ResolveGenerator) -> dict[str, Any]:
    """Show a generator by name."""
    found = await node.generators.find(request.colonyname, request.generatorname)
    if found is None:
        raise NotFound(f"generatorname: no generator {request.generatorname[:80]!r}")
    return await wire(node, found)


@calls.row("getgeneratorsmsg", GetGenerators, Who.MEMBER, reply="Generator[]", heavy=every)
async def get_many(node: Node, caller: Caller, request: GetGenerators) -> Rows:
    """List the generators."""
    if request.count < 0:
        raise Invalid("count: 0 or more")
    found = node.generators.listing(request.colonyname, request.count)
    return each(node.generators.with_specs(found), lambda pair: wire_generator(*pair))


@calls.row("packgeneratormsg", PackGenerator, Who.SIGNED, rights=MINE, once=Once.RESUMED)
async def pack(node: Node, caller: Caller, request: PackGenerator) -> None:
    """Add an argument to a generator."""
    colonies = node.directory.colonies_of(caller.id)
    if len(colonies) != 1:
        colonies = [(await locate(node, caller, request.generatorid)).colonyname]
    token = id_for(caller.id, caller.nonce) if caller.nonce else ""
    await node.generators.pack(colonies[0], request.generatorid, request.arg, token)


@calls.row("removegeneratormsg", GeneratorById, Who.SIGNED, rights=MINE, need=Need.FREES)
async def remove(node: Node, caller: Caller, request: GeneratorById) -> None:
    """Remove a generator and its waiting arguments.

    Workflows that it started stay.
    """
    generator = await locate(node, caller, request.generatorid)
    await node.generators.remove(generator.colonyname, generator.generatorid)

"""Calls about generators."""

from __future__ import annotations

from typing import Any

import msgspec

from node.etcd.pages import Rows, each
from node.etcd.pressure import Need
from node.host.offload import apart
from node.model.codec import wire_time
from node.model.errors import bad, missing
from node.model.types import Int64
from node.processes.spec import id_for
from node.rpc.dispatch import Call, Caller, Who, many
from node.rpc.replay import Once
from node.runtime.node import Node
from node.store.directory import name_of
from node.store.generators import Generator
from node.timers.trigger import CHECKER_PERIOD
from node.workflows.spec import readable


class NewGenerator(msgspec.Struct):
    """A generator as clients send it; its times, its queue and its creator are ours to say."""

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


def calls(node: Node) -> list[Call[Any]]:
    """The rows of the table for generators."""
    generators = node.generators

    async def wire(generator: Generator) -> dict[str, Any]:
        return wire_generator(generator, await generators.spec(generator))

    async def locate(caller: Caller, generatorid: str) -> Generator:
        """A generator in one of the caller's colonies: others' can't be told from nothing."""
        known = await node.directory.seek(
            caller.id, lambda colony: generators.load(colony, generatorid)
        )
        if known is not None:
            return known[0]
        raise missing(f"generatorid: no generator {generatorid[:80]!r} in the caller's colonies")

    async def add(caller: Caller, request: AddGenerator) -> dict[str, Any]:
        """Start a workflow whenever so many arguments are packed, or some waited long enough."""
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
        added = await generators.add(generator, workflow)
        return wire_generator(added, workflow)

    async def get(caller: Caller, request: GeneratorById) -> dict[str, Any]:
        """One generator, with the size of its queue."""
        return await wire(await locate(caller, request.generatorid))

    async def resolve(caller: Caller, request: ResolveGenerator) -> dict[str, Any]:
        """The generator with a name."""
        found = await generators.find(request.colonyname, request.generatorname)
        if found is None:
            raise missing(f"generatorname: no generator {request.generatorname[:80]!r}")
        return await wire(found)

    async def get_many(caller: Caller, request: GetGenerators) -> Rows:
        """The generators of a colony, by name."""
        if request.count < 0:
            raise bad("count: 0 or more")
        found = await generators.listing(request.colonyname, request.count)
        return each(generators.with_specs(found), lambda pair: wire_generator(*pair))

    async def pack(caller: Caller, request: PackGenerator) -> None:
        """Add an argument to the queue of a generator."""
        colonies = node.directory.colonies_of(caller.id)
        if len(colonies) != 1:
            colonies = [(await locate(caller, request.generatorid)).colonyname]
        token = id_for(caller.id, caller.nonce) if caller.nonce else ""
        await generators.pack(colonies[0], request.generatorid, request.arg, token)

    async def remove(caller: Caller, request: GeneratorById) -> None:
        """Remove a generator and its queue; what it started stays."""
        generator = await locate(caller, request.generatorid)
        await generators.remove(generator.colonyname, generator.generatorid)

    def of(request: Any) -> str:
        return str(request.colonyname)

    return [
        Call(
            "addgeneratormsg",
            AddGenerator,
            Who.MEMBER,
            add,
            lambda request: request.generator.colonyname,
            Once.RESUMED,
        ),
        Call("getgeneratormsg", GeneratorById, Who.SIGNED, get),
        Call("resolvegeneratormsg", ResolveGenerator, Who.MEMBER, resolve, of, need=Need.FREES),
        Call("getgeneratorsmsg", GetGenerators, Who.MEMBER, get_many, of, heavy=many),
        Call("packgeneratormsg", PackGenerator, Who.SIGNED, pack, None, Once.RESUMED),
        Call("removegeneratormsg", GeneratorById, Who.SIGNED, remove, need=Need.FREES),
    ]

"""Construction of a process from a function spec: limits, deadlines, priority time, attributes of
env.

Used for a local submission, for one of another colony, and for a node of a workflow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from colonyd.errors import Conflict, Invalid, RpcError
from node.model import graph as graphs
from node.model.ids import MAX_SECONDS, new_id
from node.model.quantities import parse_cpu, parse_memory
from node.model.types import (
    DAY,
    ENV,
    LOWEST_PRIORITY,
    SECOND,
    Attribute,
    FunctionSpec,
    Graph,
    Process,
)
from node.processes.extension import Hooks

MAX_PRIORITY = -LOWEST_PRIORITY
# Together with the other keys of a submission this stays under etcd's 128 operations.
MAX_ENV = 100
_MOST_CHANNELS = 100  # of one process
_CHANNEL_NAME = 200  # characters


def id_for(identity: str, nonce: str) -> str:
    """Return an id for what a request makes: a repeat of a request with a nonce gets the same."""
    if not nonce:
        return new_id()
    return hashlib.sha3_256(f"{identity}/{nonce}".encode()).hexdigest()


def attribute_id(targetid: str, key: str, attributetype: int) -> str:
    """Return the id of an attribute, as upstream derives it."""
    return hashlib.sha3_256(f"{targetid}{key}{attributetype}".encode()).hexdigest()


def check_spec(spec: FunctionSpec) -> None:
    """Raise Invalid naming the field that has no usable value."""
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        raise Invalid(f"spec.priority: between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    for name in ("maxwaittime", "maxexectime", "maxretries"):
        if not -MAX_SECONDS <= getattr(spec, name) <= MAX_SECONDS:
            raise Invalid(f"spec.{name}: at most {MAX_SECONDS}")
    if len(spec.env or {}) > MAX_ENV:
        raise Invalid(f"spec.env: at most {MAX_ENV} entries")
    check_channels(spec.channels or ())
    conditions = spec.conditions
    if not conditions.executortype or "/" in conditions.executortype:
        raise Invalid("spec.conditions.executortype: a name without '/' is needed")
    for name, parse in (("cpu", parse_cpu), ("mem", parse_memory)):
        try:
            parse(getattr(conditions, name))
        except ValueError as error:
            raise Invalid(f"spec.conditions.{name}: {error}") from None


def check_channels(names: Sequence[str]) -> None:
    """Raise Invalid unless `spec.channels` can be served."""
    if len(names) > _MOST_CHANNELS:
        raise Invalid(f"spec.channels: at most {_MOST_CHANNELS} channels")
    for place, name in enumerate(names):
        if not 1 <= len(name) <= _CHANNEL_NAME:
            raise Invalid(f"spec.channels[{place}]: a name has 1 to {_CHANNEL_NAME} characters")
    if len(set(names)) != len(names):
        raise Invalid("spec.channels: the same name twice")


def build_process(
    spec: FunctionSpec,
    *,
    processid: str,
    initiatorid: str,
    initiatorname: str,
    colonyname: str,
    now: int,
    origin: str = "",
    notify: str = "",
    peer: str = "",
    nonce: str = "",
) -> Process:
    """Return the process that a valid spec asks for; `now` in Unix ns. Raises Invalid."""
    check_spec(spec)
    attributes = [
        Attribute(
            targetid=processid,
            key=key,
            value=value,
            attributetype=ENV,
            attributeid=attribute_id(processid, key, ENV),
            targetcolonyname=colonyname,
        )
        for key, value in (spec.env or {}).items()
    ]
    return Process(
        processid=processid,
        initiatorid=initiatorid,
        initiatorname=initiatorname,
        colonyname=colonyname,
        spec=spec,
        prioritytime=now - spec.priority * DAY,
        submissiontime=now,
        waitdeadline=now + spec.maxwaittime * SECOND if spec.maxwaittime > 0 else 0,
        attributes=attributes,
        origin=origin,
        notify=notify,
        peer=peer,
        nonce=nonce,
    )


class StrangeColony(Invalid):
    """A node of a workflow names a colony that is neither here nor a trusted peer."""

    def __init__(self, name: str, field: str, found: str = "") -> None:
        super().__init__(
            f"{field}.conditions.colonyname: {name[:80]!r} is neither here nor a peer that this"
            f" workflow's colony trusts{'; ' if found else ''}{found}"
        )
        self.name, self.field = name, field

    async def explained(self, hooks: Hooks) -> StrangeColony:
        """Return the error with what is known of the colony, or found by a look-up of seconds."""
        return StrangeColony(self.name, self.field, await hooks.stranger(self.name))


def build_node(hooks: Hooks, graph: Graph, place: int, spec: FunctionSpec, field: str) -> Process:
    """Return the node at `place` of a workflow, at home or for the peer that its spec names.

    Raises Invalid and Conflict that begin with `field`.
    """
    name = spec.conditions.colonyname
    peer = ""
    if name and name != graph.colonyname:
        if graph.colonyname == hooks.home:
            peer = hooks.peer_of(name) or ""
        if not peer and (several := hooks.ambiguity(name)):
            raise Conflict(f"{field}.conditions.colonyname: {several}")
        if not peer and hooks.unknown(name):
            raise StrangeColony(name, field)
    if not peer:
        conditions = msgspec.structs.replace(spec.conditions, colonyname=graph.colonyname)
        spec = msgspec.structs.replace(spec, conditions=conditions)
    try:
        node = build_process(
            spec,
            processid=graphs.node_id(graph.processgraphid, place),
            initiatorid=graph.initiatorid,
            initiatorname=graph.initiatorname,
            colonyname=graph.colonyname,
            # Where nothing else decides, nodes are taken in the order in which they are written.
            now=graph.submissiontime + place,
            peer=peer,
        )
    except RpcError as error:
        raise Invalid(error.message.replace("spec", field, 1)) from None
    node.processgraphid = graph.processgraphid
    node.graphindex = place
    for attribute in node.attributes:
        attribute.targetprocessgraphid = graph.processgraphid
    return node

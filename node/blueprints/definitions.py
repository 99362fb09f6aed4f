"""Definitions of blueprints: the kinds that a colony knows, their schemas and their reconcilers.

Blueprints themselves are in `blueprints.service`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec
import trio

from colonyd.errors import Conflict, NotFound
from node.blueprints.rules import check_definition
from node.etcd.client import EtcdClient
from node.etcd.pages import Pages, below, values
from node.model.codec import unpack
from node.model.ids import new_id
from node.processes.quotas import Quotas
from node.store import blueprints as store
from node.store.blueprints import Definition

# Tries of one change, each with fresh values after a lost race. More mean that something is wrong.
_TRIES = 16


@dataclass
class Definitions:
    """The definitions of a node. `now` gives Unix nanoseconds."""

    client: EtcdClient
    now: Callable[[], int]
    quotas: Quotas = field(default_factory=Quotas)
    _removing: trio.Lock = field(default_factory=trio.Lock)

    async def add(self, definition: Definition) -> Definition:
        """Store a new definition. Raises Invalid, NotFound, or Conflict: name or kind is taken."""
        check_definition(definition)
        colony = definition.metadata.colonyname
        count = await self.client.count(store.definitions(colony))
        self.quotas.require("colony_definitions", f"colony {colony!r}", count, "definitions")
        now = self.now()
        definition = msgspec.structs.replace(
            definition,
            blueprintdefinitionid=definition.blueprintdefinitionid or new_id(),
            metadata=msgspec.structs.replace(definition.metadata, createdat=now, updatedat=now),
        )
        meta = definition.metadata
        result = await self.client.commit(store.define(definition))
        if result.succeeded:
            return definition
        kind, name = result.responses
        if name:
            raise Conflict(f"blueprintdefinition.metadata.name: {meta.name!r} exists already")
        if kind:
            other = unpack(kind[0].value, Definition).metadata.name
            raise Conflict(
                f"blueprintdefinition.spec.names.kind: {definition.names.kind!r} is defined by"
                f" {other!r} already"
            )
        raise NotFound(f"colony {meta.colonyname!r} is not hosted here")

    async def get(self, colony: str, name: str) -> Definition:
        """Return the definition with a name. Raises NotFound."""
        kind = await self.client.get(store.definition_name(colony, name))
        if kind is not None:
            found = await self.client.get(store.definition(colony, kind.value.decode()))
            if found is not None:
                return unpack(found.value, Definition)
        raise NotFound(f"name: no blueprint definition {name[:80]!r} in colony {colony}")

    async def listing(self, colony: str) -> Pages[Definition]:
        """Return the definitions of a colony, by name, in pages: each may be large."""
        kinds: list[tuple[str, str]] = []
        async for page in below(self.client, store.definition_name(colony, "")):
            kinds += [(unquote(kv.key.rpartition("/")[2]), kv.value.decode()) for kv in page]
        names = [store.definition(colony, kind) for _, kind in sorted(kinds)]
        async with aclosing(values(self.client, names)) as pages:
            async for page in pages:
                yield [unpack(kv.value, Definition) for kv in page]

    async def remove(self, colony: str, name: str) -> None:
        """Remove a definition. Raises NotFound, or Conflict while there are blueprints of it."""
        async with self._removing:
            for _ in range(_TRIES):
                definition = await self.get(colony, name)
                kind = definition.names.kind
                touched = await self.client.get(store.kind(colony, kind))
                if touched is None:
                    continue
                left = await self.client.count(store.places(colony, kind))
                if left:
                    raise Conflict(
                        f"name: {left} blueprint(s) of kind {kind!r} exist; remove them first"
                    )
                txn = store.undefine(definition, touched.mod_revision)
                if (await self.client.commit(txn)).succeeded:
                    return
        raise Conflict(f"name: {name[:80]!r} changes too fast; try again")

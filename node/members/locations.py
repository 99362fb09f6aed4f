"""Locations: the named places of a colony, which executors and blueprints refer to.

An executor or a spec may name a place that is not listed: the list is for people and blueprints.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from colonyd.errors import Invalid, NotFound
from node.etcd.client import EtcdClient
from node.etcd.txn import Absent, Get, Put, Txn
from node.model.codec import pack, unpack
from node.model.ids import new_id
from node.model.names import check_name
from node.processes.quotas import Quotas
from node.store import locations as store
from node.store.locations import Location


@dataclass
class Locations:
    """The locations of the colonies hosted here; memory holds none of them."""

    client: EtcdClient
    quotas: Quotas = field(default_factory=Quotas)

    async def _create(self, location: Location) -> Location | None:
        """Store a location; return the location that has its name already, or None."""
        check_name(location.name, "location.name")
        location.locationid = location.locationid or new_id()
        key = store.location(location.colonyname, location.name)
        if (found := await self.client.get(key)) is not None:
            return unpack(found.value, Location)
        colony = location.colonyname
        count = await self.client.count(store.locations(colony))
        self.quotas.require("colony_locations", f"colony {colony!r}", count, "locations")
        txn = Txn([Absent(key)], [Put(key, pack(location))], [Get(key)])
        result = await self.client.commit(txn)
        return None if result.succeeded else unpack(result.responses[0][0].value, Location)

    async def add(self, location: Location) -> Location:
        """Store a location. Raises Invalid for a name that is unusable or taken in the colony."""
        if await self._create(location) is not None:
            raise Invalid(f"location.name: {location.name!r} exists already in this colony")
        return location

    async def ensure(self, colony: str, name: str) -> Location:
        """Return the location called `name`, made if it is missing. Raises Invalid for a bad
        name.
        """
        location = Location(name, colony)
        return await self._create(location) or location

    async def get(self, colony: str, name: str) -> Location:
        """Return a location. Raises NotFound when there is none."""
        found = await self.client.get(store.location(colony, name))
        if found is None:
            raise NotFound(f"name: colony {colony} has no location {name[:80]!r}")
        return unpack(found.value, Location)

    async def remove(self, colony: str, name: str) -> None:
        """Remove a location.

        Executors that name it stay unchanged. Raises NotFound when there is none.
        """
        if not await self.client.delete(store.location(colony, name)):
            raise NotFound(f"name: colony {colony} has no location {name[:80]!r}")

    async def all_of(self, colony: str) -> list[Location]:
        """Return the locations of a colony, by name."""
        found, _ = await self.client.range_all(store.locations(colony))
        return sorted((unpack(kv.value, Location) for kv in found), key=lambda place: place.name)

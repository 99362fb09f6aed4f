"""Recovery of a change of the home colony's key that a crash cut short: the store decides.

`federation.membership.rotation` begins a change; key files are in `host.home`.
"""

from __future__ import annotations

from dataclasses import replace

from node.etcd.client import EtcdClient
from node.host.home import Home, HomeInfo
from node.host.log import get_logger
from node.model.codec import unpack
from node.model.types import Colony
from node.store import keys

log = get_logger("rotation")


async def finish(client: EtcdClient, home: Home, info: HomeInfo, now: int) -> HomeInfo:
    """Put the next key in its place if the store knows the colony by it; `now` in Unix ns.

    If the store knows the colony by the present key, the change never happened, and a later one
    uses the key that lies ready.
    """
    if not home.has_next_key():
        return info
    found = await client.get(keys.colony(info.name))
    fresh = home.next_key()
    if found is None or unpack(found.value, Colony).colonyid != fresh.id:
        return info
    home.take_next_key(now)
    log.warning("a change of the colony's key was finished", id=fresh.id, former=info.colony.id)
    return replace(info, colony=fresh)

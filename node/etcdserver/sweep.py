"""The sweep of parts of large values that no key names: replaced, removed or never finished.

Most parts go with the transaction that replaces their value; this removes the rest.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.etcd.pages import below
from node.etcd.parts import PLACE, owner_of, ref_of
from node.host.log import get_logger

log = get_logger("sweeping")

_EVERY = 120.0  # seconds
# Seconds after which parts that no key names belong to no write under way: a write has one minute,
# and no unknown outcome stays so for longer.
GRACE = 600.0


async def sweep(client: EtcdClient, unnamed: dict[str, float]) -> int:
    """Remove parts that no key has named for GRACE seconds; return of how many values.

    `unnamed` holds since when, by trio's clock; it is kept from one call to the next. Raises
    EtcdError.
    """
    found: dict[str, str] = {}
    async for page in below(client, PLACE, keys_only=True, raw=True):
        found.update(owner_of(item.key) for item in page)
    now, gone = trio.current_time(), 0
    for name in unnamed.keys() - found.keys():
        del unnamed[name]
    for name, owner in found.items():
        if await _named(client, owner, name):
            unnamed.pop(name, None)
        elif now - unnamed.setdefault(name, now) >= GRACE:
            await client.delete_prefix(f"{PLACE}{name}/")
            del unnamed[name]
            gone += 1
    return gone


async def _named(client: EtcdClient, owner: str, name: str) -> bool:
    page = await client.range(owner, limit=1, raw=True)
    there = page.items[0] if page.items else None
    ref = ref_of(there.value) if there is not None and there.key == owner else None
    return ref is not None and ref.name == name


async def run(client: EtcdClient) -> NoReturn:
    """Sweep now and then, until cancelled. Several daemons may do so at once."""
    unnamed: dict[str, float] = {}
    while True:
        await trio.sleep(_EVERY)
        try:
            if gone := await sweep(client, unnamed):
                log.info("parts of large values removed", values=gone)
        except EtcdError as error:
            log.warning("sweep later", error=error)

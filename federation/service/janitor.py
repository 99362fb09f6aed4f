"""The cleaner of store keys that belong to processes which no longer exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from federation.peers.context import Context

_PAGE = 1000  # keys read in one transaction
_PAGES = 10  # of each kind, in one sweep
_MANY = 40  # processes looked up in one transaction


@dataclass
class Janitor:
    """Deletes orphaned keys. A sweep reads `pages` pages of `page` keys of each kind."""

    context: Context
    page: int = _PAGE
    pages: int = _PAGES
    # key at which the next sweep goes on, by prefix
    _places: dict[str, str] = field(default_factory=dict)

    async def sweep(self) -> None:
        """Delete the keys of processes that no longer exist. Raises EtcdError.

        Where there are more keys than a sweep reads, the next sweep goes on from there.
        """
        keys = self.context.keys
        for prefix in (keys.proofs, keys.lates, keys.aparts, keys.followed_all):
            for _ in range(self.pages):
                if not await self._sweep_page(prefix):
                    break

    async def _sweep_page(self, prefix: str) -> bool:
        """Sweep one page. Return False after the last one; then it starts again at the first."""
        start = self._places.get(prefix)
        listing = await self.context.client.range(
            prefix, limit=self.page, start=start, keys_only=True
        )
        found = [item.key for item in listing.items]
        for at in range(0, len(found), _MANY):
            await self._delete_leftovers(prefix, found[at : at + _MANY])
        if listing.more:
            self._places[prefix] = found[-1] + "\0"
        else:
            self._places.pop(prefix, None)
        return listing.more

    async def _delete_leftovers(self, prefix: str, found: Sequence[str]) -> None:
        pids = [key.removeprefix(prefix) for key in found]
        there = {
            each.processid
            for each in await self.context.processes.load_many(self.context.home, pids, light=True)
        }
        for key, pid in zip(found, pids, strict=True):
            if pid not in there:
                await self.context.client.delete(key)

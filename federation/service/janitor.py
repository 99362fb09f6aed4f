"""The sweep of what stands in the store beside processes that are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from federation.peers.context import Context

_PAGE = 1000  # keys read at once
_PAGES = 10  # of each kind, looked through at a sweep
_MANY = 40  # processes looked for together


@dataclass
class Janitor:
    """A sweep looks at `pages` of `page` keys of each kind."""

    context: Context
    page: int = _PAGE
    pages: int = _PAGES
    _places: dict[str, str] = field(default_factory=dict)  # where to go on, by prefix

    async def sweep(self) -> None:
        """Delete what stands beside processes that are gone. Raises EtcdError.

        Where there is more than a sweep looks at, the next one goes on from there.
        """
        keys = self.context.keys
        for prefix in (keys.proofs, keys.lates, keys.aparts, keys.followed_all):
            for _ in range(self.pages):
                if not await self._sweep_page(prefix):
                    break

    async def _sweep_page(self, prefix: str) -> bool:
        """Look through one page; False when it was the last, and the next is the first again."""
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

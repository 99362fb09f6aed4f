"""What a client asks etcd for: reads, and the keys that etcd counts for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from node.etcd.client import EtcdClient, Range


@dataclass
class Asked:
    """Reads of ranges, how many keys they had, and how many values were given of them.

    etcd counts all keys of a range for each page.
    """

    reads: int = 0
    counted: int = 0
    given: int = 0

    def forget(self) -> None:
        """Count from here on."""
        self.reads = self.counted = self.given = 0


def counting(client: EtcdClient, patch: pytest.MonkeyPatch) -> Asked:
    """Count what a client asks for from here on."""
    asked, read, count = Asked(), client.range, client.count

    async def counted_range(*args: Any, **more: Any) -> Range:
        page = await read(*args, **more)
        asked.reads += 1
        asked.counted += page.count
        asked.given += sum(1 for kv in page.items if kv.value)
        return page

    async def counted_count(prefix: str) -> int:
        found = await count(prefix)
        asked.reads += 1
        asked.counted += found
        return found

    patch.setattr(client, "range", counted_range)
    patch.setattr(client, "count", counted_count)
    return asked

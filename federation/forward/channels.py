"""Messages of a channel as they cross a hop: their selection, number and limits.

`inbox.updates` and `outbox.channels` send them, `outbox.updates` and `inbox.channels` store them.
"""

from __future__ import annotations

from collections.abc import Sequence

from federation.wire.messages import Said
from node.etcd.client import EtcdClient
from node.model.codec import unpack
from node.store.work import channels as store
from node.store.work.channels import ChannelEntry, ChannelHead
from node.streams.channels import MAX_ABROAD, MAX_ENTRIES, MAX_SIZE, MAX_TYPE

_MOST = 100  # messages in one answer or request
_BYTES = 256 * 2**10  # bytes of payload in one answer or request, unless one message is larger
_PAGE = 100


async def read(
    client: EtcdClient, home: str, pid: str, name: str, start: int, but: str
) -> tuple[list[Said], int, bool]:
    """Return the messages from place `start` on, without those by `but`: that colony has these.

    Also return the place after the last entry read, and whether there may be more.
    """
    place = (home, pid, name)
    said: list[Said] = []
    room, after = _BYTES, start
    while after < MAX_ENTRIES:
        page = await client.range(
            store.entries(*place), limit=_PAGE, start=store.entry(*place, after)
        )
        for item in page.items:
            entry = unpack(item.value, ChannelEntry)
            if entry.senderid != but:
                if said and (len(said) >= _MOST or len(entry.payload) > room):
                    return said, after, True
                room -= len(entry.payload)
                said.append(_said(name, after, entry))
            after += 1
        if not page.more:
            break
    return said, after, False


def _said(name: str, place: int, entry: ChannelEntry) -> Said:
    return Said(name, place, entry.payload, entry.type, entry.sequence, entry.inreplyto)


def entries(
    said: Sequence[Said], start: int, after: int, sender: str, now: int
) -> list[ChannelEntry] | None:
    """Return the entries for messages from the places `start` to before `after`.

    Messages before `start` were stored already, and are left out. None if the messages are invalid.
    """
    found: list[ChannelEntry] = []
    last = -1
    for each in said:
        bounds = len(each.payload) <= MAX_ABROAD and len(each.type) <= MAX_TYPE
        numbers = all(-(2**63) <= n < 2**63 for n in (each.sequence, each.inreplyto))
        if not last < each.place < after or not bounds or not numbers:
            return None
        last = each.place
        if each.place >= start:
            found.append(
                ChannelEntry(sender, each.sequence, each.inreplyto, now, each.type, each.payload)
            )
    return found


def fits(known: ChannelHead, more: Sequence[ChannelEntry]) -> bool:
    """Return whether the channel `known` has room for these entries."""
    size = known.size + sum(len(each.payload) for each in more)
    return known.count + len(more) <= MAX_ENTRIES and size <= MAX_SIZE

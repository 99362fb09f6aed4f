"""Petnames: the short names that our owner gave colonies, kept under one key of the store.

`registry` resolves names; what colonies call themselves is in their cards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from colonyd.errors import Conflict, Invalid, NotFound
from federation.peers.keys import Keys
from federation.wire.card import is_name
from node.etcd.client import EtcdClient
from node.host.log import get_logger
from node.model.codec import unpack
from node.store.update import update

_MOST = 1024
_LIKE_AN_ID = re.compile(r"[0-9a-f]{8,}", re.IGNORECASE)  # 8 characters of an id name a peer
_WORDS = ("any", "all", "none", "me", "self")

log = get_logger("peers")


class StoredPetnames(msgspec.Struct, frozen=True):
    """All petnames, by the id under which a colony is kept."""

    names: dict[str, str] = {}


def problem_of(name: str) -> str:
    """Return why a text can be nobody's petname, or ""."""
    if not is_name(name) or name.lower() in _WORDS:
        return (
            "a petname has 1 to 63 letters, digits, '_', '-' and '.', does not begin with '-' or "
            f"'.', and is none of {', '.join(_WORDS)}"
        )
    if _LIKE_AN_ID.fullmatch(name):
        return "it looks like the beginning of an id; take a name with another letter in it"
    return ""


@dataclass
class Petnames:
    """The petnames of this colony, in memory as in the store. `shared`: introductions have them."""

    client: EtcdClient
    keys: Keys
    shared: bool = True
    _names: dict[str, str] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    async def load(self) -> None:
        """Read all from the store, where another daemon may have written. Raises EtcdError."""
        found = await self.client.get(self.keys.petnames)
        self._take(unpack(found.value, StoredPetnames).names if found is not None else {})

    def _take(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)
        self._ids = {name: peerid for peerid, name in names.items()}

    def of(self, peerid: str) -> str:
        """Return the petname of the colony that is kept under an id, or ""."""
        return self._names.get(peerid, "")

    def id_of(self, name: str) -> str:
        """Return the id under which the colony of a petname is kept, or ""."""
        return self._ids.get(name, "")

    def all(self) -> Mapping[str, str]:
        """Return all petnames, by id."""
        return self._names

    async def give(self, peerid: str, name: str) -> None:
        """Store a colony's petname, which replaces its former one.

        Raises Invalid, Conflict (the name is another's, or there are too many) and EtcdError.
        """
        if problem := problem_of(name):
            raise Invalid(f"petname: {name[:80]!r}: {problem}")

        def given(known: StoredPetnames | None) -> StoredPetnames:
            names = dict(known.names) if known is not None else {}
            for other, taken in names.items():
                if other != peerid and taken.lower() == name.lower():
                    raise Conflict(
                        f"petname: {taken!r} is the name of {other[:12]} here; take another name, "
                        f"or take that one back first: `colony peer name {taken} --remove`"
                    )
            names[peerid] = name
            if len(names) > _MOST:
                raise Conflict(f"petname: {_MOST} colonies have one; remove one first")
            return StoredPetnames(names)

        await self._change(given)
        log.info("petname given", peer=peerid, name=name)

    async def remove(self, peerid: str) -> str:
        """Remove a colony's petname, and return it. Raises NotFound and EtcdError."""
        if not self.of(peerid):
            raise NotFound(f"petname: {peerid[:12]} has no name of yours")

        def removed(known: StoredPetnames | None) -> StoredPetnames:
            names = known.names if known is not None else {}
            return StoredPetnames({each: name for each, name in names.items() if each != peerid})

        name = self.of(peerid)
        await self._change(removed)
        log.info("petname removed", peer=peerid, name=name)
        return name

    async def _change(self, change: Callable[[StoredPetnames | None], StoredPetnames]) -> None:
        stored, _ = await update(
            self.client, self.keys.petnames, StoredPetnames, change, what="the petnames"
        )
        self._take(stored.names)

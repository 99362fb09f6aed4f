"""Key rotation of the home colony: the successions that peers are told, and the stored ones.

`node.host.home` has the key files; `wire.succession` proves a succession.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from colonyd.errors import Conflict, NotFound
from federation.peers.context import Context
from federation.peers.owncard import OwnCard
from federation.wire.messages import Successor
from federation.wire.succession import OVERLAP, declare, prove
from node.etcd.txn import ModRevision, Op, Put, Txn
from node.host.home import Home
from node.host.log import get_logger
from node.members.service import Members
from node.model.codec import pack, unpack
from node.model.types import Colony
from node.store import keys as node_keys
from node.tasks.sync import WakeUps

_TOLD = 8  # latest successions in a hello

log = get_logger("rotation")


class Rotated(msgspec.Struct, frozen=True):
    """The result: both ids, until when both keys are valid (seconds), where the old key lies."""

    id: str
    former: str
    until: int
    kept: str


@dataclass
class Rotation:
    """Changes our key. Then `own_card` is renewed, and `probes` send hellos to all peers."""

    context: Context
    own_card: OwnCard
    probes: WakeUps
    members: Members | None = None
    _all: list[Successor] = field(default_factory=list)

    async def load(self) -> None:
        """Read our former ids from the store."""
        found = await self.context.client.get(self.context.keys.succession)
        self._all = unpack(found.value, list[Successor]) if found else []
        self.context.signer.inherit([prove(each).old for each in reversed(self._all)])

    def successors(self) -> list[Successor]:
        """Return the successions for hellos, so that a peer that was away learns of them."""
        return self._all[-_TOLD:]

    async def rotate(self, home: Home) -> Rotated:
        """Rotate to a new key; the old one stays in a file of its own. Raises NotFound, Conflict.

        The new key is on disk before the store has it, and takes the old key's place after that.
        The next start repairs a crash in between (`node.daemon.recovery`): the store decides.
        """
        old, new = self.context.signer.key, home.next_key()
        colony_key = node_keys.colony(self.context.home)
        found = await self.context.client.get(colony_key)
        known = await self.context.client.get(self.context.keys.succession)
        if found is None:
            raise NotFound(f"colony {self.context.home} is not in the store")
        colony = unpack(found.value, Colony)
        if colony.colonyid == new.id:
            # The write had happened, only its answer was lost.
            self._all = unpack(known.value, list[Successor]) if known else []
            revision = found.mod_revision
        elif colony.colonyid != old.id:
            raise Conflict("the colony has another key by now; restart this daemon with that")
        else:
            successor = declare(old, new, self.context.clock.seconds)
            compare = [
                ModRevision(colony_key, found.mod_revision),
                ModRevision(self.context.keys.succession, known.mod_revision if known else 0),
            ]
            said = [*(unpack(known.value, list[Successor]) if known else []), successor]
            colony = msgspec.structs.replace(colony, colonyid=new.id)
            ops: list[Op] = [
                Put(colony_key, pack(colony)),
                Put(self.context.keys.succession, pack(said)),
            ]
            result = await self.context.client.commit(Txn(compare, ops))
            if not result.succeeded:
                raise Conflict("the colony's record changed meanwhile; try again")
            self._all, revision = said, result.revision
        kept = home.take_next_key(self.context.clock.now())
        self.context.signer.succeed(new)
        if self.members is not None:
            self.members.directory.apply(colony_key, pack(colony), revision)
        log.warning("the colony changed its key", id=new.id, former=old.id)
        await self.own_card.renew()
        self.probes.wake()
        return Rotated(new.id, old.id, prove(self._all[-1]).issued + OVERLAP, str(kept))

"""The context that nearly every part of federation shares: home colony, key, store and peers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from federation.peers.keys import Keys
from federation.peers.registry import Peers
from federation.wire.clock import SigningClock
from federation.wire.signer import Signer
from node.etcd.client import EtcdClient
from node.processes.service import Processes


@dataclass(frozen=True)
class Context:
    """The colony `home` as one daemon serves it. `chance` spreads retries and choices."""

    home: str
    signer: Signer
    client: EtcdClient
    processes: Processes
    peers: Peers
    keys: Keys
    chance: random.Random = field(default_factory=random.Random)

    @property
    def clock(self) -> SigningClock:
        """Return the clock by which the colony signs."""
        return self.signer.clock

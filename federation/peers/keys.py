"""Where federation keeps its things in the store, all below the home colony's own prefix.

What the values mean is told by the modules that write them.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.store.keys import ROOT


@dataclass(frozen=True)
class Keys:
    """Keys of the colony called `home`."""

    home: str

    @property
    def root(self) -> str:
        """Prefix of everything."""
        return f"{ROOT}federation/{self.home}/"

    @property
    def peers(self) -> str:
        """Prefix of the peers that somebody decided about."""
        return f"{self.root}peer/"

    @property
    def outbox(self) -> str:
        """Prefix of every forward that is not finished."""
        return f"{self.root}outbox/"

    @property
    def markers(self) -> str:
        """Prefix of what was received."""
        return f"{self.root}marker/"

    @property
    def owed_all(self) -> str:
        """Prefix of every outcome that is not acknowledged."""
        return f"{self.root}owed/"

    @property
    def proofs(self) -> str:
        """Prefix of finished forwards."""
        return f"{self.root}proof/"

    @property
    def lates(self) -> str:
        """Prefix of outcomes that came when nobody waited any more."""
        return f"{self.root}late/"

    @property
    def aparts(self) -> str:
        """Prefix of the signed outcomes that stand apart from their forwards."""
        return f"{self.root}apart/"

    @property
    def followed_all(self) -> str:
        """Prefix of how much is known of what peers run for us."""
        return f"{self.root}follow/"

    @property
    def invitations(self) -> str:
        """Prefix of the invitations that nobody used yet."""
        return f"{self.root}invitation/"

    @property
    def used_invitations(self) -> str:
        """Prefix of who used which invitation."""
        return f"{self.root}joined/"

    @property
    def clock(self) -> str:
        """The latest wall-clock time this node remembers, in seconds."""
        return f"{self.root}clock"

    @property
    def sequence(self) -> str:
        """The sequence number of our latest card."""
        return f"{self.root}sequence"

    @property
    def succession(self) -> str:
        """By which keys this colony was known before, as both keys of each change signed it."""
        return f"{self.root}succession"

    @property
    def hearings(self) -> str:
        """Prefix of how much other colonies told us of channels."""
        return f"{self.root}hearing/"

    @property
    def fetched_all(self) -> str:
        """Prefix of which colony gave us the bytes of which file."""
        return f"{self.root}fetched/"

    def invitation(self, name: str) -> str:
        """One open invitation."""
        return f"{self.invitations}{name}"

    def used_invitation(self, name: str) -> str:
        """Who used one invitation."""
        return f"{self.used_invitations}{name}"

    def peer(self, peerid: str) -> str:
        """One peer."""
        return f"{self.peers}{peerid}"

    def forward(self, peerid: str, processid: str) -> str:
        """One forward under way."""
        return f"{self.outbox}{peerid}/{processid}"

    def receipt_record(self, issuer: str, processid: str) -> str:
        """That a process of another colony was received here, or cancelled before."""
        return f"{self.markers}{issuer}/{processid}"

    def owed_to(self, issuer: str) -> str:
        """Prefix of the outcomes owed to one colony."""
        return f"{self.owed_all}{issuer}/"

    def owed(self, issuer: str, processid: str) -> str:
        """An outcome owed; `processid` is the origin's, the value names ours."""
        return f"{self.owed_to(issuer)}{processid}"

    def proof(self, processid: str) -> str:
        """How a forward ended, with the signed outcome."""
        return f"{self.proofs}{processid}"

    def apart(self, processid: str) -> str:
        """The signed outcome of a forward that did not fit beside the rest of its record."""
        return f"{self.aparts}{processid}"

    def followed(self, processid: str) -> str:
        """How much is known of a process that a peer runs for us."""
        return f"{self.followed_all}{processid}"

    def fetched(self, issuer: str, checksum: str) -> str:
        """That a colony once gave us the bytes with this SHA-256, so they may serve it again."""
        return f"{self.fetched_all}{issuer}/{checksum}"

    def hearing(self, issuer: str, processid: str) -> str:
        """How much of the channels of a process of another colony that colony told us of."""
        return f"{self.hearings}{issuer}/{processid}"

    def introducing(self, peerid: str) -> str:
        """The number of the latest message in which a peer introduced colonies."""
        return f"{self.root}introducing/{peerid}"

    def late(self, processid: str) -> str:
        """A signed outcome that came too late to count."""
        return f"{self.lates}{processid}"

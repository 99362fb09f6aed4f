"""The keys of federation in the store, all below the home colony's own prefix.

The modules that write the values say what these mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.store.keys import ROOT


@dataclass(frozen=True)
class Keys:
    """The store keys of the colony called `home`."""

    home: str

    @property
    def root(self) -> str:
        """Return the prefix of everything."""
        return f"{ROOT}federation/{self.home}/"

    @property
    def peers(self) -> str:
        """Return the prefix of peers that the owner, or the configuration, decided about."""
        return f"{self.root}peer/"

    @property
    def outbox(self) -> str:
        """Return the prefix of unfinished forwards."""
        return f"{self.root}outbox/"

    @property
    def markers(self) -> str:
        """Return the prefix of receipt records."""
        return f"{self.root}marker/"

    @property
    def owed_all(self) -> str:
        """Return the prefix of outcomes that are not acknowledged."""
        return f"{self.root}owed/"

    @property
    def proofs(self) -> str:
        """Return the prefix of finished forwards."""
        return f"{self.root}proof/"

    @property
    def lates(self) -> str:
        """Return the prefix of outcomes that came too late."""
        return f"{self.root}late/"

    @property
    def aparts(self) -> str:
        """Return the prefix of signed outcomes that are stored apart from their forwards."""
        return f"{self.root}apart/"

    @property
    def followed_all(self) -> str:
        """Return the prefix of update cursors of processes at peers."""
        return f"{self.root}follow/"

    @property
    def invitations(self) -> str:
        """Return the prefix of open invitations."""
        return f"{self.root}invitation/"

    @property
    def used_invitations(self) -> str:
        """Return the prefix of redeemed invitations."""
        return f"{self.root}joined/"

    @property
    def clock(self) -> str:
        """Return the key of the latest wall-clock time remembered, in seconds."""
        return f"{self.root}clock"

    @property
    def sequence(self) -> str:
        """Return the key of the sequence number of our latest card."""
        return f"{self.root}sequence"

    @property
    def petnames(self) -> str:
        """Return the key of the names that our owner gave other colonies."""
        return f"{self.root}petnames"

    @property
    def succession(self) -> str:
        """Return the key of this colony's successions, each signed by both keys."""
        return f"{self.root}succession"

    @property
    def hearings(self) -> str:
        """Return the prefix of channel cursors of processes of other colonies."""
        return f"{self.root}hearing/"

    @property
    def fetched_all(self) -> str:
        """Return the prefix of records which colony gave us the bytes of which file."""
        return f"{self.root}fetched/"

    def invitation(self, name: str) -> str:
        """Return the key of one open invitation."""
        return f"{self.invitations}{name}"

    def used_invitation(self, name: str) -> str:
        """Return the key of one redeemed invitation."""
        return f"{self.used_invitations}{name}"

    def peer(self, peerid: str) -> str:
        """Return the key of one peer."""
        return f"{self.peers}{peerid}"

    def forward(self, peerid: str, processid: str) -> str:
        """Return the key of one unfinished forward."""
        return f"{self.outbox}{peerid}/{processid}"

    def receipt_record(self, issuer: str, processid: str) -> str:
        """Return the key of the receipt record of another colony's process."""
        return f"{self.markers}{issuer}/{processid}"

    def owed_to(self, issuer: str) -> str:
        """Return the prefix of outcomes owed to one colony."""
        return f"{self.owed_all}{issuer}/"

    def owed(self, issuer: str, processid: str) -> str:
        """Return the key of an owed outcome. `processid` is the origin's; the value is our id."""
        return f"{self.owed_to(issuer)}{processid}"

    def proof(self, processid: str) -> str:
        """Return the key of a finished forward, with its signed outcome."""
        return f"{self.proofs}{processid}"

    def apart(self, processid: str) -> str:
        """Return the key of a signed outcome that is too large for its forward's record."""
        return f"{self.aparts}{processid}"

    def followed(self, processid: str) -> str:
        """Return the key of the update cursor of a process at a peer."""
        return f"{self.followed_all}{processid}"

    def fetched(self, issuer: str, checksum: str) -> str:
        """Return the key that says that a colony gave us these bytes, so it may use them again."""
        return f"{self.fetched_all}{issuer}/{checksum}"

    def hearing(self, issuer: str, processid: str) -> str:
        """Return the key of the channel cursors of another colony's process."""
        return f"{self.hearings}{issuer}/{processid}"

    def introducing(self, peerid: str) -> str:
        """Return the key of the number of a peer's latest introductions."""
        return f"{self.root}introducing/{peerid}"

    def late(self, processid: str) -> str:
        """Return the key of a signed outcome that came too late."""
        return f"{self.lates}{processid}"

"""The choice of mailboxes by a colony that nobody can connect to: which peers, and until when.

Values in, values out: `seeker` polls the chosen ones and names them in our card.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from federation.reach.verdict import Verdict

WANTED = 3  # mailboxes, those that the owner configured among them
_LOST = 60.0  # seconds without an answer to a poll, after which another one takes its place
_HEARD = 35.0  # seconds within which a peer must have answered to be chosen; a little over a probe
_AVOIDED = (600.0, 7200.0)  # seconds for which a lost one is not chosen again, doubled each time
_LEFT = 300.0  # seconds that we are reachable before we leave our mailboxes
STRANGERS = 2  # the offer to hold messages also of colonies that we name


@dataclass(frozen=True)
class MailboxOffer:
    """The offer of a trusted peer: `kind` as in `Hello`, `heard` when the peer last answered."""

    kind: int
    heard: float


@dataclass
class MailboxPlan:
    """Chooses mailboxes, and keeps them as long as they answer. Times are of one steady clock."""

    chance: random.Random = field(default_factory=random.Random)
    _chosen: dict[str, float] = field(default_factory=dict)  # when each last answered a poll
    _lost: dict[str, tuple[int, float]] = field(default_factory=dict)  # times, avoided until
    _reachable: float | None = None

    def answered(self, peerid: str, now: float) -> None:
        """Note that a mailbox answered a poll."""
        if peerid in self._chosen:
            self._chosen[peerid] = now

    def choose(
        self,
        verdict: Verdict,
        offers: Mapping[str, MailboxOffer],
        configured: Collection[str],
        now: float,
    ) -> list[str]:
        """Return the ids of the peers to poll, beside the `configured` ones.

        Without a verdict, everything stays as it is.
        """
        for peerid in list(self._chosen):
            if peerid in configured:
                del self._chosen[peerid]
            elif peerid not in offers:
                self._lose(peerid, now)
        if verdict is not Verdict.REACHABLE:
            self._reachable = None
        elif self._reachable is None:
            self._reachable = now
        elif now - self._reachable >= _LEFT:
            self._chosen.clear()
        if verdict is Verdict.UNREACHABLE:
            self._renew(offers, configured, now)
        return sorted(self._chosen)

    def _renew(
        self, offers: Mapping[str, MailboxOffer], configured: Collection[str], now: float
    ) -> None:
        """Replace the mailboxes that are lost, and fill up.

        While no peer answers, our own network is to blame, and the mailboxes stay.
        """
        ready = self._ready(offers, configured, now)
        silent = [each for each, at in self._chosen.items() if now - at > _LOST]
        for peerid in silent:
            if ready or len(silent) < len(self._chosen):
                self._lose(peerid, now)
        wanted = max(0, WANTED - len(configured))
        for peerid in ready:
            if len(self._chosen) < wanted:
                self._chosen[peerid] = now
        open_to_others = [each for each in ready if offers[each].kind >= STRANGERS]
        if (
            self._chosen
            and open_to_others
            and all(offers[each].kind < STRANGERS for each in self._chosen)
        ):
            # At least one should take messages of colonies that it does not trust.
            del self._chosen[self.chance.choice(sorted(self._chosen))]
            self._chosen[open_to_others[0]] = now
        self._lost = {
            each: lost for each, lost in self._lost.items() if each in offers or lost[1] > now
        }

    def _lose(self, peerid: str, now: float) -> None:
        """Leave a mailbox that is silent, or offers nothing any more, and avoid it for a while."""
        del self._chosen[peerid]
        times = self._lost.get(peerid, (0, 0.0))[0]
        pause = min(_AVOIDED[1], _AVOIDED[0] * 2.0**times)
        self._lost[peerid] = (min(times + 1, 8), now + pause)

    def _ready(
        self, offers: Mapping[str, MailboxOffer], configured: Collection[str], now: float
    ) -> list[str]:
        """Return the peers that could be chosen now, the best first; equal ones in any order."""
        heard = [
            each
            for each, offer in offers.items()
            if each not in self._chosen and each not in configured and now - offer.heard <= _HEARD
        ]
        avoided = {each for each in heard if self._lost.get(each, (0, 0.0))[1] > now}
        if len(avoided) < len(heard) or any(now - at <= _LOST for at in self._chosen.values()):
            heard = [each for each in heard if each not in avoided]
        return sorted(
            heard,
            key=lambda each: (
                -min(offers[each].kind, STRANGERS),
                self._lost.get(each, (0, 0.0))[0],
                self.chance.random(),
            ),
        )

"""Each bound on what others may cost broken once: a named test must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from federation.limits import accounts, admission
from federation.limits.accounts import PeerQuotas
from federation.limits.admission import Admission
from federation.membership.invitations import Invitations
from federation.peers import successions
from tests.federation.limits import test_metering as named
from tests.support.noticing import Patch, must_notice


def any_host(patch: pytest.MonkeyPatch) -> None:
    """Each address of an IPv6 network counts for itself."""
    patch.setattr(admission, "source_of", lambda host: host)


def endless_strangers(patch: pytest.MonkeyPatch) -> None:
    """From many addresses, strangers may cost anything."""
    patch.setattr(admission, "STRANGERS_RATE", 10**9)


def endless_address(patch: pytest.MonkeyPatch) -> None:
    """One address may take what is for all strangers."""
    patch.setattr(admission, "STRANGER_RATE", 10**9)


def forgiven_signatures(patch: pytest.MonkeyPatch) -> None:
    """False signatures are not counted."""
    patch.setattr(Admission, "failed", lambda *_: None)


def homeless(patch: pytest.MonkeyPatch) -> None:
    """Where a peer was heard from is not remembered."""
    patch.setattr(Admission, "held", lambda *_: None)


def endless_heirs(patch: pytest.MonkeyPatch) -> None:
    """A colony may change its key without end."""
    patch.setattr(successions, "_count", lambda *_: None)


def any_blocked_heir(patch: pytest.MonkeyPatch) -> None:
    """A blocked colony's record takes any number of keys."""
    patch.setattr(successions, "_MOST_BLOCKED", 10**9)


def anyones_knock(patch: pytest.MonkeyPatch) -> None:
    """Who knows the name of an invitation gets around the queue."""

    def shown(self: Invitations, text: str, body: bytes) -> object:
        return self._known.get(text.partition(" ")[0], (b"", None))[1]

    patch.setattr(Invitations, "_shown", shown)


def endless_room(patch: pytest.MonkeyPatch) -> None:
    """What a peer leaves has no bound."""
    patch.setattr(PeerQuotas, "take", lambda *_: None)


def forgotten_meanwhile(patch: pytest.MonkeyPatch) -> None:
    """What comes while the store is read is not counted."""
    patch.setattr(PeerQuotas, "begin", lambda *_: None)


def free_marks(patch: pytest.MonkeyPatch) -> None:
    """Marks of what never was come as often as a peer likes."""
    patch.setattr(PeerQuotas, "tombstone", PeerQuotas.take)


def free_messages(patch: pytest.MonkeyPatch) -> None:
    """Messages are not counted."""
    patch.setattr(PeerQuotas, "weigh", lambda *_: None)


def endless_polls(patch: pytest.MonkeyPatch) -> None:
    """A peer may have any number of polls that wait."""
    patch.setattr(accounts, "_WAITING", {})


def all_at_once(patch: pytest.MonkeyPatch) -> None:
    """A peer may have any number of messages under way."""
    patch.setattr(accounts, "_AT_ONCE", 10**9)


def endless_news(patch: pytest.MonkeyPatch) -> None:
    """A peer may tell any number of bytes."""
    patch.setattr(PeerQuotas, "news", lambda *_: True)


@pytest.mark.parametrize(
    ("patch", "check"),
    [
        (any_host, named.test_an_ipv6_network_is_one_address),
        (endless_strangers, named.test_strangers_are_counted_in_all),
        (endless_address, named.test_strangers_are_counted_by_address),
        (forgiven_signatures, named.test_an_address_that_makes_up_signatures_is_heard_no_more),
        (homeless, named.test_an_address_that_makes_up_signatures_is_heard_no_more),
        (endless_heirs, named.test_a_change_of_key_may_be_one_too_many),
        (any_blocked_heir, named.test_a_change_of_key_may_be_one_too_many),
        (anyones_knock, named.test_only_the_key_of_an_invitation_gets_around_the_queue),
        (endless_room, named.test_room_is_bounded_in_entries_and_in_bytes),
        (forgotten_meanwhile, named.test_what_comes_while_the_store_is_read_is_not_lost),
        (free_marks, named.test_marks_of_what_never_was_come_at_the_rate_of_submissions),
        (free_messages, named.test_messages_are_bounded_a_minute_and_at_once),
        (endless_polls, named.test_messages_are_bounded_a_minute_and_at_once),
        (all_at_once, named.test_messages_are_bounded_a_minute_and_at_once),
        (endless_news, named.test_news_are_bounded_a_day),
    ],
    ids=lambda function: function.__name__,
)
def test_a_named_test_notices(
    patch: Patch, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    must_notice(patch, check, monkeypatch)

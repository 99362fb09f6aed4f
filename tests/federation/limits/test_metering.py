"""What strangers and trusted peers may cost, as values: who is counted, where, and up to what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
import trio

from federation.limits.accounts import PeerQuotas, StorageUsage
from federation.limits.admission import Admission
from federation.membership.invitations import Invitations
from federation.peers import successions
from federation.peers.address_limit import AddressLimiter
from federation.peers.log_limit import LogLimiter
from federation.peers.policy import Policy, TokenBucket
from federation.peers.registry import BLOCKED, TRUSTED, FormerKey, Peer
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, VerifiedMessage
from federation.wire.invitation import key_of, knock, name_of
from federation.wire.refusals import BROUGHT, Refusal
from federation.wire.succession import KeySuccession
from tests.federation.peers.support import registry

PEER = "a" * 64
OPENED = VerifiedMessage(PEER, "", b"c", 0, 9, b"", b"")


def refused(action: Callable[[], object]) -> str:
    """The code with which something is refused, "" if it is not."""
    try:
        action()
    except Refusal as refusal:
        # Who may come again is told when.
        return refusal.code if refusal.status == 403 or refusal.again > 0 else "for ever"
    return ""


def admitted(admission: Admission, hosts: list[str], now: float = 0.0) -> int:
    """How many messages of strangers from these hosts are looked at."""
    return sum(not refused(lambda host=host: admission.stranger(host, now)) for host in hosts)  # type: ignore[misc]


# -- strangers ---------------------------------------------------------------------------------


def test_strangers_are_counted_by_address() -> None:
    admission = Admission()
    assert admitted(admission, ["10.0.0.1"] * 100) == 60
    assert admitted(admission, ["10.0.0.2"] * 100) == 60
    assert admitted(admission, ["10.0.0.1"] * 100, now=30.0) == 30


def test_an_ipv6_network_is_one_address() -> None:
    admission = Admission()
    assert admitted(admission, [f"2001:db8::{n:x}" for n in range(100)]) == 60
    assert admitted(admission, ["2001:db8:0:1::1"]) == 1
    assert admitted(admission, ["::ffff:10.0.0.1", "10.0.0.1"] * 50) == 60


def test_strangers_are_counted_in_all() -> None:
    admission = Admission()
    assert admitted(admission, [f"10.0.{n // 250}.{n % 250}" for n in range(1000)]) == 600
    assert len(admission._each) <= 1024
    assert admission.trusted(PEER, "10.0.0.1", 0.0), "others do not wait for them"


def test_an_address_that_makes_up_signatures_is_heard_no_more() -> None:
    admission = Admission()
    admission.held(PEER, "10.0.0.9")
    for host in ("10.0.0.66", "10.0.0.9"):
        for _ in range(60):
            assert refused(lambda host=host: admission.trusted(PEER, host, 0.0)) == ""  # type: ignore[misc]
            admission.failed(PEER, host, 0.0)
    assert refused(lambda: admission.trusted(PEER, "10.0.0.66", 0.0)) == "stranger_rate"
    assert refused(lambda: admission.trusted(PEER, "10.0.0.9", 0.0)) == "", "it is at home there"
    assert refused(lambda: admission.trusted(PEER, "10.0.0.66", 1.0)) == ""
    for number in range(600):
        admission.failed(PEER, f"10.1.{number // 250}.{number % 250}", 0.0)
    assert admission.trusted(PEER, "10.2.0.1", 0.0) is False, "checked, and no mistake looked for"


def test_an_address_has_its_share_and_all_have_theirs() -> None:
    limiter = AddressLimiter(2, 5)
    assert [limiter.take("10.0.0.1", 0.0) for _ in range(3)] == [0, 0, 30.0]
    assert limiter.take("10.0.0.1", 30.0) == 0
    ipv6 = [limiter.take(f"2001:db8::{n}", 30.0) for n in range(3)]
    assert ipv6 == [0, 0, 30.0], "a /64 counts as one"
    assert [limiter.take(f"10.0.1.{n}", 30.0) for n in range(3)] == [0, 0, 12.0], "of all: 5"


def test_the_address_silent_for_longest_is_forgotten() -> None:
    limiter = AddressLimiter(2, 100, most=2)
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"):
        assert limiter.take(host, 0.0) == 0
    assert limiter.take("10.0.0.1", 0.0) > 0, "it was heard after the second"
    assert [limiter.take("10.0.0.2", 0.0) for _ in range(2)] == [0, 0], "it begins anew"


def test_lines_that_are_left_out_are_told() -> None:
    sparing = LogLimiter(2)
    assert [sparing.line(0.0) for _ in range(5)] == [{}, {}, None, None, None]
    assert sparing.line(60.0) == {"left_out": 3}
    assert sparing.line(60.0) == {}


# -- changes of key ----------------------------------------------------------------------------


def changed(state: str, times: int) -> Any:
    """A colony that changed its key some times, and what it takes to change it again."""
    former = [FormerKey(f"{number:064x}", b"k", 0) for number in range(times)]
    peers = registry(Peer(PEER, state, "ant", b"k", 1, current="b" * 64, former=former))
    succession = KeySuccession("b" * 64, b"k", "c" * 64, b"k", 0, 0)
    return lambda: successions._count(peers, succession, 0)


def test_a_change_of_key_may_be_one_too_many() -> None:
    often = changed(TRUSTED, 0)
    assert [refused(often) for _ in range(9)] == [""] * 8 + ["succession_rate"]
    assert refused(changed(TRUSTED, 100)) == ""
    often = changed(BLOCKED, 0)
    assert [refused(often) for _ in range(9)] == [""] * 8 + ["blocked"]
    assert refused(changed(BLOCKED, 7)) == ""
    assert refused(changed(BLOCKED, 8)) == "blocked"


# -- invitations -------------------------------------------------------------------------------


def test_only_the_key_of_an_invitation_gets_around_the_queue() -> None:
    nobody: Any = None
    invitations = Invitations(nobody, nobody)
    secret, bucket = b"s" * 16, TokenBucket()
    name, key = name_of(secret), key_of(secret)
    invitations._known[name] = (key, bucket)
    told = knock(key, b"body").hex()
    assert invitations._shown(f"{name} {told}", b"body") is bucket
    for shown in ("", name, f"{name} ", f"{name} {'0' * 64}", f"{'0' * 16} {told}", f"{name} ä"):
        assert invitations._shown(shown, b"body") is None, shown
    assert invitations._shown(f"{name} {told}", b"another") is None


def test_a_mailbox_that_brings_a_join_again_does_not_use_up_the_invitation() -> None:
    async def main() -> None:
        nobody: Any = None
        invitations = Invitations(nobody, nobody)
        secret = b"s" * 16
        invitations._known[name_of(secret)] = (key_of(secret), TokenBucket())
        shown = f"{name_of(secret)} {knock(key_of(secret), b'join').hex()}"

        def join(remote: str) -> str:
            return refused(lambda: invitations.knock(remote, shown, b"join"))

        codes = [join(f"{BROUGHT}one") for _ in range(30)]
        assert codes == [""] * 20 + ["join_rate"] * 10
        assert [join(f"{BROUGHT}two"), join("192.0.2.7")] == ["", ""]

    trio.run(main)


# -- accounts ----------------------------------------------------------------------------------


def peer_quotas(**limits: Any) -> PeerQuotas:
    peers = registry(Peer(PEER, TRUSTED, "ant", b"k", 1, policy=Policy(**limits)))
    return PeerQuotas(peers, SigningClock())


def took(found: object) -> str:
    return str(getattr(found, "code", ""))


def test_counts_of_mailboxes_that_went_are_forgotten_and_no_others() -> None:
    times, kept = [1000.0], peer_quotas(messages=2)
    kept.clock.steady = lambda: times[0]

    def message(way: str) -> str:
        def once() -> None:
            with kept.message(msgspec.structs.replace(OPENED, way=way), Kind.HELLO):
                pass

        return refused(once)

    assert [message(f"{BROUGHT}{number}") for number in range(50)] == [""] * 50
    times[0] += 30
    assert [message("") for _ in range(3)] == ["", "", "policy_messages"]
    times[0] += 30
    kept.prune()
    assert (len(kept._messages), len(kept._kinds)) == (1, 1)
    times[0] -= 30
    assert message("") == "policy_messages", "what is used up stays so"


def test_room_is_bounded_in_entries_and_in_bytes() -> None:
    kept = peer_quotas(max_entries=3, max_kept=1000)
    assert [took(kept.take(PEER, 100)) for _ in range(4)] == [""] * 3 + ["policy_entries"]
    assert kept.stock(PEER).entries == 0, "nothing is in the store yet"
    kept.settle(PEER, 100, left=False)
    kept.settle(PEER, 100, left=True)
    assert took(kept.take(PEER, 801)) == "policy_kept"
    assert took(kept.leave(PEER, 800)) == ""
    kept.settle(PEER, 100, left=True)
    assert (kept.stock(PEER).entries, kept.stock(PEER).size) == (3, 1000)
    assert kept._taken == {}
    assert took(kept.take(PEER, 1, 0)) == "policy_kept"
    kept.begin()
    kept.counted({PEER: StorageUsage(1, 500)})
    assert took(kept.take(PEER, 500)) == "", "what the store has counts"
    assert took(peer_quotas(max_entries=0, max_kept=0).take(PEER, 2**40)) == ""


def test_what_comes_while_the_store_is_read_is_not_lost() -> None:
    kept = peer_quotas(max_entries=10)
    kept.leave(PEER, 5)
    assert kept.take(PEER, 6) is None
    assert kept.take(PEER, 9) is None
    kept.begin()
    kept.leave(PEER, 7)
    kept.settle(PEER, 6, left=True)
    kept.counted({PEER: StorageUsage(1, 5)})
    kept.settle(PEER, 9, left=False)
    assert (kept.stock(PEER).entries, kept.stock(PEER).size) == (3, 18)


def test_marks_of_what_never_was_come_at_the_rate_of_submissions() -> None:
    async def main() -> None:
        kept = peer_quotas(rate=2)
        assert [took(kept.tombstone(PEER, 1)) for _ in range(3)] == ["", "", "policy_rate"]
        kept = peer_quotas(max_entries=1)
        assert [took(kept.tombstone(PEER, 1)) for _ in range(2)] == ["", "policy_entries"]

    trio.run(main)


def test_messages_are_bounded_a_minute_and_at_once() -> None:
    async def main() -> None:
        kept = peer_quotas(messages=3)

        def message(kind: Kind = Kind.SUBMIT) -> None:
            with kept.message(OPENED, kind):
                pass

        assert [refused(message) for _ in range(4)] == [""] * 3 + ["policy_messages"]
        kept = peer_quotas(messages=0)
        with ExitStack() as stack:
            for _ in range(16):
                stack.enter_context(kept.message(OPENED, Kind.POLL))
            assert refused(lambda: message(Kind.POLL)) == "peer_at_once"
            for _ in range(112):
                stack.enter_context(kept.message(OPENED, Kind.SUBMIT))
            assert refused(message) == "peer_at_once"
        assert refused(message) == ""
        assert refused(lambda: message(Kind.POLL)) == ""

    trio.run(main)


def test_news_are_bounded_a_day() -> None:
    async def main() -> None:
        kept = peer_quotas(max_kept=1000)
        assert [kept.news(PEER, 400) for _ in range(3)] == [True, True, False]
        assert kept.news(PEER, 0)
        assert 790 <= kept.told(PEER) <= 800

    trio.run(main)


def test_a_bucket_gives_many_at_once() -> None:
    bucket = TokenBucket(period=10.0)
    assert bucket.take(100, 0.0, 60.0) == 0
    assert bucket.take(100, 0.0, 60.0) == pytest.approx(2.0)
    assert bucket.take(100, 2.0, 60.0) == 0
    assert bucket.take(100, 100.0, 1000.0) == 0, "a full one gives more than it holds, once"
    assert bucket.take(100, 100.0) > 0

"""Clocks that are apart: measured by who connects, made up for with trusted peers, and bounded."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.forward import machine
from federation.forward.machine import Forward, ForwardState
from federation.peers.clock import SLACK, ClockReading, PeerClock, apart, bridgeable, read, told
from federation.peers.record import Peer, PeerState
from federation.peers.registry import PENDING, TRUSTED
from federation.transport.connection import PeerConnection, PeerResponse
from federation.transport.errors import Lost, Reason, RemoteRefusal, TransportError
from federation.wire.card import Card, sign_card
from federation.wire.envelope import Kind
from federation.wire.messages import MOST, Hello, Receipt, Submit, load
from federation.wire.refusals import Proof
from node.etcd.client import open_client
from tests.federation.inbox.support import PID, SPEC, Lab
from tests.node.etcd.support import start_store
from tests.support.colonies import world
from tests.support.parts import Led

HOUR = 3600
NOW = 1_700_000_000


# -- values ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(-MOST, MOST), st.floats(0, 30), st.floats(0, 30))
def test_a_reading_is_right_within_what_it_says(ahead: int, there: float, back: float) -> None:
    """Whatever the ways there and back take, the truth is within the uncertainty told."""
    sent = float(NOW)
    received = sent + there + back
    clock = int(sent + there + ahead)  # whole seconds, when it answers
    reading = read(clock, 0, sent, received)
    assert abs(reading.ahead - ahead) <= reading.within + 1
    assert reading.judging == reading.ahead


def test_a_remembered_time_is_judged_by() -> None:
    """A host whose clock was set back judges by what it remembers, and issues by its clock."""
    reading = read(NOW - 60, NOW + HOUR, NOW, NOW)
    assert (reading.ahead, reading.judging) == (-60, HOUR)


def reading(ahead: int, judging: int | None = None) -> ClockReading:
    return ClockReading(ahead, ahead if judging is None else judging, NOW, 1.0)


@pytest.mark.parametrize(
    ("ahead", "used"),
    [
        *((0, 0), (SLACK, 0), (-SLACK, 0), (SLACK + 1, SLACK + 1), (-HOUR, -HOUR), (MOST, MOST)),
        *((MOST + 1, 0), (-MOST - 1, 0), (10**9, 0)),
    ],
)
def test_what_is_made_up_for(ahead: int, used: int) -> None:
    """Nothing of a small difference, and nothing of one that is beyond all bounds."""
    clock = PeerClock(reading(ahead, 0))
    assert (clock.issuing, clock.judging) == (used, 0)
    clock = PeerClock(reading(0, ahead))
    assert (clock.issuing, clock.judging) == (0, used)
    assert (PeerClock().issuing, PeerClock().judging) == (0, 0)


def test_learning() -> None:
    """It tells when there is something new to be told."""
    clock = PeerClock()
    assert not clock.learn(reading(1))
    assert clock.learn(reading(HOUR))
    assert not clock.learn(reading(HOUR + 1))
    assert clock.learn(reading(0))


def test_words() -> None:
    """Both clocks, the difference, and which is ahead."""
    assert apart(NOW + HOUR + 61, NOW) == (
        "its clock says 2023-11-14T23:14:21Z, ours 2023-11-14T22:13:20Z: 1 h 1 min ahead of ours"
    )
    assert apart(NOW - 5, NOW).endswith(": 5 s behind ours")
    assert apart(2**39, NOW).startswith("its clock says 549755813888 s since 1970")
    assert (told(0), told(2 * 86_400 + 5)) == ("0 s", "2 d 5 s")
    assert bridgeable(NOW + HOUR, NOW)
    assert not bridgeable(NOW + MOST + 1, NOW)
    assert not bridgeable(NOW - MOST - 1, NOW)


# -- a link to a gate with another clock ---------------------------------------------------------


def untimely(error: RemoteRefusal) -> bool:
    return error.reason is Reason.UNTIMELY


def final(error: RemoteRefusal) -> bool:
    return error.final


def lasting(error: TransportError) -> bool:
    return isinstance(error, Lost) or error.final


class Direct(PeerConnection):
    """The way to a gate in this process; `replay` is an answer that somebody plays back."""

    lab: Lab
    replay: PeerResponse | None = None
    last: PeerResponse

    async def exchange(self, path: str, body: bytes, wait: float) -> PeerResponse:
        if self.replay is not None:
            return self.replay
        response = await self.lab.raw(path.rpartition("/")[2], body)
        self.last = PeerResponse(response.status, "", bytes(response.body))
        return self.last


class Pair:
    """We, with the right time, and the colony `lab` whose clock is `ahead`; it trusts us."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.measured = 0
        peer = Peer(lab.key.id, TRUSTED, "lab", lab.key.public_key)
        self.connection = Direct(PeerState(peer), lab.signer, Led(measured=self._measure))
        self.connection.lab = lab

    def _measure(self) -> None:
        self.measured += 1

    def set_clock(self, ahead: int) -> None:
        self.lab.clock.now = lambda: time.time_ns() + ahead * 1_000_000_000

    @property
    def clock(self) -> PeerClock:
        return self.connection.entry.clock

    def expect(self, ahead: int, judging: int | None = None) -> None:
        """What was measured is right within what it says."""
        found = self.clock.reading
        assert found is not None
        assert abs(found.ahead - ahead) <= found.within + 1
        assert abs(found.judging - (ahead if judging is None else judging)) <= found.within + 1

    async def greet(self, nonce: bytes = b"0123456789abcdef") -> Hello:
        # As `peers.owncard` signs it: good for a day on either side.
        key, now = self.lab.other, int(time.time())
        card = Card(key.id, key.public_key, "field", 1, "f" * 64, [], [2], now + 6 * 86_400)
        return await self.connection.greet(Hello(sign_card(key, card), nonce))

    async def measure(self) -> None:
        try:
            await self.greet()
        except RemoteRefusal as error:
            if not untimely(error):
                raise
            await self.greet()

    def submission(self, seconds: int = 30) -> bytes:
        submit = Submit(PID, 1, SPEC, "me", 1, [])
        return self.connection.seal(
            Kind.SUBMIT, submit, cti=b"c", expires=int(time.time()) + seconds
        )

    async def submit(self, body: bytes) -> Receipt:
        opened, _ = await self.connection.post("/v2/submit", body, Kind.RECEIPT)
        return load(opened.payload, Receipt)


@pytest.fixture
async def pair(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Pair]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        lab = Lab(client)
        await lab.befriend()
        yield Pair(lab)


@pytest.mark.parametrize("ahead", [0, HOUR, -HOUR, MOST - 60, 60 - MOST])
async def test_clocks_apart(pair: Pair, ahead: int) -> None:
    """Measured by a hello; then even what holds for half a minute only is taken, and answered."""
    pair.set_clock(ahead)
    await pair.measure()
    pair.expect(ahead)
    assert (await pair.submit(pair.submission())).status == "accepted"


async def test_before_it_is_measured(pair: Pair) -> None:
    """The refusal is signed, and wakes a measurement; the next try holds."""
    pair.set_clock(-HOUR)
    with pytest.raises(RemoteRefusal, match="3600 s ahead", check=untimely) as caught:
        await pair.submit(pair.submission())
    assert caught.value.proof is Proof.SIGNED
    assert pair.measured == 1
    await pair.measure()
    assert (await pair.submit(pair.submission())).status == "accepted"


async def test_a_clock_that_was_set_back(pair: Pair) -> None:
    """Who remembers a later time judges by that: what is short-lived must hold by it."""
    pair.lab.clock.remember(time.time() + HOUR)
    with pytest.raises(RemoteRefusal, match="expired", check=untimely):
        await pair.submit(pair.submission())
    await pair.measure()
    assert pair.clock.issuing == 0
    pair.expect(0, judging=HOUR)
    assert (await pair.submit(pair.submission())).status == "accepted"


async def test_strangers_get_no_favour(pair: Pair) -> None:
    """Towards a colony that we don't trust, our own clock is the only one."""
    pair.set_clock(-HOUR)
    peer = pair.connection.entry.peer
    pair.connection.entry.peer = Peer(peer.id, PENDING, peer.name, peer.public_key)
    with pytest.raises(RemoteRefusal, match="not_yet_valid", check=final):
        await pair.greet()
    pair.expect(-HOUR)  # known, not used
    with pytest.raises(RemoteRefusal, match="3600 s ahead", check=final):
        await pair.submit(pair.submission())
    assert pair.measured == 0
    pair.set_clock(HOUR)
    with pytest.raises(Lost, match="not_yet_valid"):
        await pair.submit(pair.submission(2 * HOUR))


@pytest.mark.parametrize("ahead", [2 * MOST, -2 * MOST])
async def test_beyond_a_day_both_clocks_are_told(pair: Pair, ahead: int) -> None:
    pair.set_clock(ahead)
    word = "ahead of" if ahead > 0 else "behind"
    clocks = f"its clock says .*, ours .*: 1 d 2[12] h {word} ours"
    with pytest.raises(RemoteRefusal, match=clocks, check=final):
        await pair.greet()
    with pytest.raises((RemoteRefusal, Lost), match="our clock says", check=lasting):
        await pair.submit(pair.submission(3 * 86_400))


async def test_an_old_answer_teaches_nothing(pair: Pair) -> None:
    """Neither a hello to another nonce nor the refusal of another one: they may be years old."""
    pair.set_clock(HOUR)
    await pair.measure()
    old = pair.connection.last
    pair.set_clock(0)
    await pair.measure()
    assert pair.clock.issuing == 0
    pair.connection.replay = old
    with pytest.raises(Lost, match="not_yet_valid"):
        await pair.greet(b"another nonce 16")
    assert pair.clock.issuing == 0
    pair.connection.replay = None
    pair.set_clock(-HOUR)
    with pytest.raises(RemoteRefusal, check=untimely):
        await pair.greet()
    refusal = pair.connection.last
    pair.set_clock(0)
    await pair.measure()
    pair.connection.replay = refusal
    with pytest.raises(RemoteRefusal, check=untimely):
        await pair.greet(b"another nonce 17")
    assert pair.clock.issuing == 0


# -- what becomes of a forward ---------------------------------------------------------------------


def test_a_copy_that_certainly_was_not_taken_is_sealed_anew() -> None:
    """Any other stays the same bytes: an earlier one may have arrived."""
    forward = Forward("1" * 64, "2" * 64, 1, 10, 20, 30)
    once = machine.sending(forward, b"bytes", 5)
    after = machine.untimely(once, "late", True)
    assert (after.state, after.envelope, after.sent, after.lasterror) == (
        ForwardState.QUEUED,
        b"",
        0,
        "late",
    )
    twice = machine.sending(once, b"bytes", 6)
    for before, signed in ((once, False), (twice, True)):
        after = machine.untimely(before, "late", signed)
        assert (after.state, after.envelope, after.sent) == (
            ForwardState.DOUBT,
            b"bytes",
            before.sent,
        )


async def test_what_was_seen_while_the_clock_was_ahead_does_not_count_as_seen_for_years(
    tmp_path: Path,
) -> None:
    """Else a message would go to a mailbox for a peer that is away, and strangers stay for ever."""
    async with world(tmp_path) as colonies:
        ant, bee = await colonies.add("ant"), await colonies.add("bee")
        await ant.trust(bee)
        entry, now = ant.fed.peers.known[bee.key.id], ant.fed.context.clock.seconds
        entry.lastseen = entry.heard = now + 10 * 365 * 86_400
        await ant.fed._keep_clock()
        assert max(entry.lastseen, entry.heard) <= now + 60
        entry.lastseen = now - 50
        await ant.fed._keep_clock()
        assert entry.lastseen == now - 50

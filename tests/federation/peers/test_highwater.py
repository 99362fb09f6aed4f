"""The latest time remembered: it only goes up, until the owner has it forgotten."""

from __future__ import annotations

import re
import time

import pytest

from cli.ops.doctor import check_memory
from federation.peers.highwater import HighWater
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind
from node.etcd.client import EtcdClient
from node.model.types import SECOND
from tests.federation.inbox.support import PID, Lab, code, submission

DAY = 86_400
NOW = 1_700_000_000


class Host:
    """One daemon of the colony `lab`, and its clock in seconds; `door` is what peers see of it."""

    def __init__(self, lab: Lab, clock: int = NOW, *, door: bool = False) -> None:
        self.clock = clock
        if door:
            lab.clock.now = self.now
        self.memory = HighWater(lab.client, lab.keys, lab.clock if door else SigningClock(self.now))

    def now(self) -> int:
        return self.clock * SECOND

    async def at(self, clock: int) -> float:
        """What it remembers after a look at the clock."""
        self.clock = clock
        await self.memory.keep()
        return self.memory.latest


@pytest.fixture
def lab(client: EtcdClient) -> Lab:
    return Lab(client)


async def test_it_only_goes_up(lab: Lab) -> None:
    host = Host(lab)
    assert await host.at(NOW) == NOW
    assert await host.at(NOW + DAY) == NOW + DAY
    assert await host.at(NOW) == NOW + DAY
    assert host.memory.behind == DAY
    assert await host.at(NOW + DAY + 60) == NOW + DAY + 60
    assert host.memory.behind == 0


async def test_a_boot_in_the_past(lab: Lab) -> None:
    assert await Host(lab).at(NOW) == NOW
    again = Host(lab, 0)
    await again.memory.load()
    assert (again.memory.latest, again.memory.behind) == (NOW, NOW)


async def test_a_later_time_is_forgotten_and_only_a_later_one(lab: Lab) -> None:
    """The store has it at once, and for the next start."""
    host = Host(lab)
    await host.at(NOW + 30 * DAY)
    host.clock = NOW
    assert await host.memory.reset() == NOW + 30 * DAY
    assert (host.memory.latest, host.memory.behind) == (NOW, 0)
    again = Host(lab)
    await again.memory.load()
    assert again.memory.latest == NOW
    host.clock = NOW + 60
    assert await host.memory.reset() == NOW
    assert host.memory.latest == NOW, "there was nothing to forget"


async def test_daemons_of_one_colony_share_it(lab: Lab) -> None:
    """One whose clock is behind never lowers it; after a reset the others follow."""
    ahead, behind = Host(lab), Host(lab)
    await ahead.at(NOW + DAY)
    assert await behind.at(NOW) == NOW + DAY
    assert await ahead.at(NOW + DAY) == NOW + DAY
    ahead.clock = NOW
    await behind.memory.reset()
    assert behind.memory.latest == NOW
    assert await ahead.at(NOW) == NOW


async def test_the_owner_has_a_wrong_time_forgotten(lab: Lab) -> None:
    """A clock that was far ahead shuts everybody out, until then; what has expired stays so."""
    await lab.befriend()
    now = int(time.time())
    host = Host(lab, now, door=True)
    await host.at(now + 30 * DAY)
    host.clock = now
    body, old = (
        lab.seal(Kind.SUBMIT, submission()),
        lab.seal(Kind.SUBMIT, submission(), issued=now - 60, expires=now - 1),
    )
    assert code(await lab.raw("submit", body)) == "expired"
    await host.memory.reset()
    assert code(await lab.raw("submit", old)) == "expired"
    assert (await lab.submit(body)).status == "accepted"


async def test_what_was_accepted_stays_so_after_a_reset(lab: Lab) -> None:
    """Its marker outlasts a clock that is a week ahead, and the process outlasts the marker."""
    await lab.befriend()
    now = int(time.time())
    host = Host(lab, now, door=True)
    body = lab.seal(Kind.SUBMIT, submission(), issued=now, expires=now + DAY)
    first = (await lab.raw("submit", body)).body
    await lab.run_one()
    await lab.poll(0)
    await lab.poll(0, PID)

    async def swept_in(days: int) -> None:
        await host.at(now + days * DAY)
        await lab.inbox.sweep()
        host.clock = now
        assert await host.memory.reset() == now + days * DAY

    await swept_in(7)
    assert (await lab.raw("submit", body)).body == first
    await swept_in(30)
    assert await lab.client.get(lab.keys.receipt_record(lab.other.id, PID)) is None
    assert code(await lab.raw("submit", body)) == "id_reuse"


@pytest.mark.parametrize(
    ("behind", "ok", "words"),
    [
        (0, True, "none later"),
        (9, True, "none later"),
        (7200, None, "the clock is 2 h behind .*, 2023-11-15 00:13:20 UTC: peers get through"),
        (30 * DAY, False, "the clock is 30 d behind .*: what peers send counts as expired"),
    ],
)
def test_doctor(behind: int, ok: bool | None, words: str) -> None:
    """It says by how much, what follows, and what to do."""
    check = check_memory({"clock": NOW, "latest": NOW + behind, "behind": behind})
    assert check.ok is ok
    assert re.search(words, check.detail), check.detail
    assert ("colony peer clock --reset" in check.next) is (ok is not True)

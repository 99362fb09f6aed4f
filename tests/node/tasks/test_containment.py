"""One task's or one request's trouble ends that alone: unexpected exceptions, with virtual time."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from colonyd.keys import PrivateKey
from federation.membership.bootstrap import Bootstrap
from federation.network.mdns import Sighting
from federation.peers.context import Context
from federation.peers.keys import Keys
from federation.peers.registry import Peer, Peers, PeerState
from federation.service.sessions import PeerSessions
from federation.transport.connection import PeerConnection
from federation.transport.polling import MailboxPoller
from federation.wire.clock import SigningClock
from federation.wire.messages import Parcel
from federation.wire.signer import Signer
from node.host.clock import Clock
from node.http.server import Request, Response
from node.model.types import Running
from node.processes.assignment import Assigner
from node.processes.deadlines import expire
from node.processes.service import Processes
from node.store.crons import Cron
from node.tasks.containment import contained, keep_going
from node.tasks.sync import WakeUps
from node.timers.crons import due, owner
from node.timers.timerqueue import TimerIndex, follow

REPOSITORY = Path(__file__).parents[3]
# Tasks whose exception is to end what they belong to, or that can raise none.
_OF_THEIR_OWNER = {
    "node/daemon/main.py": {"_supervise"},  # without a store there is no daemon
}


class _Nothing(Exception):
    """What nobody expects."""


@pytest.mark.parametrize("what", [MemoryError, RecursionError, _Nothing])
def test_an_unexpected_exception_ends_its_block(what: type[Exception]) -> None:
    """It is logged, and what comes after goes on."""
    with contained("block"):
        raise what
    with contained("block"):
        raise ExceptionGroup("several", [what(), ExceptionGroup("more", [what()])])


@pytest.mark.parametrize("what", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_goes_on(what: type[BaseException]) -> None:
    """Neither is an exception of ours."""
    with pytest.raises(what):
        with contained("block"):
            raise what


async def test_cancellation_goes_on_with_the_fault_that_came_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A nursery that is cancelled while one of its tasks fails is cancelled, and no more."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise _Nothing

    after = False
    with trio.move_on_after(1) as scope:
        with contained("nursery"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)
        after = True
    assert scope.cancelled_caught
    assert not after


async def test_a_task_is_started_again_ever_later(autojump_clock: trio.testing.MockClock) -> None:
    """From a second to a minute; after it ran for long, from a second again."""
    began: list[float] = []

    async def task() -> None:
        began.append(trio.current_time())
        if len(began) == 9:
            await trio.sleep(1000)
        if len(began) == 11:
            return
        raise MemoryError

    await keep_going("task", task)
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 1001, 2], abs=0.01)


async def test_a_task_that_can_not_start_says_so() -> None:
    """A daemon does not start in parts."""

    async def never(*, task_status: trio.TaskStatus[None]) -> None:
        raise _Nothing

    with pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_going, "never", never)
    assert raised.group_contains(_Nothing)


async def test_a_task_that_started_is_kept_going(autojump_clock: trio.testing.MockClock) -> None:
    """Its second start tells nobody."""
    starts = 0

    async def task(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        task_status.started()
        if starts < 3:
            raise _Nothing
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_going, "task", task)
        await trio.sleep(10)
        assert starts == 3
        nursery.cancel_scope.cancel()


# -- the tasks that are about others -----------------------------------------------------------


async def test_one_address_that_breaks_us_ends_its_own_look(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A MemoryError over a card is that card's: the next address is looked at."""
    looked: list[str] = []

    async def fetch(address: str, *rest: object) -> None:
        looked.append(address)
        raise MemoryError

    monkeypatch.setattr("federation.membership.bootstrap.fetch_cards", fetch)
    nothing, signer = cast(Any, None), Signer(PrivateKey.generate(), SigningClock(lambda: 0))
    peers = Peers(nothing, Keys("home"), signer)
    context = Context("home", signer, nothing, nothing, peers, Keys("home"))
    bootstrap = Bootstrap(context, WakeUps())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bootstrap.run)
        for number in (1, 2):
            bootstrap.heard([Sighting(f"{number:064x}", "b" * 64, f"192.0.2.{number}", 1)])
            await trio.sleep(5)
        assert looked == ["192.0.2.1:1", "192.0.2.2:1"]
        nursery.cancel_scope.cancel()


async def test_one_message_of_a_mailbox_ends_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The others that came with it are answered."""
    answered: list[str] = []

    async def handle(request: Request) -> Response:
        if request.path == "/v2/submit":
            raise MemoryError
        answered.append(request.path)
        return Response(200, b"fine")

    class Mailbox:
        id = "a" * 64

    collector = MailboxPoller(handle, random.Random(1))
    parcels = [Parcel(b"1", "/v2/submit", b"", 0), Parcel(b"2", "/v2/cancel", b"", 0)]

    async def exchange(connection: object, wish: object) -> list[Parcel]:
        await trio.sleep(1)
        taken, parcels[:] = parcels[:], []
        return taken

    collector._exchange = exchange  # type: ignore[method-assign]
    with trio.move_on_after(10):
        await collector.collect_forever(cast(PeerConnection, Mailbox()))
    assert answered == ["/v2/cancel"]


@pytest.mark.parametrize("where", ["task", "link", "close"])
async def test_one_peers_trouble_is_its_own(
    where: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever fails about a peer, the tasks of the others go on."""
    turns: list[str] = []

    class Way:
        def __init__(self, peerid: str) -> None:
            self.id = peerid

        async def close(self) -> None:
            if where == "close" and self.id == "bad":
                raise _Nothing

    def link_to(entry: PeerState) -> PeerConnection:
        if where == "link" and entry.peer.id == "bad":
            raise MemoryError
        return cast(PeerConnection, Way(entry.peer.id))

    async def task(link: PeerConnection) -> None:
        while True:
            turns.append(link.id)
            if where == "task" and link.id == "bad":
                raise MemoryError
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        peer_sessions = PeerSessions({}, link_to, [task])
        peer_sessions.open(nursery)
        for peerid in ("bad", "good"):
            peer_sessions.begin(peerid, PeerState(Peer(peerid)))
        await trio.sleep(5.5)
        peer_sessions.end("bad")
        turns.clear()
        await trio.sleep(2)
        assert turns == ["good", "good"]
        nursery.cancel_scope.cancel()


async def test_one_key_of_an_agenda_fails_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A cron that fails in a way that nobody expected does not stop the others."""
    acted: list[str] = []

    async def act(key: str) -> float:
        acted.append(key)
        if key == "bad":
            raise _Nothing
        return 1.0

    index = TimerIndex(Cron, due, owner)
    for key in ("bad", "good"):
        index.learn(key, Cron(key, "dev", key, "a" * 64, "ann", nextrun=1), 1)
    with trio.move_on_after(10.5):
        await follow(index, lambda: 2, act)
    assert acted.count("good") >= 9
    assert acted.count("bad") == 1, "it is left alone for a while"


RUN = Running("", "cli", 0, 1, "", "ann")


async def test_one_deadline_that_fails_keeps_no_other() -> None:
    """Each comes up again, and each is tried."""
    tried: list[str] = []

    class TimerIndex:
        def __init__(self, found: list[Any]) -> None:
            self.found, self.kept = found, list[Any]()

        def overdue(self, now: int) -> list[Any]:
            found, self.found = self.found, []
            return found

        def again(self, entry: Any) -> None:
            self.kept.append(entry)

    class Fake:
        queue = TimerIndex([])
        running = TimerIndex([("dev", "one", RUN), ("dev", "two", RUN)])

        clock = Clock(lambda: 1)

        @staticmethod
        async def change_quietly(colony: str, pid: str, step: object) -> None:
            tried.append(pid)
            if pid == "one":
                raise _Nothing

    class HandOuts:
        @staticmethod
        async def look_again() -> None:
            return None

    with pytest.raises(_Nothing):
        await expire(cast(Processes, Fake), cast(Assigner, HandOuts))
    assert tried == ["one", "two"]
    assert Fake.running.kept == ["one"]


@pytest.mark.parametrize("file", ["node/daemon/main.py", "federation/service/main.py"])
def test_the_daemons_own_tasks_are_kept_going(file: str) -> None:
    """No task in the nurseries that the daemon stands on can end it."""
    text = (REPOSITORY / file).read_text()
    starts = re.findall(r"(?:start_soon|nursery\.start|outer\.start)\(\s*([\w.]+)", text)
    assert len(starts) > 5
    alone = {
        start
        for start in starts
        # `_every` contains each turn; a port that can't be served ends the daemon.
        if start not in ("keep_going", "self._every", "door.serve", "functools.partial")
    }
    assert alone == _OF_THEIR_OWNER.get(file, set())

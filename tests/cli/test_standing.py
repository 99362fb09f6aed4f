"""Work that nobody can take, and what else hinders it: told by status, doctor and the wait."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from cli.ops.doctor import check_daemon_clock, check_mailboxes
from cli.ops.status import clients, mailboxes
from cli.work.waiting import words
from cli.work.why import Answers, Kind, Why, explain
from federation.peers.unreachable import cannot_be, wrong_peers
from node.etcd.client import EtcdClient
from node.handlers.status import nobody_takes, standing_of
from node.host.config import Config, FederationConfig, PeerConfig, RouteConfig
from node.model.types import Executor, ExecutorState, Waiting
from node.processes.eligibility import unschedulable
from node.processes.queue import Queue, QueueEntry
from node.store.directory import Roster
from tests.cli.terminal import on_screen
from tests.federation.routing.support import Side
from tests.support.daemons import REPOSITORY, Daemon

Row = dict[str, Any]
APPROVED, PENDING = ExecutorState.APPROVED, ExecutorState.PENDING


def roster(*executors: tuple[str, str, str, ExecutorState]) -> Roster:
    made = [
        Executor("e" * 64, kind, name, "dev", state=state, locationname=place)
        for name, kind, place, state in executors
    ]
    return Roster(executors={each.executorname: each for each in made})


def line(
    queue: Queue, kind: str, count: int = 1, names: list[str] | None = None, place: str = ""
) -> None:
    for _ in range(count):
        number = len(queue.entries)
        waiting = Waiting(names or [], place, 0, 0, 0, "", "ann")
        queue.add(QueueEntry(number, f"{number:064}", 1, "dev", kind, waiting))


def reasons(queue: Queue, members: Roster) -> dict[str, tuple[int, bool]]:
    return {each.why: (each.count, each.more) for each in unschedulable(queue, members, "dev", 16)}


def test_who_is_approved_takes_work_whether_heard_from_or_not() -> None:
    queue = Queue()
    line(queue, "cli", 3)
    line(queue, "cli", 1, place="HALL")
    line(queue, "cli", 1, names=["w", "nobody"])
    assert reasons(queue, roster(("w", "cli", "hall", APPROVED))) == {}
    assert reasons(queue, roster(("w", "cli", "", APPROVED))) == {
        'no executor of type "cli" is at "HALL"': (1, False)
    }
    assert (
        list(reasons(queue, roster(("w", "cli", "", PENDING))))
        == [
            'executor "w" of type "cli" waits for approval',
            'executor "w" of type "cli" waits for approval',
        ][:1]
    )


def test_each_reason_is_counted() -> None:
    queue = Queue()
    line(queue, "gpu", 5_000)
    line(queue, "cli", 2, names=["a", "b"])
    line(queue, "cli", 500, place="roof")
    found = reasons(queue, roster(("w", "cli", "hall", APPROVED)))
    assert found == {
        'no executor of type "gpu" is registered': (5_000, False),
        'no executor "a" or "b" of type "cli" is registered': (2, False),
        'no executor of type "cli" is at "roof"': (200, True),
    }


def test_a_deep_queue_that_is_served_hides_nothing() -> None:
    queue = Queue()
    line(queue, "cli", 10_000)
    line(queue, "gpu", 1)
    assert list(reasons(queue, roster(("w", "cli", "", APPROVED)))) == [
        'no executor of type "gpu" is registered'
    ]


async def test_what_a_route_leads_to_a_peer_does_not_wait_in_vain(client: EtcdClient) -> None:
    routes = [RouteConfig(func="f", when="no-executor", to="bee")]
    ant, bee = Side(client, "ant", *routes), Side(client, "bee")
    await ant.befriend(bee, offers=False)
    process = await ant.submit()
    (vain,) = await nobody_takes(ant.node)
    assert vain["why"] == 'no executor of type "cli" is registered'
    assert standing_of(ant.node, process)["why"] == vain["why"]
    ant.hear(bee, 1)
    assert await nobody_takes(ant.node) == []
    assert standing_of(ant.node, process)["route"] == 'route 1 (func "f", no-executor → bee)'


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0:50081", "stands for all"),
        ("[::]:50081", "stands for all"),
        ("https://[::ffff:0.0.0.0]:50081", "stands for all"),
        ("192.0.2.1:0", "is not host:port"),
        ("192.0.2.1", "is not host:port"),
        ("224.0.0.251:50081", "groups"),
        ("255.255.255.255:50081", "groups"),
        ("[fe80::1]:50081", "%INTERFACE"),
        ("192.0.2.9:50081", "this colony's own"),
        ("[fe80::1%eth0]:50081", ""),
        ("192.0.2.1:50081", ""),
        ("127.0.0.1:50083", ""),
        ("lab.example.org:50081", ""),
    ],
)
def test_addresses_that_cannot_be_another_colonys(address: str, why: str) -> None:
    found = cannot_be(address, ["192.0.2.9:50081"])
    assert why in found
    assert bool(why) == bool(found)


def test_a_configured_peer_that_is_this_colony() -> None:
    mine = FederationConfig(port=50083, host="192.0.2.1")
    peers = [PeerConfig(url=url) for url in ("localhost:50083", "192.0.2.1:50083", "other:50083")]
    assert list(wrong_peers(Config(federation=mine, peers=peers))) == [
        "localhost:50083",
        "192.0.2.1:50083",
    ]


def test_a_clock_is_judged_by_the_time_that_the_question_took() -> None:
    assert list(check_daemon_clock(1000.0, 995.0, 1005.0)) == []
    assert list(check_daemon_clock(1000.0, 900.0, 1005.0)) == []  # slow, and not wrong
    assert list(check_daemon_clock(None, 1.0, 2.0)) == []
    (ahead,) = check_daemon_clock(8200.0, 1000.0, 1001.0)
    assert (
        ahead.ok,
        "1 h 59 min ahead of this host's" in ahead.detail or "2 h" in ahead.detail,
    ) == (
        False,
        True,
    )
    (behind,) = check_daemon_clock(1000.0, 1100.0, 1100.1)
    assert "behind this host's" in behind.detail


def test_what_the_wait_says() -> None:
    pid = "ab" * 32

    def reason_of(told: Row, forward: Row | None = None, **more: Any) -> Why:
        process = {"processid": pid, "state": 0, **more.pop("process", {})}
        return explain(Answers(process, forward, told, **more))

    running = reason_of({}, process={"state": 1})
    assert (running.kind, running.hindered) == (Kind.RUNNING, False)
    paused = reason_of({"paused": True, "why": "x"})
    assert (paused.kind, paused.hindered) == (Kind.PAUSED, True)
    assert "paused" in paused.headline
    there = reason_of({"peer": "cd" * 32})
    assert (there.kind, there.reasons) == (Kind.FORWARDED, [])
    assert words(pid, there) == (
        "abababababab waits: it is with colony cdcdcdcdcdcd, or on its way there"
    )
    away = reason_of({"peer": "cd" * 32}, {"peername": "cat", "lasterror": "no answer"})
    assert (away.kind, away.hindered) == (Kind.AWAY, True)
    assert "colony peer ping cat" in away.next
    silent = {"state": "accepted", "peername": "cat", "lasterror": "no answer"}
    assert reason_of({}, silent, process={"state": 1}).hindered
    parents = [
        {"processid": each * 32, "state": state, "spec": {"nodename": "fetch"}}
        for each, state in (("ef", 1), ("aa", 0), ("bb", 2), ("cc", 0))
    ]
    after = {"parents": ["ef" * 32, "aa" * 32, "bb" * 32]}
    first = reason_of({"parents": True}, process=after, siblings=parents)
    assert (first.kind, [each.text for each in first.reasons]) == (
        Kind.PARENTS,
        ["fetch (efefefefefef) is running", "fetch (aaaaaaaaaaaa) is waiting"],
    )
    assert (first.reasons[0].process, first.next) == (
        "ef" * 32,
        "`colony process why aaaaaaaaaaaa`",
    )
    told = {"ahead": 2, "able": 1, "asking": 0, "executors": ["w"]}
    queued = reason_of(told)
    assert (queued.kind, queued.hindered) == (Kind.SILENT, True)
    assert queued.reasons[0].text == (
        "2 processes before it in the queue; who can take it: w; asking for work now: none"
    )
    assert reason_of(told | {"asking": 1}).headline == "Soon: 1 executor asks for work now"
    assert reason_of({}).kind is Kind.UNKNOWN


# -- from outside ------------------------------------------------------------------------------


Colony = Callable[..., Result]


@pytest.fixture
def colony(lone_daemon: Daemon) -> Colony:
    def run(*args: str, code: int = 0) -> Result:
        command = ["--home", str(lone_daemon.home), "--server", f"127.0.0.1:{lone_daemon.port}"]
        result = CliRunner().invoke(main, [*command, *args], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


def findings(colony: Colony, name: str) -> list[str]:
    """What the doctor warns of; that federation is off is no fault."""
    found = json.loads(colony("doctor", "--json").stdout)["checks"]
    return [each["detail"] for each in found if each["name"] == name and not each["ok"]]


@pytest.mark.slow
def test_work_that_nobody_can_take_is_told_everywhere(colony: Colony) -> None:
    waited = colony(
        "run", "--func", "f", "--executor-type", "gpu", "--wait", "--timeout", "6", code=5
    )
    assert waited.stderr.count('nobody can take it: no executor of type "gpu" is registered') == 1
    assert "colony worker --type gpu" in waited.stderr
    assert "nobody takes" in colony("status").stdout
    (stuck_,) = json.loads(colony("status", "--json").stdout)["stuck"]
    assert (stuck_["count"], stuck_["executortype"]) == (1, "gpu")
    assert findings(colony, "waiting") == [
        'nobody can take 1 process: no executor of type "gpu" is registered'
    ]
    colony("executor", "add", "g1", "--type", "gpu")
    assert "g1" in findings(colony, "waiting")[0]
    assert "waits for approval" in findings(colony, "waiting")[0]
    colony("executor", "approve", "g1")
    assert findings(colony, "waiting") == []
    assert json.loads(colony("status", "--json").stdout)["stuck"] == []


@pytest.mark.slow
def test_a_pause_is_told_everywhere(colony: Colony) -> None:
    colony("executor", "create", "p1", "--type", "pausing")
    colony("process", "pause")
    waited = colony(
        "run", "--func", "f", "--executor-type", "pausing", "--wait", "--timeout", "4", code=5
    )
    assert "assignments are paused" in waited.stderr
    assert "colony resume" in waited.stderr
    assert "paused" in colony("status").stdout
    assert len(findings(colony, "paused")) == 1
    colony("process", "resume")
    assert "paused" not in colony("status").stdout
    assert findings(colony, "paused") == []


@pytest.mark.slow
def test_on_a_terminal_the_place_in_the_line_is_told(colony: Colony, lone_daemon: Daemon) -> None:
    colony("executor", "create", "t1", "--type", "tty")
    colony("run", "--func", "f", "--executor-type", "tty")
    ours, theirs = pty.openpty()
    command = f"--server 127.0.0.1:{lone_daemon.port} run --func f --executor-type tty"
    wait = ["--wait", "--timeout", "3"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cli.main",
            "--home",
            str(lone_daemon.home),
            *command.split(),
            *wait,
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (5, b"")
    assert "waits: 1 executor could take it, and none asks for work" in shown
    assert (
        "1 process before it in the queue; who can take it: t1; asking for work now: none" in shown
    )


@pytest.mark.slow
def test_why_a_process_waits_is_told_on_request_and_on_a_terminal(
    colony: Colony, lone_daemon: Daemon
) -> None:
    waiting = ["-F", "f", "-T", "why-gpu"]
    processid = colony("run", *waiting).stdout.strip()
    told = colony("process", "why", processid[:12]).stdout
    assert f'{processid[:12]} waits: nobody can take it: no executor of type "why-gpu"' in told
    assert "next: start one, such as `colony worker --type why-gpu ...`" in told
    reason = json.loads(colony("process", "why", processid, "--json").stdout)
    assert (reason["kind"], reason["hindered"]) == ("nobody", True)
    shown = on_screen(lone_daemon, "run", *waiting, "--wait", "--timeout", "4", until=b"next:")
    assert b"waits: nobody can take it" in shown
    quiet = on_screen(lone_daemon, "run", *waiting, "-w", "-q", "--timeout", "4")
    assert b"waits:" not in quiet
    assert b"is not finished: nobody can take it" in quiet, "an error stays"
    colony("executor", "add", "w1", "-T", "why-gpu", "--approve")
    assert "who can take it: w1" in colony("process", "why", processid).stdout
    colony("process", "assign", "--as", "w1")
    assert "it is running" in colony("process", "why", processid).stdout


@pytest.mark.slow
def test_another_daemon_at_our_port(lone_daemon: Daemon, tmp_path: Path) -> None:
    home = tmp_path / "other"
    command = ["--home", str(home)]
    assert CliRunner().invoke(main, [*command, "init", "--name", "other"]).exit_code == 0
    (home / "config.toml").write_text(f"[rpc]\nport = {lone_daemon.port}\n")
    result = CliRunner().invoke(main, [*command, "doctor"])
    assert result.exit_code == 1
    assert "✗ daemon: it is not this home's: its server id is" in result.stdout


@pytest.mark.slow
def test_an_address_that_cannot_be_one_is_refused_in_an_invitation(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("ant").start()
    command = ["--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", "peers"]
    result = CliRunner().invoke(main, [*command, "invite", "--address", "0.0.0.0:50081"])
    assert result.exit_code == 1
    assert "stands for all addresses of a host" in result.stderr


def test_mailboxes_that_serve_us_and_those_whom_we_serve() -> None:
    told = {
        "ours": [{"id": "a" * 64, "name": "lab"}, {"id": "b" * 64, "name": "hub"}],
        "held": [{"id": "c" * 64, "name": "boat", "messages": 2}],
    }
    assert (mailboxes(told), clients(told)) == ("lab, hub", "boat (2 messages)")
    ours, held = check_mailboxes(told, {"verdict": "unreachable"})
    assert (ours.ok, held.ok) == (True, True)
    assert "lab, hub" in ours.detail
    assert "boat" in held.detail
    (none,) = check_mailboxes({"ours": [], "held": []}, {"verdict": "unreachable"})
    assert none.ok is None
    assert "trust a reachable colony" in none.next
    for reach in (None, {"verdict": "reachable"}, {"verdict": "unknown"}):
        assert list(check_mailboxes({"ours": [], "held": []}, reach)) == []
    assert (mailboxes(None), clients(None)) == ("", ""), "of an older daemon"

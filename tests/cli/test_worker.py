"""`colony worker`: running commands, settling earlier lives, lost connections, signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import anyio
import pytest
import trio
from click.testing import CliRunner

from cli.core.errors import Failure, failure_of
from cli.main import main
from cli.worker.command import parse_function
from cli.worker.shell import ShellHandler
from cli.worker.subprocess import open_guard, output_of, run_command
from colonyd.errors import NotPermitted
from colonyd.keys import PrivateKey
from colonyd.names import in_file
from colonyd.rpc import RpcClient
from colonyd.worker.engine import Engine
from colonyd.worker.place import default_name
from colonyd.worker.registration import Registration
from colonyd.worker.results import Results
from node.host.home import init_home
from node.model.ids import valid_name
from tests.support.rpc_server import ColonyServer, Queue, Refuse


@pytest.fixture
def server() -> Iterator[ColonyServer]:
    with ColonyServer() as running:
        yield running


@pytest.fixture
async def client(server: ColonyServer) -> AsyncIterator[RpcClient]:
    async with RpcClient(f"http://{server.address}") as client:
        yield client


class Rig:
    """A worker whose reports the test can wait for; it stops at the event the test names."""

    def __init__(self, client: RpcClient, results: Path, until: str, **functions: str) -> None:
        self.until = until
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.stop = anyio.Event()
        self.key = PrivateKey.generate()
        owner = PrivateKey.generate()
        results.mkdir(exist_ok=True)
        handlers = {name: ShellHandler(command, {}) for name, command in functions.items()}
        listed: dict[str, list[dict[str, str]]] = {name: [] for name in functions}
        registration = Registration(
            client,
            "dev",
            "w",
            "cli",
            listed,
            self.key,
            lambda: owner,
            True,
            self.told,
            self.stop,
        )
        self.worker = Engine(registration, handlers, Results(results))

    def told(self, event: str, details: Mapping[str, object]) -> None:
        self.report(event, details)

    def report(self, event: str, details: Mapping[str, object]) -> None:
        self.events.append((event, details))
        if event == self.until:
            self.stop.set()

    async def run(self) -> list[str]:
        with trio.fail_after(50):
            await self.worker.work()
        return [event for event, _ in self.events]


async def test_a_process_from_registration_to_close(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    processid = queue.add("up", ["a", "b"])
    rig = Rig(client, tmp_path / "r", "successful", up="tr a-z A-Z")
    assert await rig.run() == ["registered", "ready", "started", "successful"]
    assert queue.processes[processid]["state"] == 2
    assert queue.processes[processid]["out"] == ["A", "B"]  # a JSON array came out of tr
    assert queue.executors["w"]["state"] == 1
    assert [function["funcname"] for function in queue.functions] == ["up"]
    assert list((tmp_path / "r").iterdir()) == []


async def test_failing_and_unknown_functions(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    bad, unknown = queue.add("bad"), queue.add("what")
    rig = Rig(client, tmp_path / "r", "never", bad="echo no luck >&2; exit 3")
    seen = iter(("failed", "failed"))

    def report(event: str, details: Mapping[str, object]) -> None:
        if event == "failed":
            next(seen)
            if queue.processes[unknown]["state"] == 3:
                rig.stop.set()

    vars(rig)["report"] = report
    await rig.run()
    assert queue.processes[bad]["errors"] == ["the command ended with status 3", "no luck"]
    assert "no function 'what'; it has: bad" in queue.processes[unknown]["errors"][0]


async def test_a_result_survives_lost_close_replies(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    server.drop["closesuccessfulmsg"] = 2
    rig = Rig(client, tmp_path / "r", "successful", f="echo done")
    assert (await rig.run()).count("unreachable") == 2
    assert queue.processes[processid]["out"] == ["done"]


async def test_an_assign_whose_reply_is_lost_is_run(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    server.drop["assignprocessmsg"] = 1
    rig = Rig(client, tmp_path / "r", "successful", f="echo done")
    await rig.run()
    assert queue.processes[processid]["out"] == ["done"]


@pytest.mark.parametrize("state", [0, 1])
async def test_a_server_can_not_have_files_written_elsewhere(
    server: ColonyServer, client: RpcClient, tmp_path: Path, state: int
) -> None:
    """Results are kept under the ids of processes, and those the server chooses."""
    queue = Queue(server)
    results = tmp_path / "r"
    rig = Rig(client, results, "refused", f="echo done")
    elsewhere = tmp_path / "kept.json"
    elsewhere.write_text("mine")
    there = queue.add("f", state=state, assignedexecutorid=rig.key.id if state else "")
    queue.processes[there]["processid"] = f"{results}/../kept"
    events = await rig.run()
    assert "started" not in events
    assert elsewhere.read_text() == "mine"
    assert "closesuccessfulmsg" not in server.kinds()
    assert "closefailedmsg" not in server.kinds()


async def test_what_an_earlier_life_left(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    rig = Rig(client, tmp_path / "r", "ready", f="echo done")
    kept = queue.add("f", state=1, assignedexecutorid=rig.key.id)
    broken = queue.add("f", state=1, assignedexecutorid=rig.key.id)
    other = queue.add("f", state=1, assignedexecutorid="another")
    (tmp_path / "r" / f"{kept}.json").write_text(json.dumps({"out": ["kept"], "errors": []}))
    await rig.run()
    assert queue.processes[kept]["out"] == ["kept"]
    assert "stopped before" in queue.processes[broken]["errors"][0]
    assert queue.processes[other]["state"] == 1
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.parametrize("command", ["echo done", "false"])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "the process is not assigned to this executor"),
        (400, "the process is failed, not running"),
    ],
)
async def test_a_result_not_wanted_is_dropped(
    server: ColonyServer, client: RpcClient, tmp_path: Path, status: int, message: str, command: str
) -> None:
    queue = Queue(server)
    queue.add("f")

    def refuse(payload: object, caller: str) -> object:
        raise Refuse(status, message)

    server.answers |= dict.fromkeys(("closesuccessfulmsg", "closefailedmsg"), refuse)
    rig = Rig(client, tmp_path / "r", "refused", f=command)
    assert "successful" not in await rig.run()
    assert not list((tmp_path / "r").iterdir())


async def test_a_rejected_executor_leaves(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    rig = Rig(client, tmp_path / "r", "ready", f="true")
    queue.executors["w"] = {"executorid": rig.key.id, "executortype": "cli", "state": 2}
    with pytest.raises(NotPermitted, match="rejected") as caught:
        await rig.run()
    assert failure_of(caught.value).exit_code == 4


async def test_cancellation_of_a_command_reports_it(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    rig = Rig(client, tmp_path / "r", "never", f="sleep 60")
    with trio.CancelScope() as scope:
        started = rig.report

        def report(event: str, details: Mapping[str, object]) -> None:
            started(event, details)
            if event == "started":
                scope.cancel()

        vars(rig)["report"] = report
        await rig.run()
    assert queue.processes[processid]["state"] == 3


async def test_command_environment_and_streams() -> None:
    environ = {"COLONYD_KWARGS": '{"k": 1}', "COLONYD_FUNCTION": "f", "COLONYD_PROCESS_ID": "p"}
    command = 'read -r args; echo "$args|$COLONYD_KWARGS|$COLONYD_FUNCTION|$COLONYD_PROCESS_ID"'
    ending = await run_command(command, ["ä", 1], environ)
    assert ending.out == ['["\\u00e4", 1]|{"k": 1}|f|p']
    assert (await run_command("kill -9 $$", [], {})).errors == ["the command ended with signal 9"]
    assert (
        await run_command("true", ["x" * 1_000_000], {})
    ).ok  # stdin unread and larger than a pipe


async def test_command_output_is_bounded() -> None:
    ending = await run_command("yes", [], {}, most_output=10_000)
    assert "larger than 10000" in ending.errors[0]


async def test_a_cancelled_command_takes_its_children_along(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_command, f"sleep 60 & echo $! > {pid_file}; wait", [], {})
        child = os.pidfd_open(int(await trio.Path(pid_file).read_text()))
        nursery.cancel_scope.cancel()
    try:
        with trio.fail_after(50):
            await trio.lowlevel.wait_readable(child)  # readable once the process has ended
    finally:
        os.close(child)


@pytest.mark.parametrize(
    ("stdout", "out"),
    [
        (b"", [""]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a\n"]),
        (b'["a", 1]\n', ["a", 1]),
        (b"[not json", ["[not json"]),
        (b'{"a": 1}', ['{"a": 1}']),
        (b"\xff", ["\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_output_of(stdout: bytes, out: list[object]) -> None:
    assert output_of(stdout) == out


def test_an_array_that_a_daemon_would_refuse_is_one_text() -> None:
    taken, refused = (json.dumps([1] * count).encode() for count in (99_000, 100_001))
    assert output_of(taken) == [1] * 99_000
    assert output_of(refused) == [refused.decode()]
    strings = json.dumps(["a"] * 60_000).encode()  # a string and a comma each
    assert output_of(strings) == [strings.decode()]


async def test_an_output_of_several_megabytes_is_taken_and_a_larger_one_named() -> None:
    ending = await run_command("head -c 7900000 /dev/zero | tr '\\0' a", [], {})
    assert ending.out == ["a" * 7_900_000]
    ending = await run_command("head -c 8000001 /dev/zero", [], {})
    assert ending.errors == ["the command's output is larger than 8000000 bytes"]
    ending = await run_command("head -c 3000000 /dev/zero", [], {})  # "\\u0000" each
    assert ending.errors == ["the command's output is larger than 12000000 bytes as JSON"]


async def test_named_arguments_that_the_kernel_does_not_take_are_named() -> None:
    ending = await run_command("true", [], {"COLONYD_KWARGS": "x" * 131_072})
    assert "COLONYD_KWARGS has 131088 bytes" in ending.errors[0]
    assert "128 KiB" in ending.errors[0]
    assert (await run_command("true", [], {"COLONYD_KWARGS": "x" * 131_056})).ok


@pytest.mark.parametrize("status", [400, 413])
async def test_an_output_that_a_proxy_refuses_fails_the_process(
    server: ColonyServer, client: RpcClient, tmp_path: Path, status: int
) -> None:
    """Its answer is a page, and says the same; the process must not run again."""
    queue = Queue(server)
    processid = queue.add("f")

    def refuse(payload: dict[str, object], caller: str) -> None:
        raise Refuse(status, "nginx", page=True)

    server.answers["closesuccessfulmsg"] = refuse
    assert (await Rig(client, tmp_path / "r", "failed", f="echo a").run())[-1] == "failed"
    assert queue.processes[processid]["state"] == 3


async def test_a_proxy_without_its_server_is_waited_for(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    queue, pages = Queue(server), [503, 404, 502]
    processid = queue.add("f")
    assign = server.answers["assignprocessmsg"]

    def away(payload: dict[str, object], caller: str) -> object:
        if pages:
            raise Refuse(pages.pop(), "nginx", page=True)
        return assign(payload, caller)

    server.answers["assignprocessmsg"] = away
    await Rig(client, tmp_path / "r", "successful", f="echo a").run()
    assert queue.processes[processid]["state"] == 2


async def test_a_refused_output_fails_the_process_with_the_reason(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    """It must not be offered for ever, nor run again."""
    queue = Queue(server)
    processid = queue.add("f")

    def refuse(payload: dict[str, object], caller: str) -> None:
        raise Refuse(413, "out: too much")

    server.answers["closesuccessfulmsg"] = refuse
    events = await Rig(client, tmp_path / "r", "failed", f="echo a").run()
    assert events[-2:] == ["refused", "failed"]
    assert queue.processes[processid]["state"] == 3
    assert queue.processes[processid]["errors"] == ["the colony refused the output: out: too much"]
    assert list((tmp_path / "r").iterdir()) == []


async def test_only_regular_files_are_results(
    server: ColonyServer, client: RpcClient, tmp_path: Path
) -> None:
    Queue(server)
    results = tmp_path / "r"
    results.mkdir()
    os.mkfifo(results / "x.json")
    rig = Rig(client, results, "ready", f="true")
    assert "set aside" in await rig.run()
    assert [path.name for path in results.iterdir()] == ["x.unusable"]


async def test_the_guard_kills_only_what_it_still_has_to_watch() -> None:
    """Also after it was told to forget what it never watched: a command cancelled at its start."""
    argv = ["/bin/sh", "-c", "exec sleep 60"]
    children = [await trio.lowlevel.open_process(argv, start_new_session=True) for _ in "ab"]
    watched, ended = children
    try:
        async with open_guard() as guard:
            for child in children:
                await guard.watch(child.pid)
            await guard.forget(2**22 + 1)
            await guard.forget(ended.pid)
        with trio.fail_after(10):
            assert await watched.wait() == -signal.SIGKILL
        assert ended.poll() is None
    finally:
        with trio.CancelScope(shield=True):
            for child in children:
                child.kill()
                await child.wait()


def test_options() -> None:
    assert parse_function("a=b=c d") == ("a", "b=c d")
    for text in ("a", "=b", "a=", "a= "):
        with pytest.raises(Failure) as caught:
            parse_function(text)
        assert caught.value.exit_code == 2
    assert valid_name(default_name("cli"))


def test_sigterm_finishes_the_command_in_hand(server: ColonyServer, tmp_path: Path) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    init_home(tmp_path / "home", "dev", {})
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = [sys.executable, "-m", "cli.main", "--home", str(tmp_path / "home"), "--server"]
    command += [server.address, "--json", "worker", "--name", "w", "--func", f"f=cat {gate}"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COLON")}
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root, env=environ
    ) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        for line in worker.stdout:
            if json.loads(line)["event"] == "started":
                break
        worker.send_signal(signal.SIGTERM)
        assert b"finishing" in worker.stderr.readline()
        gate.write_text("done\n")
        worker.communicate(timeout=90)
    assert worker.returncode == 0
    assert queue.processes[processid]["out"] == ["done"]


@pytest.mark.parametrize("name", ["w ß", "eve@example.org", "a/b", ".."])
def test_a_worker_has_any_name_that_a_colony_takes(
    server: ColonyServer, tmp_path: Path, name: str
) -> None:
    queue = Queue(server)
    init_home(tmp_path / "home", "dev", {})
    rejected = {"executorname": name, "executortype": "cli", "state": 2}
    server.answers["getexecutorsmsg"] = lambda payload, caller: [rejected | {"executorid": caller}]
    args = ["--home", str(tmp_path / "home"), "--server", server.address]
    done = CliRunner().invoke(main, [*args, "worker", "--name", name, "--func", "f=true"], env={})
    assert done.exit_code == 4, done.output
    assert f"colony executor approve {shlex.quote(name)}" in done.stderr
    assert queue.executors == {}
    made = {path.relative_to(tmp_path / "home") for path in (tmp_path / "home").glob("results/*")}
    assert made == {Path("results", in_file(name))}
    assert [path.name for path in (tmp_path / "home").glob("*.lock")] == [
        f"{in_file(f'worker-{name}')}.lock"
    ]


def test_a_command_gets_no_keys_of_the_workers_environment(
    server: ColonyServer, tmp_path: Path
) -> None:
    queue = Queue(server)
    processid = queue.add("f")
    init_home(tmp_path / "home", "dev", {})
    command = [sys.executable, "-m", "cli.main", "--home", str(tmp_path / "home"), "--server"]
    command += [server.address, "--json", "worker", "--name", "w", "--func", "f=env"]
    secrets = dict.fromkeys(
        ("COLONIES_COLONY_PRVKEY", "AWS_S3_SECRETKEY", "DATABASE_URL"), PrivateKey.generate().hex
    )
    environ = {"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8", "CAMERA": "2", **secrets}
    root = str(Path(__file__).parents[2])
    unset = subprocess.run(
        [*command, "--env", "CAM"], capture_output=True, cwd=root, env=environ, check=False
    )
    assert (unset.returncode, b"CAM: not set" in unset.stderr) == (2, True)
    with subprocess.Popen(
        [*command, "--env", "CAMERA"], stdout=subprocess.PIPE, cwd=root, env=environ
    ) as worker:
        assert worker.stdout is not None
        assert any(json.loads(line)["event"] == "successful" for line in worker.stdout)
        worker.send_signal(signal.SIGTERM)
    out = queue.processes[processid]["out"][0]
    names = {line.partition("=")[0] for line in out.splitlines()}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} == {
        "PATH", "LC_CTYPE", "CAMERA", "COLONYD_PROCESS_ID", "COLONYD_FUNCTION", "COLONYD_KWARGS",
        "COLONYD_PROGRESS",
    }  # fmt: skip
    assert not any(secret in out for secret in secrets.values())

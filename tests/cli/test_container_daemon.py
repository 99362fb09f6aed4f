"""`colony worker --container` beside a real daemon, with real containers of podman and nspawn."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.support import COLONY, ENVIRON, Worker, colony
from tests.support.containers import IMAGE, Podman, make_root, podman_with_image, require
from tests.support.daemons import Daemon

Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with podman_with_image(tmp_path_factory.mktemp("containers")) as podman:
        yield podman


@pytest.fixture
def start(lone_daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a worker of the test's own type; its functions are the words."""
    name = f"c{abs(hash(request.node.name)) % 10**8}"
    workers: list[Worker] = []

    def make(*more: str, environ: dict[str, str] | None = None) -> Worker:
        words = [*COLONY, "--home", str(lone_daemon.home), "--json"]
        words += ["--server", f"127.0.0.1:{lone_daemon.port}", "worker"]
        words += ["--name", name, "--type", name, *more]
        workers.append(ContainerWorker(words, environ or {}))
        workers[-1].event("ready")
        return workers[-1]

    make.name = name  # type: ignore[attr-defined]
    yield make
    for worker in workers:
        worker.process.terminate()
        worker.process.communicate(timeout=60)


class ContainerWorker(Worker):
    """A worker with the variables of an engine."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**ENVIRON, **environ}, cwd="/",
        )  # fmt: skip
        self.seen = []


def in_podman(podman: Podman, start: Start, *functions: str, more: tuple[str, ...] = ()) -> Worker:
    words = [word for function in functions for word in ("--container", function)]
    return start(*words, "--engine", "podman", *more, environ=podman.environ)


def call(daemon: Daemon, kind: str, **fields: Any) -> Any:
    """One call of a member: the commands would take most of the time of these tests."""

    async def asked() -> Any:
        async with daemon.client() as client:
            return await client.call(kind, fields, daemon.key("user"))

    return trio.run(asked)


def submit(daemon: Daemon, start: Start, function: str, **spec: Any) -> str:
    kind = str(vars(start)["name"])
    conditions = {
        "colonyname": daemon.name, "executortype": kind, **spec.pop("conditions", {}),
    }  # fmt: skip
    spec = {"funcname": function, "maxexectime": -1, "conditions": conditions, **spec}
    return str(call(daemon, "submitfuncspecmsg", spec=spec)["processid"])


def shown(daemon: Daemon, processid: str) -> Any:
    return call(daemon, "getprocessmsg", processid=processid)


def names(daemon: Daemon, label: str) -> list[str]:
    """The names of the files under a label."""
    rows = call(daemon, "getfilesmsg", colonyname=daemon.name, label=label) or []
    return [row["name"] for row in rows]


def ended(daemon: Daemon, start: Start, worker: Worker, function: str, **spec: Any) -> Any:
    """The process, once its container has ended."""
    processid = submit(daemon, start, function, **spec)
    worker.event("successful", "failed")
    return shown(daemon, processid)


def put(daemon: Daemon, tmp_path: Path, label: str, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    done = colony(daemon, "file", "put", str(path), "--label", label)
    assert done.returncode == 0, done.stderr


def got(daemon: Daemon, tmp_path: Path, target: str) -> str:
    to = tmp_path / "got"
    done = colony(daemon, "file", "get", target, "--to", str(to), "--force")
    assert done.returncode == 0, done.stderr
    return to.read_text()


@pytest.mark.slow
def test_a_function_in_a_container(lone_daemon: Daemon, podman: Podman, start: Start) -> None:
    """Arguments, output, log and progress are as with a shell command; little is allowed."""
    worker = in_podman(
        podman,
        start,
        f"upper={IMAGE} tr a-z A-Z",
        f"told={IMAGE} sh -c 'echo to the log >&2; echo 40% >$COLONYD_PROGRESS;"
        " echo $COLONYD_FUNCTION $COLONYD_KWARGS'",
        f"bad={IMAGE} sh -c 'echo reason >&2; exit 3'",
        f"who={IMAGE} sh -c 'id -u; touch /new 2>/dev/null || echo read-only; touch /tmp/new;"
        ' ls /sys/class/net; grep -E "CapEff|NoNewPrivs" /proc/self/status; env\'',
        f"none={IMAGE} nothing-there",
    )
    assert ended(lone_daemon, start, worker, "upper", args=["a", "b"])["out"] == ["A", "B"]
    # `podman run` waits 20 s where the engine's own cleanup of a container fails.
    assert worker.seen[-1]["seconds"] < 20
    found = ended(lone_daemon, start, worker, "told", kwargs={"k": "-v $(x)"})
    assert found["out"] == ['told {"k": "-v $(x)"}']
    log = colony(lone_daemon, "process", "logs", found["processid"]).stdout
    assert "to the log" in log
    assert "progress: 40%" in log
    found = ended(lone_daemon, start, worker, "bad")
    assert found["errors"] == ["the command ended with status 3", "reason"]
    lines = ended(lone_daemon, start, worker, "who")["out"][0].splitlines()
    assert lines[:3] == ["65534", "read-only", "lo"]
    assert "CapEff:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert not [line for line in lines if line.startswith(("CONTAINERS_", "COLONIES_"))]
    found = ended(lone_daemon, start, worker, "none")
    assert found["errors"][0] == "the command is not in the image, or can't be run"
    assert podman.running() == []


@pytest.mark.slow
def test_limits_are_held_or_named(lone_daemon: Daemon, podman: Podman, start: Start) -> None:
    worker = in_podman(
        podman, start, f"eat={IMAGE} tail /dev/zero", f"wait={IMAGE} sleep 1000",
        f"fill={IMAGE} sh -c 'head -c 3000000 /dev/zero >big; sleep 1000'",
    )  # fmt: skip
    found = ended(lone_daemon, start, worker, "eat", conditions={"mem": "32Mi", "cpu": "500m"})
    assert "killed for memory" in found["errors"][0]
    assert "32 MiB" in found["errors"][0]
    found = ended(lone_daemon, start, worker, "wait", conditions={"walltime": 1})
    assert found["errors"] == ["it was ended after 1 seconds: conditions.walltime"]
    fs = {"mount": "/cfs", "dirs": [{"label": "/none", "dir": "/"}]}
    found = ended(lone_daemon, start, worker, "fill", conditions={"storage": "1Mi"}, fs=fs)
    assert "conditions.storage" in found["errors"][0]
    found = ended(lone_daemon, start, worker, "wait", conditions={"nodes": 2})
    assert found["errors"][0].startswith("conditions.nodes: ")
    found = ended(lone_daemon, start, worker, "wait", conditions={"gpu": {"count": 1}})
    assert found["errors"][0].startswith("conditions.gpu.count: ")
    assert podman.running() == []


@pytest.mark.slow
def test_files_go_in_and_come_back(
    lone_daemon: Daemon, podman: Podman, start: Start, tmp_path: Path
) -> None:
    put(lone_daemon, tmp_path, "/job/in", "a.txt", "first")
    put(lone_daemon, tmp_path, "/job/both", "kept.txt", "old")
    put(lone_daemon, tmp_path, "/job/mine", "won.txt", "old")
    made = colony(lone_daemon, "file", "snapshot", "add", "s", "--label", "/job/in", "--json")
    snapshot = json.loads(made.stdout)["snapshotid"]
    put(lone_daemon, tmp_path, "/job/in", "a.txt", "second")
    worker = in_podman(
        podman,
        start,
        f"f={IMAGE} sh -c 'cat in/a.txt then/a.txt both/kept.txt; mkdir -p out/deep;"
        " echo result >out/deep/r.txt; echo new >both/kept.txt; echo new >mine/won.txt'",
        f"fails={IMAGE} sh -c 'echo lost >out/lost.txt; exit 1'",
    )
    dirs: list[dict[str, Any]] = [
        {"label": "/job/in", "dir": "/in"},
        {"label": "/job/out/{processid}", "dir": "/out"},
        {"label": "/job/both", "dir": "/both"},
        {"label": "/job/mine", "dir": "/mine", "onconflicts": {"onclose": {"keeplocal": True}}},
    ]
    then = [{"snapshotid": snapshot, "label": "/job/in", "dir": "/then", "keepsnapshot": True}]
    fs = {"mount": "/cfs/job", "dirs": dirs, "snapshots": then}
    found = ended(lone_daemon, start, worker, "f", fs=fs)
    assert found["out"] == ["secondfirstold"], found["errors"]
    result = f"/job/out/{found['processid']}/deep/r.txt"
    assert got(lone_daemon, tmp_path, result) == "result\n"
    assert got(lone_daemon, tmp_path, "/job/both/kept.txt") == "old"
    assert got(lone_daemon, tmp_path, "/job/mine/won.txt") == "new\n"
    found = ended(lone_daemon, start, worker, "fails", fs=fs)
    assert found["state"] == 3
    assert names(lone_daemon, f"/job/out/{found['processid']}") == []
    assert list((lone_daemon.home / "work" / str(vars(start)["name"])).iterdir()) == []


@pytest.mark.slow
def test_a_spec_chooses_nothing_that_its_owner_did_not_give(
    lone_daemon: Daemon, podman: Podman, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the host")
    worker = in_podman(
        podman,
        start,
        f"show={IMAGE} sh -c 'ls /cfs; env'",
        f"lead={IMAGE} sh -c 'rm -r out; ln -s {tmp_path} out; ln -s {tmp_path}/secret link'",
        f"above={IMAGE} sh -c 'cd /cfs; rm -r job; ln -s {tmp_path} job'",
        f"linked={IMAGE} sh -c 'ln -s {tmp_path}/secret out/link; ln -s {tmp_path} out/more'",
        "execute=*",
        more=("--image-allow", "localhost/*"),
    )

    def errors(function: str, **spec: Any) -> str:
        return str((ended(lone_daemon, start, worker, function, **spec)["errors"] or [""])[0])

    for mount in ("/", "/bin", "/cfs/../bin", "/cfs,src=/etc", "cfs", "--privileged"):
        assert "fs.mount" in errors("show", fs={"mount": mount, "dirs": []}), mount
    for inner in ("/../x", "a/../../x"):
        fs: dict[str, Any] = {"mount": "/cfs", "dirs": [{"label": "/x", "dir": inner}]}
        assert "fs.dirs.dir" in errors("show", fs=fs), inner
    out = {"mount": "/cfs", "dirs": [{"label": "/stolen", "dir": "/out"}]}
    assert "replaced by a link" in errors("lead", fs=out)
    above = {"mount": "/cfs/job", "dirs": [{"label": "/stolen", "dir": "/"}]}
    assert "replaced by a link" in errors("above", fs=above)
    assert errors("linked", fs=out) == ""
    for label in ("/stolen", "/stolen/more"):
        assert names(lone_daemon, label) == []
    # Neither options, nor images, nor variables come from a spec.
    found = ended(
        lone_daemon, start, worker, "show", env={"LD_PRELOAD": "/x", "CONTAINERS_CONF": "/x"},
        args=["--privileged"], kwargs={"docker-image": "evil", "cmd": "--volume=/:/host"},
    )  # fmt: skip
    assert found["state"] == 2
    assert "LD_PRELOAD" not in str(found["out"])
    named = "kwargs.docker-image"
    assert named in errors("execute", kwargs={"cmd": "id"})
    for image in ("docker.io/evil", "--privileged", "localhost/../evil", f"-v=/:/h {IMAGE}"):
        assert named in errors("execute", kwargs={"docker-image": image, "cmd": "id"}), image
    kwargs = {"docker-image": IMAGE, "cmd": "echo", "args": ["as", "upstream"]}
    assert ended(lone_daemon, start, worker, "execute", kwargs=kwargs)["out"] == ["as upstream"]
    assert podman.running() == []


@pytest.mark.slow
def test_a_container_ends_with_its_process_and_with_its_worker(
    lone_daemon: Daemon, podman: Podman, start: Start
) -> None:
    functions = (f"wait={IMAGE} sh -c 'echo up >&2; sleep 1000'",)
    worker = in_podman(podman, start, *functions)
    processid = submit(lone_daemon, start, "wait")
    _await_log(lone_daemon, processid, "up")
    assert len(podman.running()) == 1
    assert colony(lone_daemon, "process", "cancel", processid).returncode == 0
    worker.event("withdrawn")
    assert podman.running() == []

    processid = submit(lone_daemon, start, "wait")
    _await_log(lone_daemon, processid, "up")
    worker.process.kill()
    worker.process.wait()
    again = in_podman(podman, start, *functions, more=("--grace", "1"))
    assert podman.running() == []
    found = shown(lone_daemon, processid)
    assert (found["state"], found["errors"]) == (
        3, ["the worker was stopped before the process had ended"],
    )  # fmt: skip

    processid = submit(lone_daemon, start, "wait")
    _await_log(lone_daemon, processid, "up")
    again.process.terminate()
    again.process.communicate(timeout=60)
    assert podman.running() == []
    assert shown(lone_daemon, processid)["state"] == 3


def _await_log(daemon: Daemon, processid: str, text: str) -> None:
    """Wait for a line in the log of a process that runs."""
    following = subprocess.Popen(
        [*COLONY, "--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}",
         "process", "logs", "-f", processid],
        stdout=subprocess.PIPE, text=True, env=ENVIRON, cwd="/",
    )  # fmt: skip
    assert following.stdout is not None
    try:
        assert any(text in line for line in following.stdout)
    finally:
        following.kill()
        following.communicate()


@pytest.mark.slow
def test_what_a_killed_worker_left_is_removed_by_the_next_start(
    lone_daemon: Daemon, podman: Podman, start: Start
) -> None:
    """Also what its guard did not get to, as when the machine's power failed."""
    function = f"f={IMAGE} true"
    worker = in_podman(podman, start, function)
    worker.process.terminate()
    worker.process.wait(60)
    listed = json.loads(colony(lone_daemon, "executor", "ls", "--json").stdout)
    executor = next(
        row["executorid"] for row in listed if row["executorname"] == vars(start)["name"]
    )
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    for label, name in ((executor, "left"), ("0" * 64, "others")):
        podman("run", "--detach", f"--name={name}", f"--label=colonyd.executor={label}",
               "--network=none", *limits, IMAGE, "sleep", "1000")  # fmt: skip
    left = lone_daemon.home / "work" / str(vars(start)["name"]) / ("a" * 64)
    left.mkdir()
    try:
        in_podman(podman, start, function)
        assert podman.running() == ["others"]
        assert not left.exists()
    finally:
        podman("rm", "--force", "--time=0", "others")


@pytest.mark.slow
def test_the_same_function_under_systemd_nspawn(
    lone_daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    require("systemd-nspawn")
    root = make_root(tmp_path / "root")
    put(lone_daemon, tmp_path, "/nspawn", "a.txt", "file")
    worker = start(
        "--engine", "nspawn",
        "--container", f"upper={root} tr a-z A-Z",
        "--container", f"f={root} sh -c 'cat a.txt; echo made >b.txt; echo to the log >&2;"
        " echo 40% >$COLONYD_PROGRESS; touch /new; grep CapEff /proc/self/status;"
        " ls /sys/class/net; wc -l </proc/self/uid_map'",
        "--container", f"bad={root} sh -c 'exit 3'",
        "--container", f"wait={root} sleep 1000",
    )  # fmt: skip
    assert ended(lone_daemon, start, worker, "upper", args=["a"])["out"] == ["A"]
    fs = {"mount": "/cfs", "dirs": [{"label": "/nspawn", "dir": "/"}]}
    found = ended(lone_daemon, start, worker, "f", fs=fs)
    assert found["out"][0].split() == ["fileCapEff:", "0" * 16, "lo", "1"], found
    assert got(lone_daemon, tmp_path, "/nspawn/b.txt") == "made\n"
    assert not (root / "new").exists()
    log = colony(lone_daemon, "process", "logs", found["processid"]).stdout
    assert "to the log" in log
    assert "progress: 40%" in log
    assert "status 3" in ended(lone_daemon, start, worker, "bad")["errors"][0]
    if not Path("/run/systemd/system").is_dir():
        found = ended(lone_daemon, start, worker, "upper", conditions={"mem": "32Mi"})
        assert found["errors"][0].startswith("conditions.mem: ")
    found = ended(lone_daemon, start, worker, "wait", conditions={"walltime": 1})
    assert found["errors"] == ["it was ended after 1 seconds: conditions.walltime"]


def test_what_an_owner_writes_wrong_is_told(tmp_path: Path) -> None:
    for words, told in (
        (["--container", "f"], "write it as NAME="),
        (["--container", "f=--privileged"], "is no image"),
        (["--container", "f=*"], "which images may a spec name"),
        (["--container", "f=i", "--mount-at", "x"], "not a directory of a container"),
        (["--container", "f=i", "--container-user", "root"], "UID or UID:GID"),
        (["--container", "f=i", "--func", "f=true"], "both name f"),
        ([], "no function"),
    ):
        done = subprocess.run(
            [*COLONY, "--home", str(tmp_path), "worker", *words],
            capture_output=True, text=True, env=ENVIRON, cwd="/", check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, told in done.stderr) == (2, True), (words, done.stderr)

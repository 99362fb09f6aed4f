"""`colony worker --slurm` beside a real daemon and a real Slurm of one node."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import COLONY, ENVIRON, Worker, colony, shown
from tests.support.daemons import Daemon
from tests.support.slurm import Slurm, running_slurm

pytestmark = pytest.mark.slow

WAITING, RUNNING, SUCCESSFUL, FAILED = range(4)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Cluster:
    """A worker of a function `f` of a test's own type, on Slurm."""

    def __init__(self, daemon: Daemon, slurm: Slurm, name: str) -> None:
        self.daemon, self.slurm, self.name = daemon, slurm, name
        self.workers: list[Worker] = []
        self.command = ""

    def start(self, command: str = "", *more: str) -> Worker:
        self.command = command or self.command
        words = [*COLONY, "--home", str(self.daemon.home), "--json"]
        words += ["--server", f"127.0.0.1:{self.daemon.port}", "worker", "--slurm"]
        words += ["--func", f"f={self.command}", "--name", self.name, "--type", self.name, *more]
        environ = {**ENVIRON, "PATH": f"{self.slurm.bin}:{os.environ['PATH']}"}
        self.workers.append(Worker(words, environ))
        self.workers[-1].event("ready")
        return self.workers[-1]

    def submit(self, *args: Any, conditions: dict[str, Any] | None = None, **spec: Any) -> str:
        spec = {"funcname": "f", "args": list(args), "maxexectime": -1, "maxretries": 0, **spec}
        spec["conditions"] = {"executortype": self.name, **(conditions or {})}
        path = self.daemon.home / f"{self.name}.spec"
        path.write_text(json.dumps(spec))
        done = colony(self.daemon, "run", "--spec", str(path))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def end(self, processid: str) -> dict[str, Any]:
        done = colony(self.daemon, "process", "wait", processid, "--timeout", "150")
        assert done.returncode in (0, 1), done.stderr
        return shown(self.daemon, processid)

    def log(self, processid: str) -> str:
        return colony(self.daemon, "process", "logs", processid).stdout

    def kill(self) -> None:
        worker = self.workers.pop()
        worker.process.send_signal(signal.SIGKILL)
        worker.process.communicate(timeout=60)

    def spool(self) -> list[str]:
        return [path.name for path in (self.daemon.home / "slurm").glob("*/*")]

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
            worker.process.communicate(timeout=60)


@pytest.fixture
def cluster(lone_daemon: Daemon, slurm: Slurm, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(lone_daemon, slurm, f"s{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.stop()


def wait_for(true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def test_a_process_is_a_job(cluster: Cluster) -> None:
    cluster.start(
        'cat; echo ", $COLONYD_KWARGS, $SLURM_JOB_NAME, $SLURM_CPUS_PER_TASK" >&2;'
        ' test "$COLONYD_PROCESS_ID" = "$SLURM_JOB_NAME"; echo 40% > $COLONYD_PROGRESS; sleep 3'
    )
    processid = cluster.submit("a", 1, kwargs={"k": "v"}, conditions={"cpu": "2000m"})
    found = cluster.end(processid)
    assert (found["state"], found["out"]) == (SUCCESSFUL, ["a", 1])
    log = cluster.log(processid)
    assert f', {{"k": "v"}}, {processid}, 2' in log
    assert "progress: 40%" in log
    wait_for(lambda: processid not in cluster.spool(), "the files of a closed process stay")


def test_lines_come_while_the_job_runs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(f"echo begun >&2; while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done")
    processid = cluster.submit()
    wait_for(lambda: "begun" in cluster.log(processid), "no line")
    assert shown(cluster.daemon, processid)["state"] == RUNNING
    (tmp_path / "go").touch()
    assert cluster.end(processid)["out"] == ["done"]


def test_a_failure_is_told_with_the_end_of_stderr(cluster: Cluster) -> None:
    cluster.start("echo it broke >&2; exit 3")
    found = cluster.end(cluster.submit())
    assert found["state"] == FAILED
    assert found["errors"] == ["the command ended with status 3", "it broke"]


def test_a_cancel_reaches_slurm(cluster: Cluster) -> None:
    cluster.start("sleep 1000")
    processid = cluster.submit()
    running = f"{processid} RUNNING"
    wait_for(lambda: running in cluster.slurm.jobs("RUNNING"), "the job does not run")
    assert colony(cluster.daemon, "process", "cancel", processid).returncode == 0
    cancelled = f"{processid} CANCELLED"
    wait_for(lambda: cancelled in cluster.slurm.jobs(), "the job goes on")
    wait_for(lambda: processid not in cluster.spool(), "the files of a cancelled process stay")


def test_a_job_outlives_its_worker_and_runs_once(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(
        f"echo run >>{tmp_path}/runs; echo first >&2;"
        f" while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo second >&2; echo done"
    )
    processid = cluster.submit()
    wait_for(lambda: "first" in cluster.log(processid), "the job does not run")
    cluster.kill()
    (tmp_path / "go").touch()
    cluster.start()
    found = cluster.end(processid)
    assert (found["state"], found["out"]) == (SUCCESSFUL, ["done"])
    assert (tmp_path / "runs").read_text() == "run\n"
    assert "second" in cluster.log(processid)
    wait_for(lambda: processid not in cluster.spool(), "the files of a closed process stay")


def test_a_worker_that_leaves_leaves_its_jobs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(f"while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done")
    processid = cluster.submit()
    running = f"{processid} RUNNING"
    wait_for(lambda: running in cluster.slurm.jobs("RUNNING"), "the job does not run")
    worker = cluster.workers.pop()
    worker.process.terminate()
    worker.process.communicate(timeout=25)
    assert worker.process.returncode == 0
    assert shown(cluster.daemon, processid)["state"] == RUNNING
    assert running in cluster.slurm.jobs("RUNNING")
    (tmp_path / "go").touch()
    wait_for(lambda: running not in cluster.slurm.jobs("RUNNING"), "the job does not end")
    cluster.start()
    assert cluster.end(processid)["out"] == ["done"]


def test_a_process_that_was_cancelled_while_no_worker_ran(cluster: Cluster) -> None:
    cluster.start("sleep 1000")
    processid = cluster.submit()
    running = f"{processid} RUNNING"
    wait_for(lambda: running in cluster.slurm.jobs("RUNNING"), "the job does not run")
    cluster.kill()
    assert colony(cluster.daemon, "process", "cancel", processid).returncode == 0
    cluster.start()
    wait_for(lambda: f"{processid} CANCELLED" in cluster.slurm.jobs(), "the job goes on")
    wait_for(lambda: processid not in cluster.spool(), "its files stay")


def test_a_job_whose_id_was_never_learned_is_found_by_its_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The worker is killed after the submission, before it has sbatch's answer."""
    sbatch = cluster.slurm.bin / "sbatch"
    as_it_is = sbatch.read_text()
    sbatch.write_text(as_it_is.replace("exec ", "", 1) + f"touch {tmp_path}/sent; exec sleep 1000")
    try:
        cluster.start(f"echo run >>{tmp_path}/runs; sleep 5; echo done")
        processid = cluster.submit()
        wait_for(lambda: (tmp_path / "sent").exists(), "nothing was submitted")
        cluster.kill()
    finally:
        sbatch.write_text(as_it_is)
    cluster.start()
    found = cluster.end(processid)
    assert (found["state"], found["out"]) == (SUCCESSFUL, ["done"])
    assert (tmp_path / "runs").read_text() == "run\n"
    named = [line for line in cluster.slurm.jobs() if line.startswith(processid)]
    assert named == [f"{processid} COMPLETED"]


def test_a_controller_that_is_away_for_a_time(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.start(f"while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done")
    before = cluster.submit()
    running = f"{before} RUNNING"
    wait_for(lambda: running in cluster.slurm.jobs("RUNNING"), "the job does not run")
    cluster.slurm.stop_controller()
    try:
        worker.event("slurm is away")
        meanwhile = cluster.submit()
        worker.event("not submitted")
    finally:
        cluster.slurm.start_controller()
    worker.event("slurm is back")
    (tmp_path / "go").touch()
    for processid in (before, meanwhile):
        found = cluster.end(processid)
        assert (found["state"], found["out"]) == (SUCCESSFUL, ["done"])
    named = [line for line in cluster.slurm.jobs() if line.startswith(meanwhile)]
    assert len(named) == 1


def test_the_wall_time_ends_a_job(cluster: Cluster) -> None:
    cluster.start("echo begun >&2; sleep 1000")
    processid = cluster.submit(conditions={"walltime": 5})
    found = cluster.end(processid)
    assert found["state"] == FAILED
    assert "wall time" in found["errors"][0]
    assert "begun" in found["errors"][1]


def test_an_administrator_cancels_a_job(cluster: Cluster) -> None:
    cluster.start("sleep 1000")
    processid = cluster.submit()
    running = f"{processid} RUNNING"
    wait_for(lambda: running in cluster.slurm.jobs("RUNNING"), "the job does not run")
    cluster.slurm.command("scancel", f"--name={processid}")
    found = cluster.end(processid)
    assert found["state"] == FAILED
    assert "was cancelled in Slurm" in found["errors"][0]


def test_a_job_that_slurm_starts_again_is_followed(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(
        f"echo run $SLURM_RESTART_COUNT >>{tmp_path}/runs;"
        f" while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done"
    )
    processid = cluster.submit()
    wait_for(lambda: (tmp_path / "runs").exists(), "the job does not run")
    job = cluster.slurm.command("squeue", "-h", "-o", "%i", f"--name={processid}").strip()
    cluster.slurm.command("scontrol", "requeue", job)
    wait_for(lambda: "was put back" in cluster.log(processid), "no word of it")
    cluster.slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    (tmp_path / "go").touch()
    found = cluster.end(processid)
    assert (found["state"], found["out"]) == (SUCCESSFUL, ["done"])


def test_many_processes(cluster: Cluster) -> None:
    cluster.start("cat")
    processids = [cluster.submit(number) for number in range(20)]
    for number, processid in enumerate(processids):
        found = cluster.end(processid)
        assert (found["state"], found["out"]) == (SUCCESSFUL, [number])


def test_a_job_that_waits_says_so(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(f"while ! [ -e {tmp_path}/go ]; do sleep 0.1; done; echo done")
    all_cpus = {"cpu": "4000m"}
    processids = [cluster.submit(conditions=all_cpus), cluster.submit(conditions=all_cpus)]

    def waits() -> bool:
        return any("waits: Resources" in cluster.log(processid) for processid in processids)

    wait_for(waits, "no word of the wait")
    (tmp_path / "go").touch()
    for processid in processids:
        assert cluster.end(processid)["out"] == ["done"]


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ({"mem": "900Gi"}, "conditions.mem"),
        ({"nodes": 9}, "conditions.nodes"),
        ({"cpu": "99000m"}, "conditions.cpu"),
        ({"gpu": {"count": 1}}, "conditions.gpu"),
        ({"gpu": {"count": 1, "mem": "40Gi"}}, "conditions.gpu.mem"),
        ({"walltime": 10**6}, "conditions.walltime"),
        ({"storage": "900Ti"}, "conditions.storage"),
    ],
)
def test_what_this_slurm_can_not_hold_fails_with_its_field(
    cluster: Cluster, conditions: dict[str, Any], field: str
) -> None:
    cluster.start("echo done")
    found = cluster.end(cluster.submit(conditions=conditions))
    assert found["state"] == FAILED
    assert field in found["errors"][0]


def test_an_owner_chooses_the_partition(cluster: Cluster) -> None:
    more = ("--slurm-partition", "short", "--slurm-option", "--comment=ours")
    cluster.start("echo $SLURM_JOB_PARTITION", *more)
    assert cluster.end(cluster.submit())["out"] == ["short"]
    found = cluster.end(cluster.submit(conditions={"walltime": 3600}))
    assert "conditions.walltime" in found["errors"][0]


def test_a_spec_injects_nothing(cluster: Cluster, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    line = f"\n#SBATCH --comment=evil\ntouch {evil}\n"
    worker = cluster.start("cat; printenv EVIL PATH >&2; echo $SLURM_JOB_PARTITION >&2")
    found = cluster.end(
        cluster.submit(
            line, f"$(touch {evil})", f"'; touch {evil}; '",
            kwargs={line: line, "k": f"`touch {evil}`"},
            env={"EVIL": "evil-value", "SBATCH_PARTITION": "short", "BASH_ENV": line, "PATH": line},
            label=line,
        )
    )  # fmt: skip
    assert found["state"] == SUCCESSFUL
    assert found["out"] == [line, f"$(touch {evil})", f"'; touch {evil}; '"]
    log = cluster.log(found["processid"])
    assert "evil-value" not in log
    assert "all" in log.splitlines()[-1]
    unknown = cluster.end(cluster.submit(funcname=f"f{line}"))
    assert "has no function" in unknown["errors"][0]
    failed = cluster.end(cluster.submit(conditions={"gpu": {"name": line, "count": 1}}))
    assert "conditions.gpu.name" in failed["errors"][0]
    assert "evil" not in cluster.slurm.command("squeue", "-h", "--states=all", "-O", "Comment")
    assert not evil.exists()
    assert worker.process.poll() is None


def test_too_much_output_ends_the_job(cluster: Cluster) -> None:
    cluster.start("head -c 9000000 /dev/zero; sleep 1000")
    processid = cluster.submit()
    found = cluster.end(processid)
    assert found["errors"] == ["the command's output is larger than 8000000 bytes"]
    wait_for(lambda: f"{processid} CANCELLED" in cluster.slurm.jobs(), "the job goes on")


def test_large_arguments_go_by_files(cluster: Cluster) -> None:
    cluster.start('wc -c <"$COLONYD_KWARGS_FILE"; test -z "$COLONYD_KWARGS"')
    found = cluster.end(cluster.submit(kwargs={"k": "x" * 200_000}))
    assert found["out"] == [str(200_000 + len('{"k": ""}'))]

"""A process as a batch job, without a Slurm: options, script, answers of Slurm's commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.core.errors import Failure
from cli.main import main
from cli.worker.slurm import SlurmSettings, open_slurm
from cli.worker.slurmjob import (
    Job,
    Request,
    Unfit,
    batch_script,
    is_passing,
    never,
    owner_option,
    parse_accounting,
    parse_queue,
    parse_submitted,
    refused,
    request_of,
    spool_path,
)
from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, Signed
from colonyd.worker.livelog import LiveLog, relay

FULL = {
    "nodes": 2,
    "processes": 8,
    "processespernode": 4,
    "cpu": "1500m",
    "mem": "4Gi",
    "storage": "1500M",
    "gpu": {"name": "a100", "count": 2, "nodecount": 2},
    "walltime": 3601,
}


def options(conditions: dict[str, Any], left: float | None = None) -> list[str]:
    return request_of({"conditions": conditions}, left).options()


def test_conditions_are_options_of_sbatch() -> None:
    assert options(FULL) == [
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=2",
        "--mem=4096M",
        "--tmp=1431M",
        "--time=61",
        "--gres=gpu:a100:2",
    ]


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        ({}, []),
        ({"gpu": {"count": 1}}, ["--gres=gpu:1"]),
        ({"gpu": {"count": 1, "nodecount": 3}}, ["--nodes=3", "--gres=gpu:1"]),
        (
            {"processes": 5, "processespernode": 2},
            ["--nodes=3", "--ntasks=5", "--ntasks-per-node=2"],
        ),
        ({"mem": "1k"}, ["--mem=1M"]),
    ],
)
def test_what_is_not_asked_for_is_left_to_slurm(
    conditions: dict[str, Any], wanted: list[str]
) -> None:
    assert options(conditions) == wanted


@pytest.mark.parametrize(
    ("walltime", "left", "minutes"),
    [(0, 30.0, 1), (600, 90.0, 2), (60, 900.0, 1), (0, -5.0, 1), (120, None, 2)],
)
def test_no_job_is_given_longer_than_its_process(
    walltime: int, left: float | None, minutes: int
) -> None:
    assert options({"walltime": walltime}, left) == [f"--time={minutes}"]


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        ({"nodes": -1}, "conditions.nodes"),
        ({"processes": 2**40}, "conditions.processes"),
        ({"nodes": 2, "processespernode": 2, "processes": 5}, "conditions.processes"),
        ({"cpu": "2"}, "conditions.cpu"),
        ({"mem": "4096"}, "conditions.mem"),
        ({"mem": "999999999Ti"}, "conditions.mem"),
        ({"storage": "x"}, "conditions.storage"),
        ({"walltime": -1}, "conditions.walltime"),
        ({"gpu": {"count": 1, "mem": "40Gi"}}, "conditions.gpu.mem"),
        ({"gpu": {"name": "a100"}}, "conditions.gpu.count"),
        ({"gpu": {"name": "a100:2,lic", "count": 1}}, "conditions.gpu.name"),
        ({"gpu": {"name": "a\n#SBATCH", "count": 1}}, "conditions.gpu.name"),
        ({"nodes": 1, "gpu": {"count": 1, "nodecount": 2}}, "conditions.gpu.nodecount"),
        ({"nodes": "many"}, "nodes"),
        ({"gpu": 3}, "gpu"),
    ],
)
def test_a_condition_that_no_job_can_have_is_named(conditions: dict[str, Any], field: str) -> None:
    with pytest.raises(Unfit) as caught:
        options(conditions)
    assert field in str(caught.value)
    assert str(caught.value).startswith("conditions")


_TEXT = st.text(max_size=30) | st.sampled_from(["1\n#SBATCH --x", "$(id)", "--wrap=id", "gpu:9"])
_CONDITIONS = st.dictionaries(
    st.sampled_from([*FULL, "other\n#SBATCH"]),
    _TEXT | st.integers() | st.dictionaries(st.sampled_from(["name", "count", "mem"]), _TEXT),
)


@given(_CONDITIONS)
def test_a_spec_adds_no_option_of_its_own(conditions: dict[str, Any]) -> None:
    try:
        words = options(conditions)
    except Unfit:
        return
    known = ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "mem", "tmp", "time", "gres")
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        assert name in known
        assert value.removesuffix("M").isdigit() or value.startswith("gpu:")
        assert value.count(":") <= 2
        assert not set(value) & set(" \n,$")


# -- the script ---------------------------------------------------------------------------------


def run_script(place: Path, job: str, command: str | None = None) -> int:
    if command is not None:
        (place / "command").write_text(command)
        (place / "args.json").write_text('["a"]')
    environ = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": job}
    script = batch_script(place).encode()
    return subprocess.run(["sh", "-s"], input=script, env=environ, check=False).returncode


def test_the_script_leaves_what_the_command_wrote_and_how_it_ended(tmp_path: Path) -> None:
    place = tmp_path / 'it\'s $(here) "now"'
    place.mkdir()
    assert run_script(place, "7", "cat; echo oh >&2; exit 3") == 3
    assert (place / "out").read_text() == '["a"]'
    assert (place / "err").read_text() == "oh\n"
    assert (place / "exit").read_text().split() == ["3", "5"]


def test_a_second_job_of_a_process_ends_at_once(tmp_path: Path) -> None:
    assert run_script(tmp_path, "7", f"echo >>{tmp_path}/ran") == 0
    assert run_script(tmp_path, "8") == 0
    assert (tmp_path / "ran").read_text() == "\n"
    assert os.readlink(tmp_path / "job") == "7"


def test_a_job_that_slurm_starts_again_begins_anew(tmp_path: Path) -> None:
    run_script(tmp_path, "7", "echo one; echo err >&2")
    run_script(tmp_path, "7", "echo two")
    assert (tmp_path / "out").read_text() == "two\n"
    assert (tmp_path / "err").read_text() == ""


def test_a_job_whose_process_is_gone_does_nothing(tmp_path: Path) -> None:
    assert run_script(tmp_path, "7") == 0
    assert list(tmp_path.iterdir()) == []


# -- the owner's options ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["--mem=4G", "--exclusive", "--constraint=a&b", "--gres=gpu:1"])
def test_an_owner_may_give_options(text: str) -> None:
    assert owner_option(text) == text


@pytest.mark.parametrize(
    "text",
    ["script.sh", "-p", "--mem 4G", "--array=1-3", "--arr=1-3", "--wrap=id", "--wait", "--a\n=b"],
)
def test_an_option_that_makes_other_jobs_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--|script"):
        owner_option(text)


@pytest.mark.parametrize("text", ["/a/%j", "/a\nb", "a", "/a\\b"])
def test_a_spool_that_slurm_would_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        spool_path(Path(text))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slurm-partition", "x"], "without --slurm"),
        (["--slurm", "--slurm-option", "--array=1-9"], "one job"),
        (["--slurm", "--slurm-spool", "/x/%j"], "absolute"),
        (["--slurm"], "sbatch"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))

    arguments = ["worker", "--home", str(tmp_path), "--func", "f=true", *words]
    done = CliRunner(env={"COLONIES_COLONY_NAME": "dev"}).invoke(main, arguments)
    assert done.exit_code != 0
    assert said in done.output


# -- Slurm's answers ----------------------------------------------------------------------------


def test_the_queue_has_the_jobs_of_each_name() -> None:
    text = "12|PENDING|b|Resources\n9|RUNNING|a|None\n3|CANCELLED|a|a|b\n1_[2-4]|X|c|d\nrubbish\n"
    assert parse_queue(text) == {
        "b": [Job("12", "PENDING", "Resources")],
        "a": [Job("3", "CANCELLED", "a|b"), Job("9", "RUNNING", "None")],
    }


@given(st.text())
def test_no_output_of_slurm_breaks_its_reader(text: str) -> None:
    parse_queue(text)
    parse_accounting(text)
    assert parse_submitted(text) == "" or text.strip()


def test_a_submission_prints_its_id() -> None:
    assert parse_submitted("17\n") == "17"
    assert parse_submitted("17;cluster\n") == "17"
    assert parse_submitted("") == ""
    assert parse_submitted("Submitted batch job 17\n") == ""


def test_accounting_knows_a_job_that_the_controller_forgot() -> None:
    text = "17|CANCELLED by 1000\n17.batch|CANCELLED\n"
    assert parse_accounting(text) == Job("17", "CANCELLED")
    assert parse_accounting("") is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("TIMEOUT", "wall time"),
        ("OUT_OF_MEMORY", "more memory"),
        ("NODE_FAIL", "its node failed"),
        ("PREEMPTED", "another job took its place"),
        ("CANCELLED", "was cancelled in Slurm"),
        ("BOOT_FAIL", "did not start"),
        ("FAILED", "without a result"),
    ],
)
def test_an_ended_job_is_told_in_words(state: str, words: str) -> None:
    assert Job("17", state).ended
    assert words in Job("17", state, "None").why()
    assert "job 17" in Job("17", state).why()


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING"])
def test_a_job_may_go_on(state: str) -> None:
    assert not Job("17", state).ended


def test_a_job_that_waits_says_for_what() -> None:
    assert Job("17", "PENDING", "Resources").waits() == "job 17 waits: Resources"
    assert Job("17", "RUNNING", "None").waits() == ""
    assert Job("17", "PENDING", "None").waits() == ""


ASKED = Request(nodes=9, mem=4096, gpu="gpu:1", walltime=99, cpu=64)


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("sbatch: error: Memory specification can not be satisfied", "conditions.mem"),
        ("sbatch: error: Invalid generic resource (gres) specification", "conditions.gpu"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "conditions.walltime"),
        ("sbatch: error: Node count specification invalid", "conditions.nodes"),
        ("sbatch: error: CPU count per node can not be satisfied", "conditions.cpu"),
        (
            "Requested node configuration is not available",
            "conditions.nodes, conditions.cpu, conditions.mem, conditions.gpu, conditions.walltime",
        ),
    ],
)
def test_what_slurm_refuses_is_told_by_its_fields(said: str, fields: str) -> None:
    assert not is_passing(said)
    assert refused(said, ASKED).startswith(f"{fields}: this Slurm can't hold that")


def test_another_refusal_is_told_as_it_is() -> None:
    assert "invalid partition specified: nix" in refused("invalid partition specified: nix", ASKED)


@pytest.mark.parametrize(
    "said",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "sbatch timed out",
        "Zero Bytes were transmitted or received",
        "QOSMaxSubmitJobPerUserLimit",
    ],
)
def test_a_slurm_that_is_away_is_asked_again(said: str) -> None:
    assert is_passing(said)


def test_a_job_that_can_never_start_is_told_by_its_fields() -> None:
    assert "conditions.walltime" in never(Job("1", "PENDING", "PartitionTimeLimit"), ASKED)
    assert never(Job("1", "PENDING", "Resources"), ASKED) == ""
    assert never(Job("1", "RUNNING", "None"), ASKED) == ""


async def test_lines_on_their_way_are_sent_when_the_process_ends() -> None:
    feed, sending, sent = LiveLog(), trio.Event(), list[str]()

    async def send(message: str) -> bool:
        sending.set()
        await trio.lowlevel.checkpoint()
        sent.append(message)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, feed, send)
        feed.stderr(b"one line\n")
        await sending.wait()
        feed.stderr(b"the last line")
        feed.finish()
        await feed.sent.wait()
    assert sent == ["one line", "the last line"]


@pytest.mark.parametrize("found", ["open to all", "a link", "another user's"])
async def test_a_spool_that_others_prepared_is_not_used(tmp_path: Path, found: str) -> None:
    """The executor's id is no secret, and the job runs the command that lies there."""
    key = PrivateKey.generate()
    place, elsewhere = tmp_path / key.id, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if found == "a link":
        place.symlink_to(elsewhere)
    else:
        place.mkdir()
        place.chmod(0o777)
    if found == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root makes directories of other users")
        os.chown(place, 65534, 65534)
    client = RpcClient("http://127.0.0.1:9")
    opened = open_slurm(
        SlurmSettings(tmp_path, [], {}), {}, Signed(client, key), lambda event, details: None
    )
    if found == "open to all":
        async with opened:
            assert place.stat().st_mode & 0o777 == 0o700
        return
    with pytest.raises(Failure, match="not a directory of this user"):
        async with opened:
            pass

"""What stands in a home where it should not, or is gone from it: named, with what to do next."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from colonyd.places import LISTENING as FILE
from node.etcd.errors import StoreRefused
from node.etcdserver.faults import DAMAGE, following
from node.etcdserver.identity import begin_anew, require_place
from node.host.home import RESTORING, Home, HomeError, init_home
from node.host.listening import withdraw
from tests.cli.support import COLONY, ENVIRON
from tests.support.rpc_server import ColonyServer, Refuse


def colony(home: Path, *args: str, **environ: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *args], env=environ)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a name that a shell would take apart."""
    path = tmp_path / "my home"
    init_home(path, "dev", {})
    return path


def test_what_to_do_about_a_store_names_its_home(home: Path) -> None:
    here = f"--home '{home}'"
    both = [f"`colony restore --force FILE {here}`", f"`colony init --new-store {here}`"]
    (home / "store.id").write_text("x" * 32)
    with pytest.raises(StoreRefused) as gone:
        require_place(Home(home))
    for said in (following(DAMAGE, home / "etcd"), str(gone.value)):
        assert all(each in said for each in both)
    (home / RESTORING).mkdir()
    with pytest.raises(HomeError) as interrupted:
        init_home(home, None, {})
    assert f"colony restore --force FILE {here}" in str(interrupted.value)


def test_the_doctor_names_a_store_that_is_gone(home: Path) -> None:
    def store(**environ: str) -> list[str]:
        found = json.loads(colony(home, "doctor", "--json", **environ).stdout)["checks"]
        return [each["detail"] for each in found if each["name"] == "store"]

    assert store() == []
    (home / "files").mkdir()
    (home / "etcd/data").mkdir(parents=True)
    (told,) = store()
    assert f"{home / 'etcd/data/member'} is missing" in told
    assert store(COLONYD_ETCD__ENDPOINTS="http://127.0.0.1:1") == []


def test_a_directory_in_place_of_a_file_is_named(home: Path) -> None:
    (home / "store.id").mkdir()
    (home / FILE).mkdir()
    for act in (partial(require_place, Home(home)), partial(begin_anew, Home(home))):
        with pytest.raises(StoreRefused, match=r"store\.id: Is a directory.* move it away"):
            act()
    with pytest.raises(HomeError, match=r"listening\.json: Is a directory.* move away"):
        withdraw(home)
    assert "store.id: Is a directory" in colony(home, "doctor").stdout


def test_nobody_listens_at_port_0(home: Path) -> None:
    done = colony(home, "process", "ls", COLONYD_RPC__PORT="0")
    assert done.exit_code == 69
    assert f"no daemon of {home} runs\n" in done.stderr
    assert "start it with" in done.stderr
    assert ":0" not in done.stderr


def test_federation_that_is_off_is_no_fault(home: Path) -> None:
    def unknown(payload: dict[str, Any], caller: str) -> Any:
        raise Refuse(403, "payloadtype: 'getpeersmsg' is unknown")

    with ColonyServer() as server:
        server.answers["getserverinfomsg"] = lambda payload, caller: {"buildversion": "1"}
        server.answers["getpeersmsg"] = unknown
        done = colony(home, "--server", server.address, "doctor", "--json")
    (told,) = (each for each in json.loads(done.stdout)["checks"] if each["name"] == "peers")
    assert (told["ok"], "federation is off" in told["detail"]) == (True, True)


@pytest.mark.parametrize(
    "words",
    [
        "demo --seconds -1",
        "top --every nan",
        "run --func upper --wait --timeout -1",
        "run --func upper --wait --timeout nan",
        "process wait 3fa2 --timeout -0.5",
        "workflow submit {none} --wait --timeout nan",
        "workflow wait 3fa2 --timeout -1",
        "route why {none} --age nan",
    ],
)
def test_seconds_are_0_or_more(home: Path, words: str) -> None:
    done = colony(home, *words.format(none=home / "none").split())
    assert done.exit_code == 2
    assert "seconds or more" in done.stderr


def test_a_file_that_is_not_there_or_no_file_is_told(home: Path) -> None:
    deep = home / "deep.json"
    deep.write_text("[" * 100_000)
    for words, code, says in (
        (["route", "why", deep], 2, "nested too deeply"),
        (["route", "why", home], 2, f"{home}: a directory; a file is expected"),
        (["file", "put", home / "no", "--label", "/p"], 3, "no such file"),
        (["file", "put", home / "keys", "--label", "/p"], 2, "`colony file sync` takes a whole"),
        (["peer", "policy", "lab-2", "--policy", home / "no"], 3, "No such file"),
        (["backup", "--check", home / "no"], 3, f"{home / 'no'}: No such file"),
        (["backup", home / "no/lab.tar"], 3, f"{home / 'no/lab.tar'}: No such file"),
        (["restore", home / "no"], 3, f"{home / 'no'}: No such file"),
        (["--home", home / "no", "backup", home / "lab.tar"], 3, "`colony init`"),
        (["rpc", "ls", "--json", "--markdown"], 2, "--markdown is no JSON"),
    ):
        done = colony(home, *map(str, words))
        assert (done.exit_code, says in done.stderr) == (code, True), (words, done.output)
        assert "Errno" not in done.stderr
        assert "the daemon's user" not in done.stderr


def test_init_names_a_key_that_is_broken(home: Path) -> None:
    (home / "keys/colony.key").write_text("")
    done = colony(home, "init")
    assert done.exit_code == 1
    assert f"{home / 'keys/colony.key'}: not a private key" in done.stderr
    assert "next: put its backup there" in done.stderr


def program(*words: str, before: tuple[str, ...] = (), **options: Any) -> tuple[int, str]:
    """The exit code and stderr of a command in a process of its own."""
    done = subprocess.run(
        [*before, *COLONY, *words], stderr=subprocess.PIPE, text=True, env=ENVIRON, **options
    )
    return done.returncode, done.stderr


def test_a_port_of_the_page_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = program("--home", str(home), "ui", "--no-open", "--port", port)
    assert code == 1
    assert f"127.0.0.1:{port} is in use" in said
    assert "config.toml" not in said


@pytest.mark.parametrize("words", [["key", "ls"], ["key", "ls", "--json"], ["--help"], ["help"]])
def test_a_full_disk_for_the_output_is_an_error_for_people(home: Path, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        code, said = program("--home", str(home), *words, stdout=full)
    assert code == 1
    assert "error: No space left on device" in said or '"error": "No space left' in said
    assert "make room" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_a_home_that_is_a_file_or_closed_is_named(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    code, said = program("--home", str(path), "status")
    assert (code, said.splitlines()[0]) == (1, f"error: {path}/keys/user.key: Not a directory")
    # Root may enter any directory, unless it gives that up.
    before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    home.chmod(0)
    closed = partial(program, "--home", str(home), before=before if os.geteuid() == 0 else ())
    try:
        for words in (["key", "ls"], ["worker", "--func", "a=true"]):
            code, said = closed(*words)
            assert code == 1
            assert f"error: {home}/keys: Permission denied\n  next: `ls -ld`" in said
        with (tmp_path / "found").open("w") as out:
            checks = closed("doctor", "--json", stdout=out)
    finally:
        home.chmod(0o700)
    assert checks[0] == 1
    found = json.loads((tmp_path / "found").read_text())["checks"]
    told = {each["name"]: each for each in found}
    assert "closed to" in told["home"]["detail"]
    assert not {"owner", "keys", "store"} & set(told)

"""What stands in a home where it should not, or is gone from it: named, with what to do next."""

from __future__ import annotations

import json
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

"""A home that is shared with a group, and the home of a command that names none."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.ops.doctor import check_keys
from colonyd import places, settings
from colonyd.places import default_home
from node.host.home import Home, HomeError, init_home, share, tighten
from tests.support.daemons import REPOSITORY, Daemon

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user takes root")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read_as_member(path: Path, group: int) -> bool:
    """Whether a user who has nothing but this group may read a file, or list a directory."""
    done = subprocess.run(
        ["ls" if path.is_dir() else "cat", str(path)],
        user=NOBODY,
        group=group,
        extra_groups=[],
        capture_output=True,
        check=False,
        cwd="/",
        timeout=60,
    )
    return done.returncode == 0


@pytest.fixture
def shared() -> Iterator[Daemon]:
    """A daemon whose home any user can walk to."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o711)
        daemon = Daemon(Path(place) / "home", "dev", {"COLONYD_NODE__GROUP": "games"}).start()
        yield daemon
        assert daemon.stop() == 0


@as_root
@pytest.mark.slow
def test_members_of_the_group_may_read_what_makes_an_owner(shared: Daemon) -> None:
    daemon, group = shared, grp.getgrnam("games")
    home = Home(daemon.home)
    for path in (home.path, home.keys, home.key("colony"), home.key("user"), home.name_file):
        assert read_as_member(path, group.gr_gid), path
        assert not read_as_member(path, NOBODY), path
    for path in (home.key("server"), home.path / "tls.key", home.etcd, home.files, home.store_mark):
        assert path.exists(), path
        assert not read_as_member(path, group.gr_gid), path
    assert mode(home.path) == mode(home.keys) == 0o750

    # What is shared is nothing to warn of, at the next start either.
    daemon.stop()
    daemon.start()
    assert not any("secret was open" in line for line in daemon.events)
    assert all(check.ok for check in check_keys(home.path, "games"))
    assert not all(check.ok for check in check_keys(home.path))
    # The keys that follow are the group's as well.
    rotate(daemon)
    assert read_as_member(home.key("colony"), group.gr_gid)

    daemon.stop()
    daemon.environ.pop("COLONYD_NODE__GROUP")
    daemon.start()
    assert not read_as_member(home.key("colony"), group.gr_gid)


def rotate(daemon: Daemon) -> None:
    """Give the colony another key, as its owner does."""
    command = [sys.executable, "-m", "cli.main", "--home", str(daemon.home), "key", "rotate"]
    done = subprocess.run(
        [*command, "--yes"], capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    init_home(tmp_path, "dev", {})
    with pytest.raises(HomeError, match=r"node\.group: there is no group 'nosuch' here; make it"):
        share(tmp_path, "nosuch")


def test_without_the_setting_a_group_gets_nothing(tmp_path: Path) -> None:
    init_home(tmp_path, "dev", {})
    key = Home(tmp_path).key("colony")
    key.chmod(0o640)
    assert tighten(tmp_path) == [(key, 0o640)]
    assert mode(key) == 0o600


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of this machine's service, which another user owns."""
    path = tmp_path / "lib/colonyd"
    path.parent.mkdir()
    init_home(path, "service", {})
    monkeypatch.setattr(places, "SYSTEM_HOME", path)
    monkeypatch.setattr(settings, "SYSTEM_HOME", path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    return path


def test_the_home_of_a_command_that_names_none(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = {"HOME": str(tmp_path / "person")}
    own = tmp_path / "person/.local/share/colonyd"
    assert default_home(person) == system
    assert default_home(person, to_write=True) == own, "another user's is not written"
    assert default_home(person | {"COLONYD_HOME": "/named"}) == Path("/named")
    own.mkdir(parents=True)
    assert default_home(person) == own, "one's own wins"
    own.rmdir()

    with monkeypatch.context() as inner:
        inner.setattr(os, "access", lambda path, wanted: False)
        assert default_home(person) == own, "of another user, and closed"
    monkeypatch.setattr(os, "geteuid", lambda: system.stat().st_uid)
    assert default_home(person, to_write=True) == system, "the service's own user"


def test_who_may_not_read_the_service_is_told_how_to(tmp_path: Path, system: Path) -> None:
    from cli.core.errors import Failure
    from cli.core.session import Session

    system.chmod(0o755)
    session = Session(environ={"HOME": str(tmp_path / "person"), "COLONYD_HOME": "/nonexistent"})
    for ask in (session.colony, session.member_key):
        with pytest.raises(Failure) as caught:
            ask()
        assert "colonyd`, then log in again" in str(vars(caught.value)["next_step"])

"""`colony file` through a real daemon: what it prints, keeps, refuses, and how it ends.

The daemon's own rules are in `node.files.test_catalog` and `node.files.test_blobs`, an S3 server is
in `sdk.test_s3`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cli.core.errors import Failure
from cli.files.session import address
from cli.files.syncplan import FileKey, plan, scan
from cli.main import main
from colonyd.client.files import Store, TargetExists, fetch
from tests.support.daemons import Daemon

Run = Callable[..., Result]


@pytest.fixture
def colony(lone_daemon: Daemon) -> Run:
    def run(*args: object, code: int = 0) -> Result:
        server = f"127.0.0.1:{lone_daemon.port}"
        command = ["--home", str(lone_daemon.home), "--server", server, *map(str, args)]
        result = CliRunner().invoke(main, command, env={}, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def label() -> str:
    return f"/cli-{uuid.uuid4().hex[:10]}"


def parsed(result: Result) -> Any:
    return json.loads(result.stdout)


def tree(directory: Path) -> dict[str, bytes]:
    """Paths and contents below a directory, markers apart."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".cfs"
    }


def fill(directory: Path, **files: str) -> Path:
    """Write files; "__" in a name stands for a slash."""
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def test_put_get_list_and_remove(colony: Run, label: str, tmp_path: Path) -> None:
    source = tmp_path / "photo.bin"
    source.write_bytes(os.urandom(3_000_000))
    put = parsed(colony("file", "put", source, "--label", label[1:], "--json"))
    assert (put["label"], put["name"], put["ref"]["protocol"]) == (label, "photo.bin", "colonyd")
    assert f"{label}/photo.bin" in colony("file", "put", source, "--label", label).stdout
    there = tmp_path / "there"
    there.mkdir()
    colony("file", "get", f"{label}/photo.bin", "--to", there)
    assert tree(there) == {"photo.bin": source.read_bytes()}
    refused = colony("file", "get", put["fileid"], "--to", there, code=1)
    assert "exists" in refused.stderr
    assert "--force" in refused.stderr
    colony("file", "get", put["fileid"], "--to", there, "--force")
    assert parsed(colony("file", "ls", label, "--json"))[0]["checksum"] == put["checksum"]
    assert "2.9 MiB" in colony("file", "ls", label).stdout
    assert parsed(colony("file", "labels", label, "--json")) == [{"name": label, "files": 2}]
    assert len(parsed(colony("file", "info", f"{label}/photo.bin", "--json"))) == 2
    assert put["fileid"] in colony("file", "info", f"{label}/photo.bin").stdout
    colony("file", "rm", put["fileid"])
    colony("file", "rm", put["fileid"], code=3)
    colony("file", "rm", f"{label}/photo.bin")
    missing = colony("file", "get", f"{label}/photo.bin", "--to", tmp_path / "x", code=3)
    assert "no such file" in missing.stderr
    assert parsed(colony("file", "ls", label, "--json")) == []


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["put", "/nothing/here", "--label", "/x"], 3, "no such file"),
        (["put", __file__, "--label", "/../x"], 2, "--label"),
        (["put", __file__, "--label", "/x", "--name", "a/b"], 2, "--name"),
        (["get", "/x/"], 2, "LABEL/NAME"),
        (["get", "f" * 64], 3, "no such file"),
        (["sync", "/nothing/here"], 2, "give --label"),
        (["snapshot", "info", "nothing"], 3, "no such snapshot"),
        (["snapshot", "rm"], 2, "--all"),
        (["snapshot", "rm", "nothing"], 3, "no such snapshot"),
    ],
)
def test_mistakes_are_told(colony: Run, args: list[str], code: int, message: str) -> None:
    assert message in colony("file", *args, code=code).stderr


def test_bytes_that_were_tampered_with_are_not_kept(
    colony: Run, label: str, tmp_path: Path, lone_daemon: Daemon
) -> None:
    source = fill(tmp_path, a=uuid.uuid4().hex) / "a"
    put = parsed(colony("file", "put", source, "--label", label, "--json"))
    checksum = put["checksum"]
    kept = lone_daemon.home / "files" / checksum[:2] / checksum
    kept.write_text("x" * put["size"])
    there = tmp_path / "there"
    there.mkdir()
    refused = colony("file", "get", f"{label}/a", "--to", there, code=1)
    assert "not those of the checksum" in refused.stderr
    assert list(there.iterdir()) == []


def test_a_directory_is_kept_in_step(colony: Run, label: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    one = fill(tmp_path / "one", a=mark, sub__deep__b="b" + mark, empty="")
    dry = parsed(colony("file", "sync", one, "--label", label, "--dry", "--json"))
    assert dry["upload"] == ["a", "empty", "sub/deep/b"]
    assert parsed(colony("file", "labels", label, "--json")) == []
    colony("file", "sync", one, "--label", label)
    again = parsed(colony("file", "sync", one, "--json"))  # the label is remembered
    assert (again["upload"], again["download"], again["same"]) == ([], [], 3)
    two = fill(tmp_path / "two", c="c" + mark)
    done = parsed(colony("file", "sync", two, "--label", f"{label}/", "--json"))
    assert done["upload"] == ["c"]
    assert done["download"] == ["a", "empty", "sub/deep/b"]
    assert tree(two) == tree(one) | {"c": ("c" + mark).encode()}
    colony("file", "sync", one)
    assert tree(one) == tree(two)
    assert json.loads((one / ".cfs").read_text()) == {"label": label}


def test_conflicts_are_settled_by_the_user(colony: Run, label: str, tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one", a="ours", b="new"), fill(tmp_path / "two", a="theirs")
    colony("file", "sync", two, "--label", label)
    refused = colony("file", "sync", one, "--label", label, code=1)
    assert "differ on both sides: a" in refused.stderr
    assert "--keep-local" in refused.stderr
    assert [r["name"] for r in parsed(colony("file", "ls", label, "--json"))] == ["a"]
    assert not (one / ".cfs").exists()
    dry = parsed(colony("file", "sync", one, "--label", label, "--dry", "--json"))
    assert (dry["conflicts"], dry["upload"]) == (["a"], ["b"])
    colony("file", "sync", one, "--label", label, "--keep-local")
    assert tree(one)["a"] == b"ours"
    colony("file", "sync", two, "--keep-remote")
    assert tree(two) == {"a": b"ours", "b": b"new"}


def test_links_are_neither_followed_nor_written_through(
    colony: Run, label: str, tmp_path: Path
) -> None:
    outside = fill(tmp_path / "outside", secret="x")
    one = fill(tmp_path / "one", sub__a="a")
    (one / "link").symlink_to(outside / "secret")
    (one / "dir").symlink_to(outside)
    done = colony("file", "sync", one, "--label", label)
    assert "skipped" in done.stderr
    labels = parsed(colony("file", "labels", label, "--json"))
    assert labels == [{"name": f"{label}/sub", "files": 1}]
    two = tmp_path / "two"
    two.mkdir()
    (two / "sub").symlink_to(outside)
    refused = colony("file", "sync", two, "--label", label, code=1)
    assert "sub/a: sub is a link here" in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert tree(outside) == {"secret": b"x"}


def put(colony: Run, tmp_path: Path, label: str, name: str, text: str) -> None:
    source = tmp_path / "source" / uuid.uuid4().hex
    source.parent.mkdir(exist_ok=True)
    source.write_text(text)
    colony("file", "put", source, "--label", label, "--name", name)


def test_nothing_local_is_replaced_that_the_plan_does_not_name(
    colony: Run, label: str, tmp_path: Path
) -> None:
    """Each name below is a file in the colony, and something else in the directory."""
    here = fill(tmp_path / "here", **{"draft": "own", "full__x": "own", "blocked": "own"})
    (here / ".draft.part").write_text("own")
    (here / ".colonyd-00000000.part").write_text("own")
    (here / "link").symlink_to(tmp_path / "nowhere")
    (here / "to-dir").symlink_to(here / "full")
    os.mkfifo(here / "pipe")
    names = [".draft.part", ".colonyd-00000000.part", "link", "to-dir", "pipe", "full", ".cfs"]
    for name in names:
        put(colony, tmp_path, label, name, "theirs")
    put(colony, tmp_path, f"{label}/blocked", "inner", "theirs")
    put(colony, tmp_path, f"{label}/to-dir", "y", "theirs")
    put(colony, tmp_path, label, "welcome", "theirs")

    def left_alone() -> None:
        assert (here / "link").is_symlink()
        assert not (here / "link").exists()
        assert (here / "to-dir").is_symlink()
        assert (here / "pipe").is_fifo()
        own = {path: data for path, data in tree(here).items() if path != "welcome"}
        assert set(own.values()) == {b"own"}
        assert len(own) == 5

    conflict = colony("file", "sync", here, "--label", label, code=1)
    assert "differ on both sides: .draft.part" in conflict.stderr
    left_alone()
    clashes = {"link", "to-dir", "to-dir/y", "pipe", "full", ".cfs", "blocked/inner"}
    clashes |= {".colonyd-00000000.part"}
    dry = parsed(colony("file", "sync", here, "--label", label, "--dry", "--json"))
    assert (set(dry["clashes"]), dry["download"]) == (clashes, ["welcome"])
    done = colony("file", "sync", here, "--label", label, "--keep-local", "--json", code=1)
    assert set(parsed(done)["clashes"]) == clashes
    assert "8 files were left alone" in done.stderr
    assert (here / "welcome").read_text() == "theirs"
    left_alone()
    assert json.loads((here / ".cfs").read_text()) == {"label": label}


def test_replacing_is_asked_for_and_listed(colony: Run, label: str, tmp_path: Path) -> None:
    here = fill(tmp_path / "here", a="own")
    put(colony, tmp_path, label, "a", "theirs")
    done = colony("file", "sync", here, "--label", label, "--keep-remote")
    assert done.stdout == "replace  a\n"
    assert tree(here) == {"a": b"theirs"}


def test_a_file_and_a_directory_of_one_name(colony: Run, label: str, tmp_path: Path) -> None:
    """One member's file must not keep everybody else from syncing."""
    put(colony, tmp_path, label, "d", "file")
    put(colony, tmp_path, f"{label}/d", "e", "below")
    put(colony, tmp_path, label, "other", "other")
    here = tmp_path / "here"
    refused = colony("file", "sync", here, "--label", label, code=1)
    assert "d: in the colony it is a file and a directory" in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert tree(here) == {}
    colony("file", "sync", here, "--label", label, "--keep-remote", code=1)
    assert tree(here) == {"other": b"other"}
    name = label[1:]
    colony("file", "snapshot", "create", name, "--label", label)
    there = colony("file", "snapshot", "download", name, "--to", tmp_path / "there", code=1)
    assert "d/e" in there.stderr
    assert not (tmp_path / "there").exists()


def test_a_snapshot_replaces_nothing_unasked(colony: Run, label: str, tmp_path: Path) -> None:
    name = label[1:]
    put(colony, tmp_path, label, "a", "theirs")
    put(colony, tmp_path, label, "b", "theirs")
    colony("file", "snapshot", "create", name, "--label", label)
    here = fill(tmp_path / "here", a="own", c="own")
    refused = colony("file", "snapshot", "download", name, "--to", here, code=1)
    assert "in the way: a" in refused.stderr
    assert tree(here) == {"a": b"own", "c": b"own"}
    colony("file", "snapshot", "download", name, "--to", here, "--force")
    assert tree(here) == {"a": b"theirs", "b": b"theirs", "c": b"own"}


def test_get_replaces_no_link(colony: Run, label: str, tmp_path: Path) -> None:
    put(colony, tmp_path, label, "a", "theirs")
    here = tmp_path / "here"
    here.mkdir()
    (here / "a").symlink_to(tmp_path / "nowhere")
    assert "exists" in colony("file", "get", f"{label}/a", "--to", here, code=1).stderr
    assert (here / "a").is_symlink()


async def test_what_appears_during_a_download_stays(tmp_path: Path) -> None:
    """So do names that differ in case only, where the file system sees no difference."""
    target = tmp_path / "a"

    class Slow:
        async def get(self, file: dict[str, Any], offset: int) -> AsyncGenerator[bytes, None]:
            target.write_text("own")
            yield b"theirs"

    file = {"name": "a", "size": 6, "checksum": ""}
    with pytest.raises(TargetExists, match="it stays"):
        await fetch(cast(Store, Slow()), file, target, lambda size: None)
    assert tree(tmp_path) == {"a": b"own"}


def test_snapshots(colony: Run, label: str, tmp_path: Path) -> None:
    name = label[1:]
    one = fill(tmp_path / "one", a="old", sub__b="b")
    colony("file", "sync", one, "--label", label)
    made = colony("file", "snapshot", "create", name, "--label", label)
    assert "2 files" in made.stdout
    fill(one, a="new")
    colony("file", "sync", one, "--keep-local")
    assert name in colony("file", "snapshot", "ls").stdout
    there = tmp_path / "there"
    done = parsed(colony("file", "snapshot", "download", name, "--to", there, "--json"))
    assert (done["written"], done["lost"]) == (2, [])
    assert tree(there) == {"a": b"old", "sub/b": b"b"}
    again = parsed(colony("file", "snapshot", "download", name, "--to", there, "--json"))
    assert again["written"] == 0
    shown = parsed(colony("file", "snapshot", "info", name, "--json"))
    assert len(shown["fileids"]) == 2
    assert shown["snapshotid"] in colony("file", "snapshot", "info", shown["snapshotid"]).stdout
    taken = colony("file", "snapshot", "create", name, "--label", label, code=1)
    assert "there is a snapshot" in taken.stderr
    colony("file", "rm", f"{label}/sub/b")
    lost = colony("file", "snapshot", "download", name, "--to", tmp_path / "later", code=3)
    assert "removed since" in lost.stderr
    assert tree(tmp_path / "later") == {"a": b"old"}
    colony("file", "snapshot", "rm", name)
    colony("file", "snapshot", "rm", "--all", "--yes")
    assert parsed(colony("file", "snapshot", "ls", "--json")) == []


_SIDES = st.dictionaries(
    st.builds(FileKey, st.sampled_from(["/", "/a", "/a/b"]), st.sampled_from("xyz")),
    st.sampled_from(["1", "2"]),
)


@given(_SIDES, _SIDES, st.sampled_from([None, "local", "remote"]))
def test_a_plan_carried_out_leaves_both_sides_equal(
    local: dict[FileKey, str], remote: dict[FileKey, str], keep: str | None
) -> None:
    made = plan(local, remote, keep)
    here, there = dict(local), dict(remote)
    conflicts = {i for i in local.keys() & remote.keys() if local[i] != remote[i]}
    for item in made.upload:
        there[item] = local[item]
    for item in [*made.download, *made.replace]:
        here[item] = remote[item]
    assert set(made.replace) == (conflicts if keep == "remote" else set())
    assert set(made.conflicts) == (set() if keep else conflicts)
    for item in here.keys() | there.keys():
        assert (here.get(item) == there.get(item)) or item in made.conflicts
        wanted = {"local": local.get(item), "remote": remote.get(item)}.get(keep or "")
        if wanted is not None and item in conflicts:
            assert here[item] == wanted
    assert made.same == sum(local.get(i) == remote.get(i) for i in local.keys() | remote.keys())


def test_a_scan_skips_what_no_label_can_hold(tmp_path: Path) -> None:
    fill(tmp_path, good="x")
    (tmp_path / "back\\slash").write_text("x")
    (tmp_path / ".colonyd-12345678.part").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    found = scan(tmp_path, "/l")
    assert list(found.files) == [FileKey("/l", "good")]
    assert sorted(Path(path).name for path in found.skipped) == ["back\\slash", "pipe"]


def test_failures_name_the_next_step() -> None:
    with pytest.raises(Failure, match="LABEL/NAME"):
        address("/x/")
    assert address("name") == {"label": "/", "name": "name"}
    assert address("/a/b/c") == {"label": "/a/b", "name": "c"}

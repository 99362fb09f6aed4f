"""The command lines of containers: what the owner and the conditions of a spec make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import trio

from cli.worker.engines import (
    VARIABLES,
    Function,
    Job,
    Limits,
    Mounted,
    Refused,
    Settings,
    check_mount,
    command_of,
    explained,
    limits_of,
    listing,
    parse_container,
    removal,
    run,
)
from cli.worker.files import Layout, Place, Tree, Unfit, layout_of, measure, remove

PODMAN = Settings("podman", "e" * 64)
DOCKER = Settings("docker", "e" * 64, gpus=2)


def job(limits: Limits = Limits(), **more: Any) -> Job:
    return Job("n", "p", "image", ("tr", "a-z"), limits, Path("/w/progress"), **more)


def asked(settings: Settings = PODMAN, **conditions: Any) -> Limits:
    return limits_of({"conditions": conditions, "maxexectime": -1}, settings)


def test_a_function_is_words_without_a_shell() -> None:
    name, function = parse_container("upper=localhost/a:1 tr a-z '$(reboot) x'")
    assert (name, function) == ("upper", Function("localhost/a:1", ("tr", "a-z", "$(reboot) x")))
    for text in ("", "a", "a=", "=i", "a=--privileged i", "a='"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_container(text)


@pytest.mark.parametrize("settings", [PODMAN, DOCKER])
def test_a_container_has_next_to_nothing(settings: Settings) -> None:
    words = run(job(), settings)
    options, command = words[: words.index("image")], words[words.index("image") :]
    assert command == ["image", "tr", "a-z"]
    for option in (
        "--network=none",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--user=65534:65534",
        "--pids-limit=512",
        f"--label=colonyd.executor={'e' * 64}",
        "--mount=type=bind,src=/w/progress,dst=/run/colonyd/progress",
    ):
        assert option in options
    assert not [word for word in options if word.startswith(("--privileged", "--volume", "-v"))]
    assert [word for word in options if word.startswith("--env=")] == [
        f"--env={name}" for name in VARIABLES
    ]


def test_conditions_are_limits_of_the_engine() -> None:
    limits = asked(cpu="500m", mem="256Mi", storage="1Gi", walltime=7)
    assert limits == Limits(500, 256 << 20, 1 << 30, 0, 7, 0)
    words = run(job(limits), PODMAN)
    for option in ("--cpus=0.500", f"--memory={256 << 20}", f"--memory-swap={256 << 20}"):
        assert option in words
    assert "--timeout=17" in words
    assert asked(cpu="0m", mem="0Mi", storage="0Mi", nodes=1) == Limits()
    gpus = run(job(asked(DOCKER, gpu={"count": 2})), DOCKER)
    assert "--gpus=2" in gpus
    words = run(job(Limits(gpus=2)), PODMAN)
    assert "--device=nvidia.com/gpu=1" in words


@pytest.mark.parametrize(
    ("settings", "conditions", "field"),
    [
        (PODMAN, {"nodes": 2}, "conditions.nodes"),
        (PODMAN, {"processespernode": 2}, "conditions.processespernode"),
        (PODMAN, {"cpu": "2"}, "conditions.cpu"),
        (PODMAN, {"mem": "12 parsecs"}, "conditions.mem"),
        (PODMAN, {"mem": "1Mi"}, "conditions.mem"),
        (PODMAN, {"gpu": {"count": 1}}, "conditions.gpu.count"),
        (DOCKER, {"gpu": {"count": 3}}, "conditions.gpu.count"),
        (DOCKER, {"gpu": {"count": 1, "mem": "8Gi"}}, "conditions.gpu.mem"),
        (DOCKER, {"gpu": {"name": "a100"}}, "conditions.gpu.name"),
        (PODMAN, {"walltime": "long"}, "walltime"),
        (Settings("nspawn", "e"), {"mem": "1Gi"}, "conditions.mem"),
        (Settings("nspawn", "e"), {"cpu": "500m"}, "conditions.cpu"),
    ],
)
def test_what_can_not_be_held_is_named(
    settings: Settings, conditions: dict[str, Any], field: str
) -> None:
    with pytest.raises(Refused, match=field):
        asked(settings, **conditions)


def test_an_image_of_a_spec_is_one_that_the_owner_allows() -> None:
    settings = Settings("podman", "e", images=("debian:*", "localhost/?"))
    star = Function("*")

    def named(image: object) -> tuple[str, tuple[str, ...]]:
        return command_of(star, {"docker-image": image, "cmd": "ls", "args": ["-l"]}, settings)

    assert named("debian:12") == ("debian:12", ("/bin/sh", "-c", "ls -l"))
    for image in ("debian:5000/evil", "localhost/ab", "--x", "debian:12 --privileged", "", None, 1):
        with pytest.raises(Refused, match="docker-image"):
            named(image)
    # A function with an image of its own asks the spec for none.
    own = Function("image", ("true",))
    assert command_of(own, {"docker-image": "debian:12"}, settings) == ("image", ("true",))


def test_files_are_where_the_owner_says() -> None:
    assert check_mount("/cfs/a/b", PODMAN).inner == PurePosixPath("a/b")
    for mount in ("/", "/etc", "/cfsx", "/cfs/../etc", "cfs", "/cfs/a\nb", "/cfs/" + "x" * 2000):
        with pytest.raises(Refused, match=r"fs\.mount"):
            check_mount(mount, PODMAN)
    mounted = Mounted(PurePosixPath("/cfs"), PurePosixPath("/cfs/a,src=/etc"))
    words = run(job(files=Path("/w/files"), mounted=mounted), PODMAN)
    assert "--mount=type=bind,src=/w/files,dst=/cfs" in words
    assert "--workdir=/cfs/a,src=/etc" in words


def test_no_value_of_a_variable_is_in_a_list_of_processes() -> None:
    """All users of the host read those; --env hands on what may be a password."""
    for engine in ("podman", "docker", "nspawn"):
        words = run(job(), Settings(engine, "e", variables=("TOKEN",)))
        named = [word for word in words if word.endswith("=TOKEN")]
        assert named == ["--setenv=TOKEN" if engine == "nspawn" else "--env=TOKEN"]


def test_nspawn_maps_users_and_keeps_the_image_as_it_is() -> None:
    mounted = Mounted(PurePosixPath("/cfs"), PurePosixPath("/cfs"))
    given = job(files=Path("/w/files"), mounted=mounted)
    words = run(given, Settings("nspawn", "e"))
    assert words[-3:] == ["--", "tr", "a-z"]
    for option in (
        "--directory=/var/lib/machines/image",
        "--read-only",
        "--private-network",
        "--private-users=pick",
        "--private-users-ownership=map",
        "--drop-capability=all",
        "--settings=no",
        "--bind=/w/files:/cfs:idmap",
    ):
        assert option in words
    limits = Limits(cpu=500, mem=1 << 20)
    booted = run(job(limits), Settings("nspawn", "e", booted=True))
    assert "--property=CPUQuota=50%" in booted
    assert f"--property=MemoryMax={1 << 20}" in booted


def test_only_containers_of_this_executor_are_removed() -> None:
    assert f"--filter=label=colonyd.executor={'e' * 64}" in listing(PODMAN)
    assert "--filter=label=colonyd.run=r" in listing(Settings("podman", "e", "r"), this_run=True)
    assert removal(DOCKER, ["a"]) == ["docker", "rm", "--force", "--volumes", "a"]


def test_an_end_is_told_in_words() -> None:
    limits = Limits(mem=32 << 20)
    assert "32 MiB of conditions.mem" in explained(137, True, limits, "podman")
    assert "as it seems" in explained(137, False, limits, "podman")
    assert explained(137, False, Limits(), "podman") == ""
    assert "could not start" in explained(125, False, Limits(), "podman")
    assert explained(1, False, limits, "podman") == ""


def fs(*dirs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"fs": {"mount": "/cfs", "dirs": list(dirs), **more}}


def test_the_files_of_a_spec() -> None:
    assert layout_of({}, "p") is None
    assert layout_of({"fs": {"mount": "", "dirs": [{"label": "/a", "dir": "/a"}]}}, "p") is None
    found = layout_of(
        fs(
            {"label": "/a/{processid}", "dir": "/x//{processid}/./y"},
            {"label": "", "dir": "/ignored"},
            {"label": "/b", "dir": "", "onconflicts": {"onclose": {"keeplocal": True}}},
            snapshots=[{"snapshotid": "s", "dir": "/s"}, {"snapshotid": "", "dir": "/t"}],
        ),
        "p",
    )
    assert found == Layout(
        "/cfs",
        (Place(("s",), snapshot="s", keep_snapshot=False), Place(("x", "p", "y"), "/a/p"),
         Place((), "/b", True)),
    )  # fmt: skip


@pytest.mark.parametrize("inner", ["..", "/a/../../b", "a/b/../..", "x" * 300, "/a\nb", "a/" * 40])
def test_a_directory_of_a_spec_is_below_the_mount(inner: str) -> None:
    with pytest.raises(Unfit, match=r"fs\.dirs\.dir"):
        layout_of(fs({"label": "/a", "dir": inner}), "p")


def test_files_are_of_the_right_types_and_bounded() -> None:
    wrongs: list[dict[str, Any]] = [
        {"fs": {"mount": 3}}, {"fs": {"mount": "/cfs", "dirs": ["a"]}}, {"fs": []},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(Unfit, match="fs"):
            layout_of(wrong, "p")
    with pytest.raises(Unfit, match="more than 32"):
        layout_of(fs(*[{"label": "/a", "dir": "/a"}] * 33), "p")


def test_no_depth_hides_files_nor_keeps_them(tmp_path: Path) -> None:
    """Such a tree stopped the worker, and each later start of it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    make = "import os\nfor _ in range(3000):\n os.mkdir('d'); os.chdir('d')\nopen('x', 'w')"
    subprocess.run([sys.executable, "-c", make], cwd=tree, check=True)
    with pytest.raises(Unfit, match="deep"):
        trio.run(Tree(tree, Layout("/cfs", ())).check)
    remove(tree)
    assert not tree.exists()


async def test_a_tree_is_measured_and_no_link_leads_out_of_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "in").mkdir(parents=True)
    (tree / "in/a").write_bytes(b"x" * 100)
    (tree / "link").symlink_to("/etc")
    size, count = measure(tree)
    assert (100 <= size < 200, count) == (True, 3)
    bounded = Tree(tree, Layout("/cfs", ()), 50)
    with pytest.raises(Unfit, match="the bound is 50"):
        await bounded.check()
    assert Place(("in",)).below(tree) == tree / "in"
    with pytest.raises(Unfit, match="replaced by a link"):
        Place(("link", "ssh")).below(tree)

"""A real engine of containers for tests, and an image of busybox made here: no registry is asked.

podman as root needs its limits set where this host keeps CAP_SYS_RESOURCE from root, which the
worker does, and runc where the control groups are those of both versions, which crun refuses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

IMAGE = "localhost/colonyd-test:1"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LONGEST_RUNROOT = 50  # characters, podman's own bound
_APPLETS = "sh cat tr sleep echo head id ls touch mkdir ln tail env rm wc grep sed test true kill"


def require(*tools: str) -> None:
    """Skip where containers can't be tried; what is only not installed fails in CI."""
    if os.geteuid() != 0:
        pytest.skip("control groups and namespaces of a test need root")
    lacking = [tool for tool in tools if shutil.which(tool, path=_PATH) is None]
    if not Path("/bin/busybox").exists():
        lacking.append("busybox-static")
    if lacking:
        reason = f"no {', '.join(lacking)} here: `scripts/setup --test` installs what is missing"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def make_root(place: Path) -> Path:
    """Return a directory with a root of busybox alone."""
    for name in ("bin", "usr", "tmp", "dev", "proc", "sys", "etc", "run", "root", "var", "cfs"):
        (place / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", place / "bin/busybox")
    for applet in _APPLETS.split():
        (place / "bin" / applet).symlink_to("busybox")
    (place / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return place


class Podman:
    """podman with a storage and settings of its own; `environ` leads it there."""

    def __init__(self, place: Path, runroot: Path) -> None:
        # The command that podman has run at a container's end refuses a longer one, and `podman
        # run` then waits 20 s for what that command would have written down.
        assert len(str(runroot)) <= _LONGEST_RUNROOT
        place.mkdir(parents=True)
        (place / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{place}/graph"\nrunroot = "{runroot}"\n'
        )
        (place / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{place}/tmp"\n'
        )
        self.environ = {
            "PATH": _PATH,
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        }

    def __call__(self, *words: str, data: bytes | None = None) -> str:
        done = subprocess.run(
            ["podman", *words], input=data, capture_output=True, env=self.environ, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def running(self) -> list[str]:
        """The names of all containers that exist."""
        return self("ps", "--all", "--format={{.Names}}").split()


@contextmanager
def podman_with_image(place: Path) -> Iterator[Podman]:
    """Give podman with `IMAGE`. Skips where no container starts."""
    require("podman", "runc")
    with tempfile.TemporaryDirectory(
        prefix="podman", dir="/tmp", ignore_cleanup_errors=True
    ) as run:
        podman = Podman(place / "podman", Path(run))
        root = make_root(place / "root")
        layer = subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True)
        podman("import", "-", IMAGE, data=layer.stdout)
        yield podman

"""Two daemons that serve the same colony from one store, for tests of what they must share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemons import Daemon


def store_target(daemon: Daemon) -> str:
    """Where the store below a daemon is reached; the home's path must be a short one."""
    return f"unix:{daemon.home}/etcd/localhost:1"


@contextmanager
def two_daemons(place: Path, name: str) -> Iterator[tuple[Daemon, Daemon]]:
    """The first runs the store; both have the keys of one colony."""
    alone = {"COLONYD_FEDERATION__ENABLED": "false"}
    first = Daemon(place / "a", name, alone).start()
    try:
        (place / "b").mkdir(mode=0o700)
        shutil.copytree(first.home / "keys", place / "b" / "keys")
        shutil.copy(first.home / "colony", place / "b" / "colony")
        shared = alone | {"COLONYD_ETCD__ENDPOINTS": store_target(first)}
        second = Daemon(place / "b", name, shared).start()
        try:
            yield first, second
        finally:
            second.stop()
    finally:
        first.stop()

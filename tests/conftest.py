"""Fixtures shared by the tests: a real daemon, alone, and one for a whole module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings

from node.etcd.client import EtcdClient, open_client
from tests.node.etcd.support import start_store
from tests.support.daemons import Daemon

# How long an example takes says more about the machine than about the code.
settings.register_profile(
    "patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# Files of one long test begin first, so that the others fill the time beside them.
_LONGEST = (
    "test_package.py",
    "test_many_seeds.py",
    "test_kills.py",
    "test_netns.py",
    "test_mutations.py",
    "test_fuzz.py",
    "test_checker.py",
    "test_cut_links.py",
    "test_pages.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--no-loadscope-reorder`, the order in which the files are handed out."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that are stopped after the test."""
    made: list[Daemon] = []

    def make(name: str, **environ: str) -> Daemon:
        daemon = Daemon(tmp_path / name, name, environ)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        if daemon.process is not None:
            daemon.stop()


@pytest.fixture
async def client(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[EtcdClient]:
    """A client of an etcd of its own."""
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def lone_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon without federation for the tests of a module."""
    home = tmp_path_factory.mktemp("lone") / "dev"
    daemon = Daemon(home, "dev", {"COLONYD_FEDERATION__ENABLED": "false"}).start()
    yield daemon
    assert daemon.stop() == 0

"""Fixtures of the tests of `colony ui`: three colonies, the command, and one browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cli.ui.scene import Scene, federate, furnish, running_ui
from tests.cli.ui.tab import Tab
from tests.sdk.browser.support import Browser, require, running_browser
from tests.support.daemons import Daemon

# Colonies of other tests on this machine are no part of the picture.
ENVIRON = {"COLONYD_FEDERATION__DISCOVERY": "false"}


class Workshop(NamedTuple):
    """The furnished colony, a peer that answers, the ids of what is there, and an address."""

    here: Scene
    there: Scene
    ids: dict[str, str]
    sign_in: Callable[[], str]


@pytest.fixture(scope="package")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A workshop at work, a foundry that works for it, and an orchard that does not answer."""
    place: Path = tmp_path_factory.mktemp("ui")
    names = ("workshop", "foundry", "orchard")
    daemons = [Daemon(place / name, name, ENVIRON) for name in names]
    try:
        here, there, silent = (Scene(daemon.start()) for daemon in daemons)
        # Before they trust each other: what a colony offers is told then, and later now and again.
        there.hire("smith", "cli")
        there.offer("smith", "forge", description="Forges a part.")
        federate(here, there)
        federate(here, silent)
        silent.daemon.stop()
        ids = furnish(here, there, place)
        away = {"colonyname": "orchard"}
        ids["silent"] = here.submit("prune", "cli", "apple tree", conditions=away)
        with running_ui(here.daemon, "--write") as command:
            yield Workshop(here, there, ids, command.address)
    finally:
        for daemon in daemons:
            if daemon.process is not None:
                daemon.stop()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    require()
    with running_browser() as running:
        yield running


@pytest.fixture(scope="package")
def tab(browser: Browser, workshop: Workshop) -> Iterator[Tab]:
    """A tab that may change things, for what does not need one of its own."""
    tab = Tab(browser, "shared")
    tab.open(workshop.sign_in())
    yield tab
    tab.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens the page in browsers of their own; each must have been without a fault."""
    opened: list[Tab] = []

    def go(address: str, **context: Any) -> Tab:
        tab = Tab(browser, f"tab-{len(opened)}")
        opened.append(tab)
        tab.open(address, **context)
        return tab

    yield go
    for tab in opened:
        tab.close()

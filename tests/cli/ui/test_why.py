"""A person who has only the page can find out why a process does not run, and what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from colonyd.rpc import RpcError
from tests.cli.ui.conftest import Workshop
from tests.cli.ui.scene import Scene
from tests.cli.ui.tab import Tab

pytestmark = pytest.mark.slow


def told(tab: Tab, processid: str, headline: str) -> str:
    """Wait until the page says why a process does not run; return all that it says of it."""
    tab.go(f"process/{processid}")
    tab.see(headline, ".why .headline")
    return tab.text(".why")


def test_no_executor_of_that_type(tab: Tab, workshop: Workshop) -> None:
    headline = 'Nobody can take it: no executor of type "welder" is registered'
    text = told(tab, workshop.ids["nobody"], headline)
    assert 'it asks for an executor of type "welder"' in text
    assert "Next: start one, such as colony worker --type welder" in text
    assert "It fails if nobody has taken it in 24 h" in text


def test_no_executor_of_that_name(tab: Tab, workshop: Workshop) -> None:
    wanted = workshop.here.submit("render", "gpu", conditions={"executornames": ["gpu-9"]})
    text = told(tab, wanted, 'no executor "gpu-9" of type "gpu" is registered')
    assert "named gpu-9" in text


def test_an_executor_that_is_not_approved(tab: Tab, workshop: Workshop) -> None:
    headline = 'executor "robot-arm" of type "arm" waits for approval'
    text = told(tab, workshop.ids["pending"], headline)
    assert "Next: colony executor approve robot-arm" in text


def test_all_are_busy(tab: Tab, workshop: Workshop) -> None:
    text = told(tab, workshop.ids["busy"], "All 2 executors that could take it are busy")
    assert "gpu-1 runs render" in text
    assert "gpu-2 runs " in text
    assert "before it in the queue" in text
    # Each is a link to what keeps it busy.
    running = workshop.ids["running"]
    tab.run("await page.locator(`.why a[href$='${args.id}']`).click()", id=running)
    tab.see("lighthouse", ".lead")


def test_executors_that_do_not_ask(tab: Tab, workshop: Workshop) -> None:
    rows = workshop.here.call("getprocessesmsg", colonyname="workshop", state=0, count=100)
    sheet = next(row["processid"] for row in rows if row["spec"]["args"] == ["copper"])
    text = told(tab, sheet, "1 executor could take it, and none asks for work")
    assert "shears does not ask for work; it was last heard from" in text
    assert "is the program of that executor running" in text


def test_a_paused_colony(tab: Tab, workshop: Workshop) -> None:
    here = workshop.here
    here.call("pauseassignmentsmsg", "colony", colonyname=here.name)
    try:
        text = told(tab, workshop.ids["busy"], "Assignments are paused in this colony")
        assert "Next: resume them" in text
    finally:
        here.call("resumeassignmentsmsg", "colony", colonyname=here.name)
    # The page goes on by itself.
    tab.see("executors that could take it are busy", ".why .headline")


def test_parents_that_have_not_ended(tab: Tab, workshop: Workshop) -> None:
    rows = workshop.here.call(
        "getprocessesmsg",
        colonyname="workshop",
        processgraphid=workshop.ids["workflow"],
        state=-1,
        count=100,
    )
    last = next(row["processid"] for row in rows if row["spec"]["nodename"] == "publish")
    text = told(tab, last, "It waits for 2 processes of its workflow")
    assert "merge" in text
    assert "thumbnails" in text
    tab.run("await page.locator('.why a').first().click()")
    tab.see("It waits for", ".why .headline")


def test_a_peer_that_is_silent(tab: Tab, workshop: Workshop) -> None:
    text = told(tab, workshop.ids["silent"], "It is for orchard, which does not answer")
    assert "the last error:" in text
    assert "Next: is the daemon of orchard up" in text


def test_a_peer_where_it_waits(tab: Tab, workshop: Workshop) -> None:
    text = told(tab, workshop.ids["away"], "foundry has accepted it, where it is waiting")
    assert "look at it there: process" in text


@contextmanager
def asking(scene: Scene, name: str, cpu: str) -> Iterator[None]:
    """Let an executor of the type "mill" with that much CPU ask for work, for 30 s at most."""

    def ask() -> None:
        with suppress(RpcError):
            fields = {"colonyname": scene.name, "timeout": 30, "availablecpu": cpu}
            scene.call("assignprocessmsg", scene.executors[name], **fields)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        # One that it can take ends the poll at once.
        scene.submit("mill", "mill", "splinter", conditions={"cpu": "10m"})
        thread.join(40)


def test_resources_that_nobody_has(tab: Tab, workshop: Workshop) -> None:
    here = workshop.here
    here.hire("tiny", "mill")
    large = here.submit("mill", "mill", "block", conditions={"cpu": "4000m"})
    with asking(here, "tiny", "100m"):
        headline = "No executor that asks for work has the CPU or memory that it wants"
        text = told(tab, large, headline)
        assert "it wants cpu 4000m" in text


def test_one_that_runs_has_no_reason(tab: Tab, workshop: Workshop) -> None:
    tab.go(f"process/{workshop.ids['running']}")
    tab.see("62 %")
    assert tab.run("return page.locator('.why').count()") == 0

"""One workflow whose steps run the same function on Slurm, in a container, in a Chromium page, in
Node.js and in Python, beside one real daemon.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

import colonyd
from colonyd.keys import PrivateKey
from colonyd.settings import Settings
from tests.cli.support import COLONY, ENVIRON, Worker
from tests.sdk.browser.page import Page, at_work
from tests.sdk.browser.support import EXAMPLE, require, running_browser, serving_files
from tests.sdk.nodejs import at_work as node_at_work
from tests.sdk.nodejs import require_node
from tests.support.containers import IMAGE, podman_with_image
from tests.support.daemons import Daemon
from tests.support.slurm import running_slurm

KINDS = ("slurm", "container", "browser", "node")


@contextmanager
def command_at_work(
    daemon: Daemon, kind: str, *words: str, environ: dict[str, str]
) -> Iterator[None]:
    """Run `colony worker` of a type."""
    own = ["--home", str(daemon.home), "--json", "--server", f"127.0.0.1:{daemon.port}"]
    names = ["--name", kind, "--type", kind]
    worker = Worker([*COLONY, *own, "worker", *names, *words], {**ENVIRON, **environ})
    try:
        worker.event("ready")
        yield
    finally:
        worker.process.terminate()
        worker.process.communicate(timeout=60)


@contextmanager
def page_at_work(daemon: Daemon) -> Iterator[None]:
    """Run the worker page in Chromium."""
    with running_browser() as browser, serving_files(EXAMPLE) as origin:
        server = f"http://127.0.0.1:{daemon.port}"
        asked = f"{origin}/?server={server}&colony=dev&name=browser&type=browser"

        def opened(daemon: Daemon, name: str) -> Page:
            return Page(browser, daemon, name).open(asked)

        with at_work(opened, daemon, "browser") as page:
            yield
        page.close()


@pytest.fixture
def workers(lone_daemon: Daemon, tmp_path: Path) -> Iterator[None]:
    """A worker of each of KINDS with the function `upper`: all arguments in capitals."""
    require()
    require_node()
    with ExitStack() as stack:
        podman = stack.enter_context(podman_with_image(tmp_path / "containers"))
        (tmp_path / "slurm").mkdir()
        slurm = stack.enter_context(running_slurm(tmp_path / "slurm"))
        for kind, words, environ in (
            ("slurm", ("--slurm", "--func", "upper=tr a-z A-Z"),
             {"PATH": f"{slurm.bin}:{os.environ['PATH']}"}),
            ("container", ("--engine", "podman", "--container", f"upper={IMAGE} tr a-z A-Z"),
             podman.environ),
        ):  # fmt: skip
            stack.enter_context(command_at_work(lone_daemon, kind, *words, environ=environ))
        stack.enter_context(node_at_work(lone_daemon, "node", tmp_path / "store"))
        stack.enter_context(page_at_work(lone_daemon))
        yield


def python_worker(settings: Settings) -> colonyd.Worker:
    worker = colonyd.Worker("python", type="python", settings=settings, key=PrivateKey.generate())

    @worker.function
    def upper(*texts: str) -> tuple[str, ...]:
        return tuple(text.upper() for text in texts)

    return worker


def step(name: str, kind: str) -> colonyd.Task:
    conditions = colonyd.Conditions(executortype=kind)
    return colonyd.task("upper", name, name=name, spec=colonyd.Spec(conditions=conditions))


@pytest.mark.slow
async def test_each_kind_of_worker_runs_a_step_of_one_workflow(
    lone_daemon: Daemon, workers: None, nursery: trio.Nursery
) -> None:
    """Each gets its own argument, and behind it what the steps before gave."""
    settings = Settings.find(server=f"127.0.0.1:{lone_daemon.port}", home=lone_daemon.home)
    worker = python_worker(settings)
    await nursery.start(worker.serve)
    first, last = step("first", "python"), step("last", "python")
    between = [step(kind, kind) for kind in KINDS]
    first >> between >> last
    async with colonyd.Client(settings=settings) as colony:
        run = await colony.submit(colonyd.Workflow(first, *between, last))
        outputs = await run.wait(timeout=120)
        steps = await run.steps()
        types = {each.id: each.type for each in await colony.executors()}
    worker.stop()
    assert outputs["first"] == "FIRST"
    for kind in KINDS:
        assert outputs[kind] == [kind.upper(), "FIRST"]
    assert outputs["last"][0] == "LAST"
    # Upstream promises no order among the steps that a step waits for.
    assert sorted(outputs["last"][1:]) == sorted([text for kind in KINDS for text in outputs[kind]])
    ran = {name: types[process.executorid] for name, process in steps.items()}
    assert ran == {"first": "python", **{kind: kind for kind in KINDS}, "last": "python"}

"""A thousand steps, and workers in Python that are killed while they run them."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from colonyd import Client, Conditions, Settings, Spec, Task, Workflow, task
from tests.support.daemons import REPOSITORY, Daemon

pytestmark = pytest.mark.slow

WORKERS, WIDTH, LAYERS = 4, 37, 27
KILL_EVERY = 0.4  # seconds after the last one is ready again
PROGRAM = """
import hashlib, sys
from colonyd import Worker

def tell(event, details):
    if event == "ready":
        print("ready", flush=True)

worker = Worker(sys.argv[1], type="mix", slots=2, report=tell)

@worker.function(rerun=True)
def mix(seed: str, *before: str) -> str:
    return hashlib.sha256("".join([seed, *sorted(before)]).encode()).hexdigest()

worker.run()
"""


def mixed(seed: str, before: list[str]) -> str:
    return hashlib.sha256("".join([seed, *sorted(before)]).encode()).hexdigest()


class Crew:
    """Workers of one type; one at a time is killed and started again."""

    def __init__(self, daemon: Daemon, program: Path) -> None:
        ours = ("COLONIES_", "COLONYD_")
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self.environ |= {"COLONYD_HOME": str(daemon.home), "PYTHONPATH": str(REPOSITORY)}
        self.program = program
        self.running = [self.start(f"mixer-{number}") for number in range(WORKERS)]
        self.killed = 0

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it takes processes."""
        command = [sys.executable, str(self.program), name]
        pipe = subprocess.PIPE
        started = subprocess.Popen(command, env=self.environ, cwd="/", stdout=pipe)
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        return started

    def kill_one(self, dice: random.Random) -> None:
        number = dice.randrange(WORKERS)
        self.running[number].send_signal(signal.SIGKILL)
        self.ended(self.running[number])
        self.running[number] = self.start(f"mixer-{number}")
        self.killed += 1

    def end(self) -> None:
        for each in self.running:
            with suppress(ProcessLookupError):
                each.kill()
            self.ended(each)

    @staticmethod
    def ended(process: subprocess.Popen[bytes]) -> None:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    environ = {"COLONYD_FEDERATION__ENABLED": "false"}
    daemon = Daemon(tmp_path / "dev", "dev", environ).start()
    program = tmp_path / "mix.py"
    program.write_text(PROGRAM)
    made = Crew(daemon, program)
    yield made
    made.end()
    assert daemon.stop() == 0


async def test_a_thousand_steps_end_right_though_workers_are_killed(crew: Crew) -> None:
    dice = random.Random(13)
    spec = Spec(conditions=Conditions(executortype="mix"), maxexectime=20, maxretries=50)
    layers: list[list[Task]] = [[task("mix", "first", name="first", spec=spec)]]
    wanted = {"first": mixed("first", [])}
    for depth in range(LAYERS):
        layer: list[Task] = []
        for number in range(WIDTH):
            step = task("mix", f"{depth}/{number}", name=f"{depth}-{number}", spec=spec)
            before = dice.sample(layers[-1], min(len(layers[-1]), dice.randint(1, 3)))
            before >> step
            wanted[step.name] = mixed(f"{depth}/{number}", [wanted[each.name] for each in before])
            layer.append(step)
        layers.append(layer)
    workflow = Workflow(*(step for layer in layers for step in layer))
    assert len(workflow.tasks) == 1 + WIDTH * LAYERS == 1000
    settings = Settings.find(home=crew.environ["COLONYD_HOME"], environ={})
    async with Client(settings=settings) as colony, trio.open_nursery() as nursery:

        async def kill() -> None:
            while True:
                await trio.sleep(KILL_EVERY)
                await trio.to_thread.run_sync(crew.kill_one, dice)

        nursery.start_soon(kill)
        run = await colony.submit(workflow)
        outputs = await run.wait(timeout=600)
        nursery.cancel_scope.cancel()
    assert outputs == wanted
    assert crew.killed >= 5

"""Two colonies at work for the tests of `colony ui`, and the command itself as a user starts it.

What its pages must show is in the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient
from tests.support.daemons import REPOSITORY, Daemon, until

_TYPES = {"gpu-1": "gpu", "gpu-2": "gpu", "shears": "cli", "robot-arm": "arm"}


class Scene:
    """One colony: its daemon, and its executors by name."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.executors: dict[str, PrivateKey] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.daemon.port}"

    @property
    def name(self) -> str:
        return self.daemon.name

    def call(self, kind: str, key: str | PrivateKey = "user", **fields: Any) -> Any:
        """Make one call; `key` is the name of a key of the home, or a key."""

        signer = self.daemon.key(key) if isinstance(key, str) else key

        async def go() -> Any:
            # Without having to ask for the server's id each time.
            async with RpcClient(self.url, audience=self.daemon.key("server").id) as client:
                return await client.call(kind, fields, signer, 150)

        return trio.run(go)

    def hire(self, name: str, kind: str, *, approve: bool = True, **extra: Any) -> PrivateKey:
        """Add an executor."""
        key = self.executors[name] = PrivateKey.generate()
        new = {
            "executorid": key.id,
            "executorname": name,
            "executortype": kind,
            "colonyname": self.name,
            **extra,
        }
        self.call("addexecutormsg", "colony", executor=new)
        if approve:
            named = {"colonyname": self.name, "executorname": name}
            self.call("approveexecutormsg", "colony", **named)
        return key

    def offer(self, name: str, func: str, **more: Any) -> None:
        """Register a function of an executor."""
        fun = {"executorname": name, "colonyname": self.name, "funcname": func, **more}
        self.call("addfunctionmsg", self.executors[name], fun=fun)

    def submit(self, func: str, kind: str, *args: Any, **spec: Any) -> str:
        """Submit a process; return its id. `conditions` are laid over the type and the colony."""
        conditions = {"colonyname": self.name, "executortype": kind, **spec.pop("conditions", {})}
        full = {"funcname": func, "args": list(args), "maxexectime": 600, "conditions": conditions}
        return str(self.call("submitfuncspecmsg", spec=full | spec)["processid"])

    def take(self, name: str) -> dict[str, Any]:
        """Take one process as an executor."""
        key = self.executors[name]
        found: dict[str, Any] = self.call(
            "assignprocessmsg", key, colonyname=self.name, timeout=120
        )
        return found

    def log(self, name: str, processid: str, *lines: str) -> None:
        """Log lines about a process as the executor that runs it."""
        for line in lines:
            self.call("addlogmsg", self.executors[name], processid=processid, message=line)

    def close(self, name: str, processid: str, *out: Any) -> None:
        """Report success."""
        self.call("closesuccessfulmsg", self.executors[name], processid=processid, out=list(out))

    def fail(self, name: str, processid: str, *errors: str) -> None:
        """Report failure."""
        self.call("closefailedmsg", self.executors[name], processid=processid, errors=list(errors))

    def colony(self, *words: str) -> str:
        """Run a `colony` command with this home; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *words],
            cwd=REPOSITORY,
            env=_environ(self.daemon),
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def federate(one: Scene, other: Scene) -> None:
    """Make trust mutual by an invitation."""
    address = f"127.0.0.1:{other.daemon.peer_port}"
    made = other.call("invitepeermsg", "colony", expires=600, addresses=[address])
    one.call("joinpeermsg", "colony", token=made["token"])


def furnish(here: Scene, there: Scene, place: Path) -> dict[str, str]:
    """Fill two colonies with what a workshop has; return ids by name."""
    for name, kind in _TYPES.items():
        here.hire(name, kind, approve=name != "robot-arm")
    frames = [
        {"name": "scene", "type": "string", "description": "name of the scene", "required": True},
        {"name": "frames", "type": "int", "description": "how many frames"},
        {"name": "quality", "type": "string", "enum": ["draft", "final"]},
    ]
    for name in ("gpu-1", "gpu-2"):
        here.offer(name, "render", description="Renders a scene into frames.", args=frames)
    here.offer("shears", "cut", description="Cuts a sheet.")
    ids: dict[str, str] = {}

    for number in range(6):
        done = here.submit("render", "gpu", f"harbour-{number}", 120, "draft")
        here.take("gpu-1")
        here.log("gpu-1", done, "loading the scene", "120 frames", "written to /frames")
        here.close("gpu-1", done, f"/frames/harbour-{number}.mp4")
        ids["done"] = done
    for sheet in ("brass", "tin"):
        failed = here.submit("cut", "cli", sheet, maxretries=1)
        here.take("shears")
        here.log("shears", failed, f"mounting {sheet}", "the blade is blunt")
        here.fail("shears", failed, "blade blunt after 3 cuts: replace it and submit again")
        ids["failed"] = failed
    ids["running"] = here.submit("render", "gpu", "lighthouse", 480, "final", label="film")
    here.take("gpu-1")
    lines = [f"frame {frame} of 480 ({frame * 100 // 480} %)" for frame in range(0, 310, 60)]
    here.log("gpu-1", ids["running"], "loading the scene", *lines)

    edges: dict[str, list[str]] = {
        "fetch-a": [],
        "fetch-b": [],
        "fetch-c": [],
        "clean": ["fetch-a", "fetch-b"],
        "resize": ["fetch-c"],
        "merge": ["clean", "resize"],
        "thumbnails": ["resize"],
        "publish": ["merge", "thumbnails"],
    }
    nodes = [
        {
            "nodename": name,
            "funcname": name.partition("-")[0],
            "maxexectime": 600,
            "conditions": {
                "colonyname": here.name,
                "executortype": "gpu",
                "dependencies": before,
            },
        }
        for name, before in edges.items()
    ]
    spec = {"colonyname": here.name, "functionspecs": nodes}
    graph = here.call("submitworkflowspecmsg", spec=spec)
    ids["workflow"] = graph["processgraphid"]
    for _ in range(3):
        here.close("gpu-2", here.take("gpu-2")["processid"], "fetched")
    here.take("gpu-2")
    for scene in ("breakwater", "dunes", "pier"):
        ids["busy"] = here.submit("render", "gpu", scene, 240, "final")
    ids["nobody"] = here.submit("weld", "welder", "frame-7", maxwaittime=86_400)
    ids["pending"] = here.submit("lift", "arm", "crate 12")

    sent = here.submit("forge", "cli", "hinge", 4, conditions={"colonyname": there.name})
    ids["forwarded"] = sent
    taken = there.take("smith")
    there.log("smith", taken["processid"], "heating", "hammering")
    there.close("smith", taken["processid"], "4 hinges")

    async def ended() -> bool:
        async with here.daemon.client() as client:
            found = await client.call("getprocessmsg", {"processid": sent}, here.daemon.key("user"))
            return bool(found["state"] == 2)

    trio.run(until, 120, ended)
    ids["away"] = here.submit("forge", "cli", "anchor", 1, conditions={"colonyname": there.name})
    ids["away2"] = here.submit("forge", "cli", "chain", 9, conditions={"colonyname": there.name})
    ids["here"] = there.submit("cut", "cli", "copper", conditions={"colonyname": here.name})

    flow = json.dumps([nodes[0] | {"nodename": "ping"}])
    cron = {"colonyname": here.name, "workflowspec": flow, "interval": -1}
    here.call(
        "addcronmsg", cron=cron | {"name": "nightly-backup", "cronexpression": "0 30 2 * * *"}
    )
    here.call("addcronmsg", cron=cron | {"name": "hourly-report", "interval": 3600})
    new = {"colonyname": here.name, "name": "frames", "workflowspec": flow, "trigger": 10}
    generator = here.call("addgeneratormsg", generator=new | {"timeout": 3600})
    for number in range(4):
        fields = {"generatorid": generator["generatorid"], "arg": f"frame-{number:04}.png"}
        here.call("packgeneratormsg", **fields)
    for label, name, size in (
        ("/scenes", "harbour.blend", 40_000),
        ("/scenes", "lighthouse.blend", 310_000),
    ):
        file = place / name
        file.write_bytes(os.urandom(size))
        here.colony("file", "put", str(file), "--label", label)
    ids["bytes"] = (place / "harbour.blend").read_bytes().hex()
    return ids


def _environ(daemon: Daemon) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    return kept | {"COLONYD_HOME": str(daemon.home)}


class Command:
    """A running `colony ui`. It prints a new address whenever the last one was used."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def address(self) -> str:
        """Return the next one-time address that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), line
        return line


@contextmanager
def running_ui(daemon: Daemon, *options: str) -> Iterator[Command]:
    """Start `colony ui` as a user does."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "cli.main", "ui", "--no-open", *options],
        cwd=REPOSITORY,
        env=_environ(daemon),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield Command(process)
        finally:
            process.terminate()
            process.wait(60)

"""`colony run`: submits a function spec and, with --wait, waits for its output.

Processes submitted earlier are watched by `cli.work.process`.
"""

from __future__ import annotations

import copy
import csv
import json
from contextlib import suppress
from typing import Any

import click
import trio

from cli.core.errors import USAGE, Failure
from cli.core.inputs import read_object, refuse_unknown
from cli.core.lookup import explain_end
from cli.core.output import output_lines, print_json
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command, finish
from cli.core.terminal import print_error, print_line, print_result
from cli.core.words import spelled
from cli.work.log import drain
from cli.work.waiting import unfinished, wait_told
from colonyd.rpc import RpcError, Signed, Unreachable
from node.model.types import FunctionSpec


@colony_command(
    "run",
    "colony run --func upper hello --wait",
    "colony run --func convert a.png --kwargs width=320 --colony lab-2",
    "colony run --spec convert.json --follow",
)
@click.argument("args", nargs=-1)
@click.option("--args", "more", multiple=True, hidden=True)  # as upstream: one row of CSV each
@click.option("--func", "funcname", default=None, help="Name of the function.")
@click.option("--spec", "file", default=None, metavar="FILE", help="Function spec, JSON; - stdin.")
@click.option("--kwargs", "kwargs", multiple=True, metavar="K=V", help="Named argument; repeat.")
@click.option("--env", "env", multiple=True, metavar="K=V", help="Environment; repeat.")
@click.option("--json-args", is_flag=True, help="Read arguments as JSON where they are JSON.")
@click.option("--executor-type", default=None, help="Type of executor [cli].")
@click.option("--executor", "executors", multiple=True, help="Only this executor; repeat.")
@click.option("--location", default="", help="Only executors at this location.")
@click.option(
    "--colony",
    default=None,
    help="Colony to run in: name or id of a peer, lab-2/lab-3 by way of one, or home.",
)
@click.option("--label", default="", help="A word to find it by.")
@click.option("--channel", "channels", multiple=True, help="Name of a channel to open; repeat.")
@click.option("--wait", is_flag=True, help="Wait and print the output, one line per element.")
@click.option("--follow", is_flag=True, help="--wait, with what is logged meanwhile on stderr.")
@click.option("--timeout", type=Seconds(), default=None, help="Seconds to wait [no limit].")
@click.option("--max-wait", type=int, default=None, help="Fail if not started in so many seconds.")
@click.option("--max-exec", type=int, default=None, help="Seconds of one execution; then a retry.")
@click.option("--max-retries", type=int, default=None, help="Retries after --max-exec.")
@click.option("--priority", type=click.IntRange(-50000, 50000), default=None, help="High: sooner.")
def run(session: Session, wait: bool, follow: bool, timeout: float | None, **given: Any) -> None:
    """Submit a function with ARGS and print the process id, or with --wait its output.

    Put -- before arguments that begin with a dash. Options go over what a --spec says.
    """
    wait = wait or follow
    spec = spec_of(session, given)
    key = session.member_key()
    away = spec["conditions"].get("colonyname") != session.colony()
    submitted: list[str] = []

    async def work() -> dict[str, Any]:
        async with session.signed(key) as client:
            process: dict[str, Any] = await client.call(
                "submitfuncspecmsg", {"spec": spec}, _LOOK_UP if away else _HERE, attempts=4
            )
            submitted.append(process["processid"])
            if not wait:
                return process
            logs = LogFollower(client, process)
            async with trio.open_nursery() as nursery:
                if follow:
                    nursery.start_soon(logs.run)
                ended = await wait_told(session, client, process["processid"], timeout)
                nursery.cancel_scope.cancel()
            if follow:
                await logs.look()
            return ended

    try:
        process = session.run(work)
    except (TimeoutError, KeyboardInterrupt) as error:
        if not submitted:
            raise
        what = f"process {submitted[0]} is not finished"
        raise unfinished(what, submitted[0], error) from None
    if session.as_json:
        print_json(process)
    elif wait:
        for line in output_lines(process.get("out")):
            print_result(line)
    else:
        print_line(process["processid"])
    if wait:
        finish(explain_end(process))


class LogFollower:
    """Prints the log lines of a process on stderr, each line once."""

    def __init__(self, client: Signed, process: dict[str, Any]) -> None:
        self._client = client
        colony = process["spec"]["conditions"]["colonyname"]
        self._fields = {"colonyname": colony, "processid": process["processid"]}
        self._since = 0

    def _show(self, line: dict[str, Any]) -> None:
        # Noted for each line: the look may be cancelled between two pages.
        self._since = int(line["timestamp"])
        print_error(str(line["message"]).rstrip("\n"))

    async def look(self) -> None:
        """Print new lines; a daemon that is away, or a peer's colony, has none."""
        with suppress(RpcError, Unreachable):
            await drain(self._client, self._show, self._since, **self._fields)

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await self.look()
            await trio.sleep(0.5)


def spec_of(session: Session, given: dict[str, Any]) -> dict[str, Any]:
    """Return the function spec of the options: that of --spec, with the options over it."""
    spec: dict[str, Any] = read_object(given["file"], "spec") if given["file"] else {}
    if not given["funcname"] and not spec.get("funcname"):
        raise Failure(
            "which function?", code=USAGE, next_step="name it with --func, or in a file with --spec"
        )
    as_json = given["json_args"]
    texts = [*(text for row in csv.reader(given["more"]) for text in row), *given["args"]]
    refuse_unknown(spec, FunctionSpec, given["file"] or "--spec")
    conditions = spec.get("conditions") or {}
    base = function_spec(
        given["funcname"] or spec["funcname"],
        [argument(text, as_json) for text in texts] or spec.get("args") or [],
        (spec.get("kwargs") or {}) | dict(keyword(text, as_json) for text in given["kwargs"]),
        colony=given["colony"] or conditions.get("colonyname") or session.colony(),
        executor_type=given["executor_type"] or conditions.get("executortype") or "cli",
    )
    base["conditions"] = conditions | {
        name: value for name, value in base["conditions"].items() if value
    }
    if given["executors"]:
        base["conditions"]["executornames"] = list(given["executors"])
    if given["location"]:
        base["conditions"]["locationname"] = given["location"]
    base["env"] = (spec.get("env") or {}) | dict(keyword(text, False) for text in given["env"])
    merged = base | {name: value for name, value in spec.items() if name not in _MERGED}
    for option, name in _LIMITS.items():
        if given[option] is not None:
            merged[name] = given[option]
    # To upstream's old server 0 means "at once"; people mean "no limit".
    for name in ("maxwaittime", "maxexectime"):
        merged[name] = merged[name] or -1
    if given["label"]:
        merged["label"] = given["label"]
    if given["channels"]:
        merged["channels"] = list(given["channels"])
    return merged


# Upstream's names of options.
_SPELLINGS = {
    "targettype": "executor-type",
    "executortype": "executor-type",
    "maxwaittime": "max-wait",
    "maxexectime": "max-exec",
    "maxretries": "max-retries",
}
spelled(run, _SPELLINGS)


def called(name: str) -> click.Command:
    """Return `run` under another name, hidden from lists of commands: "process run", for one."""
    command = copy.copy(run)
    command.name, command.hidden = name.rpartition(" ")[2], True
    command.epilog = (run.epilog or "").replace("colony run", f"colony {name}")
    return command


_HERE, _LOOK_UP = 10.0, 30.0  # seconds for an answer; an unknown colony is looked up before
_MERGED = {"funcname", "args", "kwargs", "conditions", "env"}
_LIMITS = {
    "max_wait": "maxwaittime",
    "max_exec": "maxexectime",
    "max_retries": "maxretries",
    "priority": "priority",
}


def argument(text: str, as_json: bool) -> Any:
    """Return an argument as given, or with `as_json` the JSON value it spells (else the text)."""
    if as_json:
        try:
            return json.loads(text)
        except ValueError:
            pass
    return text


def keyword(text: str, as_json: bool) -> tuple[str, Any]:
    """Split 'k=v'. Raises Failure (usage) without a '='."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Failure(f"{text!r}: write it as name=value", code=USAGE)
    return name, argument(value, as_json)


def function_spec(
    funcname: str, args: list[Any], kwargs: dict[str, Any], *, colony: str, executor_type: str
) -> dict[str, Any]:
    """Return a FunctionSpec with all fields that upstream's SDKs send; no limits of time."""
    return {
        "nodename": funcname,
        "funcname": funcname,
        "args": args,
        "kwargs": kwargs,
        "priority": 0,
        "maxwaittime": -1,
        "maxexectime": -1,
        "maxretries": -1,
        "conditions": {
            "colonyname": colony,
            "executornames": [],
            "executortype": executor_type,
            "dependencies": [],
        },
        "label": "",
        "env": {},
    }

"""`colony workflow`: submits graphs of functions, shows and awaits them, cancels and removes them.

`cli.work.graph` draws a graph; `cli.core.inputs` reads files.
"""

from __future__ import annotations

from typing import Any

import click
import trio

from cli.core.errors import FAILED, TIMEOUT, Failure
from cli.core.inputs import pick, workflow_spec
from cli.core.output import (
    STATES,
    ago,
    name_text,
    output_lines,
    print_done,
    print_fields,
    print_json,
    print_rows,
    print_table,
    short,
    state_name,
    when,
)
from cli.core.seconds import Seconds
from cli.core.session import Session, colony_command, colony_group
from cli.core.terminal import print_line, print_result
from cli.work.graph import leaves, progress, tree
from cli.work.removal import OLD_WORDS, removal_options, removed_all
from colonyd.replies import parse_time
from colonyd.rpc import Signed, Unreachable

_PAGE = 100  # the most graphs one call returns
_AT_ONCE = 16  # processes asked for at a time
_MOST_NODES = 500  # processes of a graph that `show` asks for
_POLL_FIRST, _POLL_MOST = 0.05, 1.0  # seconds
_SUCCESSFUL = 2

workflow = colony_group(
    "workflow",
    "Submit, show, await and end workflows: graphs of functions. "
    "An id may be cut to its first characters.",
    "colony workflow run etl.json --wait",
    "colony workflow ls --state running",
    aliases={"submit": "run", **OLD_WORDS},
)


async def _graphs(client: Signed, colony: str, state: int, count: int) -> list[dict[str, Any]]:
    fields = {"colonyname": colony, "count": count, "state": state}
    return await client.call("getprocessgraphsmsg", fields) or []


async def _full_id(session: Session, client: Signed, text: str) -> str:
    if len(text) == 64:
        return text
    rows: list[dict[str, Any]] = []
    for state in range(len(STATES)):
        rows += await _graphs(client, session.colony(), state, _PAGE)
    found = pick(rows, text, ["processgraphid"], "workflow", "colony workflow ls")
    return str(found["processgraphid"])


async def _load(client: Signed, graphid: str) -> dict[str, Any]:
    reply: dict[str, Any] = await client.call(
        "getprocessgraphmsg", {"processgraphid": graphid}, timeout=60.0
    )
    return reply


async def _processes(client: Signed, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return the processes with these ids, a few at a time."""
    found: dict[str, dict[str, Any]] = {}
    slots = trio.CapacityLimiter(_AT_ONCE)

    async def fetch(processid: str) -> None:
        async with slots:
            found[processid] = await client.call("getprocessmsg", {"processid": processid})

    async with trio.open_nursery() as nursery:
        for processid in ids:
            nursery.start_soon(fetch, processid)
    return found


async def _until_closed(client: Signed, graphid: str, timeout: float | None) -> dict[str, Any]:
    """Poll until the workflow is closed, and return it; `timeout` in seconds. Raises TimeoutError,
    RpcError.
    """
    pause = _POLL_FIRST
    with trio.move_on_after(float("inf") if timeout is None else timeout):
        while True:
            try:
                graph = await _load(client, graphid)
                if graph["state"] >= _SUCCESSFUL:
                    return graph
            except Unreachable:
                pause = _POLL_MOST  # the daemon restarts: the workflow outlives it
            await trio.sleep(pause)
            pause = min(pause * 1.5, _POLL_MOST)
    raise TimeoutError(graphid)


def _wait(session: Session, text: str, timeout: float | None) -> None:
    """Wait, print the outputs of the last nodes, and fail if the workflow did."""
    key = session.member_key()

    async def work() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with session.signed(key) as client:
            graphid = await _full_id(session, client, text)
            graph = await _until_closed(client, graphid, timeout)
            last = leaves(graph)
            return graph, list((await _processes(client, last)).values())

    try:
        graph, ends = session.run(work)
    except TimeoutError:
        raise Failure(
            f"workflow {text} is not finished after {timeout:g} s",
            code=TIMEOUT,
            next_step=f"`colony workflow show {text[:12]}`",
        ) from None
    ends.sort(key=lambda process: str(process["spec"].get("nodename")))
    if session.as_json:
        print_json({**graph, "leaves": ends})
    else:
        for process in ends:
            for line in output_lines(process.get("out")):
                print_result(line)
    if graph["state"] != _SUCCESSFUL:
        name = short(graph["processgraphid"])
        raise Failure(
            f"workflow {name} {state_name(graph['state'])}",
            code=FAILED,
            next_step=f"`colony workflow show {name}`",
        )


@colony_command(
    "run", "colony workflow run etl.json", "cat etl.json | colony workflow run - --wait"
)
@click.argument("file")
@click.option("--wait", is_flag=True, help="Wait and print the outputs of the last nodes.")
@click.option("--timeout", type=Seconds(), default=None, help="Seconds to wait [no limit].")
def run(session: Session, file: str, wait: bool, timeout: float | None) -> None:
    """Submit the workflow in FILE (JSON; - reads stdin) and print its id.

    \b
    The file holds an array of function specs, each with a nodename, and the
    nodes it waits for:
      [{"nodename": "a", "funcname": "fetch",
        "conditions": {"executortype": "cli"}},
       {"nodename": "b", "funcname": "store",
        "conditions": {"executortype": "cli", "dependencies": ["a"]}}]
    """
    spec = workflow_spec(file, session.colony())
    graph: dict[str, Any] = session.call(
        "submitworkflowspecmsg", {"spec": spec}, timeout=60.0, attempts=4
    )
    if wait:
        _wait(session, graph["processgraphid"], timeout)
    else:
        print_done(session, graph, graph["processgraphid"])


@colony_command("wait", "colony workflow wait 3fa2b1c09d7e --timeout 60")
@click.argument("workflowid")
@click.option("--timeout", type=Seconds(), default=None, help="Seconds to wait [no limit].")
def wait(session: Session, workflowid: str, timeout: float | None) -> None:
    """Wait for a workflow, print the outputs of its last nodes; exit 0 if successful, else 1."""
    _wait(session, workflowid, timeout)


@colony_command("ls", "colony workflow ls", "colony workflow ls --state failed")
@click.option("--state", type=click.Choice(STATES), default=None, help="Only this state.")
@click.option("--count", type=click.IntRange(1, _PAGE), default=20, show_default=True)
def ls(session: Session, state: str | None, count: int) -> None:
    """List the newest workflows, of one state or of all."""
    key, colony = session.member_key(), session.colony()
    states = range(len(STATES)) if state is None else [STATES.index(state)]

    async def work() -> list[dict[str, Any]]:
        async with session.signed(key) as client:
            rows: list[dict[str, Any]] = []
            for number in states:
                rows += await _graphs(client, colony, number, count)
            return rows

    rows = session.run(work)
    rows.sort(key=lambda row: str(row.get("submissiontime")), reverse=True)
    print_rows(
        session,
        rows[:count],
        ["ID", "STATE", "NODES", "SUBMITTED", "ENDED", "BY"],
        lambda row: [
            short(row["processgraphid"]),
            state_name(row.get("state")),
            len(row.get("processids") or []),
            ago(parse_time(row.get("submissiontime"))),
            ago(parse_time(row.get("endtime"))),
            name_text(row.get("initiatorname")),
        ],
        "no workflows",
    )


@colony_command("show", "colony workflow show 3fa2b1c09d7e")
@click.argument("workflowid")
def show(session: Session, workflowid: str) -> None:
    """Show a workflow and the state of each of its nodes, in the order they run."""
    key = session.member_key()

    async def work() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        async with session.signed(key) as client:
            graph = await _load(client, await _full_id(session, client, workflowid))
            ids = list(graph.get("processids") or [])[:_MOST_NODES]
            return graph, await _processes(client, ids)

    graph, processes = session.run(work)
    if session.as_json:
        print_json({**graph, "processes": list(processes.values())})
        return
    print_fields(
        [
            ("workflow", graph["processgraphid"]),
            ("state", state_name(graph.get("state"))),
            ("nodes", progress(graph, processes)),
            ("submitted by", graph.get("initiatorname")),
            ("submitted", when(graph.get("submissiontime"))),
            ("started", when(graph.get("starttime"))),
            ("ended", when(graph.get("endtime"))),
        ]
    )
    print_line()
    print_table(
        ["NODE", "STATE", "FUNCTION", "AFTER", "ID", "ERRORS"],
        tree(graph, processes),
        "no nodes",
    )


def _change(session: Session, payloadtype: str, text: str, word: str, extra: Any = None) -> None:
    key = session.member_key()

    async def work() -> str:
        async with session.signed(key) as client:
            full = await _full_id(session, client, text)
            fields = {"processgraphid": full, **(extra or {})}
            await client.call(payloadtype, fields, timeout=60.0)
            return full

    full = session.run(work)
    print_done(session, {"processgraphid": full, word: True}, f"{word} {full}")


@colony_command("cancel", "colony workflow cancel 3fa2b1c09d7e")
@click.argument("workflowid")
def cancel(session: Session, workflowid: str) -> None:
    """Cancel what waits and runs of a workflow."""
    _change(session, "cancelprocessgraphmsg", workflowid, "cancelled")


@colony_command(
    "rm", "colony workflow rm 3fa2b1c09d7e", "colony workflow rm --all --state failed --yes"
)
@click.argument("workflowid", required=False)
@removal_options
def rm(session: Session, workflowid: str | None, **given: Any) -> None:
    """Remove a workflow and its processes; it must not run. --all needs the owner's key."""
    if not removed_all(session, "removeallprocessgraphsmsg", "workflows", workflowid, **given):
        _change(session, "removeprocessgraphmsg", str(workflowid), "removed", {"all": False})


for _command in (run, wait, ls, show, cancel, rm):
    workflow.add_command(_command)

"""`colony run`: submits a function spec and, when asked, waits for its output.

Watching processes submitted earlier is in `cli.process`.
"""

from __future__ import annotations

import json
from typing import Any

import click

from cli.output import output_lines, print_json
from cli.process import explain_end, wait_closed
from cli.session import TIMEOUT, USAGE, Failure, Session, colony_command, finish


@colony_command(
    "run",
    "colony run --func upper hello --wait",
    "colony run --func convert photo.png --kwargs width=320 --colony lab-42",
)
@click.argument("args", nargs=-1)
@click.option("--func", "funcname", required=True, help="Name of the function.")
@click.option("--kwargs", "kwargs", multiple=True, metavar="K=V", help="Named argument; repeat.")
@click.option("--json-args", is_flag=True, help="Read arguments as JSON where they are JSON.")
@click.option("--executor-type", default="cli", show_default=True, help="Type of executor.")
@click.option("--colony", default=None, help="Colony to run in: name or id of a peer, or home.")
@click.option("--wait", is_flag=True, help="Wait and print the output, one line per element.")
@click.option("--timeout", type=float, default=None, help="Seconds to wait [no limit].")
@click.option("--max-wait", type=int, default=-1, help="Fail if not started in so many seconds.")
@click.option("--max-exec", type=int, default=-1, help="Seconds of one execution; then a retry.")
@click.option("--max-retries", type=int, default=-1, help="Retries after --max-exec.")
@click.option("--priority", type=click.IntRange(-50000, 50000), default=0, help="Higher is sooner.")
def run(
    session: Session,
    args: tuple[str, ...],
    funcname: str,
    kwargs: tuple[str, ...],
    json_args: bool,
    executor_type: str,
    colony: str | None,
    wait: bool,
    timeout: float | None,
    max_wait: int,
    max_exec: int,
    max_retries: int,
    priority: int,
) -> None:
    """Submit a function with ARGS and print the process id, or with --wait its output.

    Put -- before arguments that begin with a dash.
    """
    spec = function_spec(
        funcname,
        [argument(text, json_args) for text in args],
        dict(keyword(text, json_args) for text in kwargs),
        colony=colony or session.colony(),
        executor_type=executor_type,
    )
    # 0 would mean "at once" to the server; people mean "no limit".
    spec |= {"maxwaittime": max_wait or -1, "maxexectime": max_exec or -1}
    spec |= {"maxretries": max_retries, "priority": priority}
    key = session.member_key()
    submitted: list[str] = []

    async def work() -> dict[str, Any]:
        async with session.client() as client:
            process: dict[str, Any] = await client.call(
                "submitfuncspecmsg", {"spec": spec}, key, attempts=4
            )
            submitted.append(process["processid"])
            if not wait:
                return process
            return await wait_closed(client, key, process["processid"], timeout)

    try:
        process = session.run(work)
    except (TimeoutError, KeyboardInterrupt) as error:
        if not submitted:
            raise
        raise Failure(
            f"process {submitted[0]} is not finished",
            code=TIMEOUT if isinstance(error, TimeoutError) else 1,
            next_step=f"`colony process wait {submitted[0][:12]}` or `colony process cancel ...`",
        ) from None
    if session.as_json:
        print_json(process)
    elif wait:
        for line in output_lines(process.get("out")):
            click.echo(line)
    else:
        click.echo(process["processid"])
    if wait:
        finish(explain_end(process))


def argument(text: str, as_json: bool) -> Any:
    """An argument as given, or with `as_json` the JSON value it spells (else the text)."""
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
        raise Failure(f"--kwargs {text!r}: write it as name=value", code=USAGE)
    return name, argument(value, as_json)


def function_spec(
    funcname: str, args: list[Any], kwargs: dict[str, Any], *, colony: str, executor_type: str
) -> dict[str, Any]:
    """A FunctionSpec with all fields that upstream's SDKs send; no limits of time."""
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

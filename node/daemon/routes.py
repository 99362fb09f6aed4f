"""The paths of the RPC port: `POST /api`, subscriptions, metrics, files, health.

The answers are made in `node.rpc`, `node.daemon.metrics` and others; `daemon.main` opens the port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from colonyd.errors import RpcError
from node.daemon import blobs as filedoor
from node.daemon import metrics, pubsub
from node.etcd.errors import EtcdError, EtcdNoSpace, EtcdTooLarge, EtcdTooManyOps, StoreFull
from node.etcd.pressure import Level
from node.files.tickets import PREFIX
from node.host.config import Config
from node.host.log import get_logger
from node.http import cors
from node.http.server import Limits, Request, Response, serve_http
from node.rpc.dispatch import Table, failure
from node.runtime.node import Node
from node.store import keys

# Seconds that requests in flight get to finish after SIGTERM.
GRACE = 10.0

log = get_logger("door")


async def serve(
    node: Node,
    table: Table,
    config: Config,
    listeners: list[trio.abc.Listener[trio.abc.Stream]],
    drained: trio.Event,
    more: Callable[[], list[metrics.Family]] = list,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until the node drains, and set `drained` when the last request is done.

    `more` returns the metrics of an extension.
    """
    rpc = config.rpc
    limits = Limits(
        max_body=int(rpc.max_body),
        max_connections=rpc.max_connections,
        max_per_signer=rpc.max_per_signer,
        max_unsigned=rpc.max_unsigned,
        max_unsigned_per_address=rpc.max_unsigned_per_address,
        max_unread=int(rpc.max_unread),
        names="rpc.",
    )
    frames = pubsub.Frames(int(rpc.max_unread))
    handler = http_handler(node, table, metrics.Metrics(node, table, rpc.metrics, more), frames)
    try:
        await serve_http(
            handler,
            listeners,
            limits=limits,
            drain=node.draining,
            grace=GRACE,
            error=edge_error,
            task_status=task_status,
        )
    finally:
        drained.set()


_SLASHED = frozenset({"/api/", "/health/", f"{pubsub.PATH}/"})


def _plain_error(status_code: int, message: str) -> Response:
    return Response(status_code, failure(status_code, message))


def edge_error(status_code: int, message: str) -> Response:
    """Return the answer to a request that reached no handler; any page may read it, whatever the
    path.
    """
    return cors.readable(_plain_error(status_code, message))


def http_handler(
    node: Node, table: Table, numbers: metrics.Metrics, frames: pubsub.Frames
) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of the RPC port: `POST /api`, `GET /health` and `/pubsub`."""

    async def handle(request: Request) -> Response:
        if request.path in _SLASHED:  # upstream sends such a client on to the path without it
            request.path = request.path[:-1]
        if not cors.shared(request.path):
            return await answer(request)
        if request.method == "OPTIONS":
            return cors.preflight(request)
        return cors.readable(await answer(request))

    async def answer(request: Request) -> Response:
        try:
            return await served(request)
        except RpcError as error:
            return _plain_error(error.status, error.message)
        except EtcdError as error:
            return _store_error(node, error)

    async def served(request: Request) -> Response:
        if request.path == "/api" and request.method == "POST":
            return Response(*await table.answer(request.body, request.signed))
        if request.path == pubsub.PATH and request.method == "GET":
            return pubsub.upgrade(node, table, frames, request)
        if request.path == metrics.PATH and request.method == "GET":
            try:
                return await numbers.answer(request)
            except RpcError as error:
                return Response(error.status, f"{error.message}\n".encode())
        if request.path.startswith(PREFIX):
            return await filedoor.answer(node.files, request)
        if request.path == "/health" and request.method in ("GET", "HEAD"):
            await node.client.get(keys.SERVER)
            return _health(node)
        return _plain_error(404, f"{request.method} {request.path[:80]}: POST /api is served here")

    return handle


def _health(node: Node) -> Response:
    """Return the answer while the store answers: unsigned, so it tells no sizes."""
    level = node.client.pressure.level
    if level is Level.OK:
        reading = node.processes.reading
        return Response(200, b"reading the queue\n" if reading.under_way else b"")
    message = f"the store is {'nearly ' * (level is Level.SOFT)}full: `colony doctor` says more"
    return _plain_error(507, message) if level is Level.FULL else Response(200, message.encode())


def _store_error(node: Node, error: EtcdError) -> Response:
    if isinstance(error, (EtcdTooLarge, EtcdTooManyOps)):
        # Such as a process with its arguments, input, output and attributes, which is one value.
        status = 413 if isinstance(error, EtcdTooLarge) else 400
        return _plain_error(status, f"the request does not fit the store: {error}")
    if isinstance(error, StoreFull):
        return _plain_error(507, str(error))
    log.warning("store", error=error)
    pressure = node.client.pressure
    if isinstance(error, EtcdNoSpace):
        return _plain_error(507, f"the store took nothing: {pressure.told()}")
    why = f"; {pressure.told()}" if pressure.disk_low else ""
    return _plain_error(503, f"the store does not answer ({error.code}); try again{why}")

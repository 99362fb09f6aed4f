"""Workers and clients of Colonies servers: what a user's program imports.

    from colonyd import Worker

    worker = Worker()

    @worker.function
    def upper(text: str) -> str:
        return text.upper()

    worker.run()

Names are loaded when they are used: the commands of `colony` import parts of this package, and
start in less time without the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colonyd.client.blocking import BlockingClient as BlockingClient
    from colonyd.client.client import Client as Client
    from colonyd.client.client import Job as Job
    from colonyd.client.client import NotEnded as NotEnded
    from colonyd.client.client import ProcessFailed as ProcessFailed
    from colonyd.client.client import WorkflowFailed as WorkflowFailed
    from colonyd.client.client import WorkflowRun as WorkflowRun
    from colonyd.client.values import Conditions as Conditions
    from colonyd.client.values import Process as Process
    from colonyd.client.values import Spec as Spec
    from colonyd.client.values import State as State
    from colonyd.client.workflow import Task as Task
    from colonyd.client.workflow import Workflow as Workflow
    from colonyd.client.workflow import task as task
    from colonyd.errors import ColonyError as ColonyError
    from colonyd.errors import RpcError as RpcError
    from colonyd.keys import PrivateKey as PrivateKey
    from colonyd.rpc import Unreachable as Unreachable
    from colonyd.settings import Settings as Settings
    from colonyd.worker.context import BlockingContext as BlockingContext
    from colonyd.worker.context import Context as Context
    from colonyd.worker.context import Withdrawn as Withdrawn
    from colonyd.worker.functions import Failed as Failed
    from colonyd.worker.worker import Worker as Worker

_PLACES = {
    "BlockingClient": "client.blocking",
    "Client": "client.client",
    "Job": "client.client",
    "NotEnded": "client.client",
    "ProcessFailed": "client.client",
    "WorkflowFailed": "client.client",
    "WorkflowRun": "client.client",
    "Conditions": "client.values",
    "Process": "client.values",
    "Spec": "client.values",
    "State": "client.values",
    "Task": "client.workflow",
    "Workflow": "client.workflow",
    "task": "client.workflow",
    "ColonyError": "errors",
    "RpcError": "errors",
    "PrivateKey": "keys",
    "Unreachable": "rpc",
    "Settings": "settings",
    "BlockingContext": "worker.context",
    "Context": "worker.context",
    "Withdrawn": "worker.context",
    "Failed": "worker.functions",
    "Worker": "worker.worker",
}
__all__ = [
    "BlockingClient",
    "BlockingContext",
    "Client",
    "ColonyError",
    "Conditions",
    "Context",
    "Failed",
    "Job",
    "NotEnded",
    "PrivateKey",
    "Process",
    "ProcessFailed",
    "RpcError",
    "Settings",
    "Spec",
    "State",
    "Task",
    "Unreachable",
    "Withdrawn",
    "Worker",
    "Workflow",
    "WorkflowFailed",
    "WorkflowRun",
    "task",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'colonyd' has no attribute {name!r}")
    return getattr(import_module(f"colonyd.{_PLACES[name]}"), name)

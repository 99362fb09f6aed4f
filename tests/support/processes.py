"""Processes as they are before anybody submits them."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from node.archive.eviction import Eviction
from node.archive.retention import Retention
from node.host.config import HistoryConfig
from node.model.codec import pack
from node.model.ids import new_id
from node.model.types import Conditions, Executor, ExecutorState, FunctionSpec, Process
from node.processes.assignment import Assigner
from node.processes.service import Processes
from node.processes.spec import build_process
from node.runtime.node import Node
from node.store import keys
from node.workflows.advance import Resolution
from node.workflows.children import Children
from node.workflows.service import Workflows


def make(*, origin: str = "", location: str = "", executortype: str = "cli") -> Process:
    """One of the colony `dev`, perhaps from another colony or for one place."""
    conditions = Conditions("dev", executortype=executortype, locationname=location)
    process = build_process(
        FunctionSpec(funcname="f", conditions=conditions),
        processid=new_id(),
        initiatorid="b" * 64,
        initiatorname="ann",
        colonyname="dev",
        now=time.time_ns(),
    )
    process.origin = origin
    return process


def retention(node: Node, home: Path, config: HistoryConfig) -> Retention:
    """What moves closed things of a node to the history files below `home`."""
    return Retention(
        node.client,
        node.processes,
        node.workflows,
        node.directory,
        node.leader,
        node.history_reader,
        home,
        config,
        Eviction(node.client, node.clock.now),
    )


def assigning(processes: Processes) -> Assigner:
    """What hands out processes to any executor, as there are no members."""
    assigner = Assigner(processes, lambda executor: executor)
    processes.observe(assigner)
    return assigner


def workflows_of(processes: Processes) -> Workflows:
    """The workflows of processes that nobody else follows."""
    resolution = Resolution(processes.client, processes)
    processes.observe(resolution)
    children = Children(processes.client, processes, resolution)
    return Workflows(processes.client, processes, resolution, children)


def enlist(node: Node, executor: Executor) -> None:
    """Let a node know of an approved executor that is not in the store."""
    approved = msgspec.structs.replace(executor, state=ExecutorState.APPROVED)
    key = keys.executor(executor.colonyname, executor.executorname)
    node.directory.apply(key, pack(approved), max(1, node.directory.told))

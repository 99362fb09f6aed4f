"""One node: the indexes and shells that the calls of the table work on.

It holds no tasks of its own; `daemon.main` runs what keeps it fed and serves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from node.archive.lookup import Past
from node.blueprints.definitions import Definitions
from node.blueprints.reconcile import Reconciliation
from node.blueprints.service import Blueprints
from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from node.files.catalog import Files
from node.host.config import Config
from node.host.log import get_logger
from node.members.locations import Locations
from node.members.rekey import Identities
from node.members.service import Members
from node.model.errors import RpcError
from node.model.types import Function, Process
from node.processes.channels import Channels
from node.processes.remote_changes import Elsewhere
from node.processes.service import Processes
from node.processes.subscriptions import Subscriptions
from node.runtime.reload import Reload
from node.store.directory import Directory
from node.timers.crons import Crons
from node.timers.election import Leader
from node.timers.generators import Generators
from node.timers.retime import Retiming
from node.workflows.service import PATIENCE, Workflows

log = get_logger("node")


@dataclass
class Node:
    """`home` is the name of the home colony; `now` gives Unix nanoseconds."""

    client: EtcdClient
    home: str
    now: Callable[[], int]
    directory: Directory
    members: Members
    processes: Processes
    workflows: Workflows
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
    past: Past = field(default_factory=Past)
    elsewhere: Elsewhere = field(init=False)
    channels: Channels = field(init=False)
    locations: Locations = field(init=False)
    files: Files = field(init=False)
    identities: Identities = field(init=False)
    leader: Leader = field(init=False)
    crons: Crons = field(init=False)
    generators: Generators = field(init=False)
    definitions: Definitions = field(init=False)
    blueprints: Blueprints = field(init=False)
    retiming: Retiming = field(init=False)
    rpc_host: str = ""
    rpc_port: int = 0
    peer_addresses: list[str] = field(default_factory=list)
    etcd_endpoint: str = ""
    reload: Reload = field(default_factory=lambda: Reload(Config()))
    extra_status: Callable[[], dict[str, Any]] = dict
    started: int = 0
    begun: int = 0  # ns of the clock that is not set
    draining: trio.Event = field(default_factory=trio.Event)
    _last_tick: int = 0

    @classmethod
    def build(
        cls,
        client: EtcdClient,
        home: str,
        now: Callable[[], int],
        steady: Callable[[], int] | None = None,
    ) -> Node:
        """Put the parts together. Without `steady` (ns, never set) no step of `now` is noticed."""
        directory = Directory()
        members = Members(client, directory, now)
        processes = Processes(client, now, steady)
        workflows = Workflows(client, processes, now)
        node = cls(
            client,
            home,
            now,
            directory,
            members,
            processes,
            workflows,
            started=now(),
        )
        node.begun = processes.clock.steady()
        members.quotas = quotas = processes.quotas
        node.elsewhere = Elsewhere(processes, node.subscriptions)
        node.processes.changed = node.elsewhere.changed
        node.channels = Channels(client, directory, processes, now)
        processes.moved = node.channels.ring
        node.locations = Locations(client, quotas)
        node.leader = leader = Leader(client)
        node.crons = Crons(client, directory, workflows, leader, now)
        node.generators = Generators(client, directory, workflows, leader, now)
        node.retiming = Retiming(
            client, processes.clock, processes, node.crons, node.generators, leader
        )
        node.definitions = Definitions(client, now, quotas)
        follow = Reconciliation(client, processes, node.crons, now)
        node.blueprints = Blueprints(client, processes, follow, node.locations, now)
        node.files = Files(client, now, quotas=quotas)
        node.retiming.also.append(node.files.clock_set)
        node.identities = Identities(client, directory, processes, home)
        processes.handout.present = node.identities.present
        return node

    def tick(self) -> int:
        """A time in Unix ns that is larger than every one before: no two log lines share a key."""
        self._last_tick = max(self._last_tick + 1, self.now())
        return self._last_tick

    def drain(self) -> None:
        """Stop handing out work: every waiting poll is answered now."""
        self.draining.set()
        self.processes.handout.stop()

    async def settle(self, process: Process) -> None:
        """Return when what follows in its workflow from a process's end has happened."""
        if not process.processgraphid:
            return
        try:
            await self.workflows.resolution.settle(
                process.colonyname, process.processgraphid, PATIENCE
            )
        except (EtcdError, RpcError) as error:
            # The end itself is in the store; what follows from it comes with the store's return.
            log.warning("workflow waits", graph=process.processgraphid, error=error)

    def count_function(self, process: Process, executorid: str) -> None:
        """Note in memory what a successful call says about the function that ran it."""
        executor = self.directory.executor_of(process.colonyname, executorid)
        if executor is None:
            return
        wait = max(0, process.starttime - process.submissiontime) / 1e9
        run = max(0, process.endtime - process.starttime) / 1e9
        roster = self.directory.roster(process.colonyname)
        for functionid in roster.offered.get((executor.executorname, process.spec.funcname), ()):
            roster.functions[functionid] = _counted(roster.functions[functionid], wait, run)


def _counted(known: Function, wait: float, run: float) -> Function:
    """Statistics after one more call, in seconds."""
    n = known.counter
    return msgspec.structs.replace(
        known,
        counter=n + 1,
        minwaittime=min(known.minwaittime, wait) if n else wait,
        maxwaittime=max(known.maxwaittime, wait),
        avgwaittime=(known.avgwaittime * n + wait) / (n + 1),
        minexectime=min(known.minexectime, run) if n else run,
        maxexectime=max(known.maxexectime, run),
        avgexectime=(known.avgexectime * n + run) / (n + 1),
    )

"""The composed program: a node with federation plugged in, as `colonyd` and `colony up` run it.

The parts are in `node` and `federation`; exit codes are decided here.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from colonyd.errors import RpcError
from colonyd.keys import IdentityError
from colonyd.places import default_home
from federation.forward.machine import OPEN_STATES
from federation.peers.policy import of_config
from federation.reach.seeker import mailbox_status
from federation.service.main import Federation
from federation.service.rpc import calls
from federation.wire.clock import SigningClock
from node.daemon.main import Joined, StartOptions, load, run
from node.daemon.metrics import Family
from node.etcd.errors import EtcdError, StoreRefused
from node.handlers.status import clock_calls
from node.host.config import Config, ConfigError
from node.host.home import HomeError, HomeInfo
from node.host.log import configure_logging, get_logger
from node.http.listeners import ListenError
from node.model.codec import SchemaVersionError
from node.rpc.dispatch import Table
from node.runtime.node import Node
from node.version import VERSION

EXIT_STORE = 69
EXIT_AGAIN = 75  # an address or port that may be had later
EXIT_CONFIG = 78

log = get_logger("colonyd")


@asynccontextmanager
async def federated(
    node: Node, table: Table, info: HomeInfo, config: Config
) -> AsyncIterator[Joined | None]:
    """Plug federation into a node that is about to open its ports."""
    if not config.federation.enabled:
        for call in clock_calls.of(node):
            table.add(call)
        yield None
        return
    federation = Federation(
        info.name,
        info.colony,
        node.client,
        node.processes,
        node.assigner,
        config,
        Path(config.node.home),
        SigningClock(node.clock.now, trio.current_time),
        node.members,
        files=node.files,
    )
    node.processes.attach(federation.hooks)
    for call in calls(federation):
        table.add(call)
    async with trio.open_nursery() as nursery:
        await nursery.start(federation.run)
        yield Joined(
            federation.addresses,
            partial(_federation_status, federation),
            {"federation.policy": partial(_default_policy, federation)},
            partial(_federation_families, federation),
        )
        # Federation bounds its own end: it sends what is still possible.
        federation.drain.set()


def _default_policy(federation: Federation, config: Config) -> None:
    """Set what trusted colonies without a policy of their own may do here from now on."""
    federation.peers.set_default(of_config(config.federation.policy))


def _federation_status(federation: Federation) -> dict[str, Any]:
    states = Counter(known.peer.state for known in federation.peers.known.values())
    return {
        "federationport": federation.port,
        "dht": msgspec.structs.asdict(wide.status()) if (wide := federation.finder.wide) else None,
        "routers": msgspec.to_builtins(wide.routers()) if wide else None,
        "reach": msgspec.structs.asdict(federation.dial_back.status()) if wide else None,
        "mailboxes": mailbox_status(federation.peers, federation.mailbox, federation.mailbox_ways),
        "peers": {state: states[state] for state in ("trusted", "pending", "seen", "blocked")},
        "messages": dict(federation.server.counters),
        "progress": dict(federation.outcome_poller.update_consumer.counters),
        "channels": dict(federation.channel_sender.counters),
        "files": dict(federation.file_transfer.counters),
    }


def _federation_families(federation: Federation) -> list[Family]:
    """Return the open forwards by state, and how long each hop takes, as metrics."""
    latencies = federation.outbox.latencies
    states = Family("colonyd_forwards", "gauge", "Forwards that have no end yet, by state.")
    for state in OPEN_STATES:
        states.add(federation.outbox.entries.count_in(state), state=state)
    families = [states]
    for name, way, histograms in (
        ("receipt", "From the submission of a forward to the peer's receipt.", latencies.receipts),
        ("outcome", "From the peer's receipt to its outcome.", latencies.outcomes),
    ):
        family = Family(f"colonyd_forward_{name}_seconds", "histogram", way)
        for peer, counted in histograms.by.items():
            family.add_histogram(counted, peer=peer, name=federation.peers.name(peer))
        families.append(family)
    return families


def run_daemon(
    home: Path, overrides: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> int:
    """Run the daemon until a signal; return the exit code of the process."""
    settings = StartOptions(home, overrides, os.environ if environ is None else environ)
    try:
        config, _ = load(settings)
    except (ConfigError, HomeError, IdentityError) as error:
        print(f"colonyd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    configure_logging(config.log.level)
    _raise_file_limit()
    try:
        trio.run(run, settings, federated)
    except BaseExceptionGroup as group:
        leaves = _leaves(group)
        known = [leaf for leaf in leaves if isinstance(leaf, _KNOWN)]
        if len(known) < len(leaves):
            raise
        return _explain(known)
    except _KNOWN as error:
        return _explain([error])
    return 0


def _raise_file_limit() -> None:
    """Raise the limit of open files to what is allowed: each waiting worker is one, and shells
    allow 1,024.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# Errors of the store: it is not there, or this version may not use it.
_OF_STORE = (StoreRefused, SchemaVersionError, EtcdError)
_KNOWN = (ConfigError, ListenError, HomeError, RpcError, OSError, *_OF_STORE)


def _explain(errors: Sequence[BaseException]) -> int:
    """Print why the daemon can't run, for people; return the exit code."""
    for error in errors:
        print(f"colonyd: {error}", file=sys.stderr)
    unbound = [error for error in errors if isinstance(error, ListenError)]
    if any(isinstance(error, ConfigError) for error in errors) or any(e.lasting for e in unbound):
        return EXIT_CONFIG
    if unbound:
        return EXIT_AGAIN
    refused = any(isinstance(error, _OF_STORE) for error in errors)
    return EXIT_STORE if refused else 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the program's arguments."""
    parser = argparse.ArgumentParser(
        prog="colonyd",
        description="Run a self-sovereign colony on this machine.",
        epilog="example: colonyd --home /var/lib/colonyd --name workshop; exit codes: 0 clean,"
        " 1 failure, 2 usage, 69 store unavailable, 75 address or port not to be had now,"
        " 78 configuration",
    )
    parser.add_argument("--home", type=Path, help="home directory (default: $COLONYD_HOME, ...)")
    parser.add_argument("--name", help="name of the home colony, when it is made")
    parser.add_argument("--host", help='address for RPC (default "*": all, IPv4 and IPv6)')
    parser.add_argument("--port", type=int, help="port for RPC (default 50080; 0: a free one)")
    parser.add_argument("--federation-port", type=int, help="port for peers (default 50081)")
    parser.add_argument("--version", action="version", version=f"colonyd {VERSION}")
    return parser


def main() -> None:
    """Run the daemon as the program `colonyd`."""
    given = arguments().parse_args()
    overrides = {
        "node.name": given.name,
        "rpc.host": given.host,
        "rpc.port": given.port,
        "federation.port": given.federation_port,
    }
    home = given.home or default_home(os.environ, to_write=True)
    sys.exit(run_daemon(home, overrides))


if __name__ == "__main__":
    main()

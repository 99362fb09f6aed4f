"""A home of the last release that stored schema 1 is opened, read and changed.

`schema1/home.tar.gz` is a backup that it made of a home with something of each kind, and
`schema1/told.json` what its daemon told of that, with the key of the worker there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio

from colonyd.keys import PrivateKey
from node.archive.backup import _open_store, restore
from node.host.config import load_config
from node.model.codec import SCHEMA, is_older
from node.store import keys
from tests.support.daemons import Daemon

HERE = Path(__file__).parent / "schema1"
TOLD = json.loads((HERE / "told.json").read_text())
LATER = {"nextrun", "lastheardfromtime"}  # what goes by the time of the test

pytestmark = pytest.mark.slow


def exact(value: Any) -> str:
    """A form in which 1 and 1.0 differ, whatever the order of keys."""
    return json.dumps(lasting(value), sort_keys=True)


def lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: lasting(each) for key, each in value.items() if key not in LATER}
    return [lasting(each) for each in value] if isinstance(value, list) else value


async def stored(home: Path) -> dict[str, bytes]:
    """All keys and values of a home that no daemon uses."""
    async with _open_store(home, load_config(home, {}, environ={})) as client:
        page = await client.range(keys.ROOT, limit=1000)
        return {item.key: item.value for item in page.items}


async def test_a_home_of_schema_1_is_read_and_changed(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    archive = tmp_path / "home.tar"
    archive.write_bytes(gzip.decompress((HERE / "home.tar.gz").read_bytes()))
    environ = {"COLONYD_FEDERATION__DISCOVERY": "false", "COLONYD_HISTORY__KEEP": "forever"}
    daemon = make_daemon("dev", **environ)
    await restore(archive, daemon.home, {})
    before = await stored(daemon.home)
    assert all(is_older(before[key]) for key in before if key.startswith(keys.processes("dev")))
    assert is_older(before[keys.colony("dev")])
    await trio.to_thread.run_sync(daemon.start)
    worker, user = PrivateKey.from_hex(TOLD["worker"]), daemon.key("user")
    async with daemon.client() as client:
        # Of two for a peer that is away, it had taken the first.
        ids = [key.rpartition("/")[2] for key in before if "/dev/outbox/" in key]
        forwards = [await client.call("getforwardmsg", {"processid": each}, user) for each in ids]
        assert sorted(each["state"] for each in forwards) == ["accepted", "queued"]
        (away,) = (each["processid"] for each in forwards if each["state"] == "queued")
        for call, told in TOLD.items():
            if call == "worker":
                continue
            kind, _, state = call.partition(" ")
            filters: dict[str, dict[str, Any]] = {
                "getprocessesmsg": {"count": 100, "state": int(state or 0)},
                "getprocessgraphsmsg": {"count": 100, "state": 0},
                "getfunctionsmsg": {"executorname": "w"},
                "getcronsmsg": {"count": 10},
                "getgeneratorsmsg": {"count": 10},
                "getfilesmsg": {"label": "/docs"},
            }
            ask = {"colonyname": "dev", "namespace": "dev", **filters.get(kind, {})}
            found = await client.call(kind, ask, user)
            if call == "getprocessesmsg 0":
                # Today's listing has what waits for a peer to take it, too, behind the others.
                told = [*told, await client.call("getprocessmsg", {"processid": away}, user)]
            assert exact(found) == exact(told), call
        (peer,) = await client.call("getpeersmsg", {}, daemon.key("colony"))
        assert (peer["name"], peer["state"]) == ("bee", "trusted")
        # Change: the one with free data is handed out, and closed with the same.
        poll = {"colonyname": "dev", "timeout": 5}
        process = await client.call("assignprocessmsg", poll, worker)
        assert process["spec"]["label"] == "l"
        args = process["spec"]["args"]
        ended = {"processid": process["processid"], "out": args}
        await client.call("closesuccessfulmsg", ended, worker)
        process = await client.call("getprocessmsg", {"processid": process["processid"]}, user)
        assert exact(process["out"]) == exact(args)
        spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "cli"}}
        fresh = await client.call("submitfuncspecmsg", {"spec": spec}, user)
    assert await trio.to_thread.run_sync(daemon.stop) == 0
    after = await stored(daemon.home)
    assert not is_older(after[keys.process("dev", fresh["processid"])])
    # Integers over 64 bits are left to CBOR.
    assert is_older(after[keys.process("dev", process["processid"])])
    untouched = [key for key in before if key.startswith(keys.processes("dev"))]
    assert [after[key] == before[key] for key in untouched].count(False) == 1
    # Each daemon reads the colony at its start: one of schema 1 finds this number there.
    assert cbor2.loads(after[keys.colony("dev")])[0] == SCHEMA


async def test_a_store_of_a_later_colonyd_is_refused_with_a_sentence(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false")
    await trio.to_thread.run_sync(daemon.start)
    assert await trio.to_thread.run_sync(daemon.stop) == 0
    async with _open_store(daemon.home, load_config(daemon.home, {}, environ={})) as client:
        await client.put(keys.colony("dev"), cbor2.dumps([SCHEMA + 1, b"later"]))
    with pytest.raises(AssertionError, match="the daemon ended"):
        await trio.to_thread.run_sync(daemon.start)
    told = "\n".join(daemon.events)
    assert f"colonyd: the store holds schema {SCHEMA + 1}" in told
    assert "Traceback" not in told

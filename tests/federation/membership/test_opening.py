"""Links of cards between real daemons, and work for a colony never seen: what its owner is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from cli.main import main
from colonyd.errors import RpcError
from colonyd.keys import PrivateKey
from federation.wire.card import Card, open_card, sign_card
from federation.wire.cardlink import SCHEME, read_link, write_link
from federation.wire.compact import write_code
from tests.support.daemons import Daemon, free_port, until

pytestmark = pytest.mark.slow
Make = Callable[..., Daemon]
ALONE = {"COLONYD_FEDERATION__DISCOVERY": "false", "COLONYD_FEDERATION__HOST": "127.0.0.1"}


def types(daemon: Daemon, *args: str, code: int = 0) -> Result:
    """Run `colony` as the daemon's owner types it."""
    command = ["--home", str(daemon.home), "--server", f"127.0.0.1:{daemon.port}", *args]
    result = CliRunner().invoke(main, command, env={}, catch_exceptions=False)
    assert result.exit_code == code, f"{args}: {result.output}"
    return result


def refused(daemon: Daemon, *args: str, code: int) -> dict[str, Any]:
    """Run `colony --json` and return its error."""
    told: dict[str, Any] = json.loads(types(daemon, *args, "--json", code=code).stderr)
    assert told["exit"] == code
    return told


def of(key: PrivateKey, **fields: Any) -> bytes:
    """A signed card of a colony that is nowhere."""
    now = int(time.time())
    card = Card(key.id, key.public_key, "cat", now, "f" * 64, ["192.0.2.9:1"], [2], now + 3600)
    card = msgspec.structs.replace(card, **fields)
    return sign_card(key, card, issued=min(now, card.expires - 60))


def test_two_owners_exchange_links_and_trust(make_daemon: Make, tmp_path: Path) -> None:
    ant, bee = (make_daemon(name, **ALONE).start() for name in ("ant", "bee"))
    beeid = bee.key("colony").id

    # Never seen, and nothing may look for it: the owner is told how that is turned on.
    run = ("run", "--func", "upper", "x", "--colony", beeid)
    told = refused(ant, *run, code=3)
    assert "look-up by id is off" in told["error"]
    assert "global = true" in told["next"]

    link = types(bee, "card", "--link").stdout.strip()
    shown = json.loads(types(bee, "card", "--json").stdout)
    assert (shown["link"], shown["id"], shown["name"]) == (link, beeid, "bee")
    assert beeid in types(bee, "card").stdout
    drawn = types(bee, "card", "--qr").stdout.rstrip("\n").split("\n")
    assert len(drawn) <= 34
    assert max(map(len, drawn)) <= 68

    opened = types(ant, "card", "--open", link)
    for word in (beeid, "pending", "no peer of this colony", f"127.0.0.1:{bee.peer_port}"):
        assert word in opened.stdout
    assert f"colony peer trust {beeid[:12]}" in opened.stderr
    assert json.loads(types(ant, "peer", "show", beeid, "--json").stdout)["state"] == "pending"

    # Known now, and refused with the step that is missing; a node of a workflow as well.
    told = refused(ant, *run, code=3)
    for word in (f"has the id {beeid}", "calls itself 'bee'", f"127.0.0.1:{bee.peer_port}"):
        assert word in told["error"]
    assert "no peer of this colony knows it: trust is missing" in told["error"]
    assert "colony peer trust" in told["next"]
    file = tmp_path / "workflow.json"
    conditions = {"executortype": "cli", "colonyname": beeid}
    file.write_text(json.dumps([{"nodename": "n", "funcname": "f", "conditions": conditions}]))
    told = refused(ant, "workflow", "run", str(file), code=1)
    assert "neither here nor a peer" in told["error"]
    assert "calls itself 'bee'" in told["error"]

    # The owner's name for it works before trust, and trust by that name.
    types(ant, "peer", "name", beeid[:12], "lab-paris")
    assert "(here: lab-paris)" in refused(ant, *run[:-1], "lab-paris", code=3)["error"]
    assert "lab-paris (calls itself bee)" in types(ant, "peers", "ls").stdout
    types(ant, "peer", "trust", "lab-paris")
    types(bee, "card", "--open", types(ant, "card", "--link").stdout.strip())
    types(bee, "peer", "trust", "ant")
    assert "ant" in types(bee, "card", "ant").stdout
    types(ant, *run[:-1], "lab-paris")
    types(ant, "peer", "name", "lab-paris", "--remove")
    assert "lab-paris" not in types(ant, "peer", "ls").stdout


def test_a_link_that_is_wrong_says_how(make_daemon: Make) -> None:
    ant = make_daemon("ant", **ALONE).start()
    key = PrivateKey.generate()
    good = write_link(of(key))
    body = bytearray(of(key))
    body[-1] ^= 1  # of the signature
    forged = SCHEME + write_code(b"\x02" + bytes(body), "card")
    hello = json.loads(types(ant, "peer", "invite", "--address", "a:1", "--json").stdout)["token"]
    now = int(time.time())
    for link, what, then in (
        (good[:-9], "incomplete or mistyped", "copy it again"),
        (good[:50] + ("A" if good[50] != "A" else "B") + good[51:], "incomplete or mistyped", ""),
        (forged, "somebody changed it", "another channel"),
        (write_link(of(key, expires=now - 5)), "out of date", "colony card --link"),
        (hello, "it is an invitation", "colony peer join"),
        ("hello", "incomplete or mistyped", ""),
        ("häh?", "not the link of a card", "colony card --link"),
        (types(ant, "card", "--link").stdout, "this colony's own card", "the other colony"),
    ):
        told = refused(ant, "card", "--open", link, code=1)
        assert what in told["error"], told
        assert then in told["error"], told
        assert "colony card --link" in told["next"]
    assert json.loads(types(ant, "peer", "ls", "--json").stdout) == []
    types(ant, "card", "--open", good)
    types(ant, "card", "--open", write_link(of(key, sequence=now - 50)))  # older: changes nothing
    assert open_card(read_link(good), now).sequence >= now - 5
    assert json.loads(types(ant, "card", key.id, "--json").stdout)["sequence"] >= now - 5
    types(ant, "peer", "block", key.id)
    assert "is blocked here" in refused(ant, "card", "--open", good, code=1)["error"]
    types(ant, "card", "--open", good, "--qr", code=2)
    types(ant, "card", "nobody", code=3)


async def test_a_colony_never_seen_is_found_by_a_name_of_ours(
    make_daemon: Make, nursery: trio.Nursery
) -> None:
    """Its id and a petname are all that ant has; the DHT has the address."""
    pytest.importorskip("libtorrent", reason="the extra colonyd[global] is not installed")
    from tests.support.sides import Side
    from tests.support.wide import stays_open, wide

    port = free_port()
    await nursery.start(stays_open, port)
    ant = make_daemon("ant", **wide("127.0.0.2", port))
    bee = make_daemon("bee", **wide("127.0.0.3", port))
    for daemon in (ant, bee):
        await trio.to_thread.run_sync(daemon.start)
    async with ant.client() as client:
        side = Side(ant, client)
        beeid = bee.key("colony").id
        await side.call("namepeermsg", side.owner, peer=beeid, name="lab-paris")
        node = {
            "nodename": "n",
            "funcname": "f",
            "conditions": {"colonyname": "lab-paris", "executortype": "t"},
        }

        async def found() -> str:
            with pytest.raises(RpcError) as caught:
                await side.call(
                    "submitworkflowspecmsg", spec={"colonyname": "ant", "functionspecs": [node]}
                )
            return caught.value.message if "was found at" in caught.value.message else ""

        told: str = await until(90, found)
        for word in (f"127.0.0.3:{bee.peer_port}", beeid, "(here: lab-paris)", "trust is missing"):
            assert word in told
        with pytest.raises(RpcError, match=r"was found at .* trust is missing"):
            await side.submit("lab-paris")
        peers = await side.call("getpeersmsg", side.owner)
        assert [peer["state"] for peer in peers] == ["pending"], "never trusted by itself"
    nursery.cancel_scope.cancel()

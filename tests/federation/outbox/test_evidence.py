"""What history keeps of a process that a peer ran proves its end to whoever reads the file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cbor2
import trio
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cli.main import main
from federation.outbox.evidence import asked, check
from node.archive.chain import files, records
from node.host.config import HistoryConfig, Keep
from node.model.types import State
from tests.federation.membership.support import follows
from tests.support.colonies import Colony, world
from tests.support.daemons import until
from tests.support.processes import retention as retention_of

Record = dict[str, Any]
DIGEST = base64.b64encode(bytes(32)).decode()  # of another submission


@asynccontextmanager
async def three(path: Path) -> AsyncIterator[tuple[Colony, Colony, Colony]]:
    """ant sends to bee, which runs it or passes it on to cat."""
    async with world(path, ["ant", "bee", "cat"]) as colonies:
        ant, bee, cat = colonies.values()
        # ant knows cat by bee's introduction alone, so bee knows cat first.
        await cat.trust(bee, max_hops=2)
        await bee.trust(cat)
        await bee.trust(ant, forward=True, max_hops=2)
        await ant.trust(bee)

        async def introduced() -> bool:
            return ant.fed.peers.name_if_known(cat.key.id) == "cat"

        with trio.fail_after(60):
            await until(50, introduced)
            yield ant, bee, cat


async def history(colony: Colony, path: Path) -> dict[str, Record]:
    """What ended goes to the history; the records as whoever has the files reads them."""
    node = colony.node
    assert node is not None
    retention = retention_of(node, path, HistoryConfig(keep=Keep(0)))
    for state in (State.SUCCESSFUL, State.CANCELLED):
        await retention._processes(colony.name, state, node.clock.now())
    found = records(path / "history" / colony.name)
    return {record["id"]: record for record in found}


async def at_cat(cat: Colony, path: Path) -> list[Record]:
    """The records of what was asked for at cat, once nobody is owed their outcomes any more."""
    found: list[Record] = []

    async def moved() -> bool:
        found.extend((await history(cat, path)).values())
        return len(found) >= 2

    await until(50, moved)
    return found


async def run(ant: Colony, at: Colony, target: str, output: str) -> str:
    processid = await ant.submit(target)
    await at.work(output)
    assert (await ant.closed(processid)).state == State.SUCCESSFUL
    return processid


def by_other_libraries(record: Record) -> dict[str, Any]:
    """The outcome of a record, its signature checked with nothing but the record."""
    told = record["forward"]
    public = base64.b64decode(told["publickey"])
    tag = cbor2.loads(base64.b64decode(told["outcome"]))
    protected, _, payload, signature = tag.value
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public)
    r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
    signed = cbor2.dumps(["Signature1", protected, b"colonyd/1/outcome", payload])
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    claims = cbor2.loads(protected)[15]
    assert claims[1] == hashlib.sha3_256(public.hex().encode()).hexdigest()
    assert claims[3] in told["colony"]
    found: dict[str, Any] = cbor2.loads(payload)
    return found


async def test_the_file_alone_proves_what_a_peer_signed(tmp_path: Path) -> None:
    async with three(tmp_path) as (ant, bee, cat):
        former = bee.key
        direct = await run(ant, bee, "bee", "at bee")
        relayed = await run(ant, cat, "bee/cat", "at cat")
        large = await run(ant, bee, "bee", "x" * 900_000)
        assert ant.node is not None
        bee.hidden = True
        unsent = await ant.submit("bee")
        await ant.node.processes.cancel("ant", unsent)
        bee.hidden = False
        # The peer goes on under another key: what it signed before still is what it signed.
        between = await ant.submit("bee/cat")
        await cat.until(lambda: bool(cat.waiting()))
        await bee.rotate()
        await follows(ant, bee)
        await follows(cat, bee)
        await cat.work("sent by another bee")
        assert (await ant.closed(between)).state == State.SUCCESSFUL
        after = await run(ant, bee, "bee", "by another key")
        found = await history(ant, tmp_path)
        asked_for = await at_cat(cat, tmp_path)

    for processid, issuer in ((direct, former), (after, bee.key)):
        record = found[processid]
        assert record["forward"]["peer"] == former.id
        outcome = by_other_libraries(record)
        assert (outcome["pid"], outcome["state"]) == (processid, 2)
        assert json.loads(outcome["out"]) == record["process"]["output"]
        verdict = check(record)
        assert verdict is not None
        assert (verdict.issuer, verdict.name, verdict.ran, verdict.problem) == (
            issuer.id,
            "bee",
            "",
            "",
        )
    for processid in (relayed, between):
        verdict = check(found[processid])
        assert verdict is not None
        assert (verdict.name, verdict.ran, verdict.problem) == ("bee", "cat", "")
    # A record of an earlier release does not tell what was asked, and says so.
    verdict = check(changed(found[direct], "forward", asked="", askedby=""))
    assert verdict is not None
    assert (verdict.problem, verdict.note[:18]) == ("", "it names ids only,")
    assert verdict.name == "bee"
    verdict = check(found[relayed])
    assert verdict is not None
    assert verdict.note == "no trusted colony was called cat: it may be any"
    assert [hop["name"] for hop in found[relayed]["forward"]["chain"]] == ["bee", "cat"]
    verdict = check(found[large])
    assert verdict is not None
    assert verdict.problem == ""
    assert found[unsent]["forward"]["peer"] == former.id
    assert check(found[unsent]) is None

    for record in asked_for:
        verdict = asked(record)
        assert verdict is not None
        assert (verdict.issuer, verdict.name, verdict.ran, verdict.problem) == (
            ant.key.id,
            "",
            "bee",
            "",
        )
        other = asked(record | {"id": "0" * 64})
        assert other is not None
        assert other.problem == "it asked for another process"
        key = found[after]["forward"]["publickey"]
        other = asked(changed(record, "forward", requestkey=key))
        assert other is not None
        assert other.problem == "the signature does not hold"

    lies(found[direct], found[after], found[relayed])
    shown(tmp_path, found[relayed])
    command = ["--home", str(tmp_path), "history", "show", "--colony", "cat", asked_for[0]["id"]]
    text = CliRunner().invoke(main, command, catch_exceptions=False).output
    assert f"signed by {ant.key.id[:12]}, valid\n" in text
    assert re.search(r"^came over +bee$", text, re.M)


def changed(record: Record, where: str, **fields: Any) -> Record:
    return record | {where: record[where] | fields}


def lies(direct: Record, other: Record, relayed: Record) -> None:
    """Whoever can write the file can't make a peer have said something else."""
    sealed = bytearray(base64.b64decode(direct["forward"]["outcome"]))
    sealed[-1] ^= 1
    flipped = base64.b64encode(sealed).decode()
    stranger = other["forward"]["publickey"]
    for record, says in (
        (changed(direct, "process", output=["Y"]), "the output in the record is not what was sig"),
        (changed(direct, "process", state=3), "the process ended otherwise here"),
        (changed(direct, "process", errors=["no"]), "the process ended otherwise here"),
        (changed(direct, "process", attempt=2), "it is about attempt 1, and not 2"),
        (direct | {"forward": other["forward"]}, "it is about another process"),
        (changed(direct, "forward", outcome=flipped), "the signature does not hold"),
        (changed(direct, "forward", publickey=stranger), "its key is missing"),
        (changed(direct, "forward", colony=["0" * 64]), "it was meant for another colony"),
        (changed(direct, "forward", asked=DIGEST), "it answers another submission"),
        (changed(direct, "forward", askedby="0" * 64), "it answers another submission"),
        (changed(relayed, "forward", asked=DIGEST), "it answers another submission"),
        (changed(relayed, "forward", meant={"cat": ["0" * 64]}), "not the colony trusted as 'cat'"),
        (changed(direct, "forward", outcome="AQI="), ""),
        (changed(direct, "forward", chain="x"), "the record can't be read"),
        (changed(relayed, "process", output=["Y"]), "the output in the record is not what was si"),
        (changed(relayed, "forward", beyond=["0" * 64]), "had it, and not 000000000000"),
    ):
        verdict = check(record)
        assert verdict is not None
        assert verdict.problem
        assert says in verdict.problem


def shown(path: Path, record: Record) -> None:
    """`colony history show` says it, and what is wrong with a file that somebody changed."""
    command = ["--home", str(path), "history", "show", "--colony", "ant", record["id"]]
    text = CliRunner().invoke(main, command, catch_exceptions=False).output
    issuer = record["forward"]["chain"][0]["issuer"]
    assert f"signed by bee {issuer[:12]}, valid\n" in text
    assert re.search(r"^ran at +cat$", text, re.M)
    (file,) = files(path / "history" / "ant")
    data = gzip.decompress(file.read_bytes())
    assert data.count(b'"at cat"') == 1
    file.write_bytes(gzip.compress(data.replace(b'"at cat"', b'"at dog"')))
    text = CliRunner().invoke(main, command, catch_exceptions=False).output
    assert f"signed by bee {issuer[:12]}, NOT VALID: the output in the record" in text

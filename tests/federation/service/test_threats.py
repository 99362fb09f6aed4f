"""What attackers can and can't do, for the lines of docs/threat-model.md that no other test shows.

Each test plays one attacker: at the gate on a real store, between colonies of one process, or
against a real daemon.
"""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from colonyd.keys import PrivateKey, sign_payload, verify_es256k
from colonyd.rpc import RpcError, decode
from federation.forward.machine import Forward
from federation.forward.path import local_id
from federation.network.candidates import AddressCandidate, CandidateQueue
from federation.outbox.resolve import resolve
from federation.peers.policy import Policy
from federation.peers.registry import TRUSTED, Peer, PeerState
from federation.transport.connection import Carrier, PeerConnection, PeerResponse
from federation.transport.errors import Reason, RemoteRefusal
from federation.wire import cbor, envelope
from federation.wire.card import Card, sign_card
from federation.wire.clock import SigningClock
from federation.wire.envelope import Kind, Rejected, inspect, seal
from federation.wire.messages import Cancel, Follow, Hello, Outcome, Outcomes, Poll, Receipt, load
from federation.wire.refusals import Proof
from federation.wire.signer import Signer
from federation.wire.succession import declare
from node.etcd.client import open_client
from node.http.server import Request
from node.model.codec import unpack
from node.model.types import State
from tests.federation.inbox.support import Lab, code, submission
from tests.federation.membership.support import follows, friends, post
from tests.node.etcd.support import start_store
from tests.support.colonies import FINGERPRINT, Colony, world
from tests.support.daemons import Daemon, until
from tests.support.parts import Led


@pytest.fixture
async def lab(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Lab]:
    store = await start_store(nursery, tmp_path / "etcd")
    async with open_client(store.target, timeout=60) as client:
        yield Lab(client)


# -- a hostile mailbox -----------------------------------------------------------------------


def by_way_of(lab: Lab, carrier: Carrier) -> PeerConnection:
    """The way from the peer of the lab to the lab, as somebody else carries it."""

    peer = Peer(lab.key.id, TRUSTED, "lab", lab.key.public_key, fingerprint="f" * 64)
    return PeerConnection(PeerState(peer), lab.signer, Led(carrier))


async def ask(lab: Lab, path: str, body: bytes, method: str = "POST") -> PeerResponse:
    response = await lab.server.handle(Request(method, path, "", {}, body, ""))
    after = dict(response.headers).get("retry-after", "")
    return PeerResponse(response.status, after, bytes(response.body))


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/hello"), ("GET", "/v2/submit")])
async def test_a_signed_refusal_from_another_door_is_worth_nothing(
    lab: Lab, method: str, path: str
) -> None:
    """A mailbox delivers a submission, and shows its sender a refusal of the very same bytes.

    The peer signs that it did not take them as a hello. Believed, the process would run twice.
    """
    await lab.befriend()
    body = lab.seal(Kind.SUBMIT, submission())

    async def lie(at: str, data: bytes, wait: float) -> PeerResponse:
        assert (await ask(lab, at, data)).status == 200
        return await ask(lab, path, data, method)

    with pytest.raises(RemoteRefusal) as caught:
        await by_way_of(lab, lie).post("/v2/submit", body, Kind.RECEIPT)
    assert len(lab.processes.queue.entries) == 1
    assert caught.value.final
    assert caught.value.proof is Proof.NONE


async def test_only_the_peer_itself_can_say_that_it_took_nothing(lab: Lab) -> None:
    """Whoever can make an answer on the way tells that there is no room: nobody believes it."""
    await lab.befriend()
    answers: list[PeerResponse] = []

    async def honest(at: str, data: bytes, wait: float) -> PeerResponse:
        answers.append(await ask(lab, at, data))
        return answers[-1]

    async def deny(lie: PeerResponse, at: str, data: bytes, wait: float) -> PeerResponse:
        assert (await ask(lab, at, data)).status == 200
        return lie

    async def refused(carrier: Carrier, pid: str) -> Proof:
        body = lab.seal(Kind.SUBMIT, msgspec.structs.replace(submission(), pid=pid))
        with pytest.raises(RemoteRefusal) as caught:
            await by_way_of(lab, carrier).post("/v2/submit", body, Kind.RECEIPT)
        assert caught.value.reason is Reason.LATER
        return caught.value.proof

    await lab.peers.set_policy(lab.other.id, Policy(max_waiting=1))
    assert (await ask(lab, "/v2/submit", lab.seal(Kind.SUBMIT, submission()))).status == 200
    assert (await refused(honest, "2" * 64)) is Proof.SIGNED, "the peer signed that"
    await lab.peers.set_policy(lab.other.id, Policy())
    for number, lie in enumerate(
        (answers[0], PeerResponse(429, "5", b'{"code":"policy_waiting"}'))
    ):
        assert (await refused(functools.partial(deny, lie), f"{number + 3}" * 64)) is Proof.NONE
    assert len(lab.processes.queue.entries) == 3


async def test_who_carries_a_message_can_not_make_up_its_receipt(lab: Lab) -> None:
    """Only what the peer itself signed is an answer of the peer."""
    await lab.befriend()
    body = lab.seal(Kind.SUBMIT, submission())

    async def forge(at: str, data: bytes, wait: float) -> PeerResponse:
        thief = Signer(PrivateKey.generate(), SigningClock())
        made_up = Receipt(submission().pid, 1, "accepted", "0" * 64)
        return PeerResponse(200, "", thief.seal(Kind.RECEIPT, lab.other.id, made_up))

    with pytest.raises(Exception, match="not valid"):
        await by_way_of(lab, forge).post("/v2/submit", body, Kind.RECEIPT)


# -- a stolen key ----------------------------------------------------------------------------


def own_card(key: PrivateKey, sequence: int, fingerprint: str) -> bytes:
    now = int(time.time())
    card = Card(
        key.id, key.public_key, "ant", sequence, fingerprint, ["ant.example:1"], [2], now + 3600
    )
    return sign_card(key, card, issued=now)


async def test_a_stolen_key_redirects_a_peer_until_the_owner_changes_the_key(
    tmp_path: Path,
) -> None:
    """The highest sequence number outdoes every card of the owner, but not its next key."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        stolen = ant.key
        hello = Hello(own_card(stolen, 2**63 - 1, "e" * 64))
        body = Signer(stolen, SigningClock()).seal(Kind.HELLO, bee.key.id, hello)
        assert await post(bee, "hello", body) == ""
        entry = bee.fed.peers.find("ant")
        assert entry.peer.fingerprint == "e" * 64
        await ant.rotate()
        await follows(bee, ant)
        with trio.fail_after(50):
            await bee.fed.prober.hello(bee.fed.connections[entry.peer.id])
        assert entry.peer.fingerprint == FINGERPRINT


# -- strangers -------------------------------------------------------------------------------


async def test_a_stranger_can_not_make_us_verify_much(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hello brings the key to verify it with; a bad one must cost little more than a good one."""
    calls = 0

    def counted(*arguments: bytes) -> bool:
        nonlocal calls
        calls += 1
        return verify_es256k(*arguments)

    monkeypatch.setattr(envelope, "verify_es256k", counted)
    body = lab.seal(Kind.HELLO, Hello(lab.card_bytes()))
    assert code(await lab.raw("hello", body[:-1] + bytes([body[-1] ^ 1]))) == "bad_signature"
    assert calls <= 4
    assert lab.peers.known == {}


# -- a malicious peer with trust -------------------------------------------------------------


def told(by: Colony, to: Colony, pid: str, *, out: bytes = b'["Y"]', attempt: int = 1) -> bytes:
    """The outcome of a process as a colony likes it to be."""
    local = local_id(to.key.id, pid, attempt)
    outcome = Outcome(pid, attempt, int(State.SUCCESSFUL), out, [], local, "", 1, 2)
    entry = to.fed.outbox.entries.get(pid)
    request = entry.forward.request if entry is not None else None
    if request is not None:
        outcome = msgspec.structs.replace(outcome, asked=request.digest, origin=request.origin)
    return by.fed.signer.seal(Kind.OUTCOME, to.key.id, outcome)


async def settle(at: Colony, by: Colony, sealed: bytes) -> None:
    await at.fed.outcome_poller.settle(at.fed.connections[by.key.id], sealed)


@pytest.mark.parametrize("depth", [65, 400, 900, 100_000])
async def test_a_peers_output_can_not_make_a_process_unreadable(tmp_path: Path, depth: int) -> None:
    """What is nested so deep that the store gives it back no more is not stored."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            await settle(ant, bee, told(bee, ant, pid, out=b"[" * depth + b"]" * depth))
            process = await ant.process(pid)
            assert (process.state, process.output) == (State.FAILED, [])


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "a state that there is not": ({"state": 7}, "payload: Expected `int` <= 4 - at `$.state`"),
    "no output at all": ({"out": None}, "payload: Expected `bytes`, got `null` - at `$.out`"),
    "an output that is no JSON": ({"out": b"[1,"}, "outcome: Input data was truncated"),
    "an output that is no array": ({"out": b"{}"}, "outcome: Expected `array`, got `object`"),
    "another process there": ({"localpid": "f" * 64}, "outcome: it names another process there"),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_a_malformed_end_is_told_once_and_kept(tmp_path: Path, what: str) -> None:
    """The peer signed it, so a repeat is no better: the process fails, and says by whom and why."""
    change, why = NONSENSE[what]
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        made: list[bytes] = []

        async def lie(issuer: str, pid: str, localpid: str) -> bytes:
            truth: Any = cbor.decode(inspect(told(bee, ant, pid), limit=10_000).payload)
            made.append(signed(bee, ant, cbor.encode({**truth, **change})))
            return made[-1]

        bee.fed.inbox.outcome_queue._outcome = lie  # type: ignore[method-assign]
        with trio.fail_after(60):
            pid = await ant.submit("bee")
            await bee.work("X")
            process = await ant.closed(pid)
            assert (process.state, process.output) == (State.FAILED, [])
            (error,) = process.errors
            assert "peer bee" in error
            assert why in error
            await until(50, lambda: acknowledged(bee), step=0.02)
            assert len(made) == 1, "and nobody asked for it again"
            if len(made[0]) < 65_536:
                proof = await ant.client.get(ant.fed.keys.proof(pid))
                assert proof is not None
                assert unpack(proof.value, Forward).outcome == made[0], "it shows who said so"


async def test_a_large_end_that_comes_late_is_kept_and_ends_nothing(tmp_path: Path) -> None:
    """Nobody waits for it, so it is not asked for again either."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            assert ant.node is not None
            bee.hidden = True  # its own word of the end may not be the first
            await ant.node.processes.cancel("ant", pid)
            await settle(ant, bee, told(bee, ant, pid, out=b'["' + b"x" * 1_900_000 + b'"]'))
            late = await ant.client.get(ant.fed.keys.late(pid))
            assert late is not None
            assert len(late.value) > 1_900_000
            assert await ant.client.get(ant.fed.keys.forward(bee.key.id, pid)) is None
            assert (await ant.process(pid)).state == State.CANCELLED


async def test_an_outcome_does_not_undo_what_the_owner_decides_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process runs here by then: the outcome is a late one, and the forward's record stays."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            bee.hidden = True
            sealed, poller = told(bee, ant, pid), ant.fed.outcome_poller
            verify = poller._told

            async def overtaken(*given: Any) -> Outcome:
                monkeypatch.setattr(poller, "_told", verify)
                await resolve(ant.fed.outbox, pid, requeue=True)
                return await verify(*given)

            monkeypatch.setattr(poller, "_told", overtaken)
            await settle(ant, bee, sealed)
            late = await ant.client.get(ant.fed.keys.late(pid))
            assert late is not None
            assert late.value == sealed
            assert await ant.client.get(ant.fed.keys.forward(bee.key.id, pid)) is None
            process = await ant.process(pid)
            assert (process.state, process.peer) == (State.WAITING, "")
            proof = await ant.client.get(ant.fed.keys.proof(pid))
            assert proof is None or not unpack(proof.value, Forward).outcome


async def acknowledged(colony: Colony) -> bool:
    return not any(colony.fed.inbox.outcome_queue.owed.values())


def signed(by: Colony, to: Colony, payload: bytes) -> bytes:
    now = int(time.time())
    return seal(by.key, Kind.OUTCOME, to.key.id, payload, cti=b"lie", issued=now, expires=now + 600)


async def test_nonsense_that_the_peer_did_not_sign_ends_nothing(tmp_path: Path) -> None:
    """Nor does what tells of no process, or of another attempt, or of what went to another."""
    async with world(tmp_path) as colonies:
        ant, bee, cat = await friends(colonies, "ant", "bee", "cat")
        with trio.fail_after(60):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            connection = ant.fed.connections[bee.key.id]
            nonsense = cbor.encode({"pid": pid, "attempt": 1, "state": 7})
            for sealed, why in (
                (signed(cat, ant, nonsense), "unknown_issuer"),
                (signed(bee, cat, nonsense), "wrong_audience"),
                (signed(bee, ant, nonsense)[:-1] + b"x", "bad_signature"),
                (signed(bee, ant, cbor.encode({"state": 2})), "malformed"),
                (signed(bee, ant, b"nonsense"), "malformed"),
            ):
                with pytest.raises(Rejected, match=why):
                    await ant.fed.outcome_poller.settle(connection, sealed)
            await settle(ant, cat, signed(cat, ant, nonsense))
            another = cbor.encode({"pid": pid, "attempt": 2, "state": 7})
            await settle(ant, bee, signed(bee, ant, another))
            assert (await ant.process(pid)).state == State.RUNNING
            await bee.work("X")
            assert (await ant.closed(pid)).output == ["X"]


async def test_a_peer_can_not_end_what_went_to_another(tmp_path: Path) -> None:
    """Nor what it has with another attempt, nor for another colony, nor what is not forwarded."""
    async with world(tmp_path) as colonies:
        ant, bee, cat = await friends(colonies, "ant", "bee", "cat")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            await settle(ant, cat, told(cat, ant, pid))
            await settle(ant, bee, told(bee, ant, pid, attempt=2))
            await settle(ant, bee, told(bee, ant, "3" * 64))
            with pytest.raises(Rejected, match="wrong_audience"):
                await settle(ant, bee, told(bee, cat, pid))
            with pytest.raises(Rejected, match="unknown_issuer"):
                await settle(ant, bee, told(cat, ant, pid))
            assert (await ant.process(pid)).state == State.RUNNING
            await bee.work("X")
            assert (await ant.closed(pid)).output == ["X"]
            # The first valid close wins.
            await settle(ant, bee, told(bee, ant, pid))
            assert (await ant.process(pid)).output == ["X"]


async def test_a_peer_can_lie_about_the_output_and_signs_it(tmp_path: Path) -> None:
    """That the output is right, nothing proves; that it is this peer's word, anybody can check."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await ant.when(pid, lambda process: process.state == State.RUNNING)
            await settle(ant, bee, told(bee, ant, pid, out=b'["never ran"]'))
            assert (await ant.process(pid)).output == ["never ran"]
            steps = await ant.steps(pid)
            assert [(step.issuer, step.signed) for step in steps] == [(bee.key.id, True)]


async def test_a_peer_sees_its_own_processes_only(tmp_path: Path) -> None:
    """Neither outcomes nor a cancel reach what another colony has here."""
    async with world(tmp_path) as colonies:
        ant, bee, cat = await friends(colonies, "ant", "bee", "cat")
        with trio.fail_after(50):
            pid = await ant.submit("bee")
            await bee.until(lambda: bool(bee.waiting()))
            connection = cat.fed.connections[bee.key.id]
            receipt, _ = await connection.post(
                "/v2/cancel", connection.seal(Kind.CANCEL, Cancel(pid, 1)), Kind.RECEIPT
            )
            assert load(receipt.payload, Receipt).remote == "", "as for one that never was there"
            await bee.work("X")
            poll = connection.seal(Kind.POLL, Poll(0, [pid], [Follow(pid, 1)]))
            answer, _ = await connection.post("/v2/outcomes", poll, Kind.OUTCOMES)
            said = load(answer.payload, Outcomes)
            assert (said.outcomes, said.news) == ([], [])
            assert (await ant.closed(pid)).output == ["X"], "the acknowledgement was not heard"


# -- a stolen key, further -------------------------------------------------------------------


async def test_who_has_the_key_can_move_the_colony_to_a_key_of_its_own(tmp_path: Path) -> None:
    """The key is the colony. Only people can put that right: a block, and trust for a new id."""
    async with world(tmp_path) as colonies:
        ant, bee = await friends(colonies, "ant", "bee")
        stolen, third = ant.key, PrivateKey.generate()
        now = int(time.time())
        said = Hello(own_card(third, 2**40, "e" * 64), successors=[declare(stolen, third, now)])
        body = Signer(third, SigningClock()).seal(Kind.HELLO, bee.key.id, said)
        assert await post(bee, "hello", body) == ""
        assert bee.fed.peers.find("ant").peer.wire == third.id
        # The owner can't have it back, nor any other colony be drawn into it.
        fourth = PrivateKey.generate()
        said = Hello(own_card(fourth, 2**40, "f" * 64), successors=[declare(stolen, fourth, now)])
        body = Signer(fourth, SigningClock()).seal(Kind.HELLO, bee.key.id, said)
        assert await post(bee, "hello", body) == "usurped"
        await bee.fed.peers.block(third.id)
        body = Signer(third, SigningClock()).seal(Kind.SUBMIT, bee.key.id, submission())
        assert await post(bee, "submit", body) == "blocked"


# -- announcements ---------------------------------------------------------------------------


def test_a_flood_of_announcements_keeps_nobody_else_waiting() -> None:
    """Ten thousand addresses of one host, and of many, are bounded in memory and in looks."""
    candidates, now = CandidateQueue(), 0.0
    for number in range(10_000):
        candidates.offer(AddressCandidate(f"{number:064x}", f"10.0.0.66:{1 + number}"), now)
        candidates.offer(
            AddressCandidate(f"{number:064x}", f"10.1.{number // 250}.{number % 250}:1"), now
        )
    assert len(candidates) <= candidates.most_hosts * candidates.most_each
    honest = AddressCandidate("a" * 64, "10.0.0.7:50081")
    assert candidates.offer(honest, now)
    assert candidates.take(now) == honest, "who is heard last comes first"
    looks = 0
    while now < 60:
        while (candidate := candidates.take(now)) is not None:
            looks += 1
            candidates.done(candidate, now, ok=False)
        now += 0.5
    assert looks <= candidates.burst + 60 * candidates.rate


# -- this machine ----------------------------------------------------------------------------


def test_another_user_of_the_machine_gets_neither_keys_nor_store(lone_daemon: Daemon) -> None:
    """Keys, store and its sockets are for the daemon's user only, by the mode of every file."""
    home = lone_daemon.home
    assert home.stat().st_mode & 0o077 == 0
    secrets = [path for path in (home / "keys").rglob("*") if path.is_file()]
    assert len(secrets) >= 3
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0, path
    assert (home / "etcd").stat().st_mode & 0o077 == 0


async def test_the_port_alone_gives_no_rights(lone_daemon: Daemon) -> None:
    """Who reaches the RPC port and has no key of this colony is refused, whatever it asks."""
    stranger = PrivateKey.generate()
    asked: dict[str, dict[str, Any]] = {
        "getprocessesmsg": {"colonyname": "dev", "count": 1, "state": 0},
        "submitfuncspecmsg": {
            "spec": {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "t"}}
        },
        "assignprocessmsg": {"colonyname": "dev", "timeout": 0},
        "getexecutorsmsg": {"colonyname": "dev"},
        "getusersmsg": {"colonyname": "dev"},
        "removecolonymsg": {"colonyname": "dev"},
        "addusermsg": {"user": {"name": "eve", "userid": stranger.id, "colonyname": "dev"}},
    }
    async with lone_daemon.client() as client:
        for kind, fields in asked.items():
            with pytest.raises(RpcError) as caught:
                await client.call(kind, fields, stranger)
            assert caught.value.status == 403, kind


async def test_federation_is_for_the_owner_only(make_daemon: Callable[..., Daemon]) -> None:
    """A user of the colony may work in it, and may not decide whom it trusts."""
    daemon = make_daemon("ant")
    await trio.to_thread.run_sync(daemon.start)
    peer = {"peer": "0" * 64}
    asked: dict[str, dict[str, Any]] = {
        "rotatekeymsg": {},
        "getpeersmsg": {},
        "getpeermsg": peer,
        "trustpeermsg": peer,
        "setpeerpolicymsg": peer | {"change": {"forward": True, "max_hops": 2}},
        "invitepeermsg": {},
        "getinvitationsmsg": {},
        "revokeinvitationmsg": {"invitation": "0" * 16},
        "joinpeermsg": {"token": "A"},
        "blockpeermsg": peer,
        "forgetpeermsg": peer,
        "namepeermsg": peer | {"name": "lab"},
        "getpetnamesmsg": {},
        "getcardmsg": {},
        "opencardmsg": {"link": "colony:A"},
        "pingpeermsg": peer,
    }
    async with daemon.client() as client:
        for key in (daemon.key("user"), PrivateKey.generate()):
            for kind, fields in asked.items():
                with pytest.raises(RpcError) as caught:
                    await client.call(kind, fields, key)
                assert caught.value.status == 403, kind
        # Other daemons on this machine may have been heard of; nothing was decided about any.
        peers = await client.call("getpeersmsg", {}, daemon.key("colony"))
        assert {peer["state"] for peer in peers} <= {"seen", "pending"}
        assert await client.call("getinvitationsmsg", {}, daemon.key("colony")) == []


async def test_a_request_of_an_sdk_without_a_nonce_can_be_repeated(lone_daemon: Daemon) -> None:
    """Upstream signs neither a nonce nor a time, so who reads such a request can send it again."""
    spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "t"}}
    payload = base64.b64encode(
        json.dumps({"msgtype": "submitfuncspecmsg", "spec": spec}).encode()
    ).decode()
    body = json.dumps(
        {
            "payloadtype": "submitfuncspecmsg",
            "payload": payload,
            "signature": sign_payload(lone_daemon.key("user"), payload),
        }
    ).encode()
    async with lone_daemon.client() as client, httpx.AsyncClient(trust_env=False) as http:
        ids = set()
        for _ in range(2):
            reply = await http.post(f"{client.url}/api", content=body)
            ids.add(decode("submitfuncspecmsg", reply.status_code, reply.content)["processid"])
        assert len(ids) == 2


async def test_an_executor_ends_only_what_it_was_given(lone_daemon: Daemon) -> None:
    """An executor can lie about its own work. It can't end, fail or annotate another's."""
    owner, user = lone_daemon.key("colony"), lone_daemon.key("user")
    honest, liar = PrivateKey.generate(), PrivateKey.generate()
    async with lone_daemon.client() as client:
        for name, key in (("honest", honest), ("liar", liar)):
            place = {"colonyname": "dev", "executorname": name}
            new = place | {"executorid": key.id, "executortype": "threat"}
            await client.call("addexecutormsg", {"executor": new}, owner)
            await client.call("approveexecutormsg", place, owner)
        spec = {"funcname": "f", "conditions": {"colonyname": "dev", "executortype": "threat"}}
        await client.call("submitfuncspecmsg", {"spec": spec}, user)
        given = await client.call("assignprocessmsg", {"colonyname": "dev", "timeout": 5}, honest)
        pid = given["processid"]
        attribute = {"targetid": pid, "key": "k", "value": "v", "targetcolonyname": "dev"}
        for kind, fields in (
            ("closesuccessfulmsg", {"processid": pid, "out": ["lie"]}),
            ("closefailedmsg", {"processid": pid, "errors": ["lie"]}),
            ("setoutputmsg", {"processid": pid, "out": ["lie"]}),
            ("addattributemsg", {"attribute": attribute}),
            ("addlogmsg", {"processid": pid, "message": "lie"}),
        ):
            with pytest.raises(RpcError) as caught:
                await client.call(kind, fields, liar)
            assert caught.value.status == 403, kind
        deep = json.loads("[" * 70 + "]" * 70)
        with pytest.raises(RpcError) as caught:
            await client.call("closesuccessfulmsg", {"processid": pid, "out": deep}, honest)
        assert caught.value.status == 400
        await client.call("closesuccessfulmsg", {"processid": pid, "out": ["X"]}, honest)
        process = await client.call("getprocessmsg", {"processid": pid}, user)
        assert process["out"] == ["X"]


# -- the clock --------------------------------------------------------------------------------


async def test_a_clock_once_far_ahead_shuts_everybody_out(lab: Lab) -> None:
    """It fails closed: the latest time remembered counts, until the clock has come that far."""
    await lab.befriend()
    body = lab.seal(Kind.SUBMIT, submission())
    lab.clock.remember(time.time() + 30 * 86_400)
    assert code(await lab.raw("submit", body)) == "expired"
    lab.clock.remember(time.time())
    assert (await lab.raw("submit", body)).status == 200

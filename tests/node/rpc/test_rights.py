"""Every call by every kind of caller: who has no right gets a refusal, no data and no effect."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from cli.ops.rpc import all_calls
from colonyd.keys import PrivateKey, sign_payload
from tests.node.http.support import OVER_SOCKET, Edge
from tests.support.daemons import REPOSITORY, Daemon
from tests.support.rights import (
    CALLERS,
    DIFFERENT,
    IN_DEV,
    NOT_DONE,
    OURS,
    REQUESTS,
    UPSTREAM,
    World,
    rights,
)
from tests.support.upstream import problem, reply_of

ALL = sorted(call.payloadtype for call in all_calls())
# It gives the colony another key: after all others.
LAST = "rotatekeymsg"
# What is not one's own can't be told from what is not there; another executor's name is a mistake.
REFUSED = {403, 404}
# What follows from making the things may be written in a first round; what calls write, in each.
_ROUNDS = 4
NAMES_ONESELF = {"updateexecutormsg", "reportallocationmsg"}


class Court:
    """A daemon with two colonies and one of each kind of caller."""

    def __init__(self, daemon: Daemon) -> None:
        self.edge, self.port = Edge(daemon.port), daemon.port
        self.keys = {name: PrivateKey.generate() for name in CALLERS}
        for name, file in (("server", "server"), ("owner", "colony"), ("user", "user")):
            self.keys[name] = daemon.key(file)
        self.world = World(self.ask, {name: key.id for name, key in self.keys.items()})
        far = {"colonyid": self.keys["far owner"].id, "name": "far"}
        self.ask("server", "addcolonymsg", {"colony": far})
        person = {"colonyname": "far", "name": "u", "userid": self.keys["far user"].id}
        self.ask("far owner", "addusermsg", {"user": person})
        self.enlist("far owner", "far", "far worker", "w", "approve")
        for name, verdict in (
            ("worker", "approve"), ("other", "approve"), ("pending", ""), ("rejected", "reject"),
            ("gone", "remove"),
        ):  # fmt: skip
            self.enlist("owner", "dev", name, name, verdict)

    def enlist(self, owner: str, colony: str, caller: str, name: str, verdict: str) -> None:
        """Add an executor, and decide about it."""
        own = {"colonyname": colony, "executorname": name}
        full = own | {"executortype": "cli", "executorid": self.keys[caller].id}
        self.ask(owner, "addexecutormsg", {"executor": full})
        if verdict:
            self.ask(owner, f"{verdict}executormsg", own)

    def envelope(self, caller: str, payloadtype: str, fields: dict[str, Any]) -> bytes:
        """A posted body; that of `nobody` has no signature."""
        payload = base64.b64encode(json.dumps({"msgtype": payloadtype, **fields}).encode()).decode()
        signature = "" if caller == "nobody" else sign_payload(self.keys[caller], payload)
        body = {"payloadtype": payloadtype, "payload": payload, "signature": signature}
        return json.dumps(body).encode()

    def call(self, caller: str, payloadtype: str, fields: dict[str, Any]) -> tuple[int, Any]:
        """Status and payload of what is answered; 200 for a subscription that is taken."""
        body = self.envelope(caller, payloadtype, fields)
        if payloadtype in OVER_SOCKET:
            return self.subscribe(body)
        deadline = time.monotonic() + 60
        while True:
            status, data = self.edge.post(body)
            if status != 503 or time.monotonic() > deadline:  # else the store was slow
                return status, json.loads(base64.b64decode(json.loads(data)["payload"]))

    def subscribe(self, body: bytes) -> tuple[int, Any]:
        """The first frame; None when the socket ends without any."""
        # The library leaves a socket open when the daemon was the first to say goodbye.
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            client = websocket.create_connection("ws://127.0.0.1/pubsub", socket=connection)
            client.send(body.decode())
            told = client.recv()
            client.close()
        if not told:
            return 200, None
        frame = json.loads(told)
        payload = json.loads(base64.b64decode(frame["payload"]))
        return (payload["status"] if frame["error"] else 200), payload

    def ask(self, caller: str, payloadtype: str, fields: dict[str, Any]) -> Any:
        """A call that must succeed."""
        status, payload = self.call(caller, payloadtype, fields)
        assert status == 200, (caller, payloadtype, payload)
        return payload

    @property
    def revision(self) -> int:
        """The store's: any write makes it another."""
        return int(self.ask("owner", "getnodestatusmsg", {})["etcd"]["revision"])


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    """One for all calls: it costs more than they do."""
    home: Path = tmp_path_factory.mktemp("court") / "dev"
    daemon = Daemon(home, "dev", {"COLONYD_FEDERATION__DISCOVERY": "false"}).start()
    court = Court(daemon)
    yield court
    court.edge.close()
    assert daemon.stop() == 0


def test_every_call_has_its_rights_and_a_request() -> None:
    """A new call fails here until it is written down who may make it."""
    assert sorted({*UPSTREAM, *OURS}) == ALL
    assert sorted(REQUESTS) == ALL
    assert not set(UPSTREAM) & set(OURS)
    assert set(NOT_DONE) <= set(ALL)


def test_where_rights_differ_the_documentation_says_so() -> None:
    told = (REPOSITORY / "docs/compatibility.md").read_text("utf-8")
    for payloadtype, (_, words) in DIFFERENT.items():
        (row,) = (line for line in told.splitlines() if line.startswith(f"| `{payloadtype}`"))
        assert words in row


def refusals(payloadtype: str) -> set[int]:
    return REFUSED | ({400} if payloadtype in NAMES_ONESELF else set())


@pytest.mark.slow
@pytest.mark.parametrize("payloadtype", [each for each in ALL if each != LAST] + [LAST])
def test_only_who_has_the_right_is_answered(court: Court, payloadtype: str) -> None:
    allowed = rights(payloadtype)
    court.world.forget()
    # Of these first: what is allowed uses the things up that requests are about.
    strangers = [caller for caller in CALLERS if caller not in allowed]
    asked = REQUESTS[payloadtype](court.world)
    for _ in range(_ROUNDS):
        before = court.revision
        for caller in strangers:
            status, payload = court.call(caller, payloadtype, asked)
            assert status in refusals(payloadtype), (caller, status, payload)
            assert set(payload) == {"status", "message"}, (caller, payload)
        if court.revision == before:
            break
    else:
        pytest.fail("refused calls changed something")
    for caller in sorted(allowed):
        court.world.forget()
        status, payload = court.call(caller, payloadtype, REQUESTS[payloadtype](court.world))
        assert status in NOT_DONE.get(payloadtype, {200}), (caller, status, payload)
        kind = reply_of(payloadtype)
        if status == 200 and kind and payload is not None:
            # No list and no object is null, and no field is missing.
            assert problem(json.dumps(payload), kind) == ""
    if payloadtype == "pauseassignmentsmsg":
        court.ask("owner", "resumeassignmentsmsg", IN_DEV)


@pytest.mark.slow
@pytest.mark.parametrize("payloadtype", ["updateexecutormsg", "reportallocationmsg"])
def test_an_executor_of_any_state_speaks_for_itself(court: Court, payloadtype: str) -> None:
    for caller in ("worker", "other", "pending", "rejected"):
        assert court.call(caller, payloadtype, IN_DEV | {"executorname": caller})[0] == 200
    status, _ = court.call("user", payloadtype, IN_DEV | {"executorname": "worker"})
    assert status == 403

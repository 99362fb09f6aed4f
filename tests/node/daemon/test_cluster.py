"""An etcd cluster that runs elsewhere: members die, passwords and certificates are wanted."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from colonyd.keys import PrivateKey
from colonyd.rpc import RpcClient, RpcError, Unreachable, encode
from node.etcd.client import EtcdClient, open_client
from node.etcd.errors import EtcdDenied, EtcdUnavailable
from node.etcd.generated import pb
from node.etcd.transport.dial import Access, tls_context
from node.model.types import SECOND
from node.store import crons
from tests.node.timers.support import seconds_of
from tests.support.cluster import Member, members, serving
from tests.support.daemons import REPOSITORY, Daemon, until

pytestmark = pytest.mark.slow
ALONE = {"COLONYD_FEDERATION__ENABLED": "false"}
Make = Callable[..., Daemon]


# -- the client ------------------------------------------------------------------------------


async def test_calls_go_on_at_another_member(tmp_path: Path) -> None:
    """One is killed, another frozen; each time the next answers."""
    with members(tmp_path, 3) as three:
        access = Access(tuple(m.endpoint for m in three))
        async with open_client(access, timeout=3.0) as client:
            await serving(client)
            for member, number in ((three[0], signal.SIGKILL), (three[1], signal.SIGSTOP)):
                if number == signal.SIGSTOP:
                    # Two of three are needed: the killed one comes back first.
                    three[0].stop()
                    cluster = ",".join(f"{m.name}=http://127.0.0.1:{m.peer}" for m in three)
                    three[0].start(cluster)
                    await serving(client)
                member.signal(number)

                async def writes() -> bool:
                    try:
                        await client.put("k", b"v")
                        return await client.get("k") is not None
                    except EtcdUnavailable:
                        return False

                await until(90, writes)


async def enable_authentication(client: EtcdClient, user: str, password: str) -> None:
    channel = client._channel

    async def call(name: str, request: Any) -> None:
        await channel.call(f"/etcdserverpb.Auth/{name}", request.SerializeToString(), 60.0)

    await call("UserAdd", pb.AuthUserAddRequest(name=user, password=password))
    await call("RoleAdd", pb.AuthRoleAddRequest(name="root"))
    await call("UserGrantRole", pb.AuthUserGrantRoleRequest(user=user, role="root"))
    await call("AuthEnable", pb.AuthEnableRequest())


@asynccontextmanager
async def guarded(tmp_path: Path) -> AsyncIterator[Member]:
    """One etcd whose user is root and whose password is right."""
    with members(tmp_path / "etcd", 1) as (one,):
        # A user where no password is asked for does no harm.
        early = Access((one.endpoint,), user="root", password="any")
        async with open_client(early) as client:
            await serving(client)
            await enable_authentication(client, "root", "right")
        yield one


async def test_a_password(tmp_path: Path) -> None:
    async with guarded(tmp_path) as one:
        right = Access((one.endpoint,), user="root", password="right")
        async with open_client(right, timeout=60) as client:
            await client.put("k", b"v")
            # Its tokens are in etcd's memory: after a restart another one is fetched.
            one.stop()
            one.start(f"{one.name}=http://127.0.0.1:{one.peer}")
            await serving(client)
            found = await client.get("k")
            assert found is not None
            assert found.value == b"v"
        for user, password in (("root", "wrong"), ("nobody", "right"), ("", "")):
            wrong = Access((one.endpoint,), user=user, password=password)
            async with open_client(wrong, timeout=60) as client:
                began = trio.current_time()
                with pytest.raises(EtcdDenied):
                    await client.get("k")
                assert trio.current_time() - began < 20


async def test_a_wrong_password_is_refused_at_the_start(tmp_path: Path, make_daemon: Make) -> None:
    async with guarded(tmp_path) as one:
        base = ALONE | {"COLONYD_ETCD__ENDPOINTS": one.endpoint, "COLONYD_ETCD__USER": "root"}
        ended = await start_in_vain(tmp_path / "wrong", base | {"COLONYD_ETCD__PASSWORD": "wrong"})
        assert ended.returncode == 78
        says = "etcd.user, etcd.password: etcdserver: authentication failed"
        assert says in ended.stderr.decode()
        daemon = make_daemon("dev", **base, COLONYD_ETCD__PASSWORD="right")
        await trio.to_thread.run_sync(daemon.start)
        assert daemon.health() == 200
    # And where nobody listens.
    ended = await start_in_vain(
        tmp_path / "none", ALONE | {"COLONYD_ETCD__ENDPOINTS": "127.0.0.1:1"}
    )
    assert ended.returncode == 69
    assert "no etcd serves at 127.0.0.1:1" in ended.stderr.decode()


async def start_in_vain(home: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    base = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}
    command = [sys.executable, "-m", "cli.daemon.colonyd", "--home", str(home), "--name", "dev"]
    return await trio.run_process(
        [*command, "--port", "0"],
        env=base | environ,
        cwd=REPOSITORY,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


def certificates(place: Path) -> None:
    """An authority, and with it certificates of a server and of a client."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    for name in ("ca", "server", "client"):
        key = authority_key if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        subject = issuer
        if name != "ca":
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        (place / f"{name}.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (place / f"{name}.key").write_bytes(secret)


async def test_client_certificates(tmp_path: Path, make_daemon: Make) -> None:
    certificates(tmp_path)
    (tmp_path / "etcd").mkdir()
    flags = (
        f"--cert-file={tmp_path}/server.crt",
        f"--key-file={tmp_path}/server.key",
        f"--trusted-ca-file={tmp_path}/ca.crt",
        "--client-cert-auth",
    )
    with members(tmp_path / "etcd", 1, *flags, scheme="https") as (one,):
        mine = tls_context(tmp_path / "ca.crt", tmp_path / "client.crt", tmp_path / "client.key")
        async with open_client(Access((f"https://{one.endpoint}",), mine), timeout=60) as client:
            await serving(client)
            big = os.urandom(1_000_000)
            await client.put("big", big)
            found = await client.get("big")
            assert found is not None
            assert found.value == big
        for tls in (
            None,
            tls_context(tmp_path / "ca.crt", None, None),
            tls_context(None, None, None),
        ):
            async with open_client(Access((one.endpoint,), tls), timeout=1.0) as client:
                with pytest.raises(EtcdUnavailable):
                    await client.get("big")
        environ = ALONE | {
            "COLONYD_ETCD__ENDPOINTS": one.endpoint,
            "COLONYD_ETCD__CA": f"{tmp_path}/ca.crt",
            "COLONYD_ETCD__CERT": f"{tmp_path}/client.crt",
            "COLONYD_ETCD__KEY": f"{tmp_path}/client.key",
        }
        daemon = make_daemon("dev", **environ)
        await trio.to_thread.run_sync(daemon.start)
        async with daemon.client() as client:
            assert await client.call("getcoloniesmsg", {}, daemon.key("server"))
        assert daemon.stop() == 0


# -- two daemons, three members --------------------------------------------------------------


async def insist(daemon: Daemon, body: Callable[[], bytes], seconds: float = 120) -> Any:
    """Send until there is an answer that is none of "try again"."""
    with trio.fail_after(seconds):
        while True:
            async with daemon.client() as client:
                try:
                    return await client._post("any", body(), 10.0)
                except Unreachable:
                    pass
                except RpcError as error:
                    if error.status not in (409, 500, 502, 503):
                        raise
            await trio.sleep(0.1)


async def test_two_daemons_serve_one_colony(tmp_path: Path, make_daemon: Make) -> None:
    """Submitted at one, worked on at the other, while a member and then a daemon is killed."""
    with members(tmp_path / "etcd", 3) as three:
        endpoints = [m.endpoint for m in three]
        async with open_client(Access(tuple(endpoints))) as client:
            await serving(client)
        ant = make_daemon("dev", **ALONE, COLONYD_ETCD__ENDPOINTS=",".join(endpoints))
        await trio.to_thread.run_sync(ant.start)
        bee = make_daemon("bee", **ALONE, COLONYD_ETCD__ENDPOINTS=",".join(reversed(endpoints)))
        bee.name = "dev"
        bee.home.mkdir(mode=0o700)
        shutil.copytree(ant.home / "keys", bee.home / "keys")
        shutil.copy(ant.home / "colony", bee.home / "colony")
        await trio.to_thread.run_sync(bee.start)
        owner, user, worker = ant.key("colony"), ant.key("user"), PrivateKey.generate()
        async with RpcClient(f"http://127.0.0.1:{ant.port}") as caller:
            member = {"executorname": "w", "executorid": worker.id, "executortype": "cli"}
            member["colonyname"] = "dev"
            await caller.call("addexecutormsg", {"executor": member}, owner)
            await caller.call("approveexecutormsg", member, owner)
            flow = {"colonyname": "dev", "functionspecs": [spec("tick", "clock", 0)]}
            asked = {"name": "tick", "colonyname": "dev", "interval": -1}
            asked |= {"cronexpression": "*/1 * * * * *", "workflowspec": json.dumps(flow)}
            cron = await caller.call("addcronmsg", {"cron": asked}, user)
        done: list[int] = []

        async def submit() -> None:
            for number in range(60):
                body = encode("submitfuncspecmsg", {"spec": spec("f", "cli", number)}, user)
                await insist(ant, partial(bytes, body))
                if number == 20:
                    three[0].signal(signal.SIGKILL)

        async def work() -> None:
            def ask() -> bytes:
                return encode("assignprocessmsg", {"colonyname": "dev", "timeout": 2}, worker)

            while len(set(done)) < 60:
                try:
                    process = await insist(bee, ask)
                except RpcError as error:
                    if error.status == 404:
                        continue
                    raise
                fields = {"processid": process["processid"], "out": ["x"]}
                close = encode("closesuccessfulmsg", fields, worker)
                await insist(bee, partial(bytes, close))
                done.append(process["spec"]["args"][0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            nursery.start_soon(work)
        assert sorted(set(done)) == list(range(60))

        # The leader among them is killed; the other fires on, and no time twice.
        leader, other = (ant, bee) if leads(ant) else (bee, ant)
        leader.kill()

        async def ticks() -> list[str]:
            """The workflow of each tick so far, of which a list of processes tells a hundred."""
            fields = {"colonyname": "dev", "seconds": 3600, "state": 0}
            found = await insist(other, lambda: encode("getprocesshistmsg", fields, user))
            return [p["processgraphid"] for p in found if p["spec"]["funcname"] == "tick"]

        before = set(await ticks())

        async def went_on() -> bool:
            return len(set(await ticks()) - before) >= 3

        await until(90, went_on)
        fired = await ticks()
        began = seconds_of(cron["nextrun"])
        due = {crons.graph_id(cron["cronid"], (began + s) * SECOND) for s in range(3600)}
        assert before
        assert len(fired) == len(set(fired)), "a due time fired twice"
        assert set(fired) <= due


def leads(daemon: Daemon) -> bool:
    """Whether the daemon said last that it leads."""
    told = [line for line in daemon.events if 'event="leads' in line or "event=leads " in line]
    return bool(told) and "event=leads " in told[-1]


def spec(name: str, kind: str, number: int) -> dict[str, Any]:
    conditions = {"colonyname": "dev", "executortype": kind}
    return {
        "nodename": name,
        "funcname": name,
        "args": [number],
        "maxexectime": 120,
        "maxretries": 10,
        "conditions": conditions,
    }

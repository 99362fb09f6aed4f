"""Where a daemon listens: told to commands by its home, bound in both families, or said why not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from cli.core.session import Session
from colonyd.places import LISTENING as FILE
from colonyd.places import Listening, read_listening, url_of
from colonyd.rpc import RpcClient, Unreachable
from node.host.home import init_home
from node.host.ports import holder_of
from node.http.listeners import ListenError, addresses_of, bound_port, open_listeners
from tests.support.daemons import REPOSITORY, Daemon, free_port

Make = Callable[..., Daemon]
ALONE = {"COLONYD_FEDERATION__ENABLED": "false"}
GOOD = json.dumps({"pid": 1, "colony": "dev", "serverid": "ab" * 32, "rpc": ["h:1"]})
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("COLONIES_", "COLONYD_"))}


def typed(program: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a program says that is typed in a shell of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"cli.{program}", *args],
        cwd=REPOSITORY,
        env=CLEAN | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def colony(home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return typed("main", "--home", str(home), *args, **environ)


def colonyd(home: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return typed("daemon.colonyd", "--home", str(home), *args, **environ)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that this process listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


# -- the home tells ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost", "*", "::"])
def test_the_command_line_finds_the_daemon_of_its_home(make_daemon: Make, host: str) -> None:
    daemon = make_daemon("dev", **ALONE, COLONYD_RPC__HOST=host, COLONYD_RPC__PORT="0").start()
    status = colony(daemon.home, "status", "--json")
    assert status.returncode == 0, status.stderr
    told = read_listening(daemon.home)
    assert daemon.process is not None
    assert told is not None
    assert (told.pid, told.colony, told.federation) == (daemon.process.pid, "dev", [])
    assert {each.rpartition(":")[2] for each in told.rpc} == {
        str(json.loads(status.stdout)["rpcport"])
    }
    assert (daemon.home / FILE).stat().st_mode & 0o777 == 0o644
    assert daemon.stop() == 0
    assert not (daemon.home / FILE).exists()


@pytest.mark.slow
def test_a_home_without_its_daemon_says_so(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE).start()
    assert daemon.process is not None
    daemon.kill()
    gone = colony(daemon.home, "status")
    assert gone.returncode == 69
    assert f"127.0.0.1:{daemon.port}" in gone.stderr
    assert f"(pid {daemon.process.pid}) was killed" in gone.stderr
    assert f"colony --home {daemon.home} up" in gone.stderr
    # The next run elsewhere is found all the same; a stop in order leaves nothing behind.
    daemon.port = free_port()
    daemon.start()
    assert colony(daemon.home, "status").returncode == 0
    assert daemon.stop() == 0
    missing = colony(daemon.home, "status", COLONYD_RPC__PORT=str(daemon.port))
    assert missing.returncode == 69
    assert f"no daemon of {daemon.home} runs" in missing.stderr


@pytest.mark.slow
def test_a_named_address_wins_over_the_home(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE).start()
    nowhere = str(free_port())
    for args, environ in (
        (["--server", f"127.0.0.1:{nowhere}"], {}),
        ([], {"COLONIES_SERVER_PORT": nowhere}),
    ):
        done = colony(daemon.home, *args, "status", **environ)
        assert (done.returncode, nowhere in done.stderr) == (69, True)


@pytest.mark.slow
def test_a_certificate_of_the_home_is_trusted_at_any_of_its_addresses(make_daemon: Make) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("no network but loopback")
        host = probe.getsockname()[0]
    daemon = make_daemon("dev", **ALONE, COLONYD_RPC__HOST=host, COLONYD_RPC__TLS="true").start()
    done = colony(daemon.home, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rpcport"] == daemon.port


@pytest.mark.slow
async def test_a_client_follows_its_daemon_to_another_port(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE)
    await trio.to_thread.run_sync(daemon.start)
    session = Session(str(daemon.home), environ={})
    async with session.client() as client:
        await client.call("getnodestatusmsg", {}, session.member_key())
        await trio.to_thread.run_sync(daemon.stop)
        daemon.port = free_port()
        await trio.to_thread.run_sync(daemon.start)
        with pytest.raises(Unreachable):
            await client.call("getnodestatusmsg", {}, session.member_key())
        reply = await client.call("getnodestatusmsg", {}, session.member_key())
    assert reply["rpcport"] == daemon.port


@pytest.mark.slow
def test_another_colony_that_answers_is_called_that(make_daemon: Make, tmp_path: Path) -> None:
    there = make_daemon("there", **ALONE).start()
    here = tmp_path / "here"
    info = init_home(here, "here", {})
    (here / "config.toml").write_text(f"[rpc]\nport = {there.port}\n")
    for command in (["status"], ["run", "--func", "f"], ["process", "ls"]):
        done = colony(here, *command)
        assert done.returncode == 4
        assert f"another colony answers at http://127.0.0.1:{there.port}" in done.stderr
        assert f"colonyd of colony there (home {there.home})" in done.stderr
        assert there.key("server").id in done.stderr
        assert info.server.id in done.stderr
        assert f"colony --home {here} up" in done.stderr
        assert "check which key signs" not in done.stderr
    # A denial by the home's own server, and one of keys that the environment names, are just that.
    stranger = info.user.hex
    denied = colony(there.home, "status", COLONIES_PRVKEY=stranger)
    assert (denied.returncode, "another colony" in denied.stderr) == (4, False)
    named = {"COLONIES_SERVER_PORT": str(there.port), "COLONIES_PRVKEY": stranger}
    denied = colony(here, "status", **named)
    assert (denied.returncode, "another colony" in denied.stderr) == (4, False)


def test_a_process_that_is_not_shown_is_told_by_its_user(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()

    def table(uid: int) -> None:
        row = f"0: 00000000:C3A0 00000000:0000 0A 0:0 00:0 0 {uid} 0 4711 1"
        (tmp_path / "net/tcp").write_text(f"head\n{row}\n")

    table(0)
    assert str(holder_of(50080, proc=tmp_path)) == "a process of user root"
    table(65534)  # as under PrivateUsers=
    assert str(holder_of(50080, proc=tmp_path)) == "another user's process"
    assert holder_of(50081, proc=tmp_path) is None


def test_where_a_program_on_this_machine_calls() -> None:
    def url(*rpc: str, tls: bool = False) -> str:
        return Listening(1, "dev", "", list(rpc), tls).url

    assert url("0.0.0.0:1", "[::]:1") == "http://127.0.0.1:1"
    assert url("[::]:1") == "http://[::1]:1"
    assert url("[::]:1", "0.0.0.0:1") == "http://127.0.0.1:1"
    assert url("192.0.2.7:1", tls=True) == "https://192.0.2.7:1"
    assert url_of("*", 1, tls=False) == url_of("0.0.0.0", 1, tls=False) == "http://127.0.0.1:1"
    assert url_of("::1", 1, tls=True) == "https://[::1]:1"
    assert url_of("host.example", 1, tls=False) == "http://host.example:1"


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "\0" * 9, GOOD.replace("h:1", "h"), GOOD.replace('"h:1"', ""),
             GOOD.replace("dev", "\\u001b[2J")],
)  # fmt: skip
def test_a_damaged_file_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_listening(tmp_path) is None
    assert Session(str(tmp_path), environ={}).url() == "http://127.0.0.1:50080"
    (tmp_path / FILE).write_text(GOOD)
    assert Session(str(tmp_path), environ={}).url() == "http://h:1"


def test_what_another_user_put_there_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    assert read_listening(tmp_path) is None
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("/dev/zero")
    assert read_listening(tmp_path) is None


def test_without_a_daemon_the_configuration_says_where(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[rpc]\nhost = "::1"\nport = 7\ntls = true\n')
    assert Session(str(tmp_path), environ={}).url() == "https://[::1]:7"


# -- both families -------------------------------------------------------------------------------


@pytest.mark.slow
async def test_rpc_listens_on_both_families_by_default(make_daemon: Make) -> None:
    daemon = make_daemon("dev", **ALONE, COLONYD_RPC__HOST="*")
    await trio.to_thread.run_sync(daemon.start)
    for host in ("127.0.0.1", "[::1]"):
        async with RpcClient(f"http://{host}:{daemon.port}") as client:
            assert (await client.call("versionmsg", {}, None))["buildversion"]


async def test_a_port_that_the_kernel_chooses_is_the_same_in_both_families() -> None:
    for _ in range(20):
        listeners = await open_listeners("*", 0)
        ports = {int(each.rpartition(":")[2]) for each in addresses_of(listeners)}
        assert (len(listeners), ports) == (2, {bound_port(listeners)})
        for listener in listeners:
            await listener.aclose()


WITHOUT_IPV6 = """
ip link set lo up
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6
exec "$0" -c '
import trio
from node.http.listeners import addresses_of, open_listeners
async def main(host):
    print([each.rpartition(":")[0] for each in addresses_of(await open_listeners(host, 0))])
trio.run(main, "localhost")
trio.run(main, "*")
'
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a namespace takes root"
)
def test_a_machine_without_ipv6_listens_on_what_it_has(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", WITHOUT_IPV6, sys.executable],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert done.returncode == 0, done.stderr
    first, both = done.stdout.splitlines()
    assert first == "['127.0.0.1']"
    assert "0.0.0.0" in both


# -- what is in the way --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_taken_port_is_named_with_its_setting_and_its_holder(
    make_daemon: Make, tmp_path: Path, taken: int
) -> None:
    first = make_daemon("first").start()
    second = tmp_path / "second"
    for args, setting, flag in (
        (["--port", str(first.port), "--federation-port", "0"], "rpc.port", "--port"),
        (
            ["--port", "0", "--federation-port", str(first.peer_port)],
            "federation.port",
            "--federation-port",
        ),
    ):
        done = colonyd(second, *args)
        assert (done.returncode, "Traceback" in done.stderr) == (75, False), done.stderr
        (line,) = [each for each in done.stderr.splitlines() if each.startswith("colonyd: ")]
        assert line.startswith(f"colonyd: {setting}: ")
        assert f":{args[1] if setting == 'rpc.port' else args[3]} is in use by colonyd" in line
        assert f"of colony first (home {first.home})" in line
        assert f"({flag}, or {setting} in config.toml" in line
    assert first.process is not None
    assert f"pid {first.process.pid}" in line
    done = colonyd(second, "--port", str(taken), "--federation-port", "0")
    assert f":{taken} is in use by" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    same = str(free_port())
    done = colonyd(second, "--port", same, "--federation-port", same)
    assert f"port {same} is this daemon's other port too" in done.stderr


KEEPER = """
ip link set lo up
"$0" -c '
import socket, sys, time
kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
kept.bind(("", 5353))
time.sleep(300)
' &
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a namespace takes root"
)
def test_who_keeps_mdns_for_itself_is_named(make_daemon: Make) -> None:
    daemon = make_daemon("dev")
    space = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    daemon.prefix = [*space, "sh", "-c", KEEPER, sys.executable]
    daemon.start()
    line = daemon.await_event('event="discovery failed"')
    daemon.kill()  # and the namespace with it
    assert "UDP port 5353 (mDNS) is kept by python" in line
    assert "federation.discovery = false" in line


async def test_an_address_that_this_machine_does_not_have() -> None:
    for host, said in (("192.0.2.77", "has no address 192.0.2.77"), ("no.invalid", "not found")):
        with pytest.raises(ListenError, match=f"^rpc.host: .*{said}") as caught:
            await open_listeners(host, 0)
        assert not caught.value.lasting


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can give rights up"
)
def test_a_port_that_takes_rights_is_named() -> None:
    code = "import trio; from node.http.listeners import open_listeners as o; trio.run(o, '*', 80)"
    drop = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
    done = subprocess.run(
        ["unshare", "--net", *drop, sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "ListenError" not in done.stderr and "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert "rpc.port: this user may not listen on port 80 " in done.stderr

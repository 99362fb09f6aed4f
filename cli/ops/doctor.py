"""`colony doctor`: looks for causes of trouble on this host, at the daemon and at its peers.

It changes nothing; each finding says what to do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from cli.core.errors import FAILED, OK, Failure
from cli.core.output import Check, print_json
from cli.core.session import Session, colony_command, finish
from cli.core.terminal import print_line

_MIB = 2**20
_MOST_NAMED = 5  # files of other users that are named one by one
_DISK_FAIL, _DISK_WARN = 256 * _MIB, 2048 * _MIB  # bytes: the store's quota is 2 GiB by default
_EARLIEST_YEAR = 2025  # no host that runs this release can honestly have an earlier clock
_STEP_DAYS = 7  # days for which a step of the clock is reported
_MDNS_PORT = 5353
# These releases can corrupt data (etcd issue 13766 and its kin).
_CORRUPTING = re.compile(r"etcd Version: (3\.5\.[0-2])\b")


@colony_command("doctor", "colony doctor", "colony doctor --json")
def doctor(session: Session) -> None:
    """Check keys, clock, disk, etcd, discovery, daemon and peers; exit 1 if a check fails."""
    made: list[Check] = []
    for check in checks(session):
        made.append(check)
        if not session.as_json:
            _print(check)
    failed = [check for check in made if check.ok is False]
    if session.as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in made]})
    finish(FAILED if failed else OK)


def _print(check: Check) -> None:
    mark = {True: "✓", False: "✗", None: "!"}[check.ok]
    print_line(f"{mark} {check.name}: {check.detail}")
    if check.next and check.ok is not True:
        print_line(f"  next: {check.next}")


def checks(session: Session) -> Iterator[Check]:
    """Return the findings one by one, each as soon as it is made."""
    home = session.home
    yield check_clock(time.time())
    yield check_home(home)
    yield from check_owner(home)
    try:
        group = session.config().node.group
    except Failure:
        group = ""  # reported by check_config
    yield from check_keys(home, group)
    yield check_config(session)
    yield from check_peer_settings(session)
    yield check_disk(home)
    yield check_etcd(session)
    yield from check_place(session)
    yield check_mdns(Path("/proc"))
    yield from check_daemon(session)


def check_clock(now: float) -> Check:
    """Return whether the clock (Unix s) shows a time at which this release can exist."""
    year = time.gmtime(now).tm_year
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if year < _EARLIEST_YEAR:
        return Check("clock", False, f"{text} is in the past", "set it, or enable NTP")
    return Check("clock", True, text)


def check_steps(told: dict[str, Any]) -> Iterator[Check]:
    """Return what the daemon reports about its clock: behind the store's times, or set in the last
    week.
    """
    from cli.peers.peers import moment
    from federation.peers.clock import told as words

    behind, by, at = (int(told.get(name) or 0) for name in ("behind", "steppedby", "steppedat"))
    mended = ", ".join(
        f"{told.get(kind) or 0} {kind}" for kind in ("crons", "generators", "processes")
    )
    if behind:
        detail = f"it is {words(behind)} behind the last time that the store saw before this start"
        next_step = "is it right (`date`)? If not, set it, or enable NTP; if so, all is well"
        yield Check("clock", None, f"{detail}; other times for {mended}", next_step)
    elif by and 0 <= int(told.get("now") or 0) - at < _STEP_DAYS * 86_400:
        way = "forward" if by > 0 else "back"
        detail = f"this host's was set {way} by {words(by)} at {moment(at)}; other times for"
        next_step = "if it comes again: is NTP on, and does the clock have a battery?"
        yield Check("clock", None, f"{detail} {mended}", next_step)


def check_home(home: Path) -> Check:
    """Return whether the home has been initialised and is ours to write."""
    from colonyd.places import user_name

    try:
        there = (home / "keys").is_dir()
    except PermissionError:
        owner = user_name(home.stat().st_uid)
        detail = f"{home} is user {owner}'s, and closed to {user_name(os.geteuid())}"
        return Check("home", False, detail, f"run it as {owner}, or choose another --home")
    if not there:
        return Check("home", False, f"no colony at {home}", "`colony init`, or --home")

    if not os.access(home, os.W_OK | os.X_OK) and os.access(home / "keys/user.key", os.R_OK):
        detail = f"{home}; it is user {user_name(home.stat().st_uid)}'s, and open to this one"
        return Check("home", True, detail)
    if not os.access(home, os.W_OK | os.X_OK):
        return Check("home", False, f"{home} is not writable", f"who owns it? `ls -ld {home}`")
    return Check("home", True, str(home))


def check_owner(home: Path) -> Iterator[Check]:
    """Return whether all of the home belongs to one user, and this user runs the daemon."""
    from colonyd.places import user_name
    from node.host.home import foreign_files

    if not os.access(home, os.R_OK | os.X_OK):
        return  # reported by check_home
    try:
        owner = user_name(home.stat().st_uid)
        found = list(islice(foreign_files(home), _MOST_NAMED))
    except OSError:
        return  # reported by check_home
    for path, uid in found:
        detail = f"{path} belongs to {user_name(uid)}, its home to {owner}"
        yield Check("owner", False, detail, f"as root: chown -hR {owner} {home}")
    if not found:
        yield Check("owner", True, f"all of the home belongs to {owner}")


def check_keys(home: Path, group: str = "") -> Iterator[Check]:
    """Return whether only their owner can read the key files, that of TLS among them, and those
    that are the group's its members.
    """
    from node.host.home import Home, secrets_of

    directory = Home(home).keys
    try:
        found = sorted(directory.glob("*.key"))
        modes = [
            (path, path.stat().st_mode, allowed)
            for path, allowed in secrets_of(home, group)
            if path.exists() and (path.suffix == ".key" or path.is_dir())
        ]
        directory.stat()
    except PermissionError:
        return  # reported by check_home
    except OSError as error:
        yield Check("keys", False, f"{directory}: {error.strerror}", "`colony init`")
        return
    wrong = [path for path, mode, allowed in modes if mode & ~allowed & 0o077]
    for path in wrong:
        mode = f"{path.stat().st_mode & 0o777:04o}"
        right = "0700" if path.is_dir() else "0600"
        detail = f"{path} has mode {mode}, others may read it"
        yield Check("keys", False, detail, f"chmod {right} {path}")
    if not found:
        yield Check("keys", False, f"{directory} holds no keys", "`colony init`")
    elif not wrong:
        readers = f"owner and group {group}" if group else "their owner only"
        yield Check("keys", True, f"{len(found)} key files, readable by {readers}")


def check_config(session: Session) -> Check:
    """Return whether the configuration can be read."""
    try:
        session.config()
    except Failure as error:
        return Check("config", False, error.message, error.next_step)
    return Check("config", True, "valid")


def check_peer_settings(session: Session) -> Iterator[Check]:
    """Return whether the addresses under [[peers]] can be those of other colonies."""
    from federation.peers.unreachable import wrong_peers

    with suppress(Failure):  # reported by check_config
        for url, why in wrong_peers(session.config()).items():
            yield Check("peers", False, f"[[peers]] {url} {why}", "correct the configuration")


def check_disk(home: Path) -> Check:
    """Return the free space where the home is, or will be."""
    place = home
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free // _MIB} MiB free at {place}"
    if free < _DISK_FAIL:
        return Check("disk", False, detail, "make room: the store refuses writes on a full disk")
    if free < _DISK_WARN:
        return Check("disk", None, detail, "less than the store's default quota of 2 GiB")
    return Check("disk", True, detail)


def check_etcd(session: Session) -> Check:
    """Return whether there is an etcd to run, unless the configuration names a cluster."""
    try:
        if session.config().etcd.endpoints:
            return Check("etcd", True, "an existing cluster is configured")
    except Failure:
        pass  # reported by check_config
    binary = shutil.which("etcd")
    if binary is None:
        return Check("etcd", False, "no etcd binary in PATH", "apt install etcd-server")
    try:
        text = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("etcd", False, f"{binary} does not run: {error}", "reinstall etcd-server")
    return judge_etcd(binary, text)


def check_place(session: Session) -> Iterator[Check]:
    """Return whether the store that the home had is gone, as the daemon's start judges it."""
    from node.etcd.errors import StoreRefused
    from node.etcdserver.identity import require_place
    from node.host.home import Home

    home = Home(session.home)
    try:
        if home.etcd.is_dir() and not os.access(home.etcd, os.R_OK | os.X_OK):
            return  # it is the daemon's user's, and check_home says so
        if not session.config().etcd.endpoints:
            require_place(home)
    except (Failure, PermissionError):
        pass  # reported by check_config, or check_home
    except StoreRefused as error:
        yield Check("store", False, str(error), "")


def judge_etcd(binary: str, text: str) -> Check:
    """Judge the output of `etcd --version`."""
    if bad := _CORRUPTING.search(text):
        return Check("etcd", False, f"{bad[1]} can corrupt data", "install another release")
    return Check("etcd", True, f"{binary}, {text.splitlines()[0] if text else 'unknown version'}")


def check_mdns(proc: Path) -> Check:
    """Return which other programs answer on UDP 5353, as far as this user may see (Linux)."""
    inodes: set[str] = set()
    for name in ("udp", "udp6"):
        try:
            inodes |= sockets_on(_MDNS_PORT, (proc / "net" / name).read_text("ascii"))
        except OSError:
            continue
    if not inodes:
        return Check("mdns", True, "UDP 5353 is used by nobody now")
    names = owners(proc, inodes) - {"colony", "colonyd"}
    shown = ", ".join(sorted(names)) or "a program of another user, or colonyd itself"
    return Check(
        "mdns",
        None,
        f"{len(inodes)} sockets on UDP 5353: {shown}",
        "sharing the port works; if peers are not found, stop the other responder",
    )


def sockets_on(port: int, table: str) -> set[str]:
    """Return the inodes of sockets bound to `port` in the text of /proc/net/udp."""
    found: set[str] = set()
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 9 and int(columns[1].rpartition(":")[2], 16) == port:
            found.add(columns[9])
    return found


def owners(proc: Path, inodes: set[str]) -> set[str]:
    """Return the names of the processes that hold any of these sockets open."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    names: set[str] = set()
    for process in proc.glob("[0-9]*"):
        try:
            if any(os.readlink(entry) in wanted for entry in (process / "fd").iterdir()):
                names.add((process / "comm").read_text("utf-8", "replace").strip())
        except OSError:
            continue  # gone, or another user's
    return names


def check_daemon(session: Session) -> Iterator[Check]:
    """Return whether the daemon answers, knows this user, and reaches its peers."""
    from colonyd.errors import Denied, RpcError
    from colonyd.rpc import Unreachable

    try:
        url = session.url()
    except Failure as error:
        yield Check("daemon", False, error.message, error.next_step)
        return

    async def version() -> Any:
        async with session.client() as client:
            return await client.call("getserverinfomsg", {}, None, 5.0)

    asked = time.time()
    try:
        info = session.run(version)
    except Failure as error:
        yield Check("daemon", False, error.message, error.next_step)
        return
    yield Check("daemon", True, f"answers at {url}, version {info.get('buildversion')}")
    yield from check_daemon_clock(info.get("time"), asked, time.time())
    try:
        status = session.call("getnodestatusmsg", {})
    except Failure as error:
        yield check_other(session, info) or Check("member", False, error.message, error.next_step)
    else:
        yield Check("member", True, f"colony {status.get('colonyname')} accepts this user's key")
        yield check_store(status.get("etcd") or {})
        yield from check_steps(status.get("clock") or {})
        yield from check_work(status)
        yield check_silent(status.get("silent") or {})
        yield from check_dht(status.get("dht"))
        yield from check_mailboxes(status.get("mailboxes"), status.get("reach"))
        yield from check_reach(status.get("reach"), status.get("routers"))
    try:
        key = session.owner_key()
    except Failure as error:
        yield Check("peers", None, f"not checked: {error.message}", error.next_step)
        return

    async def ping() -> list[tuple[dict[str, Any], dict[str, Any]]] | None:
        async with session.client() as client:
            try:
                rows = await client.call("getpeersmsg", {}, key) or []
            except Denied as error:
                if not error.message.startswith("payloadtype"):
                    raise
                return None
            answers = []
            for row in rows:
                if row.get("state") != "trusted":
                    continue
                try:
                    reply = await client.call("pingpeermsg", {"peer": row["id"]}, key, 20.0)
                except (RpcError, Unreachable) as error:
                    reply = {"ok": False, "error": str(error)}
                answers.append((row, reply))
            return answers

    try:
        answers = session.run(ping)
    except Failure as error:
        yield Check("peers", False, error.message, error.next_step)
        return
    if answers is None:
        yield Check("peers", True, "federation is off (federation.enabled): there are none")
        return
    try:
        yield check_memory(session.call("getclockmsg", {}, key=key))
    except Failure as error:
        yield Check("latest time", None, f"not checked: {error.message}", error.next_step)
    if not answers:
        yield Check("peers", None, "no trusted peers", "`colony peer ls`, `colony peer trust ID`")
    for row, reply in answers:
        name = row.get("name") or row["id"][:12]
        yield check_peer(name, reply)
        if not reply.get("ok"):
            for address, why in (row.get("impossible") or {}).items():
                next_step = "its owner corrects it there, or invites with --address"
                yield Check("peer address", None, f"{name}: {address} {why}", next_step)
        yield from check_peer_clock(name, reply.get("clock"))


def check_dht(told: dict[str, Any] | None) -> Iterator[Check]:
    """Return whether the DHT is reached, where `federation.global` is on."""
    if told is None:
        return
    port, nodes = told.get("port"), told.get("nodes")
    if told.get("problem"):
        next_step = "is libtorrent installed, and federation.dht_port free?"
        yield Check("DHT", False, str(told["problem"]), next_step)
    elif not nodes:
        next_step = f"let UDP port {port} through, or name other nodes (federation.bootstrap)"
        yield Check("DHT", None, f"port {port}: no other node answers", next_step)
    else:
        yield Check("DHT", True, f"port {port}: {nodes} nodes are known")


def check_reach(told: dict[str, Any] | None, routers: dict[str, Any] | None) -> Iterator[Check]:
    """Return whether others can connect to this colony, where `federation.global` is on.

    And what `routers` said to the request to forward the port, if they were asked.
    """
    from cli.peers.peers import moment

    if told is None:
        return
    mapped = int((routers or {}).get("port") or 0)
    if mapped:
        by = (routers or {}).get("by")
        yield Check("router", True, f"forwards its TCP port {mapped} to this machine ({by})")
    elif routers is not None and told.get("verdict") != "reachable":
        said = routers.get("problem") or "no router answers to UPnP or NAT-PMP"
        yield Check("router", None, f"the federation port is not forwarded: {said}")
    by, verdict = ", ".join(map(str, told.get("by") or [])), told.get("verdict")
    since = f"{by} said so at {moment(int(told.get('at') or 0))}"
    if verdict == "reachable":
        yield Check("reach", True, f"others connect to {told.get('address')}; {since}")
    elif verdict == "unreachable":
        next_step = f"have the router forward TCP port {told.get('port')} to this machine"
        if mapped:
            next_step = "is a firewall, or another router, between that router and the internet?"
        detail = f"others can't connect to this colony: {told.get('problem')}; {since}"
        yield Check("reach", None, detail, next_step)
    else:
        detail = "not known: no trusted peer that can be reached outside this network was asked yet"
        next_step = "trust a colony elsewhere that can be reached and has federation.global on"
        yield Check("reach", None, detail, next_step)


def check_mailboxes(told: dict[str, Any] | None, reach: dict[str, Any] | None) -> Iterator[Check]:
    """Return which mailboxes serve this colony, and for whom it holds messages."""
    from cli.ops.status import clients, mailboxes

    if ours := mailboxes(told):
        yield Check("mailboxes", True, f"messages for this colony are left at {ours}")
    elif (reach or {}).get("verdict") == "unreachable":
        next_step = "trust a reachable colony that has federation.global on, and have it trust this"
        yield Check("mailboxes", None, "none: no trusted peer offers to hold messages", next_step)
    if held := clients(told):
        yield Check("mailbox", True, f"messages are held for {held}")


def check_peer(name: str, reply: dict[str, Any]) -> Check:
    """Return whether a trusted peer answers, and processes can be exchanged with it."""
    if not reply.get("ok"):
        next_step = "is its daemon up and its federation port (50081) open?"
        return Check("peer", False, f"{name}: {reply.get('error')}", next_step)
    if mismatch := reply.get("error"):
        return Check("peer", False, f"{name} answers, but {mismatch}", "nothing is sent till then")
    return Check("peer", True, f"{name} answers in {float(reply.get('rtt') or 0) * 1000:.1f} ms")


def check_store(etcd: dict[str, Any]) -> Check:
    """Return whether the store has room, as the daemon reports."""
    quota, used = int(etcd.get("quota") or 0), int(etcd.get("inuse") or 0)
    if why := str(etcd.get("why") or ""):
        return Check("store", False, f"{etcd.get('level')}: {why}", str(etcd.get("next") or ""))
    of = f" of {quota // _MIB} MiB (etcd.quota)" if quota else ""
    return Check("store", True, f"{used // _MIB} MiB in use{of}")


def check_work(status: dict[str, Any]) -> Iterator[Check]:
    """Return whether processes are assigned, and an executor can take each waiting one."""
    from cli.ops.status import vain

    if status.get("paused"):
        name = status.get("colonyname")
        detail = f"assignments are paused in colony {name}: no work is handed out"
        yield Check("paused", None, detail, "`colony resume`, as the colony's owner")
    for each in status.get("stuck") or []:
        yield Check("waiting", None, f"nobody can take {vain(each)}", str(each.get("next") or ""))


def check_daemon_clock(told: float | None, asked: float, heard: float) -> Iterator[Check]:
    """Return whether the daemon's clock (Unix s) showed this host's time when it was asked."""
    from cli.peers.peers import SAME_CLOCK
    from federation.peers.clock import told as words

    if told is None:
        return  # a version that does not report it
    apart = max(asked - told, told - heard)
    if apart > SAME_CLOCK:
        way = "behind" if told < asked else "ahead of"
        yield Check(
            "daemon's clock",
            False,
            f"it is {words(int(apart))} {way} this host's; what is signed here may be refused",
            "which clock is wrong? `date`, here and there",
        )


def check_other(session: Session, info: dict[str, Any]) -> Check | None:
    """Return whether the daemon that refused this user is another one than this home's."""
    from colonyd.keys import IdentityError, read_key
    from node.host.home import Home

    try:
        own = read_key(Home(session.home).key("server")).id
    except (IdentityError, OSError):
        return None
    there = str(info.get("serverid") or "")
    if there in ("", own):
        return None
    return Check(
        "daemon",
        False,
        f"it is not this home's: its server id is {there[:12]}..., this one's {own[:12]}...",
        "--server or --home names another; or start this home's on a port of its own (rpc.port)",
    )


def check_silent(silent: dict[str, Any]) -> Check:
    """Return whether processes run of which their executors may never have heard."""
    count, some = int(silent.get("count") or 0), silent.get("processids") or []
    if not count:
        return Check("running", True, "nothing without a limit whose executor has been silent")
    return Check(
        "running",
        None,
        f"{count} processes without maxexectime run since before the daemon's start, and their"
        f" executors have not spoken of them: {', '.join(str(each)[:12] for each in some)}",
        "are they at work? If not: `colony process cancel ID`, and submit again",
    )


def check_memory(told: dict[str, Any]) -> Check:
    """Return whether the daemon judges messages by a later time than its clock's."""
    from cli.peers.peers import SAME_CLOCK, moment
    from federation.peers.clock import told as words
    from federation.wire.messages import MOST

    behind = int(told.get("behind") or 0)
    if behind <= SAME_CLOCK:
        return Check("latest time", True, "none later than the clock's is remembered")
    effect = (
        "peers get through as long as they trust this colony"
        if behind <= MOST
        else "what peers send counts as expired"
    )
    return Check(
        "latest time",
        None if behind <= MOST else False,
        f"the clock is {words(behind)} behind the latest time remembered, "
        f"{moment(told.get('latest'))}: {effect}",
        "is the clock right (`date`)? If not, set it; if so, `colony peer clock --reset`",
    )


def check_peer_clock(name: str, reading: dict[str, Any] | None) -> Iterator[Check]:
    """Return whether a peer's clock shows what ours does, if it was measured."""
    from cli.peers.peers import SAME_CLOCK, clock

    if not reading:
        return
    apart = abs(int(reading.get("ahead") or 0)) > SAME_CLOCK
    yield Check(
        "peer clock",
        None if apart else True,
        f"{name}: {clock(reading)}",
        "work goes on, though nobody can tell when; which clock is wrong? `date`, here and there",
    )

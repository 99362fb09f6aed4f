"""An internet for tests: a bridge with public addresses, and networks behind routers with NAT.

Each is a namespace, as in `netns`. A router masquerades, and lets nothing in from outside that was
not asked for: what most homes and offices have. With miniupnpd it maps ports, once that is started.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.netns import PATH, House, add_bridge, built, ip, space_tag

_WAN = "11.77.0"  # public addresses, which nobody outside the namespaces hears of
DHT_PORT = 50082
_RULES = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "br0" accept
    jump miniupnpd
  }
  chain miniupnpd { }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    jump postrouting_miniupnpd
    oifname "wan" masquerade
  }
  chain input {
    type filter hook input priority 0; policy accept;
    iifname "wan" ct state new drop
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
"""


def require_miniupnpd() -> None:
    """Skip where miniupnpd is not installed; in CI that is a failure."""
    if shutil.which("miniupnpd", path=PATH):
        return
    reason = "no miniupnpd here: `scripts/setup --test` installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Router:
    """A network 192.168.N.0/24 behind a router; houses in it plug into its bridge `br0`."""

    def __init__(self, place: Path, tag: str, number: int) -> None:
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.space, self.hub, self.number = f"{tag}router{number}", f"{tag}hub", number
        self.address = f"{_WAN}.{100 + number}"
        self.network = f"192.168.{number}"
        self.gateway = f"{self.network}.1"

    def build(self) -> None:
        """Make the namespace, its two networks and its rules."""
        add_bridge(self.space)
        port = f"router{self.number}"
        ip("-n", self.hub, "link", "add", port, "type", "veth", "peer", "wan", "netns", self.space)
        ip("-n", self.hub, "link", "set", port, "master", "br0", "up")
        ip("-n", self.space, "address", "add", f"{self.address}/24", "dev", "wan")
        ip("-n", self.space, "link", "set", "wan", "up")
        ip("-n", self.space, "address", "add", f"{self.gateway}/24", "dev", "br0")
        self.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.run("nft", "-f", "-", text=_RULES)

    def run(self, *words: str, text: str = "") -> str:
        """Run a command in the router, with `text` as its input; its standard output."""
        command = ["ip", "netns", "exec", self.space, *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start(self) -> None:
        """Start miniupnpd."""
        settings = self.place / f"{self.space}.conf"
        settings.write_text(
            "ext_ifname=wan\nlistening_ip=br0\nhttp_port=5555\nenable_natpmp=yes\n"
            "enable_upnp=yes\nsecure_mode=yes\nuuid=11111111-2222-3333-4444-555555555555\n"
            "allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        )
        pid = str(self.place / f"{self.space}.pid")
        words = ("-d", "-f", str(settings), "-P", pid)
        with (self.place / f"{self.space}.log").open("ab") as told:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, "miniupnpd", *words],
                stdout=told,
                stderr=told,
                env={"PATH": PATH},
            )

    def stop(self) -> None:
        """End miniupnpd, with all mappings, as when the router is switched off."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait(20)
            self.process = None
        for chain in ("miniupnpd", "prerouting_miniupnpd", "postrouting_miniupnpd"):
            self.run("nft", "flush", "chain", "inet", "filter", chain)

    def freeze(self) -> None:
        """Let miniupnpd answer nothing any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def mapped(self) -> set[tuple[str, int, str]]:
        """What is forwarded: "tcp" or "udp", port, "host:port" inside."""
        words = ("nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
        found = re.findall(r"(0x6|0x11|tcp|udp) (?:th )?dport (\d+) dnat ip to (\S+)",
                           self.run(*words))  # fmt: skip
        names = {"0x6": "tcp", "0x11": "udp"}
        return {(names.get(kind, kind), int(port), to) for kind, port, to in found}

    def refuse(self, port: int) -> None:
        """Let nothing through to a port, whatever is mapped."""
        rule = f"iifname wan tcp dport {port} drop"
        self.run("nft", "insert", "rule", "inet", "filter", "forward", *rule.split())


class Host(House):
    """A colony with a public address, or behind a router; it knows no other's address.

    `bootstrap` are nodes of the DHT.
    """

    def __init__(self, place: Path, name: str, tag: str, number: int, bootstrap: str) -> None:
        super().__init__(place, name, tag, number, 0)
        self.network = _WAN
        self.environ |= {
            "COLONYD_FEDERATION__DISCOVERY": "false",
            "COLONYD_FEDERATION__GLOBAL": "true",
            "COLONYD_FEDERATION__BOOTSTRAP": bootstrap,
            "COLONYD_FEDERATION__DHT_PORT": str(DHT_PORT),
        }

    def behind(self, router: Router) -> None:
        """Belong to a router's network, from `connect` on."""
        self.hub, self.network, self.gateway = router.space, router.network, router.gateway

    def plug(self) -> None:
        """Put the cable in again."""
        super().plug()
        self.ip("route", "replace", "default", "via", self.gateway)

    def move(self, router: Router) -> None:  # type: ignore[override]
        """Be carried to another router's network, while the daemon runs."""
        self.ip("link", "del", "eth0")
        self.behind(router)
        self.connect()


@contextmanager
def internet(
    place: Path, public: list[str], private: dict[str, int], routers: int
) -> Iterator[tuple[dict[str, Host], list[Router]]]:
    """Hosts by name, the `public` ones and those behind the router of a number; and the routers.

    The first two public ones, or the only one, are the bootstrap nodes of the DHT. All is gone
    after the block.
    """
    tag = space_tag()
    bootstrap = ",".join(f"{_WAN}.{number}:{DHT_PORT}" for number in (1, 2)[: len(public)])
    ways = [Router(place, tag, number) for number in range(1, routers + 1)]
    hosts = {
        name: Host(place, name, tag, number, bootstrap)
        for number, name in enumerate([*public, *private], 1)
    }
    with built(tag, list(hosts.values())):
        add_bridge(f"{tag}hub")
        for way in ways:
            way.build()
        for name, host in hosts.items():
            if name in private:
                host.behind(ways[private[name] - 1])
            host.build()
        try:
            yield hosts, ways
        finally:
            for way in ways:
                way.stop()

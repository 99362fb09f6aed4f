"""A cluster of etcd members, each of which may be stopped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdError
from tests.support.daemons import free_port, until


class Member:
    """One etcd of a cluster, to be killed by the test."""

    def __init__(self, place: Path, name: str) -> None:
        self.place, self.name = place / name, name
        self.client, self.peer = free_port(), free_port()
        self.endpoint = f"127.0.0.1:{self.client}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str, *more: str, scheme: str = "http") -> None:
        url, peer = f"{scheme}://{self.endpoint}", f"http://127.0.0.1:{self.peer}"
        self.process = subprocess.Popen(
            [
                "etcd", f"--name={self.name}", f"--data-dir={self.place}",
                f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={cluster}", "--logger=zap", "--log-level=error",
                "--heartbeat-interval=200", "--election-timeout=2000", *more,
            ],
            env={"PATH": os.environ["PATH"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)


@contextmanager
def members(place: Path, count: int, *more: str, scheme: str = "http") -> Iterator[list[Member]]:
    made = [Member(place, f"m{number}") for number in range(count)]
    cluster = ",".join(f"{m.name}=http://127.0.0.1:{m.peer}" for m in made)
    try:
        for member in made:
            member.start(cluster, *more, scheme=scheme)
        yield made
    finally:
        for member in made:
            member.stop()


async def serving(client: EtcdClient) -> None:
    async def asked() -> bool:
        try:
            await client.get("x")
        except EtcdError:
            return False
        return True

    await until(90, asked)

"""The etcd cluster of the configuration: how it is reached, and whether it lets us in.

Connections are in `node.etcd`.
"""

from __future__ import annotations

from pathlib import Path

from node.etcd.client import EtcdClient
from node.etcd.errors import EtcdDenied, EtcdError, StoreRefused
from node.etcd.transport.dial import Access, tls_context
from node.host.config import ConfigError, EtcdConfig
from node.store import keys


def access_of(config: EtcdConfig, home: Path) -> Access:
    """Return the address and credentials of the cluster.

    Raises ConfigError for unusable certificates.
    """
    tls = None
    if config.secure:
        paths = [home / name if name else None for name in (config.ca, config.cert, config.key)]
        try:
            tls = tls_context(*paths)
        except OSError as error:
            names = ", ".join(str(path) for path in paths if path)
            raise ConfigError(f"etcd.ca, etcd.cert, etcd.key: {names}: {error}") from None
    return Access(tuple(config.endpoints), tls, config.user, config.password)


async def require(client: EtcdClient, config: EtcdConfig) -> None:
    """Return once the cluster answers. Raises ConfigError when it does not let us in.

    Raises StoreRefused when none of its members answers.
    """
    try:
        await client.get(keys.SERVER)
    except EtcdDenied as error:
        raise ConfigError(f"etcd.user, etcd.password: {error}") from None
    except EtcdError as error:
        where = ", ".join(config.endpoints)
        raise StoreRefused(f"no etcd serves at {where} ([etcd] endpoints): {error}") from None

"""Configuration: defaults, layers and their order, and errors that name what is wrong and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from node.host.config import ByteSize, Config, ConfigError, PeerConfig, load_config
from node.host.configfiles import config_files

ID = "ab" * 32


def load(
    home: Path,
    text: str = "",
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    if text:
        (home / "config.toml").write_text(text, encoding="utf-8")
    return load_config(home, flags or {}, environ=environ or {})


def test_defaults_without_a_file(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.node.home == str(tmp_path)
    assert (config.rpc.host, config.rpc.port, config.rpc.replay) == ("*", 50080, "lenient")
    assert config.rpc.max_body == 16 * 1024**2
    assert (config.etcd.endpoints, config.etcd.quota) == ([], 2 * 1024**3)
    assert (config.federation.enabled, config.federation.port) == (True, 50081)
    assert (config.federation.trust, config.federation.interfaces) == ("manual", [])
    assert (config.peers, config.log.level) == ([], "info")


def test_the_home_of_a_service_has_a_file_below_etc() -> None:
    def names(home: str) -> list[str]:
        return [str(path) for path in config_files(Path(home))]

    service = ["/etc/colonyd/config.toml", "/var/lib/colonyd/config.toml"]
    assert names("/var/lib/colonyd") == service
    assert names("/var/lib/colonyd/lab") == [
        "/etc/colonyd/lab/config.toml",
        "/var/lib/colonyd/lab/config.toml",
    ]
    assert names("/srv/colonyd") == ["/srv/colonyd/config.toml"]
    assert names("/var/lib") == ["/var/lib/config.toml"]
    assert names("x") == [str(Path.cwd() / "x/config.toml")]


def test_files_are_laid_over_each_other_and_each_setting_knows_its_own(tmp_path: Path) -> None:
    below, above = tmp_path / "below.toml", tmp_path / "above.toml"
    below.write_text(
        "[rpc]\nport = 1\nmax_body = 5\n[federation.policy]\nrate = 7\nmax_running = 8\n"
        '[[peers]]\nurl = "a:1"\n[[peers]]\nurl = "b:1"\n'
    )
    above.write_text('[rpc]\nport = 2\n[federation.policy]\nrate = 9\n[[peers]]\nurl = "c:1"\n')
    origins: dict[str, str] = {}
    environ = {"COLONYD_LOG__LEVEL": "debug"}
    files = [below, tmp_path / "none.toml", above]
    config = load_config(tmp_path, {}, environ=environ, files=files, origins=origins)
    assert (config.rpc.port, config.rpc.max_body) == (2, 5)
    policy = config.federation.policy
    assert (policy.rate, policy.max_running) == (9, 8)
    assert [peer.url for peer in config.peers] == ["c:1"]
    assert origins == {
        "rpc.port": f"in {above}",
        "rpc.max_body": f"in {below}",
        "federation.policy.rate": f"in {above}",
        "federation.policy.max_running": f"in {below}",
        "peers": f"in {above}",
        "log.level": "$COLONYD_LOG__LEVEL",
    }
    below.write_text("[rpc]\nmax_body = -1\n[federation.policy]\nrate = -1\n")
    with pytest.raises(ConfigError, match=r"rpc.max_body: .*below.toml"):
        load_config(tmp_path, {}, environ={}, files=[below, above])
    below.write_text("[federation.policy]\nmax_running = -1\n")
    with pytest.raises(ConfigError, match=r"federation.policy.max_running: .*below.toml"):
        load_config(tmp_path, {}, environ={}, files=[below, above])
    below.write_text("[rpc]\nprot = 1\n")
    with pytest.raises(ConfigError, match=r"rpc.prot: .*did you mean 'port'.*below.toml"):
        load_config(tmp_path, {}, environ={}, files=[below, above])


def test_a_whole_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"""
        [node]
        name = "berg"
        home = "/srv/colony"
        [rpc]
        port = 1
        replay = "strict"
        max_body = 1000
        [etcd]
        endpoints = ["a:2379", "b:2379"]
        quota = "500 MB"
        [federation]
        enabled = false
        trust = "lan"
        [[peers]]
        url = "far:50081"
        id = "{ID}"
        [[peers]]
        url = "near:50081"
        [log]
        level = "debug"
        """,
    )
    assert (config.node.name, config.node.home) == ("berg", "/srv/colony")
    assert (config.rpc.port, config.rpc.replay, config.rpc.max_body) == (1, "strict", 1000)
    assert (config.etcd.endpoints, config.etcd.quota) == (["a:2379", "b:2379"], 500_000_000)
    assert (config.federation.enabled, config.federation.trust) == (False, "lan")
    assert config.peers == [
        PeerConfig(url="far:50081", id=ID),
        PeerConfig(url="near:50081", id=""),
    ]
    assert config.log.level == "debug"


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    text = "[rpc]\nport = 1\nhost = 'file'\nreplay = 'strict'\n"
    environ = {"COLONYD_RPC__PORT": "2", "COLONYD_RPC__HOST": "env"}
    rpc = load(tmp_path, text, flags={"rpc.port": 3, "rpc.host": None}, environ=environ).rpc
    assert (rpc.port, rpc.host, rpc.replay, rpc.max_body) == (3, "env", "strict", 16 * 1024**2)


def test_the_environments_text_takes_the_fields_type(tmp_path: Path) -> None:
    environ = {
        "COLONYD_FEDERATION__ENABLED": "false",
        "COLONYD_FEDERATION__INTERFACES": "127.0.0.1, eth0",
        "COLONYD_ETCD__QUOTA": "1GiB",
        "COLONYD_RPC__MAX_BODY": "4096",
        "COLONYD_NODE__NAME": "123",
        "COLONYD_HOME": "/not/a/setting",
        "OTHER_RPC__PORT": "9",
    }
    config = load(tmp_path, environ=environ)
    assert (config.federation.enabled, config.federation.interfaces) == (
        False,
        ["127.0.0.1", "eth0"],
    )
    assert (config.etcd.quota, config.rpc.max_body) == (1024**3, 4096)
    assert (config.node.name, config.rpc.port) == ("123", 50080)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[rpc]\nprot = 1", ["rpc.prot: unknown setting", "did you mean 'port'?", "config.toml"]),
        ("[rcp]\nport = 1", ["rcp: unknown setting", "did you mean 'rpc'?"]),
        ("[log]\nzzz = 1", ["log.zzz", "known: level"]),
        ("[[peers]]\nurl = 'x'\nidd = 'y'", ["peers[0].idd", "did you mean 'id'?"]),
        ("[rpc]\nport = 70000", ["rpc.port: ", "65535", "config.toml"]),
        ("[rpc]\nport = '1'", ["rpc.port: expected `int`, got `str`"]),
        ("[rpc]\nhost = ''", ["rpc.host: "]),
        ("[rpc]\nreplay = 'loose'", ["rpc.replay: ", "loose"]),
        ("[rpc]\nmax_body = '2 parsecs'", ["rpc.max_body: ", "2 parsecs", "2MiB"]),
        ("[rpc]\nmax_body = -1", ["rpc.max_body: "]),
        ("[rpc]\nmax_body = true", ["rpc.max_body: "]),
        ("[[peers]]\nid = ''", ["peers[0]: ", "url"]),
        ("[[peers]]\nurl = 'x'\nid = 'ABC'", ["peers[0].id: "]),
        ("rpc = 1", ["rpc: "]),
        ("node = 1", ["node: "]),
        ("[rpc\nport = 1", ["not valid TOML", "line 1"]),
    ],
)
def test_errors_in_the_file_name_the_setting(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environ", "parts"),
    [
        ({}, {"COLONYD_RPC__PROT": "1"}, ["rpc.prot", "'port'", "$COLONYD_RPC__PROT"]),
        ({}, {"COLONYD_RCP__PORT": "1"}, ["rcp", "'rpc'", "$COLONYD_RCP__PORT"]),
        ({}, {"COLONYD_RPC__PORT": "x"}, ["rpc.port: expected a number", "$COLONYD_RPC__PORT"]),
        ({}, {"COLONYD_RPC__PORT": "70000"}, ["rpc.port: ", "$COLONYD_RPC__PORT"]),
        ({}, {"COLONYD_FEDERATION__ENABLED": "maybe"}, ["federation.enabled: expected true"]),
        ({}, {"COLONYD_ETCD__QUOTA": "much"}, ["etcd.quota: ", "$COLONYD_ETCD__QUOTA"]),
        ({}, {"COLONYD_PEERS__URL": "x"}, ["peers: can only", "$COLONYD_PEERS__URL"]),
        ({"rpc.port": -1}, {}, ["rpc.port: ", "flag rpc.port"]),
        ({"rpc.prot": 1}, {}, ["rpc.prot", "flag rpc.prot"]),
    ],
)
def test_errors_elsewhere_name_their_origin(
    tmp_path: Path, flags: dict[str, object], environ: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, flags=flags, environ=environ)
    for part in parts:
        assert part in str(caught.value)


def test_an_unreadable_file_is_an_error_and_not_a_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml"):
        load(tmp_path)
    (tmp_path / "config.toml").rmdir()
    (tmp_path / "config.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("7", 7), ("7B", 7), ("2kB", 2000), ("2 KiB", 2048), ("1gib", 1024**3), (5, 5)],
)
def test_sizes(text: object, size: int) -> None:
    assert ByteSize.parse(text) == size

"""RPC over TLS: the same calls, with the daemon's own certificate or one that was given."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pycolonies
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cli.main import main
from colonyd.keys import PrivateKey
from node.host.certificate import fingerprint_of, make_certificate
from node.host.config import ConfigError, load_config
from tests.support.daemons import Daemon

pytestmark = pytest.mark.slow
SECURE = {"COLONYD_FEDERATION__ENABLED": "false", "COLONYD_RPC__TLS": "true"}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("secure") / "dev", "dev", SECURE).start()
    yield daemon
    assert daemon.stop() == 0


def colony(daemon: Daemon, *args: str, code: int = 0, **environ: str) -> Result:
    command = ["--home", str(daemon.home), "--server", f"https://127.0.0.1:{daemon.port}", *args]
    result = CliRunner().invoke(main, command, env=environ, catch_exceptions=False)
    assert result.exit_code == code, f"{args}: {result.output}"
    return result


def fingerprint(home: Path) -> str:
    certificate = x509.load_pem_x509_certificate((home / "tls.crt").read_bytes())
    return fingerprint_of(certificate.public_bytes(Encoding.DER))


def test_the_command_line(secure: Daemon, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("bytes")
    assert json.loads(colony(secure, "status", "--json").stdout)["colonyname"] == "dev"
    colony(secure, "file", "put", str(tmp_path / "f.txt"), "--label", "/a")
    colony(secure, "file", "get", "/a/f.txt", "--to", str(tmp_path / "g.txt"))
    assert (tmp_path / "g.txt").read_text() == "bytes"
    # As the SDKs' variables say it.
    command = ["--home", str(secure.home), "status"]
    environ = {
        "COLONIES_SERVER_HOST": "127.0.0.1",
        "COLONIES_SERVER_PORT": str(secure.port),
        "COLONIES_SERVER_TLS": "true",
    }
    assert CliRunner().invoke(main, command, env=environ).exit_code == 0
    doctor = CliRunner().invoke(main, [*command[:2], "--json", "doctor"], env=environ)
    assert f"answers at https://127.0.0.1:{secure.port}" in doctor.output


def test_a_pin_decides_alone(secure: Daemon) -> None:
    pin = fingerprint(secure.home)
    colony(secure, "status", COLONIES_SERVER_PIN=pin)
    assert (
        "not the one pinned"
        in colony(secure, "status", code=4, COLONIES_SERVER_PIN="0" * 64).stderr
    )
    colony(secure, "status", code=2, COLONIES_SERVER_PIN="12")


def test_another_certificate_is_not_trusted(secure: Daemon, tmp_path: Path) -> None:
    """A home beside: its certificate is not the one that is shown, and nothing is sent."""
    command = ["--home", str(tmp_path), "--server", f"https://127.0.0.1:{secure.port}", "status"]
    environ = {"COLONIES_PRVKEY": "11" * 32, "COLONIES_COLONY_NAME": "dev"}
    make_certificate(tmp_path)
    result = CliRunner().invoke(main, command, env=environ)
    assert result.exit_code == 69
    assert "certificate" in result.stderr
    # Nor does one without any certificate of its own trust it.
    (tmp_path / "tls.crt").unlink()
    assert CliRunner().invoke(main, command, env=environ).exit_code == 69


def test_pycolonies(secure: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It checks authority and name: the certificate names this machine, and is its own."""
    bundle = str(secure.home / "tls.crt")
    client = pycolonies.Colonies("localhost", secure.port, tls=True)
    key = secure.key("user").hex
    spec = pycolonies.func_spec("f", [1], "dev", "cli", maxexectime=10)
    with pytest.raises(Exception, match=r"(?i)certificate|connection"):
        client.submit_func_spec(spec, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", bundle)
    process = client.submit_func_spec(spec, key)
    worker, owner = PrivateKey.generate(), secure.key("colony").hex
    executor = {"executorname": "w", "executorid": worker.id, "executortype": "cli"}
    client.add_executor(executor | {"colonyname": "dev"}, owner)
    client.approve_executor("dev", "w", owner)
    given = client.assign("dev", 5, worker.hex)
    client.close(given.processid, ["out"], worker.hex)
    # Over a WebSocket.
    assert client.wait(process, 5, key).output == ["out"]


def test_pages_of_other_origins(secure: Daemon) -> None:
    context = ssl.create_default_context(cafile=str(secure.home / "tls.crt"))
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    url = f"https://127.0.0.1:{secure.port}/api"
    answer = httpx.options(url, headers=headers, verify=context)
    assert answer.headers["access-control-allow-origin"] == "*"
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{secure.port}/health", timeout=5)


def test_a_given_certificate(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    certificate, key, _ = make_certificate(tmp_path)
    environ: dict[str, Any] = SECURE | {
        "COLONYD_RPC__CERTIFICATE": str(certificate),
        "COLONYD_RPC__KEY": str(key),
    }
    daemon = make_daemon("dev", **environ).start()
    served = ssl.get_server_certificate(("127.0.0.1", daemon.port))
    assert served.strip() == certificate.read_text().strip()
    colony(daemon, "status", **environ)
    assert daemon.stop() == 0
    # What can't be served is said at once, and a restart would not mend it.
    key.write_text("no key")
    with pytest.raises(AssertionError, match=r"rpc\.certificate: "):
        daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(10) in (78, -9)


def test_settings(tmp_path: Path) -> None:
    for text, says in (
        ('[rpc]\ntls = true\ncertificate = "a"\n', "certificate and key belong together"),
        ('[rpc]\ncertificate = "a"\nkey = "b"\n', "only used with tls = true"),
    ):
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_config(tmp_path, {}, environ={})

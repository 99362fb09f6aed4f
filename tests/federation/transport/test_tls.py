"""The TLS hop: one certificate for good, and a peer's pinned before a byte is sent.

Real handshakes on loopback sockets.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509

from federation.transport.tls import (
    TlsError,
    fetch_certificate,
    fingerprint_of,
    make_certificate,
    pinned_context,
    server_context,
    trusting,
)


async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Serve one connection: send back what comes, until the other side is gone."""
    try:
        while data := await stream.receive_some(1024):
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # a refused handshake, which is what some tests are about


async def serve(nursery: trio.Nursery, directory: Path) -> int:
    """Start a TLS server with the certificate in `directory`; returns its port."""
    certificate, key, _ = make_certificate(directory)
    context = server_context(certificate, key)
    listeners: list[trio.SSLListener[trio.SocketStream]] = await nursery.start(
        trio.serve_ssl_over_tcp, echo, 0, context
    )
    transport = listeners[0].transport_listener
    assert isinstance(transport, trio.SocketListener)
    port: int = transport.socket.getsockname()[1]
    return port


async def exchange(port: int, context: ssl.SSLContext) -> bytes:
    stream = await trio.open_ssl_over_tcp_stream(
        "localhost", port, ssl_context=context, https_compatible=True
    )
    async with stream:
        await stream.send_all(b"hello")
        return bytes(await stream.receive_some(5))


def test_certificate_is_made_once(tmp_path: Path) -> None:
    """Its fingerprint is in the hands of peers, so it stays; the files are private."""
    first = make_certificate(tmp_path)
    assert make_certificate(tmp_path) == first
    for path in first[:2]:
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tls.crt", "tls.key"]


def test_certificate_has_no_dates_to_trip_over(tmp_path: Path) -> None:
    """It is valid for a host whose clock stands at the epoch, and never ends."""
    path, _, fingerprint = make_certificate(tmp_path)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert certificate.not_valid_before_utc.timestamp() == 0
    assert certificate.not_valid_after_utc.year == 9999
    assert fingerprint == fingerprint_of(ssl.PEM_cert_to_DER_cert(path.read_text()))


def test_crash_between_the_files(tmp_path: Path) -> None:
    """A key whose certificate was not written yet is replaced together with it."""
    certificate, key, _ = make_certificate(tmp_path)
    certificate.unlink()
    (tmp_path / ".tls.crt.new").write_text("half")
    make_certificate(tmp_path)
    server_context(certificate, key)


def test_unusable_files(tmp_path: Path) -> None:
    """A damaged or foreign file is named in the error."""
    certificate, _, _ = make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, foreign, _ = make_certificate(tmp_path / "other")
    with pytest.raises(TlsError, match="not usable together"):
        server_context(certificate, foreign)
    certificate.write_text("damaged")
    with pytest.raises(TlsError, match=r"tls\.crt"):
        make_certificate(tmp_path)
    with pytest.raises(TlsError, match="not a certificate"):
        trusting(b"damaged")


async def test_pinned(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The certificate is fetched by a handshake alone, pinned, and then trusted."""
    port = await serve(nursery, tmp_path)
    fingerprint = make_certificate(tmp_path)[2]
    assert fingerprint_of(await fetch_certificate("localhost", port)) == fingerprint
    context = await pinned_context("localhost", port, fingerprint)
    assert await exchange(port, context) == b"hello"


async def test_another_certificate_than_promised(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The wrong fingerprint ends it before anything is sent; the error tells both."""
    port = await serve(nursery, tmp_path)
    with pytest.raises(TlsError, match="the card says") as caught:
        await pinned_context("localhost", port, "00" * 32)
    assert make_certificate(tmp_path)[2] in str(caught.value)


async def test_server_changes_after_pinning(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A context that trusts one certificate refuses another in the handshake."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    certificate, _, _ = make_certificate(tmp_path / "one")
    context = trusting(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    port = await serve(nursery, tmp_path / "two")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await exchange(port, context)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_old_tls_is_refused(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Nothing below TLS 1.3 is spoken."""
    port = await serve(nursery, tmp_path)
    context = await pinned_context("localhost", port, make_certificate(tmp_path)[2])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(trio.BrokenResourceError):
        await exchange(port, context)


async def unanswered(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def plain(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def hung_up(stream: trio.SocketStream) -> None:
    """Return, which closes the connection."""


@pytest.mark.parametrize(
    ("handler", "reason"), [(unanswered, "within"), (plain, "WRONG_VERSION_NUMBER"), (hung_up, "")]
)
async def test_not_a_tls_server(
    nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]], reason: str
) -> None:
    """Silence, plain text and a closed door are told as what they are, within the deadline."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    nursery.start_soon(partial(trio.serve_listeners, handler, listeners))
    with pytest.raises(TlsError, match=f"127.0.0.1:{port}.*{reason}"):
        await fetch_certificate("127.0.0.1", port, timeout=0.3 if handler is unanswered else 20)


async def test_nobody_there() -> None:
    """A closed port is an error of ours, with the address and the system's reason in it."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(TlsError, match=f"^127.0.0.1:{port}: connection refused$"):
        await fetch_certificate("127.0.0.1", port)

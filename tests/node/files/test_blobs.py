"""Bytes of files at a daemon: whole or not there, for those with a ticket, within the quota.

Files as members see them are in `node.files.test_catalog`, the commands in `cli.test_files`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from colonyd.errors import RpcError as Refusal
from colonyd.rpc import RpcError, decode
from node.files.blobs import IDLE, BlobStore
from node.files.tickets import Scope, Tickets
from node.model.types import SECOND
from tests.support.daemons import Daemon
from tests.support.files import Files, another_colony, files_of

Make = Callable[..., Daemon]
MIB = 1 << 20
NOW = 1_700_000_000 * SECOND


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept(daemon: Daemon, data: bytes) -> Path:
    """Where complete bytes lie."""
    return daemon.home / "files" / sha(data)[:2] / sha(data)


async def test_an_upload_in_parts_and_a_download(lone_daemon: Daemon) -> None:
    data = os.urandom(2 * MIB + 5)
    async with files_of(lone_daemon) as files:
        ticket = await files.ticket("PUT", data)
        assert (ticket["offset"], ticket["complete"]) == (0, False)
        with pytest.raises(RpcError, match="upload the bytes first") as refused:
            await files.add_here("/b", "a", data)
        assert refused.value.status == 409
        assert (await files.part(ticket, data, 0, MIB)).json() == {
            "offset": MIB,
            "complete": False,
        }
        assert not kept(lone_daemon, data).exists()
        # Lost the reply, or another process uploads the same: where to go on is told.
        again = await files.part(ticket, data, 0, MIB)
        assert (again.status_code, again.headers["upload-offset"]) == (409, str(MIB))
        head = await files.http.head(files.client.url + ticket["url"])
        assert head.headers["upload-offset"] == str(MIB)
        assert (await files.ticket("PUT", data))["offset"] == MIB
        answer = await files.part(ticket, data, MIB, len(data) - 1)
        assert not answer.json()["complete"]
        assert (await files.part(ticket, data, len(data) - 1, len(data))).json()["complete"]
        assert stat.S_IMODE(kept(lone_daemon, data).stat().st_mode) == 0o600
        added = await files.add_here("/b", "a", data)
        place = added["ref"]["s3object"]
        assert (added["ref"]["protocol"], place["object"]) == ("colonyd", sha(data))
        assert place["port"] == lone_daemon.port
        got = await files.bytes_of(data)
        assert got.content == data
        assert got.headers["x-content-type-options"] == "nosniff"
        done = await files.ticket("PUT", data)
        assert (done["offset"], done["complete"]) == (len(data), True)


@pytest.mark.parametrize("size", [0, 1, MIB])
async def test_small_files_in_one_request(lone_daemon: Daemon, size: int) -> None:
    data = os.urandom(size)
    async with files_of(lone_daemon) as files:
        ticket = await files.ticket("PUT", data)
        if not ticket["complete"]:
            answer = await files.http.put(files.client.url + ticket["url"], content=data)
            assert answer.json() == {"offset": size, "complete": True}
        await files.add_here("/b", f"n{size}", data)
        assert (await files.bytes_of(data)).content == data


@pytest.mark.parametrize(
    ("wanted", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-", (10, 2 * MIB)),
        ("bytes=-7", (2 * MIB - 7, 2 * MIB)),
        ("bytes=5-99999999", (5, 2 * MIB)),
        (f"bytes={2 * MIB}-", None),
        ("bytes=9-5", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
    ],
)
async def test_ranges(lone_daemon: Daemon, wanted: str, span: tuple[int, int] | None) -> None:
    data = bytes(range(256)) * (2 * MIB // 256)
    async with files_of(lone_daemon) as files:
        await files.put("/b", "ranges", data)
        answer = await files.bytes_of(data, range=wanted)
        if span is None:
            assert (answer.status_code, answer.content) == (416, b"")
            assert answer.headers["content-range"] == f"bytes */{len(data)}"
            return
        first, end = span
        assert answer.status_code == 206
        assert answer.content == data[first:end]
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(data)}"


async def test_other_bytes_than_promised_are_dropped(lone_daemon: Daemon) -> None:
    data = os.urandom(1000)
    async with files_of(lone_daemon) as files:
        ticket = await files.ticket("PUT", data)
        url = files.client.url + ticket["url"]
        answer = await files.http.put(url, content=bytes(1000))
        assert answer.status_code == 400
        assert not kept(lone_daemon, data).exists()
        assert (await files.ticket("PUT", data))["offset"] == 0
        with pytest.raises(RpcError, match="upload the bytes first"):
            await files.add_here("/b", "a", data)
        for headers, body in (
            ({"content-range": "bytes 0-999/1001"}, data),
            ({"content-range": "bytes 0-1000/1000"}, data + b"x"),
            ({"content-range": "bytes 0-9/1000"}, data),
            ({"content-range": "bytes 9-0/1000"}, b""),
            ({"content-range": "0-999"}, data),
            ({}, data + b"x"),
        ):
            answer = await files.http.put(url, content=body, headers=headers)
            assert answer.status_code == 400, headers
        assert (await files.http.put(url, content=data)).status_code == 200


async def test_hostile_tickets(lone_daemon: Daemon) -> None:
    data, other = os.urandom(100), os.urandom(100)
    secret = bytes.fromhex(lone_daemon.key("server").hex)
    late = Tickets(secret, lambda: time.time_ns() - 3600 * SECOND)
    stranger = Tickets(os.urandom(32), time.time_ns)
    async with files_of(lone_daemon) as files:
        await files.put("/b", "hostile", data)
        read = (await files.ticket("GET", data))["url"]
        write = (await files.ticket("PUT", other))["url"]
        base = files.client.url
        expired, _ = late.issue("GET", "dev", sha(data), len(data))
        foreign, _ = stranger.issue("GET", "dev", sha(data), len(data))
        good, _ = Tickets(secret, time.time_ns).issue("GET", "dev", sha(data), len(data))
        cases = [
            ("PUT", read, b"x"),
            ("GET", write, b""),
            ("GET", read.replace(sha(data), sha(other)), b""),
            ("PUT", write.replace(sha(other), sha(data)), other),
            ("PUT", write.replace("colony=dev", "colony=another"), other),
            ("PUT", write.replace("size=100", "size=1000"), other),
            ("GET", read.replace("method=GET", "method=PUT"), b""),
            ("PUT", read.replace("method=GET", "method=PUT"), data),
            ("GET", f"/files/{sha(data)}?{expired}", b""),
            ("GET", f"/files/{sha(data)}?{foreign}", b""),
            ("GET", f"/files/{sha(data)}", b""),
            ("GET", read + "&expires=99999999999", b""),
            ("GET", read.split("&signature")[0], b""),
            ("DELETE", read, b""),
        ]
        for method, path, body in cases:
            answer = await files.http.request(method, base + path, content=body)
            assert answer.status_code == 403, (method, path, answer.text)
            with pytest.raises(RpcError, match=r"^ticket: "):
                decode("GET", answer.status_code, answer.content)
        answer = await files.http.get(f"{base}/files/{sha(data)}?{good}")
        assert answer.content == data
        assert not kept(lone_daemon, other).exists()


@pytest.mark.parametrize(
    "path",
    [
        "/files/../keys/server.key",
        "/files/..%2fkeys%2fserver.key",
        "/files/%2e%2e/%2e%2e/etc/passwd",
        "/files//etc/passwd",
        "/files/",
        "/files/partial",
        "/files/" + "A" * 64,
        "/files/" + "a" * 64 + "%0a",
    ],
)
async def test_no_path_leads_out(lone_daemon: Daemon, path: str) -> None:
    async with files_of(lone_daemon) as files:
        ticket = (await files.ticket("PUT", b"x"))["url"].partition("?")[2]
        request = f"GET {path}?{ticket} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        stream = await trio.open_tcp_stream("127.0.0.1", lone_daemon.port)
        async with stream:
            await stream.send_all(request.encode())
            answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 404 ")


async def test_bytes_of_another_colony_can_be_neither_read_nor_claimed(
    lone_daemon: Daemon,
) -> None:
    data = os.urandom(500)
    async with files_of(lone_daemon) as mine:
        await mine.put("/b", "secret", data)
        theirs = await another_colony(lone_daemon, mine)
        with pytest.raises(RpcError, match="no bytes of this colony") as refused:
            await theirs.ticket("GET", data)
        assert refused.value.status == 404
        with pytest.raises(RpcError, match="upload the bytes first"):
            await theirs.add_here("/b", "claimed", data)
        # Nothing tells that the daemon has them: they must be sent to be had.
        ticket = await theirs.ticket("PUT", data)
        assert (ticket["offset"], ticket["complete"]) == (0, False)
        await theirs.put("/b", "own", data)
        assert (await theirs.bytes_of(data)).content == data
        theirs.colony = mine.colony
        with pytest.raises(RpcError) as refused:
            await theirs.ticket("GET", data)
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "POST"}, "method: "),
        ({"checksum": "../../etc/passwd"}, "checksum: "),
        ({"checksum": "A" * 64}, "checksum: "),
        ({"size": -1}, "size: "),
        ({"size": 1 << 63}, "at `size`"),
    ],
)
async def test_tickets_that_make_no_sense(
    lone_daemon: Daemon, fields: dict[str, object], message: str
) -> None:
    async with files_of(lone_daemon) as files:
        with pytest.raises(RpcError, match=message) as refused:
            await files.call("fileticketmsg", **{"method": "PUT", "checksum": sha(b"x"), **fields})
        assert refused.value.status == 400


@pytest.mark.slow
async def test_a_kill_in_the_middle_of_an_upload(make_daemon: Make) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    data = os.urandom(3 * MIB)
    async with files_of(daemon) as files:
        ticket = await files.ticket("PUT", data)
        await files.part(ticket, data, 0, MIB)
        head = (
            f"PUT {ticket['url']} HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n"
            f"content-range: bytes {MIB}-{2 * MIB - 1}/{3 * MIB}\r\n\r\n"
        )
        async with await trio.open_tcp_stream("127.0.0.1", daemon.port) as stream:
            # Half a part is on its way when the daemon dies.
            await stream.send_all(head.encode() + data[MIB : MIB + 1000])
            daemon.kill()
        assert not kept(daemon, data).exists()
    daemon.start()
    async with files_of(daemon) as files:
        assert (await files.ticket("PUT", data))["offset"] == MIB
        added = await files.put("/b", "a", data)
        assert added["sequencenr"] == 1
        assert (await files.bytes_of(data)).content == data
        assert list((daemon.home / "files/partial").iterdir()) == []
        # A version that was acknowledged outlives a kill, with its bytes.
        daemon.kill()
    daemon.start()
    async with files_of(daemon) as files:
        assert await files.call("getfilemsg", label="/b", name="a") == [added]
        assert (await files.bytes_of(data)).content == data


async def patient_put(files: Files, label: str, name: str, data: bytes) -> Any:
    """Put, again if a sweep with a short grace came between upload and addition."""
    for _ in range(5):
        with contextlib.suppress(RpcError):
            return await files.put(label, name, data)
    return await files.put(label, name, data)


@pytest.mark.slow
async def test_what_nobody_refers_to_is_swept(make_daemon: Make) -> None:
    daemon = make_daemon(
        "dev",
        COLONYD_FEDERATION__ENABLED="false",
        COLONYD_FILES__GRACE="12",
        COLONYD_FILES__QUOTA="300kB",
    ).start()
    unused, used, shared = os.urandom(100_000), os.urandom(100_000), os.urandom(50_000)
    async with files_of(daemon) as files:
        await patient_put(files, "/b", "used", used)
        one = await patient_put(files, "/b", "one", shared)
        two = await files.put("/b", "two", shared)
        await files.call("removefilemsg", fileid=one["fileid"])
        mark = len(daemon.events)
        await files.upload(unused)
        with pytest.raises(RpcError, match=r"files\.quota") as refused:
            await files.ticket("PUT", os.urandom(60_000))
        assert refused.value.status == 409
        swept = await trio.to_thread.run_sync(
            lambda: daemon.await_event('event="files swept"', after=mark)
        )
        assert "files=1 " in swept
        assert "bytes=100000" in swept
        assert not kept(daemon, unused).exists()
        assert (await files.bytes_of(used)).content == used
        assert (await files.bytes_of(shared)).content == shared
        with pytest.raises(RpcError, match="upload the bytes first"):
            await files.add_here("/b", "late", unused)
        mark = len(daemon.events)
        await patient_put(files, "/b", "again", os.urandom(60_000))
        await files.call("removefilemsg", fileid=two["fileid"])
        await trio.to_thread.run_sync(lambda: daemon.await_event("files swept", after=mark))
        assert not kept(daemon, shared).exists()


async def test_a_ticket_for_much_keeps_nobody_out(make_daemon: Make) -> None:
    daemon = make_daemon(
        "dev", COLONYD_FEDERATION__ENABLED="false", COLONYD_FILES__QUOTA="300kB"
    ).start()
    async with files_of(daemon) as files:
        fields = {"method": "PUT", "checksum": sha(b"huge"), "size": 299_000}
        ticket = await files.call("fileticketmsg", **fields)
        answer = await files.http.put(
            files.client.url + ticket["url"],
            content=b"x",
            headers={"content-range": f"bytes 0-0/{fields['size']}"},
        )
        assert answer.json() == {"offset": 1, "complete": False}
        data = os.urandom(250_000)
        await files.put("/b", "honest", data)
        assert (await files.bytes_of(data)).content == data


@pytest.mark.slow
async def test_large_files_need_little_memory(make_daemon: Make) -> None:
    daemon = make_daemon("dev", COLONYD_FEDERATION__ENABLED="false").start()
    assert daemon.process is not None
    size, block = 64 * MIB, os.urandom(MIB)
    blocks = [hashlib.sha256(bytes([n])).digest() + block[32:] for n in range(64)]
    digest = hashlib.sha256()
    for each in blocks:
        digest.update(each)
    checksum = digest.hexdigest()

    def peak() -> int:
        text = Path(f"/proc/{daemon.process.pid}/status").read_text()  # type: ignore[union-attr]
        return int(text.split("VmHWM:")[1].split()[0]) * 1024

    before = peak()
    async with files_of(daemon) as files:
        fields = {"method": "PUT", "checksum": checksum, "size": size}
        ticket = await files.call("fileticketmsg", **fields)
        for number, each in enumerate(blocks):
            first = number * MIB
            answer = await files.http.put(
                files.client.url + ticket["url"],
                content=each,
                headers={"content-range": f"bytes {first}-{first + MIB - 1}/{size}"},
            )
            assert answer.status_code == 200
        assert answer.json()["complete"]
        await files.add("/b", "large", checksum, size=size, ref={"protocol": "colonyd"})
        ticket = await files.call("fileticketmsg", method="GET", checksum=checksum)
        found, length = hashlib.sha256(), 0
        async with files.http.stream("GET", files.client.url + ticket["url"]) as answer:
            async for chunk in answer.aiter_bytes():
                found.update(chunk)
                length += len(chunk)
        assert (found.hexdigest(), length) == (checksum, size)
    assert peak() - before < 24 * MIB


class _Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def scope(data: bytes, uploader: str = "u") -> Scope:
    return Scope("PUT", "c", sha(data), len(data), 0, uploader)


async def test_a_vault_counts_what_is_there(tmp_path: Path) -> None:
    clock, data, other = _Clock(), b"x" * 600, b"y" * 600
    blobs = BlobStore(tmp_path / "files", 1000, clock)
    assert stat.S_IMODE((tmp_path / "files").stat().st_mode) == 0o700
    await blobs.write(scope(data), 0, data[:500])
    with pytest.raises(Refusal, match=r"files\.quota") as refused:
        await blobs.write(scope(other), 0, other[:10])
    assert refused.value.status == 409
    again = BlobStore(tmp_path / "files", 1000, clock)
    assert (again.used, again.holder, again.offset(scope(data))) == (500, blobs.holder, 500)
    assert (await again.write(scope(data), 500, data[500:])).complete
    assert again.used == 600
    # The same bytes by another member: sent in full, kept once.
    again.quota = 2000
    assert again.offset(scope(data, "v")) == 0
    assert (await again.write(scope(data, "v"), 0, data)).complete
    assert again.used == BlobStore(tmp_path / "files", 0, clock).used == 600


async def test_announced_bytes_take_no_room(tmp_path: Path) -> None:
    """One byte of a file as large as the quota kept everybody else out for a day."""
    blobs = BlobStore(tmp_path / "files", 1000, _Clock())
    huge = Scope("PUT", "c", "f" * 64, 1000, 0, "hostile")
    await blobs.write(huge, 0, b"x")
    assert blobs.used == 1
    assert (await blobs.write(scope(b"y" * 900), 0, b"y" * 900)).complete
    with pytest.raises(Refusal, match=r"files\.quota"):
        await blobs.write(huge, 1, b"x" * 200)
    assert blobs.used == BlobStore(tmp_path / "files", 0, _Clock()).used == 901


async def test_an_idle_upload_gives_way_after_minutes(tmp_path: Path) -> None:
    clock, data = _Clock(), b"y" * 900
    blobs = BlobStore(tmp_path / "files", 1000, clock)
    huge = Scope("PUT", "c", "f" * 64, 1000, 0, "hostile")
    await blobs.write(huge, 0, b"x" * 800)
    for _ in range(2):
        with pytest.raises(Refusal, match=r"files\.quota"):
            await blobs.write(scope(data), 0, data)
        clock.now += int(IDLE * SECOND)
    clock.now += 1
    # It stays as long as its room would not be enough, and as long as nobody needs it.
    assert not (await blobs.write(scope(b"z" * 100, "v"), 0, b"z")).complete
    assert blobs.offset(huge) == 800
    assert (await blobs.write(scope(data), 0, data)).complete
    assert (blobs.offset(huge), blobs.used) == (0, 901)
    assert BlobStore(tmp_path / "files", 0, clock).used == 901


async def test_the_unfinished_uploads_of_a_member_are_bounded(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "files", 1000, _Clock(), uploads=3)
    several = [Scope("PUT", "c", f"{n}" * 64, 400, 0, "hostile") for n in range(4)]
    for each in several[:3]:
        await blobs.write(each, 0, b"x")
    with pytest.raises(Refusal, match=r"quotas\.uploads"):
        await blobs.write(several[3], 0, b"x")
    # Also after a restart, and not for others; one that is finished makes room for another.
    again = BlobStore(tmp_path / "files", 1000, _Clock(), uploads=3)
    with pytest.raises(Refusal, match=r"quotas\.uploads"):
        again.require_room(several[3])
    assert not (await again.write(scope(b"z" * 200), 0, b"z" * 100)).complete
    ended = Scope("PUT", "c", several[0].checksum, several[0].size, 0, "hostile")
    with pytest.raises(Refusal, match="upload them anew"):
        await again.write(ended, 1, b"x" * 399)
    assert not (await again.write(several[3], 0, b"x")).complete


async def test_a_vault_sweeps_only_what_is_old_and_not_needed(tmp_path: Path) -> None:
    clock = _Clock()
    blobs = BlobStore(tmp_path / "files", 0, clock)
    old, needed, begun = b"old", b"needed", b"begun"
    for data in (old, needed):
        await blobs.write(scope(data), 0, data)
    await blobs.write(scope(begun), 0, begun[:2])
    partial = next((tmp_path / "files/partial").iterdir())
    os.utime(partial, ns=(NOW, NOW))
    clock.now += 100 * SECOND
    assert await blobs.sweep({sha(needed)}, 200) == (0, 0)
    assert blobs.touch(sha(old))
    clock.now += 150 * SECOND
    # The half upload is older than the grace; the old bytes were touched within it.
    assert await blobs.sweep({sha(needed)}, 200) == (1, 2)
    assert not partial.exists()
    clock.now += 100 * SECOND
    assert await blobs.sweep({sha(needed)}, 200) == (1, 3)
    assert (blobs.size_of(sha(old)), blobs.size_of(sha(needed))) == (None, 6)
    assert blobs.used == 6
    assert not blobs.touch(sha(old))


async def test_two_uploads_of_the_same_take_turns(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "files", 0, _Clock())
    data = os.urandom(4000)
    refused: list[int] = []

    async def upload() -> None:
        done = 0
        while done < len(data) and blobs.size_of(sha(data)) is None:
            try:
                done = (await blobs.write(scope(data), done, data[done : done + 100])).offset
            except Refusal as refusal:
                refused.append(refusal.status)
                done = blobs.offset(scope(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        nursery.start_soon(upload)
    assert blobs.file(sha(data)).read_bytes() == data
    assert set(refused) <= {409}


_HEX = st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)
_SCOPES = st.builds(
    Scope,
    method=st.sampled_from(["GET", "PUT"]),
    colony=st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
    checksum=_HEX,
    size=st.integers(0, (1 << 63) - 1),
    expires=st.just(NOW // SECOND + 900),
    uploader=st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
)


@given(_SCOPES, _SCOPES)
def test_a_ticket_says_what_it_was_made_for_and_no_more(made: Scope, wanted: Scope) -> None:
    tickets = Tickets(b"secret", lambda: NOW)
    query, expires = tickets.issue(
        made.method, made.colony, made.checksum, made.size, uploader=made.uploader
    )
    assert expires == made.expires
    assert tickets.check(made.method, made.checksum, query) == made
    other, _ = tickets.issue(
        wanted.method, wanted.colony, wanted.checksum, wanted.size, uploader=wanted.uploader
    )
    assert (other == query) == (wanted == made)
    if wanted.checksum != made.checksum:
        with pytest.raises(Refusal):
            tickets.check(made.method, wanted.checksum, query)
    with pytest.raises(Refusal):
        Tickets(b"another", lambda: NOW).check(made.method, made.checksum, query)
    with pytest.raises(Refusal, match="expired"):
        Tickets(b"secret", lambda: expires * SECOND).check(made.method, made.checksum, query)


@given(st.text(max_size=80))
def test_any_query_is_refused_cleanly(query: str) -> None:
    with pytest.raises(Refusal) as refused:
        Tickets(b"secret", lambda: NOW).check("GET", "a" * 64, query)
    assert refused.value.status == 403


async def test_what_was_kept_by_a_clock_that_was_ahead_goes_a_grace_later(tmp_path: Path) -> None:
    """Not a year later, when the clock shows that time again."""
    clock, data, begun = _Clock(), b"some", b"begun"
    blobs = BlobStore(tmp_path / "files", 0, clock)
    await blobs.write(scope(data), 0, data)
    await blobs.write(scope(begun), 0, begun[:2])
    ahead = clock.now + 365 * 86_400 * SECOND
    for path in (blobs.file(sha(data)), next((tmp_path / "files/partial").iterdir())):
        os.utime(path, ns=(ahead, ahead))
    assert await blobs.sweep(set(), 200) == (0, 0)
    clock.now += 201 * SECOND
    assert await blobs.sweep(set(), 200) == (2, 6)

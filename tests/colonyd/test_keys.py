"""Keys, ids and signatures are byte-identical to upstream's, and hostile ones are refused."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import crypto  # type: ignore[import-untyped]  # pycolonies' own module
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colonyd.keys import (
    IdentityError,
    PrivateKey,
    read_key,
    recover_id,
    recover_payload,
    sign_payload,
    verify_es256k,
    write_key,
)
from node.host.home import HomeError, init_home

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

VECTORS = [
    (
        "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05",
        "3fc05cf3df4b494e95d6a3d297a34f19938f7daa7422ab0d4f794454133341ac",
    ),
    (
        "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514",
        "4787a5071856a4acf702b2ffcea422e3237a679c681314113d86139461290cf4",
    ),
    (
        "fcc79953d8a751bf41db661592dc34d30004b1a651ffa0725b03ac227641499d",
        "039231c7644e04b6895471dd5335cf332681c54e27f81fac54f9067b3f2c0103",
    ),
]
PAYLOAD = "eyJtc2d0eXBlIjogImdldGNvbG9ueW1zZyIsICJjb2xvbnluYW1lIjogImRldiJ9"
SIGNATURE = (
    "c7f3e05a972b20e3986201f12cc33a03921b5b3a900c9203541cefe7f8c7b792"
    "20a19521a852fbb950469677584638f3130003e87fe5a3ab051c71bd3c0113d900"
)

keys = st.integers(min_value=1, max_value=ORDER - 1).map(lambda n: f"{n:064x}")


@pytest.mark.parametrize(("private", "identity"), VECTORS)
def test_fixed_ids(private: str, identity: str) -> None:
    assert PrivateKey.from_hex(private).id == identity


def test_fixed_signature() -> None:
    key = PrivateKey.from_hex(VECTORS[0][0])
    assert sign_payload(key, PAYLOAD) == SIGNATURE
    assert recover_payload(PAYLOAD, SIGNATURE) == key.id


@settings(max_examples=20, deadline=None)
@given(keys, st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_same_as_pycolonies(private: str, message: str) -> None:
    key = PrivateKey.from_hex(private)
    assert key.id == crypto.get_id(private)
    assert sign_payload(key, message) == crypto.sign(message, private)
    assert recover_payload(message, crypto.sign(message, private)) == key.id


@given(st.binary(max_size=80))
def test_any_bytes_as_signature_end_in_an_id_or_an_identity_error(data: bytes) -> None:
    with contextlib.suppress(IdentityError):
        assert len(recover_id(bytes(32), data)) == 64


@given(st.text(max_size=140), st.text(max_size=40))
def test_any_text_as_signature_ends_in_an_id_or_an_identity_error(sig: str, payload: str) -> None:
    with contextlib.suppress(IdentityError):
        assert len(recover_payload(payload, sig)) == 64


def test_a_high_s_is_refused_everywhere() -> None:
    key = PrivateKey.from_hex(VECTORS[0][0])
    digest = bytes(range(32))
    good = key.sign(digest)
    twin = good[:32] + (ORDER - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    assert recover_id(digest, good) == key.id
    with pytest.raises(IdentityError, match="high s"):
        recover_id(digest, twin + bytes([good[64] ^ 1]))
    message = b"message"
    es256k = key.sign_es256k(message)
    assert verify_es256k(key.public_key, message, es256k)
    high = es256k[:32] + (ORDER - int.from_bytes(es256k[32:], "big")).to_bytes(32, "big")
    assert not verify_es256k(key.public_key, message, high)
    assert not verify_es256k(key.public_key, b"massage", es256k)
    assert not verify_es256k(b"\x04" + bytes(64), message, es256k)


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    key = PrivateKey.generate()
    write_key(path, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key
    with pytest.raises(FileExistsError):
        write_key(path, PrivateKey.generate())
    assert read_key(path) == key


def test_a_full_disk_leaves_no_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, key = tmp_path / "a.key", PrivateKey.generate()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_key(path, key)
    assert [*tmp_path.iterdir()] == []
    write_key(path, key)
    assert read_key(path) == key


def test_no_secret_in_repr_or_errors(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    assert key.hex not in repr(key)
    path = tmp_path / "bad.key"
    path.write_text(key.hex + "00")
    with pytest.raises(IdentityError) as caught:
        read_key(path)
    assert key.hex not in str(caught.value)


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 32, "ff" * 32, "ab" * 31, "ab" * 33])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        PrivateKey.from_hex(text)


def test_init_is_idempotent_and_adopts_the_sdks_variables(tmp_path: Path) -> None:
    environ = {
        "COLONIES_SERVER_PRVKEY": VECTORS[2][0],
        "COLONIES_COLONY_NAME": "dev",
        "COLONIES_COLONY_PRVKEY": VECTORS[1][0],
        "COLONIES_PRVKEY": VECTORS[0][0],
        "COLONIES_EXECUTOR_NAME": "dev-docker",
    }
    first = init_home(tmp_path / "h", None, environ)
    assert (first.server.id, first.colony.id) == (VECTORS[2][1], VECTORS[1][1])
    assert first.executor is not None
    assert (first.executor.id, first.executorname) == (VECTORS[0][1], "dev-docker")
    assert first.name == "dev"
    assert first.created
    again = init_home(tmp_path / "h", None, {})
    assert (again.server, again.colony, again.user) == (first.server, first.colony, first.user)
    assert not again.created
    for path in (tmp_path / "h" / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(HomeError, match="'dev', not 'other'"):
        init_home(tmp_path / "h", "other", {})


@pytest.mark.parametrize("name", ["a/b", "a:b", "ü", "x" * 64, "-a", "a\n"])
def test_a_name_that_breaks_keys_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HomeError, match="colony name"):
        init_home(tmp_path / "h", name, {})


def test_bytes_that_were_seen_are_not_recovered_again() -> None:
    key = PrivateKey.generate()
    signature = sign_payload(key, "cG9sbA==")
    assert recover_payload("cG9sbA==", signature) == key.id
    before = recover_id.cache_info()
    assert recover_payload("cG9sbA==", signature) == key.id
    after = recover_id.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert after.maxsize is not None
    # Any other payload is looked at anew, and what is refused is refused again.
    assert recover_payload("cG9sbB==", signature) != key.id
    for _ in range(2):
        with pytest.raises(IdentityError):
            recover_payload("cG9sbA==", "00" * 65)

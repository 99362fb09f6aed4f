"""Bytes on a real S3-compatible server that checks signatures: pycolonies and our own commands.

What the colony knows of files is in `node.files.test_catalog`; its own directory is in
`node.files.test_blobs`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import crypto  # type: ignore[import-untyped]
import pytest
from click.testing import CliRunner, Result
from pycolonies import Colonies

from cli.core.errors import Failure
from cli.files.s3 import S3Settings
from cli.main import main
from tests.support.daemons import REPOSITORY, Daemon, free_port

pytestmark = pytest.mark.slow

_ALL_OF_S3 = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}


@dataclass(frozen=True)
class Server:
    """An S3 server, and what the SDKs' variables are for it."""

    environ: dict[str, str]

    def objects(self) -> list[str]:
        """Keys in the bucket."""
        s3 = boto3.client(
            "s3",
            endpoint_url=f"http://{self.environ['AWS_S3_ENDPOINT']}",
            aws_access_key_id=self.environ["AWS_S3_ACCESSKEY"],
            aws_secret_access_key=self.environ["AWS_S3_SECRETKEY"],
            region_name="us-east-1",
        )
        found = s3.list_objects_v2(Bucket=self.environ["AWS_S3_BUCKET"]).get("Contents", [])
        return [each["Key"] for each in found]


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    """moto's server with access keys enforced: a wrong signature is refused."""
    port = free_port()
    # Three calls to make a user with keys; from then on everything must be signed by it.
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        cwd=REPOSITORY,
        env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "Running on" not in (line := process.stderr.readline()):
            assert line, "the S3 server ended"
        endpoint = f"127.0.0.1:{port}"
        iam = boto3.client(
            "iam",
            endpoint_url=f"http://{endpoint}",
            aws_access_key_id="none",
            aws_secret_access_key="none",
            region_name="us-east-1",
        )
        iam.create_user(UserName="u")
        iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(_ALL_OF_S3))
        key = iam.create_access_key(UserName="u")["AccessKey"]
        yield Server(
            {
                "AWS_S3_ENDPOINT": endpoint,
                "AWS_S3_ACCESSKEY": key["AccessKeyId"],
                "AWS_S3_SECRETKEY": key["SecretAccessKey"],
                "AWS_S3_BUCKET": f"bucket-{uuid.uuid4().hex[:8]}",
                "AWS_S3_TLS": "false",
                "AWS_S3_SKIPVERIFY": "false",
            }
        )
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def environ(s3: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    return s3.environ


@pytest.fixture
def member(lone_daemon: Daemon) -> tuple[Any, str]:
    """pycolonies, and the key of a fresh executor."""
    colonies = Colonies("127.0.0.1", lone_daemon.port)
    key, owner = crypto.Crypto().prvkey(), lone_daemon.key("colony").hex
    name = f"ex-{uuid.uuid4().hex[:8]}"
    executor = {
        "executorname": name,
        "executorid": crypto.Crypto().id(key),
        "colonyname": "dev",
        "executortype": "t",
    }
    colonies.add_executor(executor, owner)
    colonies.approve_executor("dev", name, owner)
    return colonies, key


@pytest.fixture
def colony(lone_daemon: Daemon) -> Callable[..., Result]:
    def run(environ: dict[str, str], *args: object, code: int = 0) -> Result:
        server = f"127.0.0.1:{lone_daemon.port}"
        command = ["--home", str(lone_daemon.home), "--server", server, *map(str, args)]
        result = CliRunner().invoke(main, command, env=environ, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


def test_pycolonies_uploads_downloads_and_deletes(
    member: tuple[Any, str], s3: Server, environ: dict[str, str], tmp_path: Path
) -> None:
    colonies, key = member
    label = f"/py-{uuid.uuid4().hex[:8]}"
    source = tmp_path / "hello.txt"
    source.write_text("hello\n")
    colonies.upload_file("dev", key, filepath=str(source), label=label)
    there = colonies.download_file(
        "dev", key, dst=str(tmp_path / "dst"), label=label, filename="hello.txt"
    )
    assert there == str(tmp_path / "dst" / "hello.txt")
    assert Path(there).read_text() == "hello\n"
    for data in (b"testdata", b"more"):
        colonies.upload_data("dev", key, filename="data", data=data, label=label)
    assert colonies.download_data("dev", key, label=label, filename="data") == b"more"
    versions = colonies.get_file("dev", key, label=label, filename="data", latest=False)
    assert [version["size"] for version in versions] == [4, 8]
    newest = colonies.get_file("dev", key, label=label, filename="data")
    assert newest == versions[:1]
    by_id = colonies.download_data("dev", key, fileid=versions[1]["fileid"])
    assert by_id == b"testdata"
    listed = colonies.get_files(label, "dev", key)
    assert [each["name"] for each in listed] == ["data", "hello.txt"]
    assert listed[0]["s3filename"] in s3.objects()
    assert {"name": label, "files": 3} in colonies.get_file_labels("dev", key)
    colonies.delete_file("dev", key, label=label, filename="data")
    assert listed[0]["s3filename"] not in s3.objects()
    with pytest.raises(Exception, match="no such file"):
        colonies.get_file("dev", key, label=label, filename="data")


def test_commands_and_pycolonies_read_what_the_other_wrote(
    colony: Callable[..., Result],
    member: tuple[Any, str],
    s3: Server,
    environ: dict[str, str],
    tmp_path: Path,
    lone_daemon: Daemon,
) -> None:
    colonies, key = member
    label = f"/both-{uuid.uuid4().hex[:8]}"
    source = tmp_path / "a.bin"
    source.write_bytes(os.urandom(2_500_000))
    put = json.loads(colony(environ, "file", "put", source, "--label", label, "--json").stdout)
    place = put["ref"]["s3object"]
    assert (put["ref"]["protocol"], place["bucket"]) == ("s3", environ["AWS_S3_BUCKET"])
    assert f"{place['server']}:{place['port']}" == environ["AWS_S3_ENDPOINT"]
    assert environ["AWS_S3_SECRETKEY"] not in json.dumps(put)
    assert place["object"] in s3.objects()
    data = colonies.download_data("dev", key, label=label, filename="a.bin")
    assert data == source.read_bytes()
    colonies.upload_data("dev", key, filename="b.bin", data=b"from python", label=label)
    there = tmp_path / "there"
    colony(environ, "file", "sync", there, "--label", label)
    assert (there / "a.bin").read_bytes() == data
    assert (there / "b.bin").read_bytes() == b"from python"
    (there / "empty").write_bytes(b"")
    (there / "new").write_text("new")
    before = len(s3.objects())
    done = json.loads(colony(environ, "file", "sync", there, "--json").stdout)
    assert done["upload"] == ["empty", "new"]
    assert len(s3.objects()) == before + 1  # of an empty file nothing is stored, as upstream
    back = tmp_path / "back"
    colony(environ, "file", "sync", back, "--label", label)
    assert sorted(path.name for path in back.iterdir()) == [
        ".cfs", "a.bin", "b.bin", "empty", "new",
    ]  # fmt: skip
    # The daemon has no byte of it.
    kept = lone_daemon.home / "files" / put["checksum"][:2] / put["checksum"]
    assert not kept.exists()


def test_damage_wrong_keys_and_other_servers_are_told(
    colony: Callable[..., Result], s3: Server, environ: dict[str, str], tmp_path: Path
) -> None:
    label = f"/bad-{uuid.uuid4().hex[:8]}"
    source, target = tmp_path / "a", tmp_path / "there"
    source.write_text("the right bytes")
    put = json.loads(colony(environ, "file", "put", source, "--label", label, "--json").stdout)
    get = ("file", "get", f"{label}/a", "--to", target)
    wrong = environ | {"AWS_S3_SECRETKEY": "wrong"}
    refused = colony(wrong, *get, code=1)
    assert "refuses these keys" in refused.stderr
    elsewhere = environ | {"AWS_S3_ENDPOINT": f"127.0.0.1:{free_port()}"}
    # The keys of one server are not shown to another, whatever a member wrote into a file.
    assert "the keys are for" in colony(elsewhere, *get, code=3).stderr
    refused = colony(elsewhere, "file", "put", source, "--label", label, code=1)
    assert "not reachable" in refused.stderr
    none = {name: "" for name in environ}
    assert "AWS_S3_ENDPOINT" in colony(none, *get, code=2).stderr
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{environ['AWS_S3_ENDPOINT']}",
        aws_access_key_id=environ["AWS_S3_ACCESSKEY"],
        aws_secret_access_key=environ["AWS_S3_SECRETKEY"],
        region_name="us-east-1",
    )
    name = put["ref"]["s3object"]["object"]
    client.put_object(Bucket=environ["AWS_S3_BUCKET"], Key=name, Body=b"the wrong bytes")
    assert "not those of the checksum" in colony(environ, *get, code=1).stderr
    assert not target.exists()
    client.delete_object(Bucket=environ["AWS_S3_BUCKET"], Key=name)
    assert "not there" in colony(environ, *get, code=1).stderr


def test_settings_from_the_environment() -> None:
    assert S3Settings.from_environ({"AWS_S3_BUCKET": "b"}) is None
    with pytest.raises(Failure, match="AWS_S3_SECRETKEY, AWS_S3_BUCKET") as failure:
        S3Settings.from_environ({"AWS_S3_ENDPOINT": "h:1", "AWS_S3_ACCESSKEY": "a"})
    assert failure.value.exit_code == 2
    keys = {"AWS_S3_ACCESSKEY": "a", "AWS_S3_SECRETKEY": "s", "AWS_S3_BUCKET": "b"}
    plain = S3Settings.from_environ(keys | {"AWS_S3_ENDPOINT": "h:1"})
    assert plain == S3Settings("h:1", "a", "s", "b")
    more = {"AWS_S3_ENDPOINT": "https://h", "AWS_S3_SKIPVERIFY": "true", "AWS_S3_REGION": "r"}
    assert S3Settings.from_environ(keys | more) == S3Settings(
        "h", "a", "s", "b", region="r", tls=True, verify=False
    )

"""The servers that other tests rely on: each does its work for a client that is not pfimg, alone and beside another, and ends."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

import pytest
from tests import servers
from tests.servers import binaries, process, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.servers.fixtures import ServeDirectory

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"content of a blob" * 100
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def basic(server: servers.OciServer | servers.Nginx, password: str | None = None) -> dict[str, str]:
    credentials = f"{server.user}:{server.password if password is None else password}"
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


# S3


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.server(name)) for name in ("minio", "versitygw")])
def s3(request: pytest.FixtureRequest) -> servers.S3Server:
    server: servers.S3Server = request.getfixturevalue(request.param)
    return server


def test_s3_keeps_objects(s3: servers.S3Server) -> None:
    bucket = s3.make_bucket()
    path = f"/{bucket}/some where/+ü"
    assert s3.request("PUT", path, CONTENT).status == 200
    assert s3.request("GET", path).body == CONTENT
    part = s3.request("GET", path, headers={"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, CONTENT[5:10])
    listing = ET.fromstring(s3.request("GET", f"/{bucket}", query={"list-type": "2", "prefix": "some where/"}).body)
    assert [key.text for key in listing.findall("{*}Contents/{*}Key")] == ["some where/+ü"]
    assert s3.request("PUT", path, b"other", headers={"If-None-Match": "*"}).status == 412
    assert s3.request("DELETE", path).status == 204
    assert s3.request("GET", path).status == 404


def test_s3_knows_who_may(s3: servers.S3Server) -> None:
    bucket = s3.make_bucket()
    assert replace(s3, secret_key="guessed").request("GET", f"/{bucket}").status == 403
    assert request(f"{s3.endpoint}/{bucket}").status == 403


@pytest.mark.parametrize("start", [servers.minio, servers.versitygw])
@pytest.mark.usefixtures("minio", "versitygw")
def test_s3_takes_another_port_if_its_own_was_taken(
    start: Callable[[], AbstractContextManager[servers.S3Server]], s3: servers.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = urlsplit(s3.endpoint).port
    ports = iter([taken, process.free_port()])
    monkeypatch.setattr(process, "free_port", lambda: next(ports))
    with start() as server:
        assert server.endpoint != s3.endpoint
        server.make_bucket()


# OCI


def push(server: servers.OciServer, headers: dict[str, str]) -> str:
    """Pushes an image of one layer as the tag `latest`, and gives its repository."""
    repository = server.repository()
    base = f"{server.base_url}/v2/{repository}"
    descriptor = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": len(CONTENT)}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": descriptor, "layers": [descriptor]}
    upload = request(f"{base}/blobs/uploads/", "POST", b"", headers, ca=server.ca)
    assert upload.status == 202, upload
    blob = {**headers, "Content-Type": "application/octet-stream"}
    stored = request(f"{upload.headers['Location']}&digest={quote(DIGEST)}", "PUT", CONTENT, blob, ca=server.ca)
    assert stored.status == 201, stored
    types = {**headers, "Content-Type": media_type}
    tagged = request(f"{base}/manifests/latest", "PUT", json.dumps(manifest).encode(), types, ca=server.ca)
    assert tagged.status == 201, tagged
    return repository


def test_a_registry_keeps_and_deletes_blobs(distribution: servers.OciServer) -> None:
    base = f"{distribution.base_url}/v2/{push(distribution, {})}"
    assert request(f"{base}/blobs/{DIGEST}").body == CONTENT
    part = request(f"{base}/blobs/{DIGEST}", headers={"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, CONTENT[5:10])
    assert json.loads(request(f"{base}/tags/list").body)["tags"] == ["latest"]
    assert request(f"{base}/blobs/{DIGEST}", "DELETE").status == 202
    assert request(f"{base}/blobs/{DIGEST}").status == 404


@pytest.mark.usefixtures("distribution")
def test_a_registry_may_refuse_to_delete() -> None:
    with servers.distribution(delete=False) as server:
        base = f"{server.base_url}/v2/{push(server, {})}"
        assert request(f"{base}/blobs/{DIGEST}", "DELETE").status == 405
        assert request(f"{base}/blobs/{DIGEST}").body == CONTENT


def test_a_registry_asks_for_a_password(distribution_basic: servers.OciServer) -> None:
    url = f"{distribution_basic.base_url}/v2/"
    refused = request(url)
    assert (refused.status, refused.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
    assert request(url, headers=basic(distribution_basic, "guessed")).status == 401
    push(distribution_basic, basic(distribution_basic))


def test_a_registry_speaks_tls(distribution_tls: servers.OciServer) -> None:
    push(distribution_tls, basic(distribution_tls))
    with pytest.raises(ssl.SSLCertVerificationError):
        request(f"{distribution_tls.base_url}/v2/")


class Bearer:
    """A client of the token service for one repository."""

    def __init__(self, server: servers.OciServer) -> None:
        assert server.tokens is not None
        self.server, self.tokens = server, server.tokens
        self.base = f"{server.base_url}/v2/{server.repository()}"

    def upload(self, token: str = "") -> servers.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return request(f"{self.base}/blobs/uploads/", "POST", b"", headers)

    def challenge(self) -> dict[str, str]:
        refused = self.upload()
        assert refused.status == 401
        scheme, _, parameters = refused.headers["WWW-Authenticate"].partition(" ")
        assert scheme == "Bearer"
        return dict(re.findall(r'(\w+)="([^"]*)"', parameters))

    def get(self, headers: dict[str, str] | None = None) -> servers.Response:
        asked = self.challenge()
        return request(f"{asked['realm']}?service={quote(asked['service'])}&scope={quote(asked['scope'])}", headers=headers)

    def post(self, **form: str) -> servers.Response:
        asked = self.challenge()
        fields = {**form, "service": asked["service"], "scope": asked["scope"], "client_id": "test"}
        body = "&".join(f"{key}={quote(value)}" for key, value in fields.items())
        return request(asked["realm"], "POST", body.encode(), {"Content-Type": "application/x-www-form-urlencoded"})


@pytest.fixture
def bearer(distribution_token: servers.OciServer) -> Bearer:
    return Bearer(distribution_token)


def test_a_registry_takes_tokens_of_the_service(bearer: Bearer) -> None:
    token = json.loads(bearer.get(basic(bearer.server)).body)["token"]
    assert bearer.upload(token).status == 202
    asked = bearer.tokens.requests[-1]
    repository = urlsplit(bearer.base).path.removeprefix("/v2/")
    assert (asked.user, asked.granted) == (bearer.server.user, True)
    assert [(scope.rpartition(":")[0], set(scope.rpartition(":")[2].split(","))) for scope in asked.scopes] == [
        (f"repository:{repository}", {"pull", "push"})
    ]


def test_a_token_is_for_one_repository_and_who_asked(bearer: Bearer) -> None:
    token = json.loads(bearer.get(basic(bearer.server)).body)["token"]
    assert Bearer(bearer.server).upload(token).status == 401
    anonymous = json.loads(bearer.get().body)["token"]
    assert bearer.upload(anonymous).status == 401
    assert request(f"{bearer.base}/tags/list", headers={"Authorization": f"Bearer {anonymous}"}).status == 404
    assert bearer.get(basic(bearer.server, "guessed")).status == 401


def test_a_token_expires(bearer: Bearer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearer.tokens, "lifetime", -120)
    assert bearer.upload(json.loads(bearer.get(basic(bearer.server)).body)["token"]).status == 401


def test_a_token_comes_by_post_too(bearer: Bearer) -> None:
    user, password, refresh = bearer.server.user, bearer.server.password, bearer.tokens.refresh_token
    by_password = bearer.post(grant_type="password", username=user, password=password)
    assert bearer.upload(json.loads(by_password.body)["access_token"]).status == 202
    by_token = bearer.post(grant_type="refresh_token", refresh_token=refresh)
    assert bearer.upload(json.loads(by_token.body)["access_token"]).status == 202
    assert bearer.post(grant_type="password", username=user, password="guessed").status == 401
    assert bearer.post(grant_type="refresh_token", refresh_token="guessed").status == 401


@pytest.mark.parametrize("name", ["distribution", "distribution_basic", "distribution_token", "distribution_tls"])
@pytest.mark.usefixtures("distribution")
def test_skopeo_gets_on_with_the_registry(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        (pytest.fail if os.environ.get("PFIMG_REQUIRE_SERVERS") == "1" else pytest.skip)("skopeo is not there")
    server: servers.OciServer = request.getfixturevalue(name)
    layout = tmp_path / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    descriptor = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": len(CONTENT)}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type, "config": descriptor, "layers": [descriptor]}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    (layout / "blobs" / "sha256" / DIGEST.removeprefix("sha256:")).write_bytes(CONTENT)
    (layout / "blobs" / "sha256" / digest).write_bytes(manifest)
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    index = {"schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(manifest)}]}
    (layout / "index.json").write_text(json.dumps(index))
    image = f"docker://{server.registry}/{server.repository()}:latest"
    access = ["--creds", f"{server.user}:{server.password}"] if server.user else []
    access += ["--cert-dir", str(tmp_path)] if server.ca else ["--tls-verify=false"]
    if server.ca:
        shutil.copy(server.ca, tmp_path / "ca.crt")
    into = [f"--dest-{option.removeprefix('--')}" if option.startswith("--") else option for option in access]
    subprocess.run([skopeo, "--insecure-policy", "copy", *into, f"oci:{layout}", image], check=True, capture_output=True)
    shown = subprocess.run([skopeo, "inspect", "--raw", *access, image], check=True, capture_output=True)
    assert shown.stdout == manifest


# IPFS


def test_ipfs_gives_the_blocks_it_got(kubo: servers.Kubo) -> None:
    cid = kubo.run("add", "--quieter", stdin=CONTENT).decode().strip()
    # CIDv1, raw, sha2-256: with this profile a small file is one block that is its content.
    raw = bytes([1, 0x55, 0x12, 0x20]) + hashlib.sha256(CONTENT).digest()
    assert cid == "b" + base64.b32encode(raw).decode().lower().rstrip("=")
    assert request(f"{kubo.gateway}/ipfs/{cid}").body == CONTENT
    assert request(f"{kubo.api}/api/v0/cat?arg={cid}", "POST").body == CONTENT


def test_ipfs_knows_nobody(kubo: servers.Kubo) -> None:
    assert not json.loads(kubo.run("config", "Bootstrap"))
    with pytest.raises(servers.ServerFailed, match="online mode"):
        kubo.run("swarm", "peers")
    with servers.kubo(offline=False) as online:
        assert online.run("swarm", "peers") == b""


# The web


def test_nginx_serves_a_directory(nginx: ServeDirectory, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(CONTENT)
    server = nginx(tmp_path)
    url = f"{server.url}/a%20b"
    whole = request(url)
    assert (whole.status, whole.body) == (200, CONTENT)
    part = request(url, headers={"Range": "bytes=5-9"})
    assert (part.status, part.body) == (206, CONTENT[5:10])
    assert request(url, headers={"If-None-Match": whole.headers["ETag"]}).status == 304
    (tmp_path / "a b").write_bytes(b"changed, and shorter")
    assert request(url, headers={"If-None-Match": whole.headers["ETag"]}).body == b"changed, and shorter"
    assert request(f"{server.url}/missing").status == 404
    assert server.requests()[-5:] == [
        'GET /a%20b 200 "-"',
        'GET /a%20b 206 "bytes=5-9"',
        'GET /a%20b 304 "-"',
        'GET /a%20b 200 "-"',
        'GET /missing 404 "-"',
    ]


def test_nginx_asks_for_a_password_and_speaks_tls(nginx: ServeDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    server = nginx(tmp_path, auth=True, tls=True)
    url = f"{server.url}/file"
    assert request(url, ca=server.ca).status == 401
    assert request(url, headers=basic(server, "guessed"), ca=server.ca).status == 401
    assert request(url, headers=basic(server), ca=server.ca).body == CONTENT
    with pytest.raises(ssl.SSLCertVerificationError):
        request(url)


# All of them


def address(server: Any) -> tuple[str, int]:
    url = next(getattr(server, name) for name in ("endpoint", "base_url", "api", "url") if hasattr(server, name))
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.server(name)) for name in ("minio", "versitygw", "distribution", "kubo")]
)
def test_two_at_once_do_not_collide_and_an_end_is_an_end(name: str, request: pytest.FixtureRequest) -> None:
    first = address(request.getfixturevalue(name))
    with getattr(servers, name)() as server:
        second = address(server)
        assert first != second
        socket.create_connection(second).close()
    socket.create_server(second).close()  # its port is free again
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(second)
    socket.create_connection(first).close()


def test_two_nginx_do_not_collide_and_an_end_is_an_end(nginx: ServeDirectory, tmp_path: Path) -> None:
    first = address(nginx(tmp_path))
    with servers.nginx(tmp_path) as server:
        second = address(server)
        assert first != second
    socket.create_server(second).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(second)
    socket.create_connection(first).close()


# How they start and end

# Says where it listens, and is there.
SERVER = """
import signal, socket
listener = socket.create_server(("127.0.0.1", 0))
open("port", "w").write(str(listener.getsockname()[1]))
signal.pause()
"""
# Likewise with a child; neither minds SIGTERM.
STUBBORN = """
import os, signal, socket
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", 0))
if os.fork():
    open("port", "w").write(str(listener.getsockname()[1]))
signal.pause()
"""
# Starts a server, says where it listens, and waits to be killed.
STARTER = """
import pathlib, signal, sys
from tests.servers import process
directory = pathlib.Path(sys.argv[1])
with process.running([sys.executable, "-c", sys.argv[2]], directory, lambda: (directory / "port").read_text() or None) as port:
    print(port, flush=True)
    signal.pause()
"""


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    program = "import sys; print('the reason'); sys.exit(3)"
    with (
        pytest.raises(servers.ServerFailed, match=r"ended with status 3 while starting\nthe reason"),
        process.running([sys.executable, "-c", program], tmp_path, lambda: None),
    ):
        pass


@pytest.mark.usefixtures("distribution")
def test_a_registry_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.servers.tokens.TokenService.jwks", lambda _: b"no key")
    with pytest.raises(servers.ServerFailed, match="failed to parse jwks"), servers.distribution("token"):
        pass


def test_a_server_that_is_never_ready_is_ended_and_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "START_SECONDS", 0)
    program = "import signal; print('waiting for nothing', flush=True); open('ready', 'w'); signal.pause()"

    def never() -> None:
        # It counts as not ready when it is, so that the log is written by then.
        while not (tmp_path / "ready").exists():
            os.sched_yield()

    with (
        pytest.raises(servers.ServerFailed, match=r"was not ready after 0 s\nwaiting for nothing"),
        process.running([sys.executable, "-c", program], tmp_path, never),
    ):
        pass


def has_ended(connection: socket.socket) -> bool:
    """Whether the other end closes the connection, which it never does while it lives."""
    connection.settimeout(60)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_server_that_does_not_mind_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 0.1)

    def connect() -> socket.socket | None:
        text = (tmp_path / "port").read_text()
        return socket.create_connection(("127.0.0.1", int(text))) if text else None

    with process.running([sys.executable, "-c", STUBBORN], tmp_path, connect) as connection:
        pass
    with connection:
        assert has_ended(connection)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the kernel is asked for this by setpriv of util-linux")
def test_a_server_ends_with_the_tests_even_if_they_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path), SERVER]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        with socket.create_connection(("127.0.0.1", int(tests.stdout.readline()))) as connection:
            tests.send_signal(signal.SIGKILL)
            assert has_ended(connection)


# How they are got. A script stands in for Go, for these tests are of what is around it.


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache and no Go; gives the directory that its programs are in."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "sleep", "touch", "cat"):
        (programs / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(programs))
    return programs


def install_go(programs: Path, script: str) -> None:
    (programs / "go").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "go").chmod(0o755)


def test_who_wants_the_same_program_builds_it_once(machine: Path, tmp_path: Path) -> None:
    # The first build goes on until the second process says that it waits.
    install_go(machine, f"echo build >> {tmp_path}/builds; cat {tmp_path}/until >/dev/null; echo new > minio")
    os.mkfifo(tmp_path / "until")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "another process" in line:
            (tmp_path / "until").write_text("")

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(binaries.get("minio", say))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [binaries.cached("minio")] * 2
    assert found[0].read_text() == "new\n"
    assert (tmp_path / "builds").read_text() == "build\n"
    assert {path.name for path in found[0].parent.iterdir()} == {found[0].name, ".minio.lock"}


def test_a_failed_build_says_why_and_leaves_nothing(machine: Path) -> None:
    install_go(machine, "echo half > minio; echo the reason >&2; exit 1")
    with pytest.raises(servers.Unavailable, match=r"(?s)minio v.* could not be built.*the reason"):
        binaries.get("minio", lambda _: None)
    assert [path.name for path in binaries.cached("minio").parent.iterdir()] == [".minio.lock"]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_without_go_a_test_is_skipped_unless_it_must_not(required: str, outcome: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_s3_keeps_objects[minio]"]
    env = {**os.environ, "PFIMG_REQUIRE_SERVERS": required}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert "minio is not there, nor is go" in done.stdout

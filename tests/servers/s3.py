"""Object stores that speak S3: MinIO, and versitygw, which keeps objects as plain files.

Neither can pick a port by itself. So one that was free is named, and another if it was taken in between. That it is this server
that answers, and not another at that port, is sure because only this one knows the random key that its readiness is asked with.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from tests.servers import binaries, process
from tests.servers.client import Response, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

PORT_ATTEMPTS = 5


@dataclass(frozen=True)
class S3Server:
    """An object store: what a client has to be told."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def make_bucket(self) -> str:
        """Makes a bucket that nobody uses yet, and gives its name."""
        name = f"bucket-{secrets.token_hex(8)}"
        response = self.request("PUT", f"/{name}")
        assert response.status == 200, response
        return name

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a request for `/bucket/key`, signed as AWS has it (Signature Version 4); an error is a reply like others."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{self.region}/s3/aws4_request"
        path = quote(path)
        arguments = "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted((query or {}).items()))
        digest = hashlib.sha256(body).hexdigest()
        signed = {"host": urlsplit(self.endpoint).netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        lines = [f"{name}:{value}" for name, value in signed.items()]
        canonical = "\n".join([method, path, arguments, *lines, "", ";".join(signed), digest])
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={';'.join(signed)}, "
            f"Signature={hmac.new(key, text.encode(), 'sha256').hexdigest()}"
        )
        url = f"{self.endpoint}{path}" + (f"?{arguments}" if arguments else "")
        return request(url, method, body, {**(headers or {}), **signed, "authorization": authorization})


@contextmanager
def minio() -> Iterator[S3Server]:
    """MinIO on one directory."""
    program = binaries.get("minio")

    def command(server: S3Server, address: str, directory: Path) -> tuple[list[str | Path], dict[str, str]]:
        return [program, "server", "--quiet", "--anonymous", "--address", address, directory / "data"], {
            "MINIO_ROOT_USER": server.access_key,
            "MINIO_ROOT_PASSWORD": server.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }

    with _s3_server("minio", command) as server:
        yield server


@contextmanager
def versitygw() -> Iterator[S3Server]:
    """versitygw on one directory; attributes of objects in files beside, since not every file system has room for them."""
    program = binaries.get("versitygw")

    def command(server: S3Server, address: str, directory: Path) -> tuple[list[str | Path], dict[str, str]]:
        for name in ("data", "attributes"):
            (directory / name).mkdir(exist_ok=True)
        return [program, "--port", address, "posix", "--sidecar", directory / "attributes", directory / "data"], {
            "ROOT_ACCESS_KEY": server.access_key,
            "ROOT_SECRET_KEY": server.secret_key,
        }

    with _s3_server("versitygw", command) as server:
        yield server


@contextmanager
def _s3_server(
    name: str, command: Callable[[S3Server, str, Path], tuple[list[str | Path], dict[str, str]]]
) -> Iterator[S3Server]:
    with process.scratch(name) as directory, ExitStack() as stack:
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            address = f"127.0.0.1:{process.free_port()}"
            server = S3Server(f"http://{address}", f"key-{secrets.token_hex(8)}", secrets.token_hex(16))
            arguments, env = command(server, address, directory)

            def ready(server: S3Server = server) -> bool | None:
                return server.request("GET", "/").status == 200 or None

            try:
                stack.enter_context(process.running(arguments, directory, ready, env=env))
            except process.ServerFailed as error:
                if "in use" not in error.log or not attempts_left:
                    raise
            else:
                yield server
                return

"""Azurite, Microsoft's emulator of Azure Blob Storage, with one account."""

from __future__ import annotations

import base64
import hmac
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.servers import binaries, process
from tests.servers.client import Response, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

ACCOUNT = "tester"
VERSION = "2021-08-06"


@dataclass(frozen=True)
class AzureServer:
    """Azure Blob Storage: the endpoint of an account, and its key."""

    endpoint: str
    account: str
    key: str

    def make_container(self) -> str:
        """Makes a container that nobody uses yet, and gives its name."""
        name = f"container-{secrets.token_hex(8)}"
        response = self.request("PUT", f"/{name}", query={"restype": "container"})
        assert response.status == 201, response
        return name

    def request(
        self, method: str, path: str, body: bytes = b"", *, query: Mapping[str, str] | None = None, block: bool = False
    ) -> Response:
        """Sends a request for `/container/blob`, signed with the account's key; an error is a reply like others.

        Args:
            method: GET, PUT, …
            path: What for; not quoted yet.
            body: What to send.
            query: Parameters, not quoted yet.
            block: Whether a blob is put.
        """
        path = quote(path)
        query = dict(sorted((query or {}).items()))
        headers = {
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-version": VERSION,
            **({"x-ms-blob-type": "BlockBlob"} if block else {}),
        }
        lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
        resource = [f"/{self.account}/{self.account}{path}", *(f"{name}:{value}" for name, value in query.items())]
        # Of the fields between only the length is ever sent here, and of that no zero counts.
        fields = [method, "", "", str(len(body) or ""), *[""] * 8]
        signature = hmac.digest(base64.b64decode(self.key), "\n".join([*fields, *lines, *resource]).encode(), "sha256")
        headers["authorization"] = f"SharedKey {self.account}:{base64.b64encode(signature).decode()}"
        arguments = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
        return request(f"{self.endpoint}{path}" + (f"?{arguments}" if arguments else ""), method, body, headers)


@contextmanager
def azurite() -> Iterator[AzureServer]:
    """Azurite on a directory."""
    program = binaries.get("azurite") / "node_modules" / ".bin" / "azurite-blob"
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    with process.scratch("azurite") as directory:
        port = process.free_port()
        server = AzureServer(f"http://127.0.0.1:{port}/{ACCOUNT}", ACCOUNT, key)
        command: list[str | Path] = [
            program,
            "--location",
            directory,
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            str(port),
            "--silent",
        ]
        command += ["--skipApiVersionCheck", "--disableProductStyleUrl", "--disableTelemetry"]

        def ready() -> AzureServer | None:
            return server if server.request("GET", "/", query={"comp": "list"}).status == 200 else None

        with process.running(command, directory, ready, env={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"}) as found:
            yield found

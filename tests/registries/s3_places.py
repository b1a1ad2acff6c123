"""Buckets, for tests to look into and to damage: by requests that are signed here, not by the client that is tested."""

from __future__ import annotations

import os
import re
from html import unescape
from typing import TYPE_CHECKING

from pfimg.registries.base import blob_name

if TYPE_CHECKING:
    import pytest
    from tests.servers import AzureServer, S3Server


class BucketPlace:
    """`s3://`, the unnamed image of a bucket below a prefix."""

    def __init__(self, server: S3Server, bucket: str, prefix: str = "some/prefix") -> None:
        self.server = server
        self.bucket = bucket
        self.root = f"/{bucket}/{prefix}".rstrip("/")
        self.ref = self.source = f"s3:/{self.root}"

    def names(self, prefix: str = "") -> list[str]:
        """What there is below the prefix, relative to it."""
        found: list[str] = []
        above = self.root.removeprefix(f"/{self.bucket}").lstrip("/")
        start = f"{above}/" if above else ""
        query = {"list-type": "2", "prefix": start + prefix}
        while True:
            response = self.server.request("GET", f"/{self.bucket}", query=query)
            assert response.status == 200, response
            text = response.body.decode()
            found += [unescape(key).removeprefix(start) for key in re.findall(r"<Key>([^<]*)</Key>", text)]
            token = re.search(r"<NextContinuationToken>([^<]+)<", text)
            if token is None:
                return found
            query["continuation-token"] = unescape(token[1])

    def read(self, name: str) -> bytes:
        response = self.server.request("GET", f"{self.root}/{name}")
        assert response.status == 200, response
        return response.body

    def replace(self, name: str, content: bytes | None) -> None:
        response = self.server.request("DELETE" if content is None else "PUT", f"{self.root}/{name}", content or b"")
        assert response.status in (200, 204), response

    # What every adapter is asked for.
    def blobs(self) -> dict[str, bytes]:
        names = self.names("blobs/sha256/")
        return {f"sha256:{name.rpartition('/')[2].removesuffix('.zst')}": self.read(name) for name in names}

    def write(self, digest: str, frame: bytes | None) -> None:
        self.replace(blob_name(digest), frame)

    def read_pair(self) -> tuple[bytes, bytes]:
        return self.read("manifest.json"), self.read("manifest.json.sig")

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        self.replace("manifest.json", manifest)
        self.replace("manifest.json.sig", signature)


class ContainerPlace(BucketPlace):
    """`az://`, the unnamed image of a container below a prefix."""

    def __init__(self, server: AzureServer, container: str, prefix: str = "some/prefix") -> None:
        self.azure = server
        self.bucket = container
        self.root = f"/{container}/{prefix}"
        self.ref = self.source = f"az:/{self.root}"

    def names(self, prefix: str = "") -> list[str]:
        start = self.root.removeprefix(f"/{self.bucket}/") + "/"
        query = {"restype": "container", "comp": "list", "prefix": start + prefix}
        found: list[str] = []
        while True:
            response = self.azure.request("GET", f"/{self.bucket}", query=query)
            assert response.status == 200, response
            text = response.body.decode()
            found += [unescape(key).removeprefix(start) for key in re.findall(r"<Name>([^<]*)</Name>", text)]
            marker = re.search(r"<NextMarker>([^<]+)<", text)
            if marker is None:
                return found
            query["marker"] = unescape(marker[1])

    def read(self, name: str) -> bytes:
        response = self.azure.request("GET", f"{self.root}/{name}")
        assert response.status == 200, response
        return response.body

    def replace(self, name: str, content: bytes | None) -> None:
        method = "DELETE" if content is None else "PUT"
        response = self.azure.request(method, f"{self.root}/{name}", content or b"", block=content is not None)
        assert response.status in (201, 202, 404), response


def point_to_account(server: AzureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the environment lead to an account, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", server.account)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", server.key)


def point_to(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the environment lead to a server, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_REGION", server.region)

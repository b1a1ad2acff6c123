"""Directories on an IPFS node, for tests to look into and to damage: by the node's own API, not by the client that is tested."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.servers import request

if TYPE_CHECKING:
    from tests.servers import Kubo

# The CID of bytes that no test stores.
ABSENT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


class IpfsPlace:
    """`ipfs://`: a directory for each push, of which the newest is the place's, and the one that the next push goes by."""

    codec = "store"  # as which everything is sent
    named_by_content = True

    def __init__(self, kubo: Kubo) -> None:
        self.kubo = kubo
        for root in self.pinned():
            self.call("pin/rm", arg=root)
        self._roots: list[str] = []
        self._changes = 0

    @property
    def ref(self) -> str:
        return f"ipfs://{self.root or ''}"

    @property
    def source(self) -> str:
        return f"ipfs://{self.root or ABSENT}"

    @property
    def root(self) -> str | None:
        """The newest directory."""
        self._roots += sorted(self.pinned() - set(self._roots))
        return self._roots[-1] if self._roots else None

    def call(self, command: str, body: bytes | None = None, **arguments: str) -> bytes:
        query = "&".join(f"{name.replace('_', '-')}={quote(value, safe='')}" for name, value in arguments.items())
        headers = {}
        if body is not None:
            head = b'--boundary\r\nContent-Disposition: form-data; name="data"; filename="data"\r\n\r\n'
            body = head + body + b"\r\n--boundary--\r\n"
            headers["Content-Type"] = "multipart/form-data; boundary=boundary"
        answer = request(f"{self.kubo.api}/api/v0/{command}?{query}", "POST", body, headers)
        assert answer.status == 200, (command, arguments, answer.body)
        return answer.body

    def pinned(self) -> set[str]:
        return set(json.loads(self.call("pin/ls", type="recursive")).get("Keys", {}))

    def entries(self, root: str) -> dict[str, str]:
        """CIDs by name."""
        (listed,) = json.loads(self.call("ls", arg=root))["Objects"]
        return {link["Name"]: link["Hash"] for link in listed["Links"]}

    def change(self, name: str, content: bytes | None) -> None:
        """Makes a directory with another file, or without one, and has it take the place of the newest."""
        root = self.root
        self._changes += 1
        path = f"/place-{id(self)}-{self._changes}"
        if root is None:
            self.call("files/mkdir", arg=path, cid_version="1")
        else:
            self._copy(root, path)
            if name in self.entries(root):
                self.call("files/rm", arg=f"{path}/{name}")
        if content is not None:
            self.call("files/write", content, arg=f"{path}/{name}", create="true", raw_leaves="true", cid_version="1")
        changed: dict[str, Any] = json.loads(self.call("files/stat", arg=path))
        self.call("files/rm", arg=path, recursive="true")
        if root is not None:
            self.call("pin/rm", arg=root)
            self._roots.remove(root)
        if changed["Hash"] in self._roots:
            self._roots.remove(changed["Hash"])
        self.call("pin/add", arg=changed["Hash"])

    def _copy(self, root: str, path: str) -> None:
        answer = request(f"{self.kubo.api}/api/v0/files/cp?arg=/ipfs/{root}&arg={path}", "POST")
        assert answer.status == 200, answer

    def blobs(self) -> dict[str, bytes]:
        assert self.root is None or self._roots
        found = {name: cid for root in self._roots for name, cid in self.entries(root).items() if name.startswith("blob_")}
        return {
            f"sha256:{name.removeprefix('blob_').removesuffix('.zst')}": self.call("cat", arg=cid) for name, cid in found.items()
        }

    def write(self, digest: str, frame: bytes | None) -> None:
        self.change(f"blob_{digest.removeprefix('sha256:')}.zst", frame)

    def read_pair(self) -> tuple[bytes, bytes]:
        root = self.root
        return self.call("cat", arg=f"{root}/manifest.json"), self.call("cat", arg=f"{root}/manifest.json.sig")

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        self.change("manifest.json", manifest)
        self.change("manifest.json.sig", signature)

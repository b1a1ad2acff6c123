"""Looking into an OCI registry, and damaging it, by plain requests: what the contract needs of one, in both layouts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import zstandard
from tests.servers import Response, request

from pfimg._core import PackIndex
from pfimg.registries import base

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.servers import OciServer

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE = "application/vnd.processfork.image.v1+json"
SIGNATURE = "application/vnd.processfork.signature.v1+json"
LAYER = "application/vnd.processfork.layer.v1+zstd"
INDEX = "application/vnd.pfimg.index.v1"
PACK = "application/vnd.pfimg.pack.v1"
PATH = "org.processfork.path"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Repository:
    """One repository of a registry that asks for no credentials."""

    def __init__(self, server: OciServer, name: str) -> None:
        self.server = server
        self.name = name

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Response:
        url = path if "://" in path else f"{self.server.base_url}/v2/{self.name}/{path}"
        return request(url, method, body, headers)

    def get(self, digest: str) -> bytes:
        answer = self.ask("GET", f"blobs/{digest}")
        assert answer.status == 200, (digest, answer)
        return answer.body

    def has(self, digest: str) -> bool:
        return self.ask("HEAD", f"blobs/{digest}").status == 200

    def put(self, content: bytes) -> dict[str, Any]:
        """Uploads a blob; returns the beginning of a descriptor."""
        begun = self.ask("POST", "blobs/uploads/", b"")
        assert begun.status == 202, begun
        location = f"{begun.headers['Location']}&digest={quote(digest_of(content))}"
        assert self.ask("PUT", location, content).status == 201
        return {"size": len(content), "digest": digest_of(content)}

    def delete(self, digest: str) -> None:
        assert self.ask("DELETE", f"blobs/{digest}").status == 202

    def manifest(self, reference: str) -> bytes | None:
        answer = self.ask("GET", f"manifests/{reference}", headers={"Accept": MANIFEST})
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    def put_manifest(self, reference: str, values: Mapping[str, Any]) -> str:
        content = json.dumps(values).encode()
        answer = self.ask("PUT", f"manifests/{reference}", content, {"Content-Type": values["mediaType"]})
        assert answer.status == 201, answer
        return digest_of(content)

    def tags(self) -> list[str]:
        answer = self.ask("GET", "tags/list")
        return json.loads(answer.body)["tags"] or [] if answer.status == 200 else []

    def blobs(self) -> list[str]:
        """Digests of all blobs that the repository has, by what the server keeps on its disk."""
        root = self.server.data / "docker/registry/v2/repositories" / self.name / "_layers/sha256"
        return [f"sha256:{link.parent.name}" for link in root.glob("*/link")]

    def manifests(self) -> list[dict[str, Any]]:
        """All manifests that were ever put, the latest last."""
        root = self.server.data / "docker/registry/v2/repositories" / self.name / "_manifests/revisions/sha256"
        links = sorted(root.glob("*/link"), key=lambda link: link.stat().st_mtime_ns)
        contents = [self.manifest(f"sha256:{link.parent.name}") for link in links]
        return [json.loads(content) for content in contents if content is not None]


class OciPlace:
    """A tag of a repository that nobody else uses, in the published layout."""

    def __init__(self, server: OciServer, tag: str = "latest") -> None:
        self.repository = Repository(server, server.repository())
        self.tag = tag
        self._deleted: dict[str, bytes] = {}
        self.ref = self.source = f"oci://{server.registry}/{self.repository.name}{'' if tag == 'latest' else f':{tag}'}"

    def values(self) -> dict[str, Any]:
        """The OCI manifest; that of nothing where there is none."""
        content = self.repository.manifest(self.tag)
        empty: dict[str, Any] = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}
        return json.loads(content) if content is not None else empty

    def blobs(self) -> dict[str, bytes]:
        frames = [self.repository.get(digest) for digest in self.repository.blobs()]
        # Of several frames of a blob, that counts to which the image refers.
        current = {layer["digest"] for layer in self.values()["layers"]}
        return dict(_decoded(sorted(frames, key=lambda frame: digest_of(frame) in current)))

    def write(self, digest: str, frame: bytes | None) -> None:
        values = self.values()
        at = next((at for at, layer in enumerate(values["layers"]) if _path(layer) == base.blob_name(digest)), None)
        if frame is None:
            assert at is not None
            lost = values["layers"][at]["digest"]
            self._deleted[lost] = self.repository.get(lost)
            self.repository.delete(lost)
            return
        layer = {"mediaType": LAYER, **self.repository.put(frame), "annotations": {PATH: base.blob_name(digest)}}
        self._deleted = {lost: content for lost, content in self._deleted.items() if not self.repository.has(lost)}
        if "config" in values:
            at = len(values["layers"]) if at is None else at
            values["layers"][at : at + 1] = [layer]
            # The registry takes no manifest that refers to what is not there.
            for content in self._deleted.values():
                self.repository.put(content)
            self.repository.put_manifest(self.tag, values)
            for lost in self._deleted:
                self.repository.delete(lost)

    def read_pair(self) -> tuple[bytes, bytes]:
        values = self.values()
        return self.repository.get(values["config"]["digest"]), self.repository.get(_only(values, SIGNATURE)["digest"])

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        values = self.values()
        if manifest is None:
            if (content := self.repository.manifest(self.tag)) is not None:
                assert self.repository.ask("DELETE", f"manifests/{digest_of(content)}").status == 202
            return
        values["config"] = {"mediaType": IMAGE, **self.repository.put(manifest)}
        values["layers"] = [layer for layer in values["layers"] if layer["mediaType"] != SIGNATURE]
        if signature is not None:
            layer = {"mediaType": SIGNATURE, **self.repository.put(signature), "annotations": {PATH: "manifest.json.sig"}}
            values["layers"].insert(0, layer)
        self.repository.put_manifest(self.tag, values)


class PackedOciPlace(OciPlace):
    """The same in the packed layout."""

    def __init__(self, server: OciServer, tag: str = "latest") -> None:
        super().__init__(server, tag)
        # What a test has put, which need not be frames.
        self._written: dict[str, dict[str, bytes]] = {}

    def blobs(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for values in self.repository.manifests():
            found |= self._frames(values)
        return found

    def write(self, digest: str, frame: bytes | None) -> None:
        values = self.values()
        if "config" not in values:
            return  # what is in no pack that an index tells of, nobody finds
        frames = {**self._frames(values), digest: frame}
        kept = {digest: frame for digest, frame in frames.items() if frame is not None}
        content = b"".join(kept.values())
        pack = self.repository.put(content)
        self._written[pack["digest"]] = kept
        index = PackIndex.of(hashlib.sha256(content).hexdigest(), list(kept), [len(frame) for frame in kept.values()])
        layers = [layer for layer in values["layers"] if layer["mediaType"] not in (INDEX, PACK)]
        layers.append({"mediaType": INDEX, **self.repository.put(index.to_bytes())})
        layers.append({"mediaType": PACK, **pack})
        self.repository.put_manifest(self.tag, {**values, "layers": layers})

    def read_pair(self) -> tuple[bytes, bytes]:
        values = self.values()
        manifest, signature = (self.repository.get(_only(values, kind)["digest"]) for kind in (IMAGE, SIGNATURE))
        return manifest, signature

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        values = self.values()
        if manifest is None or "config" not in values:
            super().write_pair(manifest, signature)
            return
        layers = [layer for layer in values["layers"] if layer["mediaType"] not in (IMAGE, SIGNATURE)]
        layers.append({"mediaType": IMAGE, **self.repository.put(manifest)})
        if signature is not None:
            layers.append({"mediaType": SIGNATURE, **self.repository.put(signature)})
        self.repository.put_manifest(self.tag, {**values, "layers": layers})

    def _frames(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        """Frames in the packs of one image."""
        found: dict[str, bytes] = {}
        for layer in values["layers"]:
            if layer["mediaType"] == PACK:
                digest = layer["digest"]
                found |= self._written.get(digest) or _decoded(_frames(self.repository.get(digest)))
        return found


def _frames(pack: bytes) -> Iterator[bytes]:
    """A pack is nothing but frames."""
    while pack:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        decoder.decompress(pack)
        rest = decoder.unused_data
        yield pack[: len(pack) - len(rest)]
        pack = rest


def _decoded(frames: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Those that are frames, with the digest of their content."""
    for frame in frames:
        try:
            content = zstandard.ZstdDecompressor().decompressobj().decompress(frame)
        except zstandard.ZstdError:
            continue
        yield digest_of(content), frame


def _path(layer: Mapping[str, Any]) -> str | None:
    path: str | None = layer.get("annotations", {}).get(PATH)
    return path


def _only(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    (layer,) = (layer for layer in values["layers"] if layer["mediaType"] == kind)
    return layer  # type: ignore[no-any-return]

"""Looking into a repository of the Hub of the tests, and damaging it, without a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard
from tests.registries.oci_places import digest_of

from pfimg.registries.base import blob_name

if TYPE_CHECKING:
    from tests.hub import Hub

REPO = "tester/agent"
REF = f"hf://{REPO}"
ATTRIBUTES = ".gitattributes"


class HfPlace:
    """`hf://`, the unnamed image of a branch of a dataset, which is not there at first."""

    def __init__(self, hub: Hub, repo: str = REPO, branch: str = "main") -> None:
        self.hub = hub
        self.repo = repo
        self.branch = branch
        self.ref = self.source = f"hf://{repo}{'' if branch == 'main' else f':{branch}'}"

    @property
    def exists(self) -> bool:
        return ("datasets", *self.repo.split("/")) in self.hub.repos

    def files(self) -> dict[str, bytes]:
        """What the branch has, without the file that every repository has from the start."""
        found = self.hub.files(self.repo, self.branch) if self.exists else {}
        return {path: content for path, content in found.items() if path != ATTRIBUTES}

    def replace(self, path: str, content: bytes | None) -> None:
        """Replaces a file, or takes it away together with its content."""
        files = self.files()
        if content is None and path not in files:
            return
        if content is None:
            entry = self.hub.repository(self.repo).resolve(self.branch).files[path]
            self.hub.repository(self.repo).objects.discard(entry.sha256)
        if files.get(path) != content:
            self.hub.write(self.repo, {path: content}, self.branch)

    # What every adapter is asked for.
    def blobs(self) -> dict[str, bytes]:
        """Frames that were uploaded, and of several of one blob that to which the branch refers."""
        if not self.exists:
            return {}
        uploaded = [self.hub.objects.path(sha256).read_bytes() for sha256 in self.hub.repository(self.repo).objects]
        committed = [content for path, content in self.files().items() if path.startswith("blobs/")]
        found = {}
        for frame in [*uploaded, *committed]:
            try:
                content = zstandard.ZstdDecompressor().decompressobj().decompress(frame)
            except zstandard.ZstdError:
                continue
            found[digest_of(content)] = frame
        return found

    def write(self, digest: str, frame: bytes | None) -> None:
        self.replace(blob_name(digest), frame)

    def read_pair(self) -> tuple[bytes, bytes]:
        files = self.files()
        return files["manifest.json"], files["manifest.json.sig"]

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        self.replace("manifest.json", manifest)
        self.replace("manifest.json.sig", signature)

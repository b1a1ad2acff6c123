"""Contents of files in LFS, by SHA-256, and uploads that are under way; all in a directory, so that large ones need no memory."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from tests.hub.messages import Refusal, Request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub.repos import Repo


@dataclass
class Upload:
    """Of one object, whole or in parts."""

    repo: Repo
    sha256: str
    size: int
    parts: dict[int, str] = field(default_factory=dict)  # ETag by number, from 1


class Objects:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploads: dict[str, Upload] = {}
        self._key = secrets.token_bytes(16)

    def clear(self) -> None:
        self.uploads.clear()
        for path in self.root.iterdir():
            path.unlink()

    def path(self, sha256: str) -> Path:
        return self.root / sha256

    def begin(self, repo: Repo, sha256: str, size: int) -> str:
        name = secrets.token_hex(8)
        self.uploads[name] = Upload(repo, sha256, size)
        return name

    def upload(self, name: str) -> Upload:
        if name not in self.uploads:
            raise Refusal(404, f"{name}: no such upload")
        return self.uploads[name]

    def put(self, body: IO[bytes], sha256: str) -> None:
        with self.path(sha256).open("wb") as file:
            shutil.copyfileobj(body, file)

    def put_part(self, name: str, number: int, body: IO[bytes]) -> str:
        upload = self.upload(name)
        with (self.root / f"{name}.{number}").open("wb+") as file:
            shutil.copyfileobj(body, file)
            file.seek(0)
            etag = hashlib.file_digest(file, "md5").hexdigest()
        upload.parts[number] = etag
        return etag

    def join(self, name: str) -> tuple[int, str]:
        """Makes one object of the parts, under the name of the upload; gives its size and SHA-256."""
        upload = self.upload(name)
        digest = hashlib.sha256()
        with (self.root / name).open("wb") as whole:
            for number in sorted(upload.parts):
                part = (self.root / f"{name}.{number}").read_bytes()
                digest.update(part)
                whole.write(part)
                (self.root / f"{name}.{number}").unlink()
        upload.parts.clear()
        return (self.root / name).stat().st_size, digest.hexdigest()

    def keep(self, name: str) -> None:
        """The joined object is what it was announced to be."""
        upload = self.uploads.pop(name)
        (self.root / name).replace(self.path(upload.sha256))

    def signed(self, path: str) -> str:
        """An address that needs no credentials."""
        return f"{path}?signature={self._signature(path)}"

    def check_signature(self, request: Request) -> None:
        given = request.query.get("signature", [""])[0]
        if not hmac.compare_digest(given, self._signature(request.path)):
            raise Refusal(403, "the signature of this address is wrong")

    def _signature(self, path: str) -> str:
        return hmac.digest(self._key, path.encode(), "sha256").hex()[:32]

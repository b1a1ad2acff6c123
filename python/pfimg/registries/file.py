"""`file://`: images in a directory, on this machine's disk, a mounted one or a USB stick.

    manifest.json, manifest.json.sig     the unnamed image, as the reference implementation knows it
    blobs/sha256/<aa>/<64 hex>.zst       the blobs of all images, as in a store; nothing else lies below `blobs/`
    pfimg/images/<name>.json             an image with a name
    pfimg.json                           what differs from the published format, if anything does

Blobs are copied by the core, which verifies every one on its way, and syncs whole batches. Replacing the unnamed image stages
both files and renames them back to back, the signature first, so that a new image never shows without its signature. A reader
that sees two files which do not belong together reads both again; a kill between the two renames leaves that image refused until
it is pushed again.

A named image is one JSON document and is therefore replaced at once: `pfimg` is 1, `manifest` and `signature` are the text of the
two files. Before the first one is written, the directory's description lists the feature `names`. The images of a directory whose
description says `blake3` always have a name, `default` where none is given, since the reference could not read them.

Limits: nothing is ever removed here, neither blobs that no image needs any more nor what a killed process staged.
"""

import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pfimg import signing
from pfimg._core import Store
from pfimg.errors import FormatError, LimitExceeded
from pfimg.registries.base import MANIFEST_BYTES, Sink, StoredBlob, blob_name
from pfimg.registries.refs import AnyRef, FileRef
from pfimg.signing import SIGNATURE_BYTES, Key
from pfimg.transfer import TransportRegistry

_MANIFEST: Final = "manifest.json"
_SIGNATURE: Final = "manifest.json.sig"
_DESCRIPTION: Final = "pfimg.json"
_NAMED: Final = "pfimg/images"
_DEFAULT: Final = "default"
# A document escapes quotes and control characters, so that it is longer than what it holds.
_NAMED_BYTES: Final = 2 * (MANIFEST_BYTES + SIGNATURE_BYTES)
# How long to wait for a writer that is between its two renames, before each time that both files are read again.
_REREAD_SECONDS: Final = (0.01, 0.05, 0.2)
# What lands together: files share their syncs, frames in memory are bounded.
_BATCH_ITEMS: Final = 4096
_BATCH_BYTES: Final = 256 << 20


class FileRegistry(TransportRegistry):
    """A registry for `file://` references.

    Args:
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_FILE_REG_SIGN_KEY`, else the public one.

    Example:
        >>> registries.FileRegistry().exists("file:///no/such/directory")
        False
    """

    def __init__(self, *, sign_key: Key | None = None) -> None:
        super().__init__(FileTransport, ("file",), sign_key=sign_key)


class FileTransport:
    """The transport for one directory. `jobs` changes nothing: the core's threads do the work."""

    def __init__(self, ref: FileRef, *, jobs: int | None = None) -> None:  # noqa: ARG002 - every transport is given it
        self.root = ref.path

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport; a directory that is not there lacks all."""
        here = self._store if self._is_described() else None
        algorithm = here.digest if here else "sha256"
        for digest in digests:
            if not digest.startswith(f"{algorithm}:"):
                message = f"blob {digest} cannot be put into {self.root}, whose digests are {algorithm}: use another directory"
                raise FormatError(message, digest=digest)
        found = here.has_many(digests) if here else [False] * len(digests)
        return {digest for digest, is_there in zip(digests, found, strict=True) if not is_there}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""
        batch: list[StoredBlob] = []
        size = 0
        for item in items:
            batch.append(item)
            size += item.size
            if len(batch) == _BATCH_ITEMS or size >= _BATCH_BYTES:
                self._land(batch)
                batch, size = [], 0
        self._land(batch)

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        sink.files([(digest, f"{self.root}/{blob_name(digest)}") for digest in digests])

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """See Transport; FileNotFoundError when no image is there."""
        if self._is_described():
            _ = self._store  # refuses a directory of a kind that this version does not know
        name = _name(ref)
        if name is None and (found := self._read_unnamed()) is not None:
            return found
        path = self._named_path(name or _DEFAULT)
        if (document := _read(path, _NAMED_BYTES)) is not None:
            return _unpack(document, path)
        raise FileNotFoundError(errno.ENOENT, "there is no image here", str(path if name else self.root / _MANIFEST))

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        name = _name(ref) or (None if self._store.digest == "sha256" else _DEFAULT)
        if name is None:
            _replace(self.root, {_SIGNATURE: signature, _MANIFEST: manifest})
        else:
            self._describe_names()
            path = self._named_path(name)
            _make(path.parent)
            document = {"pfimg": 1, "manifest": manifest.decode(), "signature": signature.decode()}
            _replace(path.parent, {path.name: _json(document)})
        return FileRef(self.root, name) if isinstance(ref, FileRef) else ref

    def exists(self, ref: AnyRef) -> bool:
        """See Transport."""
        name = _name(ref)
        return (name is None and _is_there(self.root / _MANIFEST)) or _is_there(self._named_path(name or _DEFAULT))

    @cached_property
    def _store(self) -> Store:
        """The directory as a store of blobs, which is created when it is absent."""
        _make(self.root)
        return Store(self.root)

    def _is_described(self) -> bool:
        """Whether there is a store already, so that looking creates nothing."""
        return _is_there(self.root / "blobs") or _is_there(self.root / _DESCRIPTION)

    def _land(self, batch: Sequence[StoredBlob]) -> None:
        if files := [(item.digest, item.path) for item in batch if item.path is not None]:
            self._store.import_files(files)
        if frames := [(item.digest, item.read()) for item in batch if item.path is None]:
            self._store.land_frames(frames)

    def _read_unnamed(self) -> tuple[bytes, bytes | None] | None:
        found = self._read_pair()
        for seconds in _REREAD_SECONDS:
            if found is None or signing.covers(*found):
                break
            time.sleep(seconds)
            found = self._read_pair()
        return found

    def _read_pair(self) -> tuple[bytes, bytes | None] | None:
        manifest = _read(self.root / _MANIFEST, MANIFEST_BYTES)
        return None if manifest is None else (manifest, _read(self.root / _SIGNATURE, SIGNATURE_BYTES))

    def _named_path(self, name: str) -> Path:
        return self.root / _NAMED / f"{name}.json"

    def _describe_names(self) -> None:
        """Lists the feature `names` in the directory's description."""
        document = _read(self.root / _DESCRIPTION, MANIFEST_BYTES)
        values: dict[str, Any] = json.loads(document) if document else {"pfimg": 1, "digest": self._store.digest, "features": []}
        if "names" not in values["features"]:
            values["features"].append("names")
            _replace(self.root, {_DESCRIPTION: _json(values)})


def _name(ref: AnyRef) -> str | None:
    # A directory may also be what somebody's own scheme stands for.
    return ref.name if isinstance(ref, FileRef) else None


def _unpack(document: bytes, path: Path) -> tuple[bytes, bytes]:
    """Manifest and signature of a named image."""
    try:
        values = json.loads(document)
        if values["pfimg"] == 1:
            return values["manifest"].encode(), values["signature"].encode()
        reason = f"version {values['pfimg']!r} is not known to this version of pfimg"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it is not the document of a named image: {error!r}"
    raise FormatError(f"{path}: {reason}", path=path)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _is_there(path: Path) -> bool:
    """False only when it is certain; who may not look gets PermissionError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read(path: Path, limit: int) -> bytes | None:
    """A file's content; None when there is no such file."""
    try:
        # What is no file, but would block until somebody writes to it, must not stop us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError(f"{path} is not a file", path=path)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise LimitExceeded(f"{path} is larger than {limit:,} bytes", path=path, limit=limit)
    return content


def _replace(directory: Path, files: dict[str, bytes]) -> None:
    """Gives files their content: all are staged and on stable storage before the first is renamed, in the order given."""
    suffix = f".{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        for name, content in files.items():
            with (directory / f"{name}{suffix}").open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (directory / f"{name}{suffix}").replace(directory / name)
    finally:
        for name in files:
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    _sync(directory)


def _make(directory: Path) -> None:
    """Creates a directory and those above it, on stable storage."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some mounted file systems do not sync directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

"""Blobs in transit between a store and a transport: out, in, and counted.

Frames pass as they are stored, or encoded anew by the core, a bounded batch at a time; what arrives is verified and stored by
the core.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pfimg._core import Store
from pfimg.registries.base import StoredBlob
from pfimg.types import Buffer, Progress, ProgressCallback, StrPath

# Blobs, and bytes of their frames, that are encoded anew at a time.
_ENCODE_BATCH: Final = 256
_ENCODE_BYTES: Final = 64 << 20


@dataclass(slots=True)
class Meter:
    """Counts what has moved, and tells whoever wants to know, about ten times a second."""

    phase: str
    progress: ProgressCallback | None = None
    total: int = 0
    done: int = 0
    bytes: int = 0
    next: float = 0.0

    def advance(self, items: int, size: int) -> None:
        """Counts blobs and their bytes."""
        self.done += items
        self.bytes += size
        if self.done == self.total or time.monotonic() >= self.next:
            self.show(self.done, self.bytes)
            self.next = time.monotonic() + 0.1

    def show(self, done: int, size: int) -> None:
        """Tells these totals at once, whatever has been counted."""
        if self.progress is not None:
            self.progress(Progress(self.phase, done, self.total, size))


def stored(store: Store, digests: Iterable[str], codec: str | None, meter: Meter) -> Iterator[StoredBlob]:
    """Blobs of a store, to send."""
    for blob in _as_they_are(store, digests) if codec is None else _encoded_anew(store, digests, codec):
        yield blob
        meter.advance(1, blob.size)


def _as_they_are(store: Store, digests: Iterable[str]) -> Iterator[StoredBlob]:
    for digest in digests:
        if (path := store.blob_path(digest)) is not None:
            yield StoredBlob(digest, path.stat().st_size, path, partial(store.read_frame, digest))
        else:
            yield _in_memory(digest, store.read_frame(digest))


def _encoded_anew(store: Store, digests: Iterable[str], codec: str) -> Iterator[StoredBlob]:
    """Frames of another encoding, made by all threads at once: as many at a time as a batch holds."""
    batch: list[str] = []
    size = 0
    for digest in digests:
        batch.append(digest)
        size += path.stat().st_size if (path := store.blob_path(digest)) is not None else 0
        if len(batch) == _ENCODE_BATCH or size >= _ENCODE_BYTES:
            yield from map(_in_memory, batch, store.encode_frames(batch, codec=codec))
            batch, size = [], 0
    if batch:
        yield from map(_in_memory, batch, store.encode_frames(batch, codec=codec))


def _in_memory(digest: str, frame: bytes) -> StoredBlob:
    return StoredBlob(digest, len(frame), None, lambda: frame)


class Landing:
    """The sink of a pull: the core verifies and stores."""

    def __init__(self, store: Store, meter: Meter) -> None:
        self._store = store
        self._meter = meter

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        """Takes frames from memory."""
        self._store.land_frames(items)
        self._meter.advance(len(items), sum(len(frame) for _, frame in items))

    def files(self, items: Sequence[tuple[str, StrPath]]) -> None:
        """Takes frames from files."""
        meter = self._meter
        _, size = self._store.import_files(items, tick=lambda done, _, size: meter.show(meter.done + done, meter.bytes + size))
        meter.advance(len(items), size)

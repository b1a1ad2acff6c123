"""Blobs in transit between a store and a transport: out, in, and counted.

Frames pass as they are stored, or encoded anew by the core, a bounded batch at a time; what arrives is verified and stored by
the core. Float frames, which others cannot read, are encoded anew unless they are asked for.

Limits: to encode a blob anew, the core holds it and its frame in memory, one blob at a time where it is large.
"""

import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final, Self

from pfimg._core import Store
from pfimg.errors import about
from pfimg.registries.base import StoredBlob, Traffic, Transport
from pfimg.signing import Verdict
from pfimg.types import Buffer, Progress, ProgressCallback, PullReport, PushReport, StrPath

# Blobs, and bytes of their frames, that are read or encoded anew at a time.
_BATCH: Final = 256
_BATCH_BYTES: Final = 32 << 20
# A frame that is larger is sent as a file.
_LARGE_BYTES: Final = 8 << 20
# Blobs whose size is looked up at a time.
_LOOK_UP: Final = 4096


@dataclass(slots=True)
class Meter:
    """Counts what has moved, and tells whoever wants to know, about ten times a second."""

    phase: str
    progress: ProgressCallback | None = None
    total: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    done: int = 0
    bytes: int = 0
    next: float = 0.0
    counted: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, phase: str, progress: ProgressCallback | None, transport: Transport, total: int = 0) -> Self:
        """One that also tells of the requests of a transport, if it counts them."""
        traffic = getattr(transport, "traffic", None)
        return cls(phase, progress, total, traffic if isinstance(traffic, Traffic) else Traffic())

    def advance(self, items: int, size: int) -> None:
        """Counts blobs and their bytes."""
        self.done += items
        self.bytes += size
        if self.done == self.total or time.monotonic() >= self.next:
            self.show(self.done, self.bytes)
            self.next = time.monotonic() + 0.1

    def count(self, blob: StoredBlob) -> None:
        """Counts a blob, the first time."""
        if blob.digest not in self.counted:
            self.counted.add(blob.digest)
            self.advance(1, blob.size)

    def set(self, done: int, total: int, size: int) -> None:
        """Takes over what somebody else has counted."""
        self.total = total
        self.advance(done - self.done, size - self.bytes)

    def show(self, done: int, size: int) -> None:
        """Tells these totals at once, whatever has been counted."""
        if self.progress is not None:
            requests = self.traffic
            self.progress(Progress(self.phase, done, self.total, size, None, requests.retries, requests.in_flight))

    def pushed(self, ref: object, wanted: int, start: float, retries: int = 0) -> PushReport:
        """What a push of so many blobs came to, which began at `start`; `retries` are those of others than this transport."""
        sent = self.total - self.traffic.found
        size = self.bytes - self.traffic.found_bytes
        return PushReport(str(ref), sent, wanted - sent, size, time.monotonic() - start, self.traffic.retries + retries)

    def pulled(self, image: str, wanted: int, verdict: Verdict, start: float) -> PullReport:
        """What a pull of so many blobs came to, which began at `start`."""
        seconds = time.monotonic() - start
        moved, skipped, retries = self.total, wanted - self.total, self.traffic.retries
        return PullReport(image, moved, skipped, self.bytes, verdict.status, seconds, retries, verdict.signer)


def stored(store: Store, digests: Iterable[str], transport: Transport, codec: str | None, meter: Meter) -> Iterator[StoredBlob]:
    """Blobs of a store, to send by a transport."""
    digests = list(digests)
    floats = set(store.float_blobs(digests)) if codec in (None, "float") else set()
    as_they_are = {None: set(digests) - floats, "float": floats}.get(codec, set())
    kept = (digest for digest in digests if digest in as_they_are)
    others = (digest for digest in digests if digest not in as_they_are)
    files = _files(store, kept) if getattr(transport, "copies_files", False) else _frames(store, kept)
    for blob in chain(files, _encoded_anew(store, others, codec or "auto")):
        yield blob
        meter.count(blob)


def _files(store: Store, digests: Iterable[str]) -> Iterator[StoredBlob]:
    """Frames as files, which whoever copies them verifies."""
    for digest in digests:
        if (path := store.blob_path(digest)) is not None:
            yield StoredBlob(digest, path.stat().st_size, path, partial(store.read_frame, digest))
        else:
            yield _in_memory(digest, store.read_frame(digest))


def _frames(store: Store, digests: Iterable[str]) -> Iterator[StoredBlob]:
    """Frames in memory, read and verified by all threads at once; large ones as files, which have been verified."""
    for batch, large in _batches(store, digests):
        if large:
            for digest in batch:
                size = store.check_blob(digest)
                yield StoredBlob(digest, size, store.blob_path(digest), partial(store.read_frame, digest))
        else:
            yield from map(_in_memory, batch, store.read_frames(batch))


def _encoded_anew(store: Store, digests: Iterable[str], codec: str) -> Iterator[StoredBlob]:
    """Frames of another encoding, made by all threads at once; large ones as files."""
    for batch, _ in _batches(store, digests):
        frames = store.encode_frames(batch, codec=codec)
        frames.reverse()
        for digest in batch:
            yield _sendable(digest, frames.pop())  # so that nobody holds what has been handed on


def _batches(store: Store, digests: Iterable[str]) -> Iterator[tuple[list[str], bool]]:
    """As many blobs as may be in memory at a time, or one that is too large for that."""
    batch: list[str] = []
    held = 0
    for some in _chunks(digests, _LOOK_UP):
        for digest, size in zip(some, store.frame_sizes(some), strict=True):
            large = size > _LARGE_BYTES
            if batch and (large or len(batch) == _BATCH or held + size > _BATCH_BYTES):
                yield batch, False
                batch, held = [], 0
            if large:
                yield [digest], True
            else:
                batch.append(digest)
                held += size
    if batch:
        yield batch, False


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _in_memory(digest: str, frame: bytes) -> StoredBlob:
    return StoredBlob(digest, len(frame), None, lambda: frame)


def _sendable(digest: str, frame: bytes) -> StoredBlob:
    if len(frame) <= _LARGE_BYTES:
        return _in_memory(digest, frame)
    made = _Made(frame)
    return StoredBlob(digest, len(frame), made.path, made.read, is_passing=True)


class _Made:
    """A frame in a file of its own, which goes away with the last reference to this."""

    def __init__(self, frame: bytes) -> None:
        with NamedTemporaryFile(prefix="pfimg-", delete=False) as file:
            self.path = Path(file.name)
            weakref.finalize(self, self.path.unlink, missing_ok=True)
            with about(self.path):
                file.write(frame)

    def read(self) -> bytes:
        return self.path.read_bytes()


class FullError(Exception):
    """As many bytes have landed as may; what has not landed is to be asked for again. It is not seen outside of this package."""


class Landing:
    """The sink of a pull: the core verifies and stores.

    Args:
        store: Where to.
        meter: Counts what has landed.
        room: When so many bytes have landed, FullError is raised.
    """

    def __init__(self, store: Store, meter: Meter, room: int = sys.maxsize) -> None:
        self._store = store
        self._meter = meter
        self._room = room

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        """Takes frames from memory."""
        self._store.land_frames(items)
        self._count(len(items), sum(len(frame) for _, frame in items))

    def files(self, items: Sequence[tuple[str, StrPath]]) -> None:
        """Takes frames from files."""
        meter = self._meter

        def tick(done: int, _: int, size: int) -> None:
            meter.show(meter.done + done, meter.bytes + size)

        some = self._fitting(items)
        _, size = self._store.import_files(some, tick=tick)
        self._count(len(some), size)
        if len(some) < len(items):
            raise FullError

    def _fitting(self, items: Sequence[tuple[str, StrPath]]) -> Sequence[tuple[str, StrPath]]:
        """Those of the files, from the first one on, that there is room for."""
        size = 0
        for at, (_, path) in enumerate(items, 1) if self._room < sys.maxsize else ():
            with suppress(OSError):  # one that is not there is for the store to tell
                size += Path(path).stat().st_size
            if size >= self._room:
                return items[:at]
        return items

    def _count(self, items: int, size: int) -> None:
        self._meter.advance(items, size)
        self._room -= size
        if self._room <= 0:
            raise FullError

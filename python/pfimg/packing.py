"""Packs: many blobs in one object, for registries where small objects are dear.

`PackedTransport` is a transport over one that carries packs (`registries.base.PackTransport`). What is sent through it is put
into packs in the order in which it comes, so that the same blobs give the same packs; a pack that is there already is used
again, and only blobs that are in none are packed. What is fetched is cut out of the packs by ranges, neighbours in one request.

Nothing in an index is believed: whatever is cut out by it is hashed to its name before it lands.

Limits: blobs that lie in a registry by themselves are not looked for when an image is packed, so that its packs hold all of it.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from pfimg._core import PackIndex
from pfimg.errors import BlobNotFound, about
from pfimg.registries.base import Pack, PackTransport, Range, Sink, StoredBlob, Traffic, holding
from pfimg.registries.refs import AnyRef
from pfimg.types import Buffer

# Bytes that one request fetches, at most; a larger frame is put together in a file.
_RANGE_BYTES: Final = 8 << 20
# Ranges of a larger frame that are asked for together.
_RANGES: Final = 64
# Bytes that are fetched in vain rather than asking once more.
_GAP_BYTES: Final = 64 << 10


class PackedTransport:
    """A transport whose blobs are in packs."""

    def __init__(self, inner: PackTransport, ref: AnyRef, index: PackIndex | None = None) -> None:
        self._inner = inner
        self._ref = ref
        self._index = index if index is not None else PackIndex.join([])
        self._wanted: list[str] = []
        self.traffic: Traffic | None = getattr(inner, "traffic", None)

    def hold(self) -> AbstractContextManager[None]:
        """See Sweeper."""
        return holding(self._inner)

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport."""
        self._wanted = list(digests)
        self._index = self._inner.packs_here(self._ref, digests)
        return {digest for digest, place in zip(digests, self._index.locate(digests), strict=True) if place is None}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""
        made: list[PackIndex] = []

        def packs() -> Iterator[Pack]:
            for pack in self._packs(items):
                yield pack
                made.append(pack.index)

        self._inner.send_packs(packs())
        self._index = PackIndex.join([self._index, *made])

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        found = list(zip(digests, self._index.locate(digests), strict=True))
        for digest, place in found:
            if place is None:
                raise BlobNotFound(f"blob {digest} is in no pack of {self._ref}", digest=digest)
        parts = sorted(
            (_Part(place[0], place[1], place[2], digest) for digest, place in found if place), key=lambda part: part[:2]
        )
        spans = list(_spans([part for part in parts if part.length <= _RANGE_BYTES]))

        def deliver(at: int, content: Buffer) -> None:
            view = memoryview(content)
            start = spans[at][0].offset
            sink.frames([(part.digest, view[part.offset - start : part.offset - start + part.length]) for part in spans[at]])

        self._inner.fetch_ranges([_range(span) for span in spans], deliver)
        for part in parts:
            if part.length > _RANGE_BYTES:
                self._fetch_large(part, sink)

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """See Transport."""
        return self._inner.read_manifest(ref)

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        return self._inner.publish_packed(ref, manifest, signature, self._index.only(self._index.covering(self._wanted)))

    def exists(self, ref: AnyRef) -> bool:
        """See Transport."""
        return self._inner.exists(ref)

    def _packs(self, items: Iterable[StoredBlob]) -> Iterator[Pack]:
        made = _Made()
        for item in items:
            if item.path is not None and item.size > self._inner.pack_bytes:
                yield _large(item, item.path)
                continue
            if made.digests and len(made.content) + item.size > self._inner.pack_bytes:
                yield made.pack()
                made = _Made()
            made.add(item.digest, item.read())
        if made.digests:
            yield made.pack()

    def _fetch_large(self, part: "_Part", sink: Sink) -> None:
        """Puts a large frame together in a file.

        A few ranges at a time: a length that is a lie ends where the pack does, however many ranges it would take.
        """
        with TemporaryDirectory(prefix="pfimg-") as scratch:
            path = Path(scratch, part.digest.partition(":")[2])
            with about(path), path.open("wb") as file:
                starts = range(0, part.length, _RANGE_BYTES)
                for first in range(0, len(starts), _RANGES):
                    some = starts[first : first + _RANGES]

                    def deliver(at: int, content: Buffer, some: range = some) -> None:
                        file.seek(some[at])
                        file.write(content)

                    pieces = [Range(part.pack, part.offset + at, min(_RANGE_BYTES, part.length - at)) for at in some]
                    self._inner.fetch_ranges(pieces, deliver)
            sink.files([(part.digest, path)])


class _Made:
    """A pack in the making."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.content = bytearray()
        self._lengths: list[int] = []

    def add(self, digest: str, frame: bytes) -> None:
        self.digests.append(digest)
        self._lengths.append(len(frame))
        self.content += frame

    def pack(self) -> Pack:
        return _named(self.content, self.digests, self._lengths)


class _Part(NamedTuple):
    """Where a frame is."""

    pack: str
    offset: int
    length: int
    digest: str


def _spans(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Neighbours that are fetched by one request."""
    for _, group in groupby(parts, key=lambda part: part.pack):
        span: list[_Part] = []
        for part in group:
            if span:
                end = span[-1].offset + span[-1].length
                if part.offset - end > _GAP_BYTES or part.offset + part.length - span[0].offset > _RANGE_BYTES:
                    yield span
                    span = []
            span.append(part)
        yield span


def _range(span: Sequence[_Part]) -> Range:
    return Range(span[0].pack, span[0].offset, span[-1].offset + span[-1].length - span[0].offset)


def _large(item: StoredBlob, path: Path) -> Pack:
    with path.open("rb") as file:
        return _named(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), [item.digest], [item.size])


def _named(content: Buffer, digests: Sequence[str], lengths: Sequence[int]) -> Pack:
    name = hashlib.sha256(content).hexdigest()
    return Pack(name, content, PackIndex.of(name, digests, lengths))

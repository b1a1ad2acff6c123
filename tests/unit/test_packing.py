"""Packs over a transport: which blobs go into which, what is used again, and what is asked for when they are fetched."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pfimg
from pfimg import packing
from pfimg._core import PackIndex
from pfimg.packing import PackedTransport
from pfimg.registries import FileTransport, StoredBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pfimg.registries.base import Pack, Range
    from pfimg.types import Buffer


class Asked(FileTransport):
    """A directory that remembers what was asked of it, and whose packs are small."""

    pack_bytes = 4096

    def __init__(self, ref: pfimg.FileRef) -> None:
        super().__init__(ref)
        self.sent: list[Pack] = []
        self.ranges: list[Range] = []

    def send_packs(self, packs: Iterable[Pack]) -> None:
        def noted() -> Iterable[Pack]:
            for pack in packs:
                self.sent.append(pack)
                yield pack

        super().send_packs(noted())

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        self.ranges.extend(ranges)
        super().fetch_ranges(ranges, deliver)


@pytest.fixture
def ref(tmp_path: Path) -> pfimg.FileRef:
    return pfimg.FileRef(tmp_path / "registry")


@pytest.fixture
def blobs(store: pfimg.PfStore) -> list[str]:
    numbers = random.Random(5)
    return store.put_many([numbers.randbytes(at * 17) for at in range(1, 60)])


def items(store: pfimg.PfStore, digests: Iterable[str]) -> list[StoredBlob]:
    frames = {digest: store.read_frame(digest) for digest in digests}
    return [StoredBlob(digest, len(frame), None, lambda frame=frame: frame) for digest, frame in frames.items()]  # type: ignore[misc]


class Store:
    """A sink that keeps frames."""

    def __init__(self) -> None:
        self.got: dict[str, bytes] = {}

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        self.got.update((digest, bytes(frame)) for digest, frame in items)

    def files(self, items: Sequence[tuple[str, object]]) -> None:
        self.got.update((digest, Path(str(path)).read_bytes()) for digest, path in items)


def test_blobs_are_packed_in_order_and_packs_depend_on_them_alone(
    ref: pfimg.FileRef, tmp_path: Path, store: pfimg.PfStore, blobs: list[str]
) -> None:
    here, there = Asked(ref), Asked(pfimg.FileRef(tmp_path / "another"))
    for transport in (here, there):
        packed = PackedTransport(transport, ref)
        assert packed.missing(blobs) == set(blobs)
        packed.send(items(store, blobs))
    assert [pack.name for pack in here.sent] == [pack.name for pack in there.sent]
    assert len(here.sent) > 3
    frames = b"".join(store.read_frame(digest) for digest in blobs)
    assert b"".join(bytes(pack.content) for pack in here.sent) == frames
    for pack in here.sent:
        assert len(pack.content) <= 4096 or len(pack.index) == 1
        assert pack.name == hashlib.sha256(pack.content).hexdigest()
        assert (ref.path / "packs" / f"{pack.name}.pack").read_bytes() == pack.content
        assert (ref.path / "packs" / f"{pack.name}.idx").read_bytes() == pack.index.to_bytes()


def test_what_is_in_a_pack_is_not_packed_again(ref: pfimg.FileRef, store: pfimg.PfStore, blobs: list[str]) -> None:
    first = PackedTransport(Asked(ref), ref)
    first.missing(blobs[:40])
    first.send(items(store, blobs[:40]))
    transport = Asked(ref)
    second = PackedTransport(transport, ref)
    assert second.missing(blobs[20:]) == set(blobs[40:])
    second.send(items(store, blobs[40:]))
    assert sum(len(pack.index) for pack in transport.sent) == len(blobs) - 40
    sink = Store()
    second.fetch(blobs, sink)
    assert sink.got == {digest: store.read_frame(digest) for digest in blobs}


def test_neighbours_are_fetched_by_one_request(
    ref: pfimg.FileRef, store: pfimg.PfStore, blobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Asked(ref)
    packed = PackedTransport(transport, ref)
    packed.missing(blobs)
    packed.send(items(store, blobs))
    packed.fetch(blobs, Store())
    assert len(transport.ranges) == len(transport.sent)
    transport.ranges.clear()
    monkeypatch.setattr(packing, "_GAP_BYTES", 0)
    pack = transport.sent[0].index
    inside = [digest for digest, place in zip(blobs, pack.locate(blobs), strict=True) if place]
    assert len(inside) > 4
    packed.fetch([inside[3], inside[0], inside[1]], Store())
    assert [part.offset == 0 for part in transport.ranges] == [True, False]
    transport.ranges.clear()
    monkeypatch.setattr(packing, "_RANGE_BYTES", 64)
    sink = Store()
    packed.fetch(blobs, sink)
    assert max(part.length for part in transport.ranges) <= 64
    assert sink.got == {digest: store.read_frame(digest) for digest in blobs}


def test_a_large_blob_is_a_pack_by_itself(ref: pfimg.FileRef, store: pfimg.PfStore) -> None:
    digest = store.put(random.Random(6).randbytes(30_000))
    path = store.blob_path(digest)
    assert path is not None
    frame = path.read_bytes()
    large = StoredBlob(digest, 5000, path, lambda: frame)
    transport = Asked(ref)
    packed = PackedTransport(transport, ref)
    packed.missing([digest])
    transport.pack_bytes = len(frame) - 1
    packed.send([StoredBlob(digest, len(frame), path, large.read)])
    assert [pack.name for pack in transport.sent] == [hashlib.sha256(frame).hexdigest()]
    sink = Store()
    packed.fetch([digest], sink)
    assert sink.got == {digest: frame}


def test_a_blob_that_is_in_no_pack_is_named(ref: pfimg.FileRef, blobs: list[str]) -> None:
    with pytest.raises(pfimg.BlobNotFound, match=f"{blobs[0]} is in no pack") as caught:
        PackedTransport(Asked(ref), ref, PackIndex.join([])).fetch(blobs, Store())
    assert caught.value.digest == blobs[0]


def test_an_image_is_published_with_the_packs_that_it_uses_and_no_others(
    ref: pfimg.FileRef, store: pfimg.PfStore, blobs: list[str]
) -> None:
    transport = Asked(ref)
    for part in (blobs[:30], blobs[30:]):
        packed = PackedTransport(transport, ref)
        packed.missing(part)
        packed.send(items(store, part))
    names = [pack.name for pack in transport.sent]
    packed = PackedTransport(transport, ref)
    assert packed.missing(blobs[-2:]) == set()
    assert packed.publish(ref, b"{}", b"{}") == pfimg.FileRef(ref.path, "default")
    reader = Asked(ref)
    assert reader.read_manifest(ref) == (b"{}", b"{}")
    index = reader.packs_of_image()
    assert index is not None
    assert [name for name, _, _ in index.packs] == names[-1:]

"""Stored frames on their way out: verified, and as they are. Oracles: the files themselves, hashlib, zstandard."""

import hashlib
import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable

ABSENT = "sha256:" + "0" * 64
MIB = 1 << 20
BLOBS = [
    b"",
    b"x",
    random.Random(0).randbytes(65_536),
    random.Random(1).randbytes(131_072),
    random.Random(2).randbytes(131_073),
    b"words and words " * 5000,
    random.Random(3).randbytes(3 * MIB),
    bytes(9 * MIB),
]


def name_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def file_of(store: pfimg.PfStore, digest: str) -> Path:
    path = store.blob_path(digest)
    assert path
    return path


@pytest.fixture(params=["auto", "zstd", "store"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[pfimg.PfStore, list[str]]:
    store = pfimg.PfStore.open(tmp_path / "filled", codec=request.param)
    # More than one task has, in an order in which large ones stand between small ones.
    blobs = [*BLOBS, *(random.Random(n).randbytes(n * 100) for n in range(4, 60)), *BLOBS]
    return store, store.put_many(blobs)


def test_frames_are_what_the_files_hold(filled: tuple[pfimg.PfStore, list[str]]) -> None:
    store, digests = filled
    files = [file_of(store, digest).read_bytes() for digest in digests]
    assert store.read_frames(digests) == files
    assert store.frame_sizes(digests) == list(map(len, files))
    assert [store.read_frame(digest) for digest in digests] == files
    assert [store.check_blob(digest) for digest in digests] == list(map(len, files))
    assert store.read_frames([]) == []
    assert store.frame_sizes([]) == []
    for digest, frame in zip(digests, files, strict=True):
        assert name_of(zstandard.ZstdDecompressor().decompressobj().decompress(frame)) == digest


def test_frames_that_are_not_in_memory_are_read(filled: tuple[pfimg.PfStore, list[str]]) -> None:
    store, digests = filled
    want = store.read_frames(digests)
    for digest in digests[::3]:
        with file_of(store, digest).open("rb") as file:
            os.fdatasync(file)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert store.read_frames(digests) == want


def test_any_standard_frames_are_read(store: pfimg.PfStore) -> None:
    foreign = {
        "level 19": zstandard.ZstdCompressor(level=19).compress(BLOBS[5]),
        "of a length that it does not tell": zstandard.ZstdCompressor(write_content_size=False).compress(BLOBS[3]),
        "several": b"".join(map(zstandard.compress, (BLOBS[2][:1000], BLOBS[2][1000:]))),
        "skippable at the end": zstandard.compress(BLOBS[6]) + struct.pack("<II", 0x184D2A50, 3) + b"abc",
    }
    contents = [BLOBS[5], BLOBS[3], BLOBS[2], BLOBS[6]]
    digests = [name_of(content) for content in contents]
    for digest, frame in zip(digests, foreign.values(), strict=True):
        path = store.root / "blobs" / "sha256" / digest[7:9] / f"{digest[7:]}.zst"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(frame)
    assert store.read_frames(digests) == list(foreign.values())
    assert [store.check_blob(digest) for digest in digests] == store.frame_sizes(digests)


@pytest.mark.parametrize("codec", ["store", "zstd"])
@pytest.mark.parametrize("size", [1000, 500_000])
def test_a_corrupt_frame_is_named_and_moved_away(tmp_path: Path, codec: str, size: int) -> None:
    store = pfimg.PfStore.open(tmp_path, codec=codec)
    blobs = [random.Random(n).randbytes(size // 2).hex().encode() for n in range(40)]
    digests = store.put_many(blobs)
    path = file_of(store, digests[23])
    good = path.read_bytes()
    damages = {
        "magic": bytes([good[0] ^ 1]) + good[1:],
        "content": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 4]) + good[len(good) // 2 + 1 :],
        "cut off": good[:-1],
        "more behind": good + b"more",
        "another blob's": file_of(store, digests[0]).read_bytes(),
    }
    reads: dict[int | None, Callable[[], object]] = {
        23: lambda: store.read_frames(digests),
        None: lambda: store.read_frame(digests[23]),
        0: lambda: store.read_frames([digests[23]]),
    }
    for damage in damages.values():
        for index, read in reads.items():
            path.write_bytes(damage)
            with pytest.raises(pfimg.IntegrityError) as caught:
                read()
            assert (caught.value.digest, caught.value.index) == (digests[23], index)
            assert caught.value.path == str(path)
            assert not path.exists()
        path.write_bytes(damage)
        with pytest.raises(pfimg.IntegrityError):
            store.check_blob(digests[23])
    assert len(list((store.root / "quarantine").iterdir())) == len(damages) * (len(reads) + 1)
    store.put(blobs[23])
    assert len(store.read_frames(digests)) == 40


def test_an_absent_blob_is_named(store: pfimg.PfStore) -> None:
    digests = [*store.put_many(BLOBS), ABSENT]
    empty = file_of(store, digests[3])
    empty.write_bytes(b"")  # what a crash leaves
    for wanted, digest, index in ((digests[4:], ABSENT, len(digests) - 5), (digests[:-1], digests[3], 3)):
        for ask in (store.read_frames, store.frame_sizes):
            with pytest.raises(pfimg.BlobNotFound) as caught:
                ask(wanted)
            assert (caught.value.digest, caught.value.index) == (digest, index)
    for digest in (ABSENT, digests[3]):
        with pytest.raises(pfimg.BlobNotFound):
            store.check_blob(digest)
    with pytest.raises(pfimg.FormatError, match="digests are sha256") as refused:
        store.frame_sizes([digests[0], "blake3:" + "0" * 64])
    assert refused.value.index == 1


def test_a_large_frame_is_not_read_into_memory(store: pfimg.PfStore) -> None:
    digest = store.put(b"x")
    with file_of(store, digest).open("r+b") as file:
        file.truncate(3 << 30)
    assert store.frame_sizes([digest]) == [3 << 30]
    with pytest.raises(pfimg.LimitExceeded) as caught:
        store.read_frames([digest])
    assert (caught.value.index, caught.value.limit) == (0, 1 << 30)


def test_blobs_elsewhere_are_encoded(tmp_path: Path) -> None:
    for codec in ("auto", "zstd", "store"):
        store = pfimg.PfStore(tmp_path / codec, codec=codec, blobs=pfimg.MemoryStore())
        digests = store.put_many(BLOBS)
        frames = store.read_frames(digests)
        assert frames == [store.read_frame(digest) for digest in digests]
        assert [zstandard.ZstdDecompressor().decompressobj().decompress(frame) for frame in frames] == BLOBS
        assert store.frame_sizes(digests) == [store.check_blob(digest) for digest in digests] == list(map(len, frames))
        for ask in (store.read_frames, store.frame_sizes):
            with pytest.raises(pfimg.BlobNotFound) as caught:
                ask([digests[0], ABSENT])
            assert caught.value.index == 1


@pytest.mark.parametrize("codec", ["auto", "zstd", "store"])
def test_many_frames_land_and_a_lie_among_them_is_named(tmp_path: Path, codec: str) -> None:
    source = pfimg.PfStore.open(tmp_path / "from", codec=codec)
    blobs = [*BLOBS, *(random.Random(n).randbytes(n * 100) for n in range(4, 160)), *BLOBS]
    digests = source.put_many(blobs)
    items = list(zip(digests, source.read_frames(digests), strict=True))
    files = [(digest, file_of(source, digest)) for digest in digests]
    unique = len(set(digests))
    for n, durability in enumerate(("none", "group", "each")):
        landed = pfimg.PfStore.open(tmp_path / f"landed {n}", durability=durability)
        imported = pfimg.PfStore.open(tmp_path / f"imported {n}", durability=durability)
        assert landed.land_frames(items) >= unique
        assert imported.import_files(files)[0] >= unique
        for target in (landed, imported):
            assert target.get_many(digests) == blobs
            assert target.read_frames(digests) == [frame for _, frame in items]
            assert target.land_frames(items) == 0
            assert target.import_files(files) == (0, 0)
            assert target.stats().blobs == unique
    target = pfimg.PfStore.open(tmp_path / "lied to")
    lie = name_of(b"something else")
    for at in (0, 57, len(items) - 1):
        with pytest.raises(pfimg.IntegrityError) as landing:
            target.land_frames([*items[:at], (lie, items[at][1]), *items[at + 1 :]])
        with pytest.raises(pfimg.IntegrityError) as importing:
            target.import_files([*files[:at], (lie, files[at][1]), *files[at + 1 :]])
        assert (landing.value.index, landing.value.digest) == (importing.value.index, importing.value.digest) == (at, lie)
        assert importing.value.path == str(files[at][1])
        assert not target.has(lie)
    with pytest.raises(pfimg.FormatError, match="digests are sha256") as other:
        target.land_frames([items[0], ("blake3:" + "0" * 64, items[1][1])])
    assert other.value.index == 1

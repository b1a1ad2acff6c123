"""Many blobs at once: known names, masks, frames of every standard form, blobs that lie about their length, logs."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import pfimg

ABSENT = "sha256:" + "0" * 64


def place(store: pfimg.PfStore, digest: str, frame: bytes) -> Path:
    """Puts a frame where a blob belongs, as another writer might."""
    hex_digits = digest.partition(":")[2]
    path = store.root / "blobs" / "sha256" / hex_digits[:2] / f"{hex_digits}.zst"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(frame)
    return path


def flip(path: Path) -> None:
    frame = bytearray(path.read_bytes())
    frame[-1] ^= 1
    path.write_bytes(frame)


def test_what_was_put_comes_back_in_order(store: pfimg.PfStore) -> None:
    rng = random.Random(0)
    blobs = [rng.randbytes(rng.choice([0, 1, 2047, 4096, 70_000])) for _ in range(600)] + [b"text " * 5000]
    digests = store.put_many(blobs)
    assert digests == [pfimg.digest_of(blob) for blob in blobs]
    order = [*rng.sample(range(len(blobs)), len(blobs)), 0, 0, len(blobs) - 1]
    assert store.get_many([digests[n] for n in order]) == [blobs[n] for n in order]
    outs = [bytearray(len(blobs[n])) for n in order]
    assert store.get_many([digests[n] for n in order], out=outs) is None
    assert outs == [blobs[n] for n in order]
    assert store.has_many([*digests, ABSENT]) == [True] * len(digests) + [False]


def test_known_names_are_believed_only_when_they_are_here(store: pfimg.PfStore) -> None:
    a, b = store.put_many([b"a", b"b"])
    assert store.put_many([b"not looked at", b"b", b"c"], digests=[a, None, pfimg.digest_of(b"c")])[:2] == [a, b]
    with pytest.raises(pfimg.IntegrityError) as caught:
        store.put_many([b"a", b"x"], digests=[a, pfimg.digest_of(b"y")])
    assert (caught.value.index, caught.value.digest) == (1, pfimg.digest_of(b"y"))
    with pytest.raises(pfimg.FormatError, match=r"^digests: 1 for 2 buffers"):
        store.put_many([b"a", b"b"], digests=[None])


def test_a_miss_is_raised_with_its_index(store: pfimg.PfStore) -> None:
    a = store.put(b"a")
    for out in (None, [bytearray(1), bytearray(1)]):
        with pytest.raises(pfimg.BlobNotFound) as caught:
            store.get_many([a, ABSENT], out=out)
        assert (caught.value.index, caught.value.digest) == (1, ABSENT)


def test_misses_are_masked_and_counted(store: pfimg.PfStore) -> None:
    blobs = [bytes([n]) * 1000 for n in range(4)]
    digests = store.put_many(blobs)

    def damage() -> None:
        path = store.blob_path(digests[2])
        assert path
        flip(path)

    damage()
    wanted = [digests[0], ABSENT, digests[2], digests[3]]
    assert store.get_many(wanted, errors="mask") == [blobs[0], None, None, blobs[3]]
    assert store.stats().counters["corrupt"] == 1
    assert not store.has(digests[2])
    # It is in quarantine, and the next put heals.
    assert store.put(blobs[2]) == digests[2]
    damage()
    outs = [bytearray(1000) for _ in wanted]
    assert store.get_many(wanted, out=outs, errors="mask") == [True, False, False, True]
    assert [bytes(outs[n]) for n in (0, 3)] == [blobs[0], blobs[3]]
    store.put(blobs[2])
    damage()
    with pytest.raises(pfimg.IntegrityError) as caught:
        store.get_many(wanted[:1] + wanted[2:])
    assert (caught.value.index, caught.value.digest) == (1, digests[2])


@pytest.mark.parametrize("errors", ["ignore", "", "RAISE"])
def test_another_way_of_errors_is_refused(store: pfimg.PfStore, errors: str) -> None:
    with pytest.raises(pfimg.FormatError, match=r"^errors: .* is neither raise nor mask"):
        store.get_many([], errors=errors)  # type: ignore[call-overload]


STORED = random.Random(1).randbytes(300_000)
TEXT = b"words and words " * 20_000
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "level 19": lambda blob: zstandard.ZstdCompressor(level=19).compress(blob),
    "no content size": lambda blob: zstandard.ZstdCompressor(write_content_size=False).compress(blob),
    "checksum": lambda blob: zstandard.ZstdCompressor(write_checksum=True).compress(blob),
    "two frames": lambda blob: zstandard.compress(blob[:1000]) + zstandard.compress(blob[1000:]),
    "skippable frame": lambda blob: zstandard.compress(blob) + b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note",
    "skippable frame first": lambda blob: b"\x5f\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note" + zstandard.compress(blob),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("blob", [STORED, TEXT], ids=["noise", "text"])
def test_any_standard_frame_is_read(store: pfimg.PfStore, form: str, blob: bytes) -> None:
    digest = pfimg.digest_of(blob)
    place(store, digest, FORMS[form](blob))
    assert store.get(digest) == blob
    assert store.get_many([digest, digest]) == [blob, blob]
    out = bytearray(len(blob))
    store.get_many([digest], out=[out])
    assert out == blob


def header(announced: int) -> bytes:
    """The beginning of a frame: magic, eight bytes of size, window of 128 KiB."""
    return b"\x28\xb5\x2f\xfd\xc0\x38" + announced.to_bytes(8, "little")


@pytest.mark.parametrize("announced", [0, 99, 101, 1 << 30, (1 << 30) + 1, 1 << 63])
def test_a_frame_that_lies_about_its_length_is_corrupt(store: pfimg.PfStore, announced: int) -> None:
    blob = bytes(range(100))
    frame = header(announced) + (len(blob) << 3 | 1).to_bytes(3, "little") + blob
    digest = pfimg.digest_of(blob)
    for get in (
        lambda: store.get(digest),
        lambda: store.get_many([digest]),
        lambda: store.get_many([digest], out=[bytearray(100)]),
    ):
        place(store, digest, frame)
        with pytest.raises(pfimg.IntegrityError):
            get()
        assert not store.has(digest)


def test_a_blob_whose_first_frame_looks_like_all_of_it(store: pfimg.PfStore) -> None:
    # As long as a stored frame of 40 bytes would be, and yet 41 bytes of content, in two frames.
    first = b"\x28\xb5\x2f\xfd\x20\x28" + (len(b"x" * 40) << 3 | 3).to_bytes(3, "little") + b"x"  # one block that repeats a byte
    rest = zstandard.compress(b"y")
    fill = 9 + 40 - len(first) - len(rest) - 8
    frame = first + rest + b"\x50\x2a\x4d\x18" + fill.to_bytes(4, "little") + bytes(fill)
    blob = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(frame)
    assert (blob, len(frame)) == (b"x" * 40 + b"y", 49)
    digest = pfimg.digest_of(blob)
    place(store, digest, frame)
    assert store.get(digest) == blob
    assert store.get_many([digest]) == [blob]


def test_the_core_s_warnings_reach_the_logger(store: pfimg.PfStore, caplog: pytest.LogCaptureFixture) -> None:
    digest = store.put(b"blob")
    path = store.blob_path(digest)
    assert path
    flip(path)
    with caplog.at_level(logging.WARNING, logger="pfimg"):
        assert store.get_many([digest], errors="mask") == [None]
    assert [(record.name, record.levelname) for record in caplog.records] == [("pfimg", "WARNING")]
    assert f"blob {digest} is corrupt" in caplog.text


def test_frames_land_as_they_are(store: pfimg.PfStore, tmp_path: Path) -> None:
    blobs = [STORED, TEXT, b""]
    items = [(pfimg.digest_of(blob), FORMS["level 19"](blob)) for blob in blobs]
    for target in (store, pfimg.PfStore.with_blobstore(tmp_path / "other", pfimg.MemoryStore())):
        assert target.land_frames(items) == 3
        assert target.land_frames([(digest, bytearray(frame)) for digest, frame in items]) == 0
        assert target.get_many([digest for digest, _ in items]) == blobs
        with pytest.raises(pfimg.PfimgError) as caught:
            target.land_frames([items[0], (ABSENT, items[1][1])])
        assert (caught.value.code, caught.value.index) == ("integrity", 1)
    assert [store.read_frame(digest) for digest, _ in items] == [frame for _, frame in items]


def test_frames_land_from_any_memory(store: pfimg.PfStore, tmp_path: Path) -> None:
    blobs = [STORED, STORED * 9, TEXT]
    items = [(digest, store.read_frame(digest)) for digest in store.put_many(blobs)]
    other = pfimg.PfStore.open(tmp_path / "other")
    views = [memoryview(bytearray(b"before" + frame + b"after"))[6 : 6 + len(frame)] for _, frame in items]
    with pytest.raises(pfimg.IntegrityError):
        other.land_frames([(items[0][0], views[1]), (items[1][0], views[0])])
    assert other.land_frames([(digest, view) for (digest, _), view in zip(items, views, strict=True)]) == 3
    assert other.get_many([digest for digest, _ in items]) == blobs
    assert [other.read_frame(digest) for digest, _ in items] == [frame for _, frame in items]


def test_files_are_imported(store: pfimg.PfStore, tmp_path: Path) -> None:
    digests = store.put_many([STORED, TEXT])
    items = [(digest, store.blob_path(digest) or "") for digest in digests]
    size = sum(Path(path).stat().st_size for _, path in items)
    targets = [pfimg.PfStore.open(tmp_path / "a"), pfimg.PfStore.with_blobstore(tmp_path / "b", pfimg.MemoryStore())]
    for target in targets:
        ticks: list[tuple[int, int, int]] = []
        assert target.import_files(items, tick=lambda *tick, ticks=ticks: ticks.append(tick)) == (2, size)
        assert ticks[-1] == (2, 2, size)
        assert target.import_files(items) == (0, 0)
        assert target.get_many(digests) == [STORED, TEXT]
        with pytest.raises(pfimg.BlobNotFound) as caught:
            target.import_files([items[0], (ABSENT, tmp_path / "absent")])
        assert (caught.value.index, caught.value.digest) == (1, ABSENT)


def test_upkeep_needs_the_blobs_in_the_directory(tmp_path: Path) -> None:
    store = pfimg.PfStore.with_blobstore(tmp_path, pfimg.MemoryStore())
    for upkeep in (store.verify, store.gc, store.stats):
        with pytest.raises(pfimg.StoreError, match="blobs are not in its directory"):
            upkeep()


def test_a_store_elsewhere_has_its_blobs_digests(tmp_path: Path) -> None:
    blobs = pfimg.MemoryStore(digest="blake3")
    store = pfimg.PfStore.with_blobstore(tmp_path, blobs)
    assert store.digest == "blake3"
    assert store.put(b"blob").startswith("blake3:")

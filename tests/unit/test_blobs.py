"""Single blobs: files that other decoders read, options, damage and healing, many writers, pins.

Batches are in test_batches.py, other blob stores in test_blobs_elsewhere.py. Oracles: hashlib, blake3, and zstandard, which also
writes and reads the files themselves.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
import zstandard

import pfimg

MEBIBYTE = 1 << 20
ABSENT = "sha256:" + "0" * 64
NOISE = random.Random(0).randbytes(3 * MEBIBYTE + 5)
TEXT = b"".join(b'{"role": "user", "content": "question %d"}\n' % n for n in range(60_000))
CODECS = ["auto", "zstd", "store"]


def name_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def path_of(store: pfimg.PfStore, digest: str) -> Path:
    """Where the published format puts a blob."""
    algorithm, _, hex_digits = digest.partition(":")
    return store.root / "blobs" / algorithm / hex_digits[:2] / f"{hex_digits}.zst"


def files_below(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("*") if found.is_file())


# Put, get, has


@pytest.mark.parametrize("length", [0, 1, 4096, 128 * 1024, 128 * 1024 + 1, MEBIBYTE, MEBIBYTE + 1, len(NOISE)])
def test_a_blob_is_kept_under_its_sha256(store: pfimg.PfStore, length: int) -> None:
    blob = NOISE[:length]
    assert not store.has(name_of(blob))
    assert store.put(blob) == name_of(blob)
    assert store.has(name_of(blob))
    found = store.get(name_of(blob))
    assert type(found) is bytes
    assert found == blob
    assert files_below(store.root / "blobs") == [path_of(store, name_of(blob))]
    assert store.physical_bytes() == path_of(store, name_of(blob)).stat().st_size


def test_what_is_here_is_not_written_again(store: pfimg.PfStore) -> None:
    store.put_many([TEXT, b"", TEXT])
    before = {path: path.stat().st_ino for path in files_below(store.root)}
    store.put(TEXT)
    store.put_many([b"", TEXT])
    assert {path: path.stat().st_ino for path in files_below(store.root)} == before
    counters = store.stats().counters
    assert counters["deduplicated"] >= 3
    assert counters["bytes_written"] <= 2 * len(TEXT)


def test_an_absent_blob_is_a_key_error_that_prints_unquoted(store: pfimg.PfStore) -> None:
    with pytest.raises(KeyError) as caught:
        store.get(ABSENT)
    assert isinstance(caught.value, pfimg.BlobNotFound)
    assert str(caught.value) == f"blob {ABSENT} is not in the store"
    assert (caught.value.code, caught.value.digest, caught.value.index) == ("blob_not_found", ABSENT, None)


@pytest.mark.parametrize(
    "bad",
    ["", "sha256:", "0" * 64, ABSENT.upper(), ABSENT[:-1], ABSENT + "0", "md5:" + "0" * 32, "sha256:" + "g" * 64, "\udcff"],
)
def test_what_is_no_digest_is_refused_everywhere(store: pfimg.PfStore, bad: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(bad),
        lambda: store.has(bad),
        lambda: store.get_many([bad]),
        lambda: store.has_many([bad]),
        lambda: store.put_many([b""], digests=[bad]),
        lambda: store.pin("name", bad),
        lambda: store.get_pages(bad),
    ]
    for call in calls:
        with pytest.raises(pfimg.FormatError, match=r"^digest "):
            call()


def test_an_item_that_the_system_refuses_is_told_with_its_index(store: pfimg.PfStore) -> None:
    blobs = [b"%d" % n for n in range(40)]
    # A file in the place of a directory of blobs.
    obstacle = path_of(store, name_of(blobs[17])).parent
    obstacle.write_bytes(b"")
    others = [blob for blob in blobs if path_of(store, name_of(blob)).parent != obstacle]
    with pytest.raises(OSError, match=obstacle.name) as caught:
        store.put_many(blobs)
    assert path_of(store, name_of(blobs[getattr(caught.value, "index", -1)])).parent == obstacle
    assert [path for path in store.root.rglob("*") if ".tmp" in path.name] == []
    assert store.put_many(others) == [name_of(blob) for blob in others]


def test_names_of_the_wrong_kind_are_refused(store: pfimg.PfStore) -> None:
    digest = store.put(b"blob")
    for call in (lambda: store.get_many(digest), lambda: store.has_many(digest), lambda: store.put_many([b""], digests=digest)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError):
        store.get(digest.encode())  # type: ignore[arg-type]


def test_a_row_of_another_length_is_no_miss(store: pfimg.PfStore) -> None:
    a, b = store.put_many([b"aaaa", b"bbbbb"])
    for errors in ("raise", "mask"):
        for out in (np.zeros((2, 4), np.uint8), [bytearray(4), bytearray(4)]):
            with pytest.raises(pfimg.FormatError, match="has 5 bytes where 4 are expected") as caught:
                store.get_many([a, b], out=out, errors=errors)
            assert caught.value.index == 1
    assert store.has_many([a, b]) == [True, True]


def test_misses_in_an_array_leave_the_other_rows_filled(store: pfimg.PfStore) -> None:
    a, b = store.put_many([b"aaaa", b"bbbb"])
    out = np.zeros((5, 2), np.uint16)
    assert store.get_many([b, ABSENT, a, b, a], out=out, errors="mask") == [True, False, True, True, True]
    assert [row.tobytes() for row in out[[0, 2, 3, 4]]] == [b"bbbb", b"aaaa", b"bbbb", b"aaaa"]
    assert store.stats().counters["misses"] == 1


def test_counters_count_what_was_read(store: pfimg.PfStore) -> None:
    digests = store.put_many([b"aaaa", b"bb"])
    store.get(digests[0])
    store.get_many(digests)
    store.get_many([digests[1]], out=[bytearray(2)])
    store.get_many([ABSENT, digests[1]], errors="mask")
    counters = store.stats().counters
    assert (counters["hits"], counters["misses"], counters["bytes_read"]) == (5, 1, 4 + 6 + 2 + 2)


# Codecs


def contents() -> dict[str, bytes]:
    page = np.load(Path(__file__).parents[1] / "data" / "kv_k_pages.npy", mmap_mode="r")[0].tobytes()
    lengths = {
        "text of 1 MiB": TEXT[:MEBIBYTE],
        "text above 1 MiB": TEXT,
        "noise above 1 MiB": NOISE,
        "zeros": bytes(4 * MEBIBYTE),
    }
    return {"empty": b"", "one byte": b"x", "page": page, **lengths}


CONTENTS = contents()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_is_exactly_one_standard_frame(tmp_path: Path, codec: str, content: str) -> None:
    blob = CONTENTS[content]
    store = pfimg.PfStore.open(tmp_path, codec=codec)
    frame = path_of(store, store.put(blob)).read_bytes()
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == len(blob)
    assert not parameters.has_checksum
    assert len(blob) <= MEBIBYTE or parameters.window_size <= 128 * 1024
    decoder = zstandard.ZstdDecompressor().decompressobj()
    assert decoder.decompress(frame) == blob
    assert decoder.eof
    assert decoder.unused_data == b""
    assert store.get(name_of(blob)) == blob


def test_auto_compresses_where_it_saves(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, codec="auto")
    pays = {"text of 1 MiB", "text above 1 MiB", "zeros"}
    for content, blob in CONTENTS.items():
        before = store.stats().counters
        store.put(blob)
        after = store.stats().counters
        changed = {kind for kind in ("compressed", "stored") if after[kind] > before[kind]}
        assert changed == ({"compressed"} if content in pays else {"stored"}), content
        size = path_of(store, name_of(blob)).stat().st_size
        assert size < 0.7 * len(blob) if content in pays else size >= len(blob), content


@pytest.mark.parametrize(("codec", "kind"), [("zstd", "compressed"), ("store", "stored")])
def test_the_other_codecs_do_not_look(tmp_path: Path, codec: str, kind: str) -> None:
    store = pfimg.PfStore.open(tmp_path, codec=codec)
    store.put_many(list(CONTENTS.values()))
    counters = store.stats().counters
    assert counters[kind] == counters["written"] == len(CONTENTS)


def test_codec_and_level_belong_to_the_handle(tmp_path: Path) -> None:
    blob = Path(argparse.__file__).read_bytes()
    sizes = []
    for options in ({"codec": "store"}, {"codec": "zstd", "level": 1}, {"codec": "zstd", "level": 19}):
        store = pfimg.PfStore.open(tmp_path, **options)
        path = path_of(store, store.put(blob))
        sizes.append(path.stat().st_size)
        assert pfimg.PfStore.open(tmp_path, codec="store").get(name_of(blob)) == blob
        path.unlink()
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "gzip"}, 'codec: "gzip" is none of auto, zstd, store, float'),
        ({"durability": "always"}, 'durability: "always" is none of none, group, each'),
        ({"digest": "md5"}, '"md5" is neither sha256 nor blake3'),
        ({"level": 0}, "level: 0 is not within 1 and 22"),
        ({"level": 23}, "level: 23 is not within 1 and 22"),
    ],
    ids=str,
)
def test_an_unknown_option_is_refused_with_what_there_is(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(pfimg.FormatError) as caught:
        pfimg.PfStore.open(tmp_path / "store", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("durability", ["none", "group", "each"])
def test_every_durability_keeps_the_same_blobs(tmp_path: Path, durability: str) -> None:
    # Few and many: from some number on, syncs are shared in another way.
    first, more = [b"one", TEXT], [b"%d" % n for n in range(20)]
    store = pfimg.PfStore.open(tmp_path, durability=durability)
    for _ in range(2):  # the second time everything is there already
        assert [store.put(blob) for blob in first] == [name_of(blob) for blob in first]
        assert store.put_many([*first, *more]) == [name_of(blob) for blob in [*first, *more]]
    want = {path_of(store, name_of(blob)) for blob in [*first, *more]}
    assert set(files_below(tmp_path / "blobs")) == want
    assert store.get_many([name_of(blob) for blob in more]) == more


def test_a_frame_of_another_writer_counts_as_the_blob(store: pfimg.PfStore) -> None:
    path = path_of(store, name_of(TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(TEXT)
    path.write_bytes(frame)
    assert store.has(name_of(TEXT))
    assert store.put(TEXT) == name_of(TEXT)
    assert path.read_bytes() == frame
    stats = store.stats()
    assert (stats.blobs, stats.physical_bytes, stats.logical_bytes) == (1, len(frame), len(TEXT))
    assert stats.counters["written"] == 0


def test_a_frame_with_a_large_window_is_read(store: pfimg.PfStore) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True, write_content_size=False)
    encoder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = encoder.compress(NOISE + NOISE) + encoder.flush()
    digest = name_of(NOISE + NOISE)
    path_of(store, digest).parent.mkdir()
    path_of(store, digest).write_bytes(frame)
    assert zstandard.get_frame_parameters(frame).window_size == 1 << 27
    assert store.get(digest) == NOISE + NOISE


# Damage


def flipped(at: int, mask: int = 1) -> Callable[[bytes], bytes]:
    def flip(frame: bytes) -> bytes:
        changed = bytearray(frame)
        changed[at] ^= mask
        return bytes(changed)

    return flip


# A frame of more than 1 MiB: magic (4), descriptor, window, size (4), block header (3), payload.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "magic": flipped(1),
    "reserved bit": flipped(4, 8),
    "size": flipped(7),
    "block type": flipped(10, 2),
    "block length": flipped(11),
    "second block header": flipped(10 + 3 + 128 * 1024),
    "payload": flipped(1000),
    "last byte": flipped(-1),
    "truncated": lambda frame: frame[:-1],
    "cut to its header": lambda frame: frame[:10],
    "tail": lambda frame: frame + b"x",
    "another blob": lambda _: zstandard.compress(b"another"),
    "a frame twice": lambda frame: frame * 2,
    "no frame": lambda _: b"words",
}
READS: list[Callable[[pfimg.PfStore, str, int], object]] = [
    lambda store, digest, _: store.get(digest),
    lambda store, digest, _: store.get_many([digest]),
    lambda store, digest, length: store.get_many([digest], out=[bytearray(length)]),
    lambda store, digest, _: store.read_frame(digest),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_returned_and_the_next_put_heals(tmp_path: Path, damage: str) -> None:
    store = pfimg.PfStore.open(tmp_path, codec="store", durability="none")
    blob = NOISE[: MEBIBYTE + 100]
    digest = store.put(blob)
    path = path_of(store, digest)
    bad = DAMAGES[damage](path.read_bytes())
    for count, read in enumerate(READS, 1):
        path.write_bytes(bad)
        with pytest.raises(pfimg.IntegrityError, match=f"^blob {digest} is corrupt: ") as caught:
            read(store, digest, len(blob))
        assert (caught.value.digest, caught.value.path) == (digest, str(path))
        assert [found.read_bytes() for found in files_below(tmp_path / "quarantine")] == [bad] * count
        assert store.stats().counters["corrupt"] == count
        assert not store.has(digest)
        with pytest.raises(pfimg.BlobNotFound):
            store.get(digest)
        assert store.put(blob) == digest
        assert store.get(digest) == blob


def test_an_empty_file_counts_as_absent(store: pfimg.PfStore) -> None:
    # What a crash leaves of a name whose bytes did not reach the disk; of the empty blob too.
    for blob in (b"blob", b""):
        digest = store.put(blob)
        path_of(store, digest).write_bytes(b"")
        assert not store.has(digest)
        assert store.has_many([digest]) == [False]
        assert store.blob_path(digest) is None
        assert store.get_many([digest], errors="mask") == [None]
        with pytest.raises(pfimg.BlobNotFound):
            store.get(digest)
        assert store.put_many([blob], digests=[digest]) == [digest]
        assert store.get(digest) == blob
    assert not (store.root / "quarantine").exists()


# blake3


def test_a_blake3_store(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, digest="blake3")
    blobs = [b"", b"x", TEXT, NOISE]
    want = [f"blake3:{blake3.blake3(blob).hexdigest()}" for blob in blobs]
    assert store.put_many(blobs) == want == [store.put(blob) for blob in blobs]
    assert set(files_below(tmp_path / "blobs")) == {path_of(store, digest) for digest in want}
    assert store.get_many(want) == blobs
    damaged = path_of(store, want[2])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(pfimg.IntegrityError):
        store.get(want[2])
    for call in (
        lambda: store.get_many([want[0], name_of(b"")]),
        lambda: store.has_many([want[0], name_of(b"")]),
        lambda: store.put_many([b"", b""], digests=[None, name_of(b"")]),
    ):
        with pytest.raises(pfimg.FormatError, match="the store's digests are blake3") as caught:
            call()
        assert caught.value.index == 1


# Many writers


def test_many_threads_put_at_once(store: pfimg.PfStore) -> None:
    blobs = [b"%d" % n * 1000 for n in range(50)]
    together = threading.Barrier(8)
    names: list[list[str]] = []

    def work(seed: int) -> None:
        own = pfimg.PfStore.open(store.root) if seed % 2 else store
        order = random.Random(seed).sample(blobs, len(blobs))
        together.wait()
        digests = {blob: own.put(blob) for blob in order}
        names.append([digests[blob] for blob in blobs])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = [name_of(blob) for blob in blobs]
    assert names == [want] * 8
    assert store.get_many(want) == blobs
    assert set(files_below(store.root / "blobs")) == {path_of(store, digest) for digest in want}


PROGRAM = """
import sys, pfimg
store = pfimg.PfStore.open(sys.argv[1], durability="none")
for turn in sys.stdin:  # a line for each turn, to all at once
    blobs = [f"{turn}/{n}".encode() * 500 for n in range(30)]
    digests = [pfimg.digest_of(blob) for blob in blobs]
    assert store.put_many(blobs) == digests
    assert store.get_many(digests) == blobs
    print(turn, end="", flush=True)
"""


def test_processes_put_the_same_blobs_at_once(store: pfimg.PfStore) -> None:
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", PROGRAM, os.fspath(store.root)]
        start = functools.partial(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children = [stack.enter_context(start()) for _ in range(2)]
        for turn in range(20):
            for child in children:
                assert child.stdin
                child.stdin.write(f"{turn}\n")
                child.stdin.flush()
            for child in children:
                assert child.stdout
                assert child.stdout.readline() == f"{turn}\n"
    assert [child.returncode for child in children] == [0, 0]
    assert len(files_below(store.root / "blobs")) == 600
    assert store.verify().ok


# Pins


def test_a_pin_keeps_a_blob_and_what_it_refers_to(store: pfimg.PfStore, kv_pages: Any) -> None:
    pages = store.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2])
    document, note, spare = store.put(pages.to_json()), store.put(b"note"), store.put(b"spare")
    store.pin("cache", document)
    store.pin("other", spare)
    store.pin("other", note)  # a name is moved by naming something else
    other = pfimg.PfStore.open(store.root)
    assert other.pins() == {"cache": document, "other": note}
    assert other.gc(grace_seconds=0).freed == 1
    assert not store.has(spare)
    store.get_pages(document)
    assert store.get(note) == b"note"
    store.unpin("cache")
    assert store.pins() == {"other": note}
    assert store.gc(grace_seconds=0).freed == 5
    assert store.stats().blobs == 1
    with pytest.raises(pfimg.BlobNotFound, match='pin "cache"'):
        store.unpin("cache")
    # The last one would pass for what a killed process has left.
    for name in ("a/b", ".hidden", "", "\udcff", "name.tmp.1.2"):
        with pytest.raises(pfimg.FormatError, match="pin "):
            store.pin(name, note)

"""Float frames in stores: where they are made, how they are found beside others, and that older handles notice them.

The frames themselves are in tests/conformance/test_float_frames.py. Oracles: the arrays, hashlib, zstandard.
"""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import pfimg
from pfimg import _core

TEXT = b"".join(b'{"role": "user", "content": "question %d"}\n' % n for n in range(3000))
NOISE = random.Random(0).randbytes(100_000)
DESCRIPTION = '{"pfimg":1,"digest":"sha256","features":["codec:float"]}'


@pytest.fixture
def floats(tmp_path: Path) -> pfimg.PfStore:
    """A second handle on the directory of `store`, whose codec is float."""
    return pfimg.PfStore.open(tmp_path / "store", codec="float")


def page(seed: int, items: int = 16_384) -> bytes:
    """What a page of bf16 is like: the upper halves of normally distributed f32."""
    return np.random.default_rng(seed).standard_normal(items, np.float32).view(np.uint16)[1::2].tobytes()


def name_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def path_of(store: pfimg.PfStore, digest: str, suffix: str) -> Path:
    algorithm, _, hex_digits = digest.partition(":")
    return store.root / "blobs" / algorithm / hex_digits[:2] / (hex_digits + suffix)


def files_below(path: Path) -> set[Path]:
    return {found for found in path.rglob("*") if found.is_file()}


def test_real_pages_lose_a_third_and_come_back(floats: pfimg.PfStore, kv_pages: Any) -> None:
    pages = floats.put_pages(kv_pages.meta, kv_pages.k, kv_pages.v)
    digests = {digest for page in pages.pages for digest in (page.k, page.v)}
    assert files_below(floats.root / "blobs") == {path_of(floats, digest, ".fpl") for digest in digests}
    k, v = floats.get_pages(pages)
    assert k.tobytes() == kv_pages.k.tobytes()
    assert v.tobytes() == kv_pages.v.tobytes()
    out = np.zeros_like(kv_pages.k), np.zeros_like(kv_pages.v)
    assert floats.get_pages(pages, out_k=out[0], out_v=out[1], errors="mask") == [True] * len(pages.pages)
    assert (out[0] == kv_pages.k).all()
    assert (out[1] == kv_pages.v).all()
    stats = floats.stats()
    assert stats.counters["float"] == stats.counters["written"] == stats.blobs == len(digests)
    assert stats.physical_bytes == floats.physical_bytes() < 0.68 * stats.logical_bytes
    assert stats.logical_bytes == len(digests) * kv_pages.meta.page_bytes


@pytest.mark.parametrize(("dtype", "numpy", "most"), [("f16", np.float16, 0.95), ("f32", np.float32, 0.93)])
def test_other_dtypes_come_back(floats: pfimg.PfStore, dtype: str, numpy: type, most: float) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=4, n_heads=4, head_dim=64, dtype=dtype)
    k, v = np.random.default_rng(0).standard_normal((2, 3, *meta.shape)).astype(numpy)
    pages = floats.put_pages(meta, k, v)
    assert tuple(side.tobytes() for side in floats.get_pages(pages)) == (k.tobytes(), v.tobytes())
    assert floats.stats().counters["float"] == 6
    assert floats.physical_bytes() < most * (k.nbytes + v.nbytes)


def test_only_floats_get_float_frames(floats: pfimg.PfStore) -> None:
    others = {TEXT: "compressed", bytes(100_000): "compressed", NOISE: "stored", b"": "stored", b"x": "stored"}
    assert floats.put_many([*others, page(0)]) == [*map(name_of, others), name_of(page(0))]
    for blob, kind in others.items():
        frame = path_of(floats, name_of(blob), ".zst").read_bytes()
        assert zstandard.ZstdDecompressor().decompress(frame) == blob
        assert (len(frame) < len(blob)) == (kind == "compressed")
    frame = path_of(floats, name_of(page(0)), ".fpl").read_bytes()
    assert frame == _core.encode_frame(page(0), codec="float") == floats.read_frame(name_of(page(0)))
    assert len(frame) < 0.75 * len(page(0))
    assert floats.blob_path(name_of(page(0))) == path_of(floats, name_of(page(0)), ".fpl")
    assert len(files_below(floats.root / "blobs")) == len(others) + 1
    counters = floats.stats().counters
    assert [counters[kind] for kind in ("compressed", "stored", "float")] == [2, 3, 1]
    assert floats.get_many([name_of(page(0)), *map(name_of, others)]) == [page(0), *others]


def test_frames_on_their_way_out_are_what_the_files_hold(floats: pfimg.PfStore) -> None:
    blobs = [*(page(seed) for seed in range(20)), TEXT, page(20, 20 << 20), NOISE, b"", page(0)]
    digests = floats.put_many(blobs)
    suffixes = [".zst" if blob in (TEXT, NOISE, b"") else ".fpl" for blob in blobs]
    files = [path_of(floats, digest, suffix).read_bytes() for digest, suffix in zip(digests, suffixes, strict=True)]
    assert floats.read_frames(digests) == [floats.read_frame(digest) for digest in digests] == files
    assert floats.frame_sizes(digests) == [floats.check_blob(digest) for digest in digests] == list(map(len, files))
    assert floats.float_blobs(digests) == [digest for digest, suffix in zip(digests, suffixes, strict=True) if suffix == ".fpl"]
    assert [_core.decode_frame(frame) for frame in files] == blobs


def test_the_description_comes_with_the_first_float_frame(floats: pfimg.PfStore) -> None:
    floats.put_many([TEXT, NOISE])
    assert not (floats.root / "pfimg.json").exists()
    floats.put(page(0))
    assert (floats.root / "pfimg.json").read_text() == DESCRIPTION


def test_a_frame_of_its_own_comes_back() -> None:
    frame = _core.encode_frame(page(0), codec="float")
    assert frame.startswith(b"fpl\x01")
    assert _core.decode_frame(frame, expect=name_of(page(0))) == page(0)
    with pytest.raises(pfimg.IntegrityError):
        _core.decode_frame(frame, expect=name_of(page(1)))
    with pytest.raises(pfimg.FormatError, match="float frame: version 2 is not known"):
        _core.decode_frame(b"fpl\x02" + frame[4:])


FINDS: dict[str, Callable[[pfimg.PfStore, str, bytes], object]] = {
    "has": lambda store, digest, _: store.has(digest),
    "has_many": lambda store, digest, _: store.has_many([digest]) == [True],
    "get": lambda store, digest, blob: store.get(digest) == blob,
    "get_many": lambda store, digest, blob: store.get_many([digest]) == [blob],
    "get_many into memory": lambda store, digest, blob: store.get_many([digest], out=[bytearray(len(blob))]) is None,
    "blob_path": lambda store, digest, _: store.blob_path(digest) is not None,
    "float_blobs": lambda store, digest, _: store.float_blobs([digest]) == [digest],
    "frame_sizes": lambda store, digest, _: store.frame_sizes([digest]) == [store.physical_bytes()],
    "read_frame": lambda store, digest, _: bool(store.read_frame(digest)),
    "read_frames": lambda store, digest, _: len(store.read_frames([digest])) == 1,
    "check_blob": lambda store, digest, _: store.check_blob(digest) == store.physical_bytes(),
    "put": lambda store, _, blob: store.put(blob) and store.stats().counters["deduplicated"] == 1,
    "put_many": lambda store, _, blob: store.put_many([blob]) and store.stats().counters["deduplicated"] == 1,
    "a name": lambda store, digest, _: store.put_many([b"not looked at"], digests=[digest]) == [digest],
    "stats": lambda store, _, blob: store.stats().logical_bytes == len(blob),
    "verify": lambda store, digest, _: [found.digest for found in store.verify().unreachable] == [digest],
    "gc": lambda store, _, __: store.gc(grace_seconds=0).freed == 1,
}


@pytest.mark.parametrize("find", FINDS)
def test_a_handle_notices_what_another_one_began(store: pfimg.PfStore, floats: pfimg.PfStore, find: str) -> None:
    assert not store.has(name_of(page(0)))
    floats.put(page(0))
    assert FINDS[find](store, name_of(page(0)), page(0))
    assert path_of(store, name_of(page(0)), ".zst").exists() is False


def test_so_does_another_process(tmp_path: Path) -> None:
    program = f"""
import sys
import pfimg
store = pfimg.PfStore.open({str(tmp_path / "store")!r})
store.put(b"something")
print("ready", flush=True)
for line in sys.stdin:
    print(len(store.get(line.strip())), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        floats = pfimg.PfStore.open(tmp_path / "store", codec="float", durability="none")
        for seed in range(3):
            print(floats.put(page(seed)), file=process.stdin, flush=True)
            assert process.stdout.readline() == f"{len(page(seed))}\n"
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("at", [0, 3, 4, 5, 8, 40, 1000, -1])
def test_damage_is_never_returned_and_the_next_put_heals(floats: pfimg.PfStore, at: int) -> None:
    digest = floats.put(page(0))
    path = path_of(floats, digest, ".fpl")
    bad = bytearray(path.read_bytes())
    bad[at] ^= 0x04
    reads: list[Callable[[], object]] = [
        lambda: floats.get(digest),
        lambda: floats.get_many([digest]),
        lambda: floats.get_many([digest], out=[bytearray(len(page(0)))]),
        lambda: floats.read_frame(digest),
        lambda: floats.read_frames([digest]),
        lambda: floats.check_blob(digest),
    ]
    for count, read in enumerate(reads, 1):
        path.write_bytes(bad)
        with pytest.raises(pfimg.IntegrityError, match=f"^blob {digest} is corrupt: ") as caught:
            read()
        assert caught.value.path == str(path)
        assert sorted(found.read_bytes() == bad for found in files_below(floats.root / "quarantine")) == [True] * count
        assert not floats.has(digest)
        assert floats.put(page(0)) == digest
        assert floats.get(digest) == page(0)
    with pytest.raises(pfimg.IntegrityError):
        floats.land_frames([(digest, bytes(bad))])
    path.write_bytes(bad)
    report = floats.verify()
    assert [(found.digest, found.path) for found in report.corrupt] == [(digest, str(path))]


def test_verify_repairs_from_a_registry(floats: pfimg.PfStore, tmp_path: Path, kv_pages: Any) -> None:
    cache = floats.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2])
    image = pfimg.snapshot(floats, agent="tester", cache=cache)
    pfimg.push(floats, image, f"file://{tmp_path}/registry")
    path = path_of(floats, cache.pages[0].k, ".fpl")
    path.write_bytes(path.read_bytes()[:-1])
    path_of(floats, cache.pages[1].v, ".fpl").unlink()
    report = floats.verify(repair_from=f"file://{tmp_path}/registry")
    assert report.ok
    assert set(report.repaired) == {cache.pages[0].k, cache.pages[1].v}
    assert floats.get_pages(image)[0].tobytes() == kv_pages.k[:2].tobytes()


def test_what_is_pushed_is_what_everybody_reads(floats: pfimg.PfStore, tmp_path: Path, kv_pages: Any) -> None:
    cache = floats.put_pages(kv_pages.meta, kv_pages.k, kv_pages.v)
    image = pfimg.snapshot(floats, agent="tester", cache=cache)
    registry = tmp_path / "registry"
    report = pfimg.push(floats, image, f"file://{registry}")
    manifest = floats.get_manifest(image)
    walk = _core.transitive_blob_digests(manifest, floats)
    assert report.sent == len(walk)
    assert not (registry / "pfimg.json").exists()
    for digest in walk:
        hex_digits = digest.removeprefix("sha256:")
        frame = (registry / "blobs" / "sha256" / hex_digits[:2] / f"{hex_digits}.zst").read_bytes()
        assert name_of(zstandard.ZstdDecompressor().decompress(frame)) == digest
    assert len(files_below(registry / "blobs")) == len(walk)
    other = pfimg.PfStore.open(tmp_path / "other")
    assert pfimg.pull(f"file://{registry}", other).image == image
    assert other.verify().ok


def test_a_store_is_no_registry_of_float_frames(floats: pfimg.PfStore, kv_pages: Any) -> None:
    """Pushed into a store's own directory, an image gets copies that everybody reads."""
    cache = floats.put_pages(kv_pages.meta, kv_pages.k[:1], kv_pages.v[:1])
    image = pfimg.snapshot(floats, agent="tester", cache=cache)
    pfimg.push(floats, image, f"file://{floats.root}")
    for digest in (cache.pages[0].k, cache.pages[0].v):
        assert path_of(floats, digest, ".fpl").exists()
        assert name_of(zstandard.ZstdDecompressor().decompress(path_of(floats, digest, ".zst").read_bytes())) == digest
    assert json.loads((floats.root / "pfimg.json").read_text())["features"] == ["codec:float"]
    stats = floats.stats()
    assert stats.logical_bytes == sum(len(floats.get(digest)) for digest in {*walk_of(floats, image), image})


def walk_of(store: pfimg.PfStore, image: str) -> list[str]:
    return _core.transitive_blob_digests(store.get_manifest(image), store)


def test_a_directory_of_arrays_is_captured_and_restored(floats: pfimg.PfStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # The second is so large that it is stored as it is read, which makes no float frames.
    contents = {"small.bin": page(0), "large.bin": page(1, 5 << 20), "text": TEXT}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    tree = floats.put_tree(source)
    suffixes = {name: str(floats.blob_path(name_of(content)))[-4:] for name, content in contents.items()}
    assert suffixes == {"small.bin": ".fpl", "large.bin": ".zst", "text": ".zst"}
    floats.restore_tree(tree, tmp_path / "target")
    assert {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()} == contents


def test_blake3_stores_have_them_too(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, digest="blake3", codec="float")
    digest = store.put(page(0))
    assert path_of(store, digest, ".fpl").exists()
    assert json.loads((tmp_path / "pfimg.json").read_text()) == {"pfimg": 1, "digest": "blake3", "features": ["codec:float"]}
    assert pfimg.PfStore.open(tmp_path).get(digest) == page(0)

"""What a user may write, as the type checker sees it; never run.

A line that must be refused carries an ignore of exactly that error: were it accepted, the ignore would be unused, which is an
error too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import assert_type

import numpy as np

import pfimg


def blobs(path: str, page: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]) -> None:
    store = pfimg.PfStore.open(path, digest="blake3", codec="zstd", level=3, durability="each")
    assert_type(store, pfimg.PfStore)
    assert_type(store.root, Path)
    digest = assert_type(store.put(page), str)
    assert_type(store.get(digest), bytes)
    assert_type(store.has(digest), bool)
    assert_type(store.has_many([digest]), list[bool])
    assert_type(store.put_many([b"one", bytearray(2), memoryview(b"three"), page]), list[str])
    assert_type(store.get_many([digest]), list[bytes])
    assert_type(store.get_many([digest], errors="mask"), list[bytes | None])
    assert_type(store.get_many([digest], out=[bytearray(5)], errors="mask"), list[bool])
    store.get_many([digest], errors="ignore")  # type: ignore[call-overload]
    store.get(3)  # type: ignore[arg-type]
    pfimg.PfStore.open(path, level="fast")  # type: ignore[arg-type]


def pages(store: pfimg.PfStore, k: object, v: object) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=6, n_heads=12, head_dim=32, dtype="bf16")
    assert_type(meta.page_bytes, int)
    assert_type(meta.shape, tuple[int, int, int, int])
    sequence = pfimg.LogicalSeq(id="chat", page_ixs=[0, 1], fill_in_last_page=7)
    kept = assert_type(store.put_pages(meta, k, v, logical_seqs=[sequence]), pfimg.PageManifest)
    assert_type(kept.pages[0], pfimg.Page)
    assert_type(kept.to_json(), bytes)
    meta.n_heads = 3  # type: ignore[misc]


def images(store: pfimg.PfStore, cache: pfimg.PageManifest) -> None:
    image = assert_type(pfimg.snapshot(store, agent="tester", fs_root=".", cache=cache, parents=["sha256:…"]), str)
    manifest = assert_type(store.get_manifest(image), pfimg.Manifest)
    assert_type(pfimg.manifest_blob_digests(manifest), list[str])
    assert_type(store.images(), Iterator[tuple[str, pfimg.Manifest]])
    pfimg.checkout(store, image, Path("target"))
    difference = assert_type(pfimg.diff(store, image, image), pfimg.ImageDiff)
    assert_type(difference.pages.changed, tuple[int, ...])
    assert_type(store.verify().corrupt, tuple[pfimg.Finding, ...])
    assert_type(store.gc(grace_seconds=60.0, dry_run=True).freed_bytes, int)
    assert_type(store.stats().physical_bytes, int)
    pfimg.snapshot(store)  # type: ignore[call-arg]


def registries(store: pfimg.PfStore, image: str, report: Callable[[pfimg.Progress], None]) -> None:
    sent = assert_type(pfimg.push(store, image, "file:///srv/images/one", progress=report), pfimg.PushReport)
    got = assert_type(pfimg.pull(sent.ref, store, layers={"cache"}, ixs=[0, 1]), pfimg.PullReport)
    assert_type(got.image, str)
    assert_type(pfimg.exists(sent.ref), bool)
    reference = pfimg.ImageRef.parse(sent.ref)
    if isinstance(reference, pfimg.FileRef):
        assert_type(str(reference), str)
    pfimg.push(image, store, "file:///srv/images/one")  # type: ignore[arg-type]


def errors(store: pfimg.PfStore) -> None:
    try:
        store.get("sha256:00")
    except pfimg.BlobNotFound as error:
        assert_type(error.code, str)
        assert_type(error.digest, str | None)
    except pfimg.BackendError as error:
        assert_type(error.retryable, bool)

"""The store's Python face: opening, listing, and the reports of verify, gc and stats."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

import pfimg

ABSENT = "sha256:" + "0" * 64


def blob_path(store: pfimg.PfStore, digest: str) -> Path:
    path = store.blob_path(digest)
    assert path is not None
    return path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# Opening


def test_open_creates_expands_and_reopens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = pfimg.PfStore.open("~/deep/store")
    assert isinstance(store, pfimg.PfStore)
    assert store.root == tmp_path / "deep" / "store"
    assert repr(store) == f"<PfStore at {store.root}>"
    digest = store.put(b"hello")
    assert pfimg.PfStore.open(str(store.root)).get(digest) == b"hello"


def test_open_raises_the_system_s_error_which_is_a_runtime_error_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file") as caught:
            pfimg.PfStore.open(path)
        assert isinstance(caught.value, pfimg.StoreOSError)
        assert isinstance(caught.value, RuntimeError)


def test_the_digest_belongs_to_the_directory(tmp_path: Path) -> None:
    assert pfimg.PfStore.open(tmp_path / "new").digest == "sha256"
    pfimg.PfStore.open(tmp_path / "b3", digest="blake3").put(b"x")
    assert pfimg.PfStore.open(tmp_path / "b3").digest == "blake3"
    with pytest.raises(pfimg.FormatError):
        pfimg.PfStore.open(tmp_path / "b3", digest="sha256")


def test_blobs_may_live_elsewhere(tmp_path: Path) -> None:
    blobs = pfimg.MemoryStore()
    store = pfimg.PfStore.with_blobstore(tmp_path / "images", blobs)
    image = pfimg.snapshot(store, agent="tester")
    assert blobs.has(image)
    assert [found for found, _ in store.images()] == [image]


# Listing


def test_damaged_markers_are_skipped_with_a_warning(store: pfimg.PfStore, caplog: pytest.LogCaptureFixture) -> None:
    images = sorted(pfimg.snapshot(store, agent=f"agent {number}") for number in range(3))
    markers = [store.root / "images" / f"{image.removeprefix('sha256:')}.json" for image in images]
    markers[0].write_text("junk")
    markers[1].write_bytes(markers[2].read_bytes())
    (store.root / "images" / "note.txt").touch()
    with caplog.at_level(logging.WARNING, "pfimg"):
        found = dict(store.images())
    assert list(found) == images[2:]
    assert found[images[2]].id == images[2]
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == images[:2]
    assert store.get_manifest(images[0]).id == images[0], "the blob is still good"


def test_an_image_removed_while_listing_is_passed_over(store: pfimg.PfStore) -> None:
    images = sorted(pfimg.snapshot(store, agent=f"agent {number}") for number in range(2))
    listing = store.images()
    assert next(listing)[0] == images[0]
    store.remove_image(images[1])
    assert list(listing) == []


# Verify


def test_a_sound_store(store: pfimg.PfStore) -> None:
    image = pfimg.snapshot(store, agent="tester", messages=[{"role": "user", "content": "hi"}])
    spare = store.put(b"spare")
    report = store.verify()
    assert report.ok
    assert (report.corrupt, report.missing, report.foreign, report.partial, report.repaired) == ((), (), (), (), ())
    assert [finding.digest for finding in report.unreachable] == [spare]
    assert report.checked == store.stats().blobs == len(store.reachable(store.get_manifest(image))) + 2
    assert report.bytes > 0


def test_damage_is_found_with_whom_it_hurts(store: pfimg.PfStore, kv_pages: Any) -> None:
    cache = store.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2])
    images = sorted(pfimg.snapshot(store, agent="tester", cache=cache, model_base=base) for base in (b"one", b"two"))
    corrupt, missing = cache.pages[0].k, cache.pages[1].v
    flip_a_byte(blob_path(store, corrupt))
    blob_path(store, missing).unlink()
    (store.root / "blobs" / "sha256" / "note.txt").touch()
    report = store.verify()
    assert not report.ok
    assert [(finding.digest, finding.images) for finding in report.corrupt] == [(corrupt, tuple(images))]
    assert [(finding.digest, finding.images) for finding in report.missing] == [(missing, tuple(images))]
    assert [Path(finding.path or "").name for finding in report.foreign] == ["note.txt"]
    assert not store.has(corrupt)
    assert [found.name for found in (store.root / "quarantine").iterdir()] != []
    assert str(report).startswith("DAMAGED")


def test_damage_is_told_by_page_and_path(store: pfimg.PfStore, kv_pages: Any, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "tree" / name).write_bytes(kv_pages.v[1].tobytes())
    cache = store.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2], first_ix=7)
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "tree", cache=cache)
    manifest = store.get_manifest(image)
    flip_a_byte(blob_path(store, cache.pages[1].v))
    blob_path(store, manifest.world.env).unlink()
    report = store.verify()
    assert [finding.uses for finding in report.corrupt] == [
        (f"file a.txt in {image}", f"file b.txt in {image}", f"v of page 8 in {image}")
    ]
    assert [finding.uses for finding in report.missing] == [(f"world.env in {image}",)]
    assert f"file a.txt in {image}, file b.txt in {image} and 1 more" in str(report)

    # What a document alone would tell is not told once it is damaged itself.
    flip_a_byte(blob_path(store, manifest.world.fs))
    told = {finding.digest: finding.uses for finding in store.verify().corrupt + store.verify().missing}
    assert told[manifest.world.fs] == (f"world.fs in {image}",)


def test_verify_reports_progress_and_may_be_stopped(store: pfimg.PfStore) -> None:
    pfimg.snapshot(store, agent="tester")
    seen: list[pfimg.Progress] = []
    report = store.verify(progress=seen.append)
    assert {event.phase for event in seen} == {"verify"}
    assert seen[-1].done == seen[-1].total == report.checked

    def stop(_: pfimg.Progress) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        store.verify(progress=stop)


# Repair


@pytest.fixture
def registry(store: pfimg.PfStore, tmp_path: Path, kv_pages: Any) -> str:
    """A registry that has the store's only image."""
    cache = store.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2])
    return pfimg.push(store, pfimg.snapshot(store, agent="tester", cache=cache), f"file://{tmp_path}/registry").ref


def test_repair_heals_blobs_below_documents_that_were_lost(store: pfimg.PfStore, registry: str, tmp_path: Path) -> None:
    ((image, manifest),) = store.images()
    document, page = manifest.cache.manifest, pfimg.PageManifest.from_json(store.get(manifest.cache.manifest)).pages[0].k
    blob_path(store, document).unlink()
    blob_path(store, page).unlink()
    flip_a_byte(blob_path(store, manifest.world.env))
    report = store.verify(repair_from=[f"file://{tmp_path}/elsewhere", registry])
    assert report.ok
    assert set(report.repaired) == {document, page, manifest.world.env}
    store.get_pages(image)


def test_what_nobody_has_stays_in_the_report(store: pfimg.PfStore, registry: str, tmp_path: Path) -> None:
    ((_, manifest),) = store.images()
    lost = blob_path(store, manifest.world.env)
    lost.unlink()
    (tmp_path / "registry" / lost.relative_to(store.root)).unlink()
    report = store.verify(repair_from=registry)
    assert [finding.digest for finding in report.missing] == [manifest.world.env]
    assert report.repaired == ()


def test_manifest_and_marker_heal_each_other(store: pfimg.PfStore, registry: str) -> None:
    ((image, _),) = store.images()
    marker = store.root / "images" / f"{image.removeprefix('sha256:')}.json"

    def lose_the_manifest() -> None:
        blob_path(store, image).unlink()

    def spoil_the_marker() -> None:
        marker.write_text("junk")

    for damage in (lose_the_manifest, spoil_the_marker):
        damage()
        assert not store.verify().ok
        report = store.verify(repair_from=registry)
        assert report.ok
        assert report.repaired == (image,)


def test_an_image_that_lacks_more_than_its_manifest_is_reported(store: pfimg.PfStore, registry: str, tmp_path: Path) -> None:
    ((image, manifest),) = store.images()
    for digest in (image, manifest.world.fs):
        lost = blob_path(store, digest)
        lost.unlink()
        (tmp_path / "registry" / lost.relative_to(store.root)).unlink(missing_ok=True)
    report = store.verify(repair_from=registry)
    assert {finding.digest for finding in report.missing} == {image, manifest.world.fs}
    assert report.repaired == ()


def test_a_source_that_is_no_reference_is_refused(store: pfimg.PfStore) -> None:
    blob_path(store, pfimg.snapshot(store, agent="tester")).unlink()
    with pytest.raises(pfimg.BadRef):
        store.verify(repair_from="not a reference")


# gc and stats


def test_gc_tells_what_it_frees_and_keeps(store: pfimg.PfStore) -> None:
    pfimg.snapshot(store, agent="tester")
    kept = store.stats().blobs
    spare = store.put(b"spare")
    size = blob_path(store, spare).stat().st_size
    assert store.gc().freed == 0, "it is younger than a day"
    dry = store.gc(grace_seconds=0, dry_run=True)
    assert (dry.freed, dry.freed_bytes, dry.kept, dry.dry_run) == (1, size, kept, True)
    assert store.has(spare)
    assert store.gc(grace_seconds=0) == pfimg.GcReport(1, size, kept)
    assert not store.has(spare)
    assert store.verify().ok


def test_stats_count_what_is_here_and_what_was_done(store: pfimg.PfStore) -> None:
    digest = store.put(b"hello")
    store.get(digest)
    with pytest.raises(pfimg.BlobNotFound):
        store.get(ABSENT)
    stats = store.stats()
    assert (stats.blobs, stats.images) == (1, 0)
    assert stats.physical_bytes == store.physical_bytes() == blob_path(store, digest).stat().st_size
    assert (stats.counters["hits"], stats.counters["misses"], stats.counters["corrupt"]) == (1, 1, 0)
    assert "hits" in str(stats)


def test_a_cache_evicts_first_what_nobody_has_asked_for_longest(store: pfimg.PfStore) -> None:
    image = pfimg.snapshot(store, agent="tester")
    pinned = store.put(b"pinned")
    store.pin("pinned", pinned)
    contents = [bytes([n]) * 1000 for n in range(8)]
    digests = store.put_many(contents)
    needed = [image, pinned, *store.reachable(store.get_manifest(image))]
    # The first is the oldest of all; what is needed is older still.
    for hours, digest in zip(range(100, 50, -1), dict.fromkeys([*needed, *digests]), strict=False):
        path = store.blob_path(digest)
        assert path is not None
        then = path.stat().st_mtime - hours * 3600
        os.utime(path, (then, then))
    assert store.has(digests[0])
    assert store.has_many([digests[3]]) == [True]
    store.put(contents[1])
    order = [2, 4, 5, 6, 7]
    while order:
        size = store.physical_bytes()
        assert store.gc(max_bytes=size).freed == 0
        assert store.gc(max_bytes=size - 1).freed == 1
        order.pop(0)
        here = store.has_many(digests)
        assert [n for n, is_here in enumerate(here) if is_here] == sorted([0, 1, 3, *order])
        # To ask has renewed the rest: they are made old again.
        for hours, n in zip(range(90, 50, -1), order, strict=False):
            path = store.blob_path(digests[n])
            assert path is not None
            then = path.stat().st_mtime - hours * 3600
            os.utime(path, (then, then))
    # What was asked for is young, and what images and pins need stays at any size.
    assert store.gc(max_bytes=0).freed == 0
    assert store.gc(max_bytes=0, grace_seconds=0).freed == 3
    assert store.verify().ok
    assert all(store.has_many(needed))

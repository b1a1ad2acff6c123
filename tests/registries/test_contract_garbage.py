"""Garbage collection of every registry from which it removes anything: the same tests against each."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest
from tests.registries import conftest
from tests.registries.conftest import Directory
from tests.registries.test_contract import everything

import pfimg
from pfimg.registries import base
from pfimg.registries.s3 import leases

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.registries.conftest import Adapter
    from tests.registries.s3_places import BucketPlace

BUCKETS = ("minio", "versitygw", "azurite")
# Long enough for a collection that does not wait to be through.
MOMENT = 1.0


@pytest.fixture(params=[adapter for adapter in conftest.ADAPTERS if adapter.id in ("directory", *BUCKETS)])
def tree(request: pytest.FixtureRequest, _schemes: None) -> Adapter:
    adapter: Adapter = request.param(request)
    return adapter


@pytest.fixture(params=[adapter for adapter in conftest.ADAPTERS if adapter.id in ("minio", "azurite")])
def bucket(request: pytest.FixtureRequest, _schemes: None) -> BucketPlace:
    place: BucketPlace = request.param(request)
    return place


def names(place: Adapter) -> dict[str, int | None]:
    """All objects below the root; the sizes of those in a directory."""
    if isinstance(place, Directory):
        found = [path for path in place.root.rglob("*") if path.is_file()]
        return {path.relative_to(place.root).as_posix(): path.stat().st_size for path in found}
    return dict.fromkeys(place.names())  # type: ignore[attr-defined]


def write(place: Adapter, name: str, content: bytes | None) -> None:
    if not isinstance(place, Directory):
        place.replace(name, content)  # type: ignore[attr-defined]
    elif content is None:
        (place.root / name).unlink()
    else:
        (place.root / name).parent.mkdir(parents=True, exist_ok=True)
        (place.root / name).write_bytes(content)


def assert_whole(ref: str, image: str, expected: dict[str, bytes], root: Path) -> None:
    store = pfimg.PfStore.open(root)
    assert pfimg.pull(ref, store).image == image
    assert everything(store, image) == expected


def test_what_no_image_needs_goes_and_nothing_else(
    tree: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    kept, gone = make_image(0), make_image(1)
    needed, rest = everything(store, kept), everything(store, gone)
    pfimg.push(store, kept, tree.ref)
    pfimg.push(store, gone, f"{tree.ref}#gone")
    nothing = pfimg.collect_garbage(tree.ref, grace_seconds=0)
    assert (nothing.freed, nothing.freed_bytes, nothing.kept) == (0, 0, len(needed.keys() | rest.keys()))
    pfimg.remove_image(f"{tree.ref}#gone")
    before, sizes = names(tree), {digest: len(frame) for digest, frame in tree.blobs().items()}
    useless = rest.keys() - needed.keys()
    young = pfimg.collect_garbage(tree.ref)
    assert (young.freed, young.kept) == (0, len(sizes))
    told = pfimg.collect_garbage(tree.ref, grace_seconds=0, dry_run=True)
    assert (told.freed, told.freed_bytes, told.kept) == (len(useless), sum(sizes[digest] for digest in useless), len(needed))
    assert names(tree) == before
    done = pfimg.collect_garbage(f"{tree.ref}#any", grace_seconds=0)
    assert (done.freed, done.freed_bytes, done.kept, done.dry_run) == (told.freed, told.freed_bytes, told.kept, False)
    assert tree.blobs().keys() == needed.keys()
    assert_whole(tree.ref, kept, needed, tmp_path / "pulled")
    # What has gone is sent again when it is needed again.
    assert pfimg.push(store, gone, f"{tree.ref}#gone").sent == len(useless)
    assert_whole(f"{tree.ref}#gone", gone, rest, tmp_path / "again")


def test_blobs_sent_ahead_stay_while_they_are_young(
    tree: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    kept, later = make_image(0), make_image(1)
    pfimg.push(store, kept, tree.ref)
    early = sorted(everything(store, later).keys() - everything(store, kept).keys())
    assert pfimg.push_blobs(store, early, tree.ref).sent == len(early)
    assert pfimg.collect_garbage(tree.ref).freed == 0
    assert pfimg.push(store, later, f"{tree.ref}#later").sent == 0
    assert pfimg.collect_garbage(tree.ref, grace_seconds=0).freed == 0
    # What was collected before an image named it is sent again.
    pfimg.remove_image(f"{tree.ref}#later")
    assert pfimg.collect_garbage(tree.ref, grace_seconds=0).freed == len(early)
    assert pfimg.push(store, later, f"{tree.ref}#later").sent == len(early)
    assert_whole(f"{tree.ref}#later", later, everything(store, later), tmp_path / "pulled")


def test_packs_that_no_image_needs_go(
    tree: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    kept, gone, loose = make_image(0), make_image(1), make_image(2)
    pfimg.push(store, kept, f"{tree.ref}#kept", layout="packed")
    packs = {name for name in names(tree) if name.startswith("packs/")}
    pfimg.push(store, gone, f"{tree.ref}#gone", layout="packed")
    pfimg.push(store, loose, tree.ref)
    assert {name for name in names(tree) if name.startswith("packs/")} > packs
    pfimg.remove_image(f"{tree.ref}#gone")
    done = pfimg.collect_garbage(tree.ref, grace_seconds=0)
    assert (done.freed, done.kept) == (1, 1 + len(everything(store, loose)))
    assert {name for name in names(tree) if name.startswith("packs/")} == packs
    for ref, image in ((f"{tree.ref}#kept", kept), (tree.ref, loose)):
        assert_whole(ref, image, everything(store, image), tmp_path / image[-8:])


def test_an_image_that_cannot_be_read_ends_the_run(tree: Adapter, store: pfimg.PfStore, make_image: Callable[..., str]) -> None:
    kept, gone = make_image(0), make_image(1)
    pfimg.push(store, gone, tree.ref)
    pfimg.push(store, kept, f"{tree.ref}#kept")
    pfimg.remove_image(tree.ref)
    write(tree, "pfimg/images/broken.json", b'{"pfimg":2}')
    fs = store.get_manifest(kept).world.fs
    for damage in ("a document that is none", "a tree that is missing"):
        before = names(tree)
        for dry_run in (True, False):
            with pytest.raises(pfimg.RegistryError, match="cannot be walked") as caught:
                pfimg.collect_garbage(tree.ref, grace_seconds=0, dry_run=dry_run)
            assert caught.value.code == "unreadable", damage
        assert names(tree) == before
        if "pfimg/images/broken.json" in before:
            write(tree, "pfimg/images/broken.json", None)
            tree.write(fs, None)
    tree.write(fs, store.read_frame(fs))
    assert pfimg.collect_garbage(tree.ref, grace_seconds=0).freed > 0


def test_what_a_push_has_found_stays_until_its_image_is_visible(
    tree: Adapter, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, tree.ref)
    pfimg.remove_image(tree.ref)
    collections: list[threading.Thread] = []

    def collect(event: pfimg.Progress) -> None:
        if event.phase == "send" and not collections:
            thread = threading.Thread(target=pfimg.collect_garbage, args=(tree.ref,), kwargs={"grace_seconds": 0})
            collections.append(thread)
            thread.start()
            thread.join(MOMENT)
            assert thread.is_alive()

    sent = pfimg.push(store, second, tree.ref, progress=collect)
    collections[0].join()
    assert 0 < sent.skipped < sent.sent + sent.skipped
    assert tree.blobs().keys() == everything(store, second).keys()
    assert_whole(tree.ref, second, everything(store, second), tmp_path / "pulled")


def test_a_push_waits_for_a_sweep_and_sends_what_it_has_removed(
    tree: Adapter, store: pfimg.PfStore, tmp_path: Path, image: str
) -> None:
    sent = pfimg.push(store, image, tree.ref)
    pfimg.remove_image(tree.ref)
    transport = base.connect(base.parse(tree.ref))
    assert isinstance(transport, base.Sweeper)
    reports: list[pfimg.PushReport] = []
    pusher = threading.Thread(target=lambda: reports.append(pfimg.push(store, image, tree.ref)))
    with transport.alone():
        pusher.start()
        pusher.join(MOMENT)
        assert pusher.is_alive()
        transport.sweep(list(transport.objects()), 0)
        assert tree.blobs() == {}
    pusher.join()
    assert reports[0].sent == sent.sent
    assert_whole(tree.ref, image, everything(store, image), tmp_path / "pulled")


def test_two_collections_at_once_free_everything_once(tree: Adapter, store: pfimg.PfStore, image: str) -> None:
    sent = pfimg.push(store, image, tree.ref)
    pfimg.remove_image(tree.ref)
    threads = [threading.Thread(target=pfimg.collect_garbage, args=(tree.ref,), kwargs={"grace_seconds": 0}) for _ in range(2)]
    assert len(tree.blobs()) == sent.sent
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree.blobs() == {}
    assert [name for name in names(tree) if name.startswith(leases.LEASES)] == []


def test_a_push_leaves_no_lease_and_a_dead_one_counts_only_for_so_long(
    bucket: BucketPlace, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, bucket.ref)
    pfimg.remove_image(bucket.ref)
    assert bucket.names(leases.LEASES) == []
    bucket.replace(f"{leases.LEASES}/push-of-the-dead", b"{}")
    monkeypatch.setattr(leases, "_PATIENCE", 0.5)
    with pytest.raises(pfimg.BackendError, match="pushing") as caught:
        pfimg.collect_garbage(bucket.ref, grace_seconds=0)
    assert (caught.value.code, caught.value.retryable) == ("busy", True)
    assert bucket.blobs() != {}
    monkeypatch.setattr(leases, "_LIFE", {"push": -1.0, "sweep": 600.0})
    pfimg.collect_garbage(bucket.ref, grace_seconds=0)
    assert bucket.blobs() == {}
    assert bucket.names(leases.LEASES) == []


def test_a_push_that_outlives_its_lease_looks_again(
    bucket: BucketPlace, store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, bucket.ref)
    shared = min(everything(store, first).keys() & everything(store, second).keys())
    monkeypatch.setattr(leases, "_PUSH_SECONDS", 0.0)
    swept: list[str] = []

    def sweep(event: pfimg.Progress) -> None:
        if event.phase == "send" and not swept:
            swept.append(shared)
            # From now on leases live again; but the one that this push has is over, and somebody has swept.
            monkeypatch.setattr(leases, "_PUSH_SECONDS", 3000.0)
            bucket.write(shared, None)

    pfimg.push(store, second, f"{bucket.ref}#second", progress=sweep)
    assert_whole(f"{bucket.ref}#second", second, everything(store, second), tmp_path / "pulled")


def test_a_store_and_places_that_collect_by_themselves_are_refused(store: pfimg.PfStore, image: str, tmp_path: Path) -> None:
    for ref, word in ((f"file://{store.root}", "is a store"), ("oci://127.0.0.1:1/a", "its own"), ("ipfs://", "its own")):
        with pytest.raises(pfimg.RegistryError, match=word) as caught:
            pfimg.collect_garbage(ref, grace_seconds=0)
        assert caught.value.code == "not_offered"
    with pytest.raises(FileNotFoundError):
        pfimg.collect_garbage(f"file://{tmp_path}/nothing")
    assert store.verify().ok
    assert [found for found, _ in store.images()] == [image]


def test_old_leftovers_of_killed_processes_go(tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    root = tmp_path / "registry"
    pfimg.push(store, image, f"file://{root}#one")
    (root / "packs").mkdir()
    left = ["manifest.json.12.0123abcd.tmp", "pfimg/images/x.json.12.0123abcd.tmp", "packs/x.pack.1.0123abcd.tmp"]
    left.append("blobs/sha256/00/" + "0" * 64 + ".zst.tmp.17.3")
    (root / "blobs/sha256/00").mkdir(exist_ok=True)
    for name in left:
        (root / name).write_bytes(b"four")
    (root / "notes.txt").write_text("mine")
    assert pfimg.collect_garbage(f"file://{root}", grace_seconds=0).freed_bytes == 0  # they may still be written
    for name in [*left, "notes.txt"]:
        set_age(root / name, 2 * 3600)
    assert pfimg.collect_garbage(f"file://{root}", grace_seconds=0).freed_bytes == 4 * len(left)
    assert [name for name in left if (root / name).exists()] == []
    assert (root / "notes.txt").exists()


def test_a_push_renews_what_it_finds(tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    root = tmp_path / "registry"
    pfimg.push(store, image, f"file://{root}")
    paths = list(root.glob("blobs/sha256/*/*"))
    for path in paths:
        set_age(path, 30 * 3600)
    (root / "manifest.json").unlink()
    before = pfimg.collect_garbage(f"file://{root}", dry_run=True)
    assert before.freed == len(paths)
    pfimg.push(store, image, f"file://{root}#renewed")
    pfimg.remove_image(f"file://{root}#renewed")
    assert pfimg.collect_garbage(f"file://{root}").freed == 0


def set_age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))

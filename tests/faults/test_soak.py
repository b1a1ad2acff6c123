"""Several processes use one store and one registry (a directory, a bucket) at random, beside a model of what must be there.

Everything happens at once: puts and pins, snapshots, pushes, pulls, removals, and collections of both that spare nothing for its
age. Each process knows what it has made and not taken away; nobody else may take that away. One name belongs to all: each counts
up the number in its image, and none of the increments may be lost. In the end what must be there is whole, nothing else is left
after a last collection, and nothing at all once everything is removed.

`PFIMG_SOAK_SECONDS` and `PFIMG_SOAK_SEED` make it last longer and go other ways; `make soak` is the long form.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tests.registries.s3_places import BucketPlace, point_to

import pfimg
from pfimg.registries.base import blob_name

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("PFIMG_SOAK_SECONDS", "4"))
SEED = int(os.environ.get("PFIMG_SOAK_SEED", "0"))
WORKERS = 3
# Children start afresh, as separate programs would.
PROCESSES = multiprocessing.get_context("spawn")
SHARED = "counter"
META = pfimg.CacheMeta(page_size_tokens=4, n_layers=1, n_heads=2, head_dim=8, dtype="bf16")


class Shelf(Protocol):
    """The registry, for the test to look into."""

    @property
    def ref(self) -> str: ...
    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...


class Directory:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.ref = f"file://{root}"

    def names(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()]

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.server("minio"))])
def shelf(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    if request.param == "file":
        return Directory(tmp_path / "registry")
    minio = request.getfixturevalue("minio")
    point_to(minio, monkeypatch)
    return BucketPlace(minio, minio.make_bucket())


class Worker:
    """One process: what it does, and what it knows.

    Attributes:
        pins: Content of blobs by the names of their pins.
        images: Files of the images in the store, by id.
        names: Images in the registry, by name.
        log: Of each operation: what, and when it began and ended.
    """

    def __init__(self, root: Path, number: int, registry: str) -> None:
        self.number = number
        self.chance = random.Random(1000 * SEED + number)
        self.scratch = root / f"scratch-{number}"
        self.scratch.mkdir()
        self.store = pfimg.PfStore.open(root / "store", durability="none")
        self.own = pfimg.PfStore.open(root / f"own-{number}", durability="none")
        self.registry = registry
        self.pins: dict[str, str] = {}
        self.images: dict[str, dict[str, str]] = {}
        self.names: dict[str, str] = {}
        self.files: dict[str, dict[str, str]] = {}  # of every image that was ever made
        self.counted = 0
        self.freed = 0
        self.log: list[tuple[str, float, float]] = []

    def run(self, seconds: float) -> None:
        operations = [
            *[self.snapshot] * 4, *[self.push] * 4, *[self.pull] * 3, *[self.put] * 2, self.check, self.unpin, self.count,
            self.remove, self.remove_name, self.collect, self.collect, self.collect_registry, self.collect_registry,
        ]  # fmt: skip
        first = [self.snapshot, self.push, self.collect, self.collect_registry]
        until = time.monotonic() + seconds
        while (begun := time.monotonic()) < until or first:
            operation = first.pop(0) if first else self.chance.choice(operations)
            if operation():
                self.log.append((operation.__name__, begun, time.monotonic()))

    def bytes(self) -> bytes:
        """Of few kinds, so that the processes share most blobs."""
        return bytes([self.chance.randrange(6)]) * self.chance.choice([1, 100, 70_000])

    def put(self) -> bool:
        name, content = f"{self.number}-{len(self.log)}", self.bytes() + bytes([self.chance.randrange(3)])
        with self.store.hold():
            digest = self.store.put(content)
            self.store.pin(name, digest)
        self.pins[name] = digest
        assert self.store.get(digest) == content
        return True

    def unpin(self) -> bool:
        if not self.pins:
            return False
        name = self.chance.choice(sorted(self.pins))
        assert self.store.has(self.pins.pop(name))
        self.store.unpin(name)
        return True

    def snapshot(self) -> bool:
        source = self.scratch / "source"
        source.mkdir()
        for name in range(self.chance.randrange(1, 5)):
            (source / str(name)).write_bytes(self.bytes())
        pages = [bytes([self.chance.randrange(4)]) * META.page_bytes for _ in range(2)]
        with self.store.hold():
            cache = self.store.put_pages(META, k=pages, v=pages)
            version = f"{self.number}.{len(self.log)}"
            image = pfimg.snapshot(self.store, agent=pfimg.AgentInfo("soak", version), fs_root=source, cache=cache)
        self.images[image] = self.files[image] = content(source)
        shutil.rmtree(source)
        return True

    def check(self) -> bool:
        if not self.images:
            return False
        image = self.chance.choice(sorted(self.images))
        target = self.scratch / "target"
        pfimg.checkout(self.store, image, target)
        assert content(target) == self.images[image]
        shutil.rmtree(target)
        return True

    def push(self) -> bool:
        if not self.images:
            return False
        image, name = self.chance.choice(sorted(self.images)), f"{self.number}-{self.chance.randrange(4)}"
        layout = self.chance.choice(["auto", "auto", "packed"])
        sent = pfimg.push(self.store, image, f"{self.registry}#{name}", layout=layout, expect=self.names.get(name, "none"))
        assert sent.ref == f"{self.registry}#{name}"
        self.names[name] = image
        return True

    def pull(self) -> bool:
        if not self.names:
            return False
        name = self.chance.choice(sorted(self.names))
        image = self.names[name]
        if self.chance.random() < 0.5 and image in self.images:
            self.store.remove_image(image)
        assert pfimg.pull(f"{self.registry}#{name}", self.store).image == image
        self.images[image] = self.files[image]
        return True

    def remove(self) -> bool:
        if len(self.images) < 4:
            return False
        image = self.chance.choice(sorted(self.images))
        del self.images[image]
        self.store.remove_image(image)
        return True

    def remove_name(self) -> bool:
        if not self.names:
            return False
        name = self.chance.choice(sorted(self.names))
        del self.names[name]
        pfimg.remove_image(f"{self.registry}#{name}")
        return True

    def count(self) -> bool:
        """Adds one to the number that is everybody's, unless somebody else does meanwhile."""
        ref = f"{self.registry}#{SHARED}"
        try:
            current = pfimg.pull(ref, self.own).image
        except pfimg.BlobNotFound:
            return False  # replaced, and its blobs collected, while it was pulled
        number = int(self.own.get_manifest(current).agent.version) + 1
        agent = pfimg.AgentInfo("counter", str(number), f"{self.number}")
        try:
            pfimg.push(self.own, pfimg.snapshot(self.own, agent=agent), ref, expect=current)
        except pfimg.Conflict:
            return False
        self.counted += 1
        return True

    def collect(self) -> bool:
        self.freed += self.store.gc(grace_seconds=0).freed
        return True

    def collect_registry(self) -> bool:
        self.freed += pfimg.collect_garbage(self.registry, grace_seconds=0).freed
        return True


def content(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_bytes().hex() for path in root.rglob("*") if path.is_file()}


def work(root: str, number: int, registry: str, seconds: float) -> None:
    worker = Worker(Path(root), number, registry)
    worker.run(seconds)
    known = {name: getattr(worker, name) for name in ("pins", "images", "names", "counted", "freed", "log")}
    Path(root, f"known-{number}.json").write_text(json.dumps(known))


def blobs(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.glob("blobs/*/*/*")}


def objects(shelf: Shelf, below: str) -> set[str]:
    return {name for name in shelf.names() if name.startswith(f"{below}/")}


def overlapping(logs: list[list[Any]]) -> int:
    """Operations during which another process began one."""
    found = 0
    for at, log in enumerate(logs):
        others = sorted(begun for number, other in enumerate(logs) if number != at for _, begun, _ in other)
        found += sum(any(begun < other < ended for other in others) for _, begun, ended in log)
    return found


@pytest.fixture
def known(tmp_path: Path, shelf: Shelf) -> list[dict[str, Any]]:
    """What each process knows after all have worked for a while."""
    first = pfimg.PfStore.open(tmp_path / "first")
    pfimg.push(first, pfimg.snapshot(first, agent=pfimg.AgentInfo("counter", "0")), f"{shelf.ref}#{SHARED}")
    children = [PROCESSES.Process(target=work, args=(str(tmp_path), at, shelf.ref, SECONDS)) for at in range(WORKERS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * WORKERS
    return [json.loads((tmp_path / f"known-{number}.json").read_text()) for number in range(WORKERS)]


@pytest.mark.timeout(SECONDS * 2 + 120)
def test_what_must_be_there_is_there_and_nothing_else_stays(
    tmp_path: Path,
    shelf: Shelf,
    known: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    record: Callable[..., None],
) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", durability="none")
    check_store(store, known, tmp_path / "out")
    check_registry(shelf, known, pfimg.PfStore.open(tmp_path / "fresh", durability="none"))
    remove_everything(store, shelf)
    logs = [one["log"] for one in known]
    counts = Counter(name for log in logs for name, _, _ in log)
    assert overlapping(logs) > 0
    freed = sum(one["freed"] for one in known)
    record(operations=counts.total(), beside=overlapping(logs), freed=freed, counted=sum(one["counted"] for one in known))
    if "PFIMG_SOAK_SECONDS" in os.environ:
        with capsys.disabled():
            print(f"\n{counts.total():,} operations, {overlapping(logs):,} of them beside others; {freed:,} freed")  # noqa: T201
            print(", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())))  # noqa: T201


def check_store(store: pfimg.PfStore, known: list[dict[str, Any]], scratch: Path) -> None:
    """Every image and pin is there and whole, and after a collection nothing else."""
    images = {image: files for one in known for image, files in one["images"].items()}
    pins = {name: digest for one in known for name, digest in one["pins"].items()}
    assert store.pins() == pins
    assert {image for image, _ in store.images()} == images.keys()
    assert store.verify().ok
    for image, files in images.items():
        pfimg.checkout(store, image, scratch)
        assert content(scratch) == files
        shutil.rmtree(scratch)
    told, done = (store.gc(grace_seconds=0, dry_run=dry_run) for dry_run in (True, False))
    assert (told.freed, told.freed_bytes, told.kept) == (done.freed, done.freed_bytes, done.kept)
    needed = {*images, *pins.values()}.union(*(store.reachable(store.get_manifest(image)) for image in images))
    assert blobs(store.root) == {blob_name(digest) for digest in needed}


def check_registry(shelf: Shelf, known: list[dict[str, Any]], fresh: pfimg.PfStore) -> None:
    """Every name leads to its image, which is whole; no increment is lost; and after a collection nothing else is there."""
    ref = shelf.ref
    names = {name: image for one in known for name, image in one["names"].items()}
    assert set(pfimg.list_images(ref)) == {f"{ref}#{name}" for name in [SHARED, *names]}
    loose: set[str] = set()
    packs: set[str] = set()
    for name in [*names, SHARED]:
        image = pfimg.pull(f"{ref}#{name}", fresh).image
        assert name == SHARED or image == names[name]
        used = json.loads(shelf.read(f"pfimg/images/{name}.json")).get("packs", [])
        packs.update(used)
        if not used:
            loose.update(fresh.reachable(fresh.get_manifest(image)))
    assert fresh.verify().ok
    count = fresh.get_manifest(pfimg.pull(f"{ref}#{SHARED}", fresh).image).agent.version
    assert int(count) == sum(one["counted"] for one in known)
    told, done = (pfimg.collect_garbage(ref, grace_seconds=0, dry_run=dry_run) for dry_run in (True, False))
    assert (told.freed, told.freed_bytes, told.kept) == (done.freed, done.freed_bytes, done.kept)
    assert objects(shelf, "blobs") == {blob_name(digest) for digest in loose}
    assert objects(shelf, "packs") == {f"packs/{name}.{suffix}" for name in packs for suffix in ("pack", "idx")}


def remove_everything(store: pfimg.PfStore, shelf: Shelf) -> None:
    for image in store.markers():
        store.remove_image(image)
    for name in store.pins():
        store.unpin(name)
    for ref in pfimg.list_images(shelf.ref):
        pfimg.remove_image(ref)
    store.gc(grace_seconds=0)
    pfimg.collect_garbage(shelf.ref, grace_seconds=0)
    assert blobs(store.root) == objects(shelf, "blobs") == objects(shelf, "packs") == set()

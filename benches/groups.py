"""What is measured together. Ours comes first; `Limits` are what no program that does the work can pass."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import pfimg
from pfimg._core import decode_frame, digests_of, encode_frame, threads

from . import page_manifest, scaling, trees
from .pages import Batch
from .peers import Missing, zipnn
from .rounds import Contender, Group, timed
from .systems import Expert, LMCache, Pfimg, PlainFiles, Reading, Reference, System, forget

MIB = 1 << 20
SIZES = {"64 KiB": 65_536, "73,728 B": 73_728, "2 MiB": 2 * MIB}
BATCH_BYTES = 128 * MIB
DOCUMENT_PAGES = 1_000_000


def stores_and_loads(system: Callable[[Path], System], batch: Batch) -> Contender:
    """Times a batch there and back, and checks that it is the same."""

    def run(root: Path) -> dict[str, float]:
        subject = system(root)
        names, storing = timed(subject.store, batch)
        _, loading = timed(subject.load, names, batch)
        subject.close()
        batch.check(len(names))
        return {"store": storing / len(names), "load": loading / len(names)}

    return run


def _there_and_back(systems: Mapping[str, Callable[[Path], System]], batch: Batch) -> dict[str, Contender]:
    return {name: stores_and_loads(system, batch) for name, system in systems.items()}


def limits(batch: Batch) -> dict[str, Contender]:
    """Our kernel alone over the pages, and a copy of them, with all threads."""

    def hash_alone(_root: Path) -> dict[str, float]:
        _, seconds = timed(digests_of, batch.pages)
        return {"hash": seconds / len(batch)}

    def copy(_root: Path) -> dict[str, float]:
        parts = np.array_split(np.arange(len(batch)), threads())
        with ThreadPoolExecutor(threads()) as pool:
            runs = [slice(part[0], part[-1] + 1) for part in parts if len(part)]
            _, seconds = timed(lambda: list(pool.map(lambda run: np.copyto(batch.out[run], batch.pages[run]), runs)))
        batch.check(len(batch))
        return {"copy": seconds / len(batch)}

    return {"hash alone": hash_alone, "memory copy": copy}


def storing(label: str) -> Group:
    """Pages of one size, in memory, nothing waits for a disk."""
    batch = Batch(SIZES[label], BATCH_BYTES)
    systems: dict[str, Callable[[Path], System]] = {
        "pfimg": Pfimg,
        'pfimg, codec="store"': partial(Pfimg, codec="store"),
        "LMCache": LMCache,
        "plain files": PlainFiles,
        "expert Python": Expert,
    }
    if label == "73,728 B":
        systems["processfork"] = Reference
    contenders = _there_and_back(systems, batch) | limits(batch)
    return Group(f"pages of {label}", f"real pages of {label}", batch.page_bytes, contenders, batch.renew)


def small() -> Group:
    """Many small blobs."""
    batch = Batch(4096, 20_000 * 4096)
    systems: dict[str, Callable[[Path], System]] = {"pfimg": Pfimg, "LMCache": LMCache, "plain files": PlainFiles}
    contenders = _there_and_back(systems, batch) | limits(batch)
    return Group("20,000 × 4 KiB", "20,000 blobs of 4 KiB", batch.page_bytes, contenders, batch.renew)


def presence() -> Group:
    """Pages that are stored already."""
    batch = Batch(4096, 20_000 * 4096)

    def ours(root: Path) -> dict[str, float]:
        store = pfimg.PfStore.open(root)
        names = store.put_many(batch.pages)
        again, putting = timed(lambda: store.put_many(batch.pages, digests=names))
        found, looking = timed(store.has_many, names)
        assert again == names
        assert all(found)
        return {"put again": putting / len(batch), "look up": looking / len(batch)}

    def peer(root: Path) -> dict[str, float]:
        system = LMCache(root)
        names = system.store(batch)
        found, looking = timed(system.client.exists, names)
        system.close()
        assert all(found)
        return {"look up": looking / len(batch)}

    return Group("presence", "20,000 stored blobs", 0, {"pfimg": ours, "LMCache": peer}, batch.renew)


def disk(label: str) -> Group:
    """Pages that have reached the disk when the call returns."""
    batch = Batch(SIZES[label], BATCH_BYTES)
    systems: dict[str, Callable[[Path], System]] = {
        "pfimg": partial(Pfimg, durability="group"),
        "plain files": partial(PlainFiles, sync=True),
    }
    contenders = {name: _storing_only(system, batch) for name, system in systems.items()}
    return Group(f"disk, {label}", f"real pages of {label} to the disk", batch.page_bytes, contenders, batch.renew, on_disk=True)


def _storing_only(system: Callable[[Path], System], batch: Batch) -> Contender:
    def run(root: Path) -> dict[str, float]:
        subject = system(root)
        names, seconds = timed(subject.store, batch)
        subject.close()
        return {"store": seconds / len(names)}

    return run


def verifying(label: str, *, on_disk: bool) -> Group:
    """Reads and hashes a whole store, whose files are not in memory where they are on a disk."""
    batch = Batch(SIZES[label], BATCH_BYTES)

    def filled(root: Path) -> tuple[pfimg.PfStore, list[Path]]:
        store = pfimg.PfStore.open(root, durability="group" if on_disk else "none")
        store.put_many(batch.pages)
        files = sorted(store.root.glob("blobs/*/*/*"))
        if on_disk:
            forget(files)
        return store, files

    def ours(root: Path) -> dict[str, float]:
        store, _ = filled(root)
        report, seconds = timed(store.verify)
        # Nothing refers to the pages, which is no damage.
        assert report.ok
        assert report.checked == len(batch)
        return {"verify": seconds / len(batch)}

    def unseen(root: Path) -> dict[str, float]:
        _, files = filled(root)
        subject = Reading(files)
        length, seconds = timed(subject.read)
        subject.close()
        assert length == sum(file.stat().st_size for file in files)
        return {"verify": seconds / len(batch)}

    contenders = {"pfimg": ours, "plain files": unseen, "hash alone": limits(batch)["hash alone"]}
    where = "on a disk, not in memory" if on_disk else "in memory"
    name = f"verify, {label}{', cold' if on_disk else ''}"
    return Group(name, f"stored pages of {label}, {where}", batch.page_bytes, contenders, batch.renew, on_disk=on_disk)


def compressing() -> Group:
    """Every page through zstd at level 1."""
    batch = Batch(SIZES["73,728 B"], BATCH_BYTES)
    systems: dict[str, Callable[[Path], System]] = {"pfimg": partial(Pfimg, codec="zstd"), "expert Python": Expert}
    contenders = _there_and_back(systems, batch)
    return Group("zstd", "real pages of 73,728 B through zstd", batch.page_bytes, contenders, batch.renew)


def floats(label: str) -> Group:
    """The lossless codec for floats, on one thread, frames in memory."""
    batch = Batch(SIZES[label], 16 * MIB)

    def coder(encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes | bytearray]) -> dict[str, float]:
        # ZipNN reorders the bits of what it is given, so each coder gets pages of its own.
        frames, encoding = timed(lambda pages: list(map(encode, pages)), [page.tobytes() for page in batch.pages])
        pages, decoding = timed(lambda: list(map(decode, frames)))
        assert all(bytes(found) == page.tobytes() for found, page in zip(pages, batch.pages, strict=True))
        size = sum(map(len, frames)) / batch.pages.nbytes
        return {"encode": encoding / len(batch), "decode": decoding / len(batch), "size": size}

    def ours(_root: Path) -> dict[str, float]:
        return coder(lambda page: encode_frame(page, codec="float"), decode_frame)

    def peer(_root: Path) -> dict[str, float]:
        codec = zipnn.ZipNN()
        return coder(codec.encode, codec.decode)

    return Group(f"floats, {label}", f"bf16 pages of {label}", batch.page_bytes, {"pfimg": ours, "ZipNN": peer}, batch.renew)


def documents() -> Group:
    """A page manifest of a million pages."""
    data = page_manifest.document(DOCUMENT_PAGES)
    blobs = pfimg.MemoryStore()
    image = page_manifest.image(blobs, data)

    def ours(_root: Path) -> dict[str, float]:
        _, parsing = timed(pfimg.PageManifest.from_json, data)
        digests, walking = timed(pfimg.transitive_blob_digests, image, blobs)
        assert len(digests) == 2 + 2 * DOCUMENT_PAGES
        return {"parse": parsing / DOCUMENT_PAGES, "parse + walk": walking / DOCUMENT_PAGES}

    def peer(_root: Path) -> dict[str, float]:
        try:
            _, parsing = timed(page_manifest.peer_parse, data)
        except ImportError as error:
            raise Missing(f"orjson: {error}") from error
        digests, walking = timed(page_manifest.peer_walk, data)
        assert len(digests) == 2 * DOCUMENT_PAGES
        return {"parse": parsing / DOCUMENT_PAGES, "parse + walk": walking / DOCUMENT_PAGES}

    return Group("page manifest", f"pages of a manifest of {DOCUMENT_PAGES:,}", 0, {"pfimg": ours, "orjson": peer})


def directories() -> Group:
    """A directory of many files of mixed sizes, on a disk."""

    def contender(system: type[trees.System]) -> Contender:
        def run(root: Path) -> dict[str, float]:
            if not trees.installed(system):
                raise Missing(f"{system.name}: not installed")
            corpus = root.parent / "corpus"
            if not corpus.exists():
                trees.make_corpus(corpus)
                os.sync()
            root.mkdir()
            subject = system(root / "repository")
            _, capturing = timed(subject.capture, corpus)
            os.sync()
            _, restoring = timed(subject.restore, root / "restored")
            assert trees.listing(root / "restored") == trees.listing(corpus)
            return {"capture": capturing / trees.FILES, "restore": restoring / trees.FILES}

        return run

    contenders = {system.name: contender(system) for system in trees.SYSTEMS}
    return Group("trees", f"files of a tree of {trees.FILES:,}", 0, contenders, on_disk=True, most_rounds=3)


def all_groups() -> Iterator[tuple[str, Callable[[], Group]]]:
    """Names, and what makes each group with its buffers; one at a time is in memory."""
    for label in SIZES:
        yield f"pages of {label}", partial(storing, label)
    yield "20,000 × 4 KiB", small
    yield "presence", presence
    for label in ("64 KiB", "2 MiB"):
        yield f"disk, {label}", partial(disk, label)
    for label in ("64 KiB", "2 MiB"):
        yield f"verify, {label}", partial(verifying, label, on_disk=False)
        yield f"verify, {label}, cold", partial(verifying, label, on_disk=True)
    yield "zstd", compressing
    for label in ("73,728 B", "2 MiB"):
        yield f"floats, {label}", partial(floats, label)
    yield "scaling", scaling.pages
    yield "scaling, trees", scaling.files
    yield "page manifest", documents
    yield "trees", directories

"""What is measured beside what: each system stores a batch of pages and loads it back into a buffer.

Every system keeps one zstd file a page in a directory of its own, under the page's SHA-256, and verifies what it loads, so that
all do the same work. None of them waits for the disk (`durability="none"`; the reference always syncs, which costs nothing on
tmpfs).
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zstandard

import pfimg

Pages = npt.NDArray[np.uint8]
DATA = Path(__file__).parent.parent / "tests" / "data"


class System(Protocol):
    """One way to keep pages."""

    name: str
    # A slow system gets only the first so many bytes of each batch.
    most_bytes: int

    def __init__(self, root: Path) -> None: ...
    def store(self, pages: Pages) -> Sequence[str]: ...
    def load(self, names: Sequence[str], out: Pages) -> None: ...


class Pfimg:
    """`put_many` and `get_many(out=)`."""

    name = "pfimg"
    most_bytes = sys.maxsize

    def __init__(self, root: Path) -> None:
        self._store = pfimg.PfStore.open(root, durability="none")

    def store(self, pages: Pages) -> Sequence[str]:
        return self._store.put_many(pages)

    def load(self, names: Sequence[str], out: Pages) -> None:
        self._store.get_many(names, out=out)


class Expert:
    """What a careful Python programmer writes: `hashlib` and `zstandard` at level 1, temporary and rename, in two threads."""

    name = "hashlib + zstandard"
    most_bytes = sys.maxsize
    threads = 2

    def __init__(self, root: Path) -> None:
        self._root = root
        for shard in range(256):
            (root / f"{shard:02x}").mkdir(parents=True)
        self._pool = ThreadPoolExecutor(self.threads)

    def _put(self, page: memoryview) -> str:
        name = hashlib.sha256(page).hexdigest()
        path = f"{self._root}/{name[:2]}/{name}.zst"
        if not os.path.exists(path):
            temporary = f"{path}.tmp"
            with open(temporary, "wb", buffering=0) as file:
                file.write(zstandard.ZstdCompressor(level=1).compress(page))
            os.rename(temporary, path)
        return name

    def _get(self, name: str, out: memoryview) -> None:
        with open(f"{self._root}/{name[:2]}/{name}.zst", "rb", buffering=0) as file:
            page = zstandard.ZstdDecompressor().decompress(file.read())
        if hashlib.sha256(page).hexdigest() != name:
            raise ValueError(name)
        out[:] = page

    def store(self, pages: Pages) -> Sequence[str]:
        return list(self._pool.map(self._put, map(memoryview, pages)))

    def load(self, names: Sequence[str], out: Pages) -> None:
        list(self._pool.map(self._get, names, map(memoryview, out)))


class Reference:
    """The published package: `put_blob` and `read_blob`, one page a call (zstd level 19, on one thread)."""

    name = "processfork"
    most_bytes = 4 << 20

    def __init__(self, root: Path) -> None:
        import processfork

        self._package = processfork
        self._store = processfork.PfStore.open(str(root))

    def store(self, pages: Pages) -> Sequence[str]:
        return [self._package.put_blob(self._store, page.tobytes()) for page in pages]

    def load(self, names: Sequence[str], out: Pages) -> None:
        for name, row in zip(names, out, strict=True):
            row[:] = np.frombuffer(self._package.read_blob(self._store, name), np.uint8)


def share(system: type[System], pages: Pages) -> Pages:
    """The part of a batch that a system gets: whole pages, at least one."""
    return pages[: max(1, system.most_bytes // pages.shape[1])]


SYSTEMS: tuple[type[System], ...] = (Pfimg, Expert, Reference)
SIZES = {"64 KiB": 65_536, "73,728 B": 73_728, "2 MiB": 2_097_152}


def real_pages(page_bytes: int, total_bytes: int, salt: int) -> Pages:
    """Pages of real bf16 keys and values, cut to `page_bytes`, each made unique by a counter and `salt` in its first 16 bytes."""
    sample = np.concatenate([np.load(DATA / f"kv_{side}_pages.npy").reshape(-1).view(np.uint8) for side in "kv"])
    n = max(1, total_bytes // page_bytes)
    pages = np.resize(sample, (n, page_bytes))
    pages[:, :16].view(np.uint64)[:] = [[salt, ix] for ix in range(n)]
    return pages

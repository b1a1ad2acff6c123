"""What keeps pages: pfimg and what users would take instead. Each stores a batch and loads it back into memory that is there.

All have as many threads as pfimg. Opening and closing are not timed, nor is making the names that systems need that do not hash.
"""

import ctypes
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zstandard

import pfimg
from pfimg._core import threads

from .pages import Batch
from .peers import Missing, lmcache

_libc = ctypes.CDLL(None, use_errno=True)


class System(Protocol):
    """One way to keep pages."""

    # A slow system gets only the first so many bytes of each batch.
    most_bytes: int

    def store(self, batch: Batch) -> Sequence[str]: ...
    def load(self, names: Sequence[str], batch: Batch) -> None: ...
    def close(self) -> None: ...


class Pfimg:
    """`put_many(array)` and `get_many(names, out=array)`: hashed, written to a temporary, renamed; verified as it is read."""

    most_bytes = sys.maxsize

    def __init__(self, root: Path, *, codec: str = "auto", durability: str = "none") -> None:
        self.pages = pfimg.PfStore.open(root, codec=codec, durability=durability)

    def store(self, batch: Batch) -> Sequence[str]:
        return self.pages.put_many(batch.pages)

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self.pages.get_many(names, out=batch.out)

    def close(self) -> None:
        pass


class LMCache:
    """LMCache's C++ client for files: no hashing, no verifying."""

    most_bytes = sys.maxsize

    def __init__(self, root: Path) -> None:
        self.client = lmcache.LMCache(root, workers=threads())

    def store(self, batch: Batch) -> Sequence[str]:
        self.client.put_many(batch.keys, batch.views)
        return batch.keys

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self.client.get_many(names, batch.rows)

    def close(self) -> None:
        self.client.close()


class _Threads:
    """Gives each of its threads an equal run of the items."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(threads())

    def map(self, work: Callable[..., Any], *items: Sequence[Any]) -> list[Any]:
        step = -(-len(items[0]) // threads())
        runs = range(0, len(items[0]), step)
        results = self._pool.map(lambda start: list(map(work, *(item[start : start + step] for item in items))), runs)
        return [result for run in results for result in run]

    def close(self) -> None:
        self._pool.shutdown()


class PlainFiles:
    """A file a page by Python threads, temporary and rename: no hashing, no verifying; `sync`: one `syncfs` after a batch."""

    most_bytes = sys.maxsize

    def __init__(self, root: Path, *, sync: bool = False) -> None:
        root.mkdir()
        self._root, self._sync = os.open(root, os.O_RDONLY), sync
        self._threads = _Threads()

    def _put(self, name: str, page: memoryview) -> None:
        temporary = f"{name}.tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._root)
        os.write(file, page)
        os.close(file)
        os.rename(temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)

    def _get(self, name: str, row: memoryview) -> None:
        file = os.open(name, os.O_RDONLY, dir_fd=self._root)
        os.readv(file, [row])
        os.close(file)

    def store(self, batch: Batch) -> Sequence[str]:
        self._threads.map(self._put, batch.keys, batch.views)
        if self._sync and _libc.syncfs(self._root) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
        return batch.keys

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self._threads.map(self._get, names, batch.rows)

    def close(self) -> None:
        self._threads.close()
        os.close(self._root)


class Reading:
    """Files that are read by Python threads, each into one buffer of its thread: nobody looks at what comes."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [os.fspath(file) for file in files]
        self._most = max(file.stat().st_size for file in files)
        self._own = threading.local()
        self._threads = _Threads()

    def _read(self, name: str) -> int:
        if not hasattr(self._own, "buffer"):
            self._own.buffer = np.zeros(self._most, np.uint8)
        file = os.open(name, os.O_RDONLY)
        length = os.readv(file, [self._own.buffer])
        os.close(file)
        return length

    def read(self) -> int:
        return sum(self._threads.map(self._read, self._files))

    def close(self) -> None:
        self._threads.close()


def forget(files: Sequence[Path]) -> None:
    """Has the system drop from memory what is on the disk of files, so that the next read is one of the disk."""
    for name in files:
        file = os.open(name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


class _Codec(threading.local):
    """A thread's own contexts, made once."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


class Expert:
    """What a careful Python programmer writes: `hashlib`, `zstandard` at level 1, temporary and rename; verified when read."""

    most_bytes = sys.maxsize

    def __init__(self, root: Path) -> None:
        self._root = root
        for shard in range(256):
            (root / f"{shard:02x}").mkdir(parents=True)
        self._threads = _Threads()
        self._own = _Codec()

    def _put(self, page: memoryview) -> str:
        name = hashlib.sha256(page).hexdigest()
        path = f"{self._root}/{name[:2]}/{name}.zst"
        if not os.path.exists(path):
            temporary = f"{path}.tmp"
            with open(temporary, "wb", buffering=0) as file:
                file.write(self._own.compressor.compress(page))
            os.rename(temporary, path)
        return name

    def _get(self, name: str, row: memoryview) -> None:
        with open(f"{self._root}/{name[:2]}/{name}.zst", "rb", buffering=0) as file:
            page = self._own.decompressor.decompress(file.read())
        if hashlib.sha256(page).hexdigest() != name:
            raise ValueError(name)
        row[:] = page

    def store(self, batch: Batch) -> Sequence[str]:
        return self._threads.map(self._put, batch.views)

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self._threads.map(self._get, names, batch.rows)

    def close(self) -> None:
        self._threads.close()


class Reference:
    """The published package: `put_blob` and `read_blob`, one page a call (zstd level 19, on one thread, always synchronised)."""

    most_bytes = 1 << 20

    def __init__(self, root: Path) -> None:
        try:
            import processfork
        except ImportError as error:
            raise Missing(f"processfork: {error}") from error
        self._package = processfork
        self._store = processfork.PfStore.open(str(root))

    def store(self, batch: Batch) -> Sequence[str]:
        count = max(1, self.most_bytes // batch.page_bytes)
        return [self._package.put_blob(self._store, page.tobytes()) for page in batch.pages[:count]]

    def load(self, names: Sequence[str], batch: Batch) -> None:
        for name, row in zip(names, batch.out, strict=False):
            row[:] = np.frombuffer(self._package.read_blob(self._store, name), np.uint8)

    def close(self) -> None:
        pass

"""A cache of KV pages under an engine's own keys: memory in front, a directory behind it.

Engines name pages by hashes of tokens. Here a key of a namespace stands for a page, and pages are kept by what they hold: in a
`PageArena`, and behind it in a `PfStore`, so that equal pages are there once and every page is verified as it is read. A put
returns when its pages are in the arena; a thread writes them to the store, and when it falls behind, puts wait for it. A page
that was lost or damaged is a miss, never an error and never a wrong page.

Limits: a cache's directory belongs to one process at a time, whose threads may all use it; parts of a tensor-parallel group each
have their own. What was put in the last moments before a process was killed may be missing afterwards.
"""

import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from pfimg._core import PageArena
from pfimg.errors import FormatError, StoreError
from pfimg.page_index import CacheIdentity, PageIndex
from pfimg.store import PfStore
from pfimg.types import StrPath

_log = logging.getLogger("pfimg")

# Bytes that the thread moves at a time.
_MOVED_AT_ONCE = 16 << 20


class PageCache:
    """Pages of one size or shorter, under the keys of engines.

    Args:
        path: A directory for the store and the index; None: nothing outlives the process, and the arena is all there is.
        page_bytes: The longest page.
        arena_bytes: What pages in memory may take; it is taken at once.
        arena_path: A file for the arena, on `/dev/shm` say, which keeps it warm from one process to the next; None: memory of
            this one.
        store_bytes: What pages in the directory may take, before they are encoded; those used longest ago go first. None: no
            limit.

    Raises:
        FormatError: The arena has room for less than two pages.
        StoreError: Another process has the directory or the arena open.
        OSError: The space for the arena is not there.

    Example:
        >>> cache = pfimg.PageCache("cache", page_bytes=65536, arena_bytes=1 << 20)
        >>> identity = pfimg.CacheIdentity("llama", "main", "bf16", (16, 32, 8, 128), "nhd")
        >>> cache.bind("chat", identity)
        >>> cache.put_many("chat", ["a", "b"], [b"A" * 65536, b"B" * 65536])
        >>> cache.leading_hits("chat", ["a", "b", "c"])
        2
        >>> out = [bytearray(65536), bytearray(65536)]
        >>> cache.get_many("chat", ["b", "c"], out=out)
        [True, False]
        >>> cache.close()
    """

    def __init__(
        self,
        path: StrPath | None,
        *,
        page_bytes: int,
        arena_bytes: int,
        arena_path: StrPath | None = None,
        store_bytes: int | None = None,
    ) -> None:
        directory = None if path is None else Path(path).expanduser()
        if arena_bytes < 2 * page_bytes:
            raise FormatError(f"arena_bytes {arena_bytes} is less than two pages of {page_bytes}")
        self._arena = PageArena(arena_path, page_bytes=page_bytes, capacity_bytes=arena_bytes)
        # One opener, by the lock of a small arena beside the store: it is let go however a process ends.
        self._owner: PageArena | None = None
        self._store: PfStore | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._owner = PageArena(directory / "lock", page_bytes=1, capacity_bytes=1)
            self._store = PfStore.open(directory / "store", durability="none")
        self._index = PageIndex(None if directory is None else directory / "index.sqlite")
        self._page_bytes = page_bytes
        # Without a store this only bounds the index: what the arena gave up is found out when it is asked for.
        self._most_bytes = store_bytes if directory is not None else 4 * arena_bytes
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Pages that wait for the store are pinned: half of the arena at most.
        self._most_waiting = max(1, self._arena.slots // 2)
        self._waiting = 0
        self._room = threading.Condition()
        self._error: Exception | None = None
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="pfimg-cache", daemon=True)
        self._thread.start()

    def bind(
        self, namespace: str, identity: CacheIdentity, *, max_bytes: int | None = None, ttl_seconds: float | None = None
    ) -> None:
        """Opens a namespace for pages of one identity; to be called before it is used, in every process.

        Args:
            namespace: Its name.
            identity: What its pages are of.
            max_bytes: What its pages may take; those used longest ago go first. None: no limit but that of the cache.
            ttl_seconds: Older pages are misses. None: no age is too old.

        Raises:
            StoreError: The namespace has pages of another identity; `.code` is `identity`.
        """
        self._index.bind(namespace, identity, max_bytes, ttl_seconds)

    def put_many(self, namespace: str, keys: Sequence[bytes | str], buffers: Any) -> None:
        """Copies pages into the arena, and lets each key stand for its page from then on, in place of what it stood for before.

        Args:
            namespace: One that is bound.
            keys: The engine's names, one a page; text and bytes are never the same key.
            buffers: A sequence of buffers, or one whose axis 0 is pages: arrays, CPU tensors, memoryviews.

        Raises:
            FormatError: There are not as many keys as buffers.
            LimitExceeded: A page is longer than `page_bytes`; `.index` tells which of those that are left to put.
            StoreError: The namespace is not bound, or the cache is closed.
        """
        self._check_open()
        self._index.namespace(namespace)
        if len(keys) != len(buffers):
            raise FormatError(f"{len(keys)} keys for {len(buffers)} buffers")
        sizes = _sizes(buffers)
        step = self._most_waiting if self._store is not None else max(1, len(keys))
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            self._put(namespace, keys[part], buffers[part], sizes[part])

    def _put(self, namespace: str, keys: Sequence[bytes | str], buffers: Any, sizes: list[int]) -> None:
        with self._room:
            self._room.wait_for(lambda: self._waiting + len(keys) <= self._most_waiting or self._store is None)
            self._waiting += len(keys)
        try:
            digests = self._arena.put_many(buffers)
            self._release(self._index.put(namespace, keys, digests, sizes))
            self._count(puts=len(keys), put_bytes=sum(sizes))
            store = self._store
            if store is None:
                self._release(self._index.shrink(self._most_bytes or 0))
                self._done(len(keys))
                return
            pinned = self._arena.pin(digests)
            # Others were quicker to fill the arena: what it has given up already goes to the store now.
            lost = [index for index, held in enumerate(pinned) if not held]
            if lost:
                store.put_many([_row(buffers, index) for index in lost], digests=[digests[index] for index in lost])
        except BaseException:
            self._done(len(keys))
            raise
        waiting = [(digest, size) for digest, size, held in zip(digests, sizes, pinned, strict=True) if held]
        self._jobs.put(lambda: self._write(store, waiting, len(keys)))

    def _done(self, count: int) -> None:
        with self._room:
            self._waiting -= count
            self._room.notify_all()

    def get_many(self, namespace: str, keys: Sequence[bytes | str], *, out: Any) -> list[bool]:
        """Reads pages into the caller's memory, each verified.

        Args:
            namespace: One that is bound.
            keys: The engine's names.
            out: A sequence of writable buffers, or one whose axis 0 is pages, each of its page's length.

        Returns:
            For each key whether its page is in `out`; other rows hold undefined bytes.

        Raises:
            FormatError: `out` has another number of rows, or a page has another length.
            StoreError: The namespace is not bound, or the cache is closed.
        """
        self._check_open()
        if len(out) != len(keys):
            raise FormatError(f"out has {len(out)} rows for {len(keys)} keys")
        digests = self._index.find(namespace, keys)
        found = [False] * len(keys)
        known = [(index, digest) for index, digest in enumerate(digests) if digest is not None]
        missing = []
        if known:
            rows = out if len(known) == len(keys) else [_row(out, index) for index, _ in known]
            mask = self._arena.get_many([digest for _, digest in known], out=rows, errors="mask")
            for (index, digest), hit in zip(known, mask, strict=True):
                found[index] = hit
                if not hit:
                    missing.append((index, digest))
        self._count(hits_arena=sum(found))
        if missing:
            self._get_stored(namespace, keys, missing, out, found)
        self._count(misses=found.count(False))
        return found

    def _get_stored(
        self, namespace: str, keys: Sequence[bytes | str], missing: list[tuple[int, str]], out: Any, found: list[bool]
    ) -> None:
        rows = [_row(out, index) for index, _ in missing]
        digests = [digest for _, digest in missing]
        mask = [False] * len(missing)
        if self._store is not None:
            mask = self._store.get_many(digests, out=rows, errors="mask")
            hits = [place for place, hit in enumerate(mask) if hit]
            if hits:
                self._arena.put_many([rows[place] for place in hits], digests=[digests[place] for place in hits])
                self._count(hits_store=len(hits))
        for (index, digest), hit in zip(missing, mask, strict=True):
            found[index] = hit
            if not hit:
                self._forget(namespace, keys[index], digest)

    def _forget(self, namespace: str, key: bytes | str, digest: str) -> None:
        """Removes a key whose page was lost, unless another page was put under it meanwhile."""
        dropped, gone = self._index.drop(namespace, [key], digest)
        self._count(lost=dropped)
        self._release(gone)

    def has_many(self, namespace: str, keys: Sequence[bytes | str]) -> list[bool]:
        """Whether the page of each key is there; none is read."""
        self._check_open()
        digests = self._index.find(namespace, keys)
        there = self._there([digest for digest in digests if digest is not None])
        return [digest is not None and digest in there for digest in digests]

    def leading_hits(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """How many keys from the first one on have their pages here: what an engine need not compute."""
        self._check_open()
        digests = [digest for digest in self._index.find(namespace, keys, leading=True) if digest is not None]
        there = self._there(digests)
        return next((place for place, digest in enumerate(digests) if digest not in there), len(digests))

    def _there(self, digests: list[str]) -> set[str]:
        there = {digest for digest, held in zip(digests, self._arena.has_many(digests), strict=True) if held}
        others = [digest for digest in digests if digest not in there]
        if self._store is not None and others:
            there.update(digest for digest, held in zip(others, self._store.has_many(others), strict=True) if held)
        return there

    def prefetch(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """Has the pages that are only in the store read into the arena, beside the caller; returns how many these are."""
        self._check_open()
        known = {digest for digest in self._index.find(namespace, keys) if digest is not None}
        cold = [digest for digest, held in zip(known, self._arena.has_many(list(known)), strict=True) if not held]
        store = self._store
        if store is None:
            return 0
        self._jobs.put(lambda: self._read(store, cold))
        return len(cold)

    def delete(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """Removes keys, and pages that no other key stands for; returns how many keys there were."""
        self._check_open()
        count, gone = self._index.drop(namespace, keys)
        self._release(gone)
        return count

    def clear(self, namespace: str) -> None:
        """Removes a namespace with its pages, bound or not; it may be bound to any identity afterwards."""
        self._check_open()
        self._release(self._index.clear(namespace))

    def flush(self) -> None:
        """Waits until all that was put is in the store and in the index's file.

        Raises:
            Exception: What the thread that writes ran into since the last flush, a full disk for instance.
        """
        self._check_open()
        self._flush()

    def _flush(self) -> None:
        done = threading.Event()
        self._jobs.put(done.set)
        done.wait()
        self._release(self._index.expire())
        self._index.save()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Writes what waits, and lets go of memory and locks. Closing twice does no harm."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        try:
            self._flush()
        finally:
            self._jobs.put(None)
            self._thread.join()
            self._index.close()
            self._arena.close()
            if self._owner is not None:
                self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Numbers by name: of calls since the cache was opened, and of what is there now."""
        with self._counting:
            counts = dict(self._counts)
        names = ("puts", "put_bytes", "hits_arena", "hits_store", "misses", "lost", "written", "written_bytes", "write_errors")
        found = {name: counts.get(name, 0) for name in names}
        arena = self._arena.stats()
        store_corrupt = 0 if self._store is None else self._store.stats().counters["corrupt"]
        return found | {
            "corrupt": arena["corrupt"] + store_corrupt,
            "evicted": arena["evicted"],
            "arena_bytes": arena["bytes"],
            "indexed_bytes": self._index.bytes,
            "keys": sum(len(namespace.entries) for namespace in list(self._index.namespaces.values())),
            "waiting_pages": self._waiting,
        }

    def metrics(self) -> str:
        """The same in the text form of Prometheus."""
        now = {"arena_bytes", "indexed_bytes", "keys", "waiting_pages"}
        lines = []
        for name, value in self.stats().items():
            kind, full = ("gauge", f"pfimg_cache_{name}") if name in now else ("counter", f"pfimg_cache_{name}_total")
            lines += [f"# TYPE {full} {kind}", f"{full} {value}"]
        return "\n".join(lines) + "\n"

    def _count(self, **counts: int) -> None:
        with self._counting:
            self._counts.update(counts)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the cache is closed")
        if self._process != os.getpid():
            raise StoreError(f"the cache was opened by process {self._process}: a forked one has to open its own")

    def _release(self, digests: list[str]) -> None:
        """Lets go of pages that no key stands for."""
        if digests:
            self._jobs.put(lambda: self._remove(digests))

    # What follows runs in the thread, one after another.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - `flush` raises it; what comes next is written all the same
                self._error = error
                self._count(write_errors=1)
                _log.warning("the cache cannot write: %s", error)

    def _places(self, sizes: Sequence[int]) -> list[memoryview]:
        memory = memoryview(bytearray(sum(sizes)))
        ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
        return [memory[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def _write(self, store: PfStore, pages: list[tuple[str, int]], count: int) -> None:
        """Pages from the arena, where they are pinned, to the store."""
        try:
            there = store.has_many([digest for digest, _ in pages])
            new = [page for page, held in zip(pages, there, strict=True) if not held and self._index.refers(page[0])]
            step = max(1, _MOVED_AT_ONCE // self._page_bytes)
            for start in range(0, len(new), step):
                digests = [digest for digest, _ in new[start : start + step]]
                places = self._places([size for _, size in new[start : start + step]])
                mask = self._arena.get_many(digests, out=places, errors="mask")
                whole = [place for place, hit in enumerate(mask) if hit]
                store.put_many([places[place] for place in whole], digests=[digests[place] for place in whole])
                self._count(written=len(whole), written_bytes=sum(len(places[place]) for place in whole))
        finally:
            self._arena.unpin([digest for digest, _ in pages])
            self._done(count)
        if self._most_bytes is not None:
            self._remove(self._index.shrink(self._most_bytes))
        self._index.save()

    def _read(self, store: PfStore, digests: list[str]) -> None:
        """Pages from the store to the arena."""
        step = max(1, _MOVED_AT_ONCE // self._page_bytes)
        for start in range(0, len(digests), step):
            part = digests[start : start + step]
            pages = store.get_many(part, errors="mask")
            whole = [(digest, page) for digest, page in zip(part, pages, strict=True) if page is not None]
            self._arena.put_many([page for _, page in whole], digests=[digest for digest, _ in whole])

    def _remove(self, digests: list[str]) -> None:
        gone = [digest for digest in digests if not self._index.refers(digest)]
        self._arena.remove(gone)
        for digest in gone:
            # The store is the cache's own, and only this thread writes to it: nothing else relies on the file.
            if self._store is not None and (path := self._store.blob_path(digest)) is not None:
                path.unlink(missing_ok=True)


def _row(buffers: Any, index: int) -> Any:
    """One page; a view of several dimensions gives it as a slice only."""
    return buffers[index : index + 1] if hasattr(buffers, "nbytes") else buffers[index]


def _sizes(buffers: Any) -> list[int]:
    """Bytes of each page."""
    if hasattr(buffers, "nbytes") and len(buffers):
        return [buffers.nbytes // len(buffers)] * len(buffers)
    return [int(buffer.nbytes) if hasattr(buffer, "nbytes") else memoryview(buffer).nbytes for buffer in buffers]

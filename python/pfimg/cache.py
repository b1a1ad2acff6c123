"""A cache of KV pages under an engine's own keys: memory in front, a directory behind it, and a registry behind that.

Engines name pages by hashes of tokens. Here a key of a namespace stands for a page, and pages are kept by what they hold: in a
`PageArena`, and behind it in a `PfStore`, so that equal pages are there once and every page is verified as it is read. A put
returns when its pages are in the arena; a thread writes them to the store, and when it falls behind, puts wait for it. A page
that was lost or damaged is a miss, never an error and never a wrong page.

An image in a registry may stand behind all that. A page that a key stands for, and that is nowhere here, is fetched from there:
the keys of such an image come by `pfimg.warm`, their pages when they are asked for. What fails is a miss once more, and the
registry is left alone for a while.

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

from pfimg._core import Store
from pfimg.errors import FormatError, StoreError
from pfimg.page_adoption import BROUGHT_AT_ONCE, Adopted, Adoption, Bring
from pfimg.page_index import CacheIdentity, PageIndex, engine_key
from pfimg.page_levels import PageLevels, check_sizes, row, sizes_of
from pfimg.page_writer import PageWriter
from pfimg.places import Ref
from pfimg.registries.base import Registry
from pfimg.types import StrPath

_log = logging.getLogger("pfimg")


class PageCache:
    """Pages of one size or shorter, under the keys of engines.

    Args:
        path: A directory for the store and the index; None: nothing outlives the process, and the arena is all there is.
        page_bytes: The longest page.
        arena_bytes: What pages in memory may take; it is taken at once.
        arena_path: A file for the arena, on `/dev/shm` say, which keeps it warm from one process to the next; None: memory of
            this one.
        store_bytes: What pages in the directory may take, before they are encoded; those used longest ago go first. Pages that
            are only known, and still in the registry, count too. None: no limit.
        registry: Where pages are fetched that keys stand for and that are not here: an image reference, or what
            `registries.open` returned for one. None: they are misses.
        digest: What names pages: `sha256`, or `blake3`, which most processors compute faster, and which only caches and stores of
            blake3 take in again. None: what the directory has, sha256 where it is new.

    Attributes:
        registry: As it was given.
        digest: What names pages.

    Raises:
        BadRef, UnsupportedScheme: The registry's reference is malformed, or of a scheme that is not spoken.
        FormatError: The arena has room for less than two pages, or the directory names pages by another algorithm.
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
        registry: Ref | Registry | None = None,
        digest: str | None = None,
    ) -> None:
        directory = None if path is None else Path(path).expanduser()
        self._levels = PageLevels(
            directory,
            page_bytes=page_bytes,
            arena_bytes=arena_bytes,
            arena_path=arena_path,
            registry=registry,
            digest=digest,
        )
        self.registry, self.digest = registry, self._levels.digest
        self._index = PageIndex(None if directory is None else directory / "index.sqlite")
        self._page_bytes = page_bytes
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        # Without a store this only bounds the index: what the arena gave up is found out when it is asked for.
        self._writer = PageWriter(self._levels, self._index, store_bytes if directory is not None else 4 * arena_bytes)
        # Another thread than the one that writes, for which puts wait.
        self._ahead: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        if registry is not None:
            threading.Thread(target=self._fetch_ahead, name="pfimg-fetch", daemon=True).start()

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
        sizes = sizes_of(buffers)
        step = self._writer.most_waiting if self._levels.store is not None else max(1, len(keys))
        for start in range(0, len(keys), step):
            part = slice(start, start + step)
            self._put(namespace, keys[part], buffers[part], sizes[part])

    def _put(self, namespace: str, keys: Sequence[bytes | str], buffers: Any, sizes: list[int]) -> None:
        self._writer.admit(len(keys))
        try:
            removals = self._writer.removals
            digests = self._levels.arena.put_many(buffers)
            self._writer.release(self._index.put(namespace, keys, digests, sizes))
            self._count(puts=len(keys), put_bytes=sum(sizes))
            store = self._levels.store
            if store is None:
                self._put_again(buffers, digests, removals)
                self._writer.shrink()
                self._writer.done(len(keys))
                return
            pinned = self._levels.arena.pin(digests)
            # What the arena has given up already goes to the store now: others were quicker to fill it, or the page was there
            # without a key, and was removed before this one came to stand for it.
            lost = [index for index, held in enumerate(pinned) if not held]
            if lost:
                store.put_many([row(buffers, index) for index in lost], digests=[digests[index] for index in lost])
        except BaseException:
            self._writer.done(len(keys))
            raise
        waiting = [(digest, size) for digest, size, held in zip(digests, sizes, pinned, strict=True) if held]
        self._writer.write(store, waiting, len(keys))

    def _put_again(self, buffers: Any, digests: list[str], removals: int) -> None:
        """Pages that were in the arena when they were put, but were removed before their keys stood for them."""
        if self._writer.removals != removals:
            arena = self._levels.arena
            lost = [index for index, held in enumerate(arena.has_many(digests)) if not held]
            arena.put_many([row(buffers, index) for index in lost], digests=[digests[index] for index in lost])

    def get_many(self, namespace: str, keys: Sequence[bytes | str], *, out: Any) -> list[bool]:
        """Reads pages into the caller's memory, each verified; those that only the registry has are fetched from there meanwhile.

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
        known = [digest for digest in digests if digest is not None]
        if len(known) == len(keys):
            found = self._levels.arena.get_many(known, out=out, errors="mask") if known else []
        else:
            found = [False] * len(keys)
            places = [index for index, digest in enumerate(digests) if digest is not None]
            mask = self._levels.arena.get_many(known, out=[row(out, index) for index in places], errors="mask")
            for index, hit in zip(places, mask, strict=True):
                found[index] = hit
        hits = found.count(True)
        self._count(hits_arena=hits)
        if hits < len(keys):
            missing = [
                (index, digest)
                for index, (digest, hit) in enumerate(zip(digests, found, strict=True))
                if digest is not None and not hit
            ]
            if missing:
                self._get_stored(namespace, keys, missing, out, found)
            self._count(misses=found.count(False))
        return found

    def _get_stored(
        self, namespace: str, keys: Sequence[bytes | str], missing: list[tuple[int, str]], out: Any, found: list[bool]
    ) -> None:
        rows = [row(out, index) for index, _ in missing]
        digests = [digest for _, digest in missing]
        mask = [False] * len(missing)
        if self._levels.store is not None:
            mask = self._levels.arena.read_from(self._levels.store, digests, out=rows)
            self._count(hits_store=mask.count(True))
        is_known = True
        if self.registry is not None and not all(mask):
            places = [place for place, hit in enumerate(mask) if not hit]
            lacking = [rows[place] for place in places]
            check_sizes(self._index.sizes(namespace, [keys[missing[place][0]] for place in places]), lacking)
            some, is_known = self._get_remote([digests[place] for place in places], lacking)
            for place, hit in zip(places, some, strict=True):
                mask[place] = hit
        for (index, digest), hit in zip(missing, mask, strict=True):
            found[index] = hit
            if not hit and is_known:
                self._forget(namespace, keys[index], digest)

    def _get_remote(self, digests: list[str], rows: list[Any]) -> tuple[list[bool], bool]:
        """As that of the levels."""
        mask, is_answered = self._levels.get_remote(digests, rows)
        self._count(hits_registry=mask.count(True))
        self._writer.release_unreferred(digests)
        return mask, is_answered

    def _forget(self, namespace: str, key: bytes | str, digest: str) -> None:
        """Removes a key whose page was lost, unless another page was put under it meanwhile."""
        dropped, gone = self._index.drop(namespace, [key], digest)
        self._count(lost=dropped)
        self._writer.release(gone)

    def has_many(self, namespace: str, keys: Sequence[bytes | str]) -> list[bool]:
        """Whether the page of each key is there, or in the registry as far as one knows; none is read."""
        self._check_open()
        digests = self._index.find(namespace, keys)
        there = self._levels.there([digest for digest in digests if digest is not None])
        return [digest is not None and digest in there for digest in digests]

    def leading_hits(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """How many keys from the first one on have their pages here: what an engine need not compute."""
        self._check_open()
        digests = [digest for digest in self._index.find(namespace, keys, leading=True) if digest is not None]
        there = self._levels.there(digests)
        return next((place for place, digest in enumerate(digests) if digest not in there), len(digests))

    def known(self, namespace: str, keys: Sequence[bytes | str]) -> list[bool]:
        """Whether each key has a page, as far as memory tells: no disk is asked, so that nothing waits for one.

        A page that was lost from the directory is one still, until `get_many` does not find it.
        """
        self._check_open()
        digests = self._index.find(namespace, keys)
        if self._levels.store is not None:
            return [digest is not None for digest in digests]
        there = self._levels.there([digest for digest in digests if digest is not None])
        return [digest is not None and digest in there for digest in digests]

    def pin(self, namespace: str, keys: Sequence[bytes | str]) -> list[bool]:
        """Whether the page of each key is there; those that are make no room for others until `unpin`. Pins count.

        A pinned page still is a miss when it is found damaged, too old, or deleted. Without a directory, pages that are pinned
        take their part of the arena, and a put that finds no other place is refused.
        """
        self._check_open()
        digests = self._index.find(namespace, keys, pin=True)
        known = [digest for digest in digests if digest is not None]
        if self._levels.store is None:
            there = {digest for digest, held in zip(known, self._levels.arena.pin(known), strict=True) if held}
        else:
            there = self._levels.there(known)
        lost = [key for key, digest in zip(keys, digests, strict=True) if digest is not None and digest not in there]
        self._index.unpin(namespace, lost)
        return [digest is not None and digest in there for digest in digests]

    def unpin(self, namespace: str, keys: Sequence[bytes | str]) -> None:
        """Takes back a pin of each key; one that has none does no harm."""
        self._check_open()
        digests = self._index.unpin(namespace, keys)
        if self._levels.store is None:
            self._levels.arena.unpin(digests)

    def sizes(self, namespace: str, keys: Sequence[bytes | str]) -> list[int | None]:
        """The bytes of each key's page, which `out` of `get_many` has to have; None where there is none."""
        self._check_open()
        return self._index.sizes(namespace, keys)

    def keys(self, namespace: str) -> dict[bytes | str, int]:
        """All keys of a namespace with the bytes of their pages, the least recently used first."""
        self._check_open()
        return self._index.keys(namespace)

    def namespaces(self, *, bound: bool = False) -> dict[str, CacheIdentity]:
        """All namespaces that were ever bound and not cleared, with what their pages are of; or those that are `bound` by now."""
        self._check_open()
        return self._index.identities(bound=bound)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def on_change(self, tell: Callable[[str, bytes | str, int], None]) -> None:
        """Has `tell(namespace, key, bytes)` called, in order, for each key that comes and, with less than 0 bytes, that goes.

        Keys go by whatever lets go of them; one that is put again goes and comes. `tell` must be quick, and not use the cache.
        """
        self._index.on_change = lambda namespace, raw, size: tell(namespace, engine_key(raw), size)

    def prefetch(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """Has the pages that are not in the arena read into it, beside the caller; returns how many these are.

        They come from the store, and from the registry behind it.
        """
        self._check_open()
        known = list(dict.fromkeys(digest for digest in self._index.find(namespace, keys) if digest is not None))
        cold = [digest for digest, held in zip(known, self._levels.arena.has_many(known), strict=True) if not held]
        if self.registry is not None:
            self._ahead.put(cold)
        elif (store := self._levels.store) is not None:
            self._writer.run(lambda: self._levels.fill(store, cold))
        else:
            return 0
        return len(cold)

    def adopt(
        self,
        namespace: str,
        keys: Sequence[bytes | str],
        digests: Sequence[str],
        sizes: Sequence[int],
        bring: Bring | None = None,
    ) -> Adopted:
        """Lets keys stand for pages that are elsewhere: what `pfimg.warm` does. Keys that have a page here keep it.

        The first ones come first, and alone where there is no room for more, since all others build upon them; for that reason
        they also count as used last, and are the last to go.

        Args:
            namespace: One that is bound.
            keys: The engine's names, in order.
            digests: The digest of each page.
            sizes: Its bytes; a page that turns out to have others is left out.
            bring: Brings pages; None leaves them where they are, for the registry to give when they are asked for.

        Raises:
            FormatError: A page is longer than `page_bytes`, or named by another algorithm.
            StoreError: The namespace is not bound, or the cache is closed; or what `bring` raises.
        """
        self._check_open()
        self._index.namespace(namespace)

        def bring_while_open(store: Store, digests: list[str]) -> None:
            if bring is not None:
                bring(store, digests)
            self._check_open()

        bringing = None if bring is None else bring_while_open
        return Adoption(self._levels, self._index, self._writer, namespace, bringing).run(keys, digests, sizes)

    def delete(self, namespace: str, keys: Sequence[bytes | str]) -> int:
        """Removes keys, and pages that no other key stands for; returns how many keys there were."""
        self._check_open()
        count, gone = self._index.drop(namespace, keys)
        self._writer.release(gone)
        return count

    def clear(self, namespace: str) -> None:
        """Removes a namespace with its pages, bound or not; it may be bound to any identity afterwards."""
        self._check_open()
        self._writer.release(self._index.clear(namespace))

    def flush(self) -> None:
        """Waits until all that was put is in the store and in the index's file.

        Raises:
            Exception: What the thread that writes ran into since the last flush, a full disk for instance.
        """
        self._check_open()
        self._writer.flush()

    def close(self) -> None:
        """Writes what waits, and lets go of memory and locks. Closing twice does no harm."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._ahead.put(None)  # nobody waits for what is being fetched
        try:
            self._writer.flush()
        finally:
            self._writer.close()
            self._index.close()
            self._levels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> dict[str, int]:
        """Numbers by name: of calls since the cache was opened, and of what is there now."""
        with self._counting:
            counts = dict(self._counts)
        hits = ("hits_arena", "hits_store", "hits_registry", "misses", "lost")
        found = {name: counts.get(name, 0) for name in ("puts", "put_bytes", *hits)}
        arena = self._levels.arena.stats()
        store_corrupt = 0 if self._levels.store is None else self._levels.store.counters()["corrupt"]
        return found | {
            "written": self._writer.written,
            "written_bytes": self._writer.written_bytes,
            "write_errors": self._writer.errors,
            "corrupt": arena["corrupt"] + store_corrupt,
            "evicted": arena["evicted"],
            "arena_bytes": arena["bytes"],
            "indexed_bytes": self._index.bytes,
            "keys": sum(len(namespace.entries) for namespace in list(self._index.namespaces.values())),
            "waiting_pages": self._writer.waiting,
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

    def _fetch_ahead(self) -> None:
        """In a thread of its own: pages to the arena, those that the store lacks from the registry."""
        while (digests := self._ahead.get()) is not None:
            try:
                step = max(1, BROUGHT_AT_ONCE // self._page_bytes)
                for start in range(0, len(digests), step):
                    self._check_open()
                    self._read_ahead(digests[start : start + step])
            except Exception as error:  # noqa: BLE001 - nobody waits for it: what did not come is read when it is asked for
                if not self._closed:
                    _log.warning("the cache cannot fetch %d pages ahead: %s", len(digests), error)

    def _read_ahead(self, digests: list[str]) -> None:
        with self._levels.landing() as store:
            self._levels.fetch(store, digests)
            self._levels.fill(store, digests)
        self._writer.release_unreferred(digests)

"""Where the pages of a `PageCache` are, by what they hold: an arena in memory, a store behind it, and a registry behind that.

Keys are none of its business. A page that is nowhere, or damaged, is not there: never an error, and never a wrong page. A
registry that fails is left alone for a while.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pfimg import transfer
from pfimg._core import PageArena, Store
from pfimg.errors import FormatError, PfimgError
from pfimg.places import Place, Ref
from pfimg.registries.base import Registry
from pfimg.store import PfStore
from pfimg.types import StrPath

_log = logging.getLogger("pfimg")

# Bytes that are read into memory at a time.
_READ_AT_ONCE = 16 << 20
# A registry that failed is not asked for so long, so that not every miss waits until it fails again.
_PAUSE_SECONDS = 30.0


class PageLevels:
    """The places of pages, opened together; arguments as those of `PageCache`.

    Attributes:
        arena: In memory.
        store: In the directory; None without one.
        registry: What is behind them; None for nothing.
        digest: What names pages.
        page_bytes: The longest page.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        page_bytes: int,
        arena_bytes: int,
        arena_path: StrPath | None,
        registry: Ref | Registry | None,
        digest: str | None,
    ) -> None:
        if registry is not None:
            Place.of(registry)  # refuses what is none before anything is made
        if arena_bytes < 2 * page_bytes:
            raise FormatError(f"arena_bytes {arena_bytes} is less than two pages of {page_bytes}")
        # One opener, by the lock of a small arena beside the store: it is let go however a process ends.
        self._owner: PageArena | None = None
        self.store: PfStore | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._owner = PageArena(directory / "lock", page_bytes=1, capacity_bytes=1)
            self.store = PfStore.open(directory / "store", digest=digest, durability="none")
        self.digest = (digest or "sha256") if self.store is None else self.store.digest
        self.arena = PageArena(arena_path, page_bytes=page_bytes, capacity_bytes=arena_bytes, digest=self.digest)
        self.page_bytes = page_bytes
        self.registry = registry
        self._paused_until = 0.0

    def close(self) -> None:
        """Lets go of memory and locks."""
        self.arena.close()
        # Its directories are open as long as anything refers to it.
        self.store = None
        if self._owner is not None:
            self._owner.close()

    def here(self, digests: list[str]) -> set[str]:
        """Those whose pages are in the arena or in the store."""
        there = {digest for digest, held in zip(digests, self.arena.has_many(digests), strict=True) if held}
        others = [digest for digest in digests if digest not in there]
        if self.store is not None and others:
            there.update(digest for digest, held in zip(others, self.store.has_many(others), strict=True) if held)
        return there

    def there(self, digests: list[str]) -> set[str]:
        """Those whose pages can be had: here, or while nothing speaks against it from the registry."""
        if self.registry is not None and not self._is_paused():
            return set(digests)
        return self.here(digests)

    @contextmanager
    def landing(self) -> Iterator[Store]:
        """Where blobs land: the store, or without one what goes away at once."""
        if self.store is not None:
            yield self.store
        else:
            with TemporaryDirectory(prefix="pfimg-") as path:
                yield Store(path, digest=self.digest, durability="none")

    def fetch(self, store: Store, digests: list[str]) -> bool:
        """Brings what it can from the registry; False when that cannot be asked."""
        if self.registry is None or self._is_paused():
            return False
        try:
            transfer.repair(store, digests, self.registry)
        except (PfimgError, OSError) as error:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            _log.warning("%s fails, and is not asked for %d seconds: %s", self.registry, _PAUSE_SECONDS, error)
            return False
        return True

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def get_remote(self, digests: list[str], rows: list[Any]) -> tuple[list[bool], bool]:
        """Which pages came from the registry into `rows`; and whether it has said that it lacks the others."""
        with self.landing() as store:
            is_answered = self.fetch(store, digests)
            mask = _filled(store, digests, rows)
        hits = [place for place, hit in enumerate(mask) if hit]
        if hits:
            self.arena.put_many([rows[place] for place in hits], digests=[digests[place] for place in hits])
        return mask, is_answered

    def fill(self, store: Store, digests: list[str]) -> dict[str, int]:
        """Reads pages into the arena; returns the bytes of those that are whole."""
        sizes: dict[str, int] = {}
        step = max(1, _READ_AT_ONCE // self.page_bytes)
        for start in range(0, len(digests), step):
            part = digests[start : start + step]
            pages = store.get_many(part, errors="mask")
            whole = [(digest, page) for digest, page in zip(part, pages, strict=True) if page is not None]
            sizes.update({digest: len(page) for digest, page in whole})
            fitting = [(digest, page) for digest, page in whole if len(page) <= self.page_bytes]
            self.arena.put_many([page for _, page in fitting], digests=[digest for digest, _ in fitting])
        return sizes

    def remove(self, digests: list[str]) -> None:
        """Removes pages from arena and store."""
        self.arena.remove(digests)
        # The store is the cache's own: nothing but keys relies on the files.
        if self.store is not None:
            for digest in digests:
                if (path := self.store.blob_path(digest)) is not None:
                    path.unlink(missing_ok=True)


def row(buffers: Any, index: int) -> Any:
    """One page of a batch; a view of several dimensions gives it as a slice only."""
    return buffers[index : index + 1] if hasattr(buffers, "nbytes") else buffers[index]


def sizes_of(buffers: Any) -> list[int]:
    """Bytes of each page of a batch."""
    if hasattr(buffers, "nbytes") and len(buffers):
        return [buffers.nbytes // len(buffers)] * len(buffers)
    return [int(buffer.nbytes) if hasattr(buffer, "nbytes") else memoryview(buffer).nbytes for buffer in buffers]


def check_sizes(sizes: Sequence[int | None], rows: Sequence[Any]) -> None:
    """FormatError for a row that has not the bytes of its page."""
    for size, (index, had) in zip(sizes, enumerate(sizes_of(rows)), strict=True):
        if size not in (None, had):
            raise FormatError(f"a page has {size:,} bytes where {had:,} are expected", index=index)


def _filled(store: Store, digests: list[str], rows: list[Any]) -> list[bool]:
    """Which pages are in `rows` now. One of another length than its key promised is no page."""
    try:
        return store.get_many(digests, out=rows, errors="mask")
    except FormatError:
        if len(digests) == 1:
            return [False]
        return [_filled(store, [digest], [row])[0] for digest, row in zip(digests, rows, strict=True)]

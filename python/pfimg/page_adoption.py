"""How keys of a `PageCache` come to stand for pages that are elsewhere: what warming a cache from an image does."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from pfimg._core import Store
from pfimg.errors import FormatError
from pfimg.page_index import APART, PageIndex
from pfimg.page_levels import PageLevels
from pfimg.page_writer import PageWriter

# Bytes that are brought from elsewhere at a time: enough that many requests are under way.
BROUGHT_AT_ONCE = 64 << 20

Bring: TypeAlias = Callable[[Store, list[str]], object]
"""Brings blobs into a store, verified; what it cannot bring it leaves out."""

_Page: TypeAlias = tuple[bytes | str, str, int]


class Adopted(NamedTuple):
    """What `PageCache.adopt` did: keys that have a page now, pages that came and their bytes, and keys that were left out."""

    keys: int = 0
    fetched: int = 0
    bytes: int = 0
    missing: int = 0
    no_room: int = 0

    def plus(self, **counts: int) -> "Adopted":
        """With so much more of each."""
        return self._replace(**{name: getattr(self, name) + count for name, count in counts.items()})


class Adoption:
    """One call of `PageCache.adopt`, for a namespace.

    Args:
        levels: Where pages are.
        index: Which keys stand for them.
        writer: The thread behind them.
        namespace: One that is bound.
        bring: As that of the call.
    """

    def __init__(self, levels: PageLevels, index: PageIndex, writer: PageWriter, namespace: str, bring: Bring | None) -> None:
        self._levels, self._index, self._writer, self._namespace, self._bring = levels, index, writer, namespace, bring

    def run(self, keys: Sequence[bytes | str], digests: Sequence[str], sizes: Sequence[int]) -> Adopted:
        """Adopts as many from the first on as there is room for."""
        most = self._levels.page_bytes
        if other := next((digest for digest in digests if not digest.startswith(f"{self._levels.digest}:")), None):
            raise FormatError(f"page {other} is none for a cache whose pages are named by {self._levels.digest}", field="digest")
        for key, size in zip(keys, sizes, strict=True):
            if size > most:
                raise FormatError(f"the page of {key!r} has {size:,} bytes, where {most:,} are the most")
        known = self._index.find(self._namespace, keys)
        here = self._levels.here([digest for digest in known if digest is not None])
        # A key whose page was lost gets it again only if it is the same.
        free = [at for at, digest in enumerate(known) if digest not in here and digest in (None, digests[at])]
        room, wanted = self._room(), list[_Page]()
        for at in free:
            room -= sizes[at]
            if room < 0:
                break
            wanted.append((keys[at], digests[at], sizes[at]))
        done = Adopted(keys=len(keys) - len(free), no_room=len(free) - len(wanted))
        step, now = max(1, BROUGHT_AT_ONCE // most), time.time()
        for start in range(0, len(wanted), step):
            done = self._adopt(wanted[start : start + step], now + start * APART, done)
        self._index.find(self._namespace, [key for key, _, _ in reversed(wanted)])
        self._writer.shrink()
        self._writer.run(self._index.save)
        return done

    def _adopt(self, pages: list[_Page], at: float, done: Adopted) -> Adopted:
        if self._bring is None:
            self._link(pages, at)
            return done.plus(keys=len(pages))
        digests = list(dict.fromkeys(digest for _, digest, _ in pages))
        with self._levels.landing() as store:
            removals = self._writer.removals
            absent = {digest for digest, held in zip(digests, store.has_many(digests), strict=True) if not held}
            self._bring(store, digests)
            sizes = self._levels.fill(store, digests)
            whole = [page for page in pages if sizes.get(page[1]) == page[2]]
            self._link(whole, at)
            if self._writer.removals != removals:
                # As with a put: what was there may have been removed before a key stood for it.
                self._bring(store, digests)
                self._levels.fill(store, digests)
        self._writer.release_unreferred(digests)
        came = absent.intersection(digest for _, digest, _ in whole)
        size = sum(sizes[digest] for digest in came)
        return done.plus(keys=len(whole), fetched=len(came), bytes=size, missing=len(pages) - len(whole))

    def _link(self, pages: list[_Page], at: float) -> None:
        keys, digests, sizes = [key for key, _, _ in pages], [digest for _, digest, _ in pages], [size for _, _, size in pages]
        self._writer.release(self._index.put(self._namespace, keys, digests, sizes, at=at, replace=False))

    def _room(self) -> int:
        """Bytes that the namespace may come to have."""
        most = [self._index.namespace(self._namespace).max_bytes, self._writer.most_bytes]
        if self._levels.store is None and self._bring is not None:
            most.append(self._levels.arena.slots * self._levels.page_bytes)
        return min((limit for limit in most if limit is not None), default=1 << 63)

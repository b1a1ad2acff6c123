"""The thread behind a `PageCache`: it writes pages to the store, removes those that no key stands for, and saves the index.

Pages that wait for it are pinned in the arena, half of it at most: then puts wait. What fails is told by the next flush.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable

from pfimg.page_index import PageIndex
from pfimg.page_levels import PageLevels
from pfimg.store import PfStore

_log = logging.getLogger("pfimg")

# Look-ups wait while pages are removed, so that few are removed at a time; and a lock goes to who asks for it again at once
# rather than to who waits, unless there is a break.
_REMOVED_AT_ONCE = 16
_BREAK_SECONDS = 5e-5


class PageWriter:
    """Not started anew once it is closed.

    Args:
        levels: Where pages are.
        index: Which keys stand for them.
        most_bytes: What all pages may take; those used longest ago go first. None: no limit.

    Attributes:
        most_bytes: As above.
        removals: How often pages were removed: who sees it unchanged knows that none was.
        most_waiting: How many pages may wait.
        waiting: How many do.
        written: How many have been written; `written_bytes`: their bytes; `errors`: how many jobs have failed.
    """

    def __init__(self, levels: PageLevels, index: PageIndex, most_bytes: int | None) -> None:
        self._levels, self._index, self.most_bytes = levels, index, most_bytes
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.most_waiting = max(1, levels.arena.slots // 2)
        self.waiting = self.removals = 0
        self.written = self.written_bytes = self.errors = 0
        self._room = threading.Condition()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="pfimg-cache", daemon=True)
        self._thread.start()

    def admit(self, count: int) -> None:
        """Waits until there is room for so many pages to wait; `done` takes them back."""
        with self._room:
            self._room.wait_for(lambda: self.waiting + count <= self.most_waiting or self._levels.store is None)
            self.waiting += count

    def done(self, count: int) -> None:
        """So many pages wait no longer."""
        with self._room:
            self.waiting -= count
            self._room.notify_all()

    def run(self, job: Callable[[], object]) -> None:
        """Has something done after all that was asked for."""
        self._jobs.put(job)

    def write(self, store: PfStore, pages: list[tuple[str, int]], count: int) -> None:
        """Has pages, by digest and bytes, written from the arena, where they are pinned; `count` of them were admitted."""
        self.run(lambda: self._write(store, pages, count))

    def release(self, digests: list[str]) -> None:
        """Has pages removed that no key stands for by then."""
        if digests:
            self.run(lambda: self._remove(digests))

    def release_unreferred(self, digests: list[str]) -> None:
        """The same for those of some pages: what has come for keys that went meanwhile is nobody else's to remove."""
        self.release([digest for digest in digests if not self._index.refers(digest)])

    def shrink(self) -> None:
        """Lets go of the keys that were used longest ago, with their pages, as far as there are too many."""
        if self.most_bytes is not None:
            self.release(self._index.shrink(self.most_bytes))

    def flush(self) -> None:
        """Waits for all that was asked for, and raises what was run into since the last time."""
        done = threading.Event()
        self.run(done.set)
        done.wait()
        self.release(self._index.expire())
        try:
            self._index.save()
        except sqlite3.Error as failed:
            self._error = self._error or failed
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the thread when it has done all that was asked for."""
        self._jobs.put(None)
        self._thread.join()

    # What follows runs in the thread, one after another.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - `flush` raises it; what comes next is written all the same
                self._error = self._error or error
                self.errors += 1
                _log.warning("the cache cannot write: %s", error)

    def _write(self, store: PfStore, pages: list[tuple[str, int]], count: int) -> None:
        arena = self._levels.arena
        try:
            there = store.has_many([digest for digest, _ in pages])
            new = {digest: size for (digest, size), held in zip(pages, there, strict=True) if not held}
            wanted = [digest for digest in new if self._index.refers(digest)]
            written = [digest for digest, put in zip(wanted, arena.write_to(store, wanted), strict=True) if put]
            self.written += len(written)
            self.written_bytes += sum(new[digest] for digest in written)
        finally:
            arena.unpin([digest for digest, _ in pages])
            self.done(count)
        if self.most_bytes is not None:
            self._remove(self._index.shrink(self.most_bytes))
        self._index.save()

    def _remove(self, digests: list[str]) -> None:
        for start in range(0, len(digests), _REMOVED_AT_ONCE):
            if start:
                time.sleep(_BREAK_SECONDS)
            self._index.unless_referred(digests[start : start + _REMOVED_AT_ONCE], self._remove_few)

    def _remove_few(self, digests: list[str]) -> None:
        self.removals += 1
        self._levels.remove(digests)

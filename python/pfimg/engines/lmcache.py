"""An L2 adapter of LMCache that keeps its pages in a `PageCache`.

LMCache hands over batches of keys and host memory, goes on, and polls one file descriptor for each kind of task: store, look-up,
load. Each kind has threads of its own here, which do a task in parts: while the core works on the bytes of one part, the keys
of the next are looked up. The caller's thread only queues, and looks up what takes less time than to wake another one. Pages are
read and written where LMCache has them.

Limits: L1 has to be host memory. What a serde made is bytes of any length, in one namespace whatever they were made of: whether
the shape is right is for the serde to find out, as ours does. Pages are of at most `page_bytes`, longer ones are not stored.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from heapq import nsmallest
from itertools import count
from operator import or_
from typing import Any, TypeVar

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import KeyEntry, KeyListPage, MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface, L2TaskId
from lmcache.v1.memory_management import MemoryObj

from pfimg._core import threads
from pfimg.cache import PageCache
from pfimg.engines.lmcache_lanes import Lane
from pfimg.engines.lmcache_pages import SERIALIZED, Part, by_part, bytes_of, key_of, layout, layouts, memory, names
from pfimg.engines.lmcache_serde import PfimgFloatDeserializer, PfimgFloatSerializer
from pfimg.engines.tier import TierOptions
from pfimg.errors import StoreError
from pfimg.prefill import exported

__all__ = ["LMCacheOptions", "PfimgFloatDeserializer", "PfimgFloatSerializer", "PfimgL2Adapter"]

_log = logging.getLogger("pfimg")

# What a serde may put around a page, where the longest page is derived from the shape of one.
_SERDE_ROOM = 128

# Keys that listeners are told of at a time.
_TOLD_AT_ONCE = 1024

# Keys that are looked up in memory by the thread that asks: to have another one do it takes longer for few, and no less for all.
_LOOKED_UP_AT_ONCE = 1024

# What a part of a task has at least: as many pages as keep the core's threads busy, and so many bytes that these take longer than
# what is done for the whole of a part.
_PART_PAGES = 16 * threads()
_PART_BYTES = 8 << 20

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class LMCacheOptions(TierOptions):
    """What `adapter_params` may say.

    Attributes:
        page_bytes: The longest page. None: that of the first look-up or store, which is when the memory is taken, then.
    """

    page_bytes: int | None = None


class PfimgL2Adapter(L2AdapterInterface):
    """Pages of LMCache in a `PageCache`; made by LMCache's factory for adapters of the type `plugin`.

    Args:
        config: `adapter_params` of the adapter's configuration: what `LMCacheOptions` lists.
        l1_memory_desc: Where L1 is; not needed, since each object tells its own memory.

    Raises:
        FormatError: The configuration has a word that is no option, or a value that is none.
        StoreError: Another process has the directory open.
        OSError: The space for the arena is not there.
    """

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: L1MemoryDesc | None = None) -> None:  # noqa: ARG002 - see Args
        options = LMCacheOptions.of(config)
        capacity = options.arena_bytes if options.path is None else options.store_bytes
        super().__init__(max_capacity_bytes=capacity or 0)
        self._options = options
        # LMCache names the model with each key; what is configured tells apart models that have one name.
        self._revision = options.revision if options.model is None else f"{options.model}@{options.revision}"
        self.cache: PageCache | None = None
        self._page_bytes = 0
        self._opening = threading.RLock()
        self._namespaces: dict[Part, str] = {}
        self._parts: dict[str, Part] = {}
        # By all of a part but its layout, and by name: the namespaces in which a key is locked, once for each lock.
        self._locks: dict[tuple[str, int, int], dict[bytes, list[str]]] = {}
        self._locking = threading.Lock()
        # Keys that are being stored, by their names: to make one takes longer than all else that is done to tell of it.
        self._at_hand: dict[Part, dict[bytes, ObjectKey]] = {}
        self._changes: deque[tuple[str, bytes | str, int]] = deque()
        self._telling = threading.RLock()
        self._tasks = count()
        self._closed = False
        if options.page_bytes is not None:
            self._opened(options.page_bytes)
        self._stores: Lane[L2StoreResult] = Lane("store", _sum)
        self._lookups: Lane[Bitmap] = Lane("look-up", or_)
        self._loads: Lane[Bitmap] = Lane("load", or_)

    def _opened(self, page_bytes: int) -> PageCache:
        """The cache; it is opened now, for pages of this length, unless it is open already."""
        with self._opening:
            if self._closed:
                raise StoreError("the adapter is closed")
            if self.cache is None:
                cache = self._options.open_cache(page_bytes)
                try:
                    self._find_parts(cache)
                except BaseException:
                    cache.close()
                    raise
                cache.on_change(self._changed)
                self._page_bytes, self.cache = page_bytes, cache
                if self._options.warm_from is not None:
                    threading.Thread(target=self._find_exported, args=(cache, self._options.warm_from), daemon=True).start()
            return self.cache

    def _find_parts(self, cache: PageCache) -> None:
        """Binds what earlier processes put into the directory; listeners learn of it as of all else."""
        for identity in cache.namespaces().values():
            part = Part.of(identity)
            if part is not None and part.identity(self._revision) == identity:
                namespace = self._bind(cache, part)
                self._changes.extend((namespace, name, size) for name, size in cache.keys(namespace).items())

    def _find_exported(self, cache: PageCache, source: str) -> None:
        """Binds, and thereby warms, what the image has: look-ups ask for what is bound only."""
        try:
            there = exported(source)
            parts = [part for part in map(Part.of, there) if part is not None and part.identity(self._revision) in there]
            for part in parts:
                self._bind(cache, part)
            if not parts:
                _log.warning("the cache cannot be warmed from %s: its pages are for another engine or revision", source)
        except Exception as error:  # noqa: BLE001 - the engine computes what it does not find
            if not cache.closed:
                _log.warning("the cache cannot be warmed from %s: %s", source, error)

    def _bind(self, cache: PageCache, part: Part) -> str:
        namespace = self._namespaces.get(part)
        if namespace is not None:
            return namespace
        with self._opening:
            namespace = self._namespaces.get(part)
            if namespace is None:
                namespace = self._options.bind(cache, part.identity(self._revision), part.name)
                self._parts[namespace] = part
                self._namespaces[part] = namespace
            return namespace

    def get_store_event_fd(self) -> int:
        """Signalled when a store has ended."""
        return self._stores.fileno()

    def get_lookup_and_lock_event_fd(self) -> int:
        """Signalled when a look-up has ended."""
        return self._lookups.fileno()

    def get_load_event_fd(self) -> int:
        """Signalled when a load has ended."""
        return self._loads.fileno()

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        """Queues the copying of pages into memory; a thread of the cache writes them to the disk."""
        parts = [partial(self._store, keys, objects, part) for part in _parts(objects)]
        return self._stores.submit(next(self._tasks), parts, L2StoreResult(False, 0))

    def pop_completed_store_tasks(self) -> dict[L2TaskId, L2StoreResult]:
        """The stores that have ended since the last call."""
        return self._stores.take_all()

    def _store(self, all_keys: Sequence[ObjectKey], all_objects: Sequence[MemoryObj], some: slice) -> L2StoreResult:
        if not all_keys:
            return L2StoreResult(True, 0)
        cache = self.cache
        if cache is None:
            # What a serde made may be longer the next time, up to the memory that it was given.
            cache = self._opened(max(max(page.get_size(), page.get_physical_size()) for page in all_objects))
        keys, objects = all_keys[some], all_objects[some]
        sizes = [page.get_size() for page in objects]
        stored = 0
        for part, indexes in by_part(keys, layouts(objects)).items():
            short = [index for index in indexes if sizes[index] <= self._page_bytes]
            namespace, taken = self._bind(cache, part), _at(keys, short)
            named, at_hand = names(taken), self._at_hand.setdefault(part, {})
            at_hand.update(zip(named, taken, strict=True))
            try:
                cache.put_many(namespace, named, memory(_at(objects, short), _at(sizes, short)))
            finally:
                self._tell()
                for name in named:
                    at_hand.pop(name, None)
            stored += len(short)
        if stored < len(keys):
            raise StoreError(
                f"{len(keys) - stored} of {len(keys)} pages are longer than page_bytes, {self._page_bytes}, "
                f"and were not stored: make it {max(page.get_size() for page in all_objects)} at least"
            )
        return L2StoreResult(True, sum(sizes))

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]) -> L2TaskId:
        """Queues a look-up; pages that are there make no room for others until they are unlocked."""
        work = partial(self._lookup, keys, group_layout_descs)
        is_quick = self.cache is not None and self._options.path is None and len(keys) <= _LOOKED_UP_AT_ONCE
        return self._lookups.submit(next(self._tasks), [work], Bitmap(len(keys)), at_once=is_quick)

    def query_lookup_and_lock_result(self, task_id: L2TaskId) -> Bitmap | None:
        """Which keys are there, once; None before it is known."""
        return self._lookups.take(task_id)

    def _lookup(self, keys: Sequence[ObjectKey], descs: Mapping[int, MemoryLayoutDesc]) -> Bitmap:
        found = Bitmap(len(keys))
        if descs and self.cache is None:
            self._opened(max(map(bytes_of, descs.values())) + _SERDE_ROOM)
        if self.cache is None:
            return found
        made = {group: layout(tuple(desc.shapes), tuple(desc.dtypes)) for group, desc in descs.items()}
        try:
            for part, indexes in by_part(keys, [made.get(key.object_group_id, "") for key in keys]).items():
                left = indexes
                for namespace in self._namespaces_of(part) if left else ():
                    named = names(_at(keys, left))
                    there = self.cache.pin(namespace, named)
                    with self._locking:
                        locks = self._locks.setdefault(part[:3], {})
                        for name, held in zip(named, there, strict=True):
                            if held:
                                locks.setdefault(name, []).append(namespace)
                    found.batched_set([index for index, held in zip(left, there, strict=True) if held])
                    left = [index for index, held in zip(left, there, strict=True) if not held]
        except BaseException:
            # LMCache is told that nothing is there, so it unlocks nothing.
            self.submit_unlock([keys[index] for index in found.get_indices_list()])
            raise
        self._tell()
        return found

    def _namespaces_of(self, part: Part) -> list[str]:
        """Where pages of a part may be: as they are, or as a serde made them; without a layout, in any."""
        if part.layout:
            parts = [part, part._replace(layout=SERIALIZED)]
            return list(dict.fromkeys(self._namespaces[each] for each in parts if each in self._namespaces))
        return [namespace for each, namespace in list(self._namespaces.items()) if each[:3] == part[:3]]

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Takes back a lock of each key, at once: this only touches the index in memory."""
        unlocked: dict[str, list[bytes]] = {}
        with self._locking:
            for part, indexes in by_part(keys, [""] * len(keys)).items():
                locks = self._locks.get(part[:3], {})
                for name in names(_at(keys, indexes)):
                    if namespaces := locks.get(name):
                        unlocked.setdefault(namespaces.pop(), []).append(name)
                        if not namespaces:
                            del locks[name]
        with self._quietly("unlock"):
            for namespace, named in unlocked.items():
                if self.cache is not None:
                    self.cache.unpin(namespace, named)

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        """Queues the copying of pages, each verified, into the objects."""
        parts = [partial(self._load, keys, objects, part) for part in _parts(objects)]
        return self._loads.submit(next(self._tasks), parts, Bitmap(len(keys)))

    def query_load_result(self, task_id: L2TaskId) -> Bitmap | None:
        """Which pages were loaded, once; None before it is known."""
        return self._loads.take(task_id)

    def _load(self, all_keys: Sequence[ObjectKey], all_objects: Sequence[MemoryObj], some: slice) -> Bitmap:
        found = Bitmap(len(all_keys))
        loaded: list[ObjectKey] = []
        keys, objects = all_keys[some], all_objects[some]
        for part, indexes in by_part(keys, layouts(objects)).items():
            namespace = self._namespaces.get(part)
            if self.cache is None or namespace is None:
                continue
            named, pages = names(_at(keys, indexes)), _at(objects, indexes)
            most = [page.get_size() for page in pages]
            sizes = self.cache.sizes(namespace, named)
            # What a serde made is as long as it came out, and LMCache has room for the longest that it may be.
            fitting = [
                place
                for place, (size, room) in enumerate(zip(sizes, most, strict=True))
                if size is None or size == room or (part.layout == SERIALIZED and size < room)
            ]
            lengths = [most[place] if (size := sizes[place]) is None else size for place in fitting]
            rows = memory(_at(pages, fitting), lengths)
            mask = self.cache.get_many(namespace, _at(named, fitting), out=rows)
            hits = [indexes[place] for place, hit in zip(fitting, mask, strict=True) if hit]
            found.batched_set([some.start + index for index in hits])
            loaded += _at(keys, hits)
            if part.layout == SERIALIZED:
                for place, length, hit in zip(fitting, lengths, mask, strict=True):
                    if hit and length < most[place]:
                        pages[place].set_used_size(length)
        self._tell()
        if loaded:
            with self._telling:
                self._notify_keys_accessed(loaded)
        return found

    def delete(self, keys: list[ObjectKey]) -> None:
        """Removes pages under their keys, of any layout; those that are locked stay."""
        with self._quietly("delete"):
            for part, indexes in by_part(keys, [""] * len(keys)).items():
                with self._locking:
                    locked = self._locks.get(part[:3], {})
                    free = [name for name in names(_at(keys, indexes)) if name not in locked]
                for namespace in self._namespaces_of(part):
                    if self.cache is not None:
                        self.cache.delete(namespace, free)
        self._tell()

    def list_l2_keys(self, model_name: str | None = None, page_size: int = 500, cursor: str | None = None) -> KeyListPage:
        """Keys by part and name; the cursor is the last one that was told."""
        if page_size <= 0:
            raise ValueError(f"page_size must be positive, not {page_size}")
        after, _, first = (cursor or "").partition("@")
        last = bytes.fromhex(after)
        if cursor is not None and first not in self._parts:
            raise ValueError(f"cursor {cursor!r} is none that was given out")
        entries: list[KeyEntry] = []
        for namespace, part in sorted(self._parts.items()):
            if self.cache is None or namespace < first or model_name not in {None, part.model}:
                continue
            sizes = self.cache.keys(namespace)
            named = (bytes(name) for name in sizes if isinstance(name, bytes) and (namespace > first or name > last))
            for name in nsmallest(page_size - len(entries), named):
                entries.append(KeyEntry(key_of(part, name).to_encoded_object_key(), sizes[name]))
            if len(entries) == page_size:
                return KeyListPage(tuple(entries), f"{name.hex()}@{namespace}")
        return KeyListPage(tuple(entries), None)

    def get_usage(self) -> AdapterUsage:
        """As LMCache counts, each key with its page; of pages that several keys share, the capacity only counts one."""
        self._tell()
        usage = super().get_usage()
        if usage.total_capacity_bytes <= 0:
            return usage
        return replace(usage, total_bytes_used=min(usage.total_bytes_used, usage.total_capacity_bytes))

    def report_status(self) -> dict[str, Any]:
        """Among it, under `cache`, the numbers of `PageCache.stats`."""
        usage = self.get_usage()
        status = {
            "is_healthy": not self._closed,
            "type": type(self).__name__,
            "path": self._options.path,
            "page_bytes": self._page_bytes,
            "locked_key_count": sum(map(len, list(self._locks.values()))),
            "current_size_bytes": usage.total_bytes_used,
            "max_capacity_bytes": usage.total_capacity_bytes,
        }
        with self._quietly("status"):
            if self.cache is not None:
                status["cache"] = self.cache.stats()
        return status

    def close(self) -> None:
        """Ends what was submitted and writes what waits; closing twice does no harm."""
        with self._opening:
            if self._closed:
                return
            self._closed = True
        lanes = (self._stores, self._lookups, self._loads)
        for lane in lanes:
            lane.drain()
        with self._quietly("close"):
            if self.cache is not None:
                self.cache.close()
        for lane in lanes:
            lane.close()

    def _changed(self, namespace: str, name: bytes | str, size: int) -> None:
        self._changes.append((namespace, name, size))

    def _tell(self) -> None:
        """Tells LMCache's listeners which keys have come and gone; what they raise is theirs to bear."""
        with self._telling, self._quietly("notification"):
            changes: dict[str, dict[bytes, tuple[bool, int]]] = {}
            while self._changes:
                namespace, name, size = self._changes.popleft()
                if isinstance(name, bytes):
                    sizes = changes.setdefault(namespace, {})
                    sizes[name] = (size >= 0, size + sizes[name][1] if name in sizes else size)
            told: dict[bool, list[tuple[ObjectKey, int]]] = {True: [], False: []}
            for namespace, sizes in changes.items():
                part = self._parts.get(namespace)
                if part is not None:
                    at_hand = self._at_hand.get(part, {})
                    for name, (there, size) in sizes.items():
                        told[there].append((at_hand.get(name) or key_of(part, name), size if there else -size))
            for notify, of in ((self._notify_keys_stored, told[True]), (self._notify_keys_deleted, told[False])):
                for start in range(0, len(of), _TOLD_AT_ONCE):
                    some, sizes_of = zip(*of[start : start + _TOLD_AT_ONCE], strict=True)
                    notify(list(some), list(sizes_of))

    @staticmethod
    @contextmanager
    def _quietly(what: str) -> Iterator[None]:
        """For what LMCache's own threads call: a failure is told in the log, and does not end them."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("LMCache's %s failed: %s", what, error)


def _at(items: Sequence[_Item], indexes: Sequence[int]) -> Sequence[_Item]:
    """The items at some indexes, which rise; usually these are all."""
    return items if len(indexes) == len(items) else [items[index] for index in indexes]


def _parts(objects: Sequence[MemoryObj]) -> list[slice]:
    """In which parts a task is done."""
    step = max(_PART_PAGES, _PART_BYTES // max(1, objects[0].get_size())) if objects else 1
    return [slice(start, start + step) for start in range(0, max(1, len(objects)), step)]


def _sum(one: L2StoreResult, other: L2StoreResult) -> L2StoreResult:
    return L2StoreResult(True, one.bytes_transferred() + other.bytes_transferred())

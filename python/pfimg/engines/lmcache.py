"""An L2 adapter of LMCache that keeps its pages in a `PageCache`, and a lossless serde for pages of floats.

LMCache hands over batches of keys and host memory, goes on, and polls one file descriptor for each kind of task: store, look-up,
load. Each kind has a thread here, since a batch is copied by all lanes at once anyway; the caller's thread only queues. Pages are
read and written where LMCache has them.

A key names tokens. What else makes pages interchangeable (model, rank and size of the parallel group, object group, shapes and
types of the numbers, and the revision, which LMCache does not know) is a namespace of the cache, so that a server started with
another type of numbers never gets the old pages. Tenants (`cache_salt`) are a part of the key.

Limits: L1 has to be host memory. What a serde made is bytes of any length, in one namespace whatever they were made of: whether
the shape is right is for the serde to find out, as ours does. Pages are of at most `page_bytes`, longer ones are not stored.
"""

import logging
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from heapq import nsmallest
from itertools import count
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import KeyEntry, KeyListPage, MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc, L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface, L2TaskId
from lmcache.v1.distributed.serde import AsyncSerdeProcessor, Deserializer, SerdeProcessor, Serializer, register_serde_factory
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier

from pfimg._core import decode_frame, digests_of, encode_frame
from pfimg.cache import PageCache
from pfimg.engines.tier import TierOptions
from pfimg.errors import FormatError, IntegrityError, StoreError
from pfimg.page_index import CacheIdentity
from pfimg.prefill import exported

_log = logging.getLogger("pfimg")

# What a serde may put around a page, where the longest page is derived from the shape of one.
_SERDE_ROOM = 128

# Keys that listeners are told of at a time.
_TOLD_AT_ONCE = 1024

# The layout of what a serde made: bytes, as many as it took.
_SERIALIZED = "serialized"

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class LMCacheOptions(TierOptions):
    """What `adapter_params` may say.

    Attributes:
        page_bytes: The longest page. None: that of the first look-up or store, which is when the memory is taken, then.
    """

    page_bytes: int | None = None


class _Part(NamedTuple):
    """What tells pages apart besides their tokens and tenant: a namespace each."""

    model: str
    kv_rank: int
    group: int
    layout: str

    def identity(self, revision: str) -> CacheIdentity:
        groups = re.findall(r"(\w+)\[([\d,]*)]", self.layout)
        return CacheIdentity(
            model=self.model,
            revision=revision,
            dtype="+".join(dict.fromkeys(dtype for dtype, _ in groups)) or "uint8",
            geometry=tuple(int(size) for _, shape in groups for size in shape.split(",") if size),
            layout=f"{self.kv_rank:08x} {self.group} {self.layout}",
            tp_rank=self.kv_rank >> 16 & 0xFF,
            tp_size=max(1, self.kv_rank >> 24),
        )

    @classmethod
    def of(cls, identity: CacheIdentity) -> Self | None:
        """The part that has this identity; None for what another engine has put into the directory."""
        found = re.fullmatch(r"([0-9a-f]{8,}) (\d+) (\S+)", identity.layout)
        return None if found is None else cls(identity.model, int(found[1], 16), int(found[2]), found[3])

    @property
    def name(self) -> str:
        return f"rank {self.kv_rank:08x} group {self.group} {self.layout}"


@lru_cache(maxsize=1024)
def _layout(shapes: tuple[torch.Size, ...], dtypes: tuple[torch.dtype, ...]) -> str:
    if dtypes == (torch.uint8,) and len(shapes[0]) == 1:
        return _SERIALIZED
    names = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return "+".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in zip(names, shapes, strict=True))


def _layout_of(page: MemoryObj) -> str:
    meta = page.metadata
    shapes = [meta.shape] if meta.shapes is None else meta.shapes
    dtypes = [meta.dtype] if meta.dtypes is None else meta.dtypes
    return _layout(tuple(shapes), tuple(dtypes))


def _bytes_of(desc: MemoryLayoutDesc) -> int:
    return sum(int(shape.numel()) * int(dtype.itemsize) for shape, dtype in zip(desc.shapes, desc.dtypes, strict=True))


def _name(key: ObjectKey) -> bytes:
    """A key within its part. No salt has an `@` in it."""
    return bytes(key.cache_salt.encode() + b"@" + key.chunk_hash)


class _Lane(Generic[_Result]):
    """Tasks of one kind: done one after another in a thread, told of by an event, each result asked for once."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._event = create_event_notifier()
        self._results: dict[L2TaskId, _Result] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"pfimg-{kind}")

    def fileno(self) -> int:
        return int(self._event.fileno())

    def submit(self, task: L2TaskId, work: Callable[[], _Result], failed: _Result) -> L2TaskId:
        try:
            self._worker.submit(self._run, task, work, failed)
        except RuntimeError as error:
            self._fail(task, failed, error)
        return task

    def _run(self, task: L2TaskId, work: Callable[[], _Result], failed: _Result) -> None:
        try:
            self._finish(task, work())
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails this task and nothing else
            self._fail(task, failed, error)

    def _fail(self, task: L2TaskId, failed: _Result, error: Exception) -> None:
        _log.warning("LMCache's %s task %d failed: %s", self._kind, task, error)
        self._finish(task, failed)

    def _finish(self, task: L2TaskId, result: _Result) -> None:
        with self._lock:
            self._results[task] = result
        # It is closed when the adapter is, and then nobody waits for it.
        with suppress(OSError, ValueError):
            self._event.notify()

    def take(self, task: L2TaskId) -> _Result | None:
        with self._lock:
            return self._results.pop(task, None)

    def take_all(self) -> dict[L2TaskId, _Result]:
        with self._lock:
            results, self._results = self._results, {}
        return results

    def drain(self) -> None:
        """Waits for what was submitted: LMCache takes back the memory of these tasks afterwards."""
        self._worker.shutdown()

    def close(self) -> None:
        self._event.close()


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
        self._opening = threading.Lock()
        self._namespaces: dict[_Part, str] = {}
        self._parts: dict[str, _Part] = {}
        self._locks: dict[ObjectKey, list[str]] = {}
        self._locking = threading.Lock()
        self._changes: deque[tuple[str, bytes | str, int]] = deque()
        self._telling = threading.RLock()
        self._tasks = count()
        self._closed = False
        if options.page_bytes is not None:
            self._opened(options.page_bytes)
        self._stores: _Lane[L2StoreResult] = _Lane("store")
        self._lookups: _Lane[Bitmap] = _Lane("look-up")
        self._loads: _Lane[Bitmap] = _Lane("load")

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
            part = _Part.of(identity)
            if part is not None and part.identity(self._revision) == identity:
                namespace = self._bind(cache, part)
                self._changes.extend((namespace, name, size) for name, size in cache.keys(namespace).items())

    def _find_exported(self, cache: PageCache, source: str) -> None:
        """Binds, and thereby warms, what the image has: look-ups ask for what is bound only."""
        try:
            there = exported(source)
            parts = [part for part in map(_Part.of, there) if part is not None and part.identity(self._revision) in there]
            for part in parts:
                self._bind(cache, part)
            if not parts:
                _log.warning("the cache cannot be warmed from %s: its pages are for another engine or revision", source)
        except Exception as error:  # noqa: BLE001 - the engine computes what it does not find
            if not cache.closed:
                _log.warning("the cache cannot be warmed from %s: %s", source, error)

    def _bind(self, cache: PageCache, part: _Part) -> str:
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
        return self._stores.submit(next(self._tasks), partial(self._store, keys, objects), L2StoreResult(False, 0))

    def pop_completed_store_tasks(self) -> dict[L2TaskId, L2StoreResult]:
        """The stores that have ended since the last call."""
        return self._stores.take_all()

    def _store(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> L2StoreResult:
        if not keys:
            return L2StoreResult(True, 0)
        pages = [page.byte_array for page in objects]
        # What a serde made may be longer the next time, up to the memory that it was given.
        cache = self._opened(max(*map(len, pages), *(page.get_physical_size() for page in objects)))
        stored = 0
        for part, indexes in _by_part(keys, map(_layout_of, objects)).items():
            short = [index for index in indexes if len(pages[index]) <= self._page_bytes]
            try:
                cache.put_many(
                    self._bind(cache, part), [_name(keys[index]) for index in short], [pages[index] for index in short]
                )
            finally:
                self._tell()
            stored += len(short)
        if stored < len(keys):
            longest = max(map(len, pages))
            raise StoreError(
                f"{len(keys) - stored} of {len(keys)} pages are longer than page_bytes, {self._page_bytes}, "
                f"and were not stored: make it {longest} at least"
            )
        return L2StoreResult(True, sum(map(len, pages)))

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]) -> L2TaskId:
        """Queues a look-up; pages that are there make no room for others until they are unlocked."""
        return self._lookups.submit(next(self._tasks), partial(self._lookup, keys, group_layout_descs), Bitmap(len(keys)))

    def query_lookup_and_lock_result(self, task_id: L2TaskId) -> Bitmap | None:
        """Which keys are there, once; None before it is known."""
        return self._lookups.take(task_id)

    def _lookup(self, keys: Sequence[ObjectKey], descs: Mapping[int, MemoryLayoutDesc]) -> Bitmap:
        found = Bitmap(len(keys))
        if descs:
            self._opened(max(map(_bytes_of, descs.values())) + _SERDE_ROOM)
        if self.cache is None:
            return found
        layouts = {group: _layout(tuple(desc.shapes), tuple(desc.dtypes)) for group, desc in descs.items()}
        try:
            for part, indexes in _by_part(keys, (layouts.get(key.object_group_id, "") for key in keys)).items():
                left = indexes
                for namespace in self._namespaces_of(part):
                    there = self.cache.pin(namespace, [_name(keys[index]) for index in left])
                    hits = [index for index, held in zip(left, there, strict=True) if held]
                    with self._locking:
                        for index in hits:
                            self._locks.setdefault(keys[index], []).append(namespace)
                    found.batched_set(hits)
                    left = [index for index, held in zip(left, there, strict=True) if not held]
        except BaseException:
            # LMCache is told that nothing is there, so it unlocks nothing.
            self.submit_unlock([keys[index] for index in found.get_indices_list()])
            raise
        self._tell()
        return found

    def _namespaces_of(self, part: _Part) -> list[str]:
        """Where pages of a part may be: as they are, or as a serde made them; without a layout, in any."""
        if part.layout:
            parts = [part, part._replace(layout=_SERIALIZED)]
            return list(dict.fromkeys(self._namespaces[each] for each in parts if each in self._namespaces))
        return [namespace for each, namespace in list(self._namespaces.items()) if each[:3] == part[:3]]

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Takes back a lock of each key, at once: this only touches the index in memory."""
        unlocked: dict[str, list[bytes]] = {}
        with self._locking:
            for key in keys:
                namespaces = self._locks.get(key)
                if namespaces:
                    unlocked.setdefault(namespaces.pop(), []).append(_name(key))
                    if not namespaces:
                        del self._locks[key]
        with self._quietly("unlock"):
            for namespace, names in unlocked.items():
                if self.cache is not None:
                    self.cache.unpin(namespace, names)

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2TaskId:
        """Queues the copying of pages, each verified, into the objects."""
        return self._loads.submit(next(self._tasks), partial(self._load, keys, objects), Bitmap(len(keys)))

    def query_load_result(self, task_id: L2TaskId) -> Bitmap | None:
        """Which pages were loaded, once; None before it is known."""
        return self._loads.take(task_id)

    def _load(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> Bitmap:
        found = Bitmap(len(keys))
        loaded = []
        for part, indexes in _by_part(keys, map(_layout_of, objects)).items():
            namespace = self._namespaces.get(part)
            if self.cache is None or namespace is None:
                continue
            names, rows = [_name(keys[index]) for index in indexes], [objects[index].byte_array for index in indexes]
            # What a serde made is as long as it came out, and LMCache has room for the longest that it may be.
            fitting = [
                (index, name, row if size is None else row[:size])
                for index, name, row, size in zip(indexes, names, rows, self.cache.sizes(namespace, names), strict=True)
                if size in {None, len(row)} or (part.layout == _SERIALIZED and size < len(row))
            ]
            mask = self.cache.get_many(namespace, [name for _, name, _ in fitting], out=[row for _, _, row in fitting])
            for (index, _, row), hit in zip(fitting, mask, strict=True):
                if hit:
                    found.set(index)
                    loaded.append(keys[index])
                    if len(row) < objects[index].get_size():
                        objects[index].set_used_size(len(row))
        self._tell()
        if loaded:
            self._notify_keys_accessed(loaded)
        return found

    def delete(self, keys: list[ObjectKey]) -> None:
        """Removes pages under their keys, of any layout; those that are locked stay."""
        with self._locking:
            free = [key for key in keys if key not in self._locks]
        with self._quietly("delete"):
            for part, indexes in _by_part(free, ("" for _ in free)).items():
                for namespace in self._namespaces_of(part):
                    if self.cache is not None:
                        self.cache.delete(namespace, [_name(free[index]) for index in indexes])
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
            names = (bytes(name) for name in sizes if isinstance(name, bytes) and (namespace > first or name > last))
            for name in nsmallest(page_size - len(entries), names):
                entries.append(KeyEntry(_key(part, name).to_encoded_object_key(), sizes[name]))
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
            "locked_key_count": len(self._locks),
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
            changes: dict[ObjectKey, tuple[bool, int]] = {}
            while self._changes:
                namespace, name, size = self._changes.popleft()
                part = self._parts.get(namespace)
                if part is not None and isinstance(name, bytes):
                    key = _key(part, name)
                    changes[key] = (size >= 0, changes.get(key, (False, 0))[1] + size)
            stored = [(key, size) for key, (there, size) in changes.items() if there]
            gone = [(key, -size) for key, (there, size) in changes.items() if not there]
            for notify, told in ((self._notify_keys_stored, stored), (self._notify_keys_deleted, gone)):
                for start in range(0, len(told), _TOLD_AT_ONCE):
                    keys, sizes = zip(*told[start : start + _TOLD_AT_ONCE], strict=True)
                    notify(list(keys), list(sizes))

    @staticmethod
    @contextmanager
    def _quietly(what: str) -> Iterator[None]:
        """For what LMCache's own threads call: a failure is told in the log, and does not end them."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("LMCache's %s failed: %s", what, error)


def _by_part(keys: Sequence[ObjectKey], layouts: Iterable[str]) -> dict[_Part, list[int]]:
    """Which of the keys are of which part."""
    parts: dict[_Part, list[int]] = {}
    for index, (key, layout) in enumerate(zip(keys, layouts, strict=True)):
        parts.setdefault(_Part(key.model_name, key.kv_rank, key.object_group_id, layout), []).append(index)
    return parts


def _key(part: _Part, name: bytes) -> ObjectKey:
    salt, _, tokens = name.partition(b"@")
    return ObjectKey(tokens, part.model, part.kv_rank, part.group, salt.decode())


# What stands before a page that the serde made: "pfls", version, whether a frame follows, the bytes that follow, the hash of the
# layout, and the BLAKE3 digest of the page. What follows is a frame of our float codec, or the page where that is not longer.
_HEAD = struct.Struct("<4sBBxxQ16s32s")
_MAGIC, _VERSION = b"pfls", 1


def _hash_of_layout(page: MemoryObj) -> bytes:
    return blake2b(_layout_of(page).encode(), digest_size=16).digest()


def _digest(data: Any) -> str:
    return digests_of([data], algorithm="blake3")[0]


def _array(page: MemoryObj) -> npt.NDArray[np.uint8]:
    """The bytes of a page, in place: NumPy copies without the interpreter's lock."""
    return np.frombuffer(page.byte_array, np.uint8)


class PfimgFloatSerializer(Serializer):
    """Pages of floats in about two thirds of their bytes, none of them lost."""

    def serialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> int:  # noqa: ARG002 - the page is what counts
        """Fills the beginning of `dst`; returns how many bytes of it."""
        page, out = _array(src), _array(dst)
        frame = np.frombuffer(encode_frame(page, codec="float"), np.uint8)
        coded = len(frame) < len(page)
        body = frame if coded else page
        digest = bytes.fromhex(_digest(page).partition(":")[2])
        head = _HEAD.pack(_MAGIC, _VERSION, coded, len(body), _hash_of_layout(src), digest)
        end = len(head) + len(body)
        np.copyto(out[: len(head)], np.frombuffer(head, np.uint8))
        np.copyto(out[len(head) : end], body)
        return end

    def estimate_serialized_size(self, layout_desc: MemoryLayoutDesc) -> int:
        """The most that it may be: a page that gets no smaller is kept as it is."""
        return _HEAD.size + _bytes_of(layout_desc)


class PfimgFloatDeserializer(Deserializer):
    """The way back; a page of other bytes or another layout than was asked for is an error, whatever storage it came from."""

    def deserialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> None:  # noqa: ARG002 - as above
        """Fills `dst`, or raises."""
        data, out = _array(src), _array(dst)
        if len(data) < _HEAD.size:
            raise FormatError(f"{len(data)} bytes are no page of the serde pfimg_float")
        magic, version, coded, length, layout, digest = _HEAD.unpack(data[: _HEAD.size].tobytes())
        body = data[_HEAD.size : _HEAD.size + length]
        if (magic, version) != (_MAGIC, _VERSION) or coded > 1 or len(body) != length:
            raise FormatError("this is no page of the serde pfimg_float, or not a whole one")
        if layout != _hash_of_layout(dst):
            raise FormatError(f"this page has another layout than {_layout_of(dst)}")
        expected = f"blake3:{digest.hex()}"
        if coded:
            body = np.frombuffer(decode_frame(body, expect=expected), np.uint8)
        elif _digest(body) != expected:
            raise IntegrityError(f"this page does not hash to {expected}", digest=expected)
        if len(body) != len(out):
            raise FormatError(f"this page has {len(body)} bytes, not {len(out)}")
        np.copyto(out, body)


def _float_serde(options: Mapping[str, Any]) -> SerdeProcessor:
    unknown = set(options) - {"max_workers"}
    if unknown:
        raise FormatError(f"{min(unknown)!r} is no option of the serde pfimg_float, which has max_workers", field=min(unknown))
    return AsyncSerdeProcessor(PfimgFloatSerializer(), PfimgFloatDeserializer(), max_workers=int(options.get("max_workers", 1)))


# By this name an adapter's configuration asks for it, once this module has been imported, which the adapter above sees to.
register_serde_factory("pfimg_float", _float_serde)

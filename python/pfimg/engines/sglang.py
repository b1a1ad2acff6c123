"""SGLang's HiCache, whose third tier (L3) this is: `PfimgStorage`, for `--hicache-storage-backend dynamic`.

SGLang names a page by a hash of all tokens up to its end. A page is kept in pieces, as it lies in the engine's host memory, and
is there when all of its pieces are. The generic calls, on tensors, cut theirs in the same way, so that either interface finds
what the other put.

Side pools (Mamba states, sliding windows, indexers, drafts) are in the same namespace; their keys tell the pool and how its pages
are made. The cache's page size is the longest piece of the pool of keys and values, known when SGLang registers it; longer pieces
of other pools are cut to it. Where that pool holds no memory, it is the longest piece of all pools, known when the last one is
registered; without any pool, the length of the first tensor.

Nothing here is called on the scheduler's thread but attaching, detaching, clearing and `get_stats`. What fails is a miss, or a
page that was not stored, and a warning in the log.

Limits: memory of the CPU only. Pages belong to one rank, so that every rank of an MLA model stores its own copy.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)
from sglang.srt.observability.metrics_collector import StorageMetrics
from sglang.srt.runtime_context import get_model, get_parallel

from pfimg.cache import PageCache
from pfimg.engines.sglang_pools import Cuts, Pool, bytes_of, cuts_of, name_of, pieces_of, published
from pfimg.engines.tier import TierOptions
from pfimg.errors import FormatError, StoreError
from pfimg.page_index import CacheIdentity

_log = logging.getLogger("pfimg")

# What SGLang itself reads in the configuration of its backend.
_ENGINES_WORDS = (
    "backend_name",
    "class_name",
    "hicache_storage_pass_prefix_keys",
    "interface_v1",
    "module_path",
    "prefetch_threshold",
    "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token",
    "tp_lcm_size",
)

_T = TypeVar("_T")


class PfimgStorage(HiCacheStorage):
    """HiCache's third tier in a `PageCache`.

    Args:
        storage_config: What SGLang says of model and ranks; the words of `TierOptions` are in its `extra_config`.
        kwargs: What else SGLang's factory hands on; nothing of it is used.

    Attributes:
        cache: Where the pages are; None until the page size is known.

    Raises:
        FormatError: A word of the configuration is no option, or no model is named.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        del kwargs
        told = storage_config.extra_config or {}
        self._options = TierOptions.of({word: value for word, value in told.items() if word not in _ENGINES_WORDS})
        # The name in the configuration is the one that is served, which several models may have.
        model = self._options.model or published(lambda: get_model().model_path) or storage_config.model_name
        if not model:
            raise FormatError("SGLang names no model: say which it is, as model", field="model")
        self._model: str = model
        self._revision = self._options.revision or published(lambda: get_model().revision) or ""
        self._config = storage_config
        self._shard, self._part = _parts(storage_config)
        if storage_config.is_mla_model and storage_config.tp_size > 1:
            # SGLang has one rank write what all ranks of an MLA model hold, for all to read. Here no rank sees another's pages,
            # and the engine uses what every rank has found: each has to write.
            storage_config.is_mla_model = False
        self.cache: PageCache | None = None
        self._namespace = ""
        self._identity: CacheIdentity | None = None
        self._page_bytes = 0
        self._opening = threading.Lock()
        self._kv: Pool | None = None
        self._logical = False
        self._pools: dict[str, Pool] = {}
        self._sizes: tuple[int, ...] = ()
        self._measured = StorageMetrics()
        self._measuring = threading.Lock()

    # Attaching.

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Takes the pool of keys and values, whose pages tell the page size, and opens the cache.

        Raises:
            FormatError: The arena has room for less than two pieces.
            StoreError: Another process has the directory open, or it holds pages of the same name but another identity.
            OSError: The space for the arena is not there.
        """
        super().register_mem_pool_host(mem_pool_host)
        if mem_pool_host.kv_buffer is None:
            # It only numbers the pages: what they hold is in the side pools, which come next.
            self._logical = True
            return
        self._kv = Pool(mem_pool_host, PoolName.KV)
        self._sizes = self._kv.sizes
        self._open(max(self._kv.sizes), self._kv.dtype, self._kv.geometry, self._kv.layout)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        """Takes one of the pools of a hybrid model; the one of keys and values comes here once more."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if host_pool_name != PoolName.KV or not self._logical:
            self._pools[str(host_pool_name)] = Pool(host_pool, host_pool_name)

    def on_host_pools_registered(self) -> None:
        """Opens the cache, where no pool of keys and values has told the page size.

        Raises:
            As `register_mem_pool_host`.
        """
        sizes = [size for pool in self._pools.values() for size in pool.sizes]
        if self.cache is None and sizes:
            self._open(max(sizes), "uint8", (self.mem_pool_host.page_size,), f"logical {self.mem_pool_host.layout}")

    def _open(self, page_bytes: int, dtype: str, geometry: tuple[int, ...], layout: str) -> None:
        with self._opening:
            if self.cache is not None:
                return
            ranks = (self._config.tp_rank, self._config.tp_size)
            layout = f"{layout} {self._shard}".strip()
            identity = CacheIdentity(self._model, self._revision, dtype, geometry, layout, *ranks)
            self._identity, self._page_bytes = identity, page_bytes
            self.cache, self._namespace = self._options.open(identity, page_bytes, self._part)
        _log.info("pfimg holds pages of %s, pieces of %d bytes", self._namespace, page_bytes)

    def _opened(self) -> PageCache:
        if self.cache is None:
            raise StoreError("no pool has been registered, so the page size is not known")
        return self.cache

    def clear(self) -> bool:
        """Removes all pages of this model and rank; whether that was possible."""
        return self._safely("clear its pages", self._clear, otherwise=False)

    def _clear(self) -> bool:
        if self.cache is not None and self._identity is not None:
            self.cache.clear(self._namespace)
            told = self._options
            self.cache.bind(self._namespace, self._identity, max_bytes=told.max_bytes, ttl_seconds=told.ttl_seconds)
        return True

    def close(self) -> None:
        """Writes what waits, and lets go of memory and locks. What is called afterwards misses."""
        if self.cache is not None:
            self._safely("write its last pages", self.cache.close, otherwise=None)

    def get_stats(self) -> StorageMetrics | None:
        """Pages of each call since the last time, and GB a second, for SGLang's metrics; None where these are off."""
        if not self._config.enable_storage_metrics:
            return None
        with self._measuring:
            measured, self._measured = self._measured, StorageMetrics()
        return measured

    # Pages in the pool of keys and values, in place.

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """How many pages from the first one on are here."""
        del extra_info
        if self.cache is None or not self._sizes:
            return 0
        return self._safely("look pages up", lambda: self._leading(keys), otherwise=0)

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Reads pages into the host pool; for each whether it is there now, verified."""
        del extra_info
        # A pool without memory has nothing to read or to store, and so never fails.
        return [self._logical] * len(keys) if self._kv is None else self._load_pages(self._kv, keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Stores pages of the host pool; for each whether it is here now."""
        del extra_info
        return [self._logical] * len(keys) if self._kv is None else self._store_pages(self._kv, keys, host_indices)

    # Pages as tensors.

    def get(self, key: str, target_location: Any | None = None, target_sizes: Any | None = None) -> torch.Tensor | None:
        """Reads one page into a tensor, or a new one; None where it is not here."""
        del target_sizes
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(
        self, keys: list[str], target_locations: Any | None = None, target_sizes: Any | None = None
    ) -> list[torch.Tensor | None]:
        """Reads pages into tensors, or new ones; None for each that is not here."""
        del target_sizes
        return self._safely("load pages", lambda: self._load_tensors(keys, target_locations), otherwise=[None] * len(keys))

    def set(
        self, key: str, value: Any | None = None, target_location: Any | None = None, target_sizes: Any | None = None
    ) -> bool:
        """Stores one page from a tensor; whether it is here now."""
        del target_sizes
        return self.batch_set([key], [target_location if value is None else value])

    def batch_set(
        self, keys: list[str], values: Any | None = None, target_locations: Any | None = None, target_sizes: Any | None = None
    ) -> bool:
        """Stores pages from tensors of one size; whether all are here now."""
        del target_sizes
        pages: Any = target_locations if values is None else values
        return self._safely("store pages", lambda: self._store_tensors(keys, pages), otherwise=False)

    def exists(self, key: str) -> bool:
        """Whether a page is here."""
        return self.batch_exists([key]) == 1

    # Pages of several pools.

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """Up to which pages from the first one on a sequence can be restored, by what each pool asks for."""
        leading = len(keys) if self._logical else self.batch_exists(keys, extra_info)
        # A pool that is not named gave no verdict.
        hits = {PoolName.KV: leading} if leading else {}
        ends = list(range(1, leading + 1))
        for transfer in pool_transfers or []:
            pool = self._pools.get(str(transfer.name))
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                # These pages are there beside those of other pools; they bound nothing.
                covered = min(len(keys), self._covered(pool, transfer))
            else:
                allowed = _ends(self._there(pool, keys[:leading]), transfer)
                covered = max(allowed, default=0)
                ends = [end for end in ends if end in allowed]
            if covered:
                hits[transfer.name] = covered
        return PoolTransferResult(max(ends, default=0), hits, ends)

    def _there(self, pool: Pool | None, keys: Sequence[str]) -> list[bool]:
        nothing = [False] * len(keys)
        if pool is None or self.cache is None:
            return nothing
        return self._safely("look pages up", lambda: self._has(pool, keys), otherwise=nothing)

    def _covered(self, pool: Pool | None, transfer: PoolTransfer) -> int:
        """How many pages the leading whole groups stand for: there is a group of keys for each block of pages."""
        there = self._there(pool, transfer.keys or [])
        leading = there.index(False) if False in there else len(there)
        return leading // max(1, int(transfer.group_pages)) * int(transfer.block_pages)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Reads pages into host pools; for each pool which are there now, verified."""
        del extra_info
        return self._each(transfers, self._load_pages)

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Stores pages of host pools; for each pool which are here now."""
        del extra_info
        return self._each(transfers, self._store_pages)

    def _each(
        self, transfers: Sequence[PoolTransfer], move: Callable[[Pool, Sequence[str], torch.Tensor], list[bool]]
    ) -> dict[str, list[bool]]:
        results: dict[str, list[bool]] = {}
        for transfer in transfers:
            keys, pool = transfer.keys or [], self._pools.get(str(transfer.name))
            if pool is None or transfer.host_indices is None:
                why = "is not registered" if pool is None else "tells no place in memory"
                _log.warning("pfimg moves no pages of the pool %s, which %s", transfer.name, why)
                moved = [False] * len(keys)
            else:
                moved = move(pool, keys, transfer.host_indices)
            # SGLang may name a pool twice, each time with other keys.
            results[transfer.name] = results.get(transfer.name, []) + moved
        return results

    # What moves pages, on SGLang's threads for that.

    def _load_pages(self, pool: Pool, keys: Sequence[str], indices: torch.Tensor) -> list[bool]:
        def work() -> list[bool]:
            pool.check(keys, indices)
            rows, settle = pool.targets(indices, self._cut(pool.sizes))
            found = self._get(pool.suffix, keys, rows)
            settle(found)
            return found

        start = time.perf_counter()
        found = self._safely("load pages", work, otherwise=[False] * len(keys))
        self._measure("prefetch", sum(found), sum(pool.sizes), time.perf_counter() - start)
        return found

    def _store_pages(self, pool: Pool, keys: Sequence[str], indices: torch.Tensor) -> list[bool]:
        def work() -> list[bool]:
            pool.check(keys, indices)
            self._put(pool.suffix, keys, pool.sources(indices, self._cut(pool.sizes)))
            return [True] * len(keys)

        start = time.perf_counter()
        stored = self._safely("store pages", work, otherwise=[False] * len(keys))
        self._measure("backup", sum(stored), sum(pool.sizes), time.perf_counter() - start)
        return stored

    def _load_tensors(self, keys: Sequence[str], targets: Sequence[torch.Tensor] | None) -> list[torch.Tensor | None]:
        if not keys:
            return []
        pages = [self._new_page() for _ in keys] if targets is None else targets
        rows = [page.view(-1).view(torch.uint8) for page in pages]
        found = self._get("", keys, pieces_of(rows, self._cut(self._sizes_of(pages))))
        return [page if whole else None for page, whole in zip(pages, found, strict=True)]

    def _store_tensors(self, keys: Sequence[str], pages: Sequence[torch.Tensor]) -> bool:
        if keys:
            self._put("", keys, pieces_of([bytes_of(page) for page in pages], self._cut(self._sizes_of(pages))))
        return True

    def _new_page(self) -> torch.Tensor:
        self._opened()
        return torch.empty(self._sizes, dtype=torch.uint8) if self._kv is None else self._kv.new_page()

    def _sizes_of(self, pages: Sequence[torch.Tensor]) -> tuple[int, ...]:
        """Bytes of the pieces of such pages; the first that come tell the page size, if nothing else does."""
        length = pages[0].nbytes
        if any(page.nbytes != length for page in pages):
            raise FormatError("pages of several sizes in one call")
        if self.cache is None:
            self._open(length, name_of(pages[0].dtype), (length,), "flat")
        self._sizes = self._sizes or (length,)
        return self._sizes if sum(self._sizes) == length else (length,)

    # What asks the cache.

    def _cut(self, sizes: tuple[int, ...]) -> Cuts:
        self._opened()
        return cuts_of(sizes, self._page_bytes)

    def _has(self, pool: Pool, keys: Sequence[str]) -> list[bool]:
        names = _names(keys, pool.suffix, len(self._cut(pool.sizes)))
        return _whole(self._opened().has_many(self._namespace, names), len(keys))

    def _leading(self, keys: Sequence[str]) -> int:
        count = len(self._cut(self._sizes))
        return self._opened().leading_hits(self._namespace, _names(keys, "", count)) // count

    def _get(self, suffix: str, keys: Sequence[str], rows: Sequence[Any]) -> list[bool]:
        if not keys:
            return []
        names = _names(keys, suffix, len(rows) // len(keys))
        return _whole(self._opened().get_many(self._namespace, names, out=rows), len(keys))

    def _put(self, suffix: str, keys: Sequence[str], rows: Sequence[Any]) -> None:
        # Also those that are here: what a full disk did not take is tried again.
        if keys:
            self._opened().put_many(self._namespace, _names(keys, suffix, len(rows) // len(keys)), rows)

    def _measure(self, call: str, pages: int, page_bytes: int, seconds: float) -> None:
        if pages and self._config.enable_storage_metrics:
            with self._measuring:
                getattr(self._measured, f"{call}_pgs").append(pages)
                getattr(self._measured, f"{call}_bandwidth").append(pages * page_bytes / (1 << 30) / seconds)

    def _safely(self, what: str, work: Callable[[], _T], *, otherwise: _T) -> _T:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the engine runs on without the tier, whatever is wrong with it
            _log.warning("pfimg cannot %s: %s", what, error)
            return otherwise


def _parts(config: HiCacheStorageConfig) -> tuple[str, str]:
    """Which part of the layers and tokens a rank has, and its name among all ranks; empty where there is but one."""
    shares = {"pp": (config.pp_rank, config.pp_size), "cp": (config.attn_cp_rank, config.attn_cp_size)}
    shard = [f"{name}{rank}of{size}" for name, (rank, size) in shares.items() if size > 1]
    heads = [f"tp{config.tp_rank}of{config.tp_size}"] if config.tp_size > 1 else []
    # Attention groups are told in the configuration, whole replicas of an engine are not.
    replica = config.dp_rank or published(lambda: get_parallel().dp_rank)
    return " ".join(shard), "-".join([*heads, *shard, *([f"dp{replica}"] if replica else [])])


def _names(keys: Sequence[str], suffix: str, count: int) -> list[str]:
    return [f"{key}{suffix}.{number}" for key in keys for number in range(count)]


def _whole(held: Sequence[bool], pages: int) -> list[bool]:
    """Which pages have all of their pieces."""
    count = len(held) // max(1, pages)
    return [all(held[count * page : count * page + count]) for page in range(pages)]


def _ends(there: Sequence[bool], transfer: PoolTransfer) -> set[int]:
    """The numbers of leading pages with which a sequence may end, as far as a pool with some of its pages is concerned."""
    # How many pages up to each one are there without a gap.
    runs, run = [], 0
    for held in there:
        run = run + 1 if held else 0
        runs.append(run)
    trailing = transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES
    window = max(1, len(transfer.keys or ())) if trailing else len(there)
    return {end for end, run in enumerate(runs, 1) if run >= min(window, end)}

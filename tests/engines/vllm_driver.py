"""vLLM's tiering manager, as far as a secondary tier sees it: rows of a primary tier, and jobs between them and the tier."""

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.engines.drivers import PAGE_BYTES, Rows
from vllm.v1.kv_offload.base import LookupResult, OffloadingManager, OffloadingSpec, OffloadKey, ReqContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

if TYPE_CHECKING:
    from pfimg import PageCache

CHUNKS = 1024


class Spec(OffloadingSpec):
    """What a tier is told; the manager and the worker belong to others."""

    def get_manager(self) -> OffloadingManager:
        raise NotImplementedError

    def get_worker(self, kv_caches: Any) -> Any:
        raise NotImplementedError


def config(*, page_bytes: int = PAGE_BYTES, **parallel: Any) -> OffloadingConfig:
    """What vLLM makes of its command line: a model of one group, on one GPU where `parallel` does not say otherwise."""
    one = OffloadingParallelConfig(
        rank=0,
        world_size=1,
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=False,
    )
    layers = tuple(f"model.layers.{layer}.self_attn.attn" for layer in range(8))
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(tokens_per_block=16, layer_names=layers, group_id=0),),
        worker_kv_bytes_per_block=page_bytes // parallel.get("world_size", 1),
        enable_kv_cache_events=True,
        extra_config={},
        engine_id="test",
        model=OffloadingModelConfig(name="served", dtype="bfloat16"),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
        parallel=replace(one, **parallel),
        kv_cache_layout="LBNHC",
    )


def tier_config(options: dict[str, Any]) -> dict[str, Any]:
    """An element of `secondary_tiers`."""
    return {"type": "PfimgTier", "module_path": "pfimg.engines.vllm"} | options


def make_tier(options: dict[str, Any], told: OffloadingConfig | None = None, rows: Rows | None = None) -> SecondaryTierManager:
    """A tier, made by vLLM's factory over a primary tier of `rows`."""
    rows = np.zeros((4, PAGE_BYTES), np.uint8) if rows is None else rows
    view = memoryview(rows.view(np.int8))  # type: ignore[arg-type]  # mypy knows no buffers before Python 3.12
    return SecondaryTierFactory.create_secondary_tier(tier_config(options), view, Spec(told or config()))


def offload_keys(keys: Sequence[str], group: int = 0) -> list[OffloadKey]:
    return [make_offload_key(bytes.fromhex(key), group) for key in keys]


class VLLM:
    """What the manager does in the steps of a scheduler: under its lock, with requests that begin and end."""

    def __init__(self, tier: SecondaryTierManager, rows: Rows) -> None:
        self.tier, self._rows = tier, rows
        self.cache: PageCache = tier.cache
        self._lock = threading.Lock()
        self._free = list(range(len(rows)))
        self._numbers = itertools.count()
        self._results: dict[int, JobResult] = {}

    def store(self, keys: Sequence[str], pages: Rows) -> bool:
        chunks = self._take(len(keys))
        self._rows[chunks] = pages
        result = self._wait(self.submit(offload_keys(keys), chunks, load=False))
        self._give(chunks)
        return bool(result.success)

    def lookup(self, keys: Sequence[str]) -> int:
        request = ReqContext(f"look-up {next(self._numbers)}")
        with self._lock:
            self.tier.on_new_request(request)
            hits = itertools.takewhile(lambda key: self.tier.lookup(key, request) is LookupResult.HIT, offload_keys(keys))
            found = sum(1 for _ in hits)
            self.tier.on_request_finished(request)
        return found

    def load(self, keys: Sequence[str]) -> list[bytes | None]:
        named, chunks = offload_keys(keys), self._take(len(keys))
        result = self._wait(self.submit(named, chunks, load=True))
        there = set(named if result.success else result.successful_keys or ())
        pages = [self._rows[chunk].tobytes() if key in there else None for key, chunk in zip(named, chunks, strict=True)]
        self._give(chunks)
        return pages

    def submit(self, keys: Sequence[OffloadKey], chunks: Sequence[int], *, load: bool, request: ReqContext | None = None) -> int:
        """A job of the tier, by its number."""
        number = next(self._numbers)
        request = request or ReqContext(f"job {number}")
        job = TransferJob(number, list(keys), np.array(chunks, np.int32), is_promotion=load, req_context=request)
        with self._lock:
            (self.tier.submit_load if load else self.tier.submit_store)(job)
        return number

    def _wait(self, number: int) -> JobResult:
        while True:
            with self._lock:
                for result in self.tier.get_finished_jobs():
                    assert result.job_id not in self._results, "a job ends once"
                    self._results[result.job_id] = result
                if number in self._results:
                    return self._results.pop(number)
            time.sleep(0.0005)

    def _take(self, count: int) -> list[int]:
        with self._lock:
            taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the primary tier is full"
        return taken

    def _give(self, chunks: Sequence[int]) -> None:
        with self._lock:
            self._free += chunks

    def close(self) -> None:
        self.tier.shutdown()


def open(configured: dict[str, Any]) -> VLLM:
    """An engine with our tier."""
    rows = np.zeros((CHUNKS, PAGE_BYTES), np.uint8)
    return VLLM(make_tier(configured, rows=rows), rows)

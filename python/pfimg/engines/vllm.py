"""vLLM's secondary tier: `PfimgTier`, for `secondary_tiers` of its `TieringOffloadingSpec`.

vLLM names a chunk by a hash of all tokens up to its end, and by its group of layers. It is one row of the primary tier, in the
host's memory, with the parts of all workers side by side: that row is a page here, copied from where it lies and into it.

All calls come from vLLM's scheduler, which nothing here holds up: look-ups read an index in memory and answer at once, copies are
jobs of threads. Jobs that wait are done together, as the core hashes many pages at once faster than few. Loads have threads of
their own, so that they never wait for stores, which do wait when the disk falls behind. A store is done when its pages are in
memory. A chunk that is being stored is in the primary tier until it is, so a look-up that
comes here never has to say "later".

What fails is a miss or a job that failed, and a warning in the log. A key that a request could not load is a miss for the rest of
that request, as the scheduler would otherwise ask for it for ever.

Limits: one process for a directory, so that each data-parallel replica has its own. vLLM does not tell a tier the revision of
the weights, nor that they were changed in place: the revision is an option. A chunk of a group that fills its row in part has
what lay there before in the rest of it, so that equal ones are stored more than once.
"""

import hashlib
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from pfimg._core import threads
from pfimg.engines.tier import TierOptions
from pfimg.page_index import CacheIdentity

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats

_log = logging.getLogger("pfimg")

# Of each kind: while the core works on the bytes of some jobs, the keys of others are looked up.
_THREADS = 2

# Pages that keep all of the core's threads busy, each with as many as one instruction hashes. More at once gain nothing and would
# have the first job wait for the last.
_AT_ONCE = 16 * threads()

# Copies the pages of some keys from or into rows of the primary tier, and returns the keys for which that is done.
_Copy = Callable[[list[OffloadKey], list[memoryview]], list[OffloadKey]]

# Between two readings of the cache's numbers, for which the core looks through the directory.
_MEASURED_SECONDS = 30.0

# Numbers of `PageCache.stats` by name. vLLM itself counts look-ups, hits, jobs and bytes of a tier.
_COUNTERS = {
    "hits_arena": "Chunks that were loaded from the tier's memory.",
    "hits_store": "Chunks that were loaded from the tier's directory.",
    "hits_registry": "Chunks that were loaded from the registry behind it.",
    "misses": "Chunks that were to be loaded and were not there.",
    "lost": "Keys whose chunk was found to be gone or damaged.",
    "corrupt": "Chunks that did not hash to their name.",
    "evicted": "Chunks that made room for others in the tier's memory.",
    "written_bytes": "Bytes of chunks written to the tier's directory, before compression; equal ones are written once.",
    "write_errors": "Failures to write to the tier's directory.",
}
_GAUGES = {
    "arena_bytes": "Bytes of the chunks in the tier's memory.",
    "indexed_bytes": "Bytes of all chunks in the tier, equal ones counted once.",
    "keys": "Keys that have a chunk in the tier.",
    "waiting_pages": "Chunks in memory that wait to be written to the tier's directory.",
}


class _Jobs:
    """Threads that run jobs of one kind, in order, those that wait together."""

    def __init__(self, name: str, run: Callable[[list[TransferJob]], None]) -> None:
        self._run = run
        self._waiting: deque[TransferJob] = deque()
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: TransferJob) -> bool:
        """False when it will never run."""
        with self._changed:
            if not self._closed:
                self._waiting.append(job)
                self._changed.notify_all()
            return not self._closed

    def drain(self) -> None:
        """Waits until all jobs have been run."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._running))

    def close(self) -> None:
        """Gives up jobs that have not begun, and waits for the others."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            self._run(jobs)
            with self._changed:
                self._running -= len(jobs)
                self._changed.notify_all()

    def _take(self) -> list[TransferJob]:
        """The next jobs; none when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            jobs: list[TransferJob] = []
            pages = 0
            while self._waiting and pages < _AT_ONCE:
                jobs.append(self._waiting.popleft())
                pages += len(jobs[-1].keys)
            self._running += len(jobs)
            return jobs


class PfimgTier(SecondaryTierManager):
    """A secondary tier in a `PageCache`.

    Args:
        offloading_spec: What vLLM says of the model, its chunks and how it is spread.
        primary_kv_view: The primary tier's memory, one chunk a row.
        tier_type: The name of this class in the configuration.
        backpressure_detector: What tells vLLM to store less; stores report their failures and their time to it.
        enable_kv_events: Tells of chunks that came and went as KV events, if vLLM publishes any.
        locality: `LOCAL` or `REMOTE`, for requests that choose among tiers; None: neither.
        options: The words of `TierOptions`.

    Attributes:
        cache: Where the pages are.
        namespace: Under which name.

    Raises:
        FormatError: A word of the configuration is no option, or the arena has room for less than two chunks.
        StoreError: Another process has the directory open, or it holds pages of the same name but another identity.
        OSError: The space for the arena is not there.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        *,
        enable_kv_events: bool = False,
        locality: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if locality is None else Locality(locality)
        # Keys that came (True) or went since events were taken, in order.
        self._changed: deque[tuple[OffloadKey, bool]] | None = None
        if enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events:
            self._changed = deque()
        elif enable_kv_events:
            _log.warning("enable_kv_events tells nothing: vLLM publishes no KV events (--kv-events-config)")
        # Keys that could not be loaded, by request, for as long as the request lasts.
        self._failed: dict[str, set[OffloadKey]] = {}
        self._jobs: dict[int, TransferJob] = {}
        self._finished: deque[JobResult] = deque()
        self._measured: dict[str, int] | None = None
        self._told: dict[str, int] = {}
        self._measure_at = 0.0
        asked = TierOptions.of(options)
        identity, part = _identity(offloading_spec, asked, self.block_size_bytes)
        self.cache, self.namespace = asked.open(identity, self.block_size_bytes, part)
        if self._changed is not None:
            self.cache.on_change(self._on_change)
        self._memory = primary_kv_view.cast("B")
        self._loading = _Jobs("pfimg-load", partial(self._run, self._load))
        self._storing = _Jobs("pfimg-store", partial(self._run, self._store))
        self._measuring = ThreadPoolExecutor(1, "pfimg-measure")
        _log.info("pfimg holds chunks of %s, %d bytes each", self.namespace, self.block_size_bytes)

    # Look-ups.

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT if there is a chunk, as far as memory tells; MISS if not, or if this request could not load it."""
        if self._known((key,))[0] and key not in self._failed.get(req_context.req_id, ()):
            return LookupResult.HIT
        return LookupResult.MISS

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Marks chunks as used, so that others go before them."""
        del req_context
        self._known(tuple(keys))

    def _known(self, keys: Sequence[OffloadKey]) -> list[bool]:
        try:
            return self.cache.known(self.namespace, keys)
        except Exception:  # noqa: BLE001 - whatever it is, it is a miss
            _log.warning("cannot look up %d chunks", len(keys), exc_info=True)
            return [False] * len(keys)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Chunks are stored as they come; nothing has to be there as a whole."""
        self._failed[req_context.req_id] = set()
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forgets what the request could not load."""
        self._failed.pop(req_context.req_id, None)

    # Jobs.

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Has chunks copied into the cache by a thread.

        One that is there already costs no more than its hash, and heals a chunk that was lost unnoticed.
        """
        self._submit(self._storing, job_metadata)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Has chunks verified and copied into the primary tier by a thread."""
        self._submit(self._loading, job_metadata)

    def _submit(self, jobs: _Jobs, job: TransferJob) -> None:
        self._jobs[job.job_id] = job
        if not jobs.submit(job):
            self._finished.append(JobResult(job.job_id, success=False))

    def _run(self, copy: _Copy, jobs: list[TransferJob]) -> None:
        """In a thread: copies the chunks of some jobs, and leaves their results."""
        start, size, copied = time.monotonic(), self.block_size_bytes, set[OffloadKey]()
        keys = [key for job in jobs for key in job.keys]
        try:
            chunks = [chunk for job in jobs for chunk in job.chunk_ids.tolist()]
            copied.update(copy(keys, [self._memory[size * chunk : size * (chunk + 1)] for chunk in chunks]))
        except Exception:  # noqa: BLE001 - whatever it is, the jobs failed, and their results say so
            _log.warning("cannot %s %d chunks", "load" if jobs[0].is_promotion else "store", len(keys), exc_info=True)
        taken = time.monotonic() - start
        for job in jobs:
            done = tuple(key for key in job.keys if key in copied)
            whole = len(done) == len(job.keys)
            some = done if done and not whole else None
            # Its part of the time, so that the sum over all jobs is the time that was spent.
            share = taken * len(job.keys) / max(1, len(keys))
            self._finished.append(JobResult(job.job_id, whole, some, transfer_time=share, transfer_bytes=size * len(done)))

    def _store(self, keys: list[OffloadKey], rows: list[memoryview]) -> list[OffloadKey]:
        self.cache.put_many(self.namespace, keys, rows)
        return keys

    def _load(self, keys: list[OffloadKey], rows: list[memoryview]) -> list[OffloadKey]:
        found = self.cache.get_many(self.namespace, keys, out=rows)
        if not all(found):
            _log.warning("%d of %d chunks that were to be loaded are not there any more", found.count(False), len(keys))
        return [key for key, there in zip(keys, found, strict=True) if there]

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """The results of all jobs that have ended since the last call; of loads in part, with the keys that are there."""
        results = []
        while self._finished:
            result = self._finished.popleft()
            job = self._jobs.pop(result.job_id)
            failed = self._failed.get(job.req_context.req_id)
            if failed is not None and job.is_promotion and not result.success:
                failed.update(set(job.keys).difference(result.successful_keys or ()))
            elif failed and not job.is_promotion and result.success:
                failed.difference_update(job.keys)
            results.append(result)
        return results

    def drain_jobs(self) -> None:
        """Waits until no job touches the primary tier's memory; `get_finished_jobs` has all results then."""
        for jobs in (self._loading, self._storing):
            jobs.drain()

    def shutdown(self) -> None:
        """Gives up jobs that have not begun, waits for the others, and writes what is in memory only to the directory."""
        self._measure_at = math.inf
        for jobs in (self._loading, self._storing):
            jobs.close()
        self._measuring.shutdown(cancel_futures=True)
        try:
            self.cache.close()
        except Exception:  # noqa: BLE001 - vLLM would keep its memory mapped
            _log.warning("cannot write all chunks at the end", exc_info=True)
        # vLLM unmaps the memory next.
        self._memory.release()

    # What the outside is told.

    def _on_change(self, namespace: str, key: bytes | str, size: int) -> None:
        if namespace == self.namespace and self._changed is not None:
            self._changed.append((OffloadKey(key), size > 0))

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Which chunks came and which went since the last call; of one that did both, only what it did last."""
        last: dict[OffloadKey, bool] = {}
        while self._changed:
            key, came = self._changed.popleft()
            last[key] = came
        told = {removed: [key for key, came in last.items() if came != removed] for removed in (False, True)}
        return [OffloadingEvent(keys, self.medium, removed, locality=self.locality) for removed, keys in told.items() if keys]

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """The numbers of the cache, as vLLM publishes them on `/metrics`."""
        del extra_config
        counters = {_metric(name): OffloadingCounterMetadata(text) for name, text in _COUNTERS.items()}
        return counters | {_metric(name): OffloadingGaugeMetadata(text) for name, text in _GAUGES.items()}

    def get_stats(self) -> "OffloadingConnectorStats | None":
        """The numbers of the cache, when a thread has read them anew; counters tell what was added since."""
        now = time.monotonic()
        if now >= self._measure_at:
            self._measure_at = now + _MEASURED_SECONDS
            self._measuring.submit(self._measure)
        measured, self._measured = self._measured, None
        if measured is None:
            return None
        # It belongs to the connector, which has all of the engine imported when it asks; a tier alone needs little of it.
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats  # noqa: PLC0415

        stats = OffloadingConnectorStats()
        for name in _COUNTERS:
            stats.increase_counter(_metric(name), measured[name] - self._told.get(name, 0))
        for name in _GAUGES:
            stats.set_gauge(_metric(name), measured[name])
        self._told = measured
        return stats

    def _measure(self) -> None:
        try:
            self._measured = self.cache.stats()
        except Exception:  # noqa: BLE001 - numbers are not worth a failure
            _log.warning("cannot tell the numbers of the cache", exc_info=True)


def _metric(name: str) -> str:
    """As `PageCache.metrics` names it; what is no gauge gets `_total` at its end from vLLM."""
    return f"pfimg_cache_{name}"


def _identity(spec: OffloadingSpec, options: TierOptions, page_bytes: int) -> tuple[CacheIdentity, str]:
    """What the chunks are of, and which part of the model the engine has, as a name."""
    config, parallel = spec.config, spec.config.parallel
    spread = {"tp": parallel.tp_size, "pp": parallel.pp_size, "pcp": parallel.pcp_size, "dcp": parallel.dcp_size}
    layout = config.kv_cache_layout or "unnamed"
    if config.canonical_layout:
        # As above: whoever asks for this layout has it imported.
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping import (  # noqa: PLC0415
            canonical_format_id,
        )

        layout = f"canonical {canonical_format_id(config.kv_cache_layout)}"
    if config.replicated_layout:
        layout += ", one copy for all workers"
    if config.replicated_layout or (config.canonical_layout and parallel.is_parallelism_agnostic):
        # The same bytes however the model is spread.
        spread = dict.fromkeys(spread, 1)
    groups = [[group.tokens_per_block, *group.layer_names] for group in config.groups]
    layers = hashlib.blake2b(json.dumps(groups).encode(), digest_size=8).hexdigest()
    identity = CacheIdentity(
        model=options.model or config.model.name,
        revision=options.revision,
        dtype=config.model.dtype,
        geometry=(
            page_bytes,
            config.cache.tokens_per_hash,
            config.cache.blocks_per_chunk,
            config.worker_kv_bytes_per_block,
            *(number for group in config.groups for number in (group.tokens_per_block, len(group.layer_names))),
            *spread.values(),
        ),
        layout=f"{layout}, layers {layers}",
        tp_size=spread["tp"],
    )
    names = [f"{axis}{size}" for axis, size in spread.items() if size > 1]
    # Replicas hold the same pages, but a directory belongs to one process.
    replica = [f"dp{parallel.data_parallel_index}"] if parallel.data_parallel_size > 1 else []
    return identity, "-".join([*names, *replica])

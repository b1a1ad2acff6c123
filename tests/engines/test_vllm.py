"""What is special to vLLM: job results, requests, events, metrics, identity, and its own manager above our tier."""

import importlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.drivers import PAGE_BYTES, open_engine
from tests.engines.test_contract import keys, pages

import pfimg

pytestmark = pytest.mark.torch

Open = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    opened = []

    def start(**options: Any) -> Any:
        opened.append(open_engine("vllm", tmp_path / "tier", **options))
        return opened[-1]

    yield start
    for engine in opened:
        engine.close()


@pytest.fixture
def driver() -> Any:
    """The module with vLLM's types, where vLLM is there."""
    needed("vllm.v1.kv_offload.tiering.factory")
    return importlib.import_module("tests.engines.vllm_driver")


def needed(*modules: str) -> None:
    """Skips the test where modules of vLLM lack what they need; with PFIMG_REQUIRE_ENGINES=1 it fails."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if os.environ.get("PFIMG_REQUIRE_ENGINES") == "1":
                raise
            pytest.skip(f"{module} does not import: make engines ({error})")


def request(driver: Any, name: str = "request") -> Any:
    return driver.ReqContext(name)


def results(engine: Any) -> dict[int, Any]:
    """Of all jobs that were submitted."""
    engine.tier.drain_jobs()
    return {result.job_id: result for result in engine.tier.get_finished_jobs()}


def test_a_row_that_no_page_came_for_is_not_told_to_be_there(start: Open, driver: Any) -> None:
    engine = start()
    assert engine.store(keys(3), pages(3))
    named = driver.offload_keys([*keys(2), *keys(2, 10)])
    number = engine.submit(named, [5, 9, 7, 8], load=True)
    result = results(engine)[number]
    assert not result.success
    assert set(result.successful_keys) == set(named[:2])
    assert result.transfer_bytes == 2 * PAGE_BYTES
    assert engine.store(keys(2, 10), pages(2))
    assert results(engine) == {}


def test_a_job_is_done_in_the_primary_tiers_own_memory(start: Open, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rows = start(), np.zeros((4, PAGE_BYTES), np.uint8)
    tier = driver.make_tier({"arena_bytes": "1MiB"}, rows=rows)
    seen: list[memoryview] = []
    put_many = tier.cache.put_many

    def look(space: str, named: list[bytes], given: list[memoryview]) -> None:
        seen.extend(given)
        put_many(space, named, given)

    monkeypatch.setattr(tier.cache, "put_many", look)
    job = driver.TransferJob(1, driver.offload_keys(keys(2)), np.array([3, 1]), is_promotion=False, req_context=request(driver))
    tier.submit_store(job)
    tier.drain_jobs()
    addresses = [np.frombuffer(row, np.uint8).ctypes.data for row in seen]
    assert addresses == [rows[3].ctypes.data, rows[1].ctypes.data]
    seen.clear()
    tier.shutdown()
    assert engine.lookup(keys(2)) == 0, "a tier without a directory shares nothing"


def test_nothing_of_the_primary_tiers_memory_is_held_after_the_end(driver: Any) -> None:
    memory = bytearray(2 * PAGE_BYTES)
    view = memoryview(memory).cast("B", (2, PAGE_BYTES))
    tier = driver.SecondaryTierFactory.create_secondary_tier(
        driver.tier_config({"arena_bytes": "1MiB"}), view, driver.Spec(driver.config())
    )
    job = driver.TransferJob(1, driver.offload_keys(keys(2)), np.array([0, 1]), is_promotion=False, req_context=request(driver))
    tier.submit_store(job)
    tier.drain_jobs()
    tier.shutdown()
    view.release()
    tier._primary_kv_view.release()
    memory.clear()  # BufferError while anything refers to it


def test_a_request_does_not_ask_for_ever_for_what_it_could_not_load(
    start: Open, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, one, other = start(), request(driver, "one"), request(driver, "other")
    hit, miss = driver.LookupResult.HIT, driver.LookupResult.MISS
    assert engine.store(keys(1), pages(1))
    (key,) = driver.offload_keys(keys(1))
    for context in (one, other):
        engine.tier.on_new_request(context)

    def fail(*_: Any, **__: Any) -> list[bool]:
        raise OSError("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(engine.cache, "get_many", fail)
        number = engine.submit([key], [0], load=True, request=one)
        result = results(engine)[number]
    assert (result.success, result.successful_keys) == (False, None)
    assert [engine.tier.lookup(key, context) for context in (one, other)] == [miss, hit]
    # Stored anew, it is there for this request too.
    number = engine.submit([key], [0], load=False, request=one)
    assert results(engine)[number].success
    assert engine.tier.lookup(key, one) is hit
    for context in (one, other):
        engine.tier.on_request_finished(context)
    assert engine.tier._failed == {}


def test_chunks_of_another_group_are_others(start: Open, driver: Any) -> None:
    engine = start()
    assert engine.store(keys(1), pages(1))
    (other,) = driver.offload_keys(keys(1), group=1)
    assert engine.tier.lookup(other, request(driver)) is driver.LookupResult.MISS


def test_a_look_up_does_not_wait_for_the_disk(start: Open, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(arena_bytes=4 * PAGE_BYTES)
    for number in range(10):
        assert engine.store(keys(1, number), pages(1, number))
    engine.cache.flush()

    def has_many(*_: Any) -> list[bool]:
        raise AssertionError("the disk was asked")

    monkeypatch.setattr(engine.cache._levels.store, "has_many", has_many)
    assert engine.lookup(keys(10)) == 10
    engine.tier.touch(driver.offload_keys(keys(10)), request(driver))


def test_loads_do_not_wait_for_stores(start: Open, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, full = start(), threading.Event()
    assert engine.store(keys(1), pages(1))
    put_many = engine.cache.put_many

    def wait(*arguments: Any) -> None:
        assert full.wait(60)
        put_many(*arguments)

    monkeypatch.setattr(engine.cache, "put_many", wait)
    waiting = {engine.submit(driver.offload_keys(keys(1, 10 + number)), [100 + number], load=False) for number in range(8)}
    assert engine.load(keys(1)) == [pages(1)[0].tobytes()]
    full.set()
    found = results(engine)
    assert set(found) == waiting
    assert all(result.success for result in found.values())


def test_jobs_that_wait_are_done_together_and_end_each_for_itself(
    start: Open, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, content, free = start(), pages(8), threading.Event()
    assert engine.store(keys(8), content)
    get_many, batches = engine.cache.get_many, []

    def wait(space: str, named: list[bytes], *, out: Any) -> list[bool]:
        assert free.wait(60)
        batches.append(len(named))
        found: list[bool] = get_many(space, named, out=out)
        return found

    monkeypatch.setattr(engine.cache, "get_many", wait)
    numbers = [engine.submit(driver.offload_keys(keys(1, at)), [at], load=True) for at in (*range(8), 99)]
    free.set()
    found = results(engine)
    assert [found[number].success for number in numbers] == [True] * 8 + [False]
    assert sum(result.transfer_bytes for result in found.values()) == 8 * PAGE_BYTES
    assert np.array_equal(engine._rows[:8], content)
    # Two threads had one of the first each.
    assert sum(batches) == 9
    assert len(batches) <= 3


def test_touched_chunks_stay(start: Open, driver: Any) -> None:
    engine, content = start(arena_bytes=4 * PAGE_BYTES, store_bytes=4 * PAGE_BYTES), pages(6)
    for number in range(4):
        assert engine.store(keys(1, number), content[number : number + 1])
        engine.cache.flush()
    engine.tier.touch(driver.offload_keys(keys(1)), request(driver))
    for number in range(4, 6):
        assert engine.store(keys(1, number), content[number : number + 1])
        engine.cache.flush()
    assert [engine.lookup(keys(1, number)) for number in range(6)] == [1, 0, 0, 1, 1, 1]


def test_a_closed_cache_is_misses_and_failed_jobs(start: Open, driver: Any) -> None:
    engine = start()
    assert engine.store(keys(1), pages(1))
    engine.cache.close()
    assert engine.lookup(keys(1)) == 0
    assert engine.load(keys(1)) == [None]
    assert not engine.store(keys(1, 5), pages(1))
    engine.close()
    number = engine.submit(driver.offload_keys(keys(1)), [0], load=True)
    assert [result.job_id for result in engine.tier.get_finished_jobs()] == [number]
    engine.tier.drain_jobs()
    assert engine.tier.get_stats() is None


def test_events_tell_what_came_and_what_went(start: Open, driver: Any) -> None:
    engine = start(arena_bytes=4 * PAGE_BYTES, store_bytes=4 * PAGE_BYTES, enable_kv_events=True, locality="LOCAL")
    assert engine.store(keys(4), pages(4))
    engine.cache.flush()
    (came,) = engine.tier.take_events()
    assert (came.keys, came.removed) == (driver.offload_keys(keys(4)), False)
    assert (came.medium.value, came.locality.value) == ("STORAGE", "LOCAL")
    assert list(engine.tier.take_events()) == []
    assert engine.store(keys(4, 10), pages(4, 1))
    engine.cache.flush()
    came, went = engine.tier.take_events()
    assert (set(came.keys), came.removed) == (set(driver.offload_keys(keys(4, 10))), False)
    assert (set(went.keys), went.removed) == (set(driver.offload_keys(keys(4))), True)


def test_events_are_told_to_nobody_where_vllm_publishes_none(driver: Any) -> None:
    told = replace(driver.config(), enable_kv_cache_events=False)
    tier = driver.make_tier({"arena_bytes": "1MiB", "enable_kv_events": True}, told)
    tier.submit_store(
        driver.TransferJob(1, driver.offload_keys(keys(1)), np.array([0]), is_promotion=False, req_context=request(driver))
    )
    tier.drain_jobs()
    assert list(tier.take_events()) == []
    tier.shutdown()


def test_metrics_are_those_of_the_cache(start: Open, driver: Any) -> None:
    needed("vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics")
    engine = start()
    defined = driver.SecondaryTierFactory.get_tier_class(driver.tier_config({})).build_metric_definitions({})
    # What Prometheus' client makes of the names is what the cache itself says.
    names = {name if "Gauge" in type(metric).__name__ else f"{name}_total" for name, metric in defined.items()}
    assert names <= {line.split()[0] for line in engine.cache.metrics().splitlines() if not line.startswith("#")}
    assert engine.store(keys(3), pages(3))

    def measure() -> dict[str, float]:
        engine.tier._measure_at = 0.0
        for _ in range(1000):
            stats = engine.tier.get_stats()
            if stats is not None:
                return dict(stats.reduce())
            time.sleep(0.01)
        raise AssertionError("the numbers never came")

    first = measure()
    assert set(first) == set(defined)
    assert (first["pfimg_cache_keys"], first["pfimg_cache_hits_arena"]) == (3, 0)
    engine.load(keys(3))
    measure()  # it may have been read before the load
    engine.load(keys(2))
    assert measure()["pfimg_cache_hits_arena"] <= 5
    assert engine.tier.get_stats() is None, "not at every step"


SPREADS: list[dict[str, Any]] = [
    {"tp_size": 2, "world_size": 2},
    {"pp_size": 2, "world_size": 2},
    {"dcp_size": 2, "tp_size": 2, "world_size": 2},
    {"data_parallel_size": 2, "data_parallel_index": 1},
]


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_parts_of_another_spread_are_kept_apart(driver: Any, tmp_path: Path, spread: dict[str, Any]) -> None:
    one = driver.make_tier({"path": str(tmp_path), "arena_bytes": "1MiB"})
    # Each in its directory, so that both may be open at a time.
    other = driver.make_tier({"path": str(tmp_path), "arena_bytes": "1MiB"}, driver.config(**spread))
    one.cache.put_many(one.namespace, [b"key"], [bytes(PAGE_BYTES)])
    assert one.namespace != other.namespace
    assert other.cache.known(other.namespace, [b"key"]) == [False]
    for tier in (one, other):
        tier.shutdown()


def other_configs(driver: Any) -> dict[str, Any]:
    told = driver.config()
    group = told.groups[0]
    return {
        "dtype": replace(told, model=replace(told.model, dtype="fp8_e4m3")),
        "layout": replace(told, kv_cache_layout="LBHNC"),
        "layers": replace(told, groups=(replace(group, layer_names=group.layer_names[1:]),)),
        "names": replace(told, groups=(replace(group, layer_names=tuple(f"draft.{name}" for name in group.layer_names)),)),
        "tokens": replace(told, groups=(replace(group, tokens_per_block=32),)),
        "hash": replace(told, cache=replace(told.cache, tokens_per_hash=8)),
        "copies": replace(told, replicated_layout=True),
    }


@pytest.mark.parametrize("what", ["dtype", "layout", "layers", "names", "tokens", "hash", "copies"])
def test_another_identity_is_refused(driver: Any, tmp_path: Path, what: str) -> None:
    options = {"path": str(tmp_path), "arena_bytes": "1MiB"}
    driver.make_tier(options).shutdown()
    with pytest.raises(pfimg.StoreError, match="another identity"):
        driver.make_tier(options, other_configs(driver)[what])
    driver.make_tier(options).shutdown()


def test_a_layout_that_is_the_same_on_any_number_of_workers_is_shared(driver: Any, tmp_path: Path) -> None:
    needed("vllm.distributed.kv_transfer.kv_connector.v1.offloading.canonical_mapping")
    options = {"path": str(tmp_path), "arena_bytes": "1MiB"}
    for size in (1, 2):
        told = driver.config(tp_size=size, world_size=size, is_parallelism_agnostic=True)
        tier = driver.make_tier(options, replace(told, canonical_layout=True, worker_kv_bytes_per_block=PAGE_BYTES))
        assert tier.cache.known(tier.namespace, [b"key"]) == [size == 2]
        tier.cache.put_many(tier.namespace, [b"key"], [bytes(PAGE_BYTES)])
        tier.shutdown()


MANAGER = ("vllm.v1.kv_offload.factory", "vllm.v1.kv_offload.tiering.spec")


class Engine:
    """vLLM's own manager, primary tier and all, from its own configuration; the GPU's part is a copy on the CPU."""

    def __init__(self, driver: Any, tier: dict[str, Any], chunks: int) -> None:
        extra = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": chunks * PAGE_BYTES, "secondary_tiers": [tier]}
        told = replace(driver.config(), extra_config=extra, engine_id=uuid.uuid4().hex)
        factory = importlib.import_module("vllm.v1.kv_offload.factory").OffloadingSpecFactory
        self._base = importlib.import_module("vllm.v1.kv_offload.base")
        self.manager = factory.create_spec(told).get_manager()
        self._view = np.asarray(self.manager.primary_tier.get_kv_memoryview())

    def step(self) -> None:
        self.manager.on_schedule_end(self._base.ScheduleEndContext((), ()))

    def settle(self) -> None:
        while self.manager.has_pending_work():
            self.step()
            time.sleep(0.001)

    def begin(self, name: str) -> Any:
        context = self._base.ReqContext(name)
        self.manager.on_new_request(context)
        return context

    def store(self, named: list[bytes], content: Any, context: Any) -> None:
        prepared = self.manager.prepare_store(named, context)
        self._view[prepared.store_spec.chunk_ids] = content.view(np.int8)
        self.manager.complete_store(prepared.keys_to_store, context)
        self.step()

    def hits(self, named: list[bytes], context: Any) -> int:
        """Leading hits, when all that is on its way has come."""
        while True:
            found = [self.manager.lookup(key, context) for key in named]
            self.step()
            if not {self._base.LookupResult.HIT_PENDING, self._base.LookupResult.RETRY} & set(found):
                return next((at for at, hit in enumerate(found) if hit is not self._base.LookupResult.HIT), len(found))
            time.sleep(0.001)

    def load(self, named: list[bytes], context: Any) -> bytes:
        spec = self.manager.prepare_load(named, context)
        content: bytes = self._view[spec.chunk_ids].tobytes()
        self.manager.complete_load(named, context)
        return content

    def close(self) -> None:
        del self._view
        self.manager.shutdown()


def test_under_vllms_own_manager_chunks_outlive_it(driver: Any, tmp_path: Path) -> None:
    needed(*MANAGER)
    tier = driver.tier_config({"path": str(tmp_path), "arena_bytes": "4MiB", "revision": "main"})
    content, named = pages(24), driver.offload_keys(keys(24))
    first = Engine(driver, tier, chunks=8)
    for at in range(0, 24, 8):
        context = first.begin(f"request {at}")
        first.store(named[at : at + 8], content[at : at + 8], context)
        first.settle()
        first.manager.on_request_finished(context)
    first.close()

    second = Engine(driver, tier, chunks=8)
    for at in range(0, 24, 8):
        context = second.begin(f"request {at}")
        assert second.hits(named[at : at + 8], context) == 8
        assert second.load(named[at : at + 8], context) == content[at : at + 8].tobytes()
        second.manager.on_request_finished(context)
    second.close()


def test_under_vllms_own_manager_a_damaged_chunk_is_computed_again(driver: Any, tmp_path: Path) -> None:
    needed(*MANAGER)
    tier = driver.tier_config({"path": str(tmp_path), "arena_bytes": "4MiB"})
    content, named = pages(4), driver.offload_keys(keys(4))
    first = Engine(driver, tier, chunks=8)
    first.store(named, content, first.begin("first"))
    first.settle()
    first.close()
    blobs = sorted(tmp_path.rglob("*.zst"))
    assert len(blobs) == 4
    blobs[0].write_bytes(bytes(len(blobs[0].read_bytes())))

    second = Engine(driver, tier, chunks=8)
    context = second.begin("second")
    found = second.hits(named, context)
    assert found < 4
    missing = [key for key in named if second.hits([key], context) == 0]
    assert len(missing) == 1
    at = named.index(missing[0])
    second.store(missing, content[at : at + 1], context)
    second.settle()
    assert second.load(named, context) == content.tobytes()
    second.manager.reset_cache()
    second.manager.on_reset_flushed()
    assert second.hits(named, context) == 4
    assert second.load(named, context) == content.tobytes()
    second.close()

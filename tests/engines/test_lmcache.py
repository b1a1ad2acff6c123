"""What is special to LMCache: its own storage manager and check on top, locks, listeners, layouts, the serde."""

import argparse
import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.drivers import PAGE_BYTES, Rows
from tests.engines.test_contract import keys, pages

import pfimg

try:
    import torch
    from lmcache.v1.check.check_mode_test_l2_adapter import run_test_mode
    from lmcache.v1.distributed.api import GroupedObjectKeys, MemoryLayoutDesc, ObjectKey, PrefetchTaskSpec
    from lmcache.v1.distributed.config import EvictionConfig, L1ManagerConfig, L1MemoryManagerConfig, StorageManagerConfig
    from lmcache.v1.distributed.internal_api import L2AdapterListener
    from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
    from lmcache.v1.distributed.serde import SerdeConfig, create_serde_processor
    from lmcache.v1.distributed.storage_manager import StorageManager
    from tests.engines.lmcache_driver import DTYPE, LAYOUTS, SHAPE, Controller, create, documented, key_of, page_of

    from pfimg.engines.lmcache import PfimgFloatDeserializer, PfimgFloatSerializer
except ImportError as error:
    if os.environ.get("PFIMG_REQUIRE_ENGINES") == "1":
        raise
    pytest.skip(f"lmcache is not installed: make engines ({error})", allow_module_level=True)

pytestmark = pytest.mark.torch

Open = Callable[..., Controller]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    """LMCache's controllers with our adapter; options of the adapter replace those of a small tier, None leaves one out."""
    opened: list[Controller] = []

    def start(**options: Any) -> Controller:
        params = {"path": str(tmp_path / "tier"), "arena_bytes": "8MiB", "page_bytes": PAGE_BYTES} | options
        opened.append(Controller(create(documented({word: value for word, value in params.items() if value is not None}))))
        return opened[-1]

    yield start
    for controller in opened:
        controller.close()


def named(count: int, first: int = 0, **parts: Any) -> list[ObjectKey]:
    return [key_of(key, **parts) for key in keys(count, first)]


def store(engine: Controller, asked: list[ObjectKey], content: Rows, **layout: Any) -> Any:
    return engine.submit("store", asked, [page_of(torch.from_numpy(page.copy()), **layout) for page in content]).result(60)


def lookup(engine: Controller, asked: list[ObjectKey], layouts: dict[int, MemoryLayoutDesc] = LAYOUTS) -> list[int]:
    found: list[int] = engine.submit("lookup", asked, layouts).result(60).get_indices_list()
    return found


def load(engine: Controller, asked: list[ObjectKey], **layout: Any) -> list[bytes | None]:
    memory = torch.zeros(len(asked), PAGE_BYTES, dtype=torch.uint8)
    found = engine.submit("load", asked, [page_of(row, **layout) for row in memory]).result(60)
    return [memory[index].numpy().tobytes() if found.test(index) else None for index in range(len(asked))]


def rows(content: Rows) -> list[bytes]:
    return [page.tobytes() for page in content]


class Told(L2AdapterListener):
    """What LMCache's eviction policies are told."""

    def __init__(self) -> None:
        self.here: dict[ObjectKey, int] = {}
        self.accessed: list[ObjectKey] = []

    def on_l2_keys_stored(self, told: list[ObjectKey], sizes: list[int]) -> None:
        for key, size in zip(told, sizes, strict=True):
            self.here[key] = self.here.get(key, 0) + size

    def on_l2_keys_accessed(self, told: list[ObjectKey]) -> None:
        self.accessed += told

    def on_l2_keys_deleted(self, told: list[ObjectKey]) -> None:
        for key in told:
            self.here.pop(key, None)


def manager(spec: dict[str, Any]) -> Any:
    """LMCache's own storage manager: an L1 of 16 MiB, its controllers, and our adapter."""
    l1 = L1ManagerConfig(L1MemoryManagerConfig(16 << 20, use_lazy=False, shm_name=""))
    adapters = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(spec)]))
    return StorageManager(StorageManagerConfig(l1, EvictionConfig("LRU"), adapters))


@pytest.mark.parametrize("serde", [None, {"type": "pfimg_float"}], ids=["plain", "serde"])
def test_pages_come_back_through_the_storage_manager_of_a_new_process(tmp_path: Path, serde: dict[str, str] | None) -> None:
    spec = documented({"path": str(tmp_path), "arena_bytes": "8MiB"}) | ({} if serde is None else {"serde": serde})
    asked = named(8)
    content = {key: torch.randn(SHAPE, generator=torch.Generator().manual_seed(n)).to(DTYPE) for n, key in enumerate(asked)}
    first = manager(spec)
    for key, page in first.reserve_write(asked, LAYOUTS[0]).items():
        page.tensor.copy_(content[key])
    first.finish_write(asked)
    deadline = time.monotonic() + 30
    while len(first.l2_adapters()[0][1].list_l2_keys().entries) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    used = first.get_usage_bytes_by_cache_salt()[""]
    assert used == 8 * PAGE_BYTES if serde is None else used < 0.7 * 8 * PAGE_BYTES
    first.close()

    second = manager(spec)
    row = GroupedObjectKeys([*asked, *named(1, 100)], 0, LAYOUTS[0], -1)
    task = second.submit_prefetch_task(PrefetchTaskSpec([row]))
    assert second.wait_prefetch_status(task, 30)
    assert second.query_prefetch_status(task).l2_hit_count == 8
    with second.read_prefetched_results(asked) as found:
        assert all(torch.equal(page.tensor, content[key]) for key, page in zip(asked, found, strict=True))
    second.finish_read_prefetched(asked)
    assert second.l2_adapters()[0][1].report_status()["locked_key_count"] == 0
    second.close()


def test_the_check_that_lmcache_ships_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = json.dumps(documented({"path": str(tmp_path), "arena_bytes": "8MiB"}))
    asyncio.run(run_test_mode("llama", l2_adapter=[spec], num_keys=16))
    told = capsys.readouterr().out
    assert told.count("16/16") >= 7
    assert "FAIL" not in told
    assert "Failed" not in told


def test_pages_of_another_layout_rank_model_or_tenant_are_misses(start: Open) -> None:
    engine, content = start(), pages(3)
    assert store(engine, named(3), content).bytes_transferred() == 3 * PAGE_BYTES
    other = {"shape": torch.Size([2, 4, 8, 512]), "dtype": torch.bfloat16}
    halves = {"shape": SHAPE, "dtype": torch.float16}
    for layout in (other, halves):
        assert lookup(engine, named(3), {0: MemoryLayoutDesc([layout["shape"]], [layout["dtype"]])}) == []
        assert load(engine, named(3), **layout) == [None] * 3
    for part in ({"rank": 1}, {"model": "other"}, {"salt": "tenant"}):
        assert lookup(engine, named(3, **part)) == []
        assert load(engine, named(3, **part)) == [None] * 3
    assert lookup(engine, named(3)) == [0, 1, 2]
    assert load(engine, named(3)) == rows(content)


def test_a_task_in_parts_is_one(start: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("pfimg.engines.lmcache._PART_PAGES", 3)
    monkeypatch.setattr("pfimg.engines.lmcache._PART_BYTES", 1)
    engine, told = start(), Told()
    engine.adapter.register_listener(told)
    asked, content = named(20), pages(20)
    assert store(engine, asked, content).bytes_transferred() == 20 * PAGE_BYTES
    assert told.here == dict.fromkeys(asked, PAGE_BYTES)
    engine.adapter.delete([asked[4], asked[19]])
    expected = [page if index not in {4, 19} else None for index, page in enumerate(rows(content))]
    assert load(engine, asked) == expected
    assert sorted(told.accessed, key=asked.index) == [key for key in asked if key in told.here]
    # A part that fails fails the task; what the others did is there.
    put_many = engine.adapter.cache.put_many

    def failing(namespace: str, some: list[bytes], buffers: Any) -> None:
        if asked[4].chunk_hash in some[0]:
            raise OSError("this part is not for you")
        put_many(namespace, some, buffers)

    monkeypatch.setattr(engine.adapter.cache, "put_many", failing)
    assert not store(engine, asked[1:], content[1:]).is_successful()
    assert "this part is not for you" in caplog.text
    assert lookup(engine, asked) == [index for index in range(20) if index != 4]


def test_a_look_up_without_layouts_finds_pages_of_any(start: Open) -> None:
    engine = start()
    store(engine, named(2), pages(2))
    store(engine, named(2, 2), pages(2), shape=SHAPE, dtype=torch.float16)
    assert lookup(engine, named(5), {}) == [0, 1, 2, 3]


@pytest.mark.parametrize("memory_only", [False, True])
def test_locked_pages_stay_until_they_are_unlocked(start: Open, *, memory_only: bool) -> None:
    room = {"path": None, "arena_bytes": 16 * PAGE_BYTES} if memory_only else {"store_bytes": 16 * PAGE_BYTES}
    engine, content = start(**room), pages(60)
    cache = engine.adapter.cache
    assert store(engine, named(4), content[:4]).is_successful()
    assert lookup(engine, named(4)) == [0, 1, 2, 3]
    assert lookup(engine, named(1)) == [0]
    for first in range(4, 60, 4):
        assert store(engine, named(4, first), content[first : first + 4]).is_successful()
        cache.flush()
    assert load(engine, named(4)) == rows(content[:4])
    engine.adapter.submit_unlock(named(4))
    engine.adapter.delete(named(4))
    assert load(engine, named(4)) == [content[0].tobytes(), None, None, None]
    engine.adapter.submit_unlock(named(1))
    engine.adapter.delete(named(4))
    assert load(engine, named(4)) == [None] * 4
    engine.adapter.submit_unlock(named(4))


def test_listeners_and_usage_follow_what_comes_and_goes(start: Open) -> None:
    engine, told = start(store_bytes=8 * PAGE_BYTES), Told()
    engine.adapter.register_listener(told)
    content = pages(24)
    for first in range(0, 24, 4):
        store(engine, named(4, first, salt="one" if first else ""), content[first : first + 4])
        engine.adapter.cache.flush()
    usage = engine.adapter.get_usage()
    assert told.here == dict.fromkeys(named(8, 16, salt="one"), PAGE_BYTES)
    assert dict(usage.bytes_by_cache_salt) == {"one": 8 * PAGE_BYTES}
    assert (usage.total_bytes_used, usage.usage_fraction) == (8 * PAGE_BYTES, 1.0)
    # The same again is no more.
    store(engine, named(4, 20, salt="one"), content[20:])
    assert engine.adapter.get_usage().total_bytes_used == 8 * PAGE_BYTES
    assert load(engine, named(2, 20, salt="one")) == rows(content[20:22])
    assert told.accessed == named(2, 20, salt="one")
    engine.adapter.delete(named(9, 16, salt="one"))
    assert told.here == {}
    assert engine.adapter.get_usage().total_bytes_used == 0


def test_what_was_there_before_is_told_after_a_restart(start: Open) -> None:
    first = start()
    store(first, named(3, salt="one"), pages(3))
    first.close()
    second, told = start(), Told()
    second.adapter.register_listener(told)
    assert dict(second.adapter.get_usage().bytes_by_cache_salt) == {"one": 3 * PAGE_BYTES}
    assert told.here == dict.fromkeys(named(3, salt="one"), PAGE_BYTES)
    second.adapter.delete(named(3, salt="one"))
    assert lookup(second, named(3, salt="one")) == []


def test_keys_are_listed_page_by_page(start: Open) -> None:
    first = start()
    expected = [*named(5), *named(3, rank=1), *named(2, model="other", salt="one")]
    store(first, expected, pages(10))
    first.close()
    adapter = start().adapter
    found, cursor = [], None
    while True:
        page = adapter.list_l2_keys(page_size=3, cursor=cursor)
        assert len(page.entries) <= 3
        found += page.entries
        cursor = page.next_page_token
        if cursor is None:
            break
    assert {entry.key.to_object_key() for entry in found} == set(expected)
    assert len(found) == 10
    assert {entry.size_bytes for entry in found} == {PAGE_BYTES}
    assert {entry.key.model_name for entry in adapter.list_l2_keys("other").entries} == {"other"}
    for bad in ({"page_size": 0}, {"cursor": "@nowhere"}, {"cursor": "no key"}):
        with pytest.raises(ValueError, match=r"cursor|page_size|hexadecimal"):
            adapter.list_l2_keys(**bad)


def test_the_first_look_up_tells_how_long_pages_are(start: Open) -> None:
    engine, content = start(page_bytes=None), pages(3)
    assert engine.adapter.cache is None
    assert lookup(engine, named(3)) == []
    assert engine.adapter.report_status()["page_bytes"] >= PAGE_BYTES
    assert store(engine, named(3), content).is_successful()
    assert load(engine, named(3)) == rows(content)


def test_pages_that_are_too_long_fail_and_cost_no_others(start: Open, caplog: pytest.LogCaptureFixture) -> None:
    engine = start(page_bytes=PAGE_BYTES)
    long = page_of(torch.zeros(2 * PAGE_BYTES, dtype=torch.uint8), torch.Size([2, 4, 32, 256]))
    content = pages(1)
    result = engine.submit("store", named(2), [long, page_of(torch.from_numpy(content[0].copy()))]).result(60)
    assert not result.is_successful()
    assert f"make it {2 * PAGE_BYTES} at least" in caplog.text
    assert lookup(engine, named(2), {}) == [1]
    assert load(engine, named(2)) == [None, content[0].tobytes()]


def test_failures_are_results_and_warnings(start: Open, caplog: pytest.LogCaptureFixture) -> None:
    engine = start()
    adapter = engine.adapter
    store(engine, named(1), pages(1))
    # One that is not there, as if it had been closed by another thread.
    adapter.cache.close()
    assert not store(engine, named(1), pages(1)).is_successful()
    assert lookup(engine, named(1)) == []
    assert load(engine, named(1)) == [None]
    adapter.submit_unlock(named(1))
    adapter.delete(named(1))
    assert "the cache is closed" in caplog.text
    engine.close()
    task = adapter.submit_store_task(named(1), [page_of(torch.zeros(PAGE_BYTES, dtype=torch.uint8))])
    assert not adapter.pop_completed_store_tasks()[task].is_successful()
    assert adapter.report_status()["is_healthy"] is False
    adapter.close()


def test_status_has_the_numbers_of_the_cache(start: Open) -> None:
    engine = start()
    store(engine, named(2), pages(2))
    load(engine, named(3))
    status = engine.adapter.report_status()
    assert status["is_healthy"] is True
    assert (status["type"], status["locked_key_count"]) == ("PfimgL2Adapter", 0)
    assert (status["cache"]["puts"], status["cache"]["hits_arena"], status["cache"]["misses"]) == (2, 2, 1)


def flat(size: int) -> Any:
    return page_of(torch.zeros(size, dtype=torch.uint8), torch.Size([size]), torch.uint8)


FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["normal", "zeros", "random bits"])
def test_the_serde_loses_nothing_and_keeps_to_its_estimate(dtype: torch.dtype, kind: str) -> None:
    serializer, deserializer = PfimgFloatSerializer(), PfimgFloatDeserializer()
    shape = torch.Size([2, 4, 16, 33])
    size = shape.numel() * dtype.itemsize
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).view(torch.uint8).flatten()
    bits = torch.from_numpy(np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8))
    content = {"normal": numbers, "zeros": torch.zeros(size, dtype=torch.uint8), "random bits": bits}[kind]
    source, most = page_of(content.clone(), shape, dtype), serializer.estimate_serialized_size(MemoryLayoutDesc([shape], [dtype]))
    out = flat(most)
    taken = serializer.serialize(source, out, named(1)[0])
    assert taken <= most <= size + 128
    if kind == "normal" and dtype in {torch.bfloat16, torch.float32}:
        assert taken < 0.92 * size
    # Storages give back as much as there is room for: what follows a frame does not matter.
    back = page_of(torch.ones(size, dtype=torch.uint8), shape, dtype)
    deserializer.deserialize(out, back, named(1)[0])
    assert torch.equal(back.raw_data, content)
    out.set_used_size(taken)
    deserializer.deserialize(out, back, named(1)[0])
    assert torch.equal(back.raw_data, content)


@pytest.mark.parametrize("kind", ["normal", "random bits"])
def test_the_serde_refuses_what_is_not_the_page(kind: str) -> None:
    serializer, deserializer = PfimgFloatSerializer(), PfimgFloatDeserializer()
    numbers = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(DTYPE).view(torch.uint8).flatten()
    content = numbers if kind == "normal" else torch.from_numpy(pages(1)[0].copy())
    out = flat(serializer.estimate_serialized_size(LAYOUTS[0]))
    taken = serializer.serialize(page_of(content), out, named(1)[0])
    back = page_of(torch.zeros(PAGE_BYTES, dtype=torch.uint8))
    whole = out.raw_data.clone()
    for place in (0, 4, 5, 8, 16, 40, 100, taken // 2, taken - 1):
        out.raw_data[place] ^= 1
        with pytest.raises(pfimg.StoreError):
            deserializer.deserialize(out, back, named(1)[0])
        out.raw_data.copy_(whole)
    out.set_used_size(taken - 1)
    with pytest.raises(pfimg.StoreError):
        deserializer.deserialize(out, back, named(1)[0])
    out.set_used_size(10)
    with pytest.raises(pfimg.FormatError, match="no page"):
        deserializer.deserialize(out, back, named(1)[0])
    out.set_used_size(taken)
    with pytest.raises(pfimg.FormatError, match="another layout"):
        deserializer.deserialize(out, page_of(torch.zeros(PAGE_BYTES, dtype=torch.uint8), SHAPE, torch.float16), named(1)[0])


def test_an_option_of_the_serde_that_is_none_is_named() -> None:
    with pytest.raises(pfimg.FormatError, match="max_worker"):
        create_serde_processor(SerdeConfig("pfimg_float", {"max_worker": 1}))


def test_a_serialized_page_is_as_long_as_it_was(start: Open) -> None:
    engine = start()
    short = flat(PAGE_BYTES)
    short.raw_data.copy_(torch.from_numpy(pages(1)[0].copy()))
    short.set_used_size(1000)
    assert engine.submit("store", named(1), [short]).result(60).bytes_transferred() == 1000
    assert lookup(engine, named(1)) == [0]
    back = flat(PAGE_BYTES)
    assert engine.submit("load", named(1), [back]).result(60).test(0)
    assert back.get_size() == 1000
    assert torch.equal(back.raw_data[:1000], short.raw_data[:1000])


def test_the_first_serialized_page_need_not_be_the_longest(start: Open) -> None:
    engine, content = start(page_bytes=None), pages(1)
    first, second = flat(PAGE_BYTES), flat(PAGE_BYTES)
    first.set_used_size(1000)
    second.raw_data.copy_(torch.from_numpy(content[0].copy()))
    for key, page in zip(named(2), (first, second), strict=True):
        assert engine.submit("store", [key], [page]).result(60).is_successful()


def test_what_others_put_into_the_directory_stays_theirs(start: Open, tmp_path: Path) -> None:
    identity = pfimg.CacheIdentity("llama", "", "bf16", (16, 8), "three other words")
    with pfimg.PageCache(tmp_path / "tier", page_bytes=PAGE_BYTES, arena_bytes=8 << 20) as cache:
        cache.bind("theirs", identity)
        cache.put_many("theirs", [b"@" + bytes(32)], pages(1))
    engine = start()
    assert lookup(engine, named(1), {}) == []
    assert engine.adapter.list_l2_keys().entries == ()


def test_many_tasks_warn_of_nothing(start: Open, caplog: pytest.LogCaptureFixture) -> None:
    engine, content = start(arena_bytes="2MiB"), pages(64)
    with caplog.at_level(logging.WARNING, "pfimg"):
        tasks = [
            engine.submit("store", named(4, n), [page_of(torch.from_numpy(page.copy())) for page in content[n : n + 4]])
            for n in range(0, 64, 4)
        ]
        assert all(task.result(60).is_successful() for task in tasks)
        found = [engine.submit("lookup", named(64), LAYOUTS) for _ in range(5)]
        assert all(task.result(60).popcount() == 64 for task in found)
        for _ in range(5):
            engine.adapter.submit_unlock(named(64))
    assert engine.adapter.report_status()["locked_key_count"] == 0
    assert caplog.text == ""

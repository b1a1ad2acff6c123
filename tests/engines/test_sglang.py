"""What is special to SGLang: pages in place and as tensors, side pools and what they ask for, ranks."""

import json
import os
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
    from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
    from tests.engines.sglang_driver import POOL_PAGES, TOKENS, backend, configuration, mha_pool, mla_pool, read, write
except ImportError as error:
    if os.environ.get("PFIMG_REQUIRE_ENGINES") == "1":
        raise
    pytest.skip(f"sglang is not installed: make engines ({error})", allow_module_level=True)

pytestmark = pytest.mark.torch

Attach = Callable[..., Any]
LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """Attaches backends to one directory; those that the test left open are closed."""
    opened: list[Any] = []

    def attach(host_pool: Any, ranks: dict[str, Any] | None = None, **options: Any) -> Any:
        told = {"path": str(tmp_path / "tier"), "arena_bytes": "8MiB", "model": "llama", "revision": "main"} | options
        opened.append(backend(configuration(told, **(ranks or {})), host_pool))
        return opened[-1]

    yield attach
    for storage in opened:
        storage.close()


def filled(host_pool: Any, content: Rows) -> torch.Tensor:
    """Indices of pages of a host pool that hold what is given."""
    indices: torch.Tensor = host_pool.alloc(len(content) * TOKENS)
    write(host_pool, indices, content)
    return indices


def as_bytes(content: Rows) -> list[bytes]:
    return [page.tobytes() for page in content]


def transfer(name: PoolName, names: list[str], indices: Any = None, policy: Any = PoolHitPolicy.ALL_PAGES, **more: int) -> Any:
    return PoolTransfer(name=name, keys=names, host_indices=indices, hit_policy=policy, **more)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_of_keys_and_values_come_back_in_every_layout(attach: Attach, layout: str) -> None:
    host_pool, content = mha_pool(layout, 16), pages(8)
    storage = attach(host_pool)
    assert storage.batch_set_v1(keys(8), filled(host_pool, content)) == [True] * 8
    assert storage.batch_exists(keys(9)) == 8
    indices = host_pool.alloc(8 * TOKENS)
    assert storage.batch_get_v1(keys(8), indices) == [True] * 8
    assert read(host_pool, indices) == as_bytes(content)


@pytest.mark.parametrize("make", [mha_pool, mla_pool])
@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_both_interfaces_find_what_the_other_stored(attach: Attach, make: Callable[..., Any], layout: str) -> None:
    host_pool, content = make(layout, 16), pages(8)
    storage, indices = attach(host_pool), filled(host_pool, content)
    assert storage.batch_set_v1(keys(4), indices[: 4 * TOKENS]) == [True] * 4
    tensors = [host_pool.get_data_page(start) for start in indices[4 * TOKENS :: TOKENS].tolist()]
    assert storage.batch_set(keys(4, 4), tensors)
    assert storage.batch_exists(keys(8)) == 8
    found = storage.batch_get(keys(9), [host_pool.get_dummy_flat_data_page() for _ in range(9)])
    assert [page if page is None else page.view(torch.uint8).numpy().tobytes() for page in found] == [*as_bytes(content), None]
    host_pool.free(indices)
    indices = host_pool.alloc(8 * TOKENS)
    assert storage.batch_get_v1(keys(8), indices) == [True] * 8
    assert read(host_pool, indices) == as_bytes(content)


def test_pages_go_straight_from_and_into_the_pool(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    host_pool = mha_pool("page_first", 16)
    storage = attach(host_pool)
    seen: list[Any] = []
    put_many, get_many = storage.cache.put_many, storage.cache.get_many

    def put(namespace: str, keys: list[str], rows: list[Any]) -> None:
        seen.extend(rows)
        put_many(namespace, keys, rows)

    def get(namespace: str, keys: list[str], *, out: list[Any]) -> list[bool]:
        seen.extend(out)
        found: list[bool] = get_many(namespace, keys, out=out)
        return found

    monkeypatch.setattr(storage.cache, "put_many", put)
    monkeypatch.setattr(storage.cache, "get_many", get)
    indices = filled(host_pool, pages(2))
    storage.batch_set_v1(keys(2), indices)
    storage.batch_get_v1(keys(2), indices)
    first = host_pool.kv_buffer.data_ptr()
    addresses = [np.frombuffer(row, np.uint8).ctypes.data - first for row in seen]
    half, values = PAGE_BYTES // 2, 16 * PAGE_BYTES // 2
    assert addresses == [0, values, half, values + half] * 2


def test_one_page_as_a_tensor(attach: Attach) -> None:
    host_pool = mha_pool("page_first", 4)
    storage, page = attach(host_pool), torch.arange(PAGE_BYTES // 2, dtype=torch.int16)
    assert storage.set("a", page)
    assert storage.exists("a")
    assert not storage.exists("b")
    assert torch.equal(storage.get("a").view(torch.int16), page)
    assert storage.get("b") is None
    assert storage.get("a", torch.empty_like(page).view(-1, 2).t()) is None


def test_the_first_tensor_tells_the_page_size_where_no_pool_does(tmp_path: Path) -> None:
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    config = configuration({"path": str(tmp_path), "arena_bytes": "1MiB"})
    storage = StorageBackendFactory.create_backend("dynamic", config, None)
    assert storage.batch_exists(["a"]) == 0
    assert storage.get("a") is None
    page = torch.arange(1000, dtype=torch.uint8)
    assert storage.set("a", page)
    assert torch.equal(storage.get("a"), page)
    # Longer ones are cut to it.
    longer = torch.arange(600, dtype=torch.int32)
    assert storage.set("b", longer)
    assert torch.equal(storage.get("b", torch.empty_like(longer)), longer)
    storage.close()


@pytest.mark.parametrize("place", ["text", "file"])
def test_the_engine_reads_the_documented_configuration(tmp_path: Path, place: str) -> None:
    from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController

    told = {
        "backend_name": "pfimg",
        "module_path": "pfimg.engines.sglang",
        "class_name": "PfimgStorage",
        "interface_v1": 1,
        "prefetch_threshold": 128,
        "path": str(tmp_path / "tier"),
        "arena_bytes": "1MiB",
        "revision": "main",
    }
    (tmp_path / "tier.json").write_text(json.dumps(told))
    text = json.dumps(told) if place == "text" else f"@{tmp_path / 'tier.json'}"
    extra, threshold, *_ = HybridCacheController.parse_storage_backend_extra_config(text)
    config = configuration({})
    config.extra_config = extra
    host_pool = mla_pool("page_first", 4)
    storage = backend(config, host_pool)
    assert threshold == 128
    assert list(storage.cache.namespaces()) == ["served@main"]
    storage.close()


def test_side_pools_are_stored_beside_keys_and_values(attach: Attach) -> None:
    host_pool, side = mha_pool("page_first", 16), mla_pool("layer_first", 16)
    storage = attach(host_pool)
    storage.register_mem_host_pool_v2(host_pool, PoolName.KV)
    storage.register_mem_host_pool_v2(side, PoolName.INDEXER)
    content, other = pages(4), pages(4, 1)
    stored = storage.batch_set_v2(
        [
            transfer(PoolName.KV, keys(4), filled(host_pool, content)),
            transfer(PoolName.INDEXER, keys(4), filled(side, other)),
        ]
    )
    assert stored == {PoolName.KV: [True] * 4, PoolName.INDEXER: [True] * 4}
    # What v2 stored for the pool of keys and values is what v1 finds.
    assert storage.batch_exists(keys(4)) == 4
    places = {PoolName.KV: host_pool.alloc(5 * TOKENS), PoolName.INDEXER: side.alloc(5 * TOKENS)}
    found = storage.batch_get_v2([transfer(name, keys(5), indices) for name, indices in places.items()])
    assert found == {name: [True] * 4 + [False] for name in places}
    assert read(host_pool, places[PoolName.KV])[:4] == as_bytes(content)
    assert read(side, places[PoolName.INDEXER])[:4] == as_bytes(other)


def test_a_pool_that_is_named_twice_gets_all_of_its_answers(attach: Attach) -> None:
    host_pool = mla_pool("page_first", 16)
    storage, content = attach(host_pool), pages(4)
    storage.register_mem_host_pool_v2(host_pool, PoolName.DRAFT)
    indices = filled(host_pool, content)
    halves = [transfer(PoolName.DRAFT, keys(2, 2 * n), indices[2 * n * TOKENS : 2 * (n + 1) * TOKENS]) for n in range(2)]
    assert storage.batch_set_v2(halves) == {PoolName.DRAFT: [True] * 4}
    # A draft's pages are not those of the model.
    assert storage.batch_exists(keys(4)) == 0


@pytest.mark.parametrize(
    ("policy", "there", "window", "ends", "covered"),
    [
        (PoolHitPolicy.ALL_PAGES, [0, 1, 2, 4], 0, [1, 2, 3], 3),
        (PoolHitPolicy.ALL_PAGES, [], 0, [], None),
        (PoolHitPolicy.TRAILING_PAGES, [1, 3, 4], 1, [2, 4, 5], 5),
        (PoolHitPolicy.TRAILING_PAGES, [1, 3, 4], 2, [5], 5),
        (PoolHitPolicy.TRAILING_PAGES, [0, 3], 2, [1], 1),
    ],
)
def test_a_side_pool_bounds_what_can_be_restored(
    attach: Attach, policy: Any, there: list[int], window: int, ends: list[int], covered: int | None
) -> None:
    host_pool, side, names = mla_pool("page_first", 16), mla_pool("page_first", 16), keys(6)
    storage = attach(host_pool)
    storage.register_mem_host_pool_v2(side, PoolName.SWA)
    assert all(storage.batch_set_v1(names[:5], filled(host_pool, pages(5))))
    for place in there:
        storage.batch_set_v2([transfer(PoolName.SWA, [names[place]], filled(side, pages(1, place)))])
    result = storage.batch_exists_v2(names, [transfer(PoolName.SWA, names[:window], policy=policy)])
    assert result.restorable_prefix_pages == ends
    assert result.kv_hit_pages == max(ends, default=0)
    assert result.extra_pool_hit_pages.get(PoolName.SWA) == covered
    assert result.extra_pool_hit_pages[PoolName.KV] == 5


def test_groups_of_blocks_tell_what_they_cover_and_bound_nothing(attach: Attach) -> None:
    host_pool, side, names = mla_pool("page_first", 16), mla_pool("page_first", 16), keys(8)
    storage = attach(host_pool)
    storage.register_mem_host_pool_v2(side, PoolName.DEEPSEEK_V4_C4)
    assert all(storage.batch_set_v1(names, filled(host_pool, pages(8))))
    groups = keys(4, 100)
    storage.batch_set_v2([transfer(PoolName.DEEPSEEK_V4_C4, groups[:3], filled(side, pages(3, 1)))])
    asked = transfer(PoolName.DEEPSEEK_V4_C4, groups, policy=PoolHitPolicy.BLOCK_GROUPS, block_pages=4, group_pages=2)
    result = storage.batch_exists_v2(names, [asked])
    assert result.kv_hit_pages == 8
    assert result.extra_pool_hit_pages[PoolName.DEEPSEEK_V4_C4] == 4


def test_a_pool_without_memory_leaves_all_to_the_side_pools(attach: Attach) -> None:
    from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool

    anchor, side = LogicalHostPool(16 * TOKENS, TOKENS, "page_first"), mla_pool("page_first", 16)
    storage = attach(anchor)
    assert storage.cache is None
    storage.register_mem_host_pool_v2(anchor, PoolName.KV)
    storage.register_mem_host_pool_v2(side, PoolName.DEEPSEEK_V4_C4)
    storage.on_host_pools_registered()
    indices, content = filled(side, pages(3)), pages(3)
    assert storage.batch_set_v1(keys(3), indices) == [True] * 3
    assert storage.batch_exists_v2(keys(4), [transfer(PoolName.DEEPSEEK_V4_C4, keys(4))]).kv_hit_pages == 0
    storage.batch_set_v2([transfer(PoolName.DEEPSEEK_V4_C4, keys(3), indices)])
    assert storage.batch_exists_v2(keys(4), [transfer(PoolName.DEEPSEEK_V4_C4, keys(4))]).kv_hit_pages == 3
    assert storage.batch_get_v1(keys(3), indices) == [True] * 3
    assert storage.batch_get_v2([transfer(PoolName.DEEPSEEK_V4_C4, keys(3), indices)]) == {PoolName.DEEPSEEK_V4_C4: [True] * 3}
    assert read(side, indices) == as_bytes(content)


def test_longer_pages_of_a_side_pool_are_cut(attach: Attach) -> None:
    host_pool, side = mha_pool("page_first", 16), mla_pool("page_first", 16)
    storage, content = attach(host_pool, arena_bytes=40 * PAGE_BYTES), pages(5)
    storage.register_mem_host_pool_v2(side, PoolName.MAMBA)
    indices = filled(side, content)
    assert storage.batch_set_v2([transfer(PoolName.MAMBA, keys(5), indices)]) == {PoolName.MAMBA: [True] * 5}
    assert storage.cache.stats()["puts"] == 10
    write(side, indices, pages(5, 1))
    assert storage.batch_get_v2([transfer(PoolName.MAMBA, keys(5), indices)]) == {PoolName.MAMBA: [True] * 5}
    assert read(side, indices) == as_bytes(content)


def test_half_a_page_is_a_miss(attach: Attach) -> None:
    host_pool = mha_pool("page_first", 16)
    storage, indices = attach(host_pool), filled(host_pool, pages(3))
    storage.batch_set_v1(keys(3), indices)
    assert storage.cache.delete("llama@main", [f"{keys(3)[1]}.1"]) == 1
    assert storage.batch_exists(keys(3)) == 1
    assert storage.batch_get_v1(keys(3), indices) == [True, False, True]


@pytest.mark.parametrize("is_mla_model", [False, True])
def test_every_rank_has_pages_of_its_own(attach: Attach, tmp_path: Path, is_mla_model: bool) -> None:
    contents, storages = [pages(2, seed) for seed in range(2)], []
    for rank, content in enumerate(contents):
        host_pool = mla_pool("page_first", 16)
        config = {"tp_rank": rank, "tp_size": 2, "is_mla_model": is_mla_model}
        storages.append((attach(host_pool, config), host_pool))
        # The engine asks this before it stores anything.
        assert storages[-1][0]._config.is_storage_writer
        assert storages[-1][0].batch_set_v1(keys(2), filled(host_pool, content)) == [True] * 2
    for (storage, host_pool), content in zip(storages, contents, strict=True):
        indices = host_pool.alloc(2 * TOKENS)
        assert storage.batch_get_v1(keys(2), indices) == [True] * 2
        assert read(host_pool, indices) == as_bytes(content)
    assert sorted(path.name for path in (tmp_path / "tier").iterdir()) == ["tp0of2", "tp1of2"]


@pytest.mark.parametrize(
    ("ranks", "part"),
    [
        ({}, ""),
        ({"tp_rank": 1, "tp_size": 4}, "tp1of4"),
        ({"pp_rank": 1, "pp_size": 2}, "pp1of2"),
        ({"tp_size": 2, "attn_cp_rank": 3, "attn_cp_size": 4, "dp_rank": 1}, "tp0of2-cp3of4-dp1"),
    ],
)
def test_parts_are_named_by_their_ranks(attach: Attach, tmp_path: Path, ranks: dict[str, int], part: str) -> None:
    storage = attach(mla_pool("page_first", 4), ranks)
    assert (tmp_path / "tier" / part / "store").is_dir()
    assert list(storage.cache.namespaces()) == [f"llama@main {part}".strip()]


def test_replicas_are_told_by_the_process(attach: Attach, tmp_path: Path) -> None:
    from sglang.srt.runtime_context import get_parallel

    with get_parallel().override(dp_rank=2):
        attach(mla_pool("page_first", 4))
    assert (tmp_path / "tier" / "dp2").is_dir()


def test_the_engine_names_model_and_revision(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfimg.engines import sglang as module

    monkeypatch.setattr(module, "get_model", lambda: type("Model", (), {"model_path": "org/llama", "revision": "abc"}))
    storage = attach(mla_pool("page_first", 4), model=None, revision="")
    assert list(storage.cache.namespaces()) == ["org/llama@abc"]


def test_a_model_without_a_name_is_refused(attach: Attach) -> None:
    with pytest.raises(pfimg.FormatError, match="model"):
        attach(mla_pool("page_first", 4), {"model_name": None}, model=None)


@pytest.mark.parametrize("other", [lambda: mla_pool("page_first_direct", 16), lambda: mha_pool("page_first", 16)])
def test_another_form_of_pages_is_refused(attach: Attach, other: Callable[[], Any]) -> None:
    storage = attach(mla_pool("page_first", 16))
    storage.close()
    with pytest.raises(pfimg.StoreError, match="identity") as failed:
        attach(other())
    assert failed.value.code == "identity"
    attach(other(), revision="other")


def test_what_cannot_be_is_a_failure_and_never_raised(attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    host_pool = mla_pool("page_first", 16)
    storage = attach(host_pool)
    indices = filled(host_pool, pages(2))
    assert storage.batch_set_v1(keys(3), indices) == [False] * 3
    assert storage.batch_get_v2([transfer(PoolName.SWA, keys(2), indices)]) == {PoolName.SWA: [False] * 2}
    assert not storage.batch_set(keys(2), [torch.zeros(PAGE_BYTES), torch.zeros(4)])
    assert storage.batch_set_v1(keys(2), indices) == [True] * 2
    storage.close()
    assert storage.batch_set_v1(keys(2), indices) == [False] * 2
    assert storage.batch_get_v1(keys(2), indices) == [False] * 2
    assert storage.batch_get(keys(2)) == [None, None]
    assert storage.batch_exists(keys(2)) == 0
    assert not storage.clear()
    assert "3 pages of 16 tokens" in caplog.text
    assert "swa" in caplog.text
    assert "closed" in caplog.text


def test_cleared_pages_are_gone_and_the_backend_goes_on(attach: Attach) -> None:
    host_pool = mla_pool("page_first", 16)
    storage, indices = attach(host_pool, max_bytes=4 * PAGE_BYTES), filled(host_pool, pages(8))
    storage.batch_set_v1(keys(2), indices[: 2 * TOKENS])
    assert storage.clear()
    assert storage.batch_exists(keys(2)) == 0
    assert storage.batch_set_v1(keys(8), indices) == [True] * 8
    # The limit holds as before.
    assert storage.cache.stats()["indexed_bytes"] == 4 * PAGE_BYTES


def test_metrics_tell_each_call_once(attach: Attach) -> None:
    host_pool = mla_pool("page_first", 16)
    storage = attach(host_pool, {"enable_storage_metrics": True})
    indices = filled(host_pool, pages(4))
    storage.batch_set_v1(keys(4), indices)
    storage.batch_get_v1(keys(4, 2), indices)
    measured = storage.get_stats()
    assert (measured.backup_pgs, measured.prefetch_pgs) == ([4], [2])
    assert measured.backup_bandwidth[0] > 0
    assert measured.prefetch_bandwidth[0] > 0
    assert storage.get_stats().backup_pgs == []
    assert attach(mla_pool("page_first", 4), revision="other", path=None).get_stats() is None


def test_the_engines_own_faults_are_misses(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE", "0.5")
    host_pool, content = mla_pool("page_first", POOL_PAGES), pages(8)
    storage = attach(host_pool)
    indices = filled(host_pool, content)
    while not all(storage.batch_set_v1(keys(8), indices)):
        pass
    for _ in range(20):
        write(host_pool, indices, pages(8, 1))
        found = storage.batch_get_v1(keys(8), indices)
        assert found in ([True] * 8, [False] * 8)
        assert not all(found) or read(host_pool, indices) == as_bytes(content)

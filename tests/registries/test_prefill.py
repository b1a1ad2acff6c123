"""Pages of engines by way of every registry: whole, and one by one as they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.registries.conftest import Adapter, source_of

import pfimg

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096
COUNT = 40
LLAMA = pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd")
KEYS = [f"key {n}" for n in range(COUNT)]
PAGES = [n.to_bytes(2, "big") * (PAGE // 2) for n in range(COUNT)]


def read(cache: pfimg.PageCache, count: int) -> list[bytes | None]:
    out = [bytearray(PAGE) for _ in range(count)]
    return [bytes(row) if hit else None for row, hit in zip(out, cache.get_many("chat", KEYS[:count], out=out), strict=True)]


@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_pages_come_from_every_registry(place: Adapter, store: pfimg.PfStore, tmp_path: Path, layout: str) -> None:
    with pfimg.PageCache(tmp_path / "engine", page_bytes=PAGE, arena_bytes=64 * PAGE) as cache:
        cache.bind("chat", LLAMA)
        cache.put_many("chat", KEYS, PAGES)
    image = pfimg.export_pages(tmp_path / "engine", store).image
    try:
        sent = pfimg.push(store, image, place.ref, layout=layout)
    except pfimg.RegistryError:
        assert layout == "packed"  # which not every registry has
        return
    ref = source_of(place, sent)
    with pfimg.PageCache(tmp_path / "eager", page_bytes=PAGE, arena_bytes=64 * PAGE) as cache:
        cache.bind("chat", LLAMA)
        report = pfimg.warm(cache, ref)
        assert (report.keys, report.fetched, report.missing) == (COUNT, COUNT, 0)
        assert read(cache, COUNT) == PAGES
    with pfimg.PageCache(None, page_bytes=PAGE, arena_bytes=64 * PAGE, registry=ref) as cache:
        cache.bind("chat", LLAMA)
        assert pfimg.warm(cache, ref, lazy=True).fetched == 0
        assert cache.leading_hits("chat", KEYS) == COUNT
        assert read(cache, 7) == PAGES[:7]
        assert read(cache, COUNT) == PAGES
        assert (cache.stats()["hits_registry"], cache.stats()["misses"]) == (COUNT, 0)

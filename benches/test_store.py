"""The public calls of a store on real pages of 73,728 bytes; `benches.compare` holds them against others."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pfimg

from .groups import MIB, SIZES
from .pages import Batch

ROUNDS = 5


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory where there is one: the subject is the software, not the disk."""
    shared_memory = Path("/dev/shm")
    path = Path(mkdtemp(prefix="pfimg-bench-", dir=shared_memory if shared_memory.is_dir() else None))
    yield path
    rmtree(path)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch(SIZES["73,728 B"], 64 * MIB)


@pytest.fixture
def store(root: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(root, durability="none")


@pytest.mark.parametrize("codec", ["auto", "zstd", "store"])
def test_put_many(benchmark: BenchmarkFixture, root: Path, batch: Batch, codec: str) -> None:
    store = pfimg.PfStore.open(root, codec=codec, durability="none")
    salts = count()
    names = benchmark.pedantic(
        lambda: store.put_many(batch.pages), setup=lambda: batch.renew(next(salts)), rounds=ROUNDS, warmup_rounds=1
    )
    assert len(set(names)) == len(batch)


def test_put_many_of_stored_pages(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    names = store.put_many(batch.pages)
    assert benchmark(store.put_many, batch.pages) == names


def test_put_many_of_stored_digests(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    names = store.put_many(batch.pages)
    assert benchmark(lambda: store.put_many(batch.pages, digests=names)) == names


def test_has_many(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    assert all(benchmark(store.has_many, store.put_many(batch.pages)))


@pytest.mark.parametrize("errors", ["raise", "mask"])
def test_get_many_into_memory(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch, errors: str) -> None:
    names = store.put_many(batch.pages)
    masked: Any = store.get_many  # the literal types of `errors` do not come from parameters
    benchmark(lambda: masked(names, out=batch.out, errors=errors))
    batch.check(len(batch))


def test_get_many_as_bytes(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    assert len(benchmark(store.get_many, store.put_many(batch.pages))) == len(batch)


def test_put(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    salts = count()

    def fresh() -> tuple[tuple[object], dict[str, object]]:
        batch.renew(next(salts))
        return (batch.views[0],), {}

    benchmark.pedantic(store.put, setup=fresh, rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("threads", [1, 2, 4, 16, 64])
def test_put_from_threads(benchmark: BenchmarkFixture, store: pfimg.PfStore, threads: int) -> None:
    """Pages of 64 KiB, each put by itself: many threads must not be slower than few."""
    batch = Batch(64 << 10, 64 * MIB)
    salts = count()
    with ThreadPoolExecutor(threads) as pool:
        parts = [batch.views[at::threads] for at in range(threads)]
        names = benchmark.pedantic(
            lambda: list(pool.map(lambda part: [store.put(page) for page in part], parts)),
            setup=lambda: batch.renew(next(salts)),
            rounds=ROUNDS,
            warmup_rounds=1,
        )
    assert len({name for part in names for name in part}) == len(batch)


def test_get(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    assert benchmark(store.get, store.put(batch.views[0])) == batch.views[0]


def test_pages_there_and_back(benchmark: BenchmarkFixture, store: pfimg.PfStore, batch: Batch) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=6, n_heads=12, head_dim=32, dtype="bf16")
    half = len(batch) // 2
    pages = store.put_pages(meta, batch.pages[:half], batch.pages[half : 2 * half])
    benchmark(lambda: store.get_pages(pages, out_k=batch.out[:half], out_v=batch.out[half : 2 * half]))
    batch.check(2 * half)

"""Storing and loading real KV pages, every system beside the others in one run."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from .systems import SIZES, SYSTEMS, System, real_pages, share

# The reference needs a minute for what the others do in a blink.
pytestmark = pytest.mark.timeout(600)
ROUNDS = 5
TOTAL_BYTES = 64 << 20


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory where there is one: the subject is the software, not the disk."""
    shared_memory = Path("/dev/shm")
    path = Path(mkdtemp(prefix="pfimg-bench-", dir=shared_memory if shared_memory.is_dir() else None))
    yield path
    rmtree(path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_store(benchmark: BenchmarkFixture, root: Path, system: type[System], size: str) -> None:
    """Stores pages that are not there yet."""
    subject = system(root / "store")
    salts = count()

    def fresh() -> tuple[tuple[object], dict[str, object]]:
        return (share(system, real_pages(SIZES[size], TOTAL_BYTES, next(salts))),), {}

    names = benchmark.pedantic(subject.store, setup=fresh, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["bytes"] = len(names) * SIZES[size]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_load(benchmark: BenchmarkFixture, root: Path, system: type[System], size: str) -> None:
    """Loads them back, verified, into a buffer that is there already."""
    subject = system(root / "store")
    pages = share(system, real_pages(SIZES[size], TOTAL_BYTES, 0))
    names = subject.store(pages)
    out = np.zeros_like(pages)
    benchmark.pedantic(subject.load, args=(names, out), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["bytes"] = pages.nbytes
    assert np.array_equal(out, pages)

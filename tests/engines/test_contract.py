"""What holds for every engine: pages come back as they were, or not at all."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.drivers import ENGINES, PAGE_BYTES, Driver, Rows, open_engine, require

import pfimg

pytestmark = pytest.mark.torch

Open = Callable[..., Driver]


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return str(request.param)


@pytest.fixture
def start(engine_name: str, tmp_path: Path) -> Iterator[Open]:
    """Opens engines on one directory; those that the test left open are closed."""
    opened: list[Driver] = []

    def start(**options: Any) -> Driver:
        opened.append(open_engine(engine_name, tmp_path / "tier", **options))
        return opened[-1]

    yield start
    for engine in opened:
        engine.close()


def pages(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)


def keys(count: int, start: int = 0) -> list[str]:
    """Hashes of tokens, as engines make them: 32 bytes in hex."""
    return [f"{number:064x}" for number in range(start, start + count)]


def right(found: list[bytes | None], expected: Rows) -> list[bool]:
    """Which pages came; those that did must be as they were put."""
    for got, page in zip(found, expected, strict=True):
        assert got is None or got == page.tobytes()
    return [got is not None for got in found]


def test_what_is_stored_comes_back(start: Open) -> None:
    engine, content = start(), pages(20)
    assert engine.store(keys(20), content)
    assert engine.lookup(keys(20)) == 20
    assert right(engine.load(keys(20)), content) == [True] * 20


def test_nothing_is_there_that_was_not_stored(start: Open) -> None:
    engine = start()
    assert engine.lookup(keys(5)) == 0
    assert engine.load(keys(5)) == [None] * 5


def test_leading_hits_end_with_the_first_gap(start: Open) -> None:
    engine, content = start(), pages(6)
    assert engine.store([*keys(3), *keys(3, 4)], content)
    assert engine.lookup(keys(7)) == 3


def test_a_load_of_some_that_are_not_there_gives_the_others(start: Open) -> None:
    engine, content = start(), pages(3)
    assert engine.store(keys(3), content)
    found = engine.load([*keys(3), *keys(2, 10)])
    assert found[3:] == [None, None]
    # Engines may give up what comes after a gap, never what comes before.
    assert right(found[:3], content) == [True] * 3


def test_equal_pages_are_stored_once(start: Open) -> None:
    engine, content = start(), np.repeat(pages(1), 10, axis=0)
    assert engine.store(keys(10), content)
    engine.cache.flush()
    assert engine.cache.stats()["written"] == 1
    assert right(engine.load(keys(10)), content) == [True] * 10


def test_what_memory_has_no_room_for_comes_from_the_disk(start: Open) -> None:
    engine, content = start(arena_bytes=4 * PAGE_BYTES), pages(40)
    for first in range(0, 40, 10):
        assert engine.store(keys(10, first), content[first : first + 10])
    for first in range(0, 40, 10):
        assert right(engine.load(keys(10, first)), content[first : first + 10]) == [True] * 10


def test_old_pages_make_room_and_are_misses(start: Open) -> None:
    engine, content = start(arena_bytes=4 * PAGE_BYTES, store_bytes=10 * PAGE_BYTES), pages(40)
    for first in range(0, 40, 10):
        engine.store(keys(10, first), content[first : first + 10])
        engine.cache.flush()
    assert engine.cache.stats()["indexed_bytes"] <= 10 * PAGE_BYTES
    assert right(engine.load(keys(10, 30)), content[30:]) == [True] * 10
    assert engine.load(keys(10)) == [None] * 10


def test_jobs_at_once_do_not_disturb_one_another(start: Open) -> None:
    engine, content = start(arena_bytes="2MiB"), pages(64)

    def work(part: int) -> None:
        mine = slice(8 * part, 8 * part + 8)
        for _ in range(5):
            assert engine.store(keys(8, 8 * part), content[mine])
            assert right(engine.load(keys(8, 8 * part)), content[mine]) == [True] * 8

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_a_restart_finds_what_was_there(start: Open) -> None:
    content = pages(20)
    first = start()
    assert first.store(keys(20), content)
    first.close()
    second = start()
    assert second.lookup(keys(20)) == 20
    assert right(second.load(keys(20)), content) == [True] * 20


def test_a_killed_engine_leaves_no_wrong_page(engine_name: str, start: Open, tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.engines.drivers import open_engine
from tests.engines.test_contract import keys, pages
engine = open_engine({engine_name!r}, Path({str(tmp_path / "tier")!r}))
engine.store(keys(20), pages(20))
engine.cache.flush()
print("stored", flush=True)
while True:
    engine.store(keys(20, 100), pages(20, 1))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "stored\n" for line in process.stdout)
        process.kill()
    engine = start()
    assert right(engine.load(keys(20)), pages(20)) == [True] * 20
    right(engine.load(keys(20, 100)), pages(20, 1))


def test_a_damaged_page_is_a_miss_and_heals(start: Open, tmp_path: Path) -> None:
    content = pages(4)
    first = start()
    assert first.store(keys(4), content)
    first.close()
    for blob in tmp_path.joinpath("tier").rglob("*.zst"):
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    second = start()
    assert second.load(keys(4)) == [None] * 4
    assert second.cache.stats()["corrupt"] == 4
    assert second.store(keys(4), content)
    assert right(second.load(keys(4)), content) == [True] * 4


def test_a_full_disk_costs_pages_and_nothing_else(start: Open) -> None:
    engine, content = start(arena_bytes="1MiB"), pages(40)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for first in range(0, 40, 10):
            engine.store(keys(10, first), content[first : first + 10])
            right(engine.load(keys(10, first)), content[first : first + 10])
        with pytest.raises(OSError, match="File too large"):
            engine.cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert engine.store(keys(10), content[:10])
    engine.cache.flush()
    assert right(engine.load(keys(10)), content[:10]) == [True] * 10


def test_another_revision_never_gets_these_pages(start: Open) -> None:
    first = start(revision="one")
    assert first.store(keys(5), pages(5))
    first.close()
    second = start(revision="two")
    assert second.lookup(keys(5)) == 0
    assert second.load(keys(5)) == [None] * 5


@pytest.fixture
def published(start: Open, tmp_path: Path) -> str:
    """An image in a registry of the first 20 pages."""
    first = start()
    assert first.store(keys(20), pages(20))
    first.close()
    store = pfimg.PfStore.open(tmp_path / "images")
    return pfimg.push(store, pfimg.export_pages(tmp_path / "tier", store).image, f"file://{tmp_path}/registry").ref


@pytest.mark.parametrize("lazy", [False, True])
def test_a_tier_begins_with_an_image(start: Open, published: str, tmp_path: Path, *, lazy: bool) -> None:
    shutil.rmtree(tmp_path / "tier")
    engine = start(warm_from=published, **({"registry": published} if lazy else {}))
    wait = time.monotonic() + 30
    while engine.lookup(keys(20)) < 20 and time.monotonic() < wait:
        time.sleep(0.01)
    assert right(engine.load(keys(20)), pages(20)) == [True] * 20
    assert (engine.cache.stats()["hits_registry"] > 0) == lazy


def test_an_image_of_another_revision_is_a_warning(
    start: Open, published: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tmp_path / "tier")
    engine = start(warm_from=published, revision="other")
    wait = time.monotonic() + 30
    while "cannot be warmed" not in caplog.text and time.monotonic() < wait:
        assert engine.lookup(keys(20)) == 0
        time.sleep(0.01)
    assert "other" in caplog.text  # what is asked for, or what is there
    assert engine.store(keys(2), pages(2))
    assert right(engine.load(keys(2)), pages(2)) == [True] * 2


def test_two_processes_do_not_share_a_directory(start: Open) -> None:
    start()
    with pytest.raises(pfimg.StoreError, match="open to write already"):
        start()


def test_an_option_that_is_none_is_named(start: Open) -> None:
    with pytest.raises(pfimg.FormatError, match="arena_byte"):
        start(arena_byte=1)


def test_nothing_stays_open_after_the_end(start: Open) -> None:
    first = start()
    first.store(keys(2), pages(2))
    first.close()
    before = len(os.listdir("/proc/self/fd"))
    second = start()
    second.store(keys(2), pages(2))
    second.close()
    assert len(os.listdir("/proc/self/fd")) <= before

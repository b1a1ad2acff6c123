"""Processes with a cache of pages each, killed and damaged at random: what comes is what was put, in bounded memory and disk.

Each process is a part of an engine: threads put, look up and load pages by keys that some ask for often and most seldom, in a
cache whose memory holds a fraction of the pages and whose directory holds some more. Another one reads their arenas. Every now
and then one is killed and started again on its directory, or a byte of a file of it is flipped. A page tells by itself which key
and version it is of, so that each process can judge any page that it gets, whoever put it, and before whatever kill.

`PFIMG_SOAK_SECONDS` and `PFIMG_SOAK_SEED` make it last longer and go other ways; `make soak` is the long form.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("PFIMG_SOAK_SECONDS", "4"))
SEED = int(os.environ.get("PFIMG_SOAK_SEED", "0"))
PARTS, THREADS = 3, 3
PROCESSES = multiprocessing.get_context("spawn")
PAGE = 65_536
KEYS, BATCH = 2_000, 16
ARENA_BYTES, STORE_BYTES = 200 * PAGE, 600 * PAGE
# Beside its arena: the interpreter with NumPy, batches of all threads, and what waits to be written.
MEMORY_BYTES = ARENA_BYTES + (200 << 20)
# What the directory may have above its limit: half of an arena waits for the limit to be applied.
DISK_BYTES = STORE_BYTES + ARENA_BYTES // 2

Rows = npt.NDArray[np.uint8]


def page(key: int, version: int) -> Rows:
    content = np.random.default_rng([key, version]).integers(0, 256, PAGE, dtype=np.uint8)
    content[:16] = np.frombuffer(np.array([key, version], dtype=np.uint64).tobytes(), np.uint8)
    return content


def check(key: int, content: Rows) -> None:
    """Whether a page is one that was put under its key at some time, whole."""
    found, version = np.frombuffer(content[:16].tobytes(), np.uint64)
    assert found == key, f"key {key} got a page of key {found}"
    assert np.array_equal(content, page(key, int(version))), f"key {key} got a page that nobody has made"


def arena_path(root: Path, part: int) -> Path:
    return root / f"part-{part}.arena"


def work(root: Path, part: int, life: int, seconds: float) -> None:
    """One process: threads that use one cache until the time is over or somebody kills it. Leaves what it has seen in a file."""
    cache = pfimg.PageCache(
        root / f"part-{part}",
        page_bytes=PAGE,
        arena_bytes=ARENA_BYTES,
        arena_path=arena_path(root, part),
        store_bytes=STORE_BYTES,
    )
    cache.bind("soak", pfimg.CacheIdentity("model", "main", "bf16", (16, 2, 2, 512), "nhd", part, PARTS))
    times: dict[str, list[float]] = {"put": [], "look up": [], "load": []}
    counts = {"pages": 0, "misses": 0}
    errors: list[BaseException] = []
    until = time.monotonic() + seconds

    def timed(what: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        times[what].append(time.perf_counter() - start)
        return result

    def run(thread: int) -> None:
        chance = random.Random(f"{SEED} {part} {life} {thread}")
        out = np.empty((BATCH, PAGE), dtype=np.uint8)
        try:
            while time.monotonic() < until:
                # A few prompts begin most requests.
                first = min(int(chance.paretovariate(0.6)), KEYS - BATCH)
                keys = list(range(first, first + BATCH))
                names = [f"{key:x}" for key in keys]
                hits = timed("look up", partial(cache.leading_hits, "soak", names))
                assert isinstance(hits, int)
                found = timed("load", partial(cache.get_many, "soak", names, out=out))
                assert isinstance(found, list)
                for key, row, hit in zip(keys, out, found, strict=True):
                    if hit:
                        check(key, row)
                lost = [key for key, hit in zip(keys, found, strict=True) if not hit or chance.random() < 0.05]
                pages = [page(key, chance.randrange(4)) for key in lost]
                timed("put", partial(cache.put_many, "soak", [f"{key:x}" for key in lost], pages))
                counts["pages"] += len(keys)
                counts["misses"] += found.count(False)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    stats = cache.stats()
    cache.close()
    if errors:
        raise errors[0]
    report = {"times": times, "counts": counts, "corrupt": stats["corrupt"], "memory": high_water()}
    (root / f"report-{part}-{life}.json").write_text(json.dumps(report))


def high_water() -> int:
    """Most memory that this process has had, in bytes; 0 where the system does not tell."""
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def look(root: Path, seconds: float) -> None:
    """A process that reads the others' arenas: what it gets is what the name says."""
    until, read = time.monotonic() + seconds, 0
    chance = random.Random(SEED)
    names = [pfimg.digest_of(page(key, version)) for key in range(8) for version in range(4)]
    out = np.empty((len(names), PAGE), dtype=np.uint8)
    while time.monotonic() < until:
        try:
            arena = pfimg.PageArena.attach(arena_path(root, chance.randrange(PARTS)))
        except (OSError, pfimg.StoreError, pfimg.FormatError):
            continue  # not there yet
        with arena:
            for _ in range(20):
                for name, row, hit in zip(names, out, arena.get_many(names, out=out, errors="mask"), strict=True):
                    assert not hit or pfimg.digest_of(row) == name
                    read += hit
    (root / "read.json").write_text(json.dumps(read))


def damage(root: Path, chance: random.Random) -> int:
    """Flips a byte of a page on disk, if there is one."""
    blobs = list((root / f"part-{chance.randrange(PARTS)}" / "store/blobs").rglob("*.zst"))
    if not blobs:
        return 0
    try:
        with chance.choice(blobs).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            at = chance.randrange(size) if size else 0
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]) if byte else b"")
    except FileNotFoundError:
        return 0  # it made room for another
    return 1


def test_caches_of_several_processes_give_right_pages_within_their_bounds(scratch: Path, record: Callable[..., None]) -> None:
    chance = random.Random(SEED)
    end = time.monotonic() + SECONDS

    def start(part: int, life: int) -> multiprocessing.process.BaseProcess:
        process = PROCESSES.Process(target=work, args=(scratch, part, life, max(1.0, end - time.monotonic())))
        process.start()
        return process

    lives = [0] * PARTS
    running = [start(part, 0) for part in range(PARTS)]
    reader = PROCESSES.Process(target=look, args=(scratch, SECONDS))
    reader.start()
    kills = flips = most = 0
    while time.monotonic() < end - 1:
        reader.join(chance.uniform(0.2, 2))
        flips += damage(scratch, chance)
        for part in range(PARTS):
            frames = (scratch / f"part-{part}" / "store").rglob("*.zst")
            most = max(most, sum(size for path in frames if (size := size_of(path))))
        if chance.random() < 0.3:
            part = chance.randrange(PARTS)
            running[part].kill()
            running[part].join()
            kills += 1
            lives[part] += 1
            running[part] = start(part, lives[part])
    for process in [*running, reader]:
        process.join()
    assert [process.exitcode for process in [*running, reader]] == [0] * (PARTS + 1)
    # One that was killed late may have left a report before; the last of each part counts.
    reports = [json.loads((scratch / f"report-{part}-{life}.json").read_text()) for part, life in enumerate(lives)]
    assert max(report["memory"] for report in reports) < MEMORY_BYTES
    # Each kill may leave under no key what was just written.
    assert most < DISK_BYTES + max(lives) * ARENA_BYTES // 2
    figures = {name: sum(report["counts"][name] for report in reports) for name in ("pages", "misses")}
    for what in ("put", "look up", "load"):
        times = np.concatenate([report["times"][what] for report in reports]) * 1e6
        word = what.replace(" ", "_")
        figures |= {f"{word}_p50_us": round(float(np.median(times))), f"{word}_p99_us": round(float(np.percentile(times, 99)))}
    memory = max(report["memory"] for report in reports) >> 20
    corrupt = sum(report["corrupt"] for report in reports)
    read = json.loads((scratch / "read.json").read_text())
    record(**figures, kills=kills, flips=flips, corrupt=corrupt, read_by_others=read, memory_mib=memory, disk_mib=most >> 20)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("change", [0, 8, 20])
def test_a_wrong_page_would_be_noticed(change: int) -> None:
    content = page(7, 1)
    check(7, content)
    content[change] ^= 1
    with pytest.raises(AssertionError):
        check(7, content)

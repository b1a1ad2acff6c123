"""Pages in memory: an arena beside plain files of Python threads, a copy, and hashing alone; and look-ups of keys.

    python -m benches.arena [--rounds N]

Everything lies on /dev/shm, has as many threads as pfimg, and stores and loads the same real pages, round by round in turn. The
arena is a pool that is there before pages come, which is what it is for; making it is not timed. It hashes and verifies, plain
files do not. A PageCache does the same under keys, with no store behind it.
"""

import argparse
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import pfimg
from pfimg.page_index import CacheIdentity, PageIndex

from .groups import BATCH_BYTES, SIZES, limits, stores_and_loads
from .pages import Batch
from .rounds import Group, Result, run, say, timed
from .systems import PlainFiles, System

IDENTITY = CacheIdentity("model", "main", "bf16", (16, 32, 8, 128), "nhd")
DIGESTS = ("sha256", "blake3")
KEYS = 100_000
ASKED = 1_000


class Arena:
    """`put_many(array)` and `get_many(digests, out=array)` of an arena that has room for one batch and is full of another."""

    most_bytes = BATCH_BYTES

    def __init__(self, root: Path, arena: pfimg.PageArena) -> None:
        root.mkdir()
        self.arena = arena

    def store(self, batch: Batch) -> Sequence[str]:
        return self.arena.put_many(batch.pages)

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self.arena.get_many(names, out=batch.out)

    def close(self) -> None:
        pass


class Cache:
    """The same through a cache without a store."""

    most_bytes = BATCH_BYTES

    def __init__(self, root: Path, cache: pfimg.PageCache) -> None:
        root.mkdir()
        self.cache = cache

    def store(self, batch: Batch) -> Sequence[str]:
        self.cache.put_many("bench", batch.keys, batch.pages)
        return batch.keys

    def load(self, names: Sequence[str], batch: Batch) -> None:
        self.cache.get_many("bench", names, out=batch.out)

    def close(self) -> None:
        pass


def pages(label: str, base: Path, rounds: int) -> tuple[str, Result]:
    """One size of pages."""
    batch = Batch(SIZES[label], BATCH_BYTES)
    # Room for two batches: none of the one that is loaded has made room.
    room = 2 * len(batch) * batch.page_bytes
    arena = pfimg.PageArena(base / "arena", page_bytes=batch.page_bytes, capacity_bytes=room)
    cache, faster = (pfimg.PageCache(None, page_bytes=batch.page_bytes, arena_bytes=room, digest=name) for name in DIGESTS)
    for each in (cache, faster):
        each.bind("bench", IDENTITY)
    systems: Mapping[str, Callable[[Path], System]] = {
        "PageArena": lambda root: Arena(root, arena),
        "PageCache": lambda root: Cache(root, cache),
        "PageCache, blake3": lambda root: Cache(root, faster),
        "plain files": PlainFiles,
    }
    contenders = {name: stores_and_loads(system, batch) for name, system in systems.items()} | limits(batch)
    places = base / "files"
    places.mkdir()
    result = run(Group(label, label, batch.page_bytes, contenders, batch.renew), rounds, places, say)
    arena.close()
    cache.close()
    faster.close()
    shutil.rmtree(base)
    base.mkdir()
    rows = []
    for call in ("store", "load"):
        for name, seconds in result.seconds[call].items():
            ratio = median(theirs / ours for theirs, ours in zip(result.seconds[call]["plain files"], seconds, strict=True))
            rows.append(f"| {label} | {name} | {call} | {batch.page_bytes / median(seconds) / 1e9:.2f} | {ratio:.2f} × |")
    for call, name in (("hash", "hash alone"), ("copy", "memory copy")):
        rows.append(f"| {label} | {name} | {call} | {batch.page_bytes / median(result.seconds[call][name]) / 1e9:.2f} | |")
    return "\n".join(rows), result


def look_ups(base: Path, rounds: int) -> str:
    """Leading hits of a thousand keys among many, all there: in the index, and asked of SQLite at once and key by key."""
    index = PageIndex(base / "index.sqlite")
    index.bind("bench", IDENTITY, None, None)
    keys = [random.Random(n).randbytes(32) for n in range(KEYS)]
    index.put("bench", keys, ["sha256:" + key.hex() for key in keys], [65_536] * KEYS)
    index.save()
    database = sqlite3.connect(base / "index.sqlite")
    one = "SELECT digest FROM pages WHERE namespace = 1 AND key = ?"
    many = f"SELECT key, digest FROM pages WHERE namespace = 1 AND key IN ({', '.join('?' * ASKED)})"
    ways: Mapping[str, Callable[[list[bytes]], int]] = {
        "dictionary in memory": lambda asked: len(index.find("bench", asked, leading=True)),
        "SQLite, one statement": lambda asked: len(dict(database.execute(many, [b"b" + key for key in asked]))),
        "SQLite, key by key": lambda asked: sum(database.execute(one, (b"b" + key,)).fetchone() is not None for key in asked),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(3 * rounds):
        start = random.Random(number).randrange(KEYS - ASKED)
        for name, way in ways.items():
            found, taken = timed(way, keys[start : start + ASKED])
            if found != ASKED:
                raise ValueError(f"{name} found {found} keys of {ASKED}")
            seconds[name].append(taken)
    database.close()
    index.close()
    return "\n".join(f"| {name} | {median(taken) / ASKED * 1e6:.2f} |" for name, taken in seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="pfimg-bench-", dir="/dev/shm"))
    try:
        print("| pages of | contender | call | GB/s | against plain files |", "|---|---|---|---:|---:|", sep="\n")
        for label in ("64 KiB", "2 MiB"):
            table, result = pages(label, base, options.rounds)
            print(table, flush=True)
            if result.disturbed:
                say(f"{label}: others used the processors in {result.disturbed} rounds")
        print("\n| leading hits of 1,000 keys | µs a key |", "|---|---:|", look_ups(base, options.rounds), sep="\n")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()

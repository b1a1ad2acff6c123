"""Pages in mapped memory: what goes in comes out or is a miss, whoever writes, dies or reads beside it. hashlib is the oracle."""

import hashlib
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pfimg

PAGE = 4096

# Puts pages of its own for ever; says so once the first batch is in.
WRITER = """
import sys
import numpy as np, pfimg
arena = pfimg.PageArena(sys.argv[1], page_bytes=4096, capacity_bytes=64 * 4096)
random = np.random.default_rng(int(sys.argv[2]))
arena.put_many(random.integers(0, 256, (32, 4096), dtype=np.uint8))
print("started", flush=True)
while True:
    arena.put_many(random.integers(0, 256, (32, 4096), dtype=np.uint8))
"""


def pages(count: int, seed: int = 0, size: int = PAGE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


def names(rows: npt.NDArray[np.uint8]) -> list[str]:
    return ["sha256:" + hashlib.sha256(row.tobytes()).hexdigest() for row in rows]


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[pfimg.PageArena]:
    with pfimg.PageArena(tmp_path / "arena", page_bytes=PAGE, capacity_bytes=64 * PAGE) as made:
        yield made


def test_pages_go_in_and_come_out(arena: pfimg.PageArena) -> None:
    batch = pages(40)
    digests = arena.put_many(batch)
    assert digests == names(batch)
    out = np.empty_like(batch)
    arena.get_many(digests, out=out)
    assert (out == batch).all()
    assert arena.put_many(list(batch), digests=digests) == digests
    stats = arena.stats()
    assert (stats["slots"], stats["pages"], stats["written"], stats["deduplicated"], stats["hits"]) == (64, 40, 40, 40, 40)


@pytest.mark.parametrize("offset", [0, 1, 16, 64, 2049])
def test_memory_may_begin_anywhere(offset: int) -> None:
    size = 5 * PAGE + 30
    memory = np.zeros((2, 8 * size + 8192), np.uint8)
    source, out = (row[(offset - row.ctypes.data) % 4096 :][: 8 * size].reshape(8, size) for row in memory)
    source[:] = pages(8, size=size)
    with pfimg.PageArena(None, page_bytes=size, capacity_bytes=8 * size) as arena:
        assert arena.put_many(source) == names(source)
        arena.get_many(names(source), out=out)
    assert (out == source).all()


def test_misses_are_masked_or_raised(arena: pfimg.PageArena) -> None:
    batch = pages(3)
    digests = arena.put_many(batch[:2])
    wanted = [digests[0], names(batch)[2], digests[1]]
    out = np.zeros_like(batch)
    assert arena.get_many(wanted, out=out, errors="mask") == arena.has_many(wanted) == [True, False, True]
    assert (out[[0, 2]] == batch[:2]).all()
    with pytest.raises(pfimg.BlobNotFound) as caught:
        arena.get_many(wanted, out=out)
    assert caught.value.index == 1


def test_wrong_arguments_are_named(arena: pfimg.PageArena, tmp_path: Path) -> None:
    batch = pages(2)
    with pytest.raises(pfimg.LimitExceeded) as long:
        arena.put_many([b"", b"x" * (PAGE + 1)])
    assert (long.value.index, long.value.limit) == (1, PAGE)
    with pytest.raises(pfimg.IntegrityError) as wrong:
        arena.put_many(batch, digests=names(batch)[::-1])
    assert wrong.value.index in (0, 1)
    with pytest.raises(pfimg.FormatError, match="2 buffers"):
        arena.put_many(batch, digests=names(batch)[:1])
    digests = arena.put_many(batch)
    with pytest.raises(pfimg.FormatError, match="bytes where 9 are expected"):
        arena.get_many(digests[:1], out=[bytearray(9)])
    with pytest.raises(pfimg.FormatError, match="blake3"):
        arena.get_many(["blake3:" + "0" * 64], out=[bytearray(9)])
    with pytest.raises(pfimg.FormatError, match="capacity_bytes"):
        pfimg.PageArena(None, page_bytes=PAGE, capacity_bytes=PAGE - 1)
    with pytest.raises(pfimg.StoreError, match="open to write already"):
        pfimg.PageArena(tmp_path / "arena", page_bytes=PAGE, capacity_bytes=64 * PAGE)
    with pytest.raises(FileNotFoundError):
        pfimg.PageArena.attach(tmp_path / "none")


def test_what_was_asked_for_survives_a_scan(arena: pfimg.PageArena) -> None:
    hot = pages(16, seed=1)
    digests = arena.put_many(hot)
    out = np.empty_like(hot)
    arena.get_many(digests, out=out)
    arena.get_many(digests, out=out)
    for scan in range(40):
        arena.put_many(pages(16, seed=100 + scan))
    assert arena.get_many(digests, out=out, errors="mask") == [True] * 16
    assert arena.stats()["evicted"] == 40 * 16 + 16 - 64


def test_a_closed_arena_says_so_and_opens_warm_again(tmp_path: Path) -> None:
    batch = pages(20)
    path = tmp_path / "arena"
    with pfimg.PageArena(path, page_bytes=PAGE, capacity_bytes=32 * PAGE) as arena:
        digests = arena.put_many(batch)
    with pytest.raises(pfimg.StoreError, match="closed"):
        arena.has_many(digests)
    out = np.empty_like(batch)
    with pfimg.PageArena(path, page_bytes=PAGE, capacity_bytes=32 * PAGE) as arena:
        arena.get_many(digests, out=out)
        assert (out == batch).all()
        assert (arena.path, arena.page_bytes, arena.slots, arena.digest) == (path, PAGE, 32, "sha256")
    with pytest.raises(pfimg.FormatError, match="32 pages of 4096 bytes"):
        pfimg.PageArena(path, page_bytes=PAGE * 2, capacity_bytes=32 * PAGE)


def test_flipped_bytes_are_misses_and_heal(arena: pfimg.PageArena) -> None:
    batch = pages(64)
    digests = arena.put_many(batch)
    assert arena.path is not None
    with open(arena.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        start = len(memory) - 64 * PAGE
        chosen = random.Random(5)
        for slot in chosen.sample(range(64), 20):
            memory[start + slot * PAGE + chosen.randrange(PAGE)] ^= 1 << chosen.randrange(8)
    out = np.empty_like(batch)
    mask = arena.get_many(digests, out=out, errors="mask")
    assert sum(mask) == 44
    assert (out[mask] == batch[mask]).all()
    assert arena.stats()["corrupt"] == 20
    arena.put_many(batch)
    arena.get_many(digests, out=out)
    assert (out == batch).all()


def test_pages_go_to_a_store_and_come_from_it(arena: pfimg.PageArena, tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", durability="none")
    batch = pages(40)
    digests = arena.put_many(batch)
    path = arena.path
    assert path is not None
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(batch[7].tobytes())
        memory[at + 100] ^= 1
    wanted = [*digests, names(pages(1, seed=9))[0]]
    whole = [n != 7 for n in range(40)]
    assert arena.write_to(store, wanted) == [*whole, False] == store.has_many(wanted)
    assert arena.stats()["corrupt"] == 1
    assert [store.get(digest) for digest, held in zip(digests, whole, strict=True) if held] == [
        row.tobytes() for row, held in zip(batch, whole, strict=True) if held
    ]
    arena.remove(digests)
    out = np.zeros_like(batch)
    assert arena.read_from(store, digests, out=out) == whole == arena.has_many(digests)
    assert (out[whole] == batch[whole]).all()
    out[:] = 0
    assert arena.get_many(digests, out=out, errors="mask") == whole
    assert (out[whole] == batch[whole]).all()


def test_what_cannot_be_written_or_read_is_told(arena: pfimg.PageArena, tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", durability="none")
    digests = arena.put_many(pages(2))
    assert arena.write_to(store, digests) == [True, True]
    with pytest.raises(pfimg.FormatError, match="bytes where 9 are expected") as short:
        arena.read_from(store, digests, out=[bytearray(PAGE), bytearray(9)])
    assert short.value.index == 1
    with pytest.raises(pfimg.FormatError, match="3 rows for 2 digests"):
        arena.read_from(store, digests, out=np.zeros((3, PAGE), np.uint8))
    other = pfimg.PfStore.open(tmp_path / "other", digest="blake3")
    with pytest.raises(pfimg.FormatError, match="blake3"):
        arena.write_to(other, digests)
    with pytest.raises(pfimg.FormatError, match="blake3"):
        arena.write_to(store, ["blake3:" + "0" * 64])
    path = arena.path
    assert path is not None
    with pfimg.PageArena.attach(path) as attached:
        with pytest.raises(pfimg.StoreError, match="attached to read"):
            attached.write_to(store, digests)
        with pytest.raises(pfimg.StoreError, match="attached to read"):
            attached.read_from(store, digests, out=pages(2))


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_no_wrong_page(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "arena"
    generator = np.random.default_rng(seed)
    known: dict[str, npt.NDArray[np.uint8]] = {}
    with subprocess.Popen([sys.executable, "-c", WRITER, path, str(seed)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
        # It is killed somewhere in the batches after the first, the further the more is hashed here meanwhile.
        for _ in range(4 + 3 * seed):
            batch = generator.integers(0, 256, (32, PAGE), dtype=np.uint8)
            known.update(zip(names(batch), batch, strict=True))
        writer.send_signal(signal.SIGKILL)
    with pfimg.PageArena(path, page_bytes=PAGE, capacity_bytes=64 * PAGE) as arena:
        held = arena.stats()["pages"]
        assert 16 <= held <= 64
        out = np.empty((len(known), PAGE), np.uint8)
        mask = arena.get_many(list(known), out=out, errors="mask")
        expected = np.stack(list(known.values()))
        assert (out[mask] == expected[mask]).all()
        assert arena.stats()["corrupt"] == 0
        # Nothing is lost: all slots can be used again.
        batch = pages(64, seed=99)
        digests = arena.put_many(batch)
        assert sum(arena.has_many(digests)) >= 58


def read_while_written(path: str, seed: int, results: "multiprocessing.Queue[tuple[int, int]]") -> None:
    """Reads pages that come and go; every one that it gets is hashed by hashlib."""
    arena = pfimg.PageArena.attach(path)
    generator = random.Random(seed)
    right = wrong = 0
    rows = [pages(16, seed=100 + n) for n in range(12)]
    wanted = [names(batch) for batch in rows]
    for _ in range(120):
        n = generator.randrange(12)
        out = np.empty((16, PAGE), np.uint8)
        for name, row, found in zip(wanted[n], out, arena.get_many(wanted[n], out=out, errors="mask"), strict=True):
            if found:
                right += 1
                wrong += "sha256:" + hashlib.sha256(row.tobytes()).hexdigest() != name
    results.put((right, wrong))


def test_readers_in_other_processes_get_right_pages_or_none(arena: pfimg.PageArena) -> None:
    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, int]] = spawn.Queue()
    for n in range(12):
        arena.put_many(pages(16, seed=100 + n))
    readers = [spawn.Process(target=read_while_written, args=(str(arena.path), seed, results)) for seed in range(2)]
    for reader in readers:
        reader.start()
    batches = [pages(16, seed=100 + n) for n in range(12)]
    turn = 0
    while any(reader.is_alive() for reader in readers) and results.qsize() < len(readers):
        arena.put_many(batches[turn % 12])
        turn += 1
    found = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert all(right > 0 and wrong == 0 for right, wrong in found), found


def test_an_attached_arena_follows_the_writer_and_does_not_write(arena: pfimg.PageArena) -> None:
    assert arena.path is not None
    with pfimg.PageArena.attach(arena.path) as reader:
        batch = pages(10)
        digests = arena.put_many(batch)
        out = np.empty_like(batch)
        reader.get_many(digests, out=out)
        assert (out == batch).all()
        arena.remove(digests[:5])
        assert reader.has_many(digests) == [False] * 5 + [True] * 5
        calls: list[Callable[[list[str]], object]] = [reader.put_many, reader.pin, reader.unpin, reader.remove]
        for call in calls:
            with pytest.raises(pfimg.StoreError, match="attached to read"):
                call([])


def test_pins_hold_pages_until_all_slots_are_pinned(arena: pfimg.PageArena) -> None:
    digests = arena.put_many(pages(64))
    absent = names(pages(1, seed=9))
    assert arena.pin(digests + absent) == [True] * 64 + [False]
    with pytest.raises(pfimg.StoreError, match="not pinned"):
        arena.put_many(pages(1, seed=9))
    assert arena.unpin(digests[:1] * 2) == [True, False]
    assert arena.put_many(pages(1, seed=9)) == absent
    assert arena.has_many(digests) == [False] + [True] * 63
    assert arena.stats()["pinned"] == 63


def test_threads_share_an_arena() -> None:
    arena = pfimg.PageArena(None, page_bytes=PAGE, capacity_bytes=40 * PAGE)
    batches = [pages(24, seed=n) for n in range(6)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        out = np.empty_like(batches[0])
        for _ in range(30):
            batch = chosen.choice(batches)
            mask = arena.get_many(arena.put_many(batch), out=out, errors="mask")
            wrong.append(int((out[mask] != batch[mask]).sum()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 120
    assert arena.path is None
    # No slot was lost.
    arena.put_many(pages(80, seed=9))
    assert arena.stats()["pages"] == 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_is_told_to_open_it_again(arena: pfimg.PageArena) -> None:
    digests = arena.put_many(pages(4))
    child = os.fork()
    if child == 0:
        try:
            arena.has_many(digests)
        except pfimg.StoreError as error:
            os._exit(0 if "in this one" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert arena.has_many(digests) == [True] * 4


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm here")
def test_a_full_file_system_is_told_at_once() -> None:
    free = os.statvfs("/dev/shm")
    path = Path(f"/dev/shm/pfimg-test-{os.getpid()}")
    try:
        with pytest.raises(OSError, match="No space left"):
            pfimg.PageArena(path, page_bytes=1 << 20, capacity_bytes=free.f_frsize * free.f_blocks + (1 << 30))
        assert path.stat().st_size == 0
    finally:
        path.unlink()

"""What this machine and a directory on it allow, and how near the store comes.

The limits are measured beside the store, in rounds in which all take turns: hashing alone, copying memory, and plain files of the
same sizes in the same directory, neither hashed nor verified. A program that hashes and writes one after the other cannot be
faster than 1 / (1 / hash rate + 1 / write rate); the store's share of that is the verdict.

The pages are made up: bf16 numbers of a normal distribution, about as compressible as real keys and values. What is read comes
from the page cache. Nothing is deleted before the end, since a file system that has just deleted many files is slow to create
others.
"""

import ctypes
import os
import random
import shutil
from array import array
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from pfimg import _core
from pfimg.errors import LimitExceeded
from pfimg.store import PfStore
from pfimg.types import Progress, ProgressCallback, human_size

DEFAULT_SIZE = 512 << 20
DEFAULT_PAGE_BYTES = 64 << 10
ROUNDS = 5
"""The first one only warms up."""
CODECS = ("auto", "store", "zstd", "float")
# Plain files and a durable store, then one store a codec.
_COPIES = 2 + len(CODECS)
_HEADROOM = 1.1  # directories, frame headers
_POOL_VALUES = 1 << 21
LEAST_PAGE_BYTES = 16
"""What tells a page from all others is that long."""


@dataclass(frozen=True, slots=True)
class CodecRates:
    """How fast a store with this codec is, in bytes a second, and its files' share of the pages' size."""

    store: float
    load: float
    size: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Rates in bytes a second: medians of the rounds.

    Attributes:
        directory: Where files were written.
        kernel: What hashes blobs side by side with SHA-256.
        threads: How many threads hash, encode, write and read.
        pages, page_bytes: What was stored in each round.
        rounds: How many rounds there were.
        memory_copy, hash, plain_write, plain_write_synced, plain_read: What bounds the store.
        store, load: The store as it comes, but waiting for no disk (`durability="none"`).
        store_synced: The store as it comes: the pages have reached the disk when the call returns.
        codecs: The same for each codec, waiting for no disk.
    """

    directory: str
    kernel: str
    threads: int
    pages: int
    page_bytes: int
    rounds: int
    memory_copy: float
    hash: float
    plain_write: float
    plain_write_synced: float
    plain_read: float
    store: float
    store_synced: float
    load: float
    codecs: dict[str, CodecRates]

    @property
    def limits(self) -> dict[str, float]:
        """What hashing and plain files, one after the other, allow each call."""
        plain = {"store": self.plain_write, "store_synced": self.plain_write_synced, "load": self.plain_read}
        return {call: 1 / (1 / self.hash + 1 / rate) for call, rate in plain.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Each call's rate as a share of its limit."""
        return {call: getattr(self, call) / limit for call, limit in self.limits.items()}

    @property
    def verdict(self) -> str:
        """How near the store comes, and what a faster one would need, in a sentence."""
        shares = self.shares
        slower = "hashing" if self.hash < self.plain_write_synced else "writing to this directory"
        store, synced, load = (f"{shares[call]:.0%}" for call in ("store", "store_synced", "load"))
        return (
            f"storing runs at {synced} of what hashing and this directory allow ({store} without waiting for the disk), "
            f"loading at {load}; of the two, {slower} takes longer"
        )

    def __str__(self) -> str:
        def line(name: str, rate: float, beside: str = "") -> str:
            return f"  {name:<34}{rate / 1e9:7.2f} GB/s{'  ' + beside if beside else ''}"

        def of_limit(call: str) -> str:
            return f"{self.shares[call]:.0%} of {self.limits[call] / 1e9:.2f} GB/s"

        return "\n".join(
            [
                f"{self.pages:,} pages of {self.page_bytes:,} bytes, {self.rounds} rounds, in {self.directory}",
                f"{self.threads} threads, SHA-256 by {self.kernel}",
                "limits",
                line("copy memory", self.memory_copy),
                line("hash", self.hash),
                line("write plain files", self.plain_write),
                line("write plain files to the disk", self.plain_write_synced),
                line("read plain files", self.plain_read),
                "store, and its share of what hashing and plain files allow",
                line("put_many", self.store_synced, of_limit("store_synced")),
                line('put_many, durability="none"', self.store, of_limit("store")),
                line("get_many", self.load, of_limit("load")),
                "codecs, without waiting for the disk",
                *(
                    line(name, rates.store, f"stored, {rates.load / 1e9:.2f} GB/s loaded, {rates.size:.0%} of the size")
                    for name, rates in self.codecs.items()
                ),
                self.verdict,
            ]
        )


def measure(
    directory: Path,
    *,
    size: int = DEFAULT_SIZE,
    page_bytes: int = DEFAULT_PAGE_BYTES,
    progress: ProgressCallback | None = None,
) -> BenchReport:
    """Measures in a new directory below `directory`, which is removed at the end, however that comes.

    Args:
        directory: An existing directory on the file system in question.
        size: Bytes that may be on the disk at once.
        page_bytes: Length of a page, at least 16.
        progress: Called before each round.

    Raises:
        LimitExceeded: `size` does not hold two pages of each kind, or the file system has not that much room.
    """
    count = size // (ROUNDS * _COPIES * page_bytes)
    if count < 2:  # noqa: PLR2004 - one for each hand of a batch call
        raise LimitExceeded(f"a size of {human_size(size)} is too little for pages of {human_size(page_bytes)}")
    needed = int(size * _HEADROOM)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise LimitExceeded(f"{directory} has {human_size(free)} left, {human_size(needed)} are needed: choose a smaller size")
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory(prefix=".pfimg-bench-", dir=directory, ignore_cleanup_errors=True)))
        hands = stack.enter_context(ThreadPoolExecutor(_core.threads()))
        bench = _Bench(root, hands, count, page_bytes)
        for number in range(ROUNDS):
            if progress is not None:
                progress(Progress("measure", number, ROUNDS, 0))
            bench.round(number)
        return bench.report(directory)


class _Bench:
    """The pages, the files, and the seconds that everything took."""

    def __init__(self, root: Path, hands: ThreadPoolExecutor, count: int, page_bytes: int) -> None:
        self._root, self._hands, self._count, self._page_bytes = root, hands, count, page_bytes
        self._pages = _float_pages(count, page_bytes)
        self._out = bytearray(b"\1") * len(self._pages)  # touched: the first touch of memory costs more than anything measured
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._sizes: dict[str, float] = {}
        self._turns: list[Callable[[Path], None]] = [self._memory, self._hashing, self._plain]
        self._turns.append(partial(self._store, "synced", codec="auto", durability="group"))
        self._turns += [partial(self._store, codec, codec=codec, durability="none") for codec in CODECS]

    def round(self, number: int) -> None:
        """Measures everything once, in another order each time, with pages that have not been there before."""
        _stamp(self._pages, self._page_bytes, number)
        first = number % len(self._turns)
        for turn, act in enumerate(self._turns[first:] + self._turns[:first]):
            act(self._root / f"{number}-{turn}")
        if number == 0:
            self._seconds.clear()

    def report(self, directory: Path) -> BenchReport:
        """The medians."""
        rates = {name: len(self._pages) / median(seconds) for name, seconds in self._seconds.items()}
        return BenchReport(
            directory=str(directory),
            kernel=_core.kernel(),
            threads=_core.threads(),
            pages=self._count,
            page_bytes=self._page_bytes,
            rounds=ROUNDS - 1,
            memory_copy=rates["copy"],
            hash=rates["hash"],
            plain_write=rates["write"],
            plain_write_synced=rates["write synced"],
            plain_read=rates["read"],
            store=rates["put auto"],
            store_synced=rates["put synced"],
            load=rates["get auto"],
            codecs={name: CodecRates(rates[f"put {name}"], rates[f"get {name}"], self._sizes[name]) for name in CODECS},
        )

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = work()
        self._seconds[name].append(perf_counter() - start)
        return result

    def _shaped(self, buffer: bytearray) -> memoryview:
        return memoryview(buffer).cast("B", (self._count, self._page_bytes))

    def _share_out(self, work: Callable[[int], None]) -> None:
        """Does `work` for every page, each thread an equal run of them."""
        step = -(-self._count // _core.threads())

        def run(start: int) -> None:
            for ix in range(start, min(start + step, self._count)):
                work(ix)

        list(self._hands.map(run, range(0, self._count, step)))

    def _memory(self, _root: Path) -> None:
        source, target = (ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in (self._pages, self._out))
        size = self._page_bytes
        self._timed("copy", lambda: self._share_out(lambda ix: _memmove(target + ix * size, source + ix * size, size)))

    def _hashing(self, _root: Path) -> None:
        self._timed("hash", lambda: _core.digests_of(self._shaped(self._pages)))

    def _plain(self, root: Path) -> None:
        root.mkdir()
        pages, rows, size = memoryview(self._pages), memoryview(self._out), self._page_bytes
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

        def write(ix: int) -> None:
            file = os.open(f"{ix}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
            os.write(file, pages[ix * size : (ix + 1) * size])
            os.close(file)
            os.rename(f"{ix}.tmp", str(ix), src_dir_fd=directory, dst_dir_fd=directory)

        def read(ix: int) -> None:
            file = os.open(str(ix), os.O_RDONLY, dir_fd=directory)
            os.readv(file, [rows[ix * size : (ix + 1) * size]])
            os.close(file)

        def write_synced() -> None:
            self._timed("write", lambda: self._share_out(write))
            _sync(root)

        try:
            _sync(root)  # what was written before is not this one's work
            self._timed("write synced", write_synced)
            self._timed("read", lambda: self._share_out(read))
        finally:
            os.close(directory)

    def _store(self, name: str, root: Path, *, codec: str, durability: str) -> None:
        store = PfStore.open(root, codec=codec, durability=durability)
        _sync(self._root)
        digests = self._timed(f"put {name}", lambda: store.put_many(self._shaped(self._pages)))
        self._timed(f"get {name}", lambda: store.get_many(digests, out=self._shaped(self._out)))
        self._sizes[name] = store.physical_bytes() / len(self._pages)


def _float_pages(count: int, page_bytes: int) -> bytearray:
    """Pages of bf16 numbers, normally distributed; the same on every machine."""
    numbers = random.Random(0)  # noqa: S311 - no secret
    # The quantiles of the distribution, each as likely as the others: the upper halves of their 32 bits.
    quantile = NormalDist().inv_cdf
    values = array("I", array("f", (quantile((rank + 0.5) / 2**16) for rank in range(2**16))).tobytes())
    halves = array("H", (value >> 16 for value in values))
    pool = array("H", map(halves.__getitem__, array("H", numbers.randbytes(2 * _POOL_VALUES)))).tobytes()
    pages = bytearray()
    while len(pages) < count * page_bytes:
        pages += pool
    del pages[count * page_bytes :]
    return pages


def _stamp(pages: bytearray, page_bytes: int, round_: int) -> None:
    """Makes each page unlike all others."""
    for ix in range(len(pages) // page_bytes):
        pages[ix * page_bytes : ix * page_bytes + LEAST_PAGE_BYTES] = (round_ << 64 | ix).to_bytes(LEAST_PAGE_BYTES, "little")


# Called so, it lets other threads run, which a copy of a memoryview does not.
_memmove = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(("memmove", ctypes.CDLL(None)))


def _sync(directory: Path) -> None:
    """Brings what was written to this directory's file system to the disk; where there is no such call, to all disks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(file) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(directory))
    finally:
        os.close(file)

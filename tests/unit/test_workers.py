"""Requests side by side: what is bounded, what ends them, and what a sink is given."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pfimg
from pfimg.registries import StoredBlob, workers
from pfimg.registries.base import Range, Traffic
from pfimg.registries.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pfimg.types import Buffer, StrPath


class Listed:
    """A sink that remembers what it was given, and by which thread."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, bytes]]] = []
        self.threads: set[int] = set()

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        self.threads.add(threading.get_ident())
        self.batches.append([(digest, bytes(frame)) for digest, frame in items])

    def files(self, items: Sequence[tuple[str, StrPath]]) -> None:
        self.threads.add(threading.get_ident())
        self.batches.append([(digest, Path(path).read_bytes()) for digest, path in items])

    @property
    def got(self) -> dict[str, bytes]:
        return dict(item for batch in self.batches for item in batch)


class Gauge:
    """Counts who is inside, and the most there were."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self.inside -= 1


def no_threads_are_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("pfimg-request")]


def test_all_is_done_and_no_more_at_once_than_allowed() -> None:
    traffic, gauge = Traffic(), Gauge()
    meeting = threading.Barrier(3, timeout=10)

    def work(item: int) -> int:
        with gauge:
            if item < 3:
                meeting.wait()  # three are really at work at once
            return item * item

    pool = Workers(3, traffic, "here")
    assert sorted(pool.map(work, range(100))) == [(item, item * item) for item in range(100)]
    assert gauge.most == 3
    assert traffic.in_flight == 0
    assert no_threads_are_left()


def test_ctrl_c_while_a_thread_begins_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Workers(4, Traffic(), "here").run(lambda _: None, range(100))
    assert no_threads_are_left()


def test_bytes_in_flight_are_bounded_and_a_large_item_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IN_FLIGHT_BYTES", 100)
    lock = threading.Lock()
    held = 0
    most: dict[int, int] = {}

    def items() -> Iterator[int]:
        nonlocal held
        for size in [40, 40, 40, 250, 10, 90, 20] * 20:
            yield size
            # The caller comes back when it has handed this one out.
            with lock:
                held += size
                most[size] = max(most.get(size, 0), held)

    def give_back(size: int) -> None:
        nonlocal held
        with lock:
            held -= size

    Workers(4, Traffic(), "here").run(give_back, items(), lambda size: size)
    assert held == 0
    assert most.pop(250) <= 250
    assert max(most.values()) <= 100


def test_the_first_error_ends_the_call() -> None:
    started = []

    def work(item: int) -> None:
        started.append(item)
        if item == 5:
            raise pfimg.BackendError("no")

    with pytest.raises(pfimg.BackendError, match="no"):
        Workers(2, Traffic(), "here").run(work, range(1_000_000))
    assert len(started) < 1_000
    assert no_threads_are_left()


class Interrupted(Listed):
    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:  # noqa: ARG002 - as a sink has it
        raise KeyboardInterrupt


def test_what_the_caller_raises_ends_the_call() -> None:
    asked: list[str] = []
    digests = [f"sha256:{at:064x}" for at in range(100_000)]

    def get(digest: str, _: Path) -> bytes:
        asked.append(digest)
        return b"x"

    with pytest.raises(KeyboardInterrupt) as kept:  # and with it all that was under way
        Workers(2, Traffic(), "here").fetch(digests, get, Interrupted())
    assert len(asked) < 10_000
    assert no_threads_are_left()
    assert kept.value.__traceback__ is not None


def test_requests_under_way_are_told_to_stop() -> None:
    begun, stopped = threading.Event(), threading.Event()

    def work(at: int) -> None:
        if at == 0:
            begun.set()
            stopped.wait()  # as a server would be waited for
        begun.wait()
        raise KeyError(at)

    with pytest.raises(KeyError, match="1"):
        Workers(2, Traffic(), "here", stopped.set).run(work, range(10))
    assert no_threads_are_left()


def test_a_range_that_is_not_wanted_ends_the_others() -> None:
    asked: list[Range] = []

    def get(part: Range) -> bytes:
        asked.append(part)
        return bytes(part.length)

    def deliver(at: int, content: Buffer) -> None:
        raise pfimg.IntegrityError(f"{at}: {len(content)}")

    ranges = [Range("pack", at, 1) for at in range(10_000)]
    with pytest.raises(pfimg.IntegrityError, match=": 1") as kept:  # and with it all that was under way
        Workers(2, Traffic(), "here").fetch_ranges(ranges, get, deliver)
    assert len(asked) < 10_000
    assert no_threads_are_left()
    del kept


def test_who_waits_for_ever_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STALL_SECONDS", 0.3)
    release = threading.Event()
    pool = Workers(2, Traffic(), "s3://bucket")
    timer = threading.Timer(2, release.set)
    timer.start()
    with pytest.raises(pfimg.RegistryTimeout, match=r"s3://bucket: none of 3 requests") as caught:
        pool.run(lambda _: release.wait(), range(3))
    timer.join()
    assert caught.value.retryable


def test_a_sink_gets_batches_in_the_callers_thread_and_large_ones_as_files() -> None:
    digests = [f"sha256:{at:064x}" for at in range(600)]

    def get(digest: str, path: Path) -> bytes | Path:
        at = int(digest.partition(":")[2], 16)
        if at % 100 == 7:
            path.write_bytes(b"large %d" % at)
            return path
        return b"small %d" % at

    sink = Listed()
    Workers(4, Traffic(), "here").fetch(digests, get, sink)
    assert sink.got == {digest: b"%s %d" % (b"large" if at % 100 == 7 else b"small", at) for at, digest in enumerate(digests)}
    assert sink.threads == {threading.get_ident()}
    assert max(len(batch) for batch in sink.batches) == 256


def test_blobs_are_sent_in_threads() -> None:
    blobs = [StoredBlob(f"sha256:{at:064x}", 1, None, lambda: b"x") for at in range(50)]
    sent: set[str] = set()
    threads: set[int] = set()

    def put(blob: StoredBlob) -> None:
        threads.add(threading.get_ident())
        sent.add(blob.digest)
        assert blob.read() == b"x"

    Workers(None, Traffic(), "here").send(put, iter(blobs))
    assert sent == {blob.digest for blob in blobs}
    assert threading.get_ident() not in threads

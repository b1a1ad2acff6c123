"""Requests side by side: what they hold at most, and what becomes of those that nobody waits for any more."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pfimg.registries import workers
from pfimg.registries.base import Traffic
from pfimg.registries.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pfimg.types import Buffer, StrPath

KIB = 1 << 10


class Slow:
    """A sink that takes its time, and knows what has arrived and not been stored."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held = 0
        self.most = 0
        self.at_once = 0
        self.under_way = 0

    def arrive(self, size: int) -> bytes:
        with self.lock:
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
            self.held += size
            self.most = max(self.most, self.held)
        time.sleep(0.002)
        with self.lock:
            self.under_way -= 1
        return bytes(size)

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        time.sleep(0.02)
        with self.lock:
            self.held -= sum(len(frame) for _, frame in items)

    def files(self, items: Sequence[tuple[str, StrPath]]) -> None:
        raise AssertionError(items)


@pytest.mark.parametrize(("jobs", "bound"), [(4, 64 * KIB), (8, 64 * KIB), (16, 128 * KIB), (32, 256 * KIB)])
@pytest.mark.parametrize("small_first", [False, True])
def test_what_has_arrived_stays_within_a_bound(monkeypatch: pytest.MonkeyPatch, jobs: int, bound: int, small_first: bool) -> None:
    """With a KiB for each MiB."""
    monkeypatch.setattr(workers, "IN_FLIGHT_BYTES", 64 * KIB)
    monkeypatch.setattr(workers, "LARGE_BYTES", 8 * KIB)
    monkeypatch.setattr(workers, "_LAND_BYTES", 16 * KIB)
    sizes = [64 if small_first and at < 100 else 8 * KIB for at in range(300)]
    sink = Slow()

    def get(digest: str, _: Path) -> bytes:
        return sink.arrive(sizes[int(digest)])

    Workers(jobs, Traffic(), "here").fetch([str(at) for at in range(300)], get, sink)
    assert sink.held == 0
    assert sink.most <= bound


def test_small_ones_arrive_side_by_side() -> None:
    sink = Slow()
    Workers(16, Traffic(), "here").fetch([str(at) for at in range(400)], lambda _digest, _path: sink.arrive(KIB), sink)
    assert sink.at_once > 8  # of 16, as fast as threads come and go


def test_a_thread_that_was_left_behind_does_not_go_on_in_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_GRACE_SECONDS", 0.01)
    pool = Workers(2, Traffic(), "here")
    left = threading.Event()
    ended: list[bool] = []
    seen = threading.Event()

    def work(item: str) -> None:
        if item == "fails":
            raise KeyError(item)
        left.wait(30)
        ended.append(pool.pause(0))  # as between two attempts at a request
        seen.set()

    with pytest.raises(KeyError):
        pool.run(work, ["waits", "fails"])
    asked: list[bool] = []

    def ask(_: int) -> None:
        left.set()
        assert seen.wait(30)
        asked.append(pool.pause(0))

    pool.run(ask, [1])
    assert (ended, asked) == ([True], [False])
    assert not pool.pause(0)  # in the caller's own thread

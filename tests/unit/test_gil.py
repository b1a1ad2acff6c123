"""Other threads run while the core works.

The switch interval is set so long that a thread loses the GIL only where it gives it away. A second thread counts; if its count
grows between the start and the end of a call, then the call gave the GIL away. A call that does not can be made any number of
times without any count, so that repeating it until something was counted proves the same, whenever the system lets the other
thread run.
"""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import pfimg
from pfimg import _core

pytestmark = pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL")


class Counter:
    """Counts as long as it lives, whenever it has the GIL."""

    def __init__(self) -> None:
        self.count = 0
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            self.count += 1
            time.sleep(0)  # gives the GIL away

    def counts_during(self, call: Callable[[], object], *, times: int = 100) -> bool:
        for _ in range(times):
            before = self.count
            call()
            if self.count > before:
                return True
        return False


@pytest.fixture
def counter() -> Iterator[Counter]:
    counter = Counter()
    thread = threading.Thread(target=counter.run)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread.start()
    try:
        yield counter
    finally:
        counter.ended = True
        thread.join()
        sys.setswitchinterval(interval)


PAGES = np.random.default_rng(0).integers(0, 256, (64, 1 << 20), dtype=np.uint8)
META = pfimg.CacheMeta(page_size_tokens=1 << 10, n_layers=1, n_heads=1, head_dim=1 << 10, dtype="fp8e4m3")


@pytest.mark.parametrize(
    "name",
    [
        "digest_of",
        "encode_frame",
        "decode_frame",
        "put",
        "get",
        "put_many",
        "get_many",
        "get_many out",
        "put_pages",
        "get_pages",
        "read_frames",
        "check_blob",
        "car plan",
        "car chunk",
        "car feed",
    ],
)
def test_the_gil_is_free_while_bytes_are_worked_on(tmp_path: Path, counter: Counter, name: str) -> None:
    store = pfimg.PfStore.open(tmp_path, durability="none")
    digests = store.put_many(PAGES)
    pages = store.put_pages(META, PAGES[:32], PAGES[32:])
    frame = _core.encode_frame(PAGES)
    out = np.empty_like(PAGES)
    plan = pfimg.car.plan([("pages", PAGES)])
    archive = b"".join(plan)
    calls: dict[str, Callable[[], object]] = {
        "digest_of": lambda: pfimg.digest_of(PAGES),
        "encode_frame": lambda: _core.encode_frame(PAGES, codec="zstd"),
        "decode_frame": lambda: _core.decode_frame(frame),
        "put": lambda: store.put(PAGES),
        "get": lambda: store.get(digests[0]),
        "put_many": lambda: store.put_many(PAGES),
        "get_many": lambda: store.get_many(digests),
        "get_many out": lambda: store.get_many(digests, out=out),
        "put_pages": lambda: store.put_pages(META, PAGES[:32], PAGES[32:]),
        "get_pages": lambda: store.get_pages(pages),
        "read_frames": lambda: store.read_frames(digests),
        "check_blob": lambda: store.check_blob(digests[0]),
        "car plan": lambda: pfimg.car.plan([("pages", PAGES)]),
        "car chunk": lambda: next(iter(plan)),
        "car feed": lambda: pfimg.car.Reader().feed(archive),
    }
    assert counter.counts_during(calls[name])


def test_the_gil_is_kept_below_2048_bytes(counter: Counter) -> None:
    assert not counter.counts_during(lambda: _core.digest_of(bytes(2047)), times=10_000)
    assert counter.counts_during(lambda: _core.digest_of(bytes(2048)), times=1_000_000)


def test_a_call_that_waits_for_somebody_lets_others_run(store: pfimg.PfStore) -> None:
    # Who has the lock of a store, as gc does for moments, is a thread that needs the GIL to let go of it.
    path = store.root / "lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def let_go() -> None:
            # Once the other one has the file open too, and waits.
            while sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve()) for fd in os.listdir("/proc/self/fd")) < 2:
                pass
            fcntl.flock(lock, fcntl.LOCK_UN)

        thread = threading.Thread(target=let_go)
        thread.start()
        with store.hold():
            thread.join()


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, durability="none")
    want = [pfimg.digest_of(page) for page in PAGES]
    found: dict[int, list[bytes]] = {}

    def work(n: int) -> None:
        assert store.put_many(PAGES[n % 2 :: 2].copy()) == want[n % 2 :: 2]
        found[n] = store.get_many(want[n % 2 :: 2])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(4):
        assert found[n] == [page.tobytes() for page in PAGES[n % 2 :: 2]]

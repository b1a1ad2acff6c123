"""Ctrl-C, and exceptions from `tick`, end a long call soon and leave nothing half-done."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pfimg


@pytest.fixture(autouse=True)
def _ctrl_c_raises() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def once(happened: Callable[[], bool]) -> threading.Thread:
    """Presses Ctrl-C once something has happened."""

    def watch() -> None:
        while not happened():
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def texts(count: int, size: int) -> list[bytes]:
    return [random.Random(n).randbytes(size // 2).hex().encode() for n in range(count)]


def test_ctrl_c_ends_a_batch_of_puts(tmp_path: Path) -> None:
    # At this level the whole batch would take minutes.
    store = pfimg.PfStore.open(tmp_path, codec="zstd", level=19, durability="none")
    blobs = texts(60, 1 << 19)
    watcher = once(lambda: bool(files(tmp_path / "blobs")))
    with pytest.raises(KeyboardInterrupt):
        store.put_many(blobs)
    watcher.join()
    stored = files(tmp_path / "blobs")
    assert len(stored) < len(blobs)
    assert {path.suffix for path in stored} <= {".zst"}
    report = store.verify()
    assert report.ok
    assert not report.foreign
    # The same call again completes what is missing.
    again = pfimg.PfStore.open(tmp_path, codec="store", durability="none")
    assert again.get_many(again.put_many(blobs)) == blobs


class Slow:
    """A blob store in Python that presses Ctrl-C at its first put."""

    def __init__(self) -> None:
        self.puts = 0
        self.noticed = threading.Event()
        signal.signal(signal.SIGINT, self.handle)

    def handle(self, *_: object) -> None:
        self.noticed.set()
        raise KeyboardInterrupt

    def put(self, data: bytes) -> str:
        self.puts += 1
        if self.puts == 1:
            os.kill(os.getpid(), signal.SIGINT)
            # Only the call itself, which waits beside the work, can notice.
            assert self.noticed.wait(60)
        return pfimg.digest_of(data)

    def get(self, digest: str) -> bytes:
        raise KeyError(digest)

    def has(self, _digest: str) -> bool:
        return False

    def physical_bytes(self) -> int:
        return 0


def test_ctrl_c_is_noticed_while_the_work_goes_on(tmp_path: Path) -> None:
    blobs = Slow()
    many = [b"blob"] * 1_000_000
    with pytest.raises(KeyboardInterrupt):
        pfimg.PfStore.with_blobstore(tmp_path, blobs).put_many(many)
    assert 1 <= blobs.puts < len(many)


class StopError(Exception):
    """What a caller's tick raises."""


def stop(_done: int, _total: int, _bytes: int) -> None:
    raise StopError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for n, text in enumerate(texts(50, 5000)):
        (root / f"{n}.txt").write_bytes(text)
    return root


def test_an_exception_from_tick_ends_a_restore_and_leaves_nothing(store: pfimg.PfStore, tree: Path, tmp_path: Path) -> None:
    digest = store.put_tree(tree)
    parent = tmp_path / "parent"
    parent.mkdir()
    with pytest.raises(StopError):
        store.restore_tree(digest, parent / "target", tick=stop)
    assert list(parent.iterdir()) == []
    store.restore_tree(digest, parent / "target")
    assert len(files(parent)) == 50


def test_an_exception_from_tick_ends_a_capture(store: pfimg.PfStore, tree: Path) -> None:
    with pytest.raises(StopError):
        store.put_tree(tree, tick=stop)
    report = store.verify()
    assert report.ok
    assert not report.foreign


def test_an_exception_from_tick_ends_a_verify(store: pfimg.PfStore, tree: Path) -> None:
    store.put_tree(tree)
    with pytest.raises(StopError):
        store.run_verify(tick=stop)


def test_ticks_come_first_and_last_on_the_calling_thread(store: pfimg.PfStore, tree: Path) -> None:
    for call_from in (lambda work: work(), in_a_thread):
        ticks: list[tuple[int, int, int, int]] = []

        def tick(done: int, total: int, size: int, ticks: list[tuple[int, int, int, int]] = ticks) -> None:
            ticks.append((done, total, size, threading.get_ident()))

        threads: list[int] = []

        def work(threads: list[int] = threads, tick: Callable[[int, int, int], None] = tick) -> None:
            threads.append(threading.get_ident())
            store.put_tree(tree, tick=tick)

        call_from(work)
        assert len(ticks) >= 2
        assert {ident for *_, ident in ticks} == set(threads)
        assert ticks[-1][:2] == (50, 50)
        assert ticks[-1][2] == sum(path.stat().st_size for path in tree.iterdir())


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_error_of_the_work_is_not_lost_behind_ticks(store: pfimg.PfStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        store.put_tree(tmp_path / "absent", tick=lambda *_: None)
    assert caught.value.filename == str(tmp_path / "absent")

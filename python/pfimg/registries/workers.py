"""Requests side by side, for adapters: bounded in number and in bytes, ended by the first error, and never waiting for ever.

Threads do the input and output; the caller's own thread hands out the work and takes what comes back, so that sinks, progress
and Ctrl-C are all in the thread that made the call. What stops the caller, be it an error of a request, an exception of the
sink or Ctrl-C, stops the handing out at once. Requests that are under way are then told to stop, where they can be told, and
waited for a moment; one that takes longer goes on until its own timeout, in a thread that keeps no process from ending, and
nobody sees what becomes of it.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Final, Generic, NamedTuple, TypeVar, cast

from pfimg.errors import RegistryTimeout
from pfimg.registries.base import Range, Sink, StoredBlob, Traffic
from pfimg.types import Buffer

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_JOBS: Final = 16
"""Requests at once where `jobs` is not given."""

IN_FLIGHT_BYTES: Final = 64 << 20
"""Bytes that are held at once for requests under way; one larger item goes alone."""

LARGE_BYTES: Final = 8 << 20
"""A frame that is larger does not lie in memory as a whole."""

STALL_SECONDS: Final = 300.0
"""When no request comes to an end for so long, the call does."""

# After an error, so long is waited for requests that are under way.
_GRACE_SECONDS: Final = 0.5
# What a sink is given at once: enough for all of the core's threads.
_LAND_ITEMS: Final = 256
_LAND_BYTES: Final = 16 << 20
# So many items for each thread wait or are worked on, so that threads have work while a sink is busy.
_QUEUE: Final = 8
# Which call a thread works for, as the event that says that this call has ended.
_here: Final = threading.local()


class _Task(NamedTuple, Generic[T]):
    """An item to work on, and the bytes that it holds."""

    item: T
    size: int


class _Done(NamedTuple, Generic[T, R]):
    """What became of a task: a result, or an error."""

    task: _Task[T]
    result: R | None
    error: BaseException | None


class _Crew(Generic[T, R]):
    """Threads that work on tasks; each begins when there is something for it to do.

    Attributes:
        running: Tasks that have been handed out and not been taken back.
        held: Their bytes.
        ending: Set when the call has ended. It is the crew's own, so that a thread that was left behind is not taken along by
            the next call.
    """

    def __init__(self, work: Callable[[T], R], most: int) -> None:
        self.running = 0
        self.held = 0
        self.ending = threading.Event()
        self._work = work
        self._most = most
        self._threads: list[threading.Thread] = []
        self._tasks: SimpleQueue[_Task[T] | None] = SimpleQueue()
        self._done: SimpleQueue[_Done[T, R]] = SimpleQueue()

    def hand_out(self, item: T, size: int) -> None:
        self.running += 1
        self.held += size
        self._tasks.put(_Task(item, size))
        if len(self._threads) < min(self.running, self._most):
            thread = threading.Thread(target=self._serve, name="pfimg-request", daemon=True)
            self._threads.append(thread)
            thread.start()

    def take_back(self, seconds: float) -> Iterator[_Done[T, R]]:
        """Tasks that are done: at least one; Empty when there is none for so long."""
        yield self._count(self._done.get(timeout=seconds))
        while not self._done.empty():
            yield self._count(self._done.get())

    def end(self) -> None:
        """What is not begun is not done; what is under way is waited for a moment."""
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + _GRACE_SECONDS
        for thread in self._threads:
            if thread.is_alive():  # the last one may not have begun when the caller was interrupted
                thread.join(max(0.0, until - time.monotonic()))

    def _count(self, done: _Done[T, R]) -> _Done[T, R]:
        self.running -= 1
        self.held -= done.task.size
        return done

    def _serve(self) -> None:
        _here.ending = self.ending
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        # A function, so that a thread that waits for the next task does not hold the bytes of the last one.
        if (task := self._tasks.get()) is None:
            return False
        try:
            self._done.put(_Done(task, self._work(task.item), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was handed out
            self._done.put(_Done(task, None, error))
        return True


class Workers:
    """Threads for the requests of one transport.

    Args:
        jobs: Requests at once.
        traffic: Where requests under way are counted.
        name: Of the place, for messages.
        stop: Makes requests that are under way end soon; called when they are of no use any more.
        stall: When no request comes to an end for so many seconds, the call does; None for `STALL_SECONDS`.
    """

    def __init__(
        self,
        jobs: int | None,
        traffic: Traffic,
        name: str,
        stop: Callable[[], None] = lambda: None,
        stall: float | None = None,
    ) -> None:
        self.jobs = jobs or DEFAULT_JOBS
        self._stall = STALL_SECONDS if stall is None else stall
        self._traffic = traffic
        self._name = name
        self._stop = stop

    def map(
        self, work: Callable[[T], R], items: Iterable[T], size: Callable[[T], int] = lambda _: 0
    ) -> Generator[tuple[T, R], None, None]:
        """Yields each item with what `work` makes of it, in the order in which they are done.

        Who may stop taking them early has to close the generator (`contextlib.closing`): the trace of an exception would keep it,
        and its requests would go on.

        Args:
            work: Called in threads.
            items: Taken from the caller's thread, no sooner than there is room.
            size: Bytes that an item holds while it is worked on.
        """
        crew = _Crew(work, self.jobs)
        try:
            for item in items:
                length = size(item)
                while crew.running and (crew.running >= _QUEUE * self.jobs or crew.held + length > IN_FLIGHT_BYTES):
                    yield from self._finished(crew)
                crew.hand_out(item, length)
                self._traffic.in_flight = min(crew.running, self.jobs)
            while crew.running:
                yield from self._finished(crew)
        finally:
            crew.ending.set()
            if crew.running:
                self._stop()
            crew.end()
            self._traffic.in_flight = 0

    def run(self, work: Callable[[T], object], items: Iterable[T], size: Callable[[T], int] = lambda _: 0) -> None:
        """Does all of it."""
        for _ in self.map(work, items, size):
            pass

    def pause(self, seconds: float) -> bool:
        """Waits, between two attempts at a request; returns True, at once, when the call that this thread is for has ended."""
        ending: threading.Event | None = getattr(_here, "ending", None)
        if ending is not None:
            return ending.wait(seconds)
        time.sleep(seconds)  # the caller's own thread, which exceptions reach
        return False

    def send(self, put: Callable[[StoredBlob], object], items: Iterable[StoredBlob]) -> None:
        """Sends blobs; `put` is called in threads."""
        self.run(put, items, lambda item: item.held)

    def fetch(self, digests: Sequence[str], get: Callable[[str, Path], Buffer | Path | None], sink: Sink) -> None:
        """Fetches blobs and gives them to a sink, many at once.

        Args:
            digests: What to fetch.
            get: Called in threads with a digest and a path; returns the frame, or that path when it has written it there because
                it is larger than `LARGE_BYTES`, or None for one that it leaves to others.
            sink: Where to.
        """
        frames: list[tuple[str, Buffer]] = []
        room = _Room(self.jobs)

        with TemporaryDirectory(prefix="pfimg-", ignore_cleanup_errors=True) as scratch:

            def request(digest: str) -> Buffer | Path | None:
                room.enter()
                got = get(digest, Path(scratch, digest.partition(":")[2]))
                room.take(0 if got is None or isinstance(got, Path) else len(got))
                return got

            def land() -> None:
                sink.frames(frames)
                room.give_back(sum(len(frame) for _, frame in frames))
                frames.clear()

            size = 0
            with closing(self.map(request, digests)) as results:
                try:
                    for digest, got in results:
                        if isinstance(got, Path):
                            sink.files([(digest, got)])
                            got.unlink()
                        elif got is not None:
                            frames.append((digest, got))
                            size += len(got)
                            if len(frames) == _LAND_ITEMS or size >= _LAND_BYTES:
                                land()
                                size = 0
                    if frames:
                        land()
                finally:
                    room.open()

    def fetch_ranges(
        self, ranges: Sequence[Range], get: Callable[[Range], Buffer], deliver: Callable[[int, Buffer], None]
    ) -> None:
        """Fetches ranges of packs, and delivers each with its place in the sequence; `get` is called in threads."""
        with closing(self.map(lambda item: get(item[1]), enumerate(ranges), lambda item: item[1].length)) as results:
            for (at, _), content in results:
                deliver(at, content)

    def _finished(self, crew: _Crew[T, R]) -> Iterator[tuple[T, R]]:
        """What is done, at least one; the error where one has failed."""
        try:
            for task, result, error in crew.take_back(self._stall):
                self._traffic.in_flight = min(crew.running, self.jobs)
                if error is not None:
                    raise error
                yield task.item, cast("R", result)
        except Empty:
            message = f"{self._name}: none of {crew.running} requests has come to an end in {self._stall:.0f} seconds"
            raise RegistryTimeout(message, retryable=True) from None


class _Room:
    """Bounds the bytes that have arrived and are not stored yet: how large a blob is turns out when it is here.

    Room is set aside for what a request may bring: as much as there is for each of them where all go on side by side, and no more
    than `LARGE_BYTES`. So the bytes stay within `IN_FLIGHT_BYTES`, or where more than eight requests go on at once, within
    `LARGE_BYTES` for each: to set that much aside would have fewer go on, though most blobs are pages of some KiB.
    """

    def __init__(self, jobs: int) -> None:
        self._changed = threading.Condition()
        self._aside = min(LARGE_BYTES, IN_FLIGHT_BYTES // jobs)
        self._held = 0

    def enter(self) -> None:
        """Waits until there is room, and sets it aside."""
        with self._changed:
            self._changed.wait_for(lambda: self._held + self._aside <= IN_FLIGHT_BYTES)
            self._held += self._aside

    def take(self, size: int) -> None:
        """Takes what has arrived in place of what was set aside."""
        self.give_back(self._aside - size)

    def give_back(self, size: int) -> None:
        """Gives room back."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def open(self) -> None:
        """Lets everybody in from now on."""
        self.give_back(1 << 62)

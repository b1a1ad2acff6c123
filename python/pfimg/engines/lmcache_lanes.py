"""LMCache's tasks: queued by its threads, done in parts by ours, and polled for by a file descriptor for each kind."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from lmcache.v1.distributed.l2_adapters.base import L2TaskId
from lmcache.v1.platform import create_event_notifier

_log = logging.getLogger("pfimg")

# For each kind of task: while the core works on the bytes of one part, the keys of the next are looked up.
_THREADS = 2

_Result = TypeVar("_Result")


class _Task(Generic[_Result]):
    """A task that is under way: what its parts came to, joined."""

    def __init__(self, number: L2TaskId, parts: int, failed: _Result) -> None:
        self.number, self.left, self.failed = number, parts, failed
        self.result: _Result | None = None
        self.error: Exception | None = None


class Lane(Generic[_Result]):
    """Tasks of one kind: done by threads, told of by an event, each result asked for once.

    Args:
        kind: What they are called.
        join: Makes one result of those of two parts.
    """

    def __init__(self, kind: str, join: Callable[[_Result, _Result], _Result]) -> None:
        self._kind, self._join = kind, join
        self._event = create_event_notifier()
        self._results: dict[L2TaskId, _Result] = {}
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"pfimg-{kind}")

    def fileno(self) -> int:
        """Signalled when a task has ended."""
        return int(self._event.fileno())

    def submit(
        self, number: L2TaskId, parts: Sequence[Callable[[], _Result]], failed: _Result, *, at_once: bool = False
    ) -> L2TaskId:
        """Has the parts of a task done, in whatever order, or has done them; `failed` is its result if one fails."""
        task = _Task(number, len(parts), failed)
        for part in parts:
            try:
                if at_once:
                    self._run(task, part)
                else:
                    self._workers.submit(self._run, task, part)
            except RuntimeError as error:
                self._end(task, None, error)
        return number

    def _run(self, task: _Task[_Result], part: Callable[[], _Result]) -> None:
        result, error = None, None
        try:
            result = part()
        except Exception as failed:  # noqa: BLE001 - whatever it is, it fails this task and nothing else
            error = failed
        self._end(task, result, error)

    def _end(self, task: _Task[_Result], result: _Result | None, error: Exception | None) -> None:
        """A part has ended; with the last one, the task has."""
        with self._lock:
            task.left -= 1
            task.error = task.error or error
            if result is not None:
                task.result = result if task.result is None else self._join(task.result, result)
            if task.left:
                return
            if task.error is not None:
                _log.warning("LMCache's %s task %d failed: %s", self._kind, task.number, task.error)
            done = task.result if task.error is None else None
            self._results[task.number] = task.failed if done is None else done
        # It is closed when the adapter is, and then nobody waits for it.
        with suppress(OSError, ValueError):
            self._event.notify()

    def take(self, task: L2TaskId) -> _Result | None:
        """The result of a task that has ended, once."""
        with self._lock:
            return self._results.pop(task, None)

    def take_all(self) -> dict[L2TaskId, _Result]:
        """Those of all that have ended since the last call."""
        with self._lock:
            results, self._results = self._results, {}
        return results

    def drain(self) -> None:
        """Waits for what was submitted: LMCache takes back the memory of these tasks afterwards."""
        self._workers.shutdown()

    def close(self) -> None:
        """Lets go of the event."""
        self._event.close()

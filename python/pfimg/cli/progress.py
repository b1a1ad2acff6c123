"""Progress on stderr: what is being done, how far, how fast, and how long it will still take.

A person at a terminal gets bars. A program that asked for JSON gets, of what moves to or from a registry, an object a line, at
least one for each phase and about one a second; anybody else gets nothing.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pfimg.types import Progress, human_size


class _Clock:
    """How long phases have lasted: each begins when the one before it has told its last."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._began: dict[str, float] = {}

    def seconds(self, phase: str) -> float:
        """Seconds of the phase of which there is an event now."""
        began = self._began.setdefault(phase, self._last)
        self._last = time.monotonic()
        return self._last - began


@contextmanager
def events() -> Iterator[Callable[[Progress], None]]:
    """Yields the callable that a long call feeds with events, for programs; `rate` is in bytes a second, of the phase so far."""
    clock = _Clock()
    shown: dict[str, float] = {}

    def show(event: Progress) -> None:
        now, seconds = time.monotonic(), clock.seconds(event.phase)
        if event.done == event.total or now >= shown.get(event.phase, 0) + 1:
            shown[event.phase] = now
            rate = round(event.bytes / seconds) if seconds else None
            line = {"event": "progress"} | dataclasses.asdict(event) | {"rate": rate}
            print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201

    yield show


@contextmanager
def bar() -> Iterator[Callable[[Progress], None] | None]:
    """Yields the callable that a long call feeds with events, or None where nobody watches. The bar goes away at the end."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return

    from rich import progress  # a tenth of a second that only a person at a terminal pays
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.TextColumn("{task.fields[amount]}"),
        progress.TimeRemainingColumn(compact=True),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as display:
        clock = _Clock()
        tasks: dict[str, progress.TaskID] = {}

        def show(event: Progress) -> None:
            if event.phase not in tasks:
                tasks[event.phase] = display.add_task(event.phase, amount="", total=None)
            seconds = clock.seconds(event.phase)
            done, total = (event.bytes, event.total_bytes) if event.total_bytes else (event.done, event.total or None)
            display.update(tasks[event.phase], completed=done, total=total, amount=_amount(event, seconds))

        yield show


def _amount(event: Progress, seconds: float) -> str:
    items = f"{event.done:,} of {event.total:,}" if event.total else f"{event.done:,}"
    volume = f"{human_size(event.bytes)} of {human_size(event.total_bytes)}" if event.total_bytes else human_size(event.bytes)
    if not event.bytes or not seconds:
        return items
    parts = [items, volume, f"{human_size(event.bytes / seconds)}/s"]
    if event.in_flight:
        parts.append(f"{event.in_flight} in flight")
    if event.retries:
        parts.append(f"{event.retries} retried")
    return " · ".join(parts)

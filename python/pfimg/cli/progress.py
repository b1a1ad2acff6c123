"""Progress bars on stderr, on a terminal only: what is being done, how far, how fast, and how long it will still take."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pfimg.types import Progress, human_size


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
        tasks: dict[str, tuple[progress.TaskID, float]] = {}

        def show(event: Progress) -> None:
            if event.phase not in tasks:
                tasks[event.phase] = display.add_task(event.phase, amount="", total=None), time.monotonic()
            task, start = tasks[event.phase]
            done, total = (event.bytes, event.total_bytes) if event.total_bytes else (event.done, event.total or None)
            display.update(task, completed=done, total=total, amount=_amount(event, time.monotonic() - start))

        yield show


def _amount(event: Progress, seconds: float) -> str:
    items = f"{event.done:,} of {event.total:,}" if event.total else f"{event.done:,}"
    volume = f"{human_size(event.bytes)} of {human_size(event.total_bytes)}" if event.total_bytes else human_size(event.bytes)
    return f"{items} · {volume} · {human_size(event.bytes / seconds)}/s" if event.bytes and seconds else items

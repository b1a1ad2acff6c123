"""Locks that processes have of directories and files: asked for again and again, which answers signals and has an end."""

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pfimg.errors import PfimgError

POLL_SECONDS: Final = 0.002
"""Between two attempts to get a lock."""

PATIENCE: Final = 300.0
"""So many seconds attempts go on: whoever has the lock may be stopped."""


def flock(descriptor: int, kind: int, directory: Path, busy: Callable[[str], PfimgError]) -> None:
    """Locks what is open; nobody queues behind who waits.

    Args:
        descriptor: Of a directory, or of a file in it.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        directory: How messages call it.
        busy: Makes the error of one that others do not let go of.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                message = f"{directory}: others have held its lock for {PATIENCE:.0f} seconds: see whether one is stopped"
                raise busy(message) from error
        else:
            return
        time.sleep(POLL_SECONDS)

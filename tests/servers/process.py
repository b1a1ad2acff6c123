"""A server as a process: started, asked until it answers, ended with all that it started.

Its end is threefold: SIGTERM at the end of the block; SIGKILL to its whole process group for what is still there; and, if this
very process is killed, SIGTERM by the kernel (where `setpriv` of util-linux is there, that is on Linux).
"""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

# Where files live in memory, if there is enough of it: disks take minutes to remove what servers leave behind.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 8 << 30
PREFIX = "pfimg-server-"
SWEEP_SECONDS = 60
START_SECONDS = 60
STOP_SECONDS = 10
POLL_SECONDS = 0.02
LOG_LINES = 40


class ServerFailed(Exception):  # noqa: N818 - says what happened
    """A server ended or did not answer in time; the message shows the end of its log, which is whole in `log`."""

    def __init__(self, what: str, log: str) -> None:
        self.log = log
        super().__init__("\n".join([what, *log.splitlines()[-LOG_LINES:]]))


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A directory for a server's data, settings and log; gone at the end or, if this process is killed, when the next is made."""
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES
    base = MEMORY if roomy and "TMPDIR" not in os.environ else Path(tempfile.gettempdir())
    _sweep(base)
    made = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{name}-", dir=base, ignore_cleanup_errors=True)
    with made as directory, _locked(directory):
        yield Path(directory).resolve()


@contextmanager
def _locked(directory: str | Path) -> Iterator[None]:
    """Holds a directory, as long as this process lives.

    Raises:
        BlockingIOError: Somebody holds it.

    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(base: Path) -> None:
    """Removes what killed processes left: gigabytes in memory, for some tests."""
    for directory in base.glob(f"{PREFIX}*"):
        # One that was just made may not be held yet; one that is held, or gone by now, is somebody else's matter.
        with suppress(OSError):
            if time.time() - directory.stat().st_mtime > SWEEP_SECONDS:
                with _locked(directory):
                    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(
    command: Sequence[str | Path],
    directory: Path,
    ready: Callable[[], T | None],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[T]:
    """Starts a server in `directory`, and yields what `ready` gives once it gives something.

    An `OSError` of `ready`, such as a refused connection, means "not yet". The server knows nothing of this process's environment
    but PATH, so that nobody's settings count; its log is `directory/log`.

    Raises:
        ServerFailed: It ended, or was not ready in time.

    """
    log = directory / "log"
    name = Path(command[0]).name
    settings = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), **(env or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_ends_with_this_process(), *command],
            cwd=directory,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + START_SECONDS
        while (found := _try(ready)) is None:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(POLL_SECONDS)
                raise ServerFailed(f"{name} ended with status {status} while starting", log.read_text(errors="replace"))
            if time.monotonic() > until:
                raise ServerFailed(f"{name} was not ready after {START_SECONDS} s", log.read_text(errors="replace"))
        yield found
    finally:
        _stop(process)


def _try(ready: Callable[[], T | None]) -> T | None:
    # What listens but does not speak yet may close the connection in the middle of a reply.
    with suppress(OSError, http.client.HTTPException):
        return ready()
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ends_with_this_process() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def free_port() -> int:
    """A port that is free now: for servers that cannot pick one, which must be started again if another took it meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port

"""Who waits for whom in a directory registry, and for how long."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import pfimg
from pfimg import locks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("below", "kind", "call"),
    [
        ("blobs", fcntl.LOCK_SH, "collect"),  # as a push that is stopped
        ("blobs", fcntl.LOCK_EX, "push"),  # as a collection
        (".", fcntl.LOCK_EX, "push"),  # as a push that is about to show its image
        (".", fcntl.LOCK_EX, "remove"),
    ],
)
def test_somebody_who_is_stopped_stops_nobody_for_ever(
    root: Path,
    ref: str,
    store: pfimg.PfStore,
    make_image: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    below: str,
    kind: int,
    call: str,
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, ref)
    pfimg.push(store, second, f"{ref}#gone")
    pfimg.remove_image(f"{ref}#gone")
    calls: dict[str, Callable[[], object]] = {
        "collect": lambda: pfimg.collect_garbage(ref, grace_seconds=0),
        "push": lambda: pfimg.push(store, second, ref),
        "remove": lambda: pfimg.remove_image(ref),
    }
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    command = [sys.executable, "-c", HOLDER, str(root / below), str(kind)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(pfimg.BackendError, match="others have held its lock for 0 seconds") as caught:
            calls[call]()
        holder.send_signal(signal.SIGCONT)
        holder.communicate("")
    assert (caught.value.code, caught.value.retryable) == ("busy", True)
    # Nothing was done, and all can be.
    assert pfimg.exists(ref)
    calls[call]()


# On a disk that takes its time, and with much to do.
COLLECTOR = """
import sys, time, pfimg
from pfimg.registries import FileTransport
FileTransport.sweep_items = 1
sweep = FileTransport.sweep
def told(*args):
    print("one", flush=True)
    time.sleep(0.01)
    return sweep(*args)
FileTransport.sweep = told
pfimg.collect_garbage(sys.argv[1], grace_seconds=0)
"""


def test_a_push_has_its_turn_while_much_is_collected(
    root: Path, ref: str, store: pfimg.PfStore, tmp_path: Path, image: str
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(300):
        (many / str(n)).write_text(str(n))
    pfimg.push(store, pfimg.snapshot(store, agent="tester", fs_root=many), f"{ref}#many")
    pfimg.remove_image(f"{ref}#many")
    with subprocess.Popen([sys.executable, "-c", COLLECTOR, ref], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        assert collector.stdout.readline() == "one\n"
        pfimg.push(store, image, ref)
        left = len(list((root / "blobs").glob("*/*/*")))
        collector.stdout.read()
    assert collector.returncode == 0
    assert left > 250
    assert pfimg.collect_garbage(ref, grace_seconds=0).freed == 0


def test_ctrl_c_is_answered_while_somebody_else_has_the_lock(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, ref)
    descriptor = os.open(root / "blobs", os.O_RDONLY)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pfimg.push(store, image, ref)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(descriptor)
    assert pfimg.push(store, image, ref).sent == 0

"""Runs a call in a child process, and kills it before one of its system calls, lets one fail, or writes down what they did.

The child is forked from a process that has imported pfimg and is traced with ptrace (Linux on x86-64 and 64-bit ARM). It runs the
very binary that users run: nothing is built in for this. A *point* is the moment before a call that writes to, syncs, renames,
links, makes or removes something below the watched directory, or that sends to or receives from the network; all threads are
counted together. Killed there, that call does not happen, and all before it have. A call that is to fail does not happen either:
the system is asked for one that does not exist, and its answer is replaced by the error.

Limits: a process that traces must have no other children, so use `alone`. Changes through mapped memory are not seen, and calls
that are not modelled (`copy_file_range`, `sendfile`) end a recording with an error. Calls fail on x86-64 only.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import platform
import signal
import struct
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Numbers of the calls that are looked at, by machine.
_NUMBERS = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "pwritev2": 328, "sendfile": 40, "copy_file_range": 326,
        "sendto": 44, "sendmsg": 46, "recvfrom": 45, "recvmsg": 47, "open": 2, "openat": 257, "creat": 85, "ftruncate": 77,
        "fallocate": 285, "fsync": 74, "fdatasync": 75, "syncfs": 306, "rename": 82, "renameat": 264, "renameat2": 316,
        "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "unlink": 87, "unlinkat": 263, "rmdir": 84, "mkdir": 83,
        "mkdirat": 258, "chmod": 90, "fchmod": 91, "fchmodat": 268,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "pwritev2": 287, "sendfile": 71, "copy_file_range": 285,
        "sendto": 206, "sendmsg": 211, "recvfrom": 207, "recvmsg": 212, "openat": 56, "ftruncate": 46, "fallocate": 47,
        "fsync": 82, "fdatasync": 83, "syncfs": 267, "renameat": 38, "renameat2": 276, "linkat": 37, "symlinkat": 36,
        "unlinkat": 35, "mkdirat": 34, "fchmod": 52, "fchmodat": 53,
    },
}  # fmt: skip
# A test that waits longer for the process that traces has failed.
SECONDS = int(os.environ.get("PFIMG_FAULT_SECONDS", "100"))
_NAMES = {number: name for name, number in _NUMBERS.get(platform.machine(), {}).items()}

can_fail = pytest.mark.skipif(platform.machine() != "x86_64", reason="calls are made to fail on x86-64 only")

needs_ptrace = pytest.mark.skipif(
    sys.platform != "linux" or not _NAMES, reason="processes are traced on Linux only, on x86-64 and 64-bit ARM"
)

_LIBC = ctypes.CDLL(None, use_errno=True)
_TRACEME, _POKEUSER, _SETOPTIONS, _SYSCALL, _GET_SYSCALL_INFO = 0, 6, 0x4200, 24, 0x420E
# Where `struct user` of x86-64 has the number of the call, and its result.
_CALL_AT, _RESULT_AT = 15 * 8, 10 * 8
# TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, EXITKILL
_OPTIONS = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 20
_WALL = 0x40000000
_ENTRY, _EXIT = 1, 2
_AT_FDCWD = -100
_AT_REMOVEDIR = 0x200

# Calls whose first argument is a file; which of their paths are named how, as places of directory and name among the arguments.
_BY_FILE = {
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "syncfs",
    "fchmod",
}
_BY_FILE |= {"sendfile", "copy_file_range"}
_BY_NAME: dict[str, tuple[tuple[int | None, int], ...]] = {
    "rename": ((None, 0), (None, 1)),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "link": ((None, 0), (None, 1)),
    "linkat": ((0, 1), (2, 3)),
    "symlink": ((None, 1),),
    "symlinkat": ((1, 2),),
    "unlink": ((None, 0),),
    "unlinkat": ((0, 1),),
    "rmdir": ((None, 0),),
    "mkdir": ((None, 0),),
    "mkdirat": ((0, 1),),
    "chmod": ((None, 0),),
    "fchmodat": ((0, 1),),
}
_SOCKETS = {"sendto", "sendmsg", "recvfrom", "recvmsg"}
_OPENS = {"open": (None, 0, 1), "openat": (0, 1, 2)}


class UntraceableError(Exception):
    """This system does not let processes be traced."""


@dataclass(frozen=True, slots=True)
class Event:
    """One call that succeeded.

    Attributes:
        call: `create`, `open`, `write`, `truncate`, `sync`, `syncfs`, `rename`, `link`, `symlink`, `unlink`, `mkdir`, or `say`
            for what was written to standard output.
        path: What it changed, below the watched directory.
        other: Where to, for `rename` and `link`; the content of a link.
        data: What was written, or said.
        offset: Where it was written; the new length of what was truncated.
    """

    call: str
    path: str = ""
    other: str = ""
    data: bytes = b""
    offset: int = 0


@dataclass(slots=True)
class Run:
    """What became of a call.

    Attributes:
        points: Points that it came to, the one at which it was killed included.
        killed: Whether it was killed.
        code: Exit status where it was not; 1 when the call raised.
        at: The system call before which it was killed, or which failed, and where that leads.
        calls: All points, each as `at`.
        events: What it did, where that was asked for.
    """

    points: int = 0
    killed: bool = False
    code: int = 0
    at: str = ""
    calls: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def alone(function: Callable[..., Any], *args: object) -> Any:
    """Calls a function in a fresh process that may trace, and returns what it returns; its failure is the caller's."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=_answer, args=(theirs, function, args), daemon=True)
    child.start()
    theirs.close()
    try:
        kind, value = ours.recv()
    except EOFError:
        kind, value = "died", "the process that traces ended without an answer"
    finally:
        child.join()
        ours.close()
    if kind == "untraceable":
        pytest.skip(value)
    if kind != "returned":
        pytest.fail(value, pytrace=False)
    return value


def apart(call: Callable[[], Any]) -> Any:
    """What a call returns, made in a child that is not traced: whoever forks again must have no threads."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = (True, call())
        except BaseException:  # noqa: BLE001 - it is raised by the parent
            answer = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        document = pipe.read()
    os.waitpid(child, 0)
    returned, value = pickle.loads(document)
    if not returned:
        raise AssertionError(value)
    return value


def _answer(pipe: Any, function: Callable[..., Any], args: tuple[object, ...]) -> None:
    signal.alarm(SECONDS)
    try:
        answer = ("returned", function(*args))
    except UntraceableError as error:
        answer = ("untraceable", str(error))
    except BaseException:  # noqa: BLE001 - it is shown by the parent
        answer = ("raised", traceback.format_exc())
    pipe.send(answer)


def run(
    call: Callable[[], object],
    watched: Path,
    *,
    kill_at: int | None = None,
    number: signal.Signals = signal.SIGKILL,
    fail_at: int | None = None,
    error: int = 0,
    record: bool = False,
) -> Run:
    """Runs a call in a child, to its end or to the point `kill_at`, counted from 1, where it is sent the signal `number`.

    At the point `fail_at` the system answers with the error of that number instead. Files that are made are points then, and
    what the network is asked is none.

    What the call returns, where that is a number, is the exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_traced(call)
    tracer = _Tracer(child, os.path.realpath(watched), record)
    tracer.kill_at, tracer.number, tracer.fail_at, tracer.error = kill_at, number, fail_at, error
    return tracer.follow()


def _be_traced(call: Callable[[], object]) -> None:
    code = 1
    try:
        if _LIBC.ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSTOP)
        returned = call()
        code = returned if isinstance(returned, int) else 0
    except BaseException:  # noqa: BLE001 - nothing may come back to the caller of `fork`
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class _Info(ctypes.Structure):
    """`struct ptrace_syscall_info`."""

    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("values", ctypes.c_uint64 * 8),
    ]


class _Tracer:
    def __init__(self, child: int, watched: str, record: bool) -> None:
        self.child = child
        self.watched = watched + "/"
        self.kill_at: int | None = None
        self.number = 0
        self.fail_at: int | None = None
        self.error = 0
        # The thread of which the call under way fails.
        self.failing: int | None = None
        self.record = record
        self.outcome = Run()
        self.info = _Info()
        # What a thread has begun: the call's name, its arguments, what it leads to.
        self.begun: dict[int, tuple[str, list[int], list[str]]] = {}

    def follow(self) -> Run:
        _, status = os.waitpid(self.child, 0)
        if os.WIFEXITED(status):
            raise UntraceableError("this system does not let processes be traced")
        self._ptrace(_SETOPTIONS, self.child, 0, ctypes.c_void_p(_OPTIONS))
        self._go_on(self.child, 0)
        while True:
            try:
                thread, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return self.outcome
            if os.WIFSIGNALED(status) or os.WIFEXITED(status):
                if thread == self.child:
                    self.outcome.killed = os.WIFSIGNALED(status)
                    self.outcome.code = 0 if self.outcome.killed else os.WEXITSTATUS(status)
                continue
            number = os.WSTOPSIG(status)
            if number == signal.SIGTRAP | 0x80:
                self._stopped(thread)
                number = 0
            elif status >> 16 or number == signal.SIGSTOP:
                number = 0  # a new thread, here or there
            self._go_on(thread, number)

    def _ptrace(self, request: int, thread: int, address: int, data: object) -> int:
        return int(_LIBC.ptrace(request, thread, ctypes.c_void_p(address), data))

    def _go_on(self, thread: int, number: int) -> None:
        self._ptrace(_SYSCALL, thread, 0, ctypes.c_void_p(number))  # fails for one that was killed meanwhile

    def _stopped(self, thread: int) -> None:
        if self._ptrace(_GET_SYSCALL_INFO, thread, ctypes.sizeof(_Info), ctypes.byref(self.info)) <= 0:
            return
        if self.info.op == _ENTRY:
            if name := _NAMES.get(self.info.values[0]):
                self._enters(thread, name, list(self.info.values[1:7]))
        elif self.info.op == _EXIT and thread == self.failing:
            self._ptrace(_POKEUSER, thread, _RESULT_AT, ctypes.c_void_p(-self.error))
            self.failing = None
        elif self.info.op == _EXIT and (begun := self.begun.pop(thread, None)):
            result = ctypes.c_int64(self.info.values[0]).value
            if result >= 0:
                self._did(thread, *begun, result)

    def _enters(self, thread: int, name: str, args: list[int]) -> None:
        try:
            leads = self._leads(thread, name, args)
        except OSError:
            return  # the thread was killed, or the call will fail
        if not leads:
            return
        if self._is_point(name, leads):
            self.outcome.points += 1
            self.outcome.calls.append(f"{name} {' '.join(leads)}")
            if self.outcome.points == self.kill_at:
                self.outcome.at = self.outcome.calls[-1]
                os.kill(self.child, self.number)
                return
            if self.outcome.points == self.fail_at:
                self.outcome.at = self.outcome.calls[-1]
                self._ptrace(_POKEUSER, thread, _CALL_AT, ctypes.c_void_p(-1))
                self.failing = thread
                return
        if self.record:
            self.begun[thread] = name, args, leads

    def _is_point(self, name: str, leads: list[str]) -> bool:
        if self.fail_at is None:
            return name not in _OPENS and leads != ["stdout"]
        # What is made already, or is not there to be changed, fails anyway.
        if name.startswith(("mkdir", "unlink", "rmdir", "rename")) and name.startswith("mkdir") == os.path.lexists(leads[0]):
            return False
        return leads[0] not in ("stdout", "network") and (name not in _OPENS or leads[1] == "create")

    def _leads(self, thread: int, name: str, args: list[int]) -> list[str]:
        """The paths that a call changes; none where it is of no interest."""
        if name in _SOCKETS:
            return ["network"]
        if name in _OPENS:
            directory, at, flags = _OPENS[name]
            if not args[flags] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return []
            path = self._path(thread, None if directory is None else args[directory], args[at])
            # Whether it makes the file is known only now.
            new = "create" if not os.path.lexists(path) else "open"
            return [path, new] if self._is_watched(path) else []
        if name in _BY_FILE:
            target = self._file(thread, args[2 if name == "copy_file_range" else 0])
            if name == "write" and args[0] == 1:
                return ["stdout"]
            if target.startswith("socket:"):
                return ["network"]
            return [target] if self._is_watched(target) or name == "syncfs" else []
        paths = [self._path(thread, None if d is None else args[d], args[p]) for d, p in _BY_NAME[name]]
        return paths if any(map(self._is_watched, paths)) else []

    def _is_watched(self, path: str) -> bool:
        return f"{path}/".startswith(self.watched)

    def _file(self, thread: int, number: int) -> str:
        return os.readlink(f"/proc/{thread}/fd/{ctypes.c_int(number).value}")

    def _path(self, thread: int, directory: int | None, address: int) -> str:
        name = os.fsdecode(self._text(thread, address))
        if name.startswith("/"):
            base = "/"
        elif directory is None or ctypes.c_int(directory).value == _AT_FDCWD:
            base = os.readlink(f"/proc/{thread}/cwd")
        else:
            base = self._file(thread, directory)
        above, _, last = os.path.normpath(os.path.join(base, name)).rpartition("/")
        return os.path.join(os.path.realpath(above or "/"), last)

    def _memory(self, thread: int, address: int, length: int) -> bytes:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(length)

    def _text(self, thread: int, address: int) -> bytes:
        """A string that ends with a zero; it is read to the end of its page at most, then of the next."""
        text = b""
        while b"\0" not in text:
            at = address + len(text)
            text += self._memory(thread, at, 4096 - at % 4096)
        return text.partition(b"\0")[0]

    def _did(self, thread: int, name: str, args: list[int], leads: list[str], result: int) -> None:
        event = self._event(thread, name, args, leads, result)
        if event is not None:
            self.outcome.events.append(event)

    def _event(self, thread: int, name: str, args: list[int], leads: list[str], result: int) -> Event | None:  # noqa: C901, PLR0911, PLR0912 - one case for each call
        first, *rest = leads
        match name:
            case "open" | "openat":
                return Event("truncate" if rest == ["open"] and args[_OPENS[name][2]] & os.O_TRUNC else rest[0], first)
            case "write" | "pwrite64":
                data = self._memory(thread, args[1], result)
                if first == "stdout":
                    return Event("say", data=data)
                return Event(
                    "write", first, data=data, offset=args[3] if name == "pwrite64" else self._position(thread, args[0]) - result
                )
            case "writev":
                pieces = struct.iter_unpack("QQ", self._memory(thread, args[1], 16 * args[2]))
                data = b"".join(self._memory(thread, start, length) for start, length in pieces)[:result]
                return Event("write", first, data=data, offset=self._position(thread, args[0]) - result)
            case "ftruncate":
                return Event("truncate", first, offset=args[1])
            case "fsync" | "fdatasync":
                return Event("sync", first)
            case "syncfs":
                return Event("syncfs")
            case "rename" | "renameat" | "renameat2":
                return Event("rename", first, rest[0])
            case "link" | "linkat":
                return Event("link", first, rest[0])
            case "symlink" | "symlinkat":
                return Event("symlink", first, os.readlink(first))
            case "unlink" | "unlinkat" | "rmdir":
                return Event("unlink", first)
            case "mkdir" | "mkdirat":
                return Event("mkdir", first)
            case "chmod" | "fchmod" | "fchmodat":
                return None
            case _ if first == "network":
                return None
        raise NotImplementedError(f"{name} is not modelled: say in tracing.py and power_cuts.py what it does")

    def _position(self, thread: int, number: int) -> int:
        with open(f"/proc/{thread}/fdinfo/{ctypes.c_int(number).value}") as file:
            return int(file.readline().split()[1])

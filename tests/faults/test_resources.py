"""What the system refuses: a full disk, no permission, a read-only store; and how much memory large inputs take.

Each fault is real and happens to a process of its own, or to a file system made for the test.
"""

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pfimg
from pfimg._core import threads

MEBIBYTE = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


def visible(root: Path) -> list[Path]:
    """Files that a reader of a store would take for blobs or images."""
    blobs = (root / "blobs").rglob("*.zst")
    return sorted([*blobs, *(root / "images").glob("*.json"), *(root / "partial").glob("*.json")])


def leftovers(root: Path) -> list[Path]:
    """Temporary files."""
    return [path for path in root.rglob("*") if ".tmp" in path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=2m") != 0:
        pytest.skip(f"this system mounts nothing for a test: {os.strerror(ctypes.get_errno())}")
    yield disk
    libc.umount2(os.fsencode(disk), 2)  # MNT_DETACH: even where a failed test still holds a file


@needs_root
@pytest.mark.parametrize("durability", ["none", "group", "each"])
def test_a_full_disk_is_told_and_nothing_half_written_stays(small_disk: Path, durability: str) -> None:
    store = pfimg.PfStore.open(small_disk / "store", codec="store", durability=durability)
    kept = store.put(b"written before")
    with pytest.raises(OSError, match="No space left") as failure:
        store.put_many([os.urandom(MEBIBYTE) for _ in range(4)])
    assert failure.value.errno == errno.ENOSPC
    assert failure.value.filename is not None
    assert leftovers(store.root) == []
    assert store.get(kept) == b"written before"
    report = store.verify()
    assert report.ok
    # Once there is room again, everything works again.
    for path in visible(store.root):
        path.unlink()
    assert store.get(store.put(b"written after")) == b"written after"


@needs_root
def test_a_full_disk_leaves_no_image_and_no_restored_directory(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in "abcd":
        (source / name).write_bytes(os.urandom(MEBIBYTE))
    with pytest.raises(OSError, match="No space left"):
        pfimg.snapshot(pfimg.PfStore.open(small_disk / "store"), agent="tester", fs_root=source)
    assert not list((small_disk / "store").glob("images/*"))
    assert leftovers(small_disk) == []

    elsewhere = pfimg.PfStore.open(tmp_path / "elsewhere")
    image = pfimg.snapshot(elsewhere, agent="tester", fs_root=source)
    for path in visible(small_disk / "store"):
        path.unlink()
    with pytest.raises(OSError, match="No space left"):
        pfimg.checkout(elsewhere, image, small_disk / "target")
    assert [path.name for path in small_disk.iterdir()] == ["store"]
    with pytest.raises(OSError, match="No space left"):
        pfimg.push(elsewhere, image, f"file://{small_disk}/registry")
    assert not pfimg.exists(f"file://{small_disk}/registry")
    assert leftovers(small_disk) == []


@needs_root
def test_what_is_mounted_read_only_can_be_read_and_says_so(small_disk: Path, tmp_path: Path) -> None:
    source, ref = tmp_path / "source", f"file://{small_disk}/registry"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    store = pfimg.PfStore.open(small_disk / "store")
    image = pfimg.snapshot(store, agent="tester", fs_root=source)
    store.pin("kept", image)
    pfimg.push(store, image, ref)
    pfimg.push(store, image, f"{ref}#packed", layout="packed")
    elsewhere = pfimg.PfStore.open(tmp_path / "elsewhere")
    changed = pfimg.snapshot(elsewhere, agent="tester", fs_root=source)
    remount(small_disk, read_only=True)
    store = pfimg.PfStore.open(small_disk / "store")
    assert [found for found, _ in store.images()] == [image]
    assert store.pins() == {"kept": image}
    assert store.verify().ok
    assert store.stats().images == 1
    pfimg.checkout(store, image, tmp_path / "target")
    assert (tmp_path / "target" / "file").read_bytes() == b"content"
    for name in ("", "#packed"):
        assert pfimg.pull(f"{ref}{name}", pfimg.PfStore.open(tmp_path / f"other{name}")).image == image
    pfimg.push(store, image, f"file://{tmp_path}/registry")
    assert pfimg.collect_garbage(ref, dry_run=True).freed == 0
    refused: list[Callable[[], object]] = [
        lambda: store.put(b"new"),
        lambda: pfimg.snapshot(store, agent="tester"),
        lambda: store.pin("another", image),
        lambda: store.unpin("kept"),
        lambda: store.remove_image(image),
        lambda: pfimg.checkout(elsewhere, changed, small_disk / "target"),
        lambda: pfimg.pull(pfimg.push(elsewhere, changed, f"file://{tmp_path}/changed").ref, store),
        lambda: pfimg.push(elsewhere, changed, ref),
        lambda: pfimg.remove_image(ref),
        lambda: pfimg.PfStore.open(small_disk / "new").put(b"new"),
    ]
    for at, call in enumerate(refused):
        with pytest.raises(OSError, match=r"[Rr]ead-only") as failure:
            call()
        assert failure.value.errno == errno.EROFS, at
    assert leftovers(tmp_path) == []
    remount(small_disk, read_only=False)
    for call in refused[:5] + refused[6:8]:
        call()
    assert store.verify().ok


def remount(disk: Path, *, read_only: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 32 | (1 if read_only else 0)  # MS_REMOUNT, MS_RDONLY
    if libc.mount(None, os.fsencode(disk), None, flags, None) != 0:
        pytest.skip(f"this system mounts nothing anew: {os.strerror(ctypes.get_errno())}")


def test_a_file_size_limit_is_told_and_nothing_half_written_stays(tmp_path: Path) -> None:
    program = f"""
import os, resource, signal, pfimg
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = pfimg.PfStore.open({str(tmp_path / "store")!r}, codec="store")
resource.setrlimit(resource.RLIMIT_FSIZE, ({MEBIBYTE}, {MEBIBYTE}))
try:
    store.put_many([b"small", os.urandom({2 * MEBIBYTE})])
except OSError as error:
    print(error.errno, error.index)
"""
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [str(errno.EFBIG), "1"]
    assert leftovers(tmp_path) == []
    assert pfimg.PfStore.open(tmp_path / "store").verify().ok


def test_without_permission_the_file_is_named(tmp_path: Path) -> None:
    # Nothing is forbidden to root, so that root becomes somebody else once everything is imported and made.
    program = f"""
import os, pfimg
root = {str(tmp_path / "store")!r}
store = pfimg.PfStore.open(root, durability="none")
kept = store.put(b"readable")
for directory, _, _ in os.walk(root):
    os.chmod(directory, 0o555)
os.chdir(root)
if os.geteuid() == 0:
    for above in [{str(tmp_path)!r}, *map(str, __import__("pathlib").Path({str(tmp_path)!r}).parents)]:
        os.chmod(above, os.stat(above).st_mode | 0o111)
    os.seteuid(65534)
read_only = pfimg.PfStore.open(root)
assert read_only.get(kept) == b"readable"
assert read_only.put(b"readable") == kept
try:
    read_only.put(b"not writable")
except PermissionError as error:
    print(error.filename)
"""
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.startswith(str(tmp_path / "store"))


def test_too_many_open_files_is_told_and_passes(tmp_path: Path) -> None:
    program = f"""
import errno, os, resource, pfimg
store = pfimg.PfStore.open({str(tmp_path / "store")!r})
digest = store.put(b"x")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for call in (lambda: store.get(digest), lambda: store.put(b"y")):
    try:
        call()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    else:
        raise SystemExit("no error")
for descriptor in held:
    os.close(descriptor)
assert store.get(digest) == b"x"
assert store.get(store.put(b"y")) == b"y"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert leftovers(tmp_path) == []


def peak_memory(program: str) -> int:
    """Peak resident memory, in bytes, of a Python process that runs a program."""
    if os.path.exists("/proc/self/status"):
        # What the system tells of a child there begins with the memory of whoever started it.
        tell = 'import re; print(re.search("VmHWM:.*?([0-9]+)", open("/proc/self/status").read())[1])'
        done = subprocess.run([sys.executable, "-c", f"{program}\n{tell}"], check=True, stdout=subprocess.PIPE, text=True)
        return int(done.stdout) * 1024
    child = subprocess.Popen([sys.executable, "-c", program])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_large_files_are_streamed(tmp_path: Path) -> None:
    size = 512 * MEBIBYTE
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        file.write(os.urandom(MEBIBYTE))
        file.truncate(size)
    store, target, registry = (str(tmp_path / name) for name in ("store", "target", "registry"))
    idle = peak_memory("import pfimg")
    used = peak_memory(f"""
import pfimg
store = pfimg.PfStore.open({store!r}, codec="store", durability="none")
image = pfimg.snapshot(store, agent="tester", fs_root={str(source)!r})
ref = pfimg.push(store, image, "file://" + {registry!r}).ref
other = pfimg.PfStore.open({store!r} + "2")
pfimg.pull(ref, other)
pfimg.checkout(other, image, {target!r})
assert store.verify().ok
""")
    assert used - idle < size // 4
    with (source / "large").open("rb") as one, (tmp_path / "target" / "large").open("rb") as two:
        while piece := one.read(8 * MEBIBYTE):
            assert two.read(8 * MEBIBYTE) == piece
        assert two.read() == b""


def test_a_capture_holds_a_few_files_at_a_time(tmp_path: Path) -> None:
    count, size = 60, 7 * MEBIBYTE
    source = tmp_path / "source"
    source.mkdir()
    for n in range(count):
        with (source / str(n)).open("wb") as file:
            file.write(b"%d" % n)
            file.truncate(size)
    idle = peak_memory("import pfimg")
    used = peak_memory(f"""
import pfimg
store = pfimg.PfStore.open({str(tmp_path / "store")!r}, durability="none")
store.restore_tree(store.put_tree({str(source)!r}), {str(tmp_path / "target")!r})
""")
    # Each thread holds what one task read, and as much again while its memory grows.
    assert used - idle < min(count * size // 2, 64 * MEBIBYTE * threads())
    assert sum(path.stat().st_size for path in (tmp_path / "target").iterdir()) == count * size


CARRY = """
import resource, sys, pfimg
root, limited, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
ref = f"file://{root}/registry"
store, other = (pfimg.PfStore.open(f"{root}/{name}", durability="none") for name in ("store", "other"))
pfimg._core.digests_of([bytes([n]) * 100_000 for n in range(32)])  # the threads are there, and have their memory

def begin(call):
    if call == limited:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))

begin("snapshot")
image = next(iter(store.markers()), None) or pfimg.snapshot(store, agent="tester", fs_root=f"{root}/source")
begin("push")
pfimg.push(store, image, ref, layout="packed")
begin("pull")
pfimg.pull(f"{ref}#default", other)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to a limit on memory")
@pytest.mark.parametrize("call", ["snapshot", "push", "pull"])
def test_without_memory_a_call_ends_and_nothing_is_damaged(tmp_path: Path, call: str, record: Callable[..., None]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(4):
        (source / str(n)).write_bytes(os.urandom(12 * MEBIBYTE))

    def carry(limited: str, room: int) -> int:
        command = [sys.executable, "-c", CARRY, str(tmp_path), limited, str(room * MEBIBYTE)]
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode

    # From what is enough for nothing to what is enough for some of it.
    rooms = (1, 4, 8, 16, 24, 40)
    ended = 0
    for room in rooms:
        ended += carry(call, room) != 0
        for name in ("store", "other"):
            store = pfimg.PfStore.open(tmp_path / name)
            report = store.verify()
            assert report.ok, report
            assert not report.foreign, report
    assert ended > 0
    assert carry("nothing", 0) == 0
    store, other = (pfimg.PfStore.open(tmp_path / name) for name in ("store", "other"))
    [(image, _)] = other.images()
    assert store.markers() == other.markers()
    pfimg.checkout(other, image, tmp_path / "target")
    for path in source.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()
    record(ended=ended, tried=len(rooms))


def test_clocks_that_jump_make_gc_keep_rather_than_lose(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", durability="none")
    digest = store.put(b"of no image")
    [path] = visible(store.root)
    # Written while the clock was a year ahead: young until the clock is there again.
    ahead = path.stat().st_mtime + 365 * 86_400
    os.utime(path, (ahead, ahead))
    assert store.gc(grace_seconds=3600).freed == 0
    # Written before the clock was set: old, until somebody puts the same bytes.
    os.utime(path, (0, 0))
    assert store.gc(grace_seconds=3600, dry_run=True).freed == 1
    assert store.put(b"of no image") == digest
    assert store.gc(grace_seconds=3600).freed == 0
    assert store.get(digest) == b"of no image"

"""What the system refuses: a full disk, no permission, a read-only store; and how much memory large inputs take.

Each fault is real and happens to a process of its own, or to a file system made for the test.
"""

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
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

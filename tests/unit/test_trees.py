"""Large trees, there and back, held against what the system and `hashlib` say of them."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

import pfimg

FILES = 100_000
DIRECTORIES = 500


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: so many files take long on a disk, and deleting them slows others down."""
    shared_memory = Path("/dev/shm")
    path = Path(mkdtemp(prefix="pfimg-test-", dir=shared_memory if shared_memory.is_dir() else None))
    yield path
    rmtree(path)


def oracle(root: Path) -> list[dict[str, object]]:
    """What is below `root`, in the words of a tree's document and in its order."""
    found: list[dict[str, object]] = []
    for directory, names, others in os.walk(root):
        for path in (os.path.join(directory, name) for name in names + others):
            info = os.lstat(path)
            entry: dict[str, object] = {
                "path": os.path.relpath(path, root),
                "mode": f"{stat.S_IMODE(info.st_mode):04o}",
                "size": 0,
            }
            content = None
            if stat.S_ISLNK(info.st_mode):
                entry |= {"kind": "symlink", "link_target": os.readlink(path)}
                content = os.readlink(path).encode()
            elif stat.S_ISDIR(info.st_mode):
                entry |= {"kind": "dir"}
            else:
                entry |= {"kind": "file"}
                with open(path, "rb") as file:
                    content = file.read()
            if content is not None:
                entry |= {"size": len(content), "blob": "sha256:" + hashlib.sha256(content).hexdigest()}
            found.append(entry)
    return sorted(found, key=lambda entry: str(entry["path"]).split("/"))


# Deleting what it made takes its time too where others work at the same time.
@pytest.mark.timeout(300)
def test_a_hundred_thousand_files_come_back_as_they_were(memory: Path) -> None:
    source = memory / "source"
    directories = [source, *(source / f"d{n % 7}" / f"{n:03}" for n in range(DIRECTORIES - 1))]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    for n in range(FILES):
        # Most contents are there four times, some are empty; modes with and without what a usual umask grants.
        path = f"{directories[n % DIRECTORIES]}/{n}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, (0o644, 0o755, 0o600)[n % 3])
        os.write(descriptor, b"content %d" % (n % (FILES // 4)) if n % 50 else b"")
        os.close(descriptor)
    for n in range(0, FILES, 1001):
        os.symlink(f"{n}", directories[n % DIRECTORIES] / f"link {n}")
        os.chmod(directories[n % DIRECTORIES] / str(n), (0o4711, 0o666, 0o444)[n % 3])
    (source / "d0" / "000").chmod(0o555)
    store = pfimg.PfStore.open(memory / "store", durability="none")
    digest = store.put_tree(source)
    document = store.get(digest)
    expected = oracle(source)
    assert len(expected) == FILES + len(range(0, FILES, 1001)) + DIRECTORIES - 1 + 7
    assert json.loads(document)["entries"] == expected
    assert [entry.path for entry in pfimg.FsTree.from_json(document).entries] == [entry["path"] for entry in expected]
    store.restore_tree(digest, memory / "back")
    assert oracle(memory / "back") == expected


@pytest.mark.parametrize("durability", ["none", "group", "each"])
def test_a_tree_has_all_its_blobs_when_it_is_there(tmp_path: Path, durability: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(300):
        (source / str(n)).write_text(str(n % 200))
    store = pfimg.PfStore.open(tmp_path / "store", durability=durability)
    tree = pfimg.FsTree.from_json(store.get(store.put_tree(source)))
    for entry in tree.entries:
        assert entry.blob is not None
        assert store.get(entry.blob) == (source / entry.path).read_bytes()
    assert store.stats().blobs == 201
    assert store.verify().ok


def test_a_capture_that_fails_leaves_no_blob_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(100):
        (source / str(n)).write_text(str(n))
    with (source / "large").open("wb") as file:
        file.truncate((16 << 30) + 1)
    store = pfimg.PfStore.open(tmp_path / "store")
    with pytest.raises(pfimg.LimitExceeded, match="large"):
        store.put_tree(source)
    assert [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()] == []

"""Batches long enough for open directories, tasks and early syncs: mixed, cold, damaged, and short of file descriptors."""

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pfimg

MEBIBYTE = 1 << 20
ABSENT = "sha256:" + "0" * 64


def mixed(n: int, seed: int) -> list[bytes]:
    """Blobs of all kinds of lengths, some compressible, some twice there."""
    rng = random.Random(seed)
    lengths = [0, 1, 55, 64, 4096, 5000, 131_071, 131_072, 131_073]
    blobs = [rng.randbytes(rng.choice(lengths[: 6 if at % 16 else 9])) for at in range(n)]
    blobs[5::50] = [b"%d " % at * 999 for at in range(len(blobs[5::50]))]
    blobs[7] = blobs[3]
    # Around what one system call takes.
    blobs += [rng.randbytes(2 * MEBIBYTE + extra) for extra in (-1, 0, 1)] + [rng.randbytes(5 * MEBIBYTE)]
    rng.shuffle(blobs)
    return blobs


def blob_file(store: pfimg.PfStore, digest: str) -> Path:
    path = store.blob_path(digest)
    assert path
    return path


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("durability", ["none", "group"])
def test_a_long_mixed_batch_comes_back(tmp_path: Path, durability: str) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", durability=durability)
    blobs = mixed(1500, 1)
    descriptors = len(os.listdir("/dev/fd"))
    digests = store.put_many(blobs)
    assert digests == [pfimg.digest_of(blob) for blob in blobs]
    outs = [bytearray(len(blob)) for blob in blobs]
    store.get_many(digests, out=outs)
    assert outs == blobs
    assert store.get_many(digests) == blobs
    assert store.put_many(blobs) == digests
    # Nothing stays open, and nothing stays behind.
    assert len(os.listdir("/dev/fd")) == descriptors
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".zst"]) == len(set(blobs))
    assert not [path for path in files if ".tmp." in path.name]


def test_groups_are_cut_and_synced_early(tmp_path: Path) -> None:
    # More than two of the parts after which the disk is set to work.
    block = random.Random(2).randbytes(MEBIBYTE)
    blobs = [block[at:] + block[:at] for at in range(260)]
    store = pfimg.PfStore.open(tmp_path / "store", durability="group")
    digests = store.put_many(blobs)
    assert digests == [pfimg.digest_of(blob) for blob in blobs]
    assert store.verify().ok


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no way to drop a file from its cache")
def test_cold_damaged_and_missing_blobs_in_one_batch(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "store")
    blobs = mixed(300, 3)
    digests = store.put_many(blobs)
    rng = random.Random(4)
    lost = set()
    for digest in rng.sample(sorted(set(digests)), 40):
        path = blob_file(store, digest)
        content = bytearray(path.read_bytes())
        match rng.randrange(4):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(content[:-1])
            case 2:
                path.write_bytes(content + b"\0")
            case _:
                content[rng.randrange(4, len(content))] ^= 1 << rng.randrange(8)
                path.write_bytes(content)
        lost.add(digest)
    for digest in set(digests) - lost:
        drop_from_cache(blob_file(store, digest))
    wanted = [*digests, ABSENT, *digests[:20]]
    contents = [*blobs, b"", *blobs[:20]]
    outs = [bytearray(len(content)) for content in contents]
    found = store.get_many(wanted, out=outs, errors="mask")
    # What still hashes to its name is the blob, wherever a bit was flipped: some bits of a frame mean nothing.
    assert found is not None
    for there, digest, out, want in zip(found, wanted, outs, contents, strict=True):
        assert there or digest in lost or digest == ABSENT
        assert out == want or not there
    listed = store.get_many(wanted, errors="mask")
    assert [content is not None for content in listed] == found
    assert all(content is None or content == want for content, want in zip(listed, contents, strict=True))
    store.put_many(blobs)
    assert store.get_many(digests) == blobs


def test_directories_that_vanish_between_batches_are_made_again(store: pfimg.PfStore) -> None:
    blobs = [b"%d" % n for n in range(1500)]
    digests = store.put_many(blobs)
    shards = sorted((store.root / "blobs" / "sha256").iterdir())
    for shard in shards[::3]:
        shutil.rmtree(shard)
    assert sum(store.has_many(digests)) < len(digests)
    assert store.put_many(blobs) == digests
    assert all(store.has_many(digests))


def test_few_descriptors_suffice(tmp_path: Path) -> None:
    script = """
import resource, sys, pfimg
store = pfimg.PfStore.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
blobs = [b"%d" % n * 3000 for n in range(2000)]
digests = store.put_many(blobs)
outs = [bytearray(len(blob)) for blob in blobs]
store.get_many(digests, out=outs)
assert outs == blobs and all(store.has_many(digests))
"""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")], check=True, timeout=120, env={**os.environ, "PFIMG_THREADS": "2"}
    )

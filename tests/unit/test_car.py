"""What `pfimg.car` refuses, and how much memory it takes."""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import pfimg

MIB = 1 << 20


def test_what_changes_after_the_plan_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    memory = bytearray(b"in memory")
    in_file = pfimg.car.plan([("first", b""), ("file", tmp_path / "file")])
    in_memory = pfimg.car.plan([("first", b""), ("memory", memory)])
    assert len(b"".join(in_file)) == in_file.size
    (tmp_path / "file").write_bytes(b"changed")
    memory[0] ^= 1
    for plan, name in [(in_file, "file"), (in_memory, "memory")]:
        chunks = iter(plan)
        with pytest.raises(pfimg.StoreError, match=f"{name} changed while it was read") as raised:
            next(chunks)
        assert (raised.value.code, raised.value.index) == ("changed", 1)
        assert list(chunks) == []


def test_a_file_that_is_not_there_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        pfimg.car.plan([("a", b""), ("b", str(tmp_path / "absent"))])
    assert raised.value.filename == str(tmp_path / "absent")
    assert raised.value.index == 1  # type: ignore[attr-defined]
    with pytest.raises(pfimg.FormatError, match="not a regular file"):
        pfimg.car.plan([("a", tmp_path)])
    with pytest.raises(TypeError, match="content is not a buffer"):
        pfimg.car.plan([("a", 1)])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["/a"], [".."], [""], ["a\0"]], ids=repr)
def test_names_that_cannot_be_are_refused(names: list[str]) -> None:
    with pytest.raises(pfimg.FormatError, match=r"entry .* of a CAR"):
        pfimg.car.plan([(name, b"") for name in names])


def test_a_wrong_block_is_named_with_its_place() -> None:
    plan = pfimg.car.plan([("a", b"content")])
    archive = bytearray(b"".join(plan))
    archive[-1] ^= 1
    leaf = pfimg.car.cid_of(b"content")
    reader = pfimg.car.Reader()
    with pytest.raises(pfimg.IntegrityError, match=f"blob {leaf} is corrupt: the block at byte 145 of the CAR") as raised:
        reader.feed(archive)
    assert raised.value.digest == leaf
    with pytest.raises(pfimg.FormatError, match="read it anew"):
        reader.feed(b"")
    with pytest.raises(pfimg.FormatError, match="read it anew"):
        reader.finish()


def test_other_archives_and_names_are_refused_by_name() -> None:
    with pytest.raises(pfimg.FormatError, match="CAR version 2 is not read"):
        pfimg.car.read([b"\x0a\xa1gversion\x02"])
    with pytest.raises(pfimg.FormatError, match="not the DAG-CBOR of roots and version"):
        pfimg.car.read([b"<html>" * 20])
    with pytest.raises(pfimg.LimitExceeded, match="CAR_HEADER_BYTES"):
        pfimg.car.read([b"\xff\xff\x7f"])
    blocks = pfimg.car.Blocks()
    with pytest.raises(pfimg.FormatError, match="begins neither as base 32"):
        blocks.missing("zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA")
    leaf = pfimg.car.cid_of(b"content")
    with pytest.raises(KeyError):
        blocks[leaf]
    with pytest.raises(pfimg.BlobNotFound) as raised:
        blocks.content(leaf)
    assert raised.value.digest == leaf
    blocks.add(leaf, b"content")
    with pytest.raises(pfimg.FormatError, match="no part of a directory"):
        blocks.entries(leaf)


def test_old_names_are_read() -> None:
    old = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    assert pfimg.car.node(old, b"\x0a\x02\x08\x01") == pfimg.car.Node("directory", None, ())


def test_threads_may_share_a_plan_and_a_stream() -> None:
    plan = pfimg.car.plan([(str(number), os.urandom(MIB)) for number in range(16)])
    chunks = iter(plan)
    found: list[list[bytes]] = [[], [], []]
    threads = [threading.Thread(target=lambda mine=mine: mine.extend(chunks)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain(*found)) == sorted(plan)


def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    """256 MiB go through a plan, a stream and a reader; what a process needs for 16 MiB is not much less."""
    script = """
import resource, sys, pfimg
plan = pfimg.car.plan([(str(n), f"{sys.argv[1]}/{n}") for n in range(int(sys.argv[2]))])
reader = pfimg.car.Reader()
read = sum(len(block.data) for chunk in plan for block in reader.feed(chunk) if block.codec == "raw")
reader.finish()
assert read == int(sys.argv[2]) << 23, read
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10))
"""
    for number in range(32):
        (tmp_path / str(number)).write_bytes(os.urandom(8 * MIB))

    def most(files: int) -> int:
        environment = {**os.environ, "PFIMG_THREADS": "2"}
        command = [sys.executable, "-c", script, str(tmp_path), str(files)]
        return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)

    assert most(32) - most(2) < 32 * MIB

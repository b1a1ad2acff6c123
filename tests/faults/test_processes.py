"""Several processes on one store at once, and processes that are killed."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pfimg

ROUNDS = 12
# Children start afresh, as separate programs would.
PROCESSES = multiprocessing.get_context("spawn")


def work(root: str, scratch: str, seed: int) -> None:
    """Makes images of overlapping content, reads them back, drops some, collects without any grace; fails on any surprise."""
    chance = random.Random(seed)
    store = pfimg.PfStore.open(root, durability="none")
    for round_ in range(ROUNDS):
        source = Path(scratch) / f"source-{seed}-{round_}"
        source.mkdir()
        for name in range(chance.randrange(1, 6)):
            (source / str(name)).write_bytes(bytes([chance.randrange(4)]) * chance.randrange(1, 200_000))
        message = {"role": "user", "content": f"{seed}/{round_}"}
        image = pfimg.snapshot(store, agent="tester", fs_root=source, messages=[message])
        target = Path(scratch) / f"target-{seed}-{round_}"
        # Nobody else knows this image, so nobody removes it: it must be whole, whatever the others collect.
        pfimg.checkout(store, image, target)
        before, after = ({path.name: path.read_bytes() for path in directory.iterdir()} for directory in (source, target))
        assert before == after
        pfimg.push(store, image, f"file://{scratch}/registry-{seed}")
        if chance.random() < 0.6:
            store.remove_image(image)
            pfimg.pull(f"file://{scratch}/registry-{seed}", store)
        if chance.random() < 0.5:
            store.gc(grace_seconds=0)
        if chance.random() < 0.5:
            store.remove_image(image)


def test_processes_share_a_store(tmp_path: Path) -> None:
    root = tmp_path / "store"
    children = [PROCESSES.Process(target=work, args=(str(root), str(tmp_path), seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    store = pfimg.PfStore.open(root)
    assert store.verify().ok
    assert [path for path in root.rglob("*") if ".tmp." in path.name] == []
    for image, _ in list(store.images()):
        store.remove_image(image)
    store.gc(grace_seconds=0)
    assert store.stats().blobs == 0


WRITER = """
import os, sys, pfimg
store = pfimg.PfStore.open(sys.argv[1], durability=sys.argv[2])
salt = 0
while True:
    salt += 1
    store.put_many([(f"{salt}/{n}/").encode() * 5000 for n in range(50)])
    pfimg.snapshot(store, agent="tester", fs_root=sys.argv[3], messages=[{"role": "user", "content": str(salt)}])
    print(salt, flush=True)
"""


@pytest.mark.parametrize("durability", ["none", "group", "each"])
def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path, durability: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(20):
        (source / str(n)).write_text(f"{n}" * 1000)
    root = tmp_path / "store"
    for kill in range(4):
        command = [sys.executable, "-c", WRITER, str(root), durability, str(source)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(1 + kill):
                writer.stdout.readline()  # so far it has come; where exactly it is hit is left to chance
            os.kill(writer.pid, signal.SIGKILL)
        store = pfimg.PfStore.open(root)
        report = store.verify()
        assert report.ok, report
        assert len(list(store.images())) >= 1 + kill


@pytest.mark.parametrize("durability", ["none", "group", "each"])
def test_a_forked_child_has_a_pool_of_its_own(tmp_path: Path, durability: str) -> None:
    program = f"""
import os, pfimg
store = pfimg.PfStore.open({str(tmp_path / "store")!r}, durability={durability!r})
store.put(b"alone, before the fork")
pages = [bytes([n]) * 100_000 for n in range(40)]
digests = store.put_many(pages)
child = os.fork()
if child == 0:
    store.put(b"alone, after the fork")
    ok = store.get_many(digests) == pages and len(set(store.put_many([page + b"child" for page in pages]))) == 40
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.get_many(digests) == pages
assert store.stats().blobs == 82
"""
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", program], check=True)

"""Every call that takes a whole batch, by processes that have 1, 2, 4, … threads.

How many threads the core has is settled when a process begins, so that each count gets a process of its own, which waits until it
is its turn.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pfimg
from pfimg._core import digests_of

from . import trees
from .pages import Batch
from .rounds import Group, timed

PAGE_BYTES = 73_728
BATCH_BYTES = 128 << 20
FILES = 5_000
# Names are looked up so often that a call takes milliseconds.
LOOK_UPS = 50


def pages() -> Group:
    """Calls that take many pages."""
    workers = _workers()

    def renew(salt: int) -> None:
        for worker in workers.values():
            worker.ask("renew", salt)

    contenders = {name: partial(worker.ask, "pages") for name, worker in workers.items()}
    return Group("scaling", "real pages of 73,728 B", PAGE_BYTES, contenders, renew)


def files() -> Group:
    """Calls that take a directory."""
    contenders = {name: partial(worker.ask, "files") for name, worker in _workers().items()}
    return Group("scaling, trees", f"files of a tree of {FILES:,}", 0, contenders)


def _workers() -> dict[str, "Worker"]:
    counts = [count for count in (2**power for power in range(8)) if count <= (os.cpu_count() or 1)]
    return {f"{count} thread" + "s" * (count > 1): Worker(count) for count in counts}


class Worker:
    """A process of its own that measures with so many threads whenever it is asked to."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "benches.scaling"]
        environment = os.environ | {"PFIMG_THREADS": str(count)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def ask(self, question: str, argument: object) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([question, str(argument)]), file=self._process.stdin, flush=True)
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer


def answer_questions() -> None:
    """The other end of `Worker`; ends when its questions end."""
    batch = Batch(PAGE_BYTES, BATCH_BYTES)
    for line in sys.stdin:
        match json.loads(line):
            case ["renew", salt]:
                batch.renew(int(salt))
                answer: dict[str, float] = {}
            case ["pages", root]:
                answer = measure_pages(Path(root), batch)
            case ["files", root]:
                answer = measure_files(Path(root))
            case question:
                raise ValueError(question)
        print(json.dumps(answer), flush=True)


def measure_pages(root: Path, batch: Batch) -> dict[str, float]:
    """Seconds a page for each call."""
    store = pfimg.PfStore.open(root / "store", durability="none")
    seconds: dict[str, float] = {}
    _, seconds["hash"] = timed(digests_of, batch.pages)
    names, seconds["store"] = timed(store.put_many, batch.pages)
    _, seconds["load"] = timed(lambda: store.get_many(names, out=batch.out))
    batch.check(len(names))
    again, seconds["put again"] = timed(lambda: store.put_many(batch.pages, digests=names))
    assert again == names
    found, looking = timed(store.has_many, names * LOOK_UPS)
    assert all(found)
    seconds["look up"] = looking / LOOK_UPS
    for codec in ("zstd", "float"):
        encoding = pfimg.PfStore.open(root / codec, codec=codec, durability="none")
        _, seconds[f"store, {codec}"] = timed(encoding.put_many, batch.pages)
        _, seconds[f"load, {codec}"] = timed(lambda store=encoding: store.get_many(names, out=batch.out))
        batch.check(len(names))
    _, seconds["verify"] = timed(store.verify)
    half = len(batch) // 2
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=1, n_heads=1, head_dim=PAGE_BYTES // 32, dtype="bf16")
    cache = store.put_pages(meta, k=batch.pages[:half], v=batch.pages[half : 2 * half])
    image = pfimg.snapshot(store, agent="bench", cache=cache)
    registry = f"file://{root}/registry"
    _, seconds["push"] = timed(pfimg.push, store, image, registry)
    _, seconds["pull"] = timed(pfimg.pull, registry, pfimg.PfStore.open(root / "pulled", durability="none"))
    return {call: each / len(batch) for call, each in seconds.items()}


def measure_files(root: Path) -> dict[str, float]:
    """Seconds a file for each call."""
    store = pfimg.PfStore.open(root / "store", durability="none")
    corpus = root / "corpus"
    trees.make_corpus(corpus, FILES)
    tree, capturing = timed(lambda: store.put_tree(corpus, default_ignores=False))
    _, restoring = timed(store.restore_tree, tree, root / "restored")
    assert trees.listing(root / "restored") == trees.listing(corpus)
    return {"capture": capturing / FILES, "restore": restoring / FILES}


if __name__ == "__main__":
    answer_questions()

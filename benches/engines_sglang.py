"""SGLang's third tier: pfimg beside SGLang's own files, through the calls of the engine's cache controller.

    python -m benches.engines_sglang [--rounds N]

The controller moves batches of 128 pages between its host memory and a backend: pfimg's in place, those of `file` by way of a
tensor a page. Everything lies on /dev/shm, and contenders take turns. pfimg hashes and verifies, files do not. Its memory is
there before pages come, as in an engine; what it then writes behind to a directory is waited for after each turn, not timed.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.managers.cache_controller import HiCacheController, PrefetchOperation
from sglang.srt.mem_cache.hicache_storage import STORAGE_BATCH_SIZE
from tests.engines.sglang_driver import LAYERS, TOKENS, configuration, controller, mla_pool, one_rank

from .engines import compare
from .groups import SIZES
from .pages import Batch
from .rounds import Contender, timed

ASKED = 1_000


class Engine:
    """The part of an engine that stores and loads: a controller whose host memory has room for one batch.

    Attributes:
        memory: The host memory, a row a page.
    """

    def __init__(self, batch: Batch) -> None:
        layers = LAYERS * batch.page_bytes // SIZES["64 KiB"]
        self._batch = batch
        self._pool = mla_pool("page_first", len(batch), layers)
        self.memory: npt.NDArray[np.uint8] = self._pool.kv_buffer.view(torch.uint8).numpy().reshape(batch.pages.shape)
        self._indices = torch.arange(len(batch) * TOKENS)

    def attach(self, kind: str, extra: dict[str, Any]) -> HiCacheController:
        """A controller with a backend."""
        attached = controller(self._pool)
        with one_rank():
            attached.attach_storage_backend(kind, TOKENS, "bench", extra)
        return attached

    def turn(self, attached: HiCacheController, keys: list[str]) -> dict[str, float]:
        """Seconds a page to store and to load the batch, and a key to look keys up; fails if the pages have changed."""
        batches = [
            (keys[at : at + STORAGE_BATCH_SIZE], self._indices[at * TOKENS : (at + STORAGE_BATCH_SIZE) * TOKENS])
            for at in range(0, len(keys), STORAGE_BATCH_SIZE)
        ]
        operation = PrefetchOperation("bench", [])
        np.copyto(self.memory, self._batch.pages)
        stored, storing = timed(lambda: all(attached.page_set_func(*each) for each in batches))
        found, looking = timed(attached.storage_backend.batch_exists, keys[:ASKED])
        self.memory[:] = 0
        loaded, loading = timed(lambda: sum(attached.page_get_func(operation, *each) for each in batches))
        if not (stored and found == len(keys[:ASKED]) and loaded == len(keys) and np.array_equal(self.memory, self._batch.pages)):
            raise ValueError(f"{type(attached.storage_backend).__name__} did not give back what was stored")
        return {"store": storing / len(keys), "load": loading / len(keys), "look-up": looking / found}


def contenders(batch: Batch, base: Path) -> tuple[Mapping[str, Contender], Callable[[], None]]:
    """What takes turns, and what ends it."""
    engine = Engine(batch)
    room = 2 * len(batch) * batch.page_bytes
    options = {"arena_bytes": room}
    ours = {
        "pfimg, memory": engine.attach("dynamic", configuration(options).extra_config),
        "pfimg, memory, blake3": engine.attach("dynamic", configuration(options | {"digest": "blake3"}).extra_config),
        "pfimg, memory and directory": engine.attach(
            "dynamic", configuration(options | {"path": str(base / "tier"), "store_bytes": room}).extra_config
        ),
    }

    def in_pfimg(attached: HiCacheController) -> Contender:
        def turn(root: Path) -> dict[str, float]:
            seconds = engine.turn(attached, named(root))
            attached.storage_backend.cache.flush()
            return seconds

        return turn

    def in_files(root: Path) -> dict[str, float]:
        root.mkdir()
        attached = engine.attach("file", {"file_storage_path": str(root)})
        seconds = engine.turn(attached, named(root))
        attached.detach_storage_backend()
        return seconds

    def named(root: Path) -> list[str]:
        """Keys that no turn had before: hashes of tokens, as long as the engine's."""
        return [f"{root.name}-{place}".encode().hex().rjust(64, "0") for place in range(len(batch))]

    def end() -> None:
        for attached in ours.values():
            attached.detach_storage_backend()

    return {name: in_pfimg(attached) for name, attached in ours.items()} | {"SGLang file": in_files}, end


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="pfimg-bench-", dir="/dev/shm"))
    try:
        compare(contenders, "SGLang file", base, options.rounds)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()

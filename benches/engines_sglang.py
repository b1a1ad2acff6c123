"""SGLang's third tier: pfimg beside SGLang's own files, through the calls of the engine's cache controller.

    python -m benches.engines_sglang [--rounds N]

The controller moves batches of 128 pages between its host memory and a backend: pfimg's in place, those of `file` by way of a
tensor a page. Everything lies on /dev/shm, and contenders take turns. pfimg hashes and verifies, files do not. Its memory is
there before pages come, as in an engine; what it then writes behind to a directory is waited for after each turn, not timed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.managers.cache_controller import HiCacheController, PrefetchOperation
from sglang.srt.mem_cache.hicache_storage import STORAGE_BATCH_SIZE
from tests.engines.sglang_driver import LAYERS, TOKENS, configuration, controller, mla_pool, one_rank

from .engines import Flush, asked, compare, fresh, in_turn, words
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

    def turn(self, attached: HiCacheController, keys: list[str], flush: Flush) -> dict[str, float]:
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
        if flush is not None:
            flush()
        return {"store": storing / len(keys), "load": loading / len(keys), "look-up": looking / found}


def contenders(batch: Batch, base: Path) -> tuple[Mapping[str, Contender], Callable[[], None]]:
    """What takes turns, and what ends it."""
    engine = Engine(batch)

    def turn(attached: HiCacheController, root: Path, flush: Flush) -> dict[str, float]:
        # Hashes of tokens, as long as the engine's.
        return engine.turn(attached, [name.encode().hex().rjust(64, "0") for name in fresh(root, batch)], flush)

    return in_turn(
        {name: engine.attach("dynamic", configuration(told).extra_config) for name, told in words(batch, base).items()},
        "SGLang file",
        lambda root: engine.attach("file", {"file_storage_path": str(root)}),
        turn,
        flush=lambda attached: attached.storage_backend.cache.flush(),
        close=lambda attached: attached.detach_storage_backend(),
    )


def main() -> None:
    with asked(__doc__) as (rounds, base):
        compare(contenders, "SGLang file", base, rounds)


if __name__ == "__main__":
    main()

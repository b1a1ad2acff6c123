"""vLLM's secondary tier: pfimg beside vLLM's own `fs`, through the interface of its tiering manager.

    python -m benches.engines_vllm [--rounds N]

Both are made by vLLM's factory over the same primary tier, and get the same jobs, 16 a turn: for 64 KiB, each is a prompt of
2,048 tokens. Everything lies on /dev/shm, and contenders take turns. pfimg hashes and verifies, files do not. Its memory is there
before pages come, as in an engine; what it writes behind to a directory is waited for after the store, not timed. A look-up
of many keys takes as long as it takes until each is answered: `fs` answers at the second asking, once a thread has looked.
"""

import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from tests.engines.vllm_driver import Spec, config, tier_config
from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager, TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from .engines import Flush, asked, compare, fresh, in_turn, words
from .pages import Batch
from .rounds import Contender, timed

ASKED = 1_000
JOBS = 16


class Engine:
    """The part of an engine that stores and loads: a primary tier that has room for one batch, and requests.

    Attributes:
        rows: The primary tier, a row a page.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.rows = np.empty_like(batch.pages)
        self._requests = 0

    def tier(self, configured: dict[str, Any]) -> SecondaryTierManager:
        """A tier above which this engine is."""
        view = memoryview(self.rows.view(np.int8))  # type: ignore[arg-type]  # mypy knows no buffers before Python 3.12
        return SecondaryTierFactory.create_secondary_tier(configured, view, Spec(config(page_bytes=self._batch.page_bytes)))

    def turn(self, tier: SecondaryTierManager, keys: list[OffloadKey], flush: Flush) -> dict[str, float]:
        """Seconds a page to store and to load the batch, and a key to look keys up; fails if the pages have changed."""
        self._requests += 1
        request = ReqContext(f"request {self._requests}")
        tier.on_new_request(request)
        np.copyto(self.rows, self._batch.pages)
        stored, storing = timed(self._move, tier, keys, request, tier.submit_store)
        if flush is not None:
            flush()
        found, looking = timed(_leading_hits, tier, keys[:ASKED], request)
        self.rows[:] = 0
        loaded, loading = timed(self._move, tier, keys, request, tier.submit_load)
        tier.on_request_finished(request)
        if not (stored and loaded and found == len(keys[:ASKED]) and np.array_equal(self.rows, self._batch.pages)):
            raise ValueError(f"{tier.tier_type} did not give back what was stored")
        return {"store": storing / len(keys), "load": loading / len(keys), "look-up": looking / found}

    def _move(
        self, tier: SecondaryTierManager, keys: list[OffloadKey], request: ReqContext, submit: Callable[[TransferJob], None]
    ) -> bool:
        """All pages to the tier or back; whether all jobs succeeded."""
        for number, chunks in enumerate(np.array_split(np.arange(len(keys), dtype=np.int32), JOBS)):
            part = [keys[chunk] for chunk in chunks]
            submit(TransferJob(number, part, chunks, is_promotion=submit == tier.submit_load, req_context=request))
        tier.drain_jobs()
        return all(result.success for result in list(tier.get_finished_jobs()))


def _leading_hits(tier: SecondaryTierManager, keys: list[OffloadKey], request: ReqContext) -> int:
    """Asks in one step of the scheduler after another until there is no key without an answer."""
    while True:
        found = [tier.lookup(key, request) for key in keys]
        tier.on_schedule_end(ScheduleEndContext((), ()))
        if LookupResult.RETRY not in found:
            return sum(1 for _ in takewhile(lambda result: result is LookupResult.HIT, found))
        time.sleep(0)


def contenders(batch: Batch, base: Path) -> tuple[Mapping[str, Contender], Callable[[], None]]:
    """What takes turns, and what ends it."""
    engine = Engine(batch)

    def turn(tier: SecondaryTierManager, root: Path, flush: Flush) -> dict[str, float]:
        # Hashes of tokens, as long as the engine's.
        return engine.turn(tier, [make_offload_key(name.encode().rjust(32, b"0"), 0) for name in fresh(root, batch)], flush)

    return in_turn(
        {name: engine.tier(tier_config(told)) for name, told in words(batch, base).items()},
        "vLLM fs",
        lambda root: engine.tier({"type": "fs", "root_dir": str(root)}),
        turn,
        flush=lambda tier: tier.cache.flush(),
        close=lambda tier: tier.shutdown(),
    )


def main() -> None:
    with asked(__doc__) as (rounds, base):
        compare(contenders, "vLLM fs", base, rounds)


if __name__ == "__main__":
    main()

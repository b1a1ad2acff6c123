"""LMCache's second level: pfimg beside LMCache's own files, through the adapters' tasks and event descriptors; and serdes.

    python -m benches.engines_lmcache [--rounds N]

A thread polls the descriptors, as LMCache's controllers do, and each call is one task on objects in host memory: `fs_native` is
LMCache's client in C++ with the number of threads that it takes by itself. Everything lies on /dev/shm, and contenders take
turns. pfimg hashes and verifies, files do not. Its memory is there before pages come, as in a server; what it then writes behind
to a directory is waited for after each turn, not timed. Of the serdes `fp8` is lossy.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde import Deserializer, Fp8QuantizationDeserializer, Fp8QuantizationSerializer, Serializer
from tests.engines.lmcache_driver import DTYPE, Controller, create, documented, key_of, page_of

from pfimg.engines.lmcache import PfimgFloatDeserializer, PfimgFloatSerializer

from .engines import Flush, Words, asked, compare, fresh, in_turn, words
from .groups import MIB, SIZES
from .pages import Batch
from .rounds import Contender, Group, run, say, timed

ASKED = 1_000
SERIALIZED_BYTES = 16 * MIB


class Engine:
    """Objects in host memory, one a page of the batch, and what LMCache does with them."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.shape = torch.Size([2, batch.page_bytes // 16_384, 16, 256])
        memory = torch.zeros(batch.pages.shape, dtype=torch.uint8)
        self._objects = [page_of(row, self.shape) for row in memory]
        self._memory: npt.NDArray[np.uint8] = memory.numpy()

    def turn(self, adapter: Controller, keys: list[ObjectKey], flush: Flush) -> dict[str, float]:
        """Seconds a page to store and to load the batch, and a key to look keys up; fails if the pages have changed."""
        first, layouts = keys[:ASKED], {0: MemoryLayoutDesc([self.shape], [DTYPE])}
        np.copyto(self._memory, self._batch.pages)
        stored, storing = timed(lambda: adapter.submit("store", keys, self._objects).result())
        found, looking = timed(lambda: adapter.submit("lookup", first, layouts).result())
        self._memory[:] = 0
        loaded, loading = timed(lambda: adapter.submit("load", keys, self._objects).result())
        adapter.adapter.submit_unlock(first)
        whole = stored.is_successful() and found.popcount() == len(first) and loaded.popcount() == len(keys)
        if not (whole and np.array_equal(self._memory, self._batch.pages)):
            raise ValueError(f"{type(adapter.adapter).__name__} did not give back what was stored")
        if flush is not None:
            flush()
        return {"store": storing / len(keys), "load": loading / len(keys), "look-up": looking / len(first)}


def contenders(batch: Batch, base: Path) -> tuple[Mapping[str, Contender], Callable[[], None]]:
    """What takes turns, and what ends it."""
    engine = Engine(batch)

    def turn(adapter: Controller, root: Path, flush: Flush) -> dict[str, float]:
        # Hashes of tokens, as long as the engine's.
        return engine.turn(adapter, [key_of(name.encode().hex().rjust(64, "0")) for name in fresh(root, batch)], flush)

    def made(told: Words) -> Controller:
        return Controller(create(documented(told | {"page_bytes": batch.page_bytes})))

    return in_turn(
        {name: made(told) for name, told in words(batch, base).items()},
        "LMCache fs_native",
        lambda root: Controller(create({"type": "fs_native", "base_path": str(root)})),
        turn,
        flush=lambda adapter: adapter.adapter.cache.flush(),
        close=lambda adapter: adapter.close(),
    )


def serdes(label: str, base: Path, rounds: int) -> str:
    """Size and rate of each serde on one thread, and of a copy, which is what none costs."""
    base.mkdir()
    batch = Batch(SIZES[label], SERIALIZED_BYTES)
    shape = Engine(batch).shape
    ways: Mapping[str, tuple[Serializer, Deserializer]] = {
        "pfimg_float": (PfimgFloatSerializer(), PfimgFloatDeserializer()),
        "LMCache fp8, lossy": (Fp8QuantizationSerializer(), Fp8QuantizationDeserializer()),
    }
    sizes = {"none, a copy": 1.0}

    def coded(name: str, serializer: Serializer, deserializer: Deserializer, _root: Path) -> dict[str, float]:
        key, size = key_of("00"), serializer.estimate_serialized_size(MemoryLayoutDesc([shape], [DTYPE]))
        sources = [page_of(torch.from_numpy(page), shape) for page in batch.pages]
        backs = [page_of(torch.from_numpy(row), shape) for row in batch.out]
        outs = [page_of(memory, memory.shape, torch.uint8) for memory in torch.zeros(len(batch), size, dtype=torch.uint8)]
        taken, serializing = timed(lambda: [serializer.serialize(*each, key) for each in zip(sources, outs, strict=True)])
        _, deserializing = timed(lambda: [deserializer.deserialize(*each, key) for each in zip(outs, backs, strict=True)])
        sizes[name] = sum(taken) / batch.pages.nbytes
        if "lossy" not in name:
            batch.check(len(batch))
        return {"serialize": serializing / len(batch), "deserialize": deserializing / len(batch)}

    def copied(_root: Path) -> dict[str, float]:
        _, there = timed(np.copyto, batch.out, batch.pages)
        _, back = timed(np.copyto, batch.out, batch.pages)
        return {"serialize": there / len(batch), "deserialize": back / len(batch)}

    systems: dict[str, Contender] = {name: partial(coded, name, *way) for name, way in ways.items()} | {"none, a copy": copied}
    result = run(Group(label, label, batch.page_bytes, systems, batch.renew), rounds, base, say)

    def rates(name: str) -> str:
        middles = (median(result.seconds[call][name]) for call in ("serialize", "deserialize"))
        return " | ".join(f"{batch.page_bytes / middle / 1e9:.2f}" for middle in middles)

    return "\n".join(f"| {label} | {name} | {sizes[name]:.1%} | {rates(name)} |" for name in systems)


def main() -> None:
    with asked(__doc__) as (rounds, base):
        compare(contenders, "LMCache fs_native", base, rounds)
        print("\n| bf16 pages of | serde | size | serialize, GB/s | deserialize, GB/s |", "|---|---|---:|---:|---:|", sep="\n")
        for label in ("64 KiB", "2 MiB"):
            print(serdes(label, base / label.replace(" ", "-"), rounds), flush=True)


if __name__ == "__main__":
    main()

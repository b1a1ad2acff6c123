"""LMCache with the adapter as its plug-in, on plain memory in place of L1: what its controllers do, in one thread."""

import argparse
import json
import select
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import L2AdapterInterface, create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd
from tests.engines.drivers import PAGE_BYTES, Rows

import pfimg

# Keys and values of 4 layers, 16 tokens, 256 numbers each.
SHAPE, DTYPE = torch.Size([2, 4, 16, 256]), torch.bfloat16
LAYOUTS = {0: MemoryLayoutDesc([SHAPE], [DTYPE])}


def key_of(key: str, *, model: str = "llama", rank: int = 0, salt: str = "") -> ObjectKey:
    return ObjectKey(bytes.fromhex(key), model, ObjectKey.ComputeKVRank(2, rank, 2, rank), 0, salt)


def page_of(memory: torch.Tensor, shape: torch.Size = SHAPE, dtype: torch.dtype = DTYPE) -> TensorMemoryObj:
    """An object on a flat piece of memory, as L1 makes them."""
    meta = MemoryObjMetadata(shape, dtype, memory.data_ptr(), memory.nbytes, 1, 0, MemoryFormat.KV_2LTD, None, [shape], [dtype])
    return TensorMemoryObj(memory, meta, None)


def create(spec: dict[str, Any]) -> L2AdapterInterface:
    """An adapter of LMCache's factory, from what follows `--l2-adapter`."""
    (config,) = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(spec)])).adapters
    return create_l2_adapter(config, L1MemoryDesc(ptr=0, size=1 << 30, align_bytes=4096))


def documented(params: dict[str, Any]) -> dict[str, Any]:
    module, name = "pfimg.engines.lmcache", "PfimgL2Adapter"
    return {"type": "plugin", "module_path": module, "class_name": name, "adapter_params": params}


class Controller:
    """Polls an adapter's descriptors, and hands each result to who waits for it."""

    def __init__(self, adapter: L2AdapterInterface) -> None:
        self.adapter = adapter
        self._waiting: dict[str, dict[int, Future[Any]]] = {"store": {}, "lookup": {}, "load": {}}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def submit(self, kind: str, *args: Any) -> Future[Any]:
        call = {
            "store": self.adapter.submit_store_task,
            "lookup": self.adapter.submit_lookup_and_lock_task,
            "load": self.adapter.submit_load_task,
        }[kind]
        # Under the lock: it may have ended before its number is known here.
        with self._lock:
            future: Future[Any] = Future()
            self._waiting[kind][call(*args)] = future
        return future

    def _poll(self) -> None:
        kinds = {
            self.adapter.get_store_event_fd(): "store",
            self.adapter.get_lookup_and_lock_event_fd(): "lookup",
            self.adapter.get_load_event_fd(): "load",
        }
        assert len(kinds) == 3
        poller = select.poll()
        for fd in kinds:
            poller.register(fd, select.POLLIN)
        while not self._closed.is_set():
            for fd, _ in poller.poll(50):
                consume_fd(fd)
                with self._lock:
                    for task, result in self._results(kinds[fd]).items():
                        self._waiting[kinds[fd]].pop(task).set_result(result)

    def _results(self, kind: str) -> dict[int, Any]:
        if kind == "store":
            return dict(self.adapter.pop_completed_store_tasks())
        query = self.adapter.query_load_result if kind == "load" else self.adapter.query_lookup_and_lock_result
        found = {task: query(task) for task in self._waiting[kind]}
        return {task: result for task, result in found.items() if result is not None}

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.adapter.close()


class LMCache:
    """Looks up and locks, loads what is there, unlocks."""

    def __init__(self, adapter: L2AdapterInterface) -> None:
        self.adapter = adapter
        self.controller = Controller(adapter)

    @property
    def cache(self) -> pfimg.PageCache:
        cache: pfimg.PageCache = self.adapter.cache
        return cache

    def store(self, keys: Sequence[str], pages: Rows) -> bool:
        objects = [page_of(torch.from_numpy(page)) for page in pages]
        result = self.controller.submit("store", [key_of(key) for key in keys], objects).result(60)
        return bool(result.is_successful())

    def lookup(self, keys: Sequence[str]) -> int:
        asked = [key_of(key) for key in keys]
        found = self.controller.submit("lookup", asked, LAYOUTS).result(60)
        self.adapter.submit_unlock([asked[index] for index in found.get_indices_list()])
        return next((index for index in range(len(keys)) if not found.test(index)), len(keys))

    def load(self, keys: Sequence[str]) -> list[bytes | None]:
        asked = [key_of(key) for key in keys]
        there = self.controller.submit("lookup", asked, LAYOUTS).result(60).get_indices_list()
        wanted, memory = [asked[index] for index in there], torch.zeros(len(there), PAGE_BYTES, dtype=torch.uint8)
        loaded = self.controller.submit("load", wanted, [page_of(row) for row in memory]).result(60)
        self.adapter.submit_unlock(wanted)
        pages: list[bytes | None] = [None] * len(keys)
        for place, index in enumerate(there):
            if loaded.test(place):
                pages[index] = memory[place].numpy().tobytes()
        return pages

    def close(self) -> None:
        self.controller.close()


def open(configured: dict[str, Any]) -> LMCache:
    return LMCache(create(documented(configured | {"page_bytes": PAGE_BYTES})))

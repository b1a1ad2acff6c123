"""SGLang as its third tier sees it: host pools in memory of the CPU, and the engine's cache controller with its threads."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.cache_controller import HiCacheController, PrefetchOperation
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang.srt.runtime_context import get_parallel
from tests.engines.drivers import PAGE_BYTES, Rows

# Numbers are of 2 bytes: PAGE_BYTES a page.
TOKENS, LAYERS, WIDTH = 16, 8, 256
HEADS, HEAD_WIDTH = 2, 64
POOL_PAGES = 512


def configuration(options: dict[str, Any], **ranks: Any) -> HiCacheStorageConfig:
    """What SGLang makes of its command line, for one rank of one where `ranks` do not say otherwise."""
    named = {"backend_name": "pfimg", "module_path": "pfimg.engines.sglang", "class_name": "PfimgStorage", "interface_v1": 1}
    one = {"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1, "is_mla_model": True}
    told = {"enable_storage_metrics": False, "is_page_first_layout": True, "model_name": "served"}
    return HiCacheStorageConfig(**(one | told | ranks), extra_config=named | options)


def backend(config: HiCacheStorageConfig, host_pool: Any) -> Any:
    """The backend, made and attached as the controller does it."""
    storage = StorageBackendFactory.create_backend("dynamic", config, host_pool)
    storage.register_mem_pool_host(host_pool)
    storage.on_host_pools_registered()
    return storage


def mla_pool(layout: str = "page_first", pages: int = POOL_PAGES, layers: int = LAYERS) -> MLATokenToKVPoolHost:
    """A host pool of one vector a token and layer, mirroring a device's that is on the CPU."""
    buffers = tuple(torch.zeros((TOKENS, 1, WIDTH), dtype=torch.bfloat16) for _ in range(layers))
    info = MLABufferInfo(
        buffers=buffers,
        data_ptrs=_addresses(buffers),
        layer_indices=tuple(range(layers)),
        device_layer_num=layers,
        page_size=TOKENS,
        kv_lora_rank=WIDTH - 64,
        qk_rope_head_dim=64,
        kv_cache_dim=WIDTH,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    return _host_pool(MLATokenToKVPoolHost, info, layout, pages, layers, target_layer_num=layers)


def mha_pool(layout: str = "page_first", pages: int = POOL_PAGES) -> MHATokenToKVPoolHost:
    """A host pool of keys and values."""
    keys, values = (
        tuple(torch.zeros((TOKENS, HEADS, HEAD_WIDTH), dtype=torch.bfloat16) for _ in range(LAYERS)) for _ in range(2)
    )
    info = MHABufferInfo(
        buffers=KVBuffers(
            k=keys, v=values, k_data_ptrs=_addresses(keys), v_data_ptrs=_addresses(values), layout=KVBufferLayout.NHD
        ),
        page_size=TOKENS,
        head_num=HEADS,
        head_dim=HEAD_WIDTH,
        v_head_dim=HEAD_WIDTH,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    return _host_pool(MHATokenToKVPoolHost, info, layout, pages, LAYERS)


def _addresses(buffers: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)


def _host_pool(kind: Any, info: Any, layout: str, pages: int, layers: int, **more: Any) -> Any:
    # The engine keeps 10 GB of a machine's memory free, which is more than a test needs.
    with host_memory_budget_scope(pages * layers * PAGE_BYTES // LAYERS):
        return kind(
            info,
            host_to_device_ratio=1.0,
            host_size=0,
            page_size=TOKENS,
            layout=layout,
            pin_memory=False,
            device_capacity_tokens=TOKENS,
            start_layer=0,
            end_layer=layers,
            host_token_capacity=pages * TOKENS,
            **more,
        )


def write(host_pool: Any, indices: torch.Tensor, pages: Rows) -> None:
    """Puts pages of bytes into a host pool."""
    for start, page in zip(indices[:: host_pool.page_size].tolist(), pages, strict=True):
        host_pool.set_from_flat_data_page(start, torch.from_numpy(page.copy()).view(host_pool.dtype))


def read(host_pool: Any, indices: torch.Tensor) -> list[bytes]:
    """Pages of a host pool, as bytes."""
    starts = indices[:: host_pool.page_size].tolist()
    return [host_pool.get_data_page(start).contiguous().view(torch.uint8).numpy().tobytes() for start in starts]


class SGLang:
    """The engine's own cache controller with its threads, which ask the backend and tell when they are done."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._pool = mla_pool()
        self._controller = controller(self._pool)
        with one_rank():
            self._controller.attach_storage_backend("dynamic", TOKENS, "served", configuration(options).extra_config)
        self.cache = self._controller.storage_backend.cache
        # Tokens that are done, by the number of the operation.
        self._done: dict[int, int] = {}

    def store(self, keys: Sequence[str], pages: Rows) -> bool:
        indices = self._pool.alloc(len(keys) * TOKENS)
        write(self._pool, indices, pages)
        number = self._controller.write_storage(indices, [], list(keys))
        while number not in self._done:
            with suppress(Empty):
                ended = self._controller.ack_backup_queue.get(timeout=0.01)
                self._done[ended.id] = ended.completed_tokens
        self._pool.free(indices)
        return self._done[number] == len(indices)

    def lookup(self, keys: Sequence[str]) -> int:
        found: int = self._controller.storage_backend.batch_exists(list(keys))
        return found

    def load(self, keys: Sequence[str]) -> list[bytes | None]:
        operation = PrefetchOperation("request", [])
        operation.hash_value, operation.host_indices = list(keys), self._pool.alloc(len(keys) * TOKENS)
        self._controller.prefetch_buffer.put(operation)
        while operation.id not in self._done:
            with suppress(Empty):
                ack = self._controller.ack_prefetch_queue.get(timeout=0.01)
                if ack.completed_req:
                    self._done[ack.operation.id] = 0
                else:
                    ack.operation.completed_tokens = ack.completed_tokens
        # The controller takes what comes before the first miss.
        whole = operation.completed_tokens // TOKENS
        pages = read(self._pool, operation.host_indices[: whole * TOKENS])
        self._pool.free(operation.host_indices)
        return [*pages, *[None] * (len(keys) - whole)]

    def close(self) -> None:
        self._controller.detach_storage_backend()


def controller(host_pool: Any) -> HiCacheController:
    """The engine's controller of host memory, with a device that is never asked for anything."""
    device_pool = SimpleNamespace(device="cpu", layer_num=LAYERS, register_layer_transfer_counter=lambda _: None)
    allocator = SimpleNamespace(get_kvcache=lambda: device_pool)
    return HiCacheController(allocator, host_pool, TOKENS, None, threading.Event())


def one_rank() -> Any:
    """What the engine's launcher says of a process that is alone."""
    return get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_dcp_rank=0, attn_dcp_size=1, attn_dp_size=1)


def open(configured: dict[str, Any]) -> SGLang:
    """An engine with our backend."""
    return SGLang(configured)

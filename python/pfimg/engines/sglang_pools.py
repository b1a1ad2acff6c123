"""SGLang's host pools: how their pages are made, where they lie, and how they are cut into pieces for a `PageCache`.

A page is kept as it lies in the engine's host memory: one piece for each buffer that it fills there (a page of MHA in a
page-first layout has two, keys and values; one of MLA has one), copied from and into those buffers. Layouts that scatter a page
over the layers are gathered into one piece first. Pieces that are longer than the cache's pages are cut.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeAlias

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.runtime_context import get_spec

from pfimg.engines.tier import memory_at
from pfimg.errors import FormatError

Cuts: TypeAlias = Sequence[tuple[int, int, int]]
"""Piece, offset in it, length."""


class Pool:
    """One of SGLang's host pools: how its pages are made, and where they lie.

    Attributes:
        sizes: Bytes of the pieces of a page.
        suffix: What tells its keys from those of other pools.
    """

    def __init__(self, host_pool: Any, name: str) -> None:
        self._host, self._tokens = host_pool, host_pool.page_size or 1
        self.layout, self.dtype = str(host_pool.layout), name_of(getattr(host_pool, "dtype", torch.uint8))
        self._gathered: torch.dtype | None = None
        self.sizes = self._pieces()
        if not self.sizes:
            page = host_pool.get_dummy_flat_data_page()
            self.sizes, self._gathered = (page.nbytes,), page.dtype
        # Tokens, layers, heads, numbers a head, the first layer; what a kind of pool does not have is 0.
        made = (getattr(host_pool, word, 0) for word in ("layer_num", "head_num", "head_dim", "kv_cache_dim", "start_layer"))
        self.geometry: tuple[int, ...] = (self._tokens, *made, *self.sizes)
        self.suffix = "" if name == PoolName.KV else f".{name}.{self._digest(str(name))}"

    def _pieces(self) -> tuple[int, ...]:
        """Bytes of each buffer that a page fills, where these are as long as pages; else none."""
        if self.layout.startswith("page"):
            # Some pools can give their pages as a whole only.
            with suppress(NotImplementedError, ValueError):
                return tuple(self._host.get_page_buffer_meta(torch.zeros(self._tokens, dtype=torch.int64))[1])
        return ()

    def _digest(self, name: str) -> str:
        made = [self.dtype, self.layout, *map(str, self.geometry)]
        if name.startswith("draft"):
            # Another draft model may have pages of the same form.
            made.append(str(published(lambda: get_spec().speculative_draft_model_path)))
        return hashlib.blake2b("\n".join(made).encode(), digest_size=4).hexdigest()

    def new_page(self) -> torch.Tensor:
        """A tensor for one page, as the engine makes them."""
        page: torch.Tensor = self._host.get_dummy_flat_data_page()
        return page

    def sources(self, indices: torch.Tensor, cuts: Cuts) -> list[Any]:
        """Buffers with the pages at `indices`, cut."""
        if self._gathered is None:
            return self._views(indices, cuts)
        return pieces_of([bytes_of(self._host.get_data_page(start)) for start in indices[:: self._tokens].tolist()], cuts)

    def targets(self, indices: torch.Tensor, cuts: Cuts) -> tuple[list[Any], Callable[[Sequence[bool]], None]]:
        """Buffers for pages at `indices`, cut, and what is to be called with which of them have been filled."""
        gathered = self._gathered
        if gathered is None:
            return self._views(indices, cuts), lambda _: None
        starts = indices[:: self._tokens].tolist()
        pages = torch.empty((len(starts), *self.sizes), dtype=torch.uint8)

        def settle(filled: Sequence[bool]) -> None:
            for start, page, whole in zip(starts, pages, filled, strict=True):
                if whole:
                    self._host.set_from_flat_data_page(start, page.view(gathered))

        return pieces_of(list(pages), cuts), settle

    def _views(self, indices: torch.Tensor, cuts: Cuts) -> list[Any]:
        """The engine's own memory; it is there as long as the pool is, and nothing is kept of it after a call."""
        addresses, _ = self._host.get_page_buffer_meta(indices)
        pages = range(0, len(addresses), len(self.sizes))
        return [memory_at(addresses[page + piece] + start, length) for page in pages for piece, start, length in cuts]

    def check(self, keys: Sequence[str], indices: torch.Tensor) -> None:
        """FormatError unless there is a page of indices for each key."""
        if indices.numel() != len(keys) * self._tokens:
            raise FormatError(f"{indices.numel()} indices for {len(keys)} pages of {self._tokens} tokens")


@cache
def cuts_of(sizes: tuple[int, ...], most: int) -> Cuts:
    """Pieces of some sizes, cut to at most so many bytes."""
    return [(piece, start, min(most, size - start)) for piece, size in enumerate(sizes) for start in range(0, size, most)]


def published(read: Callable[[], Any]) -> Any:
    """What SGLang's process says of itself; None where it has not been told, or where there is none."""
    with suppress(AttributeError, RuntimeError, ValueError):
        return read()
    return None


def pieces_of(pages: Sequence[torch.Tensor], cuts: Cuts) -> list[torch.Tensor]:
    """Pages of bytes, cut; where a page has several pieces, they lie one behind the other."""
    lengths = [length for _, _, length in cuts]
    return [row for page in pages for row in page.split(lengths)]


def name_of(dtype: torch.dtype) -> str:
    """As Torch calls it."""
    return str(dtype).removeprefix("torch.")


def bytes_of(page: torch.Tensor) -> torch.Tensor:
    """A page as bytes, one after another."""
    return page.contiguous().view(-1).view(torch.uint8)

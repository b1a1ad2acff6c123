"""How LMCache's keys and objects are keys and pages of a `PageCache`.

A key names tokens. What else makes pages interchangeable (model, rank and size of the parallel group, object group, shapes and
types of the numbers, and the revision, which LMCache does not know) is a *part*, a namespace of the cache, so that a server
started with another type of numbers never gets the old pages. Tenants (`cache_salt`) are a part of the key.

All of this is done for every page of every task, in one thread: it is written for batches whose pages are alike.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.memory_management import MemoryObj, TensorMemoryObj

from pfimg.engines.tier import memory_at
from pfimg.page_index import CacheIdentity

SERIALIZED = "serialized"
"""The layout of what a serde made: bytes, as many as it took."""


class Part(NamedTuple):
    """What tells pages apart besides their tokens and tenant: a namespace each."""

    model: str
    kv_rank: int
    group: int
    layout: str

    def identity(self, revision: str) -> CacheIdentity:
        """What the cache is told."""
        groups = re.findall(r"(\w+)\[([\d,]*)]", self.layout)
        return CacheIdentity(
            model=self.model,
            revision=revision,
            dtype="+".join(dict.fromkeys(dtype for dtype, _ in groups)) or "uint8",
            geometry=tuple(int(size) for _, shape in groups for size in shape.split(",") if size),
            layout=f"{self.kv_rank:08x} {self.group} {self.layout}",
            tp_rank=self.kv_rank >> 16 & 0xFF,
            tp_size=max(1, self.kv_rank >> 24),
        )

    @classmethod
    def of(cls, identity: CacheIdentity) -> Self | None:
        """The part that has this identity; None for what another engine has put into the directory."""
        found = re.fullmatch(r"([0-9a-f]{8,}) (\d+) (\S+)", identity.layout)
        return None if found is None else cls(identity.model, int(found[1], 16), int(found[2]), found[3])

    @property
    def name(self) -> str:
        """A name for its namespace."""
        return f"rank {self.kv_rank:08x} group {self.group} {self.layout}"


def by_part(keys: Iterable[ObjectKey], layouts: Iterable[str]) -> dict[Part, list[int]]:
    """Which of the keys are of which part."""
    parts: dict[Part, list[int]] = {}
    last: tuple[str, int, int, str] | None = None
    indexes: list[int] = []
    for index, (key, layout) in enumerate(zip(keys, layouts, strict=True)):
        made = (key.model_name, key.kv_rank, key.object_group_id, layout)
        if made != last:
            last, indexes = made, parts.setdefault(Part(*made), [])
        indexes.append(index)
    return parts


@lru_cache(maxsize=1024)
def layout(shapes: tuple[torch.Size, ...], dtypes: tuple[torch.dtype, ...]) -> str:
    """Shapes and types as a text."""
    if dtypes == (torch.uint8,) and len(shapes[0]) == 1:
        return SERIALIZED
    names = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    return "+".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in zip(names, shapes, strict=True))


def layouts(pages: Iterable[MemoryObj]) -> Iterator[str]:
    """The layout of each page."""
    last, found = None, ""
    for page in pages:
        meta = page.metadata
        made = (meta.shapes, meta.dtypes, meta.shape, meta.dtype)
        if made != last:
            shapes, dtypes, shape, dtype = last = made
            found = layout((shape,) if shapes is None else tuple(shapes), (dtype,) if dtypes is None else tuple(dtypes))
        yield found


def layout_of(page: MemoryObj) -> str:
    """The layout of one page."""
    return next(layouts([page]))


def bytes_of(desc: MemoryLayoutDesc) -> int:
    """Bytes of a page of this layout."""
    return sum(int(shape.numel()) * int(dtype.itemsize) for shape, dtype in zip(desc.shapes, desc.dtypes, strict=True))


def names(keys: Iterable[ObjectKey]) -> list[bytes]:
    """Keys within their parts. No salt has an `@` in it."""
    return [_before(key.cache_salt) + key.chunk_hash for key in keys]


@lru_cache(maxsize=1024)
def _before(salt: str) -> bytes:
    return salt.encode() + b"@"


def key_of(part: Part, name: bytes) -> ObjectKey:
    """The key that has this name within its part."""
    salt, _, tokens = name.partition(b"@")
    return ObjectKey(tokens, part.model, part.kv_rank, part.group, salt.decode())


def memory(pages: Sequence[MemoryObj], sizes: Iterable[int]) -> list[Any]:
    """The first bytes of each page, in place; they are there as long as the page is.

    As `byte_array` makes them, which takes three times as long.
    """
    return [
        memory_at(page.data_ptr, size) if isinstance(page, TensorMemoryObj) else page.byte_array[:size]
        for page, size in zip(pages, sizes, strict=True)
    ]

"""A `PageCache` as an engine's configuration describes it: what the plug-ins share.

An engine runs one process for each part of a model (tensor-parallel ranks and the like), and a cache's directory belongs to one
process. So each part has a directory of its own below the one that is configured, and a namespace that names model and part.

A tier may begin with the pages of an image in a registry: they come while the engine starts, and what fails is a warning.
"""

import ctypes
import logging
import threading
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pfimg.cache import PageCache
from pfimg.config import parse_size
from pfimg.errors import BadRef, FormatError, UnsupportedScheme
from pfimg.page_index import CacheIdentity
from pfimg.prefill import warm
from pfimg.registries.base import parse

_log = logging.getLogger("pfimg")


@dataclass(frozen=True, kw_only=True)
class TierOptions:
    """What an engine's configuration may say of its tier; sizes are numbers of bytes or texts such as `8GiB`.

    Attributes:
        arena_bytes: What pages in memory may take; it is taken at once.
        path: A directory for what is to outlive the process; None: memory only.
        arena_path: A directory for the arena's file, on `/dev/shm` say, which keeps it warm from one process to the next.
        store_bytes: What pages in `path` may take; those used longest ago go first. None: no limit.
        max_bytes: What pages of this model and part may take, in `path` and in memory. None: no limit but the others.
        ttl_seconds: Older pages are misses. None: no age is too old.
        model: The model's name, where the engine's own does not tell models apart.
        revision: The revision of its weights: pages of one are never given to another.
        registry: An image in a registry, from which pages are fetched that were exported to it and are not here.
        warm_from: An image in a registry with whose pages the tier begins. If it is the `registry` too, only its keys come at the
            start, and pages when they are asked for.
        digest: What names pages in a new `path`: `sha256`, as images that others can read need, or `blake3`, which is faster.
    """

    arena_bytes: int
    path: str | None = None
    arena_path: str | None = None
    store_bytes: int | None = None
    max_bytes: int | None = None
    ttl_seconds: float | None = None
    model: str | None = None
    revision: str = ""
    registry: str | None = None
    warm_from: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """The options in a part of an engine's configuration.

        Raises:
            FormatError: A word is none of the options, or its value is none for it; `.field` names it.
        """
        known = {field.name: field for field in fields(cls)}
        values = {}
        for word, value in told.items():
            if word not in known:
                raise FormatError(f"{word!r} is no option of a pfimg tier, which has {', '.join(known)}", field=word)
            values[word] = _checked(word, value)
        for word, field in known.items():
            if field.default is MISSING and values.get(word) is None:
                raise FormatError(f"a pfimg tier needs {word}, such as 8GiB", field=word)
        return cls(**values)

    def open(self, identity: CacheIdentity, page_bytes: int, part: str = "") -> tuple[PageCache, str]:
        """The cache for one part of a model, and the namespace in it that is bound to the identity.

        Args:
            identity: What the pages are of.
            page_bytes: The longest page.
            part: Which part of the model this process has, as a name for its directory; empty where there is but one.

        Raises:
            FormatError: The arena has room for less than two pages.
            StoreError: Another process has the directory open, or it holds pages of the same name but another identity.
            OSError: The space for the arena is not there.
        """
        cache = self.open_cache(page_bytes, part)
        try:
            return cache, self.bind(cache, identity, part)
        except BaseException:
            cache.close()
            raise

    def open_cache(self, page_bytes: int, part: str = "") -> PageCache:
        """The cache alone, for who binds namespaces as it meets them; raises as `open` does."""
        arena_path = None
        if self.arena_path is not None:
            directory = Path(self.arena_path).expanduser()
            directory.mkdir(parents=True, exist_ok=True)
            arena_path = directory / f"{part or 'pages'}.arena"
        return PageCache(
            None if self.path is None else Path(self.path).expanduser() / part,
            page_bytes=page_bytes,
            arena_bytes=self.arena_bytes,
            arena_path=arena_path,
            store_bytes=self.store_bytes,
            registry=self.registry,
            digest=self.digest,
        )

    def bind(self, cache: PageCache, identity: CacheIdentity, part: str = "") -> str:
        """The namespace for one part of a model, bound to the identity, and being warmed; raises as `PageCache.bind` does."""
        namespace = f"{identity.model}@{identity.revision}" if identity.revision else identity.model
        if part:
            namespace = f"{namespace} {part}"
        cache.bind(namespace, identity, max_bytes=self.max_bytes, ttl_seconds=self.ttl_seconds)
        if self.warm_from is not None:
            threading.Thread(target=self._warm, args=(cache, namespace, self.warm_from), name="pfimg-warm", daemon=True).start()
        return namespace

    def _warm(self, cache: PageCache, namespace: str, source: str) -> None:
        try:
            report = warm(cache, source, namespace=namespace, lazy=source == self.registry)
        except Exception as error:  # noqa: BLE001 - the engine computes what it does not find
            if not cache.closed:
                _log.warning("%s cannot be warmed from %s: %s", namespace, source, error)
        else:
            _log.info("%s is warm: %d keys from %s in %.1f s", namespace, report.keys, source, report.seconds)


def memory_at(address: int, length: int) -> memoryview:
    """Memory of an engine, in place; whoever asks for it sees to it that it is there as long as the view is."""
    return memoryview(_array(length).from_address(address))


@lru_cache(maxsize=1024)
def _array(length: int) -> type[ctypes.Array[ctypes.c_ubyte]]:
    """Kept, since such a type takes longer to make than all else that is done for a page, and goes with its last object."""
    return ctypes.c_ubyte * length


def _checked(word: str, value: Any) -> Any:
    if value is None:
        return None
    if word.endswith("_bytes"):
        return _size(word, value)
    if word == "ttl_seconds":
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise FormatError(f"{word} {value!r} is no number of seconds", field=word)
        return float(value)
    if not isinstance(value, str):
        raise FormatError(f"{word} {value!r} is no text", field=word)
    if word == "digest" and value not in ("sha256", "blake3"):
        raise FormatError(f"{word} {value!r} is neither sha256 nor blake3", field=word)
    if word in ("registry", "warm_from"):
        try:
            parse(value)
        except (BadRef, UnsupportedScheme) as error:
            raise FormatError(f"{word}: {error}", field=word) from error
    return value


def _size(word: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except ValueError as error:
            raise FormatError(f"{word} {error}", field=word) from None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise FormatError(f"{word} {value!r} is no size in bytes, nor a text such as 8GiB", field=word)
    return value

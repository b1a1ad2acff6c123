"""What a blob is in an image: so that a report of damage names pages and paths, and not digests alone.

All that a walk of the image reaches has a use here: what the documents name too, which are read as the walk reads them.

Limits: what only a document would tell that is itself damaged is not told; and of one blob no more than `MOST` uses in one image.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from pfimg._core import FsTree, Manifest, PageManifest
from pfimg.errors import StoreError
from pfimg.types import BlobStore

MOST: Final = 1_000
"""A page of zeros may be there a million times."""


_LAYERS: Final = (
    "model.base",
    "model.diff",
    "cache.manifest",
    "world.fs",
    "world.env",
    "world.procs",
    "effects.ledger",
    "trace.messages",
)


def uses(manifest: Manifest, blobs: BlobStore, wanted: set[str]) -> dict[str, list[str]]:
    """What each of some blobs is in an image: `world.fs`, `file a/b.txt`, `k of page 7`.

    Args:
        manifest: The image.
        blobs: Where its documents are; those that cannot be read are passed over.
        wanted: The digests.
    """
    found: dict[str, list[str]] = {}
    for digest, what in _all(manifest, blobs):
        if digest in wanted and len(known := found.setdefault(digest, [])) < MOST:
            known.append(what)
    return found


def _all(manifest: Manifest, blobs: BlobStore) -> Iterator[tuple[str, str]]:
    yield manifest.id, "manifest"
    for layer in _LAYERS:
        name, _, part = layer.partition(".")
        yield getattr(getattr(manifest, name), part), layer
    documents: list[tuple[str, Callable[[bytes], Iterator[tuple[str, str]]]]] = [
        (manifest.world.fs, _of_tree),
        (manifest.cache.manifest, _of_cache),
        (manifest.world.procs, _of_procs),
        (manifest.model.diff, _of_diff),
    ]
    for digest, named in documents:
        with suppress(StoreError):
            yield from named(blobs.get(digest))


def _of_tree(document: bytes) -> Iterator[tuple[str, str]]:
    for entry in FsTree.from_json(document).entries:
        if entry.blob is not None:
            yield entry.blob, f"{entry.kind} {entry.path}"


def _of_cache(document: bytes) -> Iterator[tuple[str, str]]:
    for page in PageManifest.from_json(document).pages:
        yield page.k, f"k of page {page.ix}"
        yield page.v, f"v of page {page.ix}"


def _of_procs(document: bytes) -> Iterator[tuple[str, str]]:
    match _parsed(document):
        case {"kind": "procs.criu.v1", "criu_dump": str(digest)}:
            yield digest, "criu_dump of world.procs"


def _of_diff(document: bytes) -> Iterator[tuple[str, str]]:
    match _parsed(document):
        case {"layout": "model.diff.v1", "diff": {"adapters": list(adapters)}}:
            for at, adapter in enumerate(adapters):
                yield from ((text, f"adapter {at}") for text in _strings(adapter))


def _parsed(document: bytes) -> Any:
    """None for what is no JSON: a layer may be anything."""
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None


def _strings(value: object) -> Iterator[str]:
    """All strings in a JSON value: where an adapter names its blobs depends on its kind."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case list(items):
                waiting.extend(items)
            case dict(items):
                waiting.extend(items.values())

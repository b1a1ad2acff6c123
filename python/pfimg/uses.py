"""What a blob is in an image: so that a report of damage names pages and paths, and not digests alone.

Limits: what only a document would tell that is itself damaged is not told; and of one blob no more than `MOST` uses in one image.
"""

from collections.abc import Iterator
from typing import Final

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
    try:
        tree = FsTree.from_json(blobs.get(manifest.world.fs))
    except StoreError:
        pass
    else:
        for entry in tree.entries:
            if entry.blob is not None:
                yield entry.blob, f"{entry.kind} {entry.path}"
    try:
        cache = PageManifest.from_json(blobs.get(manifest.cache.manifest))
    except StoreError:
        pass
    else:
        for page in cache.pages:
            yield page.k, f"k of page {page.ix}"
            yield page.v, f"v of page {page.ix}"

"""What a pull, a copy and a repair have in common: fetching from a place what a store lacks.

A transport delivers, the store verifies and keeps; here is only what to ask for, and what it means when that is not there.
"""

import logging
import shutil
import weakref
from collections.abc import Iterable, Iterator
from tempfile import mkdtemp
from typing import Final, NamedTuple

from pfimg._core import Manifest, Store
from pfimg.errors import BlobNotFound, StoreError
from pfimg.places import Place
from pfimg.transit import Landing, Meter

_log = logging.getLogger("pfimg")

# Blobs that a copy holds on this machine's disk at a time.
_COPY_BATCH: Final = 256


class Selection(NamedTuple):
    """Which layers and pages a pull takes; None means all."""

    layers: list[str] | None = None
    ixs: list[int] | None = None

    @classmethod
    def of(cls, layers: Iterable[str] | None, ixs: Iterable[int] | None) -> "Selection":
        """Takes them as a call was given them."""
        return cls(None if layers is None else list(layers), None if ixs is None else list(ixs))


def fetch_all(place: Place, manifest: Manifest, store: Store, selection: Selection, meter: Meter) -> list[str]:
    """Fetches what a store lacks of an image, first what tells what else there is; returns all that the image refers to."""
    fetch(place, store.documents(manifest, layers=selection.layers), store, meter)
    wanted = store.reachable(manifest, layers=selection.layers, ixs=selection.ixs)
    fetch(place, wanted, store, meter)
    return wanted


def fetch(place: Place, digests: Iterable[str], store: Store, meter: Meter) -> None:
    """Fetches blobs that a store lacks; BlobNotFound, which names one, where the place lacks them too."""
    absent = absent_from(store, digests)
    if not absent:
        return
    meter.total += len(absent)
    try:
        place.transport.fetch(absent, Landing(store, meter))
        lacking = absent_from(store, absent)
    except BlobNotFound as error:
        if error.digest is None:  # a pack, which the message names
            raise
        lacking = [error.digest]
    if lacking:
        message = f"blob {lacking[0]} is not in {place.ref}: the image there is incomplete, push it again"
        raise BlobNotFound(message, digest=lacking[0])


def absent_from(store: Store, digests: Iterable[str]) -> list[str]:
    """Those that are not in a store, without repeats."""
    digests = list(dict.fromkeys(digests))
    return [digest for digest, here in zip(digests, store.has_many(digests), strict=True) if not here]


def passing(here: Place, digests: list[str], manifest: Manifest, codec: str | None) -> Iterator[tuple[Store, list[str]]]:
    """Blobs on their way from registry to registry, a batch at a time on this machine's disk."""
    for first in range(0, len(digests), _COPY_BATCH):
        batch = digests[first : first + _COPY_BATCH]
        path = mkdtemp(prefix="pfimg-")
        kept = "float" if codec == "float" else "auto"
        passing = _Passing(path, digest=manifest.id.partition(":")[0], codec=kept, durability="none")
        # A blob that is a file holds the store, and thereby the file, until it is sent.
        weakref.finalize(passing, shutil.rmtree, path, ignore_errors=True)
        fetch(here, batch, passing, Meter("fetch"))
        yield passing, batch


class _Passing(Store):
    """A store that goes away with the last reference to it."""


def heal(place: Place, digests: list[str], store: Store) -> None:
    """Fetches what can be had: where a batch fails, its halves are tried."""
    try:
        fetch(place, digests, store, Meter("repair"))
    except StoreError as error:
        if len(digests) == 1:
            _log.warning("blob %s cannot be repaired from %s: %s", digests[0], place.ref, error)
            return
        middle = len(digests) // 2
        heal(place, digests[:middle], store)
        heal(place, digests[middle:], store)

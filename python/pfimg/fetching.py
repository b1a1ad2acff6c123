"""What a pull, a copy and a repair have in common: fetching from a place what a store lacks.

A transport delivers, the store verifies and keeps; here is only what to ask for, and what it means when that is not there.
"""

import logging
import shutil
import sys
import weakref
from collections.abc import Iterable, Iterator
from tempfile import mkdtemp
from typing import Final, NamedTuple

from pfimg._core import Manifest, Store
from pfimg.errors import BlobNotFound, StoreError
from pfimg.places import Place
from pfimg.transit import FullError, Landing, Meter

_log = logging.getLogger("pfimg")

# Blobs, and about how many bytes of their frames, that a copy fetches before it sends them.
_COPY_BATCH: Final = 256
_COPY_BYTES: Final = 256 << 20


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


def fetch(place: Place, digests: Iterable[str], store: Store, meter: Meter, room: int = sys.maxsize) -> None:
    """Fetches blobs that a store lacks; BlobNotFound, which names one, where the place lacks them too.

    When so many bytes have landed as there is room for, what has not landed is left.
    """
    absent = absent_from(store, digests)
    if not absent:
        return
    meter.total += len(absent)
    try:
        place.transport.fetch(absent, Landing(store, meter, room))
        lacking = absent_from(store, absent)
    except FullError:
        meter.total -= len(absent_from(store, absent))
        return
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


def passing(
    here: Place, digests: list[str], manifest: Manifest, codec: str | None, meter: Meter
) -> Iterator[tuple[Store, list[str]]]:
    """Blobs on their way from registry to registry, a batch at a time on this machine's disk.

    How large a blob is turns out when it lands. A batch ends when it has come to `_COPY_BYTES`, and the next asks for no more
    blobs than will come to that if they are like those of this one, so that little is fetched in vain.
    """
    rest, most = digests, _COPY_BATCH
    while rest:
        asked, rest = rest[:most], rest[most:]
        path = mkdtemp(prefix="pfimg-")
        kept = "float" if codec == "float" else "auto"
        passing = _Passing(path, digest=manifest.id.partition(":")[0], codec=kept, durability="none")
        # A blob that is a file holds the store, and thereby the file, until it is sent.
        weakref.finalize(passing, shutil.rmtree, path, ignore_errors=True)
        before = meter.bytes
        fetch(here, asked, passing, meter, _COPY_BYTES)
        left = set(absent_from(passing, asked))
        came = [digest for digest in asked if digest not in left]
        yield passing, came
        rest = [*(digest for digest in asked if digest in left), *rest]
        most = max(1, min(_COPY_BATCH, len(came) * _COPY_BYTES // max(meter.bytes - before, 1)))


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

"""Garbage collection of a registry: mark from all of its images, sweep what is older than the grace period, beside writers.

Objects are listed before the images are read, so that an image that appears meanwhile is among the images, or made of objects
that were not listed. Then objects that no image needs are removed, a few at a time; each time the place is had alone, and images
that are new or other ones by now are marked first. A push keeps others from having it alone for as long as it relies on what it
found (`registries.base.Sweeper`; how, is the transport's affair). So an object that a push found is still there when its image
is visible, and from then on the image keeps it.

An image that cannot be walked ends the run: what it needs is not known.

Limits: a pull of an image that is removed or replaced meanwhile may find its blobs gone; it fails, naming one. Writers that do
not keep off, such as other software, are protected by the grace period alone.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pfimg import config
from pfimg._core import Manifest, Store
from pfimg.errors import RegistryError, StoreError
from pfimg.fetching import fetch
from pfimg.places import Place, Ref
from pfimg.registries.base import Lying, Root, Sweeper
from pfimg.transit import Meter
from pfimg.types import GcReport

# A temporary younger than this may still be written, whatever the grace period.
_TEMPORARY_SECONDS: Final = 3600.0
_BLOB: Final = re.compile(r"blobs/(\w+)/([0-9a-f]{2})/(\2[0-9a-f]{62})\.(?:zst|fpl)")
_PACK: Final = re.compile(r"packs/([0-9a-f]{64})\.(pack|idx)")
_TEMPORARY: Final = re.compile(r".*\.(?:tmp\.\d+\.\d+|\d+\.[0-9a-f]{8}\.tmp)")


def collect_garbage(ref: Ref, *, grace_seconds: float = config.DEFAULT_GRACE_SECONDS, dry_run: bool = False) -> GcReport:
    """Removes from a registry what none of its images needs. It is safe beside pushes; `file://`, `s3://`, `gs://` and `az://`.

    Args:
        ref: Where; which image of the place it names does not matter.
        grace_seconds: Younger blobs stay, since other software may be about to name them.
        dry_run: Only tell what would be removed.

    Raises:
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        RegistryError: An image cannot be walked, so that nothing is removed; or nothing can be from such places.
        FileNotFoundError: There is no such directory.
        BackendError, OSError: The registry's service or file system failed, or others have not stopped pushing for minutes.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> sent = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/shelf#three")
        >>> remove_image(sent.ref)
        >>> collect_garbage(sent.ref, grace_seconds=0).freed == sent.sent
        True
    """
    place = Place.of(ref).for_writing()
    transport = place.transport
    if not isinstance(transport, Sweeper):
        message = f"{place.ref}: what serves {place.ref.scheme}:// has a garbage collection of its own, or none"
        raise RegistryError(message, code="not_offered")
    lying = list(transport.objects())
    with TemporaryDirectory(prefix="pfimg-") as scratch:
        marks = _Marks(place, transport, Path(scratch))
        marks.update()
        garbage = sorted((one for one in lying if marks.releases(one, grace_seconds)), key=lambda one: -one.age)
        removed = garbage if dry_run else list(_sweep(transport, marks, garbage, grace_seconds))
    freed = sum(_is_counted(one.name) for one in removed)
    kept = sum(_is_counted(one.name) for one in lying) - freed
    return GcReport(freed=freed, freed_bytes=sum(one.size for one in removed), kept=kept, dry_run=dry_run)


def _sweep(transport: Sweeper, marks: "_Marks", garbage: Sequence[Lying], grace: float) -> Iterator[Lying]:
    for first in range(0, len(garbage), transport.sweep_items):
        batch = garbage[first : first + transport.sweep_items]
        with transport.alone():
            marks.update()
            removed = transport.sweep([one for one in batch if marks.releases(one, grace)], grace)
        yield from removed


class _Marks:
    """What the images seen so far need: digests of blobs, and names of packs."""

    def __init__(self, place: Place, transport: Sweeper, scratch: Path) -> None:
        self._place = place
        self._transport = transport
        self._scratch = scratch
        self._stores: dict[str, Store] = {}
        self._seen: set[tuple[bytes, tuple[str, ...]]] = set()
        self._blobs: set[str] = set()
        self._packs: set[str] = set()

    def releases(self, lying: Lying, grace: float) -> bool:
        """Whether an object may go."""
        if blob := _BLOB.fullmatch(lying.name):
            return f"{blob[1]}:{blob[3]}" not in self._blobs and lying.age >= grace
        if pack := _PACK.fullmatch(lying.name):
            return pack[1] not in self._packs and lying.age >= grace
        return _TEMPORARY.fullmatch(lying.name) is not None and lying.age >= max(grace, _TEMPORARY_SECONDS)

    def update(self) -> None:
        """Marks from the images that are new."""
        try:
            for root in self._transport.roots():
                seen = hashlib.sha256(root.manifest).digest(), root.packs
                if seen not in self._seen and self._is_walked(root):
                    self._seen.add(seen)
        except StoreError as error:
            message = f"{self._place.ref}: an image cannot be walked, so nothing is removed: {error}; push it again or remove it"
            raise RegistryError(message, code="unreadable") from error

    def _is_walked(self, root: Root) -> bool:
        try:
            self._walk(Manifest.from_json(root.manifest), root.packs)
        except StoreError:
            # One that was removed, or replaced, since it was listed may have been swept already.
            if root in self._transport.roots():
                raise
            return False
        return True

    def _walk(self, manifest: Manifest, packs: tuple[str, ...]) -> None:
        self._packs.update(packs)
        if packs:
            return  # they hold all of it
        algorithm = manifest.id.partition(":")[0]
        if algorithm not in self._stores:
            self._stores[algorithm] = Store(self._scratch / algorithm, digest=algorithm, durability="none")
        documents = self._stores[algorithm]
        fetch(self._place, documents.documents(manifest), documents, Meter("documents"))
        self._blobs.update(documents.reachable(manifest))


def _is_counted(name: str) -> bool:
    """Whether an object is a blob or a pack; the index of a pack belongs to it."""
    pack = _PACK.fullmatch(name)
    return pack[2] == "pack" if pack else _BLOB.fullmatch(name) is not None

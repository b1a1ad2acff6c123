"""The transport for a bucket of an object store, in the tree layout.

Blobs are objects of their own: what is sent is put as it is stored, again and again if need be, since that changes nothing. What
is there is told by a listing where that takes fewer requests than to ask for each. Large blobs go and come in pieces, several at
once.

A push that expects a certain image replaces its document on the condition that this is still the version which was looked at; a
service that knows no conditions (501) is believed to have nobody else writing in that moment.

Limits: parts of a large object whose sending was killed stay in the bucket, unseen, until a rule
of its own (AbortIncompleteMultipartUpload) removes them.
"""

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from pfimg._core import PackIndex
from pfimg.errors import BackendError, BlobNotFound, about
from pfimg.registries.base import MANIFEST_BYTES, Lying, Pack, Range, Sink, StoredBlob, Traffic, blob_name
from pfimg.registries.refs import NAME, AnyRef, S3Ref
from pfimg.registries.s3.access import Access
from pfimg.registries.s3.bucket import PAGE, PART_BYTES, PARTS_AT_ONCE, Bucket, Document, Large
from pfimg.registries.s3.leases import Leases
from pfimg.registries.tree import (
    DESCRIPTION,
    FLOATS,
    MANIFEST,
    NAMED,
    NAMED_BYTES,
    PACKS,
    ListedTree,
    check_algorithm,
    index_name,
    pack_name,
    packs_among,
    parse_description,
    to_json,
)
from pfimg.registries.workers import LARGE_BYTES, Workers
from pfimg.types import Buffer

# What is larger is sent in parts.
_WHOLE_BYTES: Final = 16 << 20
# So few blobs are asked for one by one without a look at what there is.
_FEW: Final = 32
# Attempts to change a description that others are changing too.
_CHANGES: Final = 50
# The end of the interval in which digests lie, for shares of it.
_ALL: Final = 1 << 32


class S3Transport(ListedTree):
    """The transport for a bucket, or for what lies below a prefix in it.

    Args:
        ref: Which.
        jobs: Requests at once.
        options: See S3Registry.
    """

    pack_bytes = 16 << 20
    sweep_items = 1000
    packs_above = None  # the reference implementation reads an image whose blobs are objects of their own

    def __init__(self, ref: S3Ref, *, jobs: int | None = None, **options: Any) -> None:
        self.traffic = Traffic()
        self._ref = ref
        self._location = f"{ref.scheme}://{ref.bucket}{f'/{ref.prefix}' if ref.prefix else ''}"
        self._workers = Workers(jobs, self.traffic, self._location)
        self._bucket = Bucket(self._location, Access.of(ref, **options), self.traffic, self._workers.pause)
        self._leases = Leases(self._bucket, self._workers, self._location)

    def admit_floats(self) -> None:
        """See FloatTransport."""
        self._admits_floats = True

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport. An object without content counts as absent."""
        algorithm = self.description()["digest"]
        check_algorithm(digests, algorithm, f"{self._location}", "prefix")
        suffixes = (".zst", ".fpl") if self._admits_floats and self.has_floats else (".zst",)
        names = {blob_name(digest, suffix): digest for digest in digests for suffix in suffixes}
        wanted = dict(names)
        if len(wanted) > _FEW:
            self._strike_out_listed(wanted, f"blobs/{algorithm}")
        elif wanted:
            self._strike_out_found(wanted)
        return set(digests) - {names[name] for name in names.keys() - wanted.keys()}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""

        def put(named: tuple[str, StoredBlob]) -> None:
            key, item = named
            whole = item.size <= _WHOLE_BYTES
            if item.path is None:
                (self._bucket.put if whole else self._bucket.put_large)(key, item.read())
            elif whole:
                self._bucket.put(key, item.path.read_bytes())
            else:
                self._bucket.put_file(key, item.path, item.size)

        self._workers.run(put, self._named(items), lambda named: _held(named[1]))

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        large: list[tuple[str, str, Large]] = []
        suffixes = (".zst", ".fpl") if self.has_floats else (".zst",)

        def get(digest: str, _: Path) -> Buffer | None:
            for suffix in suffixes:
                found = self._bucket.get(blob_name(digest, suffix), LARGE_BYTES)
                if isinstance(found, Large):
                    large.append((digest, suffix, found))
                    return None
                if found:
                    return found
            raise self._no_blob(digest)

        self._workers.fetch(digests, get, sink)
        for digest, suffix, found in large:
            self._fetch_large(digest, blob_name(digest, suffix), found, sink)

    def hold(self) -> AbstractContextManager[None]:
        """See Sweeper."""
        return self._leases.shared()

    def alone(self) -> AbstractContextManager[None]:
        """See Sweeper."""
        return self._leases.exclusive()

    def objects(self) -> Iterator[Lying]:
        """See Sweeper. Ages are told by this machine's clock."""
        now = time.time()
        for prefix in (f"blobs/{self.description()['digest']}", PACKS):
            for page in self._bucket.entries(prefix):
                for entry in page:
                    yield Lying(entry.key, entry.size, max(now - entry.modified, 0.0))

    def sweep(self, objects: Sequence[Lying], grace: float) -> Sequence[Lying]:  # noqa: ARG002 - nothing changes while a sweep is alone
        """See Sweeper."""
        with self._leases.removing() as check:

            def remove(lying: Lying) -> None:
                check()
                self._bucket.delete(lying.name)

            self._workers.run(remove, objects)
        return objects

    def images(self) -> Sequence[AnyRef]:
        """See Lister."""
        here = dataclasses.replace(self._ref, name=None)
        listed = (PurePosixPath(key) for page in self._bucket.keys(NAMED) for key, size in page if size)
        names = sorted(path.stem for path in listed if path.suffix == ".json" and NAME.fullmatch(path.stem))
        return [*([here] if self.has_object(MANIFEST) else []), *(dataclasses.replace(here, name=name) for name in names)]

    def send_packs(self, packs: Iterable[Pack]) -> None:
        """See PackTransport."""

        def put(pack: Pack) -> None:
            if len(memoryview(pack.content)) > _WHOLE_BYTES:
                self._bucket.put_large(pack_name(pack.name), pack.content)
            else:
                self._bucket.put(pack_name(pack.name), pack.content)
            self._bucket.put(index_name(pack.name), pack.index.to_bytes())

        self._workers.run(put, packs, lambda pack: len(memoryview(pack.content)))

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        """See PackTransport."""

        def get(part: Range) -> Buffer:
            content = self._bucket.get_range(pack_name(part.pack), part.offset, part.length)
            if content is None:
                where = self.show(pack_name(part.pack))
                raise BlobNotFound(f"pack {where} is not there: push the image again", path=where)
            return content

        self._workers.fetch_ranges(ranges, get, deliver)

    def read_object(self, name: str, limit: int) -> bytes | None:
        """See TreeTransport."""
        found = self._bucket.read(name, limit)
        return found.content if found else None

    def read_objects(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """See TreeTransport."""
        found = dict(self._workers.map(lambda name: self.read_object(name, limit), names))
        return [found[name] for name in names]

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        self._renew_lease()
        return super().publish(ref, manifest, signature)

    def publish_packed(self, ref: AnyRef, manifest: bytes, signature: bytes, packs: PackIndex) -> AnyRef:
        """See PackTransport."""
        self._renew_lease()
        return super().publish_packed(ref, manifest, signature, packs)

    def replace_objects(self, objects: Mapping[str, bytes]) -> None:
        """See TreeTransport."""
        for name, content in objects.items():
            self._bucket.put(name, content)

    def exchange_objects(self, objects: Mapping[str, bytes], check: Callable[[], None]) -> None:
        """See TreeTransport. The last object comes first: its condition decides whether the others are written at all."""
        *others, last = objects
        for attempt in range(_CHANGES):
            found = {name: self._bucket.read(name, NAMED_BYTES) for name in objects}
            before = found[last]
            if attempt and before and before.content == objects[last]:
                break  # an answer was lost
            check()
            written = self._bucket.put_if(last, objects[last], before.version if before else None)
            if written is None:
                self.replace_objects(objects)
                return
            if written:
                break
            self._workers.pause(random.uniform(0, 0.05))  # noqa: S311 - jitter needs no secrecy
        else:
            where = self.show(last)
            raise BackendError(f"{where}: others keep changing it: try again later", path=where, retryable=True)
        for name in others:
            self._follow(name, objects[name], found[name], last, objects[last])

    def remove_objects(self, names: Sequence[str]) -> bool:
        """See TreeTransport."""
        if not self.has_object(names[0]):
            return False
        for name in names:
            self._bucket.delete(name)
        return True

    def describe(self, feature: str) -> None:
        """See TreeTransport."""
        for _ in range(_CHANGES):
            found = self._bucket.read(DESCRIPTION, MANIFEST_BYTES)
            values = parse_description(found.content if found else None, self.show(DESCRIPTION))
            if feature in values["features"]:
                return
            content = to_json(values | {"features": [*values["features"], feature]})
            # Without conditions another writer may undo this, and is undone in turn: the next round looks.
            if self._bucket.put_if(DESCRIPTION, content, found.version if found else None) is None:
                self._bucket.put(DESCRIPTION, content)
            self._workers.pause(random.uniform(0, 0.05))  # noqa: S311 - jitter needs no secrecy
        where = self.show(DESCRIPTION)
        raise BackendError(f"{where}: others keep changing it: try again later", path=where, retryable=True)

    def has_object(self, name: str) -> bool:
        """See TreeTransport."""
        return self._bucket.get(name, 0) is not None

    def list_packs(self) -> Sequence[str]:
        """See TreeTransport."""
        return packs_among(key for page in self._bucket.keys(PACKS) for key, size in page if size)

    def show(self, name: str) -> str:
        """See TreeTransport."""
        return self._bucket.show(name)

    def absent(self, name: str) -> Exception:
        """See TreeTransport."""
        return BackendError(f"{self.show(name)}: there is no image here", status=404)

    def _renew_lease(self) -> None:
        """BlobNotFound where what was there may have been swept meanwhile."""
        if self._leases.renew():
            raise BlobNotFound(f"{self._location}: the push has taken so long that blobs may be gone: push the image again")

    def _follow(self, name: str, content: bytes, before: Document | None, last: str, decided: bytes) -> None:
        """Gives an object its content unless somebody has replaced the one that decides by now, whose it then is."""
        while self._bucket.put_if(name, content, before.version if before else None) is False:
            now = self._bucket.read(last, NAMED_BYTES)
            before = self._bucket.read(name, NAMED_BYTES)
            if now is None or now.content != decided or (before and before.content == content):
                return

    def _named(self, items: Iterable[StoredBlob]) -> Iterator[tuple[str, StoredBlob]]:
        """Blobs, each with its name. That there are float frames is announced before the first of them is sent."""
        for item in items:
            is_float = self._admits_floats and item.is_float()
            if is_float and not self.has_floats:
                self.describe(FLOATS)
                self.has_floats = True
            yield blob_name(item.digest, ".fpl" if is_float else ".zst"), item

    def _strike_out_found(self, wanted: dict[str, str]) -> None:
        """Takes out what is there, asking for each."""
        for key, size in self._workers.map(self._bucket.size, list(wanted)):
            if size:
                del wanted[key]

    def _strike_out_listed(self, wanted: dict[str, str], prefix: str) -> None:
        """Takes out what is there: by a listing, in parallel, as far as it takes fewer requests than to ask for each.

        Digests are spread evenly, so that the first page tells how many there are.
        """
        first = next(self._bucket.keys(prefix), [])
        for key, size in first:
            if size:
                wanted.pop(key, None)
        if len(first) < PAGE:
            return
        last = first[-1][0]
        rest = {key: digest for key, digest in wanted.items() if key > last}
        here = _place_of(last)
        pages = (_ALL - here) / max(here, 1)
        if pages < len(rest):
            shares = min(self._workers.jobs, math.ceil(pages))
            bounds = [last, *(_key_at(prefix, here + (_ALL - here) * at // shares) for at in range(1, shares)), f"{prefix}/g"]
            names = frozenset(rest)
            for _, found in self._workers.map(lambda share: self._listed(prefix, *share, names), pairwise(bounds)):
                for key in found:
                    del rest[key], wanted[key]
        else:
            self._strike_out_found(rest)
            for key in wanted.keys() - rest.keys():
                if key > last:
                    del wanted[key]

    def _listed(self, prefix: str, after: str, until: str, names: AbstractSet[str]) -> list[str]:
        """Which of these are between two places."""
        found: list[str] = []
        for page in self._bucket.keys(prefix, after):
            found += [key for key, size in page if size and key <= until and key in names]
            if page[-1][0] > until:
                break
        return found

    def _fetch_large(self, digest: str, key: str, found: Large, sink: Sink) -> None:
        """Fetches a large blob into a file, in pieces."""
        with TemporaryDirectory(prefix="pfimg-", ignore_cleanup_errors=True) as scratch:
            path = Path(scratch, digest.partition(":")[2])
            path.touch()

            def fetch(at: int) -> None:
                content = self._bucket.get_range(key, at, min(PART_BYTES, found.size - at), found.e_tag)
                if content is None:
                    raise self._no_blob(digest)
                with about(path), path.open("r+b") as file:
                    file.seek(at)
                    file.write(content)

            self._workers.run(fetch, range(0, found.size, PART_BYTES), lambda _: PART_BYTES)
            sink.files([(digest, path)])

    def _no_blob(self, digest: str) -> BlobNotFound:
        return BlobNotFound(f"blob {digest} is not in {self._location}", digest=digest)


def _held(item: StoredBlob) -> int:
    """Bytes that a frame takes up while it is sent: all of it, or the parts of it that are read from a file at a time."""
    return item.size if item.size <= _WHOLE_BYTES else max(item.held, PARTS_AT_ONCE * PART_BYTES)


def _place_of(key: str) -> int:
    """Where in their interval a key's digest lies; the beginning for a key that has none."""
    try:
        return int(key.rpartition("/")[2][:8], 16)
    except ValueError:
        return 0


def _key_at(prefix: str, place: int) -> str:
    """What sorts before all keys from that place on."""
    digits = f"{place:08x}"
    return f"{prefix}/{digits[:2]}/{digits}"

"""The tree layout: what `file://`, `s3://` and its like, `hf://` and web servers have in common.

    manifest.json, manifest.json.sig     the unnamed image, as the reference implementation knows it
    blobs/sha256/<aa>/<64 hex>.zst       blobs of all images; those in float frames end in .fpl
    pfimg/images/<name>.json             an image with a name
    packs/<64 hex>.pack, .idx            many blobs in one object, and which
    pfimg.json                           what differs from the published format, if anything does

An adapter says how objects are read and replaced; everything that is decided about them is decided here.

Replacing the unnamed image takes two writes, the signature first, so that a new image never shows without its signature; only
where the manifest's write is what decides between two pushes, it comes first. A reader that sees two objects which do not
belong together reads both again; a kill between the two writes leaves that image refused until it is pushed again. To take it
away, the manifest goes first: without it there is no image. A named image is one JSON document and is therefore replaced at
once: `pfimg` is 1, `manifest` and `signature` are the text of the two objects, `packs` the names of the packs that hold its
blobs, if any do.

An image that the reference could not read in full always has a name, `default` where none is given.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Final

from pfimg import signing
from pfimg._core import PackIndex
from pfimg.errors import BlobNotFound, FormatError, RegistryError
from pfimg.registries.base import MANIFEST_BYTES, PACK_INDEX_BYTES, Expectation, Root
from pfimg.registries.refs import AnyRef, FileRef, HfRef, S3Ref
from pfimg.signing import SIGNATURE_BYTES

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.json.sig"
DESCRIPTION: Final = "pfimg.json"
NAMED: Final = "pfimg/images"
PACKS: Final = "packs"
FLOATS: Final = "codec:float"
DEFAULT_NAME: Final = "default"

NAMED_BYTES: Final = 2 * (MANIFEST_BYTES + SIGNATURE_BYTES) + (8 << 20)
"""Largest document of a named image that is read: it escapes quotes and control characters, and lists packs."""

# How long to wait for a writer that is between its two writes, before each time that both objects are read again.
_REREAD_SECONDS: Final = (0.01, 0.05, 0.2)
_PACK: Final = re.compile(r"[0-9a-f]{64}")
_FEATURES: Final = frozenset({FLOATS, "names", "packs"})


class TreeTransport:
    """The decisions about a tree. Adapters inherit from it and write what follows `publish_packed`."""

    _packs: tuple[str, ...] = ()
    _admits_floats = False
    _expected: Expectation | None = None

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """See Transport."""
        if (found := self._find(ref)) is None:
            name = name_of(ref)
            raise self.absent(_named(name) if name else MANIFEST)
        manifest, signature, self._packs = found
        return manifest, signature

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        name = name_of(ref)
        if name is None and not self._admits_floats and self.description()["digest"] == "sha256":
            self._show(ref, {SIGNATURE: signature, MANIFEST: manifest})
            return ref
        return self._publish_named(ref, name, manifest, signature, ())

    def exists(self, ref: AnyRef) -> bool:
        """See Transport."""
        name = name_of(ref)
        return (name is None and self.has_object(MANIFEST)) or self.has_object(_named(name or DEFAULT_NAME))

    def expect(self, ref: AnyRef, expected: Expectation) -> None:
        """See Comparer."""
        self._expected = expected
        self._check(ref)

    def remove(self, ref: AnyRef) -> None:
        """See Remover."""
        name = name_of(ref)
        names = [_named(name)] if name else [MANIFEST, SIGNATURE]
        if not self.remove_objects(names):
            if name is None and self.has_object(_named(DEFAULT_NAME)):
                message = f"{self.show(MANIFEST)}: the image here has a name: remove {ref}#{DEFAULT_NAME}"
                raise RegistryError(message, code="not_found")
            raise self.absent(names[0])

    def packs_of_image(self) -> PackIndex | None:
        """See PackTransport."""
        return PackIndex.join(self._read_packs(self._packs, "an image needs it: push that again")) if self._packs else None

    def packs_here(self, ref: AnyRef, digests: Sequence[str]) -> PackIndex:  # noqa: ARG002 - the images of a tree share all packs
        """See PackTransport."""
        return PackIndex.join(self._read_packs(self.list_packs()))

    def publish_packed(self, ref: AnyRef, manifest: bytes, signature: bytes, packs: PackIndex) -> AnyRef:
        """See PackTransport."""
        return self._publish_named(ref, name_of(ref), manifest, signature, [name for name, _, _ in packs.packs])

    # What adapters write.

    def read_object(self, name: str, limit: int) -> bytes | None:
        """An object's content, None when it is not there; LimitExceeded when it is larger than `limit`."""
        raise NotImplementedError

    def read_objects(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """Several objects at once."""
        return [self.read_object(name, limit) for name in names]

    def replace_objects(self, objects: Mapping[str, bytes]) -> None:
        """Gives objects their content in the order given, each at once."""
        raise NotImplementedError

    def exchange_objects(self, objects: Mapping[str, bytes], check: Callable[[], None]) -> None:
        """Does the same, but only if `check` does not raise, and if nobody replaces the last of them between that and the end."""
        raise NotImplementedError

    def remove_objects(self, names: Sequence[str]) -> bool:
        """Takes objects away in the order given; False, and nothing is done, when the first of them is not there."""
        raise NotImplementedError

    def describe(self, feature: str) -> None:
        """Lists a feature in the tree's description, without undoing what another writer lists at the same time."""
        raise NotImplementedError

    def has_object(self, name: str) -> bool:
        """Whether an object is there; False only when that is certain."""
        raise NotImplementedError

    def list_packs(self) -> Sequence[str]:
        """Names of the packs that are there, each with its index."""
        raise NotImplementedError

    def show(self, name: str) -> str:
        """How an object is called in messages."""
        raise NotImplementedError

    def absent(self, name: str) -> Exception:
        """The error for an image that is not there, by the object that would be it."""
        raise NotImplementedError

    # What follows is for adapters to use.

    def description(self) -> dict[str, Any]:
        """`pfimg.json`, or what its absence means. FormatError for a version or feature that is not known."""
        return parse_description(self.read_object(DESCRIPTION, MANIFEST_BYTES), self.show(DESCRIPTION))

    @cached_property
    def has_floats(self) -> bool:
        """Whether blobs may lie in float frames."""
        return FLOATS in self.description()["features"]

    def _publish_named(self, ref: AnyRef, name: str | None, manifest: bytes, signature: bytes, packs: Sequence[str]) -> AnyRef:
        for feature in ["names", *(["packs"] if packs else [])]:
            self.describe(feature)
        document: dict[str, object] = {"pfimg": 1, "manifest": manifest.decode(), "signature": signature.decode()}
        self._show(ref, {_named(name or DEFAULT_NAME): to_json(document | ({"packs": list(packs)} if packs else {}))})
        return dataclasses.replace(ref, name=DEFAULT_NAME) if name is None and isinstance(ref, FileRef | S3Ref | HfRef) else ref

    def _read_packs(self, names: Sequence[str], demand: str | None = None) -> list[PackIndex]:
        """Indexes of packs; one that is not there is left out, or is an error for the reason given."""
        found = []
        for name, content in zip(names, self.read_objects([index_name(name) for name in names], PACK_INDEX_BYTES), strict=True):
            where = self.show(index_name(name))
            if content is not None:
                index = PackIndex.from_bytes(content)
                if [pack for pack, _, _ in index.packs] != [name]:
                    raise FormatError(f"{where} is not the index of that pack: push the image again", path=where)
                found.append(index)
            elif demand is not None:
                raise BlobNotFound(f"{where} is not there, and {demand}", path=where)
        return found

    def _show(self, ref: AnyRef, objects: Mapping[str, bytes]) -> None:
        """Makes an image visible; the last of the objects is what does it."""
        if self._expected is None:
            self.replace_objects(objects)
        else:
            self.exchange_objects(objects, lambda: self._check(ref))

    def _check(self, ref: AnyRef) -> None:
        """Conflict where another image is there than is expected."""
        if self._expected is not None:
            found = self._find(ref)
            self._expected.check(ref, found[0] if found else None)

    def _find(self, ref: AnyRef) -> tuple[bytes, bytes | None, tuple[str, ...]] | None:
        """Manifest and signature of the image to which a reference leads now, and the packs that it uses."""
        self.description()  # refuses a tree of a kind that this version does not know
        name = name_of(ref)
        if name is None and (found := self._read_unnamed()) is not None:
            return *found, ()
        at = _named(name or DEFAULT_NAME)
        document = self.read_object(at, NAMED_BYTES)
        return None if document is None else _unpack(document, self.show(at))

    def _read_unnamed(self) -> tuple[bytes, bytes | None] | None:
        found = self._read_pair()
        for seconds in _REREAD_SECONDS:
            if found is None or signing.covers(*found):
                break
            time.sleep(seconds)
            found = self._read_pair()
        return found

    def _read_pair(self) -> tuple[bytes, bytes | None] | None:
        manifest = self.read_object(MANIFEST, MANIFEST_BYTES)
        return None if manifest is None else (manifest, self.read_object(SIGNATURE, SIGNATURE_BYTES))


class ListedTree(TreeTransport):
    """A tree whose images can be listed."""

    def roots(self) -> Iterator[Root]:
        """See Sweeper."""
        for ref in self.images():
            if (found := self._find(ref)) is not None:  # else it was removed since it was listed
                yield Root(ref, found[0], found[2])

    def images(self) -> Sequence[AnyRef]:
        """See Lister."""
        raise NotImplementedError


def name_of(ref: AnyRef) -> str | None:
    """Which of the images in a tree is meant; None for the unnamed one."""
    # A tree may also be what somebody's own scheme stands for.
    return getattr(ref, "name", None)


def pack_name(pack: str) -> str:
    """Where a pack lies."""
    return f"{PACKS}/{pack}.pack"


def index_name(pack: str) -> str:
    """Where a pack's index lies."""
    return f"{PACKS}/{pack}.idx"


def packs_among(names: Iterable[str]) -> list[str]:
    """The packs that are whole among some objects: those with an index."""
    found: dict[str, set[str]] = {".pack": set(), ".idx": set()}
    for path in map(PurePosixPath, names):
        if path.suffix in found:
            found[path.suffix].add(path.stem)
    return sorted(set.intersection(*found.values()))


def check_algorithm(digests: Iterable[str], algorithm: str, where: str, kind: str) -> None:
    """FormatError for a digest that is not of the algorithm of a tree, which is a `kind` of place."""
    for digest in digests:
        if not digest.startswith(f"{algorithm}:"):
            message = f"blob {digest} cannot be put into {where}, whose digests are {algorithm}: use another {kind}"
            raise FormatError(message, digest=digest)


def _named(name: str) -> str:
    return f"{NAMED}/{name}.json"


def to_json(values: Mapping[str, object]) -> bytes:
    """A document as it is written."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def parse_description(document: bytes | None, where: str) -> dict[str, Any]:
    """Reads `pfimg.json`; None means that there is none, as in a tree of the published format.

    Raises:
        FormatError: It is malformed, or says that something is needed which this version does not know.
    """
    if document is None:
        return {"pfimg": 1, "digest": "sha256", "features": []}
    try:
        values: dict[str, Any] = json.loads(document)
        if values["pfimg"] != 1:
            raise FormatError(f"{where}: version {values['pfimg']!r} is not known to this version of pfimg", path=where)
        if values["digest"] not in ("sha256", "blake3"):
            raise FormatError(f"{where}: digest algorithm {values['digest']!r} is not known", path=where)
        unknown = [feature for feature in values["features"] if feature not in _FEATURES]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: it is not the description of a store: {error!r}", path=where) from error
    if unknown:
        raise FormatError(f"{where}: feature {unknown[0]!r} is not known to this version of pfimg", path=where)
    return values


def _unpack(document: bytes, where: str) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Manifest and signature of a named image, and the packs that it uses."""
    try:
        values = json.loads(document)
        if values["pfimg"] == 1:
            packs = tuple(values.get("packs", ()))
            if all(_PACK.fullmatch(pack) for pack in packs):
                return values["manifest"].encode(), values["signature"].encode(), packs
            reason = "it names a pack that is none"
        else:
            reason = f"version {values['pfimg']!r} is not known to this version of pfimg"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it is not the document of a named image: {error!r}"
    raise FormatError(f"{where}: {reason}", path=where)

"""OCI image manifests: what a tag of a repository stands for, as values and as bytes.

An image is in one of two forms:

- *Published*, as the reference implementation writes and reads it: the config is the image's manifest, the first layer its
  signature, and then comes one layer for each blob, in the order of the walk.
- *Ours*, for what the reference could not read in full: the config is the empty object and `artifactType` says what it is, so
  that the reference fails on it instead of taking an incomplete image. The image's manifest is a layer like the signature; after
  them come an index and the packs that it tells of, or one layer for each blob.

The annotation `org.processfork.path` says what a layer is. Digests in here are of the bytes that a registry holds, which for a
blob is its frame.

Limits: digests of other algorithms than SHA-256 are refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pfimg.errors import FormatError, LimitExceeded
from pfimg.registries.base import blob_name

MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_LIMIT: Final = 4 << 20
"""Largest OCI manifest that is written: what registries have to take, and some take no more."""

MANIFEST_READ_LIMIT: Final = 32 << 20
"""Largest OCI manifest that is read, in bytes."""

ARTIFACT_TYPE: Final = "application/vnd.pfimg.image.v1"
_IMAGE: Final = "application/vnd.processfork.image.v1+json"
_SIGNATURE: Final = "application/vnd.processfork.signature.v1+json"
_LAYER: Final = "application/vnd.processfork.layer.v1+zstd"
_INDEX: Final = "application/vnd.pfimg.index.v1"
_PACK: Final = "application/vnd.pfimg.pack.v1"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"

_PATH: Final = "org.processfork.path"
_TITLE: Final = "org.opencontainers.image.title"
_MANIFEST_PATH: Final = "manifest.json"
_SIGNATURE_PATH: Final = "manifest.json.sig"
_INDEX_PATH: Final = "packs.idx"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_SIZE: Final = 1 << 62


class Stored(NamedTuple):
    """Bytes in a registry: their SHA-256, as `sha256:…`, and their number."""

    digest: str
    size: int


EMPTY: Final = b"{}"
"""The config of an image in our form."""


@dataclass(frozen=True, slots=True)
class OciImage:
    """What an OCI manifest says about an image.

    Attributes:
        config: The config of the OCI manifest.
        manifest: The image's manifest, which may be the same.
        signature: Its signature; None where there is none.
        blobs: Frames of blobs, by the blob's digest.
        index: The index of the packs; None where the blobs are in no packs.
        packs: The packs, in order.
    """

    config: Stored
    manifest: Stored
    signature: Stored | None
    blobs: dict[str, Stored] = field(default_factory=dict)
    index: Stored | None = None
    packs: tuple[Stored, ...] = ()

    def parts(self) -> set[str]:
        """Digests of everything that it refers to."""
        single = (part for part in (self.config, self.manifest, self.signature, self.index) if part is not None)
        return {part.digest for part in (*single, *self.packs, *self.blobs.values())}


def stored(content: bytes) -> Stored:
    """What bytes are called in a registry."""
    return Stored(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def published(manifest: Stored, signature: Stored, blobs: Iterable[tuple[str, Stored]], where: str) -> bytes:
    """The bytes of an OCI manifest in the published form.

    Args:
        manifest: The image's manifest.
        signature: Its signature.
        blobs: Digest and frame of each blob, in the order of the walk.
        where: What this is, for messages.

    Raises:
        LimitExceeded: It would be larger than registries take.
    """
    layers = [_descriptor(_SIGNATURE, signature, _SIGNATURE_PATH), *_layers(blobs)]
    return _document({"config": _descriptor(_IMAGE, manifest), "layers": layers}, where)


def single_blobs(manifest: Stored, signature: Stored, blobs: Iterable[tuple[str, Stored]], where: str) -> bytes:
    """The bytes of an OCI manifest in our form, with a layer for each blob; otherwise as `published`."""
    return _ours([*_own_layers(manifest, signature), *_layers(blobs)], where)


def packed(manifest: Stored, signature: Stored, index: Stored, packs: Sequence[Stored], where: str) -> bytes:
    """The bytes of an OCI manifest in our form, with packs; otherwise as `published`."""
    names = [f"packs/{pack.digest.removeprefix('sha256:')}.pack" for pack in packs]
    layers = [
        *_own_layers(manifest, signature),
        _descriptor(_INDEX, index, _INDEX_PATH, title=True),
        *(_descriptor(_PACK, pack, name, title=True) for pack, name in zip(packs, names, strict=True)),
    ]
    return _ours(layers, where)


def check_count(blobs: int, where: str) -> None:
    """Refuses an image of so many single blobs that its OCI manifest is sure to become too large.

    Raises:
        LimitExceeded: It is.
    """
    shortest = _descriptor(_LAYER, Stored(f"sha256:{'0' * 64}", 9), blob_name(f"sha256:{'0' * 64}"))
    if blobs * len(_to_json(shortest)) > MANIFEST_LIMIT:
        raise _too_large(f"{where}: an image of {blobs:,} blobs")


def parse(content: bytes, where: str) -> OciImage:
    """Reads an OCI manifest of an image.

    Raises:
        FormatError: It is malformed, or of something else than an image of this format.
    """
    try:
        values = json.loads(content)
        if not {"config", "layers"} <= values.keys():
            kind = values.get("mediaType")
            config, layers = None, []
        else:
            config, *layers = (_Layer.of(item) for item in (values["config"], *values["layers"]))
            kind = values.get("artifactType") or config.media_type
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where}: the OCI manifest is malformed: {error}", path=where) from error
    named: dict[str, Stored] = {}
    blobs: dict[str, Stored] = {}
    for layer in layers:
        named.setdefault(layer.media_type, layer.stored)
        if layer.media_type == _LAYER and (digest := _blob_digest(layer.path)) is not None:
            blobs.setdefault(digest, layer.stored)
    if config is not None and config.media_type == _IMAGE:
        return OciImage(config.stored, config.stored, named.get(_SIGNATURE), blobs)
    if config is not None and kind == ARTIFACT_TYPE and _IMAGE in named:
        packs = tuple(layer.stored for layer in layers if layer.media_type == _PACK)
        return OciImage(config.stored, named[_IMAGE], named.get(_SIGNATURE), blobs, named.get(_INDEX), packs)
    shown = f" ({kind[:100]})" if isinstance(kind, str) and kind.isprintable() else ""
    raise FormatError(f"{where} is no image of this format but something else{shown}: check the name and the tag", path=where)


class _Layer(NamedTuple):
    """A descriptor."""

    media_type: str
    stored: Stored
    path: str

    @classmethod
    def of(cls, values: dict[str, Any]) -> "_Layer":
        digest, size = values["digest"], values["size"]
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{str(digest)[:80]!r} is no digest of SHA-256")
        if type(size) is not int or not 0 <= size < _LONGEST_SIZE:
            raise ValueError(f"the size of {digest} is no number of bytes")
        return cls(str(values["mediaType"]), Stored(digest, size), str((values.get("annotations") or {}).get(_PATH, "")))


def _blob_digest(path: str) -> str | None:
    """The digest of the blob that lies under this name in the tree layout."""
    _, _, rest = path.partition("/")
    algorithm, _, name = rest.partition("/")
    digest = f"{algorithm}:{name.rpartition('/')[2].removesuffix('.zst')}"
    return digest if path == blob_name(digest) else None


def _descriptor(media_type: str, what: Stored, path: str | None = None, *, title: bool = False) -> dict[str, object]:
    values: dict[str, object] = {"mediaType": media_type, "size": what.size, "digest": what.digest}
    annotations = {_TITLE: path, _PATH: path} if title else {_PATH: path}
    return values if path is None else values | {"annotations": annotations}


def _layers(blobs: Iterable[tuple[str, Stored]]) -> Iterable[dict[str, object]]:
    return (_descriptor(_LAYER, frame, blob_name(digest)) for digest, frame in blobs)


def _own_layers(manifest: Stored, signature: Stored) -> list[dict[str, object]]:
    return [
        _descriptor(_IMAGE, manifest, _MANIFEST_PATH, title=True),
        _descriptor(_SIGNATURE, signature, _SIGNATURE_PATH, title=True),
    ]


def _ours(layers: Sequence[dict[str, object]], where: str) -> bytes:
    return _document({"artifactType": ARTIFACT_TYPE, "config": _descriptor(EMPTY_TYPE, stored(EMPTY)), "layers": layers}, where)


def _document(values: dict[str, object], where: str) -> bytes:
    content = _to_json({"schemaVersion": 2, "mediaType": MEDIA_TYPE} | values)
    if len(content) > MANIFEST_LIMIT:
        raise _too_large(f"{where}: the OCI manifest of {len(content):,} bytes")
    return content


def _to_json(values: dict[str, object]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _too_large(what: str) -> LimitExceeded:
    message = f"{what} is more than registries take ({MANIFEST_LIMIT:,} bytes): push it with the layout packed"
    return LimitExceeded(message, limit=MANIFEST_LIMIT)

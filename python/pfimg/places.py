"""Places: where an image is or will be, the transport that leads there, and what else is there."""

import re
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from pfimg import signing
from pfimg.errors import BadRef, FormatError, RegistryError, SignatureError
from pfimg.packing import PackedTransport
from pfimg.registries import base
from pfimg.registries.base import Comparer, Expectation, FloatTransport, Lister, PackTransport, Registry, Remover, Transport
from pfimg.registries.refs import AnyRef, ImageRef
from pfimg.signing import SignedManifest

Ref: TypeAlias = str | AnyRef
"""An image reference, as text or parsed."""

_IMAGE: Final = re.compile(r"(?:sha256|blake3):[0-9a-f]{64}")


class Place(NamedTuple):
    """Where an image is or will be, and the way there."""

    ref: AnyRef
    transport: Transport

    @classmethod
    def to(cls, ref: AnyRef, opened: Transport | Registry) -> "Place":
        """The place that was connected to."""
        if not isinstance(opened, Transport):
            message = f"{ref}: what serves {ref.scheme}:// can push and pull images, but not single blobs"
            raise RegistryError(message, code="not_offered")
        return cls(ref, opened)

    @classmethod
    def of(cls, source: Ref | Registry, **options: object) -> "Place":
        """The place that a caller names, by a reference or by a registry that was opened for one."""
        if isinstance(source, str | ImageRef):
            where = base.parse(source)
            return cls.to(where, base.connect(where, **options))
        if isinstance(source, OnePlace) and source.home is not None:
            return source.place(source.home)
        raise BadRef(f"{source!r} is not one place: give a reference, or what registries.open returned for one")

    def for_writing(self) -> "Place":
        """Itself, if it can be written to."""
        if advice := getattr(self.transport, "read_only", None):
            raise RegistryError(f"{self.ref} is read-only: {advice}", code="not_offered")
        return self

    def expect(self, image: str | None) -> None:
        """Says what a push may replace: an image's id, or `none` for nothing; None does not care."""
        if image is None:
            return
        if image != "none" and not _IMAGE.fullmatch(image):
            raise FormatError(f"expect {image!r}: give the id of an image, such as sha256:…, or none")
        if not isinstance(self.transport, Comparer):
            message = f"{self.ref}: what serves {self.ref.scheme}:// cannot say what a push replaces: leave expect out"
            raise RegistryError(message, code="not_offered")
        self.transport.expect(self.ref, Expectation(None if image == "none" else image))

    def laid_out(self, layout: str, codec: str | None, blobs: int) -> "Place":
        """The way to put so many blobs there."""
        inner = self.transport
        if codec == "float":
            if layout != "auto" or not isinstance(inner, FloatTransport):
                message = f"{self.ref}: only directories and buckets keep float frames, in the layout auto: use another codec"
                raise RegistryError(message, code="not_offered")
            inner.admit_floats()
            return self
        if not isinstance(inner, PackTransport):
            if layout == "packed":
                message = f"{self.ref}: what serves {self.ref.scheme}:// carries no packs: use the layout auto"
                raise RegistryError(message, code="not_offered")
            return self
        if layout == "packed" or (layout == "auto" and inner.packs_above is not None and blobs > inner.packs_above):
            return Place(self.ref, PackedTransport(inner, self.ref))
        return self

    def unpacked(self) -> "Place":
        """The way to the blobs of the image whose manifest has been read."""
        inner = self.transport
        if not isinstance(inner, PackTransport) or (index := inner.packs_of_image()) is None:
            return self
        return Place(self.ref, PackedTransport(inner, self.ref, index))


@runtime_checkable
class OnePlace(Protocol):
    """A registry that was opened for a reference."""

    home: AnyRef | None

    def place(self, ref: Ref) -> Place:
        """The place that a reference names."""


def read_signature(ref: Ref) -> SignedManifest:
    """The manifest of an image and its signature, as they are in a registry: for other tools to check. Nothing is checked here.

    Args:
        ref: An image reference.

    Raises:
        SignatureError: There is no signature, or it is malformed.
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        RegistryError: What serves the scheme cannot tell.
        FileNotFoundError: There is no image in that directory.
        BackendError, OSError: The registry's service or file system failed.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> key = SigningKey.generate()
        >>> sent = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/signed", sign=key)
        >>> read_signature(sent.ref).signer == key.public_key.fingerprint
        True
    """
    place = Place.of(ref)
    manifest, signature = place.transport.read_manifest(place.ref)
    if signature is None:
        raise SignatureError(f"{place.ref}: the manifest has no signature: push it again")
    try:
        return signing.show(str(place.ref), manifest, signature)
    except SignatureError as error:
        raise SignatureError(f"{place.ref}: {error}", field=error.field, limit=error.limit) from error


def list_images(ref: Ref) -> list[str]:
    """The images in a place: the tags of a repository (`oci://`), else the unnamed image and the named ones.

    On the Hub they are those of all branches and tags.

    They are not looked into, so that what another program has tagged in a repository is among them.

    Args:
        ref: An image reference; which image of the place it names does not matter.

    Returns:
        References to pull them by; none where the place does not exist.

    Raises:
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        RegistryError: Such places cannot tell which images they have.
        BackendError, OSError: The registry's service or file system failed, or refuses to tell.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> sent = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/shelf#one")
        >>> list_images(f"file://{Path.cwd()}/shelf") == [sent.ref]
        True
    """
    where = base.parse(ref)
    opened = base.connect(where)
    if not isinstance(opened, Lister):
        raise RegistryError(f"{where}: what serves {where.scheme}:// cannot list images", code="not_offered")
    return [str(image) for image in opened.images()]


def remove_image(ref: Ref) -> None:
    """Takes an image away from a registry: its name, not its blobs, which other images may share.

    Args:
        ref: Which; without a `#name` the unnamed image. In an OCI registry it is the tag that goes.

    Raises:
        BadRef, UnsupportedScheme: The reference is malformed, of a scheme that is not spoken, or names no single image.
        FileNotFoundError: There is no such image in that directory.
        RegistryError: Such places are read-only, or remove nothing.
        BackendError, OSError: There is no such image, or the registry's service or file system failed, or does not allow it.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> sent = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/shelf#two")
        >>> remove_image(sent.ref)
        >>> exists(sent.ref)
        False
    """
    place = Place.of(ref).for_writing()
    if not isinstance(place.transport, Remover):
        raise RegistryError(f"{place.ref}: what serves {place.ref.scheme}:// removes no images", code="not_offered")
    place.transport.remove(place.ref)

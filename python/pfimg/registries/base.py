"""What an adapter for a kind of registry writes, and how it is found by its scheme.

A `Transport` moves bytes to and from one place and decides nothing: what to send, in which order and whether to believe what
arrives is decided once, in `pfimg.transfer`. A `Registry` is what users see: push, pull and exists.

A factory is found by the reference's scheme: first among those that were registered in this process (`register_scheme`), then
among the entry points of installed packages:

    [project.entry-points."pfimg.registries"]
    mem = "my_package:MemTransport"
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol, TypeAlias, overload, runtime_checkable

from pfimg._core import Manifest
from pfimg.errors import UnsupportedScheme
from pfimg.registries.refs import SCHEMES, AnyRef, ImageRef, OtherRef
from pfimg.types import BlobStore, Buffer, LayerSet, PullReport, PushReport, StrPath

MANIFEST_BYTES: Final = 1 << 20
"""Largest manifest that is read, in bytes."""

_GROUP: Final = "pfimg.registries"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob to send, as the frame that is stored under its digest.

    Attributes:
        digest: Of the decoded bytes.
        size: Length of the frame in bytes.
        path: The file that is this frame, until `send` asks for the next batch or returns; None when it lies in no file.
        read: Returns the frame, after its content was checked against the digest.
    """

    digest: str
    size: int
    path: Path | None
    read: Callable[[], bytes]


class Sink(Protocol):
    """Where a transport delivers what it fetches: digests, each with its frame. Everything is verified there.

    Its methods are called from the thread that called `fetch`; each call is one batch, which is checked and stored in parallel.
    """

    def frames(self, items: Sequence[tuple[str, Buffer]]) -> None:
        """Takes frames in memory; they may be changed once this returns."""

    def files(self, items: Sequence[tuple[str, StrPath]]) -> None:
        """Takes frames in files, which are copied."""


@runtime_checkable
class Transport(Protocol):
    """All that an adapter writes: input and output for one place, no decisions.

    What goes wrong is raised: BackendError (RegistryTimeout) for a service, the system's own errors for the local file system.
    """

    def missing(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests whose blobs are not there."""

    def send(self, items: Iterable[StoredBlob]) -> None:
        """Stores blobs; those that are there already may be sent again. When it returns they are there to stay."""

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """Delivers blobs to the sink, in any order; BlobNotFound for one that is not there."""

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """The image's manifest and its signature; None when it has none. Reading stops at `MANIFEST_BYTES`, `SIGNATURE_BYTES`."""

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """Makes an image visible whose blobs have been sent; returns the reference under which it is."""

    def exists(self, ref: AnyRef) -> bool:
        """Whether an image is there. False only where that is certain: who may not look, or cannot, raises."""


class Registry(Protocol):
    """A place, or a kind of places, to push images to and to pull them from."""

    def push(self, ref: str | AnyRef, manifest: Manifest, store: BlobStore) -> PushReport:
        """Sends an image from a store."""

    @overload
    def pull(self, ref: str | AnyRef, store: None = None) -> LayerSet: ...
    @overload
    def pull(self, ref: str | AnyRef, store: BlobStore) -> PullReport: ...
    def pull(self, ref: str | AnyRef, store: BlobStore | None = None) -> PullReport | LayerSet:
        """Fetches an image into a store, or without one into memory."""

    def exists(self, ref: str | AnyRef) -> bool:
        """Whether an image is there."""


Factory: TypeAlias = Callable[..., Transport | Registry]
"""Called as `factory(ref, **options)`; what the options are is up to it."""

_factories: Final[dict[str, Factory]] = {}


def register_scheme(name: str, factory: Factory) -> None:
    """Says who serves references of a scheme; a later call for the same scheme replaces an earlier one.

    Args:
        name: The scheme, what stands before `://`.
        factory: Makes a Transport or a Registry of a parsed reference, which for other schemes than the format's is an OtherRef.
            It gets the options that were given to `registries.open`, and `jobs=` where a call has it.

    Example:
        >>> from pathlib import Path
        >>> vault = Path("/no/such/directory")
        >>> register_scheme("vault", lambda ref: registries.FileTransport(FileRef(vault / ref.location)))
        >>> exists("vault://agents")
        False
    """
    _factories[name] = factory


def schemes() -> list[str]:
    """The schemes that are spoken here, sorted."""
    return sorted({*_factories, *entry_points(group=_GROUP).names})


def parse(ref: str | AnyRef) -> AnyRef:
    """Reads a reference of any scheme that is known or registered.

    Raises:
        BadRef: It is malformed.
        UnsupportedScheme: Nobody knows its scheme.
    """
    if not isinstance(ref, str):
        return ref
    scheme, separator, location = ref.partition("://")
    if separator and scheme not in SCHEMES and _factory(scheme):
        return OtherRef(scheme, location)
    return ImageRef.parse(ref)


def connect(ref: AnyRef, **options: object) -> Transport | Registry:
    """Makes what serves a reference.

    Raises:
        UnsupportedScheme: No adapter for its scheme is here.
    """
    factory = _factory(ref.scheme)
    if factory is None:
        spoken = ", ".join(f"{scheme}://" for scheme in schemes())
        raise UnsupportedScheme(f"{ref}: this version of pfimg does not speak {ref.scheme}:// yet; it speaks {spoken}")
    return factory(ref, **options)


def blob_name(digest: str) -> str:
    """Where a blob's frame lies below the root of a registry that has the tree layout."""
    algorithm, _, hex_digits = digest.partition(":")
    return f"blobs/{algorithm}/{hex_digits[:2]}/{hex_digits}.zst"


def _factory(scheme: str) -> Factory | None:
    if scheme not in _factories:
        for found in entry_points(group=_GROUP, name=scheme):
            _factories.setdefault(scheme, found.load())
    return _factories.get(scheme)

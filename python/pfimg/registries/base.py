"""What an adapter for a kind of registry writes, and how it is found by its scheme.

A `Transport` moves bytes to and from one place and decides nothing: what to send, in which order and whether to believe what
arrives is decided once, in `pfimg.delivery`. A `Registry` is what users see: push, pull and exists.

A factory is found by the reference's scheme: first among those that were registered in this process (`register_scheme`), then
among the entry points of installed packages:

    [project.entry-points."pfimg.registries"]
    mem = "my_package:MemTransport"
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias, overload, runtime_checkable

from pfimg._core import CarFrame, Manifest, PackIndex
from pfimg.errors import Conflict, UnsupportedScheme
from pfimg.registries.refs import SCHEMES, AnyRef, ImageRef, OtherRef
from pfimg.types import BlobStore, Buffer, LayerSet, PullReport, PushReport, StrPath

MANIFEST_BYTES: Final = 1 << 20
"""Largest manifest that is read, in bytes."""

PACK_INDEX_BYTES: Final = 1 << 30
"""Largest index of packs that is read, in bytes."""

_FLOAT: Final = b"fpl"
_GROUP: Final = "pfimg.registries"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob to send, as the frame that is stored under its digest.

    Attributes:
        digest: Of the decoded bytes.
        size: Length of the frame in bytes.
        path: The file that is this frame, for as long as this object lives; None when it lies in no file.
        read: Returns the frame, after its content was checked against the digest.
        is_passing: Whether that file is there for this transfer alone, and goes away with it.
    """

    digest: str
    size: int
    path: Path | None
    read: Callable[[], bytes]
    is_passing: bool = False

    @property
    def held(self) -> int:
        """Bytes that it takes up until it has been sent: in memory, or in a file of its own."""
        return self.size if self.path is None or self.is_passing else 0

    def is_float(self) -> bool:
        """Whether it is a float frame, which its first bytes tell."""
        if self.path is None:
            return self.read().startswith(_FLOAT)
        with self.path.open("rb") as file:
            return file.read(len(_FLOAT)) == _FLOAT


@dataclass(slots=True)
class Traffic:
    """What the requests of a transport have come to; whoever shows progress reads it from another thread.

    Attributes:
        retries: Requests that were made again.
        in_flight: Requests that have no answer yet.
        found: Blobs of those given to `send` that turned out to be there already.
        found_bytes: The bytes of their frames.
    """

    retries: int = 0
    in_flight: int = 0
    found: int = 0
    found_bytes: int = 0


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

    A factory makes a new one for each push and pull, which may therefore remember what it has seen. What goes wrong is raised:
    BackendError (RegistryTimeout) for a service, the system's own errors for the local file system.

    One that copies the files it is given says so with an attribute `copies_files`, which is True; any other gets blobs as frames
    in memory, read and verified many at once, and only large ones as files. One that counts its requests has an attribute
    `traffic`. One that cannot write says so with an attribute `read_only`, which is what to do instead.
    """

    def missing(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests whose blobs are not there. A push asks once, with all that the image refers to, in walk order."""

    def send(self, items: Iterable[StoredBlob]) -> None:
        """Stores blobs; those that are there already may be sent again. When it returns they are there to stay."""

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """Delivers blobs to the sink, in any order; BlobNotFound for one that is not there."""

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """The image's manifest and its signature; None when it has none. Reading stops at `MANIFEST_BYTES`, `SIGNATURE_BYTES`."""

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """Makes an image visible whose blobs have been sent; returns the reference under which it is.

        BlobNotFound when something that was there before is gone: once, `missing` is then asked again, and what it names sent.
        """

    def exists(self, ref: AnyRef) -> bool:
        """Whether an image is there. False only where that is certain: who may not look, or cannot, raises."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack to send: frames one after another, and the index that tells which.

    Attributes:
        name: SHA-256 of the content, in hexadecimal.
        content: The frames; what lies in a file is mapped.
        index: Of this pack alone.
    """

    name: str
    content: Buffer
    index: PackIndex


@dataclass(frozen=True, slots=True)
class Range:
    """Some bytes of a pack."""

    pack: str
    offset: int
    length: int


@runtime_checkable
class PackTransport(Transport, Protocol):
    """A transport that can keep many blobs in one object, for services where small objects are dear.

    Attributes:
        pack_bytes: About how many bytes a pack should have here.
        packs_above: A push with the layout `auto` packs an image of more blobs than this; None says that it never does.
    """

    pack_bytes: int
    packs_above: int | None

    def packs_of_image(self) -> PackIndex | None:
        """The packs of the image that `read_manifest` has returned; None when it has none."""

    def packs_here(self, ref: AnyRef, digests: Sequence[str]) -> PackIndex:
        """Packs that are there already, and that an image under this reference may use; as far as needed for these blobs."""

    def send_packs(self, packs: Iterable[Pack]) -> None:
        """Stores packs. When it returns they are there to stay."""

    def fetch_ranges(self, ranges: Sequence[Range], deliver: "Callable[[int, Buffer], None]") -> None:
        """Delivers ranges, each with its place in the sequence, in any order, from the thread that called.

        BlobNotFound for a pack that is not there; a range that is not answered in full is a BackendError.
        """

    def publish_packed(self, ref: AnyRef, manifest: bytes, signature: bytes, packs: PackIndex) -> AnyRef:
        """Makes an image visible whose blobs are in these packs, where the reference implementation does not take it for one.

        Returns the reference under which it is.
        """


@runtime_checkable
class ImageTransport(Transport, Protocol):
    """A transport that sends an image as one, because what it is called there follows from all of its bytes.

    Its `send` and `publish` are not called.

    Attributes:
        codec: How blobs are encoded, unless the caller says otherwise.
    """

    codec: str

    def send_image(
        self,
        ref: AnyRef,
        manifest: bytes,
        signature: bytes,
        frames: Mapping[str, CarFrame],
        tick: Callable[[int, int, int], None],
    ) -> AnyRef:
        """Sends what is not there of an image; returns the reference under which it is.

        `tick` is told how many blobs and bytes of frames have gone out, of how many: blobs done, blobs in all, bytes done.
        """


@runtime_checkable
class Lister(Protocol):
    """A transport that can tell which images are where its reference leads."""

    def images(self) -> Sequence[AnyRef]:
        """References of the images beside its own, and of that; they need not have been looked into. Empty where nothing is."""


@runtime_checkable
class Remover(Protocol):
    """A transport that can take images away. Their blobs stay."""

    def remove(self, ref: AnyRef) -> None:
        """Takes away the image of this very name; the error of one that is not there when it is not."""


@dataclass(frozen=True, slots=True)
class Lying:
    """An object that lies in a place and that nothing may need.

    Attributes:
        name: Below the root of the tree.
        size: In bytes.
        age: Seconds since it was written, or found by a push.
    """

    name: str
    size: int
    age: float


class Root(NamedTuple):
    """An image that needs what lies in a place: its manifest, and the packs that hold its blobs if any do."""

    ref: AnyRef
    manifest: bytes
    packs: tuple[str, ...]


@runtime_checkable
class Sweeper(Transport, Protocol):
    """A transport of a place from which garbage is removed from here.

    Attributes:
        sweep_items: So many objects are removed at a time.
    """

    sweep_items: int

    def hold(self) -> AbstractContextManager[None]:
        """While it lasts, nothing is swept: for a push, from its first look at what is there until its image is visible."""

    def alone(self) -> AbstractContextManager[None]:
        """Waits until nobody holds the place, and keeps others from it while it lasts."""

    def roots(self) -> Iterator[Root]:
        """All images."""

    def objects(self) -> Iterator[Lying]:
        """Blobs, packs, and what killed processes have left of those."""

    def sweep(self, objects: Sequence[Lying], grace: float) -> Sequence[Lying]:
        """Removes objects, alone; leaves those that have become younger than the grace period. Returns what was removed."""


def holding(transport: object) -> AbstractContextManager[None]:
    """Keeps what lies in a transport's place from being swept, where that happens."""
    hold: Callable[[], AbstractContextManager[None]] = getattr(transport, "hold", nullcontext)
    return hold()


@runtime_checkable
class Comparer(Protocol):
    """A transport that can see to it that a push replaces what it is meant to replace, and nothing else."""

    def expect(self, ref: AnyRef, expected: "Expectation") -> None:
        """Told before anything is sent what may be replaced. Checks that at once, and again in the moment of publishing."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a push may replace.

    Attributes:
        image: Id of the image that has to be there; None when there has to be none.
    """

    image: str | None

    def check(self, ref: AnyRef, manifest: bytes | None) -> None:
        """Conflict unless this manifest, or none, is what is expected at the reference."""
        found = None if manifest is None else Manifest.from_json(manifest).id
        if found != self.image:
            here, wanted = found or "no image", self.image or "none"
            raise Conflict(
                f"{ref}: {here} is there, where {wanted} was expected: nothing was replaced; pull it first", image=found
            )


@runtime_checkable
class FloatTransport(Protocol):
    """A transport that can keep blobs as float frames too, which only this software reads."""

    def admit_floats(self) -> None:
        """Told first of all where float frames are welcome.

        A blob that is there as a float frame is then not `missing`, those that are sent may be float frames (`is_float` tells),
        and an image is published where the reference implementation does not take it for one.
        """


@runtime_checkable
class Neighbour(Protocol):
    """A transport of which the service may copy blobs by itself, from places of its own."""

    def comes_from(self, source: Transport) -> None:
        """Told before a copy where it comes from. What the service has taken over from there is not `missing`."""


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
        raise UnsupportedScheme(f"{ref}: no adapter for {ref.scheme}:// is here; there are some for {spoken}")
    return factory(ref, **options)


def blob_name(digest: str, suffix: str = ".zst") -> str:
    """Where a blob's frame lies below the root of a registry that has the tree layout; a float frame by the suffix `.fpl`."""
    algorithm, _, hex_digits = digest.partition(":")
    return f"blobs/{algorithm}/{hex_digits[:2]}/{hex_digits}{suffix}"


def _factory(scheme: str) -> Factory | None:
    if scheme not in _factories:
        for found in entry_points(group=_GROUP, name=scheme):
            _factories.setdefault(scheme, found.load())
    return _factories.get(scheme)

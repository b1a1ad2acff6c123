"""Push, pull, copy and what else there is between a store and registries, as users call it.

How an image moves, and what it takes to believe what arrives, is in `pfimg.delivery`.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy as clone
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Self, overload

from pfimg import signing
from pfimg._core import CarFrames, Manifest, Store
from pfimg.delivery import deliver, deliver_image, pull_image, push_image, read_accepted, scratch, send_missing, told_apart
from pfimg.errors import BadRef, FormatError, RegistryError
from pfimg.fetching import Selection, absent_from, fetch, fetch_all, heal, passing
from pfimg.packing import PackedTransport
from pfimg.places import Place, Ref
from pfimg.registries import base
from pfimg.registries.base import FloatTransport, ImageTransport, Neighbour, PackTransport, Registry, StoredBlob, Transport
from pfimg.registries.refs import AnyRef
from pfimg.signing import Key, Trusted
from pfimg.transit import Meter, stored
from pfimg.types import BlobStore, LayerSet, ProgressCallback, PullReport, PushReport


def push(
    store: Store,
    image: str,
    ref: Ref,
    *,
    sign: Key | None = None,
    codec: str | None = None,
    layout: str = "auto",
    expect: str | None = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PushReport:
    """Sends an image to a registry: what is not there yet.

    Args:
        store: Where the image is.
        image: The image's id.
        ref: Where to, such as `file:///srv/images/one`.
        sign: The key to sign with, or the file that holds it; None for the one in `PF_…_REG_SIGN_KEY`, else the public one.
        codec: How to encode what is sent: `zstd`, `store` or `auto`; None sends what is stored, as it is, except that float
            frames become ordinary ones. `float` sends float frames to a directory or a bucket, where the image then has a name,
            `default` unless another is given, because only this software reads it.
        layout: `reference` for what the reference implementation can read, `packed` for many blobs in one object, which is much
            faster where small objects are dear; `auto` packs where a registry limits the number of objects of an image.
        expect: What is to be replaced: the id of the image that must be there, or `none` if none may be. If another is there by
            now, nothing is replaced. None replaces whatever is there.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phases `walk` and `send`.

    Returns:
        What was sent, and the canonical reference under which it is.

    Raises:
        BlobNotFound: The image, or a blob of it that the registry lacks, is not in the store.
        IntegrityError: A blob is corrupt.
        Conflict: Another image is there than the expected one; `.image` tells which.
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        BackendError, OSError: The registry's service or file system failed.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> report = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/registry")
        >>> report.sent, report.skipped
        (8, 0)
    """
    _check_options(codec, layout)
    where = base.parse(ref)
    registry = base.connect(where, **_given(jobs=jobs))
    if isinstance(registry, Transport):
        to = Place(where, registry).for_writing()
        to.expect(expect)
        return push_image(to, store.get_manifest(image), store, sign=sign, codec=codec, layout=layout, progress=progress)
    _refuse(where, sign=sign, codec=codec, layout=None if layout == "auto" else layout, expect=expect)
    return registry.push(where, store.get_manifest(image), store)


def pull(
    ref: Ref,
    store: Store,
    *,
    trust: Trusted = None,
    layers: Iterable[str] | None = None,
    ixs: Iterable[int] | None = None,
    allow_older: bool = False,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PullReport:
    """Fetches an image from a registry: what is not here yet.

    Args:
        ref: Where from, such as `file:///srv/images/one`.
        store: Where to. Float frames stay what they are if its codec is `float`, and are encoded anew if not.
        trust: Keys, or files that hold them, of which one must have signed; or `self-signed`, which proves nothing. None: the
            keys in the file `PFIMG_TRUST` where that is set, else the one in `PF_…_REG_SIGN_KEY`, else `self-signed`.
        layers: Which layers to fetch, of `model`, `cache`, `world`, `effects` and `trace`; None for all.
        ixs: Numbers of the KV pages to fetch; None for all. With `layers` or `ixs` the image is kept as a partial one, which a
            later pull completes.
        allow_older: Whether to accept an image by a key that is trusted even where it is older than the one that the store last
            had from this reference, as somebody may have put it back there.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phase `fetch`.

    Returns:
        What was fetched, the image's id, and what its signature proves.

    Raises:
        SignatureError: The signature is missing, wrong, or by a key that is not trusted; nothing else was read then. Or the
            image is older than the one before it (`.code` is `older`).
        BlobNotFound: The registry lacks a blob of the image.
        IntegrityError: The registry has a corrupt blob.
        FormatError: The manifest, or a document of the image, is malformed.
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        FileNotFoundError: There is no image in that directory.
        BackendError, OSError: The registry's service or a file system failed.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> sent = push(store, snapshot(store, agent="my-agent"), f"file://{Path.cwd()}/registry")
        >>> pull(sent.ref, PfStore.open("other")).signature
        'self-signed'
    """
    where = base.parse(ref)
    registry = base.connect(where, **_given(jobs=jobs))
    if isinstance(registry, Transport):
        selection = Selection.of(layers, ixs)
        return pull_image(Place(where, registry), store, selection, trust=trust, allow_older=allow_older, progress=progress)
    _refuse(where, trust=trust, layers=layers, ixs=ixs, allow_older=allow_older or None)
    return registry.pull(where, store)


def exists(ref: Ref) -> bool:
    """Whether a registry has an image. False only when it says so: a registry that cannot be asked raises.

    Raises:
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        BackendError, OSError: The registry's service or file system failed, or refuses to tell.

    Example:
        >>> exists("file:///no/such/directory")
        False
    """
    where = base.parse(ref)
    return base.connect(where).exists(where)


def copy(
    source: Ref,
    destination: Ref,
    *,
    sign: Key | None = None,
    trust: Trusted = None,
    codec: str | None = None,
    layout: str = "auto",
    expect: str | None = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PushReport:
    """Copies an image from registry to registry: only what the destination lacks, batch by batch, and every blob is verified.

    The signature is passed on as it is, unless there is a key to sign with: `sign`, or the variable of the destination.

    Args:
        source: Where from.
        destination: Where to.
        sign: The key to sign with, as `push` takes it.
        trust: What to accept from the source, as `pull` takes it.
        codec: How to encode what is sent, as `push` takes it.
        layout: The layout at the destination, as `push` takes it.
        expect: What is to be replaced at the destination, as `push` takes it.
        jobs: How many requests each registry gets at once.
        progress: Called with events of the phases `fetch` and `send`, which alternate.

    Returns:
        What was sent, and the canonical reference under which it is; `retries` are those of both registries.

    Raises:
        SignatureError: As in `pull`; all other errors are those of `pull` and `push`.
    """
    _check_options(codec, layout)
    start = time.monotonic()
    here, there = (Place.of(ref, **_given(jobs=jobs)) for ref in (source, destination))
    there = there.for_writing()
    there.expect(expect)
    manifest, signature, _ = read_accepted(here, trust)
    if sign is not None or signing.environment_key(there.ref.key_word) is not None:
        signature = signing.sign(manifest.to_json(), signing.signing_key(sign, there.ref.key_word))
    if codec is None and isinstance(there.transport, Neighbour):
        there.transport.comes_from(here.transport)
    here = here.unpacked()
    fetched = Meter.of("fetch", progress, here.transport)
    if isinstance(there.transport, ImageTransport):
        there.laid_out(layout, codec, 0)  # refuses what cannot be
        with scratch(manifest) as whole:
            wanted = fetch_all(here, manifest, whole, Selection(), fetched)
            frames = CarFrames(whole, codec or there.transport.codec)
            at, meter = deliver_image(there, manifest, signature, frames.of(wanted), progress)
        return meter.pushed(at, len(wanted), start, fetched.traffic.retries)
    with scratch(manifest) as documents:
        fetch(here, documents.documents(manifest), documents, fetched)
        wanted = documents.reachable(manifest)
    there = there.laid_out(layout, codec, len(wanted))

    def blobs(absent: list[str], meter: Meter) -> Iterator[StoredBlob]:
        for batch in passing(here, absent, manifest, codec, fetched):
            for blob in stored(*batch, there.transport, codec, meter):
                yield replace(blob, is_passing=True)

    at, meter = deliver(there, manifest, signature, wanted, blobs=blobs, progress=progress)
    return meter.pushed(at, len(wanted), start, fetched.traffic.retries)


def push_blobs(
    store: Store,
    digests: Iterable[str],
    ref: Ref,
    *,
    codec: str | None = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PushReport:
    """Sends blobs ahead of the image that will name them: what is not there yet. Nothing becomes visible by that.

    So many writers send what they have made, and one of them publishes: its `push` finds the blobs there and sends none of
    them again. Until then nothing names them. A garbage collection of the registry spares what is younger than its grace
    period; what has gone by then is sent again by the push, which keeps what it has found from being collected.

    Args:
        store: Where the blobs are.
        digests: Which.
        ref: Where to; which image of the place it names does not matter where its images share their blobs.
        codec: How to encode what is sent, as `push` takes it.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phase `send`.

    Returns:
        What was sent.

    Raises:
        BlobNotFound: A blob that the registry lacks is not in the store.
        IntegrityError: A blob is corrupt.
        RegistryError: The place is read-only, takes images as a whole (IPFS), or would put so many blobs into packs, which are
            made when an image is pushed; `.code` is `not_offered`.
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        BackendError, OSError: The registry's service or file system failed.

    Example:
        >>> from pathlib import Path
        >>> store = PfStore.open("store")
        >>> early = [store.put(b"made early")]
        >>> push_blobs(store, early, f"file://{Path.cwd()}/early").sent
        1
        >>> push_blobs(store, early, f"file://{Path.cwd()}/early").sent
        0
    """
    _check_options(codec, "auto")
    start = time.monotonic()
    wanted = list(dict.fromkeys(digests))
    to = Place.of(ref, **_given(jobs=jobs)).for_writing()
    if isinstance(to.transport, ImageTransport):
        message = f"{to.ref}: what serves {to.ref.scheme}:// takes an image as a whole, and no blobs ahead of it"
        raise RegistryError(message, code="not_offered")
    to = to.laid_out("auto", codec, len(wanted))
    if isinstance(to.transport, PackedTransport):
        message = f"{to.ref}: so many blobs go into packs, which are made when an image is pushed: push the image"
        raise RegistryError(message, code="not_offered")
    meter = Meter.of("send", progress, to.transport)
    with store.hold(), told_apart(store), base.holding(to.transport):
        send_missing(to, wanted, lambda absent, meter: stored(store, absent, to.transport, codec, meter), meter)
    return meter.pushed(to.ref, len(wanted), start)


def repair(store: Store, digests: Iterable[str], source: Ref | Registry) -> set[str]:
    """Fetches blobs again that a store has lost.

    Args:
        store: Where to.
        digests: Blobs that are not in the store (any more).
        source: A registry that may have them: an image reference, or what `registries.open` returned for one.

    Returns:
        Digests of the blobs that are in the store now. A blob that the source lacks too, or that is corrupt there, is left out.

    Raises:
        BadRef: The registry is not that of one place: open it by its reference.
        BackendError, OSError: The registry's service or file system failed.
    """
    place = Place.of(source)
    wanted = absent_from(store, digests)
    if isinstance(place.transport, FloatTransport):
        place.transport.admit_floats()
    places = [place]
    if isinstance(place.transport, PackTransport):
        places.append(Place(place.ref, PackedTransport(place.transport, place.ref)))
    with store.hold():
        for where in places:
            lost = absent_from(store, wanted)
            lacking = where.transport.missing(lost)
            heal(where, [digest for digest in lost if digest not in lacking], store)
        return set(wanted).difference(absent_from(store, wanted))


def read_image(ref: Ref, *, trust: Trusted = None, jobs: int | None = None) -> tuple[Place, Manifest]:
    """The manifest of an image, whose signature was accepted as `pull` accepts it, and the way to the image's blobs."""
    place = Place.of(ref, **_given(jobs=jobs))
    manifest, _, _ = read_accepted(place, trust)
    return place.unpacked(), manifest


def open(ref: Ref, *, sign_key: Key | None = None, **options: object) -> Registry:
    """The registry that a reference is for.

    Args:
        ref: An image reference; the registry takes references of the same scheme.
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it.
        options: What the scheme's adapter takes.

    Raises:
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.

    Example:
        >>> registries.open("file:///srv/images/one")
        <TransportRegistry for file:///srv/images/one>
    """
    where = base.parse(ref)
    opened = base.connect(where, **options)
    if isinstance(opened, Transport):
        return TransportRegistry(lambda ref: base.connect(ref, **options), (where.scheme,), sign_key=sign_key, home=where)
    _refuse(where, sign_key=sign_key)
    return opened


class TransportRegistry:
    """The registry over a transport: push and pull as above, for the references of its schemes.

    Attributes:
        home: The reference that it was opened for; None when it is for any.
    """

    def __init__(
        self, connect: base.Factory, schemes: Sequence[str], *, sign_key: Key | None = None, home: AnyRef | None = None
    ) -> None:
        self._connect = connect
        self._schemes = schemes
        self._sign_key = sign_key
        self.home = home

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.home or ', '.join(f'{scheme}://' for scheme in self._schemes)}>"

    def with_sign_key(self, key: Key) -> Self:
        """A copy that signs with this key, and accepts only what it has signed."""
        other = clone(self)
        other._sign_key = key  # noqa: SLF001 - of the same class
        return other

    def push(
        self,
        ref: Ref,
        manifest: Manifest,
        store: BlobStore,
        *,
        codec: str | None = None,
        layout: str = "auto",
        expect: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> PushReport:
        """Sends an image from a store, or from anything that holds blobs; see `pfimg.push`."""
        _check_options(codec, layout)
        to = self.place(ref).for_writing()
        to.expect(expect)
        with _as_store(store) as local:
            return push_image(to, manifest, local, sign=self._sign_key, codec=codec, layout=layout, progress=progress)

    @overload
    def pull(self, ref: Ref, store: None = None, *, progress: ProgressCallback | None = None) -> LayerSet: ...
    @overload
    def pull(self, ref: Ref, store: BlobStore, *, progress: ProgressCallback | None = None) -> PullReport: ...
    def pull(
        self, ref: Ref, store: BlobStore | None = None, *, progress: ProgressCallback | None = None
    ) -> PullReport | LayerSet:
        """Fetches an image into a store, or into anything that holds blobs; without one into memory. See `pfimg.pull`."""
        place = self.place(ref)
        if store is not None:
            with _as_store(store) as local:
                return pull_image(place, local, Selection(), trust=self._sign_key, progress=progress)
        manifest, _, _ = read_accepted(place, self._sign_key)
        with scratch(manifest) as local:
            meter = Meter.of("fetch", progress, place.transport)
            digests = fetch_all(place.unpacked(), manifest, local, Selection(), meter)
            return LayerSet(manifest, list(zip(digests, local.get_many(digests), strict=True)))

    def exists(self, ref: Ref) -> bool:
        """Whether an image is there; see `pfimg.exists`."""
        place = self.place(ref)
        return place.transport.exists(place.ref)

    def place(self, ref: Ref) -> Place:
        """The place that a reference names, BadRef when it is of another registry's scheme."""
        where = base.parse(ref)
        if where.scheme not in self._schemes:
            raise BadRef(f"{where} is for another registry than {self!r}")
        return Place.to(where, self._connect(where))


@contextmanager
def _as_store(blobs: BlobStore) -> Iterator[Store]:
    """A full store over something that only holds blobs; its markers are of no use to anybody."""
    if isinstance(blobs, Store):
        yield blobs
    else:
        with TemporaryDirectory(prefix="pfimg-") as path:
            yield Store(path, blobs=blobs)


def _refuse(ref: AnyRef, **options: object) -> None:
    if given := _given(**options):
        raise RegistryError(f"{ref}: what serves {ref.scheme}:// does not take {', '.join(given)}")


def _check_options(codec: str | None, layout: str) -> None:
    if codec not in (None, "auto", "zstd", "store", "float"):
        raise FormatError(f"codec {codec!r}: a registry gets auto, zstd, store or float; None sends what is stored")
    if layout not in ("auto", "reference", "packed"):
        raise FormatError(f"layout {layout!r} is none of auto, reference, packed")


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}

"""The one push and the one pull: what has to move, in which order, and whether to believe what arrives.

A push walks the image, asks the registry which of its blobs are missing there, sends those, and publishes manifest and signature
last. A pull checks the signature, then parses the manifest, fetches the documents that tell what else there is (tree, page
manifest), then only the blobs that are missing here, and makes the image visible last. So an image that can be seen is whole, on
both sides, wherever either is interrupted; and the same call again continues where the first one stopped.

Nothing here is about one kind of registry: that is behind `pfimg.registries.base.Transport`. Nothing here touches the bytes of a
blob either: what goes out of a store, and into one, is in `pfimg.transit`, and the core decodes, checks and stores whole batches.

Limits: a pull trusts what is in the store already; `PfStore.verify` reads that again.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy as clone
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, Self, TypeAlias, overload

from pfimg import signing
from pfimg._core import Manifest, Store
from pfimg.errors import BadRef, BlobNotFound, FormatError, IntegrityError, RegistryError, SignatureError, StoreError
from pfimg.registries import base
from pfimg.registries.base import Registry, Transport
from pfimg.registries.refs import AnyRef, ImageRef
from pfimg.signing import Key, Trusted
from pfimg.transit import Landing, Meter, stored
from pfimg.types import BlobStore, LayerSet, ProgressCallback, PullReport, PushReport

_log = logging.getLogger("pfimg")

Ref: TypeAlias = str | AnyRef
"""An image reference, as text or parsed."""

# Blobs that a copy holds on this machine's disk at a time.
_COPY_BATCH: Final = 256


def push(
    store: Store,
    image: str,
    ref: Ref,
    *,
    sign: Key | None = None,
    codec: str | None = None,
    layout: str = "auto",
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PushReport:
    """Sends an image to a registry: what is not there yet.

    Args:
        store: Where the image is.
        image: The image's id.
        ref: Where to, such as `file:///srv/images/one`.
        sign: The key to sign with, or the file that holds it; None for the one in `PF_…_REG_SIGN_KEY`, else the public one.
        codec: How to encode what is sent: `zstd`, `store` or `auto`; None sends what is stored, as it is.
        layout: `auto`, or `reference` for what the reference implementation can read.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phases `walk` and `send`.

    Returns:
        What was sent, and the canonical reference under which it is.

    Raises:
        BlobNotFound: The image, or a blob of it that the registry lacks, is not in the store.
        IntegrityError: A blob is corrupt.
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
    manifest = store.get_manifest(image)
    if isinstance(registry, Transport):
        return _push(_Place(where, registry), manifest, store, sign=sign, codec=codec, progress=progress)
    _refuse(where, sign=sign, codec=codec)
    return registry.push(where, manifest, store)


def pull(
    ref: Ref,
    store: Store,
    *,
    trust: Trusted = None,
    layers: Iterable[str] | None = None,
    ixs: Iterable[int] | None = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> PullReport:
    """Fetches an image from a registry: what is not here yet.

    Args:
        ref: Where from, such as `file:///srv/images/one`.
        store: Where to.
        trust: Keys, or files that hold them, of which one must have signed; or `self-signed`, which accepts the public key too.
            None: the key in `PF_…_REG_SIGN_KEY` where that is set, else `self-signed`.
        layers: Which layers to fetch, of `model`, `cache`, `world`, `effects` and `trace`; None for all.
        ixs: Numbers of the KV pages to fetch; None for all. With `layers` or `ixs` the image is kept as a partial one, which a
            later pull completes.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phase `fetch`.

    Returns:
        What was fetched, the image's id, and what its signature proves.

    Raises:
        SignatureError: The signature is missing, wrong, or by a key that is not trusted; nothing else was read then.
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
        return _pull(_Place(where, registry), store, _Selection.of(layers, ixs), trust=trust, progress=progress)
    _refuse(where, trust=trust, layers=layers, ixs=ixs)
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
        jobs: How many requests each registry gets at once.
        progress: Called with events of the phase `send`.

    Returns:
        What was sent, and the canonical reference under which it is.

    Raises:
        SignatureError: As in `pull`; all other errors are those of `pull` and `push`.
    """
    _check_options(codec, layout)
    start = time.monotonic()
    here, there = (_Place.of(ref, **_given(jobs=jobs)) for ref in (source, destination))
    manifest, signature, _ = _read(here, trust)
    if sign is not None or signing.environment_key(there.ref.key_word) is not None:
        signature = signing.sign(manifest.to_json(), signing.signing_key(sign, there.ref.key_word))
    with _scratch(manifest) as documents:
        _fetch(here, documents.documents(manifest), documents, Meter("documents"))
        wanted = documents.reachable(manifest)
    missing = there.transport.missing(wanted)
    absent = [digest for digest in wanted if digest in missing]
    meter = Meter("send", progress, len(absent))
    for first in range(0, len(absent), _COPY_BATCH):
        batch = absent[first : first + _COPY_BATCH]
        with _scratch(manifest) as passing:
            _fetch(here, batch, passing, Meter("fetch"))
            there.transport.send(stored(passing, batch, codec, meter))
    at = there.transport.publish(there.ref, manifest.to_json(), signature)
    return PushReport(str(at), len(absent), len(wanted) - len(absent), meter.bytes, time.monotonic() - start)


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
    place = _Place.of(source)
    wanted = _absent(store, digests)
    lacking = place.transport.missing(wanted)
    with store.hold():
        _heal(place, [digest for digest in wanted if digest not in lacking], store)
        return set(wanted).difference(_absent(store, wanted))


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
        progress: ProgressCallback | None = None,
    ) -> PushReport:
        """Sends an image from a store, or from anything that holds blobs; see `pfimg.push`."""
        with _as_store(store) as local:
            return _push(self.place(ref), manifest, local, sign=self._sign_key, codec=codec, progress=progress)

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
                return _pull(place, local, _Selection(), trust=self._sign_key, progress=progress)
        manifest, _, _ = _read(place, self._sign_key)
        with _scratch(manifest) as local:
            digests = _fetch_all(place, manifest, local, _Selection(), Meter("fetch", progress))
            return LayerSet(manifest, list(zip(digests, local.get_many(digests), strict=True)))

    def exists(self, ref: Ref) -> bool:
        """Whether an image is there; see `pfimg.exists`."""
        place = self.place(ref)
        return place.transport.exists(place.ref)

    def place(self, ref: Ref) -> "_Place":
        """The place that a reference names, BadRef when it is of another registry's scheme."""
        where = base.parse(ref)
        if where.scheme not in self._schemes:
            raise BadRef(f"{where} is for another registry than {self!r}")
        return _Place.to(where, self._connect(where))


class _Place(NamedTuple):
    """Where an image is or will be, and the way there."""

    ref: AnyRef
    transport: Transport

    @classmethod
    def to(cls, ref: AnyRef, opened: Transport | Registry) -> "_Place":
        if not isinstance(opened, Transport):
            raise RegistryError(f"{ref}: what serves {ref.scheme}:// can push and pull images, but not single blobs")
        return cls(ref, opened)

    @classmethod
    def of(cls, source: Ref | Registry, **options: object) -> "_Place":
        if isinstance(source, str | ImageRef):
            where = base.parse(source)
            return cls.to(where, base.connect(where, **options))
        if isinstance(source, TransportRegistry) and source.home is not None:
            return source.place(source.home)
        raise BadRef(f"{source!r} is not one place: give a reference, or what registries.open returned for one")


class _Selection(NamedTuple):
    """Which layers and pages a pull takes; None means all."""

    layers: list[str] | None = None
    ixs: list[int] | None = None

    @classmethod
    def of(cls, layers: Iterable[str] | None, ixs: Iterable[int] | None) -> "_Selection":
        return cls(None if layers is None else list(layers), None if ixs is None else list(ixs))


def _push(
    to: _Place, manifest: Manifest, store: Store, *, sign: Key | None, codec: str | None, progress: ProgressCallback | None
) -> PushReport:
    start = time.monotonic()
    key = signing.signing_key(sign, to.ref.key_word)
    with store.hold():
        wanted = store.reachable(manifest)
        Meter("walk", progress, len(wanted)).advance(len(wanted), 0)
        missing = to.transport.missing(wanted)
        absent = [digest for digest in wanted if digest in missing]
        meter = Meter("send", progress, len(absent))
        try:
            to.transport.send(stored(store, absent, codec, meter))
        except IntegrityError as error:
            if error.digest is not None and store.has(error.digest):
                store.read_frame(error.digest)  # where it is corrupt here, this moves it to quarantine and says so
            raise
        at = to.transport.publish(to.ref, manifest.to_json(), signing.sign(manifest.to_json(), key))
    return PushReport(str(at), len(absent), len(wanted) - len(absent), meter.bytes, time.monotonic() - start)


def _pull(place: _Place, store: Store, selection: _Selection, *, trust: Trusted, progress: ProgressCallback | None) -> PullReport:
    start = time.monotonic()
    manifest, _, status = _read(place, trust)
    meter = Meter("fetch", progress)
    with store.hold():
        wanted = _fetch_all(place, manifest, store, selection, meter)
        image = store.put_manifest(manifest) if selection == _Selection() else store.put_partial(manifest)
    return PullReport(image, meter.total, len(wanted) - meter.total, meter.bytes, status, time.monotonic() - start)


def _read(place: _Place, trust: Trusted) -> tuple[Manifest, bytes, str]:
    """The manifest, its signature, and what that proves. Nothing is parsed before the signature is accepted."""
    policy = signing.trust_policy(trust, place.ref.key_word)
    manifest, signature = place.transport.read_manifest(place.ref)
    if signature is None:
        raise SignatureError(f"{place.ref}: the manifest has no signature: push it again")
    try:
        status = signing.verify(manifest, signature, policy)
    except SignatureError as error:
        raise SignatureError(f"{place.ref}: {error}", field=error.field, limit=error.limit) from error
    return Manifest.from_json(manifest), signature, status


def _fetch_all(place: _Place, manifest: Manifest, store: Store, selection: _Selection, meter: Meter) -> list[str]:
    """Fetches what a store lacks of an image, first what tells what else there is; returns all that the image refers to."""
    _fetch(place, store.documents(manifest, layers=selection.layers), store, meter)
    wanted = store.reachable(manifest, layers=selection.layers, ixs=selection.ixs)
    _fetch(place, wanted, store, meter)
    return wanted


def _fetch(place: _Place, digests: Iterable[str], store: Store, meter: Meter) -> None:
    absent = _absent(store, digests)
    if not absent:
        return
    meter.total += len(absent)
    try:
        place.transport.fetch(absent, Landing(store, meter))
        lacking = _absent(store, absent)
    except BlobNotFound as error:
        lacking = [error.digest or absent[0]]
    if lacking:
        message = f"blob {lacking[0]} is not in {place.ref}: the image there is incomplete, push it again"
        raise BlobNotFound(message, digest=lacking[0])


def _heal(place: _Place, digests: list[str], store: Store) -> None:
    """Fetches what can be had: where a batch fails, its halves are tried."""
    try:
        _fetch(place, digests, store, Meter("repair"))
    except StoreError as error:
        if len(digests) == 1:
            _log.warning("blob %s cannot be repaired from %s: %s", digests[0], place.ref, error)
            return
        middle = len(digests) // 2
        _heal(place, digests[:middle], store)
        _heal(place, digests[middle:], store)


def _absent(store: Store, digests: Iterable[str]) -> list[str]:
    """Those that are not in a store, without repeats."""
    digests = list(dict.fromkeys(digests))
    return [digest for digest, here in zip(digests, store.has_many(digests), strict=True) if not here]


@contextmanager
def _as_store(blobs: BlobStore) -> Iterator[Store]:
    """A full store over something that only holds blobs; its markers are of no use to anybody."""
    if isinstance(blobs, Store):
        yield blobs
    else:
        with TemporaryDirectory(prefix="pfimg-") as path:
            yield Store(path, blobs=blobs)


@contextmanager
def _scratch(manifest: Manifest) -> Iterator[Store]:
    """A store for as long as the block runs."""
    with TemporaryDirectory(prefix="pfimg-") as path:
        yield Store(path, digest=manifest.id.partition(":")[0], durability="none")


def _refuse(ref: AnyRef, **options: object) -> None:
    if given := _given(**options):
        raise RegistryError(f"{ref}: what serves {ref.scheme}:// does not take {', '.join(given)}")


def _check_options(codec: str | None, layout: str) -> None:
    if codec not in (None, "auto", "zstd", "store"):
        raise FormatError(f"codec {codec!r}: a registry gets auto, zstd or store; None sends what is stored")
    if layout == "packed":
        raise RegistryError("layout 'packed': this version does not pack; use auto", code="not_offered")
    if layout not in ("auto", "reference"):
        raise FormatError(f"layout {layout!r} is none of auto, reference, packed")


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}

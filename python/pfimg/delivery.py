"""The one push and the one pull: the order in which an image moves, and what makes it visible.

A push walks the image, asks the registry which of its blobs are missing there, sends those, and publishes manifest and signature
last. A pull checks the signature, then parses the manifest, fetches the documents that tell what else there is (tree, page
manifest), then only the blobs that are missing here, and makes the image visible last. So an image that can be seen is whole, on
both sides, wherever either is interrupted; and the same call again continues where the first one stopped.

Nothing here is about one kind of registry: that is behind `pfimg.registries.base.Transport`. Nothing here touches the bytes of a
blob either: how a store gets what it lacks is in `pfimg.fetching`, what goes out of it and comes in is in `pfimg.transit`, and
the core decodes, checks and stores whole batches.

Limits: a pull trusts what is in the store already; `PfStore.verify` reads that again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import cast

from pfimg import seen, signing
from pfimg._core import CarFrame, CarFrames, Manifest, Store
from pfimg.errors import BlobNotFound, IntegrityError, SignatureError
from pfimg.fetching import Selection, fetch_all
from pfimg.places import Place
from pfimg.registries import base
from pfimg.registries.base import ImageTransport, StoredBlob
from pfimg.registries.refs import AnyRef
from pfimg.signing import Key, Trusted, Verdict
from pfimg.transit import Meter, stored
from pfimg.types import ProgressCallback, PullReport, PushReport


def push_image(
    to: Place,
    manifest: Manifest,
    store: Store,
    *,
    sign: Key | None,
    codec: str | None,
    layout: str,
    progress: ProgressCallback | None,
) -> PushReport:
    """Sends an image from a store to a place: what is not there."""
    start = time.monotonic()
    key = signing.signing_key(sign, to.ref.key_word)
    with store.hold():
        wanted = store.reachable(manifest)
        Meter("walk", progress, len(wanted)).advance(len(wanted), 0)
        to = to.laid_out(layout, codec, len(wanted))
        signature = signing.sign(manifest.to_json(), key)

        def blobs(absent: list[str], meter: Meter) -> Iterator[StoredBlob]:
            return stored(store, absent, to.transport, codec, meter)

        with told_apart(store):
            if isinstance(to.transport, ImageTransport):
                frames = CarFrames(store, codec or to.transport.codec)
                at, meter = deliver_image(to, manifest, signature, frames.of(wanted), progress)
            else:
                at, meter = deliver(to, manifest, signature, wanted, blobs=blobs, progress=progress)
    return meter.pushed(at, len(wanted), start)


@contextmanager
def told_apart(store: Store) -> Iterator[None]:
    """Where a blob is corrupt in the store that it is sent from, it is moved to quarantine, and the error says so."""
    try:
        yield
    except IntegrityError as error:
        if error.digest is not None and store.has(error.digest):
            store.read_frame(error.digest)
        raise


def deliver(
    to: Place,
    manifest: Manifest,
    signature: bytes,
    wanted: list[str],
    *,
    blobs: Callable[[list[str], Meter], Iterator[StoredBlob]],
    progress: ProgressCallback | None,
) -> tuple[AnyRef, Meter]:
    """Sends what a place lacks of `wanted`, which `blobs` gives, and publishes; returns where, and what moved."""
    meter = Meter.of("send", progress, to.transport)  # of both attempts; a blob that is sent twice counts once
    with base.holding(to.transport):
        for attempts_left in (1, 0):
            send_missing(to, wanted, blobs, meter)
            try:
                return to.transport.publish(to.ref, manifest.to_json(), signature), meter
            except BlobNotFound:
                # What was there is gone; the transport knows by now.
                if not attempts_left:
                    raise
    raise AssertionError("the last attempt returns or raises")


def send_missing(to: Place, wanted: list[str], blobs: Callable[[list[str], Meter], Iterator[StoredBlob]], meter: Meter) -> None:
    """Sends what a place lacks of `wanted`."""
    missing = to.transport.missing(wanted)
    absent = [digest for digest in wanted if digest in missing]
    meter.total = len(meter.counted.union(absent))
    to.transport.send(blobs(absent, meter))
    if absent:
        meter.show(meter.done, meter.bytes)  # no request is under way any more


def deliver_image(
    to: Place,
    manifest: Manifest,
    signature: bytes,
    frames: dict[str, CarFrame],
    progress: ProgressCallback | None,
) -> tuple[AnyRef, Meter]:
    """Sends an image to a place that takes it as one; returns where, and what moved."""
    meter = Meter.of("send", progress, to.transport)
    at = cast("ImageTransport", to.transport).send_image(to.ref, manifest.to_json(), signature, frames, meter.set)
    if meter.total:
        meter.show(meter.done, meter.bytes)  # no request is under way any more
    return at, meter


def pull_image(
    place: Place,
    store: Store,
    selection: Selection,
    *,
    trust: Trusted,
    allow_older: bool = False,
    progress: ProgressCallback | None,
) -> PullReport:
    """Fetches an image from a place into a store: what is not here."""
    start = time.monotonic()
    manifest, _, verdict = read_accepted(place, trust)
    is_vouched_for = verdict.status == "verified"
    if is_vouched_for and not allow_older:
        seen.check(store, str(place.ref), manifest)
    meter = Meter.of("fetch", progress, place.transport)
    with store.hold():
        wanted = fetch_all(place.unpacked(), manifest, store, selection, meter)
        if is_vouched_for:
            # Before it can be seen: who is killed in between would be shown an older one without a word.
            seen.remember(store, str(place.ref), manifest, allow_older=allow_older)
        image = store.put_manifest(manifest) if selection == Selection() else store.put_partial(manifest)
    return meter.pulled(image, len(wanted), verdict, start)


def read_accepted(place: Place, trust: Trusted) -> tuple[Manifest, bytes, Verdict]:
    """The manifest, its signature, and what that proves. Nothing is parsed before the signature is accepted."""
    policy = signing.trust_policy(trust, place.ref.key_word)
    manifest, signature = place.transport.read_manifest(place.ref)
    if signature is None:
        raise SignatureError(f"{place.ref}: the manifest has no signature: push it again")
    try:
        verdict = signing.verify(manifest, signature, policy)
    except SignatureError as error:
        raise SignatureError(f"{place.ref}: {error}", field=error.field, limit=error.limit) from error
    return Manifest.from_json(manifest), signature, verdict


@contextmanager
def scratch(manifest: Manifest) -> Iterator[Store]:
    """A store for as long as the block runs."""
    with TemporaryDirectory(prefix="pfimg-") as path:
        yield Store(path, digest=manifest.id.partition(":")[0], durability="none")

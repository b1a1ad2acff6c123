"""What services and networks do to buckets: a push or pull ends well after some repetitions, or with one clear error."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from tests.registries.s3_places import BucketPlace, point_to
from tests.registries.test_contract import assert_nothing_is_visible, everything
from tests.servers.faulty import Way, cut, done_but, dripping, dropped, faulty, first_times, lost, refused, silent, sound

import pfimg
from pfimg import _core
from pfimg.registries import S3Transport, base
from pfimg.registries.base import StoredBlob, blob_name
from pfimg.registries.refs import S3Ref
from pfimg.registries.s3 import bucket as bucket_module
from pfimg.registries.s3 import leases
from pfimg.registries.s3.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import S3Server
    from tests.servers.faulty import Faulty, Passed
    from tests.servers.scripted import Asked, Peer

# One request may take so long here, in seconds.
TIMEOUT = 1.0


@pytest.fixture
def place(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> BucketPlace:
    point_to(minio, monkeypatch)
    return BucketPlace(minio, minio.make_bucket())


@pytest.fixture
def front(minio: S3Server, place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:  # noqa: ARG001 - comes first
    """The server that everything goes through, and pauses that are short."""
    monkeypatch.setattr(bucket_module, "_PAUSES", tuple(pause / 100 for pause in bucket_module._PAUSES))
    with faulty(minio.endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found


PASSING = {
    "503 with Retry-After": refused(503, b"<Error><Code>SlowDown</Code></Error>", Retry_After="1"),
    "429": refused(429),
    "500 and not done": refused(500, b"<Error><Code>InternalError</Code></Error>"),
    "500 though done": done_but(500),
    "no answer though done": lost,
    "no answer and not done": dropped,
    "half an answer": cut,
}


@pytest.mark.parametrize("way", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_what_fails_once_is_done_all_the_same(
    place: BucketPlace,
    front: Faulty,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    make_image: Callable[..., str],
    way: Way,
    layout: str,
) -> None:
    images = [make_image(0, pages=30), make_image(1, pages=30)]
    front.faults.append(first_times(1, way))
    for image in images:
        sent = pfimg.push(store, image, place.ref, layout=layout)
        assert sent.sent == len(what_is_new(store, images, image))
        assert sent.retries > 0 or image != images[0]
        got = pfimg.pull(place.ref, other)
        assert got.image == image
        assert got.retries > 0
        assert everything(other, image) == everything(store, image)
    if layout == "auto":
        assert place.blobs().keys() == everything(store, images[0]).keys() | everything(store, images[1]).keys()


def what_is_new(store: pfimg.PfStore, images: list[str], image: str) -> set[str]:
    """Blobs of an image that no image before it has."""
    before = images[: images.index(image)]
    return everything(store, image).keys() - {digest for earlier in before for digest in everything(store, earlier)}


LASTING: dict[str, tuple[Way, type[pfimg.BackendError], str]] = {
    "503": (
        refused(503, b"<Error><Code>SlowDown</Code></Error>"),
        pfimg.BackendError,
        r"failed \(503 SlowDown\): try again later$",
    ),
    "500": (done_but(500), pfimg.BackendError, r"failed \(500\): try again later$"),
    "lost": (lost, pfimg.BackendError, r"the connection to http://\S+ broke off: try again later$"),
    "cut": (cut, pfimg.BackendError, r"the connection to http://\S+ broke off: try again later$"),
    "silent": (silent, pfimg.RegistryTimeout, r"has not answered in 1 seconds: check the address and the network$"),
    "dripping": (dripping, pfimg.RegistryTimeout, r"has not answered in 1 seconds: check the address and the network$"),
}


@pytest.mark.parametrize(("way", "kind", "match"), LASTING.values(), ids=LASTING)
def test_what_goes_on_failing_is_one_clear_error_and_shows_nothing(
    place: BucketPlace,
    front: Faulty,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    image: str,
    way: Way,
    kind: type[pfimg.BackendError],
    match: str,
) -> None:
    victim = store.reachable(store.get_manifest(image))[-1]
    registry = pfimg.registries.open(place.ref, timeout=TIMEOUT)
    # First a blob that cannot be sent, then one that cannot be fetched, then nothing at all can be had.
    front.faults.append(lambda asked: way if blob_name(victim) in asked.path and asked.method == "PUT" else None)
    if way is not cut:  # there is no half of nothing
        with pytest.raises(kind, match=match) as caught:
            registry.push(place.ref, store.get_manifest(image), store)
        assert victim.partition(":")[2] in str(caught.value)
        assert caught.value.retryable
        assert not any(name.startswith("manifest") for name in place.names())
    front.faults.clear()
    pfimg.push(store, image, place.ref)
    front.faults.append(lambda asked: way if blob_name(victim) in asked.path else None)
    with pytest.raises(kind, match=match):
        registry.pull(place.ref, other)
    assert_nothing_is_visible(other)
    front.faults.append(lambda _: way)
    with pytest.raises(kind, match=match):
        registry.pull(place.ref, other)
    if way is not cut:  # whether there is something is told by its beginning
        with pytest.raises(kind, match=match):
            registry.exists(place.ref)
    front.faults.clear()
    assert registry.pull(place.ref, other).image == image


def test_requests_are_repeated_so_often_and_no_more(front: Faulty, place: BucketPlace) -> None:
    front.faults.append(lambda _: refused(503))
    with pytest.raises(pfimg.BackendError, match="503"):
        pfimg.exists(place.ref)
    assert len(front.asked) == len(bucket_module._PAUSES) + 1
    front.asked.clear()
    front.faults[:] = [lambda _: dropped]  # who has never answered is not asked so often
    with pytest.raises(pfimg.BackendError, match="broke off"):
        pfimg.exists(place.ref)
    assert len(front.asked) == bucket_module._FIRST_REPEATS + 1


def transport_of(place: BucketPlace) -> S3Transport:
    ref = base.parse(place.ref)
    assert isinstance(ref, S3Ref)
    return S3Transport(ref)


def large_image(tmp_path: Path, size: int) -> tuple[pfimg.PfStore, str, str]:
    """A store, an image in it, and the large blob that is most of it."""
    store = pfimg.PfStore.open(tmp_path / "large", codec="store")
    image = pfimg.snapshot(store, agent="tester", model_base=random.Random(5).randbytes(size))
    return store, image, store.get_manifest(image).model.base


@pytest.mark.parametrize("way", [lost, done_but(500), dropped, cut, refused(503)], ids=["lost", "500", "dropped", "cut", "503"])
@pytest.mark.parametrize("step", ["uploads=", "partNumber=2", "uploadId"])
def test_a_large_blob_whose_sending_fails_once_at_some_step(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore, way: Way, step: str
) -> None:
    store, image, model = large_image(tmp_path, 20 << 20)
    method = "PUT" if step == "partNumber=2" else "POST"
    front.faults.append(first_times(1, way, lambda asked: asked.method == method and step in asked.path))
    pfimg.push(store, image, place.ref)
    assert place.read(blob_name(model)) == store.read_frame(model)
    pfimg.pull(place.ref, other)
    assert other.get(model) == store.get(model)


def test_a_large_blob_whose_sending_goes_on_failing_leaves_nothing(
    place: BucketPlace, front: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, image, model = large_image(tmp_path, 20 << 20)
    monkeypatch.setitem(bucket_module._PATIENTLY, "max_retries", 1)
    front.faults.append(lambda asked: refused(503) if "partNumber=3" in asked.path else None)
    with pytest.raises(pfimg.BackendError, match=rf"{model.partition(':')[2]}\.zst: .* failed \(503\)"):
        pfimg.push(store, image, place.ref)
    assert blob_name(model) not in place.names()
    uploads = place.server.request("GET", f"/{place.bucket}", query={"uploads": "", "prefix": ""})
    assert b"<UploadId>" not in uploads.body  # what was begun was ended too


def altered(peer: Peer, carry_out: Callable[[], Passed]) -> None:
    """A bit of the body changes on the way; the head was signed together with the SHA-256 of what was sent."""
    asked = peer.asked
    assert asked.headers["x-amz-content-sha256"] == hashlib.sha256(asked.body).hexdigest()
    peer.asked = asked._replace(body=asked.body[:-1] + bytes([asked.body[-1] ^ 1]))
    sound(peer, carry_out)


@pytest.mark.parametrize(("layout", "what"), [("auto", "/blobs/"), ("packed", "/packs/"), ("auto", "/manifest.json")])
def test_what_is_altered_on_the_way_is_refused_and_not_stored(
    place: BucketPlace, front: Faulty, store: pfimg.PfStore, other: pfimg.PfStore, image: str, layout: str, what: str
) -> None:
    front.faults.append(lambda asked: altered if asked.method == "PUT" and what in asked.path else None)
    with pytest.raises(pfimg.BackendError, match="XAmzContentSHA256Mismatch"):
        pfimg.push(store, image, place.ref, layout=layout)
    assert not any(what in f"/{name}" for name in place.names())
    assert not pfimg.exists(place.ref)
    front.faults.clear()
    pfimg.push(store, image, place.ref, layout=layout)
    assert pfimg.pull(place.ref, other).image == image
    assert everything(other, image) == everything(store, image)


def test_a_part_that_is_altered_on_the_way_is_refused(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore
) -> None:
    store, image, model = large_image(tmp_path, 20 << 20)
    front.faults.append(lambda asked: altered if "partNumber=2" in asked.path else None)
    with pytest.raises(pfimg.BackendError, match="XAmzContentSHA256Mismatch"):
        pfimg.push(store, image, place.ref)
    assert blob_name(model) not in place.names()
    front.faults.clear()
    pfimg.push(store, image, place.ref)
    pfimg.pull(place.ref, other)
    assert other.get(model) == store.get(model)


@pytest.mark.parametrize("codec", ["store", "zstd"])
def test_a_large_blob_that_is_encoded_anew_goes_in_parts(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore, codec: str
) -> None:
    store, image, model = large_image(tmp_path, 20 << 20)
    sent = pfimg.push(store, image, place.ref, codec=codec)
    parts = [len(asked.body) for asked in front.asked if asked.method == "PUT" and "partNumber=" in asked.path]
    assert sorted(parts)[-2:] == [8 << 20, 8 << 20]
    assert max(len(asked.body) for asked in front.asked) == 8 << 20
    assert sent.sent == len(everything(store, image))
    pfimg.pull(place.ref, other)
    assert other.get(model) == store.get(model)


def test_a_large_frame_in_memory_goes_in_parts(place: BucketPlace, front: Faulty) -> None:
    content = random.Random(6).randbytes(20 << 20)
    digest, frame = _core.digest_of(content), _core.encode_frame(content, codec="store")
    transport_of(place).send([StoredBlob(digest, len(frame), None, lambda: frame)])
    assert place.read(blob_name(digest)) == frame
    assert max(len(asked.body) for asked in front.asked) == 8 << 20


@pytest.mark.parametrize("error", [pfimg.BackendError("the listing fails"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_sweep_that_ends_while_it_takes_its_lease_leaves_none(
    place: BucketPlace, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: Leases) -> list[str]:
        assert len(place.names(leases.LEASES)) == 1
        raise error

    monkeypatch.setattr(Leases, "_others", fail)
    with pytest.raises(type(error)), transport_of(place).alone():
        pass
    assert place.names(leases.LEASES) == []


@pytest.mark.parametrize("way", [cut, dropped, refused(500)], ids=["cut", "dropped", "500"])
def test_a_large_blob_whose_fetching_fails_piece_by_piece(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore, way: Way
) -> None:
    store, image, model = large_image(tmp_path, 40 << 20)
    pfimg.push(store, image, place.ref)
    front.faults.append(first_times(1, way, lambda asked: "range" in asked.headers))
    assert pfimg.pull(place.ref, other).retries == 6
    assert other.get(model) == store.get(model)


PUSH = """
import sys, pfimg
_, path, image, ref = sys.argv
show = lambda event: print(event.phase, flush=True)
pfimg.push(pfimg.PfStore.open(path), image, ref, progress=show)
"""


@pytest.mark.parametrize("what", ["leases", "blobs"])
def test_ctrl_c_is_answered_while_a_service_is_silent(
    place: BucketPlace, front: Faulty, store: pfimg.PfStore, make_image: Callable[..., str], what: str
) -> None:
    image = make_image(pages=200)
    asked_for = threading.Event()

    def silence(asked: Asked) -> Way | None:
        if asked.method != "PUT" or f"/{what}/" not in asked.path:
            return None
        asked_for.set()
        return silent

    front.faults.append(silence)
    command = [sys.executable, "-c", PUSH, str(store.root), image, place.ref]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "walk\n"
        assert asked_for.wait(60)
        child.send_signal(signal.SIGINT)
        # Its requests may take two minutes.
        _, errors = child.communicate(timeout=60)
    assert child.returncode in (-signal.SIGINT, 130), errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not any(name.startswith("manifest") for name in place.names())


MOVE = """
import resource, sys, pfimg
_, path, image, ref, way = sys.argv
store = pfimg.PfStore.open(path, durability="none")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(pfimg.push(store, image, ref).sent if way == "push" else pfimg.pull(ref, store).fetched)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory_stays_bounded(place: BucketPlace, tmp_path: Path) -> None:
    """An image of ten times the budget, of blobs just below the size at which they are cut into pieces, and a larger one."""
    store = pfimg.PfStore.open(tmp_path / "from", codec="store", durability="none")
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=1, n_heads=1, head_dim=250_000, dtype="bf16")
    body = bytes(meta.page_bytes - 8)
    cache = None
    for ix in range(40):
        k, v = (number.to_bytes(8, "little") + body for number in (2 * ix, 2 * ix + 1))
        cache = store.put_pages(meta, [k], [v], first_ix=ix, base=cache)
    image = pfimg.snapshot(store, agent="tester", cache=cache, model_base=bytes(96 << 20))
    moved = store.stats().physical_bytes
    assert moved > 640 << 20
    for path, way in ((store.root, "push"), (tmp_path / "to", "pull")):
        done = subprocess.run(
            [sys.executable, "-c", MOVE, str(path), image, place.ref, way], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        blobs, mebibytes = map(int, done.stdout.split())
        assert blobs > 80
        assert mebibytes < 300, way

"""What a transfer holds meanwhile, what it tells of itself, and copies from one remote place to another."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.registries.conftest import ADAPTERS, Adapter, Memory, frame_as_sent, source_of
from tests.registries.s3_places import BucketPlace, point_to
from tests.registries.test_contract import everything
from tests.servers.faulty import faulty, first_times, refused

import pfimg
from pfimg import fetching
from pfimg.fetching import passing
from pfimg.places import Place
from pfimg.registries import workers
from pfimg.registries.s3 import bucket as bucket_module
from pfimg.transit import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.servers import Kubo, S3Server

    from pfimg.registries.base import StoredBlob
    from pfimg.registries.refs import AnyRef

LARGE = 9 << 20


@pytest.fixture
def memory() -> Memory:
    place = Memory()
    pfimg.register_scheme("mem", lambda ref: place)  # noqa: ARG005 - the scheme has this one place
    return place


@pytest.fixture
def noise(tmp_path: Path, store: pfimg.PfStore) -> Callable[..., str]:
    """Makes an image of files that no codec makes smaller."""

    def make(*sizes: int) -> str:
        root = tmp_path / "noise"
        root.mkdir()
        for at, size in enumerate(sizes):
            (root / f"{at:03}").write_bytes(random.Random(at).randbytes(size))
        return pfimg.snapshot(store, agent="tester", fs_root=root)

    return make


# What is held.


@pytest.mark.parametrize("codec", [None, "zstd", "store"])
def test_large_frames_are_files_however_they_are_encoded(
    memory: Memory, store: pfimg.PfStore, noise: Callable[..., str], monkeypatch: pytest.MonkeyPatch, codec: str | None
) -> None:
    image = noise(LARGE, LARGE + 1, 1000)
    made: list[tuple[Path, bytes]] = []

    def send(items: Iterable[StoredBlob]) -> None:
        for item in items:
            frame = item.read()
            assert (item.path is not None) == (len(frame) > 8 << 20)
            assert item.is_passing == (item.path is not None and codec is not None)
            assert item.held == (0 if item.path and codec is None else item.size == len(frame) and item.size)
            if item.path is not None:
                assert item.path.read_bytes() == frame
                made.append((item.path, frame))
            memory.frames[item.digest] = frame

    monkeypatch.setattr(memory, "send", send)
    pfimg.push(store, image, memory.ref, codec=codec)
    assert len(made) == 2
    assert [path.exists() for path, _ in made] == [codec is None] * 2


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes after which a batch of a copy ends."""
    monkeypatch.setattr(workers, "_LAND_BYTES", 256 << 10)
    monkeypatch.setattr(fetching, "_COPY_BYTES", 1 << 20)
    return 1 << 20


@pytest.mark.parametrize("place", [adapter for adapter in ADAPTERS if adapter.id in ("directory", "memory", "hf")], indirect=True)
def test_a_copy_holds_so_many_bytes_at_a_time(
    place: Adapter, store: pfimg.PfStore, noise: Callable[..., str], small_batches: int
) -> None:
    image = noise(*[100] * 20, *[200 << 10] * 40, 5 << 20, *[100] * 20)
    pfimg.push(store, image, place.ref)
    manifest = store.get_manifest(image)
    wanted = store.reachable(manifest)
    found: list[str] = []
    meter = Meter("fetch")
    for batch, digests in passing(Place.of(place.source), wanted, manifest, None, meter):
        sizes = batch.frame_sizes(digests)
        assert 0 < sum(sizes) < small_batches + max(sizes) + (256 << 10)
        assert batch.run_stats()["blobs"] == len(digests)
        found += digests
    assert sorted(found) == sorted(wanted)
    assert (meter.done, meter.total) == (len(wanted), len(wanted))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("layout", ["auto", "packed"])
def test_a_copy_of_more_than_is_held_at_a_time_is_whole(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, tmp_path: Path, noise: Callable[..., str], layout: str
) -> None:
    image = noise(*[100] * 20, *[200 << 10] * 40, LARGE, *[100] * 20)
    try:
        sent = pfimg.push(store, image, place.ref, layout=layout)
    except pfimg.RegistryError:
        assert layout == "packed"  # which not every registry has
        return
    there = f"file://{tmp_path}/copy"
    copied = pfimg.copy(sent.ref if layout == "packed" else source_of(place, sent), there)
    assert (copied.sent, copied.skipped) == (len(everything(store, image)), 0)
    assert copied.bytes_sent == sum(len(frame_as_sent(place, store, digest)) for digest in everything(store, image))
    assert pfimg.pull(there, other).image == image
    assert everything(other, image) == everything(store, image)


# What is told.


class Forgetful(Memory):
    """Loses a blob that it has had, once, in the moment in which an image is published."""

    lost: str | None = None

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        if self.lost is not None:
            lost, self.lost = self.lost, None
            del self.frames[lost]
            raise pfimg.BlobNotFound("a blob is gone", digest=lost)
        return super().publish(ref, manifest, signature)


@pytest.mark.parametrize("way", ["push", "copy"])
def test_what_is_sent_again_is_counted_beside_what_was_sent_before(
    store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str], way: str
) -> None:
    first, second = make_image(0), make_image(1)
    place = Forgetful()
    pfimg.register_scheme("mem", lambda ref: place)  # noqa: ARG005 - the scheme has this one place
    pfimg.push(store, first, place.ref)
    pfimg.push(store, second, f"file://{tmp_path}/source")
    new = everything(store, second).keys() - everything(store, first).keys()
    place.lost = next(digest for digest in everything(store, second) if digest not in new)
    sizes = {place.lost: len(place.frames[place.lost]), **{digest: len(store.read_frame(digest)) for digest in new}}
    events: list[pfimg.Progress] = []
    if way == "push":
        report = pfimg.push(store, second, place.ref, progress=events.append)
    else:
        report = pfimg.copy(f"file://{tmp_path}/source", place.ref, progress=events.append)
    assert (report.sent, report.skipped) == (len(sizes), len(everything(store, second)) - len(sizes))
    assert report.bytes_sent == sum(sizes.values())
    assert [event.done for event in events if event.phase == "send"][-1] == len(sizes)


@pytest.fixture
def source(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> BucketPlace:
    point_to(minio, monkeypatch)
    return BucketPlace(minio, minio.make_bucket())


def to_directory(_: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/copy"


def to_ipfs(request: pytest.FixtureRequest, _: Path) -> str:
    kubo: Kubo = request.getfixturevalue("kubo")
    request.getfixturevalue("monkeypatch").setenv("IPFS_API", kubo.api)
    return "ipfs://"


@pytest.mark.parametrize("to", [to_directory, pytest.param(to_ipfs, marks=pytest.mark.server("kubo"))], ids=["directory", "ipfs"])
def test_a_copy_tells_what_it_fetches_and_counts_the_retries_of_its_source(
    source: BucketPlace,
    store: pfimg.PfStore,
    make_image: Callable[..., str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    to: Callable[[pytest.FixtureRequest, Path], str],
) -> None:
    image = make_image(pages=400)
    blobs = len(everything(store, image))
    pfimg.push(store, image, source.ref)
    monkeypatch.setattr(bucket_module, "_PAUSES", tuple(pause / 100 for pause in bucket_module._PAUSES))
    events: list[pfimg.Progress] = []
    with faulty(source.server.endpoint) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        failing = first_times(1, refused(503), lambda asked: "/blobs/sha256/0" in asked.path)
        front.faults.append(failing)
        failed = sum(digest.startswith("sha256:0") for digest in everything(store, image))
        report = pfimg.copy(source.ref, to(request, tmp_path), progress=events.append)
    assert failed > 0
    assert report.retries == failed
    phases = [event.phase for event in events]
    assert set(phases) == {"fetch", "send"}
    fetched = [event for event in events if event.phase == "fetch"]
    assert (fetched[-1].done, fetched[-1].total) == (blobs, blobs) if to is to_ipfs else fetched[-1].done >= blobs
    assert fetched[-1].bytes > 0
    assert max(event.retries for event in fetched) > 0
    assert phases.index("fetch") < phases.index("send")


# Between remote places.


@pytest.fixture(
    params=[
        pytest.param(("minio", "oci"), marks=[pytest.mark.server("minio"), pytest.mark.server("distribution")], id="s3 to oci"),
        pytest.param(("hf", "minio"), marks=pytest.mark.server("minio"), id="hf to s3"),
        pytest.param(("ipfs", "oci"), marks=[pytest.mark.server("kubo"), pytest.mark.server("distribution")], id="ipfs to oci"),
        pytest.param(("oci", "ipfs"), marks=[pytest.mark.server("kubo"), pytest.mark.server("distribution")], id="oci to ipfs"),
        pytest.param(("azurite", "hf"), marks=pytest.mark.server("azurite"), id="az to hf"),
    ]
)
def remote_pair(request: pytest.FixtureRequest) -> tuple[Adapter, Adapter]:
    make = {adapter.id: adapter.values[0] for adapter in ADAPTERS}
    here, there = (make[name](request) for name in request.param)  # type: ignore[operator]
    return here, there


def test_a_copy_between_remote_places(
    remote_pair: tuple[Adapter, Adapter], store: pfimg.PfStore, tmp_path: Path, make_image: Callable[..., str]
) -> None:
    here, there = remote_pair
    for version, pages in ((0, 4), (1, 300)):  # and then a fork, which is packed where there are packs
        image = make_image(version, pages=pages)
        expected = everything(store, image)
        sent = pfimg.push(store, image, here.ref)
        copied = pfimg.copy(source_of(here, sent), there.ref)
        assert copied.sent + copied.skipped == len(expected)
        assert copied.sent > 0
        other = pfimg.PfStore.open(tmp_path / f"other-{version}")
        got = pfimg.pull(source_of(there, copied), other)
        assert (got.image, got.signature) == (image, "self-signed")
        assert everything(other, image) == expected
        assert pfimg.copy(source_of(here, sent), source_of(there, copied)).sent == 0

"""What every registry does, whatever it speaks: the same tests against each adapter of conftest.py."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import zstandard
from tests.registries.conftest import frame_as_sent

import pfimg
from pfimg.keys import SigningKey
from pfimg.signing import sign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import KvPages
    from tests.registries.conftest import Adapter

OURS = SigningKey.from_text("ours")
THEIRS = SigningKey.from_text("theirs")


def everything(store: pfimg.PfStore, image: str) -> dict[str, bytes]:
    """All blobs that an image refers to."""
    digests = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    return {digest: store.get(digest) for digest in digests}


def content(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(frame)


def assert_nothing_is_visible(store: pfimg.PfStore) -> None:
    assert list(store.images()) == []
    assert store.partial_images() == []


def test_what_is_pushed_is_pulled(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    sent = pfimg.push(store, image, place.ref)
    expected = everything(store, image)
    assert (sent.ref, sent.sent, sent.skipped) == (place.ref, len(expected), 0)
    assert sent.bytes_sent == sum(len(frame) for frame in place.blobs().values())
    got = pfimg.pull(place.source, other)
    assert (got.image, got.fetched, got.skipped, got.signature) == (image, len(expected), 0, "self-signed")
    assert got.bytes_fetched == sent.bytes_sent
    assert everything(other, image) == expected
    assert other.get_manifest(image).to_json() == store.get_manifest(image).to_json()
    assert [found for found, _ in other.images()] == [image]
    assert other.verify().ok


def test_the_registry_holds_the_blobs_by_the_digest_of_their_content(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    found = {digest: content(frame) for digest, frame in place.blobs().items()}
    assert found == everything(store, image)
    assert all(digest == f"sha256:{hashlib.sha256(data).hexdigest()}" for digest, data in found.items())


def test_existence(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    assert not pfimg.exists(place.source)
    pfimg.push(store, image, place.ref)
    assert pfimg.exists(place.source)


def test_no_image_is_an_error(place: Adapter, other: pfimg.PfStore) -> None:
    with pytest.raises((FileNotFoundError, pfimg.BackendError), match=r"no (such )?image"):
        pfimg.pull(place.source, other)
    assert_nothing_is_visible(other)


def test_blobs_are_sent_ahead_of_their_image(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str, request: pytest.FixtureRequest
) -> None:
    expected = everything(store, image)
    early = list(expected)[: len(expected) // 2]
    name = request.node.callspec.id
    if name in ("ipfs", "oci_packed"):
        with pytest.raises(pfimg.RegistryError) as refused:
            pfimg.push_blobs(store, early, place.ref)
        assert refused.value.code == "not_offered"
        return
    sent = pfimg.push_blobs(store, [*early, early[0]], place.ref)
    assert (sent.sent, sent.skipped) == (len(early), 0)
    assert not pfimg.exists(place.source)
    again = pfimg.push_blobs(store, early, place.ref)
    assert (again.sent, again.skipped, again.bytes_sent) == (0, len(early), 0)
    pushed = pfimg.push(store, image, place.ref)
    assert (pushed.sent, pushed.skipped) == (len(expected) - len(early), len(early))
    assert sent.bytes_sent + pushed.bytes_sent == sum(len(frame) for frame in place.blobs().values())
    assert pfimg.pull(place.source, other).image == image
    assert everything(other, image) == expected


def test_the_second_time_nothing_moves(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    first = pfimg.push(store, image, place.ref)
    before = place.blobs(), place.read_pair()
    again = pfimg.push(store, image, place.ref)
    assert (again.ref, again.sent, again.skipped, again.bytes_sent) == (place.ref, 0, first.sent, 0)
    assert (place.blobs(), place.read_pair()) == before
    pfimg.pull(place.source, other)
    repeated = pfimg.pull(place.source, other)
    assert (repeated.image, repeated.fetched, repeated.skipped, repeated.bytes_fetched) == (image, 0, first.sent, 0)


def test_a_fork_moves_only_the_difference(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    parent = make_image(0)
    fork = make_image(1, parents=[parent])
    old, new = everything(store, parent), everything(store, fork)
    difference = new.keys() - old.keys()
    assert 0 < len(difference) < len(new) - 5
    pfimg.push(store, parent, place.ref)
    pfimg.pull(place.source, other)
    sent = pfimg.push(store, fork, place.ref)
    assert (sent.sent, sent.skipped) == (len(difference), len(new) - len(difference))
    assert place.blobs().keys() == old.keys() | new.keys()
    got = pfimg.pull(place.source, other)
    assert (got.image, got.fetched, got.skipped) == (fork, len(difference), len(new) - len(difference))
    assert everything(other, fork) == new
    assert sorted(found for found, _ in other.images()) == sorted([parent, fork])


def test_only_what_the_image_reaches_is_pulled(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    stray = store.put(b"nobody refers to this")
    place.write(stray, store.read_frame(stray))
    pfimg.pull(place.source, other)
    assert not other.has(stray)


def test_an_image_of_nothing(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore) -> None:
    image = pfimg.snapshot(store, agent="tester")
    pfimg.push(store, image, place.ref)
    assert pfimg.pull(place.source, other).image == image
    assert everything(other, image) == everything(store, image)


def test_an_image_whose_layers_are_one_small_blob(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore) -> None:
    blob = store.put(b"x")
    manifest = pfimg.Manifest(
        agent=pfimg.AgentInfo("tester"),
        model=pfimg.ModelLayer(blob, blob),
        cache=pfimg.CacheLayer(blob),
        world=pfimg.WorldLayer(blob, blob, blob),
        effects=pfimg.EffectsLayer(blob),
        trace=pfimg.TraceLayer(blob),
        created_at="2026-01-01T00:00:00Z",
    )
    image = store.put_manifest(manifest)
    assert pfimg.push(store, image, place.ref).sent == 1
    got = pfimg.pull(place.source, other)
    assert (got.image, got.fetched) == (image, 1)


@pytest.mark.parametrize("layer", ["model", "cache", "world", "effects", "trace"])
def test_one_layer_is_pulled_and_the_rest_later(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str, layer: str
) -> None:
    pfimg.push(store, image, place.ref)
    manifest = store.get_manifest(image)
    wanted = set(store.reachable(manifest, layers=[layer]))
    rest = set(store.reachable(manifest)) - wanted
    got = pfimg.pull(place.source, other, layers={layer})
    assert (got.image, got.fetched, got.skipped) == (image, len(wanted), 0)
    assert list(other.images()) == []
    assert other.partial_images() == [image]
    assert all(other.has_many(sorted(wanted)))
    assert not any(other.has_many(sorted(rest)))
    assert other.get_manifest(image).to_json() == manifest.to_json()
    completed = pfimg.pull(place.source, other)
    assert (completed.fetched, completed.skipped) == (len(rest), len(wanted))
    assert [found for found, _ in other.images()] == [image]
    assert other.partial_images() == []
    assert everything(other, image) == everything(store, image)


def test_some_pages_are_pulled_and_the_rest_later(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    pfimg.pull(place.source, other, layers=["cache"], ixs=[1, 3])
    expected_k, expected_v = store.get_pages(image, ixs=[3, 1])
    k, v = other.get_pages(image, ixs=[3, 1])
    assert (bytes(k), bytes(v)) == (bytes(expected_k), bytes(expected_v))
    with pytest.raises(pfimg.BlobNotFound):
        other.get_pages(image, ixs=[0])
    pfimg.pull(place.source, other)
    assert everything(other, image) == everything(store, image)


def test_a_partial_pull_of_a_whole_image_leaves_it_whole(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    pfimg.pull(place.source, other)
    assert pfimg.pull(place.source, other, layers=["trace"]).fetched == 0
    assert [found for found, _ in other.images()] == [image]
    assert other.partial_images() == []


def test_an_unknown_layer_is_refused(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    with pytest.raises(pfimg.FormatError, match="weather"):
        pfimg.pull(place.source, other, layers=["weather"])
    assert_nothing_is_visible(other)


def test_an_own_key_signs_and_verifies(
    place: Adapter, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    (tmp_path / "key").write_text("ours\n")
    pfimg.push(store, image, place.ref, sign=tmp_path / "key")
    assert place.read_pair()[1] == sign(place.read_pair()[0], OURS)
    for trust in (None, "self-signed", THEIRS, [THEIRS]):
        with pytest.raises(pfimg.SignatureError, match="not trusted"):
            pfimg.pull(place.source, other, trust=trust)
    assert_nothing_is_visible(other)
    assert pfimg.pull(place.source, other, trust=[THEIRS, OURS]).signature == "verified"


def test_the_public_key_is_not_enough_where_a_key_is_demanded(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    with pytest.raises(pfimg.SignatureError, match="proves nothing"):
        pfimg.pull(place.source, other, trust=OURS)
    assert_nothing_is_visible(other)


def test_a_changed_byte_of_manifest_or_signature_is_noticed(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref, sign=OURS)
    manifest, signature = place.read_pair()
    for at in range(0, len(manifest), 211):
        place.write_pair(flipped(manifest, at), signature)
        with pytest.raises(pfimg.SignatureError):
            pfimg.pull(place.source, other, trust=OURS)
    for at in range(0, len(signature), 37):
        place.write_pair(manifest, flipped(signature, at))
        with pytest.raises(pfimg.SignatureError):
            pfimg.pull(place.source, other, trust=OURS)
    assert_nothing_is_visible(other)
    assert other.stats().blobs == 0


def test_a_stripped_signature_is_refused(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    place.write_pair(place.read_pair()[0], None)
    with pytest.raises(pfimg.SignatureError, match="no signature"):
        pfimg.pull(place.source, other)
    assert_nothing_is_visible(other)


def test_the_signature_is_checked_before_the_manifest_is_parsed(place: Adapter, other: pfimg.PfStore) -> None:
    nonsense = b'{"schema_version":'
    place.write_pair(nonsense, sign(nonsense, THEIRS))
    with pytest.raises(pfimg.SignatureError):
        pfimg.pull(place.source, other, trust=OURS)
    place.write_pair(nonsense, sign(nonsense, OURS))
    with pytest.raises(pfimg.FormatError):
        pfimg.pull(place.source, other, trust=OURS)
    assert_nothing_is_visible(other)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda frame: frame[:-1],
        lambda frame: flipped(frame, 0),
        lambda frame: flipped(frame, len(frame) - 1),
        lambda frame: gzip.compress(content(frame)),
        lambda frame: zstandard.compress(content(frame) + b"!"),
        lambda _: zstandard.compress(b""),
    ],
    ids=["cut", "first byte", "last byte", "another format", "other content", "no content"],
)
def test_a_damaged_blob_is_named_and_nothing_is_visible(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str, damage: Callable[[bytes], bytes]
) -> None:
    pfimg.push(store, image, place.ref)
    for digest in (store.get_manifest(image).world.fs, store.reachable(store.get_manifest(image))[-1]):
        sound = place.blobs()[digest]
        place.write(digest, damage(sound))
        with pytest.raises(pfimg.IntegrityError, match=digest) as caught:
            pfimg.pull(place.source, other)
        assert caught.value.digest == digest
        assert not other.has(digest)
        assert_nothing_is_visible(other)
        place.write(digest, sound)
    pfimg.pull(place.source, other)
    assert everything(other, image) == everything(store, image)


def test_a_missing_blob_is_named_and_nothing_is_visible(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    for digest, frame in place.blobs().items():
        place.write(digest, None)
        with pytest.raises(pfimg.BlobNotFound, match=f"{digest} is not in {place.source}") as caught:
            pfimg.pull(place.source, other)
        assert caught.value.digest == digest
        assert_nothing_is_visible(other)
        other.root.rename(other.root.with_name(f"done-{digest[-8:]}"))
        other = pfimg.PfStore.open(other.root)
        place.write(digest, frame)


def test_an_interrupted_push_shows_nothing_and_is_completed(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    def stop(event: pfimg.Progress) -> None:
        if event.phase == "send":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pfimg.push(store, image, place.ref, progress=stop)
    assert not pfimg.exists(place.source)
    # A kill may leave any part of the blobs behind.
    for digest in list(everything(store, image))[::2]:
        place.write(digest, frame_as_sent(place, store, digest))
    here = len(place.blobs())
    assert pfimg.push(store, image, place.ref).skipped == here
    pfimg.pull(place.source, other)
    assert everything(other, image) == everything(store, image)


def test_an_interrupted_pull_shows_nothing_and_is_completed(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)

    def stop(event: pfimg.Progress) -> None:
        if event.total > 8:  # not the documents, which come first
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pfimg.pull(place.source, other, progress=stop)
    assert_nothing_is_visible(other)
    landed = other.stats().blobs
    assert landed > 0
    completed = pfimg.pull(place.source, other)
    assert completed.skipped == landed
    assert everything(other, image) == everything(store, image)


def test_a_corrupt_blob_of_the_store_is_not_pushed_but_quarantined(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    digest = store.get_manifest(image).world.env
    sound = store.get(digest)
    path = store.blob_path(digest)
    assert path is not None
    path.write_bytes(zstandard.compress(b"something else"))
    with pytest.raises(pfimg.IntegrityError, match=digest):
        pfimg.push(store, image, place.ref)
    assert not pfimg.exists(place.source)
    assert not store.has(digest)
    with pytest.raises(pfimg.BlobNotFound, match=digest):
        pfimg.push(store, image, place.ref)
    store.put(sound)
    pfimg.push(store, image, place.ref)


def test_a_damaged_store_is_healed_from_the_registry(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    expected = everything(store, image)
    for at, digest in enumerate(expected):
        path = store.blob_path(digest)
        assert path is not None
        if at % 3 == 0:
            path.unlink()
        elif at % 3 == 1:
            path.write_bytes(b"damaged")
    assert not store.verify().ok
    report = store.verify(repair_from=place.source)
    assert report.ok
    assert everything(store, image) == expected


def test_what_the_registry_cannot_give_stays_missing_and_the_rest_is_healed(
    place: Adapter, store: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    leaves = sorted(everything(store, image).keys() - set(pfimg.manifest_blob_digests(store.get_manifest(image))))
    for digest in leaves:
        path = store.blob_path(digest)
        assert path is not None
        path.unlink()
    place.write(leaves[0], None)
    place.write(leaves[1], b"damaged")
    report = store.verify(repair_from=place.source)
    assert [finding.digest for finding in report.missing] == leaves[:2]
    assert set(report.repaired) == set(leaves[2:])


def test_an_image_is_copied_with_its_signature(
    place: Adapter, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref, sign=OURS)
    there = f"file://{tmp_path}/copy#named"
    with pytest.raises(pfimg.SignatureError):
        pfimg.copy(place.source, there)
    assert not pfimg.exists(there)
    report = pfimg.copy(place.source, there, trust=OURS)
    assert (report.ref, report.sent, report.skipped) == (there, len(everything(store, image)), 0)
    assert pfimg.pull(there, other, trust=OURS).signature == "verified"
    assert everything(other, image) == everything(store, image)
    again = pfimg.copy(place.source, there, trust=OURS, sign=THEIRS)
    assert (again.sent, again.skipped) == (0, report.sent)
    assert pfimg.pull(there, other, trust=THEIRS).signature == "verified"


def test_an_image_is_copied_into_the_registry_and_only_what_it_lacks(
    place: Adapter, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    parent, fork = make_image(0), make_image(1)
    pfimg.push(store, parent, place.ref)
    pfimg.push(store, fork, f"file://{tmp_path}/source")
    report = pfimg.copy(f"file://{tmp_path}/source", place.ref)
    assert report.sent == len(everything(store, fork).keys() - everything(store, parent).keys())
    pfimg.pull(place.source, other)
    assert everything(other, fork) == everything(store, fork)


def test_a_copy_verifies_what_it_passes_on(place: Adapter, tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    digest = store.reachable(store.get_manifest(image))[-1]
    place.write(digest, zstandard.compress(b"something else"))
    with pytest.raises(pfimg.IntegrityError, match=digest):
        pfimg.copy(place.source, f"file://{tmp_path}/copy")
    assert not pfimg.exists(f"file://{tmp_path}/copy")


def test_an_image_is_pulled_without_a_store(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    found = pfimg.registries.open(place.source).pull(place.source)
    assert isinstance(found, pfimg.LayerSet)
    assert found.manifest.id == image
    assert [digest for digest, _ in found.blobs] == pfimg.transitive_blob_digests(store.get_manifest(image), store)
    assert dict(found.blobs) == everything(store, image)


def test_anything_that_holds_blobs_can_be_pushed_and_pulled(place: Adapter, store: pfimg.PfStore, image: str) -> None:
    source, target = pfimg.MemoryStore(), pfimg.MemoryStore()
    for data in everything(store, image).values():
        source.put(data)
    manifest = store.get_manifest(image)
    assert pfimg.registries.open(place.ref).push(place.ref, manifest, source).sent == len(everything(store, image))
    report = pfimg.registries.open(place.source).pull(place.source, target)
    assert isinstance(report, pfimg.PullReport)
    assert report.image == image
    assert {digest: target.get(digest) for digest in everything(store, image)} == everything(store, image)
    assert target.get(image) == manifest.to_json()


def test_the_bytes_of_the_manifest_survive(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    values = json.loads(store.get_manifest(image).to_json())
    values["future"] = {"unknown": [1, 2.50, "ü"]}
    raw = json.dumps(dict(reversed(values.items())), indent=1, ensure_ascii=False).encode()
    odd = store.put_manifest(pfimg.Manifest.from_json(raw))
    pfimg.push(store, odd, place.ref)
    assert place.read_pair()[0] == raw
    assert pfimg.pull(place.source, other).image == odd == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert other.get(odd) == raw


def test_frames_are_encoded_anew_only_when_asked(place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, codec="store")
    assert {digest: content(frame) for digest, frame in place.blobs().items()} == everything(store, image)
    large = max(place.blobs().items(), key=lambda item: len(item[1]))
    assert len(large[1]) > len(store.get(large[0]))
    place.write(large[0], None)
    pfimg.push(store, image, place.ref, codec="zstd")
    assert len(place.blobs()[large[0]]) < len(large[1])
    pfimg.pull(place.source, other)
    assert everything(other, image) == everything(store, image)


def test_float_frames_are_sent_as_everybody_reads_them(
    place: Adapter, other: pfimg.PfStore, tmp_path: Path, kv_pages: KvPages
) -> None:
    store = pfimg.PfStore.open(tmp_path / "floats", codec="float")
    cache = store.put_pages(kv_pages.meta, kv_pages.k, kv_pages.v)
    image = pfimg.snapshot(store, agent="tester", cache=cache)
    expected = everything(store, image)
    assert 0 < len(store.float_blobs(list(expected))) < len(expected)
    sent = pfimg.push(store, image, place.ref)
    assert sent.sent == len(expected)
    assert sent.bytes_sent == sum(len(frame) for frame in place.blobs().values())
    assert {digest: content(frame) for digest, frame in place.blobs().items()} == expected
    pfimg.pull(place.ref, other)
    assert everything(other, image) == expected
    assert other.float_blobs(list(expected)) == []

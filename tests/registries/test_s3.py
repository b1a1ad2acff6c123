"""Buckets: their layout, names, packs, listings, and writers that race."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import boto3
import obstore
import pytest
import zstandard
from obstore.store import S3Store
from tests.registries.conftest import META
from tests.registries.programs import needs_reference
from tests.registries.s3_places import BucketPlace, point_to
from tests.registries.test_contract import everything
from tests.servers.faulty import Faulty, faulty, refused

import pfimg
from pfimg.keys import SigningKey
from pfimg.registries import S3Registry, S3Transport
from pfimg.registries.base import blob_name
from pfimg.registries.s3 import bucket as bucket_module
from pfimg.registries.s3 import transport as transport_module
from pfimg.signing import PUBLIC_KEY, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import S3Server

COMMAND = shutil.which("pf")
SERVERS = [pytest.param(name, marks=pytest.mark.server(name)) for name in ("minio", "versitygw")]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    point_to(found, monkeypatch)
    return found


@pytest.fixture
def place(server: S3Server) -> BucketPlace:
    return BucketPlace(server, server.make_bucket())


@pytest.fixture
def front(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """A server in front of it, through which everything goes, which keeps what is asked."""
    with faulty(server.endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        yield found


def test_the_layout_is_that_of_the_format(place: BucketPlace, store: pfimg.PfStore, image: str) -> None:
    assert pfimg.push(store, image, place.ref).ref == place.ref
    blobs = {blob_name(digest): store.read_frame(digest) for digest in everything(store, image)}
    manifest = store.get_manifest(image).to_json()
    expected = {**blobs, "manifest.json": manifest, "manifest.json.sig": sign(manifest, PUBLIC_KEY)}
    assert {name: place.read(name) for name in place.names()} == expected


def test_another_client_lists_and_reads_what_is_pushed(
    server: S3Server, place: BucketPlace, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=40)
    pfimg.push(store, image, place.ref)
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
    )
    prefix = f"{place.ref.removeprefix(f's3://{place.bucket}/')}/"
    listing = client.get_paginator("list_objects_v2").paginate(
        Bucket=place.bucket, Prefix=prefix, PaginationConfig={"PageSize": 20}
    )
    sizes = {entry["Key"].removeprefix(prefix): entry["Size"] for page in listing for entry in page["Contents"]}
    expected = everything(store, image)
    assert sizes.keys() == {"manifest.json", "manifest.json.sig", *map(blob_name, expected)}
    for digest, data in expected.items():
        name = blob_name(digest)
        frame = client.get_object(Bucket=place.bucket, Key=prefix + name)["Body"].read()
        assert len(frame) == sizes[name]
        assert zstandard.ZstdDecompressor().decompress(frame) == data  # one frame that tells its size
    manifest = client.get_object(Bucket=place.bucket, Key=f"{prefix}manifest.json")["Body"].read()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == image


@needs_reference
def test_the_reference_reads_and_is_read(
    place: BucketPlace, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    def pf(*arguments: str) -> str:
        done = subprocess.run(
            [str(COMMAND), "--store", tmp_path / "theirs", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pfimg.push(store, image, place.ref)
    theirs = pfimg.PfStore.open(tmp_path / "theirs")
    assert image in pf("pull", place.ref)
    assert everything(theirs, image) == everything(store, image)
    pf("push", image, f"{place.ref}/again")
    assert pfimg.pull(f"{place.ref}/again", other).image == image
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("prefix", ["", "a", "a-b/c#d", "100%/%41", "ä+ü=&?*'()~", ".hidden/..x"])
def test_a_prefix_is_taken_as_it_stands(
    server: S3Server, store: pfimg.PfStore, other: pfimg.PfStore, image: str, prefix: str
) -> None:
    place = BucketPlace(server, server.make_bucket(), prefix)
    ref = str(pfimg.S3Ref(place.bucket, prefix))
    pfimg.push(store, image, ref)
    assert {"manifest.json", "manifest.json.sig"} < set(place.names())
    assert pfimg.push(store, image, ref).sent == 0
    assert pfimg.pull(ref, other).image == image


@pytest.mark.parametrize("prefix", ["a//b", "/a", "a/./b", "../a"])
def test_a_prefix_that_cannot_be_addressed_is_refused(prefix: str) -> None:
    with pytest.raises(pfimg.BadRef, match=r"empty, '\.' or '\.\.' segments"):
        S3Transport(pfimg.S3Ref("bucket", prefix))


def test_images_with_names(
    place: BucketPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    one, two = make_image(0), make_image(1)
    assert pfimg.push(store, one, f"{place.ref}#one").ref == f"{place.ref}#one"
    pfimg.push(store, two, f"{place.ref}#two")
    assert [name for name in place.names() if not name.startswith("blobs/")] == [
        "pfimg.json",
        "pfimg/images/one.json",
        "pfimg/images/two.json",
    ]
    assert json.loads(place.read("pfimg.json")) == {"pfimg": 1, "digest": "sha256", "features": ["names"]}
    assert not pfimg.exists(place.ref)
    assert not pfimg.exists(f"{place.ref}#three")
    assert pfimg.pull(f"{place.ref}#one", other).image == one
    assert pfimg.pull(f"{place.ref}#two", other).image == two
    pfimg.push(store, two, f"{place.ref}#one")
    assert pfimg.pull(f"{place.ref}#one", other).image == two


def test_a_tree_of_an_unknown_kind_is_left_alone(place: BucketPlace, store: pfimg.PfStore, image: str) -> None:
    place.replace("pfimg.json", b'{"pfimg":1,"digest":"sha256","features":["teleport"]}')
    for act in (lambda: pfimg.push(store, image, place.ref), lambda: pfimg.pull(place.ref, store)):
        with pytest.raises(pfimg.FormatError, match=r"pfimg\.json: feature 'teleport' is not known"):
            act()
    assert place.names() == ["pfimg.json"]


def test_digests_of_another_kind_are_refused(place: BucketPlace, tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path / "blake3", digest="blake3")
    image = pfimg.snapshot(store, agent="tester")
    with pytest.raises(pfimg.FormatError, match=f"cannot be put into {place.ref}, whose digests are sha256: use another prefix"):
        pfimg.push(store, image, place.ref)
    assert place.names() == []


def test_what_is_there_but_empty_is_sent_again(place: BucketPlace, store: pfimg.PfStore, make_image: Callable[..., str]) -> None:
    for image in (make_image(0), make_image(1, pages=60)):  # asked for one by one, and listed
        pfimg.push(store, image, place.ref)
        digest = store.reachable(store.get_manifest(image))[-1]
        sound = place.blobs()[digest]
        place.write(digest, b"")
        with pytest.raises(pfimg.BlobNotFound, match=digest):
            pfimg.pull(place.ref, pfimg.PfStore.open(store.root.with_name(f"other-{digest[-8:]}")))
        assert pfimg.push(store, image, place.ref).sent == 1
        assert place.blobs()[digest] == sound


# Packs.


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Transport, "pack_bytes", 8 << 10)


@pytest.mark.usefixtures("packs")
def test_packs_hold_all_blobs_and_a_fork_adds_only_what_is_new(
    place: BucketPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    parent = make_image(0, pages=100)
    fork = make_image(1, pages=100, parents=[parent])
    sent = pfimg.push(store, parent, place.ref, layout="packed")
    assert sent.ref == f"{place.ref}#default"
    names = set(place.names())
    first = {name for name in names if name.startswith("packs/")}
    assert names == first | {"pfimg.json", "pfimg/images/default.json"}
    assert sum(name.endswith(".pack") for name in first) > 1
    assert json.loads(place.read("pfimg.json"))["features"] == ["names", "packs"]

    report = pfimg.push(store, fork, f"{place.ref}#fork", layout="packed")
    difference = everything(store, fork).keys() - everything(store, parent).keys()
    assert report.sent == len(difference)
    added = set(place.names("packs/")) - first
    assert sorted(name.rpartition(".")[2] for name in added) == ["idx", "pack"]
    assert sum(len(place.read(name)) for name in added if name.endswith(".pack")) == report.bytes_sent

    for image, ref in ((parent, sent.ref), (parent, place.ref), (fork, f"{place.ref}#fork")):
        assert pfimg.pull(ref, other).image == image
        assert everything(other, image) == everything(store, image)
    assert other.verify().ok


@pytest.mark.usefixtures("packs")
def test_a_partial_pull_fetches_ranges_of_packs(
    place: BucketPlace, front: Faulty, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=100)
    pfimg.push(store, image, place.ref, layout="packed")
    front.asked.clear()
    pfimg.pull(place.ref, other, layers=["cache"], ixs=[50])
    asked = [request for request in front.asked if request.path.endswith(".pack")]
    assert 0 < len(asked) < 6
    assert all(request.headers["range"].startswith("bytes=") for request in asked)


def test_a_missing_pack_is_named(place: BucketPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, layout="packed")
    [pack] = [name for name in place.names("packs/") if name.endswith(".pack")]
    place.replace(pack, None)
    with pytest.raises(pfimg.BlobNotFound, match=r"pack s3://.*\.pack is not there: push the image again"):
        pfimg.pull(place.ref, other)
    assert list(other.images()) == []


# What is there is found out by the cheaper of two ways.


def kinds(front: Faulty) -> list[str]:
    """What was asked about blobs: HEAD of one, or a list of them."""
    queries = [parse_qs(urlsplit(request.path).query) for request in front.asked]
    lists = ["list" for query in queries if "list-type" in query and "/leases" not in query["prefix"][0]]
    return [*(request.method for request in front.asked if request.method == "HEAD"), *lists]


def test_few_blobs_are_asked_for_and_many_listed(
    place: BucketPlace, front: Faulty, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    small, large = make_image(0), make_image(1, pages=60)
    pfimg.push(store, small, place.ref)
    assert kinds(front) == ["HEAD"] * len(everything(store, small))
    front.asked.clear()
    pfimg.push(store, large, place.ref)
    assert kinds(front) == ["list"]


@pytest.fixture
def crowd(place: BucketPlace, server: S3Server) -> BucketPlace:
    """A bucket with the blobs of others, more than two pages of a listing."""
    prefix = place.root.removeprefix(f"/{place.bucket}/")
    client = S3Store(
        place.bucket,
        prefix=prefix,
        endpoint=server.endpoint,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region=server.region,
        client_options={"allow_http": True},
    )
    for at in range(2_500):
        obstore.put(client, blob_name(f"sha256:{at * 2**32 // 2_500:08x}{at:056x}"), b"x", use_multipart=False)
    return place


@pytest.mark.parametrize(("pages", "way"), [(40, "HEAD"), (2_000, "list")])
def test_among_many_blobs_of_others(
    crowd: BucketPlace,
    front: Faulty,
    store: pfimg.PfStore,
    other: pfimg.PfStore,
    pages: int,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "HEAD":  # as among more pages than there are blobs
        monkeypatch.setattr(transport_module, "PAGE", 20)
        monkeypatch.setattr(bucket_module, "PAGE", 20)
    k = [at.to_bytes(2, "little") * (META.page_bytes // 2) for at in range(pages)]
    cache = store.put_pages(META, k=k, v=[bytes(META.page_bytes)] * pages)
    image = pfimg.snapshot(store, agent="tester", cache=cache)
    wanted = everything(store, image)
    # Some of it is there, everywhere among the others.
    there = sorted(wanted)[::3]
    for digest in there:
        crowd.write(digest, store.read_frame(digest))
    front.asked.clear()
    sent = pfimg.push(store, image, crowd.ref)
    assert (sent.sent, sent.skipped) == (len(wanted) - len(there), len(there))
    found = kinds(front)
    assert found.count("list") < 12
    assert ("HEAD" in found) == (way == "HEAD")
    assert len(found) <= len(wanted)
    assert pfimg.push(store, image, crowd.ref).sent == 0
    pfimg.pull(crowd.ref, other)
    assert everything(other, image) == wanted


# Writers that race.


def together(count: int, act: Callable[[int], object]) -> None:
    """Does something in so many threads at once; raises what one of them raises."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(at: int) -> None:
        try:
            start.wait()
            act(at)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=[at]) for at in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_32_writers_describe_a_tree(place: BucketPlace) -> None:
    features = ["names", "packs", "codec:float"]
    ref = pfimg.ImageRef.parse(place.ref)
    assert isinstance(ref, pfimg.S3Ref)
    together(32, lambda at: S3Transport(ref).describe(features[at % 3]))
    description = json.loads(place.read("pfimg.json"))
    assert sorted(description["features"]) == sorted(features)
    assert (description["pfimg"], description["digest"]) == (1, "sha256")


def test_32_writers_of_one_name(place: BucketPlace, store: pfimg.PfStore, other: pfimg.PfStore) -> None:
    images = {pfimg.snapshot(store, agent="tester", env={"WRITER": str(at)}) for at in range(32)}
    ordered = sorted(images)
    together(32, lambda at: pfimg.push(store, ordered[at], f"{place.ref}#it", layout="packed" if at % 2 else "auto"))
    found = pfimg.pull(f"{place.ref}#it", other).image
    assert found in images
    assert everything(other, found) == everything(store, found)
    assert sorted(json.loads(place.read("pfimg.json"))["features"]) == ["names", "packs"]


@pytest.mark.parametrize("status", [501, 400])
def test_a_service_without_conditions(
    place: BucketPlace, front: Faulty, store: pfimg.PfStore, other: pfimg.PfStore, image: str, status: int
) -> None:
    body = b"<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality we lack.</Message></Error>"
    front.faults.append(lambda asked: refused(status, body) if {"if-match", "if-none-match"} & asked.headers.keys() else None)
    pfimg.push(store, image, f"{place.ref}#one", layout="packed")
    assert sorted(json.loads(place.read("pfimg.json"))["features"]) == ["names", "packs"]
    assert pfimg.pull(f"{place.ref}#one", other).image == image


def test_a_conflict_is_not_taken_for_presence(place: BucketPlace, front: Faulty, store: pfimg.PfStore, image: str) -> None:
    conflicts = iter(range(3))
    front.faults.append(
        lambda asked: refused(409) if "if-none-match" in asked.headers and next(conflicts, None) is not None else None
    )
    pfimg.push(store, image, f"{place.ref}#one")
    assert json.loads(place.read("pfimg.json"))["features"] == ["names"]
    assert sum(request.headers.get("if-none-match") == "*" for request in front.asked) == 4


def test_endless_conflicts_end(place: BucketPlace, front: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_CHANGES", 5)
    front.faults.append(lambda asked: refused(409) if asked.method == "PUT" else None)
    ref = pfimg.ImageRef.parse(place.ref)
    assert isinstance(ref, pfimg.S3Ref)
    with pytest.raises(pfimg.BackendError, match=r"pfimg\.json: others keep changing it") as caught:
        S3Transport(ref).describe("names")
    assert caught.value.retryable


# Large blobs.


def large(store: pfimg.PfStore, size: int) -> str:
    """An image of one blob that does not compress, and hardly anything else."""
    content = b"".join(at.to_bytes(8, "little") * 2 for at in range(size // 16))
    return pfimg.snapshot(store, agent="tester", model_base=content)


@pytest.mark.parametrize("size", [(8 << 20) - 4096, (8 << 20) + 4096, (16 << 20) + 4096, 40 << 20])
def test_blobs_about_the_sizes_at_which_the_way_changes(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore, size: int
) -> None:
    store = pfimg.PfStore.open(tmp_path / "stored", codec="store")
    image = large(store, size)
    base = store.get_manifest(image).model.base
    frame = store.read_frame(base)
    sent = pfimg.push(store, image, place.ref)
    assert place.read(blob_name(base)) == frame
    in_parts = any("uploadId" in request.path for request in front.asked)
    assert in_parts == (len(frame) > 16 << 20)
    front.asked.clear()
    assert pfimg.pull(place.ref, other).bytes_fetched == sent.bytes_sent
    assert other.get(base) == store.get(base)
    pieces = [request.headers["range"] for request in front.asked if "range" in request.headers]
    assert len(pieces) == (-(-len(frame) // bucket_module.PART_BYTES) if len(frame) > 8 << 20 else 0)


def test_a_large_blob_that_is_replaced_while_it_is_fetched(
    place: BucketPlace, front: Faulty, tmp_path: Path, other: pfimg.PfStore
) -> None:
    store = pfimg.PfStore.open(tmp_path / "stored", codec="store")
    image = large(store, 20 << 20)
    base = store.get_manifest(image).model.base
    pfimg.push(store, image, place.ref)

    def replace(asked: Any) -> None:
        if "range" in asked.headers and place.read(blob_name(base)) != b"other":
            place.write(base, b"other")

    front.faults.append(replace)
    with pytest.raises(pfimg.BackendError, match="412") as caught:
        pfimg.pull(place.ref, other)
    assert caught.value.status == 412
    assert list(other.images()) == []


def test_a_registry_for_an_endpoint(server: S3Server, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    place = BucketPlace(server, server.make_bucket())
    somewhere = S3Registry(access_key_id=server.access_key, secret_access_key=server.secret_key, jobs=2)
    registry = somewhere.with_endpoint(server.endpoint).with_sign_key(SigningKey.from_text("ours")).with_endpoint(server.endpoint)
    report = registry.push(place.ref, store.get_manifest(image), store)
    assert report.sent == len(everything(store, image))
    assert registry.exists(place.ref)
    assert place.read_pair()[1] != sign(place.read_pair()[0], PUBLIC_KEY)
    found = registry.pull(place.ref)
    assert dict(found.blobs) == everything(store, image)
    with pytest.raises(pfimg.BadRef, match="another registry"):
        registry.exists("file:///srv")

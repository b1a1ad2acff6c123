"""Images in a registry of containers: what lies there, what is sent for it, and what is read of it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from tests.registries.conftest import META
from tests.registries.oci_places import INDEX, LAYER, MANIFEST, PACK, OciPlace, PackedOciPlace, digest_of
from tests.registries.test_contract import assert_nothing_is_visible, everything, flipped
from tests.servers import Response, request
from tests.servers.proxy import Proxy, answer, proxy, respond

import pfimg
from pfimg.registries.oci import OciTransport, repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import OciServer
    from tests.servers.scripted import Peer


@pytest.fixture
def place(distribution: OciServer) -> OciPlace:
    return OciPlace(distribution)


@pytest.fixture
def packs(distribution: OciServer) -> PackedOciPlace:
    return PackedOciPlace(distribution)


@pytest.fixture
def between(distribution: OciServer) -> Iterator[Proxy]:
    with proxy(distribution.base_url) as running:
        yield running


def through(between: Proxy, place: OciPlace) -> str:
    """The same place, by way of the proxy."""
    return f"oci://{between.registry}/{place.repository.name}{'' if place.tag == 'latest' else f':{place.tag}'}"


def sent(between: Proxy) -> int:
    """Uploads of blobs that were ended."""
    return between.count("PUT", "/blobs/uploads/")


# What lies there


def test_an_image_has_a_layer_for_each_blob_in_the_order_of_the_walk(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref)
    values = place.values()
    assert list(values) == ["schemaVersion", "mediaType", "config", "layers"]
    assert place.repository.get(values["config"]["digest"]) == store.get_manifest(image).to_json()
    assert values["layers"][0]["mediaType"] == "application/vnd.processfork.signature.v1+json"
    expected = [
        {
            "mediaType": LAYER,
            "size": len(store.read_frame(digest)),
            "digest": digest_of(store.read_frame(digest)),
            "annotations": {"org.processfork.path": f"blobs/sha256/{digest[7:9]}/{digest[7:]}.zst"},
        }
        for digest in store.reachable(store.get_manifest(image))
    ]
    assert values["layers"][1:] == expected
    assert [list(layer) for layer in values["layers"]] == [["mediaType", "size", "digest", "annotations"]] * len(values["layers"])


def test_a_packed_image_shows_nothing_to_a_reader_of_version_1(
    packs: PackedOciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    report = pfimg.push(store, image, packs.ref, layout="packed")
    values = packs.values()
    assert (report.ref, values["artifactType"]) == (packs.ref, "application/vnd.pfimg.image.v1")
    assert packs.repository.get(values["config"]["digest"]) == b"{}"
    assert values["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    manifest, signature, index, pack = values["layers"]
    assert packs.repository.get(manifest["digest"]) == store.get_manifest(image).to_json()
    assert hashlib.sha256(store.get_manifest(image).to_json()).hexdigest().encode() in packs.repository.get(signature["digest"])
    assert (index["mediaType"], pack["mediaType"]) == (INDEX, PACK)
    assert pack["annotations"]["org.opencontainers.image.title"] == f"packs/{pack['digest'][7:]}.pack"
    assert packs.repository.get(pack["digest"]) == b"".join(
        store.read_frame(digest) for digest in store.reachable(store.get_manifest(image))
    )
    assert pfimg.pull(packs.ref, other).image == image


def test_many_blobs_are_packed_of_themselves_and_few_are_not(place: OciPlace, store: pfimg.PfStore, make_image: Any) -> None:
    few, many = make_image(0, pages=90), make_image(1, pages=110)
    assert len(everything(store, few)) <= 200 < len(everything(store, many))
    for image, form in ((few, None), (many, "application/vnd.pfimg.image.v1")):
        pfimg.push(store, image, place.ref)
        assert place.values().get("artifactType") == form


def test_an_image_of_another_algorithm_does_not_look_like_one_of_version_1(tmp_path: Path, place: OciPlace) -> None:
    store, other = (pfimg.PfStore.open(tmp_path / name, digest="blake3") for name in ("one", "two"))
    image = pfimg.snapshot(store, agent="tester", messages=[{"role": "user", "content": "hi"}])
    pfimg.push(store, image, place.ref)
    assert place.values()["artifactType"] == "application/vnd.pfimg.image.v1"
    assert pfimg.pull(place.ref, other).image == image
    assert pfimg.push(store, image, place.ref).sent == 0
    pfimg.push(store, image, place.ref, layout="packed")
    assert pfimg.pull(place.ref, pfimg.PfStore.open(tmp_path / "three", digest="blake3")).image == image


def test_too_many_single_blobs_are_refused_before_any_is_sent(between: Proxy, place: OciPlace, store: pfimg.PfStore) -> None:
    k = [at.to_bytes(4, "little") * (META.page_bytes // 4) for at in range(17_000)]
    image = pfimg.snapshot(store, agent="tester", cache=store.put_pages(META, k=k, v=[bytes(META.page_bytes)] * len(k)))
    with pytest.raises(pfimg.LimitExceeded, match="layout packed"):
        pfimg.push(store, image, through(between, place), layout="reference")
    assert {asked.method for asked in between.asked} <= {"GET", "HEAD"}


def test_tags_are_listed_page_by_page(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    ref = through(between, place)
    assert pfimg.list_images(ref) == []
    tags = ["a", "b.2", "latest", "v1", "v10"]
    for tag in tags:
        pfimg.push(store, image, f"{ref}:{tag}")
    monkeypatch.setattr(repository, "_TAGS_A_PAGE", 2)
    before = between.count("GET", "/tags/list")
    assert pfimg.list_images(ref) == [ref if tag == "latest" else f"{ref}:{tag}" for tag in tags]
    assert between.count("GET", "/tags/list") - before == 3
    assert all(pfimg.exists(found) for found in pfimg.list_images(ref))


def test_the_package_itself_does_without_a_client_for_the_web() -> None:
    script = (
        "import sys, pfimg; pfimg.ImageRef.parse('oci://host/repo'); print({'httpx', 'pfimg.registries.oci'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"


# What is sent


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_a_second_push_asks_for_little_and_sends_nothing(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, make_image: Any, layout: str
) -> None:
    image = make_image(pages=60)
    ref = through(between, place)
    assert pfimg.push(store, image, ref, layout=layout).sent == len(everything(store, image))
    before = len(between.asked)
    report = pfimg.push(store, image, ref, layout=layout)
    assert (report.sent, report.skipped, report.bytes_sent) == (0, len(everything(store, image)), 0)
    assert [asked.method for asked in between.asked[before:]] == (
        ["GET", "PUT"] if layout == "reference" else ["GET", "GET", "PUT"]
    )


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_a_fork_under_another_tag_shares_what_is_there(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any, layout: str
) -> None:
    parent = make_image(0, pages=60)
    fork = make_image(1, pages=60, parents=[parent])
    new = everything(store, fork).keys() - everything(store, parent).keys()
    ref = through(between, place)
    pfimg.push(store, parent, f"{ref}:v9", layout=layout)
    before = sent(between)
    report = pfimg.push(store, fork, f"{ref}:v10", layout=layout)
    assert (report.sent, report.skipped) == (len(new), len(everything(store, fork)) - len(new))
    # Beside blobs: manifest, signature, and for packs an index; the new blobs are one pack.
    assert sent(between) - before == (len(new) + 2 if layout == "reference" else 4)
    for tag, image in (("v9", parent), ("v10", fork)):
        assert pfimg.pull(f"{ref}:{tag}", other).image == image
        assert everything(other, image) == everything(store, image)


def test_blobs_that_are_there_in_another_encoding_are_not_sent_again(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, make_image: Any
) -> None:
    image = make_image(pages=60)
    ref = through(between, place)
    pfimg.push(store, image, ref, codec="store")
    before = sent(between)
    pfimg.push(store, image, f"{ref}:again", codec="zstd")
    assert sent(between) == before
    assert place.repository.manifest("again") == place.repository.manifest("latest")


def test_only_so_many_other_tags_are_read(between: Proxy, place: OciPlace, store: pfimg.PfStore, make_image: Any) -> None:
    ref = through(between, place)
    for version in range(10):
        pfimg.push(store, make_image(version), f"{ref}:v{version}", layout="packed")
    before = len(between.asked)
    pfimg.push(store, make_image(99), f"{ref}:new", layout="packed")
    read = [
        asked.path.rpartition("/")[2] for asked in between.asked[before:] if asked.method == "GET" and "/manifests/" in asked.path
    ]
    assert read == ["new", *(f"v{version}" for version in range(9, 1, -1))]


def test_images_of_others_in_the_same_repository_do_not_matter(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any
) -> None:
    config = place.repository.put(b"{}")
    values = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}
    image = {**values, "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config}}
    place.repository.put_manifest("latest", image)
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
    place.repository.put_manifest("index", index)
    for tag, kind in (("latest", "image.config.v1"), ("index", "image.index.v1")):
        with pytest.raises(pfimg.FormatError, match=rf"{tag}.* is no image of this format .*{kind}" if tag == "index" else kind):
            pfimg.pull(f"{place.ref}:{tag}", other)
    made = make_image(pages=60)
    for layout in ("reference", "packed"):
        pfimg.push(store, made, f"{place.ref}:ours", layout=layout)
        assert pfimg.pull(f"{place.ref}:ours", other).image == made
    # Whoever pushes to a tag means to replace what is there.
    pfimg.push(store, made, place.ref)
    assert pfimg.pull(place.ref, other).image == made


def test_a_repository_is_copied_without_its_bytes(
    between: Proxy, distribution: OciServer, place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any
) -> None:
    image = make_image(pages=60)
    for layout in ("reference", "packed"):
        source, target = through(between, place), through(between, OciPlace(distribution))
        pfimg.push(store, image, source, layout=layout)
        before, asked = sent(between), len(between.asked)
        report = pfimg.copy(source, target, layout=layout)
        assert (report.sent, report.skipped, report.bytes_sent) == (0, len(everything(store, image)), 0)
        assert sent(between) - before <= 4  # what describes the image
        largest = max(len(asked.body) for asked in between.asked[asked:])
        assert largest < 50_000
        assert pfimg.pull(target, other).image == image
        # From tag to tag not even that.
        before = sent(between)
        pfimg.copy(source, f"{source}:copy", layout=layout)
        assert sent(between) == before
        assert pfimg.pull(f"{source}:copy", other).image == image


def test_blobs_are_taken_from_a_repository_that_is_named(
    between: Proxy, distribution: OciServer, place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any
) -> None:
    parent, fork = make_image(0), make_image(1)
    pfimg.push(store, parent, place.ref)
    target = through(between, OciPlace(distribution))
    registry = pfimg.registries.open(target, mount_from=place.repository.name)
    new = everything(store, fork).keys() - everything(store, parent).keys()
    report = registry.push(target, store.get_manifest(fork), store)
    assert (report.sent, report.skipped) == (len(new), len(everything(store, fork)) - len(new))
    assert sent(between) == len(new) + 2
    assert pfimg.pull(target, other).image == fork
    # A name that is wrong is no harm.
    there = through(between, OciPlace(distribution))
    nowhere = pfimg.registries.OciRegistry(mount_from="no/such/repository")
    assert nowhere.push(there, store.get_manifest(fork), store).sent == len(everything(store, fork))
    assert pfimg.pull(there, other).image == fork


def test_a_large_blob_goes_in_pieces(
    monkeypatch: pytest.MonkeyPatch, between: Proxy, place: OciPlace, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    monkeypatch.setattr(repository, "_WHOLE_BYTES", 9 << 20)
    monkeypatch.setattr(repository, "_PIECE_BYTES", 4 << 20)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "large.bin").write_bytes(random.Random(3).randbytes(10 << 20))
    image = pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work")
    for layout in ("reference", "packed"):
        ref = f"{through(between, place)}:{layout}"
        pfimg.push(store, image, ref, layout=layout)
        pieces = [asked for asked in between.asked if asked.method == "PATCH"]
        assert [len(asked.body) for asked in pieces][:2] == [4 << 20] * 2
        assert [asked.headers["content-range"] for asked in pieces][:2] == ["0-4194303", "4194304-8388607"]
        assert len(pieces) == 3
        between.asked.clear()
        for digest in place.repository.blobs():
            place.repository.delete(digest)
        pfimg.push(store, image, ref, layout=layout)
        between.asked.clear()
        assert pfimg.pull(ref, other).image == image
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_writers_of_different_tags_at_once(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any, layout: str
) -> None:
    images = [make_image(version, pages=40) for version in range(4)]
    errors: list[BaseException] = []

    def push(at: int) -> None:
        try:
            pfimg.push(store, images[at], f"{place.ref}:v{at}", layout=layout)
        except BaseException as error:  # noqa: BLE001 - it is shown below
            errors.append(error)

    threads = [threading.Thread(target=push, args=[at]) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for at, image in enumerate(images):
        assert pfimg.pull(f"{place.ref}:v{at}", other).image == image
        assert everything(other, image) == everything(store, image)


# What is read


def test_an_image_by_its_digest_stays_what_it_was(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, place.ref)
    content = place.repository.manifest("latest")
    assert content is not None
    by_digest = f"{place.ref}@{digest_of(content)}"
    pfimg.push(store, second, place.ref)
    assert pfimg.exists(by_digest)
    assert pfimg.pull(by_digest, other).image == first
    assert pfimg.pull(place.ref, other).image == second
    unknown = f"{place.ref}@{digest_of(b'another')}"
    assert not pfimg.exists(unknown)
    with pytest.raises(pfimg.BackendError, match="no such image"):
        pfimg.pull(unknown, other)
    with pytest.raises(pfimg.BadRef, match="pushed to a tag"):
        pfimg.push(store, first, by_digest)


def test_another_image_under_a_digest_is_noticed(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Any
) -> None:
    pfimg.push(store, make_image(0), f"{place.ref}:a")
    pfimg.push(store, make_image(1), f"{place.ref}:b")
    first, second = (place.repository.manifest(tag) for tag in "ab")
    assert first is not None
    assert second is not None
    ref = f"{through(between, place)}@{digest_of(first)}"
    content = {"Content-Type": MANIFEST, "Docker-Content-Digest": digest_of(first)}
    between.on("GET", "/manifests/", answer(200, content, second))
    with pytest.raises(pfimg.IntegrityError, match=digest_of(second)):
        pfimg.pull(ref, other)
    assert_nothing_is_visible(other)


def damaged(place: OciPlace, digest: str) -> Callable[[bytes], int]:
    """Writes on the server's disk, behind its back."""
    path = place.repository.server.data / "docker/registry/v2/blobs/sha256" / digest[7:9] / digest[7:] / "data"
    return path.write_bytes


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize(
    "damage", [lambda content: flipped(content, len(content) // 2), lambda content: content[:-1], lambda _: b""]
)
def test_what_is_damaged_in_the_registry_is_noticed(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, layout: str, damage: Callable[[bytes], bytes]
) -> None:
    # Of this test alone, since repositories share what lies on the server's disk.
    agent = f"tester-{random.Random().random()}"
    image = pfimg.snapshot(store, agent=agent, messages=[{"role": "user", "content": agent}])
    pfimg.push(store, image, place.ref, layout=layout)
    values = place.values()
    own = {store.get_manifest(image).trace.messages, store.get_manifest(image).model.base}
    layers = [
        layer
        for layer in values["layers"]
        if layer["mediaType"] != LAYER or f"sha256:{layer['annotations']['org.processfork.path'][-68:-4]}" in own
    ]
    assert len(layers) == (3 if layout == "reference" else 4)
    for part in [*layers, *([values["config"]] if layout == "reference" else [])]:
        sound = place.repository.get(part["digest"])
        write = damaged(place, part["digest"])
        write(damage(sound))
        with pytest.raises((pfimg.IntegrityError, pfimg.BackendError, pfimg.FormatError)):
            pfimg.pull(place.ref, other)
        assert_nothing_is_visible(other)
        write(sound)
    assert pfimg.pull(place.ref, other).image == image


def test_a_layer_that_is_gone_is_missed_and_sent_again(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    digests = store.reachable(store.get_manifest(image))
    place.write(digests[-1], None)
    with pytest.raises(pfimg.BlobNotFound, match=f"{digests[-1]} is not in {place.ref}"):
        pfimg.pull(place.ref, other)
    assert_nothing_is_visible(other)
    report = pfimg.push(store, image, place.ref)
    assert (report.sent, report.skipped) == (1, len(digests) - 1)
    pfimg.pull(place.ref, other)
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("kind", [INDEX, PACK])
def test_a_pack_that_is_gone_is_named_and_sent_again(
    packs: PackedOciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str, kind: str
) -> None:
    pfimg.push(store, image, packs.ref, layout="packed")
    (part,) = (layer["digest"] for layer in packs.values()["layers"] if layer["mediaType"] == kind)
    packs.repository.delete(part)
    with pytest.raises(pfimg.BlobNotFound, match=packs.ref if kind == PACK else part):
        pfimg.pull(packs.ref, other)
    assert_nothing_is_visible(other)
    report = pfimg.push(store, image, packs.ref, layout="packed")
    if kind == PACK:
        assert report.sent == len(everything(store, image))
    assert packs.repository.has(part)
    assert pfimg.pull(packs.ref, other).image == image


def test_an_index_that_lies_is_found_out(packs: PackedOciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, packs.ref, layout="packed")
    frames = packs.blobs()
    digests = sorted(frames)
    content = b"".join(frames[digest] for digest in digests)
    pack = packs.repository.put(content)
    # Names and frames of which no two belong together, and lengths that reach beyond the end.
    turned = pfimg._core.PackIndex.of(pack["digest"][7:], [*digests[1:], digests[0]], [len(frames[digest]) for digest in digests])
    beyond = pfimg._core.PackIndex.of(pack["digest"][7:], digests, [len(content)] * len(digests))
    values = packs.values()
    layers = [layer for layer in values["layers"] if layer["mediaType"] not in (INDEX, PACK)]
    for index in (turned.to_bytes(), beyond.to_bytes(), b"nonsense"):
        ours = [{"mediaType": INDEX, **packs.repository.put(index)}, {"mediaType": PACK, **pack}]
        packs.repository.put_manifest("latest", {**values, "layers": [*layers, *ours]})
        with pytest.raises((pfimg.IntegrityError, pfimg.BackendError, pfimg.FormatError)):
            pfimg.pull(packs.ref, other)
        assert_nothing_is_visible(other)
    pfimg.push(store, image, packs.ref, layout="packed")
    assert pfimg.pull(packs.ref, other).image == image


def test_a_layer_that_is_longer_than_it_says_is_not_read_to_its_end(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    values = place.values()
    digest = store.get_manifest(image).trace.messages
    (layer,) = (layer for layer in values["layers"] if layer["annotations"]["org.processfork.path"].endswith(f"{digest[7:]}.zst"))
    for size in (layer["size"] - 1, layer["size"] + 1):
        place.repository.put_manifest(
            "latest", json.loads(json.dumps(values).replace(json.dumps(layer), json.dumps({**layer, "size": size})))
        )
        with pytest.raises(pfimg.IntegrityError, match=digest) as caught:
            pfimg.pull(place.ref, other)
        assert caught.value.digest == digest
    assert zstandard.ZstdDecompressor().decompressobj().decompress(place.repository.get(layer["digest"]))


def test_a_manifest_that_is_too_large_is_not_read(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref)
    place.write_pair(b" " * (1 << 20) + b"{}", place.read_pair()[1])
    with pytest.raises(pfimg.LimitExceeded):
        pfimg.pull(place.ref, other)


def test_a_server_without_ranges_will_do(
    between: Proxy, packs: PackedOciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, packs.ref, layout="packed")

    def whole(peer: Peer, _forward: Callable[[], Response]) -> None:
        headers = {name: value for name, value in peer.asked.headers.items() if name != "range"}
        respond(peer, request(f"{packs.repository.server.base_url}{peer.asked.path}", "GET", None, headers))

    between.on("GET", "/blobs/", *[whole] * 100)
    pfimg.pull(through(between, packs), other)
    assert everything(other, image) == everything(store, image)
    assert any("range" in asked.headers for asked in between.asked)


def test_one_page_is_had_without_the_rest(
    packs: PackedOciPlace, between: Proxy, store: pfimg.PfStore, other: pfimg.PfStore
) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=4, n_heads=4, head_dim=16, dtype="bf16")
    pages = [random.Random(at).randbytes(meta.page_bytes) for at in range(1_000)]
    image = pfimg.snapshot(store, agent="tester", cache=store.put_pages(meta, k=pages[:500], v=pages[500:]))
    pfimg.push(store, image, packs.ref)
    pfimg.pull(through(between, packs), other, layers=["cache"], ixs=[150])
    expected, got = (found.get_pages(image, ixs=[150]) for found in (store, other))
    assert [bytes(side) for side in got] == [bytes(side) for side in expected]
    ranges = [asked.headers["range"].removeprefix("bytes=").split("-") for asked in between.asked if "range" in asked.headers]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < store.stats().physical_bytes / 5


def test_options_are_those_that_are_documented(place: OciPlace) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        pfimg.registries.open(place.ref, nonsense=True)
    transport = OciTransport(pfimg.OciRef("h", "r"), password="correct horse", token="battery staple")
    assert "horse" not in repr(transport)
    assert "battery" not in repr(pfimg.registries.OciRegistry(token="battery staple"))

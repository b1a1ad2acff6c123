"""Float frames in registries: only where they are asked for, and never where others would trip over them.

That they are sent as ordinary frames by default is in test_contract.py, for every registry.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest
import zstandard
from tests.registries.s3_places import BucketPlace, point_to

import pfimg
from pfimg import _core
from pfimg.registries.base import blob_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import KvPages
    from tests.hub import Hub
    from tests.registries.conftest import Adapter

TEXT = "words and words " * 500


class Tree(Protocol):
    """A place that keeps float frames, for tests to look into and to damage."""

    ref: str

    def names(self, prefix: str = "") -> list[str]:
        """What there is below the prefix."""

    def read(self, name: str) -> bytes:
        """Its content."""

    def replace(self, name: str, content: bytes | None) -> None:
        """Replaces its content; None removes it."""


class Directory:
    """`file://`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ref = f"file://{root}"

    def names(self, prefix: str = "") -> list[str]:
        found = [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]
        return [name for name in found if name.startswith(prefix)]

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def replace(self, name: str, content: bytes | None) -> None:
        (self.root / name).unlink()
        if content is not None:
            (self.root / name).write_bytes(content)


@pytest.fixture(params=["directory", pytest.param("minio", marks=pytest.mark.server("minio"))])
def tree(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    if request.param == "directory":
        return Directory(root)
    server = request.getfixturevalue("minio")
    point_to(server, monkeypatch)
    return BucketPlace(server, server.make_bucket())


@pytest.fixture
def floats(tmp_path: Path) -> pfimg.PfStore:
    """Another store, which keeps float frames as they come."""
    return pfimg.PfStore.open(tmp_path / "float-store", codec="float")


@pytest.fixture(params=["auto", "float"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> pfimg.PfStore:
    """Stores of both kinds: what they hold differs, what they push does not."""
    return pfimg.PfStore.open(tmp_path / "store", codec=request.param)


@pytest.fixture
def image(store: pfimg.PfStore, tmp_path: Path, kv_pages: KvPages) -> str:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "text").write_text(TEXT)
    cache = store.put_pages(kv_pages.meta, kv_pages.k, kv_pages.v)
    return pfimg.snapshot(store, agent="tester", fs_root=tmp_path / "work", cache=cache)


def everything(store: pfimg.PfStore, image: str) -> dict[str, bytes]:
    digests = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    return {digest: store.get(digest) for digest in digests}


def pages(store: pfimg.PfStore, image: str) -> set[str]:
    manifest = pfimg.PageManifest.from_json(store.get(store.get_manifest(image).cache.manifest))
    return {digest for page in manifest.pages for digest in (page.k, page.v)}


def blobs(tree: Tree, suffix: str) -> dict[str, bytes]:
    """Contents of the frames with this suffix, by digest."""
    decode = _core.decode_frame if suffix == ".fpl" else zstandard.ZstdDecompressor().decompress
    paths = [PurePath(name) for name in tree.names("blobs/sha256/") if name.endswith(suffix)]
    found = {f"sha256:{path.stem}": decode(tree.read(str(path))) for path in paths}
    assert all(digest == f"sha256:{hashlib.sha256(content).hexdigest()}" for digest, content in found.items())
    return found


def features(description: bytes) -> list[str]:
    values: list[str] = json.loads(description)["features"]
    return sorted(values)


def test_float_frames_travel_when_asked_for(
    tree: Tree, store: pfimg.PfStore, floats: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    expected = everything(store, image)
    report = pfimg.push(store, image, tree.ref, codec="float")
    assert (report.ref, report.sent, report.skipped) == (f"{tree.ref}#default", len(expected), 0)
    assert set(blobs(tree, ".fpl")) == pages(store, image)
    assert blobs(tree, ".fpl") | blobs(tree, ".zst") == expected
    assert not blobs(tree, ".fpl").keys() & blobs(tree, ".zst").keys()
    assert features(tree.read("pfimg.json")) == ["codec:float", "names"]
    assert "manifest.json" not in tree.names()
    assert pfimg.exists(tree.ref)
    again = pfimg.push(store, image, tree.ref, codec="float")
    assert (again.sent, again.skipped) == (0, len(expected))

    for where in (tree.ref, report.ref):
        assert pfimg.pull(where, floats).image == image
    assert everything(floats, image) == expected
    assert set(floats.float_blobs(list(expected))) == pages(store, image)
    assert features((floats.root / "pfimg.json").read_bytes()) == ["codec:float"]
    assert floats.verify().ok
    # What arrived is what was sent.
    for digest in pages(store, image):
        assert floats.read_frame(digest) == tree.read(blob_name(digest, ".fpl"))
    # A store that was not asked for float frames gets none.
    assert pfimg.pull(tree.ref, other).image == image
    assert everything(other, image) == expected
    assert not (other.root / "pfimg.json").exists()
    assert list(other.root.rglob("*.fpl")) == []
    assert other.verify().ok


def test_many_are_looked_up_and_found_in_either_form(tree: Tree, store: pfimg.PfStore, floats: pfimg.PfStore) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=8, n_layers=2, n_heads=2, head_dim=64, dtype="bf16")
    values = np.random.default_rng(5).normal(size=(2, 90, meta.page_bytes // 2)).astype("<f4")
    k, v = ((side.view("<u4") >> 16).astype("<u2") for side in values)
    half = store.put_pages(meta, k[:45], v[:45])
    pfimg.push(store, pfimg.snapshot(store, agent="tester", cache=half), tree.ref)
    image = pfimg.snapshot(store, agent="tester", cache=store.put_pages(meta, k, v))
    pfimg.push(store, image, f"{tree.ref}#floats", codec="float")
    assert len(blobs(tree, ".fpl")) == 90
    lost = min(blobs(tree, ".fpl"))
    tree.replace(blob_name(lost, ".fpl"), None)
    assert pfimg.push(store, image, f"{tree.ref}#floats", codec="float").sent == 1
    assert pfimg.pull(f"{tree.ref}#floats", floats).image == image
    assert len(floats.float_blobs(list(everything(floats, image)))) == 90
    # For others what lies in float frames is there once more.
    assert pfimg.push(store, image, tree.ref).sent == 90
    assert blobs(tree, ".zst").keys() > blobs(tree, ".fpl").keys()


def test_an_image_that_others_read_stays_as_it_is(
    root: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str, kv_pages: KvPages
) -> None:
    first = pfimg.snapshot(store, agent="tester", cache=store.put_pages(kv_pages.meta, kv_pages.k[:1], kv_pages.v[:1]))
    pfimg.push(store, first, ref)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = pfimg.push(store, image, f"{ref}#floats", codec="float")
    assert report.ref == f"{ref}#floats"
    assert {path: path.read_bytes() for path in before} == before
    assert set(blobs(Directory(root), ".fpl")) == pages(store, image) - pages(store, first)
    assert pfimg.pull(ref, other).image == first
    assert pfimg.pull(report.ref, other).image == image
    assert everything(other, image) == everything(store, image)


def test_large_ones_travel_too(tree: Tree, store: pfimg.PfStore, floats: pfimg.PfStore, other: pfimg.PfStore) -> None:
    meta = pfimg.CacheMeta(page_size_tokens=16, n_layers=32, n_heads=16, head_dim=1024, dtype="bf16")
    values = np.random.default_rng(6).normal(size=(1, meta.page_bytes // 2)).astype("<f4")
    page = (values.view("<u4") >> 16).astype("<u2")
    image = pfimg.snapshot(store, agent="tester", cache=store.put_pages(meta, page, page))
    pfimg.push(store, image, tree.ref, codec="float")
    [(digest, content)] = blobs(tree, ".fpl").items()
    assert len(tree.read(blob_name(digest, ".fpl"))) > 8 << 20  # what is larger is fetched in pieces
    for there, found in ((floats, [digest]), (other, [])):
        assert pfimg.pull(tree.ref, there).image == image
        assert there.get(digest) == content == page.tobytes()
        assert there.float_blobs([digest]) == found


def test_what_others_are_to_read_is_copied_for_them(tree: Tree, store: pfimg.PfStore, floats: pfimg.PfStore, image: str) -> None:
    expected = everything(store, image)
    pfimg.push(store, image, tree.ref, codec="float")
    report = pfimg.push(store, image, tree.ref)
    assert (report.ref, report.sent) == (tree.ref, len(pages(store, image)))
    assert blobs(tree, ".zst") == expected
    assert set(blobs(tree, ".fpl")) == pages(store, image)
    assert hashlib.sha256(tree.read("manifest.json")).hexdigest() == image.removeprefix("sha256:")
    # Both copies are the blob, and the one that everybody reads is fetched.
    assert pfimg.pull(tree.ref, floats).image == image
    assert floats.float_blobs(list(expected)) == []
    # The other way round nothing is left to do.
    assert pfimg.push(store, image, tree.ref, codec="float").sent == 0


def test_copies_pass_float_frames_on_when_asked_to(
    tmp_path: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    expected = everything(store, image)
    pfimg.push(store, image, ref, codec="float")
    for codec, name in ((None, "plain"), ("float", "floats")):
        report = pfimg.copy(ref, f"file://{tmp_path}/{name}", codec=codec)
        assert report.sent == len(expected)
        assert report.ref == f"file://{tmp_path}/{name}" + "#default" * (codec == "float")
    assert blobs(Directory(tmp_path / "plain"), ".zst") == expected
    assert not (tmp_path / "plain" / "pfimg.json").exists()
    assert set(blobs(Directory(tmp_path / "floats"), ".fpl")) == pages(store, image)
    assert pfimg.pull(f"file://{tmp_path}/floats", other).image == image
    assert everything(other, image) == expected


@pytest.mark.parametrize("codec", ["auto", "float"])
def test_what_is_damaged_or_lost_is_noticed(tree: Tree, store: pfimg.PfStore, image: str, tmp_path: Path, codec: str) -> None:
    other = pfimg.PfStore.open(tmp_path / "other", codec=codec)
    pfimg.push(store, image, tree.ref, codec="float")
    digest = min(blobs(tree, ".fpl"))
    name = blob_name(digest, ".fpl")
    good = tree.read(name)
    tree.replace(name, good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    with pytest.raises(pfimg.IntegrityError, match=digest):
        pfimg.pull(tree.ref, other)
    tree.replace(name, None)
    with pytest.raises(pfimg.BlobNotFound, match=digest):
        pfimg.pull(tree.ref, other)
    assert list(other.images()) == []
    assert not other.has(digest)
    pfimg.push(store, image, tree.ref, codec="float")
    assert tree.read(name) == good
    assert pfimg.pull(tree.ref, other).image == image
    assert other.verify().ok


def test_a_store_is_repaired_from_float_frames(tree: Tree, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, tree.ref, codec="float")
    lost = sorted(pages(store, image))[:3]
    for digest in lost:
        path = store.blob_path(digest)
        assert path is not None
        path.unlink()
    report = store.verify(repair_from=tree.ref)
    assert report.ok
    assert list(report.repaired) == lost


def test_what_keeps_no_float_frames_says_so(place: Adapter, store: pfimg.PfStore, image: str, tmp_path: Path) -> None:
    ref = f"file://{tmp_path}/elsewhere"
    keeps = place.ref.startswith(("file:", "s3:", "az:"))
    for layout in ("packed", "reference") if keeps else ("auto", "packed", "reference"):
        with pytest.raises(pfimg.RegistryError, match=f"{place.ref}: only directories and buckets keep float frames") as caught:
            pfimg.push(store, image, place.ref, codec="float", layout=layout)
        assert caught.value.code == "not_offered"
    pfimg.push(store, image, ref)
    if not keeps:
        with pytest.raises(pfimg.RegistryError, match="only directories and buckets"):
            pfimg.copy(ref, place.ref, codec="float")
    assert place.blobs() == {}


def test_a_web_server_shows_them(
    web_server: Callable[[Path], str], root: Path, ref: str, store: pfimg.PfStore, floats: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, ref, codec="float")
    address = web_server(root)
    assert pfimg.pull(address, floats).image == image
    assert everything(floats, image) == everything(store, image)
    assert set(floats.float_blobs(list(everything(store, image)))) == pages(store, image)
    lost = min(pages(store, image))
    path = floats.blob_path(lost)
    assert path is not None
    path.unlink()
    assert floats.verify(repair_from=address).repaired == (lost,)


def test_a_repository_of_the_hub_shows_them(
    hub: Hub, root: Path, ref: str, store: pfimg.PfStore, floats: pfimg.PfStore, image: str
) -> None:
    """As somebody has put it there who uploads a directory."""
    pfimg.push(store, image, ref, codec="float")
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    hub.write("tester/floats", files)
    assert pfimg.pull("hf://tester/floats", floats).image == image
    assert everything(floats, image) == everything(store, image)
    assert set(floats.float_blobs(list(everything(store, image)))) == pages(store, image)


def test_into_other_blob_stores_they_are_decoded(ref: str, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, ref, codec="float")
    memory = pfimg.MemoryStore()
    there = pfimg.PfStore.with_blobstore(store.root.parent / "elsewhere", memory)
    assert pfimg.pull(ref, there).image == image
    assert {digest: memory.get(digest) for digest in everything(store, image)} == everything(store, image)
    k = there.get_pages(image)[0]
    assert np.asarray(k).tobytes() == store.get_pages(image)[0].tobytes()
    # And what comes from there is what everybody reads.
    pfimg.push(there, image, f"file://{store.root.parent}/plain")
    assert blobs(Directory(store.root.parent / "plain"), ".zst") == everything(store, image)

"""Packs in real registries: what travels, what a fork sends, and what happens when a pack is lost, cut or lied about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.registries.conftest import META, bucket
from tests.registries.hf_places import HfPlace
from tests.registries.test_contract import assert_nothing_is_visible, everything

import pfimg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.registries.s3_places import BucketPlace


class Tree:
    """A place in the tree layout, as a test looks into it."""

    def __init__(self, ref: str) -> None:
        self.ref = ref

    def names(self) -> set[str]:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def replace(self, name: str, content: bytes | None) -> None:
        raise NotImplementedError

    def packs(self) -> dict[str, bytes]:
        return {name: self.read(name) for name in self.names() if name.endswith(".pack")}


class Directory(Tree):
    def __init__(self, root: Path) -> None:
        super().__init__(f"file://{root}")
        self.root = root

    def names(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def replace(self, name: str, content: bytes | None) -> None:
        (self.root / name).unlink()
        if content is not None:
            (self.root / name).write_bytes(content)


class Bucket(Tree):
    def __init__(self, place: BucketPlace) -> None:
        super().__init__(place.ref)
        self.place = place

    def names(self) -> set[str]:
        return set(self.place.names())

    def read(self, name: str) -> bytes:
        return self.place.read(name)

    def replace(self, name: str, content: bytes | None) -> None:
        self.place.replace(name, content)


class Dataset(Tree):
    def __init__(self, place: HfPlace) -> None:
        super().__init__(place.ref)
        self.place = place

    def names(self) -> set[str]:
        return set(self.place.files())

    def read(self, name: str) -> bytes:
        return self.place.files()[name]

    def replace(self, name: str, content: bytes | None) -> None:
        self.place.replace(name, content)


@pytest.fixture(
    params=[
        "directory",
        "hub",
        pytest.param("minio", marks=pytest.mark.server("minio")),
        pytest.param("versitygw", marks=pytest.mark.server("versitygw")),
    ]
)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    if request.param == "directory":
        return Directory(tmp_path / "registry")
    if request.param == "hub":
        return Dataset(HfPlace(request.getfixturevalue("hub")))
    return Bucket(bucket(request, request.param))  # type: ignore[arg-type]


@pytest.fixture
def large(tmp_path: Path, store: pfimg.PfStore) -> str:
    """An image with a blob that is larger than what is kept in memory."""
    root = tmp_path / "large"
    root.mkdir()
    (root / "file").write_bytes(b"".join(at.to_bytes(4, "big") for at in range(6 << 20)))
    return pfimg.snapshot(store, agent="tester", fs_root=root)


def test_an_image_is_packed_under_a_name(tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    sent = pfimg.push(store, image, tree.ref, layout="packed")
    blobs = everything(store, image)
    assert (sent.ref, sent.sent, sent.skipped) == (f"{tree.ref}#default", len(blobs), 0)
    names = tree.names()
    assert {name.partition("/")[0] for name in names} == {"packs", "pfimg", "pfimg.json"}
    description = json.loads(tree.read("pfimg.json"))
    assert description == {"pfimg": 1, "digest": "sha256", "features": ["names", "packs"]}
    document = json.loads(tree.read("pfimg/images/default.json"))
    assert {f"packs/{name}.pack" for name in document["packs"]} == tree.packs().keys()
    frames = b"".join(tree.packs().values())
    assert len(frames) == sent.bytes_sent == sum(len(store.read_frame(digest)) for digest in blobs)

    assert pfimg.exists(tree.ref)
    got = pfimg.pull(tree.ref, other)
    assert (got.image, got.fetched, got.bytes_fetched) == (image, len(blobs), len(frames))
    assert everything(other, image) == blobs
    again = pfimg.push(store, image, tree.ref, layout="packed")
    assert (again.sent, again.skipped, tree.names()) == (0, len(blobs), names)


def test_a_fork_sends_packs_with_new_blobs_only(
    tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    parent = make_image(0, pages=20)
    fork = make_image(1, pages=20, parents=[parent])
    pfimg.push(store, parent, f"{tree.ref}#parent", layout="packed")
    before = tree.packs()
    sent = pfimg.push(store, fork, f"{tree.ref}#fork", layout="packed")
    assert sent.sent == len(everything(store, fork).keys() - everything(store, parent).keys())
    added = {name: content for name, content in tree.packs().items() if name not in before}
    assert sum(map(len, added.values())) == sent.bytes_sent
    document = json.loads(tree.read("pfimg/images/fork.json"))
    assert len(document["packs"]) == len(before) + len(added)
    for name, image in (("parent", parent), ("fork", fork)):
        pfimg.pull(f"{tree.ref}#{name}", other)
        assert everything(other, image) == everything(store, image)
    assert other.verify().ok


def test_some_pages_come_out_of_packs(
    tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    image = make_image(pages=300)
    pfimg.push(store, image, tree.ref, layout="packed")
    got = pfimg.pull(tree.ref, other, layers=["cache"], ixs=[3, 299])
    assert got.fetched == 1 + 4
    k, _ = other.get_pages(image, ixs=[3])
    assert bytes(k) == (3).to_bytes(2, "big") * (META.page_bytes // 2)
    pfimg.pull(tree.ref, other)
    assert everything(other, image) == everything(store, image)


def test_large_blobs_travel_in_packs(tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, large: str) -> None:
    pfimg.push(store, large, tree.ref, layout="packed", codec="store")
    assert max(map(len, tree.packs().values())) > 24 << 20
    pfimg.pull(tree.ref, other)
    assert everything(other, large) == everything(store, large)


def test_the_unnamed_image_is_left_alone(
    tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, tree.ref)
    pair = tree.read("manifest.json"), tree.read("manifest.json.sig")
    assert pfimg.push(store, second, tree.ref, layout="packed").ref == f"{tree.ref}#default"
    assert (tree.read("manifest.json"), tree.read("manifest.json.sig")) == pair
    assert pfimg.pull(tree.ref, other).image == first
    assert pfimg.pull(f"{tree.ref}#default", other).image == second


def test_a_pack_that_is_lost_is_named_and_sent_again(tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, tree.ref, layout="packed")
    (pack,) = tree.packs()
    for name in (pack, pack.replace(".pack", ".idx")):
        content = tree.read(name)
        tree.replace(name, None)
        with pytest.raises(pfimg.BlobNotFound, match=name.partition("/")[2]):
            pfimg.pull(tree.ref, other)
        assert_nothing_is_visible(other)
        assert pfimg.push(store, image, tree.ref, layout="packed").sent == len(everything(store, image))
        assert tree.read(name) == content
    pfimg.pull(tree.ref, other)
    assert everything(other, image) == everything(store, image)


def test_a_pack_that_is_damaged_is_noticed(tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, tree.ref, layout="packed")
    ((name, content),) = tree.packs().items()
    tree.replace(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(pfimg.IntegrityError):
        pfimg.pull(tree.ref, other)
    tree.replace(name, content[:-1])
    with pytest.raises((pfimg.BackendError, pfimg.IntegrityError)):
        pfimg.pull(tree.ref, other)
    assert_nothing_is_visible(other)
    tree.replace(name, content)
    pfimg.pull(tree.ref, other)


def test_an_index_that_lies_is_noticed(tree: Tree, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, tree.ref, layout="packed")
    (pack,) = tree.packs()
    name = pack.replace(".pack", ".idx")
    sound = tree.read(name)
    end = len(sound) - 40
    lies = {
        "two names exchanged": sound[: end - 40]
        + sound[end : end + 32]
        + sound[end - 8 : end]
        + sound[end - 40 : end - 8]
        + sound[-8:],
        "a length": sound[:-8] + (1).to_bytes(8, "little"),
        "far too long": sound[:-8] + (1 << 40).to_bytes(8, "little"),
        "another pack": sound[:12] + bytes(32) + sound[44:],
        "cut": sound[:-1],
        "nothing": b"{}",
    }
    for content in lies.values():
        tree.replace(name, content)
        with pytest.raises((pfimg.StoreError, pfimg.BackendError)):
            pfimg.pull(tree.ref, other)
        assert_nothing_is_visible(other)
    tree.replace(name, sound)
    pfimg.pull(tree.ref, other)
    assert everything(other, image) == everything(store, image)


@pytest.mark.parametrize("packs", [["../../manifest"], ["x" * 64], [7], "abc", {"a": 1}])
def test_a_document_that_names_no_packs_is_refused(tmp_path: Path, store: pfimg.PfStore, image: str, packs: object) -> None:
    ref = pfimg.push(store, image, f"file://{tmp_path}/registry", layout="packed").ref
    path = tmp_path / "registry" / "pfimg" / "images" / "default.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"packs": packs}))
    with pytest.raises(pfimg.FormatError):
        pfimg.pull(ref, store)


def test_a_damaged_store_is_healed_out_of_packs(tree: Tree, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, tree.ref, layout="packed")
    expected = everything(store, image)
    for digest in list(expected)[::2]:
        path = store.blob_path(digest)
        assert path is not None
        path.unlink()
    assert store.verify(repair_from=f"{tree.ref}#default").ok
    assert everything(store, image) == expected


def test_a_packed_image_is_copied_into_the_published_layout_and_back(
    tree: Tree, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, tree.ref, layout="packed")
    blobs = everything(store, image)
    plain = f"file://{tmp_path}/plain"
    assert pfimg.copy(tree.ref, plain).sent == len(blobs)
    assert (tmp_path / "plain" / "manifest.json").exists()
    assert pfimg.copy(plain, f"{tree.ref}#again", layout="packed").sent == 0
    pfimg.pull(plain, other)
    assert everything(other, image) == blobs

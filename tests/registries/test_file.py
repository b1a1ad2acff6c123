"""The directory registry: its layout, named images, BLAKE3, and what a file system can do to it."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.registries.hf_places import HfPlace
from tests.registries.ipfs_places import IpfsPlace
from tests.registries.oci_places import OciPlace
from tests.registries.programs import needs_reference
from tests.registries.s3_places import BucketPlace, point_to

import pfimg
from pfimg.keys import SigningKey
from pfimg.registries import FileRegistry, FileTransport
from pfimg.signing import PUBLIC_KEY, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hub import Hub
    from tests.servers import Kubo, OciServer, S3Server

KEY = "PF_FILE_REG_SIGN_KEY"


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def blob_files(store: pfimg.PfStore, image: str) -> set[str]:
    digests = pfimg.transitive_blob_digests(store.get_manifest(image), store)
    return {f"blobs/{alg}/{hex_[:2]}/{hex_}.zst" for alg, hex_ in (digest.split(":") for digest in digests)}


def test_the_layout_is_that_of_the_format(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    assert pfimg.push(store, image, ref).ref == ref
    assert files(root) == blob_files(store, image) | {"manifest.json", "manifest.json.sig"}
    manifest = store.get_manifest(image).to_json()
    assert (root / "manifest.json").read_bytes() == manifest
    assert (root / "manifest.json.sig").read_bytes() == sign(manifest, PUBLIC_KEY)


def test_stored_frames_are_sent_as_they_are(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, ref)
    for name in blob_files(store, image):
        assert (root / name).read_bytes() == (store.root / name).read_bytes()
        assert (root / name).stat().st_ino != (store.root / name).stat().st_ino


def test_others_may_read_what_was_pushed(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    before = os.umask(0o022)
    try:
        pfimg.push(store, image, f"{ref}#name")
        pfimg.push(store, image, ref)
    finally:
        os.umask(before)
    for name in files(root):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o644, name


def test_looking_creates_nothing(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    assert not pfimg.exists(ref)
    assert not pfimg.exists(f"{ref}#name")
    with pytest.raises(FileNotFoundError) as caught:
        pfimg.pull(ref, store)
    assert caught.value.filename == str(root / "manifest.json")
    assert store.verify(repair_from=ref).ok
    assert store.blob_path(image) is not None
    Path(str(store.blob_path(image))).unlink()
    store.verify(repair_from=ref)
    assert not root.exists()


def test_a_file_where_the_directory_should_be(tmp_path: Path, store: pfimg.PfStore, image: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    ref = f"file://{tmp_path}/file"
    assert not pfimg.exists(ref)
    with pytest.raises(FileNotFoundError):
        pfimg.pull(ref, store)
    with pytest.raises((FileExistsError, NotADirectoryError)):
        pfimg.push(store, image, ref)


@contextmanager
def nobody() -> Iterator[None]:
    """Root may do everything, so it becomes somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_may_not_look_is_told_so(tmp_path: Path, root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, ref)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == root.owner() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    root.chmod(0)
    try:
        with nobody(), pytest.raises(PermissionError):
            pfimg.exists(ref)
        with nobody(), pytest.raises(PermissionError):
            FileTransport(pfimg.FileRef(root)).read_manifest(pfimg.FileRef(root))
        with nobody(), pytest.raises(PermissionError):
            FileTransport(pfimg.FileRef(root)).missing([image])
    finally:
        root.chmod(0o755)


def test_the_variable_signs_and_is_a_policy(
    ref: str, root: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pfimg.push(store, image, ref)
    monkeypatch.setenv(KEY, "ours")
    with pytest.raises(pfimg.SignatureError, match="proves nothing"):
        pfimg.pull(ref, other)
    assert pfimg.pull(ref, other, trust="self-signed").signature == "self-signed"
    pfimg.push(store, image, ref)
    assert (root / "manifest.json.sig").read_bytes() == sign((root / "manifest.json").read_bytes(), SigningKey.from_text("ours"))
    assert pfimg.pull(ref, other).signature == "verified"
    monkeypatch.setenv(KEY, "theirs")
    with pytest.raises(pfimg.SignatureError, match="not trusted"):
        pfimg.pull(ref, other)
    monkeypatch.setenv(KEY, "")
    for act in (lambda: pfimg.pull(ref, other), lambda: pfimg.push(store, image, ref)):
        with pytest.raises(pfimg.SignatureError, match=f"{KEY} is set, but empty"):
            act()


def test_a_registry_with_a_key(ref: str, tmp_path: Path, store: pfimg.PfStore, other: pfimg.PfStore, image: str) -> None:
    (tmp_path / "key").write_text("ours")
    plain = FileRegistry()
    keyed = plain.with_sign_key(tmp_path / "key")
    keyed.push(ref, store.get_manifest(image), store)
    assert keyed.exists(ref)
    with pytest.raises(pfimg.SignatureError):
        plain.pull(ref, other)
    report = FileRegistry(sign_key=SigningKey.from_text("ours")).pull(ref, other)
    assert (report.image, report.signature) == (image, "verified")


def test_a_reference_for_another_registry_is_refused(store: pfimg.PfStore, image: str) -> None:
    with pytest.raises(pfimg.BadRef, match=r"s3://bucket/x is for another registry than <FileRegistry for file://>"):
        FileRegistry().push("s3://bucket/x", store.get_manifest(image), store)
    with pytest.raises(pfimg.BadRef):
        FileRegistry().exists("/srv/images")


def test_a_named_image_is_one_document_and_leaves_the_unnamed_one_alone(
    root: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second, third = (make_image(version) for version in range(3))
    pfimg.push(store, first, ref)
    before = (root / "manifest.json").read_bytes(), (root / "manifest.json.sig").read_bytes()
    assert not pfimg.exists(f"{ref}#v2")
    assert pfimg.push(store, second, f"{ref}#v2").ref == f"{ref}#v2"
    pfimg.push(store, third, f"{ref}#v3.x_y-z")
    assert ((root / "manifest.json").read_bytes(), (root / "manifest.json.sig").read_bytes()) == before
    assert json.loads((root / "pfimg.json").read_bytes()) == {"pfimg": 1, "digest": "sha256", "features": ["names"]}
    manifest = store.get_manifest(second).to_json()
    document = json.loads((root / "pfimg/images/v2.json").read_bytes())
    assert document == {"pfimg": 1, "manifest": manifest.decode(), "signature": sign(manifest, PUBLIC_KEY).decode()}
    assert pfimg.exists(f"{ref}#v2")
    for name, image in (("", first), ("#v2", second), ("#v3.x_y-z", third)):
        assert pfimg.pull(ref + name, other).image == image
    pfimg.push(store, third, f"{ref}#v2")
    assert pfimg.pull(f"{ref}#v2", other).image == third
    assert files(root / "blobs") == {
        name.removeprefix("blobs/") for image in (first, second, third) for name in blob_files(store, image)
    }


def test_without_an_unnamed_image_the_default_one_is_meant(
    ref: str, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, f"{ref}#default")
    assert pfimg.exists(ref)
    assert pfimg.pull(ref, other).image == first
    pfimg.push(store, second, ref)
    assert pfimg.pull(ref, other).image == second
    assert pfimg.pull(f"{ref}#default", other).image == first


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"pfimg":1}',
        b'{"pfimg":1,"manifest":1,"signature":""}',
        b'{"pfimg":1,"manifest":"\\ud800","signature":""}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_named_image_is_named(root: Path, ref: str, store: pfimg.PfStore, image: str, document: bytes) -> None:
    pfimg.push(store, image, f"{ref}#name")
    (root / "pfimg/images/name.json").write_bytes(document)
    with pytest.raises(pfimg.FormatError, match=r"name\.json: it is not the document of a named image") as caught:
        pfimg.pull(f"{ref}#name", store)
    assert caught.value.path == str(root / "pfimg/images/name.json")


def test_unknown_versions_and_features_are_refused(root: Path, ref: str, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, f"{ref}#name")
    named = root / "pfimg/images/name.json"
    named.write_bytes(named.read_bytes().replace(b'"pfimg":1', b'"pfimg":2'))
    with pytest.raises(pfimg.FormatError, match="version 2 is not known"):
        pfimg.pull(f"{ref}#name", store)
    for changes, name in (({"pfimg": 2}, "2"), ({"features": ["names", "antigravity"]}, "antigravity")):
        (root / "pfimg.json").write_text(json.dumps({"pfimg": 1, "digest": "sha256", "features": []} | changes))
        for act in (lambda: pfimg.pull(ref, store), lambda: pfimg.push(store, image, ref)):
            with pytest.raises(pfimg.FormatError, match=name):
                act()


def test_a_blake3_image_goes_only_where_the_directory_says_so_and_under_a_name(
    root: Path, ref: str, tmp_path: Path, image: str, store: pfimg.PfStore
) -> None:
    source = pfimg.PfStore.open(tmp_path / "source", digest="blake3")
    blake3 = pfimg.snapshot(source, agent="tester", messages=[{"role": "user", "content": "hi"}])
    assert blake3.startswith("blake3:")
    with pytest.raises(pfimg.FormatError, match="whose digests are sha256"):
        pfimg.push(source, blake3, ref)
    assert not root.exists()

    pfimg.PfStore.open(root, digest="blake3")
    assert pfimg.push(source, blake3, ref).ref == f"{ref}#default"
    assert {name for name in files(root) if not name.startswith("blobs/blake3/")} == {"pfimg.json", "pfimg/images/default.json"}
    assert json.loads((root / "pfimg.json").read_bytes()) == {"pfimg": 1, "digest": "blake3", "features": ["names"]}
    target = pfimg.PfStore.open(tmp_path / "target", digest="blake3")
    assert pfimg.pull(ref, target).image == blake3
    assert target.verify().ok
    assert pfimg.copy(ref, f"{ref}#again").sent == 0
    with pytest.raises(pfimg.FormatError, match="whose digests are blake3"):
        pfimg.push(store, image, ref)
    with pytest.raises(pfimg.FormatError):
        pfimg.pull(ref, store)
    assert [found for found, _ in store.images()] == [image]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sig"])
def test_a_pipe_in_place_of_a_file_does_not_hang(root: Path, ref: str, store: pfimg.PfStore, image: str, name: str) -> None:
    pfimg.push(store, image, ref)
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(pfimg.FormatError, match=f"{name} is not a file"):
        pfimg.pull(ref, store)


@pytest.mark.parametrize("suffix", [".pack", ".idx"])
def test_a_pipe_in_place_of_a_pack_does_not_hang(
    root: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, image: str, suffix: str
) -> None:
    packed = pfimg.push(store, image, ref, layout="packed").ref
    [path] = (root / "packs").glob(f"*{suffix}")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(pfimg.FormatError, match=f"{path.name} is not a file"):
        pfimg.pull(packed, other)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sig"])
def test_a_file_that_is_too_large_is_not_read(root: Path, ref: str, store: pfimg.PfStore, image: str, name: str) -> None:
    pfimg.push(store, image, ref)
    os.truncate(root / name, 1 << 40)
    with pytest.raises(pfimg.LimitExceeded, match=f"{name} is larger than 1,048,576 bytes") as caught:
        pfimg.pull(ref, store)
    assert caught.value.limit == 1 << 20


def test_a_write_that_fails_leaves_the_old_image(
    root: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, ref)
    pfimg.push(store, second, f"{ref}#second")  # so that only the manifest is left to write
    before = files(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # enough for a signature
    try:
        with pytest.raises(OSError, match="File too large"):
            pfimg.push(store, second, ref)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(root) == before
    assert pfimg.pull(ref, other).image == first


def test_a_pair_that_does_not_belong_together_is_refused_until_it_is_pushed_again(
    root: Path, ref: str, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    first, second = make_image(0), make_image(1)
    pfimg.push(store, first, ref)
    pfimg.push(store, second, f"{ref}#second")
    # As a kill between the two renames leaves it.
    (root / "manifest.json.sig").write_bytes(sign(store.get_manifest(second).to_json(), PUBLIC_KEY))
    with pytest.raises(pfimg.SignatureError, match="another manifest"):
        pfimg.pull(ref, other)
    pfimg.push(store, second, ref)
    assert pfimg.pull(ref, other).image == second


@pytest.mark.reference
@needs_reference
def test_the_reference_does_not_see_images_that_have_only_a_name(
    tmp_path: Path, ref: str, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    named, unnamed = make_image(0), make_image(1)
    pull: list[str | Path] = ["pf", "--store", tmp_path / "theirs", "pull", ref]
    pfimg.push(store, named, f"{ref}#default")
    done = subprocess.run(pull, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "manifest" in done.stderr
    pfimg.push(store, unnamed, ref)
    subprocess.run(pull, check=True, capture_output=True)
    assert [path.stem for path in (tmp_path / "theirs" / "images").iterdir()] == [unnamed.removeprefix("sha256:")]


WRITER = """
import sys, pfimg
store = pfimg.PfStore.open(sys.argv[1])
for image in sys.argv[3:] * 30:
    pfimg.push(store, image, sys.argv[2])
"""


def test_a_reader_beside_writers_gets_one_image_or_the_other(
    tmp_path: Path, ref: str, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    images = [make_image(0), make_image(1)]
    pfimg.push(store, images[0], ref)
    other = pfimg.PfStore.open(tmp_path / "other")
    pulls = 0
    with subprocess.Popen([sys.executable, "-c", WRITER, store.root, ref, *images]) as writer:
        while writer.poll() is None:
            assert pfimg.pull(ref, other).image in images
            pulls += 1
    assert writer.returncode == 0
    assert pulls > 0
    assert other.verify().ok


def test_an_image_that_has_been_everywhere_is_the_same_bytes(
    ref: str,
    store: pfimg.PfStore,
    image: str,
    minio: S3Server,
    distribution: OciServer,
    kubo: Kubo,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point_to(minio, monkeypatch)
    monkeypatch.setenv("IPFS_API", kubo.api)
    key = SigningKey.generate("ecdsa-p256-sha256")
    sent = pfimg.push(store, image, ref, sign=key)
    at, cids = ref, []
    bucket, repository, node, dataset = (
        BucketPlace(minio, minio.make_bucket()),
        OciPlace(distribution),
        IpfsPlace(kubo),
        HfPlace(hub),
    )
    for to in (bucket.ref, repository.ref, node.ref, dataset.ref, f"file://{tmp_path}/back"):
        at = pfimg.copy(at, to, trust=key.public_key).ref
        signed = pfimg.read_signature(at)
        first = pfimg.read_signature(ref)
        assert (signed.manifest, signed.document) == (first.manifest, first.document), at
        if at.startswith("ipfs:"):
            cids.append(at)
    back = tmp_path / "back"
    assert files(back) == blob_files(store, image) | {"manifest.json", "manifest.json.sig"}
    # On IPFS frames are the canonical ones, and so they stay.
    for digest in store.reachable(store.get_manifest(image)):
        [canonical] = store.encode_frames([digest], codec="store")
        algorithm, hex_ = digest.split(":")
        assert (back / f"blobs/{algorithm}/{hex_[:2]}/{hex_}.zst").read_bytes() == canonical, digest
    # The same image under the same signature has the same name there, wherever it comes from.
    cids += [pfimg.copy(source, "ipfs://", trust=key.public_key).ref for source in (ref, at)]
    assert len(cids) == 3
    assert len(set(cids)) == 1
    other = pfimg.PfStore.open(tmp_path / "other")
    assert pfimg.pull(at, other, trust=key.public_key).image == image
    assert other.verify().ok
    assert sent.sent == len(files(back)) - 2

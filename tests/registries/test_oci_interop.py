"""Images in registries of containers, in the hands of others: the reference command, and general tools for such registries."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.registries.oci_places import OciPlace, digest_of
from tests.registries.programs import needs_reference, needs_skopeo
from tests.registries.test_contract import everything

import pfimg

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import OciServer

COMMAND = shutil.which("pf")
SKOPEO = shutil.which("skopeo")
OWN_KEY = "fleet-key"


@pytest.fixture
def place(distribution: OciServer) -> OciPlace:
    return OciPlace(distribution)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "größe.txt").write_text("hello\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "empty").touch()
    (root / "link").symlink_to("run.sh")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pf(*arguments: str | Path) -> str:
    assert COMMAND is not None
    return subprocess.run([COMMAND, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def skopeo(*arguments: str | Path) -> bytes:
    assert SKOPEO is not None
    return subprocess.run([SKOPEO, *arguments], check=True, capture_output=True, timeout=60).stdout


def docker(ref: str) -> str:
    """As other tools call it."""
    name = ref.removeprefix("oci://")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


@needs_reference
@pytest.mark.reference
@pytest.mark.parametrize("key", [None, OWN_KEY])
def test_the_command_pulls_what_we_push(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Path, place: OciPlace, store: pfimg.PfStore, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_OCI_REG_SIGN_KEY", key)
    parent = pfimg.snapshot(store, agent="tester", fs_root=work)
    image = pfimg.snapshot(store, agent="tester", fs_root=work, parents=[parent], messages=[{"role": "user", "content": "hi"}])
    pfimg.push(store, image, place.ref, layout="reference")
    pf("--store", tmp_path / "theirs", "pull", place.ref)
    theirs = pfimg.PfStore.open(tmp_path / "theirs")
    assert everything(theirs, image) == everything(store, image)
    pf("--store", tmp_path / "theirs", "checkout", image, "--into", tmp_path / "out")
    (tmp_path / "out" / ".pfcid").unlink()  # the image's id, which the command leaves there
    assert contents(tmp_path / "out") == contents(work)


@needs_reference
@pytest.mark.reference
@pytest.mark.parametrize("key", [None, OWN_KEY])
def test_we_pull_what_the_command_pushes_and_push_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: Path, distribution: OciServer, store: pfimg.PfStore, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_OCI_REG_SIGN_KEY", key)
    theirs, ours = OciPlace(distribution, "v1"), OciPlace(distribution, "v1")
    image = pf("--store", tmp_path / "theirs", "snapshot", "--fs-root", work, "--allow-empty-engine-layers").split()[0]
    pf("--store", tmp_path / "theirs", "push", image, theirs.ref)
    report = pfimg.pull(theirs.ref, store)
    assert (report.image, report.signature) == (image, "self-signed" if key is None else "verified")
    pfimg.checkout(store, image, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(work)
    pfimg.push(store, image, ours.ref)
    assert ours.repository.manifest("v1") == theirs.repository.manifest("v1")
    assert pfimg.push(store, image, theirs.ref).sent == 0
    assert ours.repository.manifest("v1") == theirs.repository.manifest("v1")


@needs_reference
@pytest.mark.reference
def test_the_command_fails_on_packs_rather_than_take_an_image_without_its_blobs(
    tmp_path: Path, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    pfimg.push(store, image, place.ref, layout="packed")
    with pytest.raises(subprocess.CalledProcessError):
        pf("--store", tmp_path / "theirs", "pull", place.ref)
    assert list((tmp_path / "theirs").rglob("*.json")) == []


@needs_skopeo
@pytest.mark.parametrize("layout", ["reference", "packed"])
def test_skopeo_carries_images(
    distribution: OciServer, tmp_path: Path, place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str, layout: str
) -> None:
    pfimg.push(store, image, place.ref, layout=layout)
    content = place.repository.manifest("latest")
    assert content is not None
    assert skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{docker(place.ref)}") == content
    skopeo("copy", "--src-tls-verify=false", f"docker://{docker(place.ref)}", f"dir:{tmp_path}/carried")
    names = {path.name for path in (tmp_path / "carried").iterdir()}
    parts = [json.loads(content)["config"], *json.loads(content)["layers"]]
    assert {part["digest"].removeprefix("sha256:") for part in parts} <= names
    there = OciPlace(distribution, "carried")
    skopeo("copy", "--dest-tls-verify=false", f"dir:{tmp_path}/carried", f"docker://{docker(there.ref)}")
    assert there.repository.manifest("carried") == content
    assert pfimg.pull(there.ref, other).image == image
    assert everything(other, image) == everything(store, image)
    assert pfimg.pull(f"{there.ref}@{digest_of(content)}", other).image == image


def test_oras_gives_the_parts_of_a_packed_image_their_names(
    tmp_path: Path, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    from oras.client import OrasClient

    pfimg.push(store, image, place.ref, layout="packed")
    client = OrasClient(hostname=place.repository.server.registry, insecure=True)
    manifest = client.get_manifest(docker(place.ref))
    assert manifest["artifactType"] == "application/vnd.pfimg.image.v1"
    client.pull(target=docker(place.ref), outdir=str(tmp_path / "out"))
    found = contents(tmp_path / "out")
    assert found.pop("manifest.json") == store.get_manifest(image).to_json()
    assert json.loads(found.pop("manifest.json.sig"))["algorithm"] == "hmac-sha256"
    pfimg._core.PackIndex.from_bytes(found.pop("packs.idx"))
    ((name, pack),) = found.items()
    assert name == f"packs/{hashlib.sha256(pack).hexdigest()}.pack"
    assert pack == b"".join(store.read_frame(digest) for digest in store.reachable(store.get_manifest(image)))
    assert client.get_tags(docker(place.ref)) == ["latest"]


def test_oras_reads_single_layers(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    from oras.client import OrasClient

    pfimg.push(store, image, place.ref)
    client = OrasClient(hostname=place.repository.server.registry, insecure=True)
    manifest = client.get_manifest(docker(place.ref))
    frames = [client.get_blob(docker(place.ref), layer["digest"]).content for layer in manifest["layers"][1:]]
    assert frames == [store.read_frame(digest) for digest in store.reachable(store.get_manifest(image))]

"""File registries of the reference: golden directories that it wrote, and the command itself where it is installed."""

import hashlib
import hmac
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.registries.programs import needs_reference

import pfimg

Listing = dict[str, tuple[str, int, bytes]]
GOLDEN = Path(__file__).parent / "registry"
PUBLIC_KEY = "processfork-default-self-sign-key.v1"
OWN_KEY = "golden-key"
COMMAND = shutil.which("pf")


def url(directory: Path) -> str:
    return f"file://{directory}"


def image_of(registry: Path) -> str:
    return "sha256:" + hashlib.sha256((registry / "manifest.json").read_bytes()).hexdigest()


def names(registry: Path) -> set[str]:
    return {path.relative_to(registry).as_posix() for path in registry.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PF_FILE_REG_SIGN_KEY", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path / "store")


def test_an_image_of_the_reference_is_pulled_and_checked_out(
    tmp_path: Path, store: pfimg.PfStore, listing: Callable[[Path], Listing]
) -> None:
    report = pfimg.pull(url(GOLDEN / "default-key"), store)
    assert report.image == image_of(GOLDEN / "default-key")
    assert report.signature == "self-signed"
    pfimg.checkout(store, report.image, tmp_path / "out")
    assert listing(tmp_path / "out") == {
        "hello.txt": ("file", 0o644, b"hello\n"),
        "run.sh": ("file", 0o755, b"#!/bin/sh\necho hi\n"),
        "größe.txt": ("file", 0o644, b"umlaut\n"),
        "a": ("dir", 0o755, b""),
        "a/b": ("file", 0o644, b"1\n"),
        "a-b": ("file", 0o644, b"2\n"),
        "a.b": ("file", 0o600, b"3\n"),
        "empty": ("file", 0o644, b""),
        "a b": ("dir", 0o755, b""),
        "a b/deep": ("dir", 0o755, b""),
        "a b/deep/x": ("file", 0o644, b"x" * 5000),
        "link": ("symlink", 0, b"a/b"),
    }


@pytest.mark.parametrize(("registry", "key"), [("default-key", None), ("own-key", OWN_KEY)])
def test_the_manifest_of_the_reference_stays_byte_for_byte(
    store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch, registry: str, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    raw = (GOLDEN / registry / "manifest.json").read_bytes()
    assert pfimg.Manifest.from_json(raw).to_json() == raw
    image = pfimg.pull(url(GOLDEN / registry), store).image
    assert store.get(image) == store.get_manifest(image).to_json() == raw
    assert (store.root / "images" / f"{image.removeprefix('sha256:')}.json").read_bytes() == raw


def test_an_own_key_is_verified(store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", OWN_KEY)
    report = pfimg.pull(url(GOLDEN / "own-key"), store)
    assert report.image == image_of(GOLDEN / "own-key")
    assert report.signature == "verified"


@pytest.mark.parametrize(
    ("registry", "key"), [("own-key", None), ("own-key", "another"), ("own-key", PUBLIC_KEY), ("default-key", OWN_KEY)]
)
def test_a_signature_by_another_key_is_refused(
    store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch, registry: str, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    with pytest.raises(pfimg.SignatureError):
        pfimg.pull(url(GOLDEN / registry), store)
    assert list(store.images()) == []


@pytest.mark.parametrize(("registry", "key"), [("default-key", None), ("own-key", OWN_KEY)])
def test_what_we_push_is_what_the_reference_pushed(
    tmp_path: Path, store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch, registry: str, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    image = pfimg.pull(url(GOLDEN / registry), store).image
    pfimg.push(store, image, url(tmp_path / "copy"))
    assert names(tmp_path / "copy") == names(GOLDEN / registry)
    for name in ("manifest.json", "manifest.json.sig"):
        assert (tmp_path / "copy" / name).read_bytes() == (GOLDEN / registry / name).read_bytes()
    # Frames may be encoded in another way; stored ones that were pulled are passed on as they arrived.
    for name in names(GOLDEN / registry):
        assert (tmp_path / "copy" / name).read_bytes() == (GOLDEN / registry / name).read_bytes()


@pytest.mark.parametrize("key", [None, OWN_KEY, "schlüssel"])
def test_signatures_are_as_the_format_says(
    tmp_path: Path, store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    image = pfimg.snapshot(store, agent="tester")
    pfimg.push(store, image, url(tmp_path / "registry"))
    manifest = (tmp_path / "registry" / "manifest.json").read_bytes()
    expected = {
        "algorithm": "hmac-sha256",
        "manifest_digest": hashlib.sha256(manifest).hexdigest(),
        "signature": hmac.new((key or PUBLIC_KEY).encode(), manifest, hashlib.sha256).hexdigest(),
    }
    assert (tmp_path / "registry" / "manifest.json.sig").read_text() == json.dumps(expected, separators=(",", ":"))


def test_an_empty_key_is_an_error(store: pfimg.PfStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "")
    with pytest.raises(pfimg.PfimgError, match="PF_FILE_REG_SIGN_KEY"):
        pfimg.pull(url(GOLDEN / "default-key"), store)


def pf(*arguments: str | Path) -> str:
    assert COMMAND is not None
    return subprocess.run([COMMAND, *arguments], check=True, capture_output=True, text=True).stdout


@needs_reference
@pytest.mark.reference
@pytest.mark.parametrize("key", [None, OWN_KEY])
def test_the_command_pulls_what_we_push(
    tmp_path: Path,
    odd_names: Path,
    store: pfimg.PfStore,
    monkeypatch: pytest.MonkeyPatch,
    listing: Callable[[Path], Listing],
    key: str | None,
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    parent = pfimg.snapshot(store, agent="tester", fs_root=odd_names, messages=[{"role": "user", "content": "hi"}])
    image = pfimg.snapshot(store, agent="tester", fs_root=odd_names, parents=[parent], effects=[{"tool_id": "ls"}])
    pfimg.push(store, image, url(tmp_path / "registry"))
    pf("--store", tmp_path / "theirs", "pull", url(tmp_path / "registry"))
    assert (tmp_path / "theirs" / "images" / f"{image.removeprefix('sha256:')}.json").exists()
    pf("--store", tmp_path / "theirs", "checkout", image, "--into", tmp_path / "out")
    # The command leaves the image's id in a file of its own.
    (tmp_path / "out" / ".pfcid").unlink()
    assert listing(tmp_path / "out") == listing(odd_names)
    pf("--store", tmp_path / "theirs", "verify")


@needs_reference
@pytest.mark.reference
def test_the_command_does_not_take_an_image_that_it_could_not_read(tmp_path: Path, kv_pages: Any) -> None:
    store = pfimg.PfStore.open(tmp_path / "store", codec="float")
    image = pfimg.snapshot(store, agent="tester", cache=store.put_pages(kv_pages.meta, kv_pages.k[:2], kv_pages.v[:2]))
    pfimg.push(store, image, url(tmp_path / "registry"), codec="float")
    assert list((tmp_path / "registry").rglob("*.fpl"))
    with pytest.raises(subprocess.CalledProcessError):
        pf("--store", tmp_path / "theirs", "pull", url(tmp_path / "registry"))
    assert list((tmp_path / "theirs").rglob("*.json")) == []
    # Once it can be read in full, it is.
    pfimg.push(store, image, url(tmp_path / "registry"))
    pf("--store", tmp_path / "theirs", "pull", url(tmp_path / "registry"))
    pf("--store", tmp_path / "theirs", "verify")


@needs_reference
@pytest.mark.reference
@pytest.mark.parametrize("key", [None, OWN_KEY])
def test_we_pull_what_the_command_pushes(
    tmp_path: Path,
    odd_names: Path,
    store: pfimg.PfStore,
    monkeypatch: pytest.MonkeyPatch,
    listing: Callable[[Path], Listing],
    key: str | None,
) -> None:
    if key is not None:
        monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", key)
    image = pf("--store", tmp_path / "theirs", "snapshot", "--fs-root", odd_names, "--allow-empty-engine-layers").split()[0]
    pf("--store", tmp_path / "theirs", "push", image, url(tmp_path / "registry"))
    report = pfimg.pull(url(tmp_path / "registry"), store)
    assert report.image == image
    assert report.signature == ("self-signed" if key is None else "verified")
    pfimg.checkout(store, image, tmp_path / "out")
    assert listing(tmp_path / "out") == listing(odd_names)

"""Signatures as others check and make them: by cosign itself, which reaches no network here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64decode
from typing import TYPE_CHECKING

import pytest
from tests.registries.oci_places import OciPlace, digest_of

import pfimg
from pfimg.keys import PublicKey, SigningKey, read_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers import OciServer

    Cosign = Callable[..., subprocess.CompletedProcess[str]]

ALGORITHMS = ("ed25519", "ecdsa-p256-sha256")
# A root of trust that trusts nobody, for the key is given.
TRUSTED_ROOT = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}


@pytest.fixture
def run(cosign: Path, tmp_path: Path) -> Cosign:
    """Cosign, without a home, and with proxies that lead nowhere: whatever asks the network fails."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = os.environ | nowhere | {"HOME": str(tmp_path), "TUF_ROOT": str(tmp_path / "tuf"), "COSIGN_PASSWORD": "correct horse"}

    def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([cosign, *args], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    return call


def save(ref: str, directory: Path) -> tuple[Path, Path]:
    """Manifest and signature as the command writes them."""
    command = [sys.executable, "-m", "pfimg", "signature", ref, "--save", str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return directory / "manifest.json", directory / "manifest.json.b64"


@pytest.fixture(params=ALGORITHMS)
def key(request: pytest.FixtureRequest, tmp_path: Path) -> SigningKey:
    made = SigningKey.generate(request.param)
    made.save(tmp_path / "key")
    SigningKey.generate(request.param).save(tmp_path / "other")
    return made


def test_cosign_accepts_what_was_signed_and_nothing_else(
    run: Cosign, store: pfimg.PfStore, image: str, tmp_path: Path, key: SigningKey
) -> None:
    ref = pfimg.push(store, image, f"file://{tmp_path}/registry", sign=key).ref
    manifest, signature = save(ref, tmp_path / "saved")

    def checked(by: str) -> subprocess.CompletedProcess[str]:
        options = ["--insecure-ignore-tlog=true", "--key", tmp_path / f"{by}.pub", "--signature", signature]
        return run("verify-blob", *options, manifest)

    good = checked("key")
    assert good.returncode == 0, good.stderr
    assert "Verified OK" in good.stderr + good.stdout
    assert checked("other").returncode != 0
    content = manifest.read_bytes()
    for at in (0, len(content) // 2, len(content) - 1):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert checked("key").returncode != 0
    manifest.write_bytes(content)
    assert checked("key").returncode == 0


def test_cosign_accepts_the_bundle_that_refers_to_an_image(
    run: Cosign, distribution: OciServer, store: pfimg.PfStore, image: str, tmp_path: Path, key: SigningKey
) -> None:
    place = OciPlace(distribution)
    pfimg.push(store, image, place.ref, sign=key)
    manifest, bundle, root = (tmp_path / name for name in ("manifest.json", "bundle.json", "root.json"))
    manifest.write_bytes(place.read_pair()[0])
    bundle.write_bytes(the_referrer(place))
    root.write_text(json.dumps(TRUSTED_ROOT))

    def checked(by: str) -> int:
        options = ["--insecure-ignore-tlog=true", "--new-bundle-format", "--trusted-root", root, "--bundle", bundle]
        return run("verify-blob", *options, "--key", tmp_path / f"{by}.pub", manifest).returncode

    assert checked("key") == 0
    assert checked("other") != 0
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-1] + b"]")
    assert checked("key") != 0


def the_referrer(place: OciPlace) -> bytes:
    """The only bundle that refers to the image."""
    content = place.repository.manifest(place.tag)
    assert content is not None
    index = json.loads(place.repository.manifest(digest_of(content).replace(":", "-")) or b"")
    [entry] = index["manifests"]
    referrer = json.loads(place.repository.manifest(entry["digest"]) or b"")
    return place.repository.get(referrer["layers"][0]["digest"])


def test_a_pair_that_cosign_made_checks_what_cosign_signed(run: Cosign, store: pfimg.PfStore, image: str, tmp_path: Path) -> None:
    made = run("generate-key-pair", "--output-key-prefix", "theirs")
    assert made.returncode == 0, made.stderr
    [theirs] = read_keys(tmp_path / "theirs.pub")
    assert isinstance(theirs, PublicKey)
    with pytest.raises(pfimg.SignatureError, match="cosign import-key-pair"):
        read_keys(tmp_path / "theirs.key")
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(store.get_manifest(image).to_json())
    assert signed_by(run, "theirs.key", manifest, theirs)
    # One that we made signs in cosign's hands as it does in ours.
    key = SigningKey.generate("ecdsa-p256-sha256")
    key.save(tmp_path / "key")
    taken = run("import-key-pair", "--key", "key", "--output-key-prefix", "taken")
    assert taken.returncode == 0, taken.stderr
    assert key.public_key is not None
    assert signed_by(run, "taken.key", manifest, key.public_key)
    assert not signed_by(run, "theirs.key", manifest, key.public_key)


def signed_by(run: Cosign, key: str, manifest: Path, public: PublicKey) -> bool:
    """Has cosign sign; tells what a check by us says of that."""
    done = run("sign-blob", "--yes", "--key", key, "--tlog-upload=false", "--output-signature", "signature", manifest)
    assert done.returncode == 0, done.stderr
    return public.is_signed(manifest.read_bytes(), b64decode((manifest.parent / "signature").read_text()))

"""What somebody who may write to a registry can do to a signed image: in directories, in buckets, in registries of containers."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.registries.conftest import ADAPTERS
from tests.registries.programs import needs_reference

import pfimg
from pfimg.keys import SigningKey
from pfimg.signing import PUBLIC_KEY, sign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.registries.conftest import Adapter

COMMAND = shutil.which("pf")

ED25519 = SigningKey.generate("ed25519")
ECDSA = SigningKey.generate("ecdsa-p256-sha256")
THEIRS = SigningKey.generate("ed25519")


@pytest.fixture(params=[adapter for adapter in ADAPTERS if adapter.id in ("directory", "oci", "oci_packed", "minio")])
def place(request: pytest.FixtureRequest) -> Adapter:
    adapter: Adapter = request.param(request)
    return adapter


@pytest.fixture(params=[ED25519, ECDSA], ids=lambda key: str(key.algorithm))
def key(request: pytest.FixtureRequest) -> SigningKey:
    found: SigningKey = request.param
    return found


def public(key: SigningKey) -> pfimg.PublicKey:
    found = key.public_key
    assert found is not None
    return found


def test_a_signed_image_is_verified(
    place: Adapter, key: SigningKey, store: pfimg.PfStore, other: pfimg.PfStore, image: str, tmp_path: Path
) -> None:
    key.save(tmp_path / "key")
    pfimg.push(store, image, place.ref, sign=tmp_path / "key")
    assert place.read_pair()[1] == sign(place.read_pair()[0], key)
    with pytest.raises(pfimg.SignatureError, match=r"not trusted|trusted is"):
        pfimg.pull(place.source, other, trust=public(THEIRS))
    assert list(other.images()) == []
    got = pfimg.pull(place.source, other, trust=[public(THEIRS), tmp_path / "key.pub"])
    assert (got.image, got.signature, got.signer) == (image, "verified", public(key).fingerprint)
    assert other.verify().ok
    pfimg.push(store, image, place.ref, sign=tmp_path / "key")
    assert place.read_pair()[1] == sign(place.read_pair()[0], key)
    assert pfimg.pull(place.source, other).signature == "self-signed"


def test_what_an_attacker_can_write_is_refused(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    older, image = make_image(0), make_image(1)
    pfimg.push(store, image, place.ref, sign=ED25519)
    manifest, signature = place.read_pair()
    swapped = sign(store.get_manifest(older).to_json(), ED25519)
    values = json.loads(signature)
    nonsense = b'{"not":"an image"}'
    relabelled = json.loads(swapped) | {"manifest_digest": values["manifest_digest"]}
    attacks: dict[str, tuple[bytes, bytes | None]] = {
        "stripped": (manifest, None),
        "empty": (manifest, b""),
        "of another image": (manifest, swapped),
        "of another image, relabelled": (manifest, json.dumps(relabelled).encode()),
        "by another key": (manifest, sign(manifest, THEIRS)),
        "by another kind of key": (manifest, sign(manifest, ECDSA)),
        "by the public constant": (manifest, sign(manifest, PUBLIC_KEY)),
        "by a secret": (manifest, sign(manifest, SigningKey.from_text("theirs"))),
        "truncated": (manifest, signature[:-10]),
        "huge": (manifest, signature + b" " * (1 << 20)),
        "with a key twice": (manifest, signature[:-1] + b',"algorithm":"ed25519"}'),
        "of nonsense": (nonsense, sign(nonsense, THEIRS)),  # which is not parsed: that would be a FormatError
    }
    for name, (shown, by) in attacks.items():
        place.write_pair(shown, by)
        with pytest.raises((pfimg.SignatureError, pfimg.LimitExceeded)) as caught:
            pfimg.pull(place.source, other, trust=public(ED25519))
        assert isinstance(caught.value, pfimg.SignatureError) or name == "huge", name
    assert list(other.images()) == []
    assert other.partial_images() == []
    place.write_pair(manifest, signature)
    assert pfimg.pull(place.source, other, trust=public(ED25519)).image == image


def test_an_older_image_is_not_put_back_unnoticed(
    place: Adapter, store: pfimg.PfStore, other: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    trust = public(ED25519)
    old = make_image(0)
    new = make_image(1)
    pfimg.push(store, old, place.ref, sign=ED25519)
    before = place.read_pair()
    assert pfimg.pull(place.source, other, trust=trust).image == old
    pfimg.push(store, new, place.ref, sign=ED25519)
    assert pfimg.pull(place.source, other, trust=trust).image == new
    assert pfimg.pull(place.source, other, trust=trust).image == new
    pfimg.push(store, old, place.ref, sign=ED25519)  # what somebody puts back who has kept it
    assert place.read_pair() == before
    with pytest.raises(pfimg.SignatureError, match="--allow-older") as caught:
        pfimg.pull(place.source, other, trust=trust)
    assert (caught.value.code, caught.value.digest) == ("older", old)
    # Nobody has vouched for what is self-signed, so that neither is refused nor remembered.
    assert pfimg.pull(place.source, other).image == old
    with pytest.raises(pfimg.SignatureError, match="before"):
        pfimg.pull(place.source, other, trust=trust, layers=["trace"])
    # Another store has not seen it; and this one takes it where it is told to, from then on.
    assert pfimg.pull(place.source, pfimg.PfStore.open(store.root.parent / "third"), trust=trust).image == old
    assert pfimg.pull(place.source, other, trust=trust, allow_older=True).image == old
    assert pfimg.pull(place.source, other, trust=trust).image == old


@needs_reference
@pytest.mark.reference
def test_the_reference_refuses_what_it_cannot_check(store: pfimg.PfStore, image: str, tmp_path: Path, key: SigningKey) -> None:
    ref, theirs = f"file://{tmp_path}/registry", tmp_path / "theirs"
    pfimg.push(store, image, ref, sign=key)
    command = [str(COMMAND), "--store", str(theirs), "pull", ref]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0, refused
    assert list(theirs.rglob("*.json")) == []
    pfimg.push(store, image, ref)
    subprocess.run(command, capture_output=True, timeout=60, check=True)

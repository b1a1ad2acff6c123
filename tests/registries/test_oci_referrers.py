"""Signatures that are listed beside an image in a registry of containers."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.registries.oci_places import MANIFEST, OciPlace, PackedOciPlace, digest_of
from tests.servers.proxy import Proxy, answer, lost, proxy, respond

import pfimg
from pfimg.keys import SigningKey, read_keys
from pfimg.registries.oci.transport import OciTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers import OciServer, Response
    from tests.servers.scripted import Peer

INDEX = "application/vnd.oci.image.index.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
KEYS = {"ed25519": SigningKey.generate("ed25519"), "cosign": SigningKey.generate("ecdsa-p256-sha256")}


@pytest.fixture
def place(distribution: OciServer) -> OciPlace:
    return OciPlace(distribution)


def index(place: OciPlace, subject: str) -> tuple[str, list[dict[str, Any]]]:
    """What refers to a manifest, by the tag that stands in for a list; and that tag."""
    tag = subject.replace(":", "-")
    answer = place.repository.ask("GET", f"manifests/{tag}", headers={"Accept": INDEX})
    assert answer.status in (200, 404)
    if answer.status == 404:
        return tag, []
    values = json.loads(answer.body)
    assert (values["schemaVersion"], values["mediaType"]) == (2, INDEX)
    return tag, values["manifests"]


def subject_of(place: OciPlace) -> str:
    content = place.repository.manifest(place.tag)
    assert content is not None
    return digest_of(content)


def entered_by_others(place: OciPlace) -> dict[str, Any]:
    """An entry of an index for something that is not ours."""
    config = {"mediaType": "x/y", **place.repository.put(b"x")}
    theirs = place.repository.put_manifest("theirs", {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []})
    return {"mediaType": MANIFEST, "digest": theirs, "size": len(place.repository.manifest(theirs) or b"")}


def listed(peer: Peer, forward: Callable[[], Response]) -> None:
    """As a registry answers that lists a referrer by itself."""
    response = forward()
    response.headers["OCI-Subject"] = json.loads(peer.asked.body)["subject"]["digest"]
    respond(peer, response)


@pytest.mark.parametrize("kind", ["ed25519", "cosign"])
@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_the_signature_refers_to_the_image(
    distribution: OciServer, store: pfimg.PfStore, image: str, tmp_path: Path, kind: str, *, packed: bool
) -> None:
    place = (PackedOciPlace if packed else OciPlace)(distribution)
    key = KEYS[kind]
    key.save(tmp_path / "key")
    pfimg.push(store, image, place.ref, sign=key, layout="packed" if packed else "auto")
    manifest, _ = place.read_pair()
    subject = subject_of(place)
    tag, (entry,) = index(place, subject)
    assert (entry["mediaType"], entry["artifactType"]) == (MANIFEST, BUNDLE)
    content = place.repository.manifest(entry["digest"])
    assert content is not None
    assert (len(content), digest_of(content)) == (entry["size"], entry["digest"])
    referrer = json.loads(content)
    subject_size = len(place.repository.manifest(subject) or b"")
    assert referrer["subject"] == {"mediaType": MANIFEST, "digest": subject, "size": subject_size}
    assert referrer["artifactType"] == referrer["layers"][0]["mediaType"] == BUNDLE
    bundle = json.loads(place.repository.get(referrer["layers"][0]["digest"]))
    signed = bundle["messageSignature"]
    assert base64.b64decode(signed["messageDigest"]["digest"]) == hashlib.sha256(manifest).digest()
    # Checked as somebody else would: the public key's file, and openssl.
    command: list[str | Path] = ["openssl", "pkey", "-pubin", "-in", tmp_path / "key.pub", "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert base64.b64decode(bundle["verificationMaterial"]["publicKey"]["hint"]) == hashlib.sha256(der).digest()
    (tmp_path / "manifest.json").write_bytes(manifest)
    (tmp_path / "signature").write_bytes(base64.b64decode(signed["signature"]))
    raw = ["-rawin"] if kind == "ed25519" else ["-rawin", "-digest", "sha256"]
    files: list[str | Path] = ["-in", tmp_path / "manifest.json", "-sigfile", tmp_path / "signature"]
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "key.pub", *raw, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert sorted(place.repository.tags()) == sorted([tag, "latest"])
    assert pfimg.list_images(place.ref) == [place.ref]


def test_the_same_again_adds_nothing_and_another_key_adds_one(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, sign=KEYS["ed25519"])
    subject = subject_of(place)
    before = index(place, subject)
    pfimg.push(store, image, place.ref, sign=KEYS["ed25519"])
    assert index(place, subject) == before
    assert len(before[1]) == 1
    # The signature is a layer of the image, so that another one makes another subject.
    pfimg.push(store, image, place.ref, sign=KEYS["cosign"])
    assert subject_of(place) != subject
    assert index(place, subject) == before
    assert len(index(place, subject_of(place))[1]) == 1


def test_what_others_have_entered_stays(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, sign=KEYS["ed25519"])
    subject = subject_of(place)
    tag, (ours,) = index(place, subject)
    entry = entered_by_others(place)
    place.repository.put_manifest(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    pfimg.push(store, image, place.ref, sign=KEYS["ed25519"])
    assert index(place, subject)[1] == [entry, ours]


def test_a_tag_that_is_something_else_is_left_alone(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = KEYS["ed25519"]
    pfimg.push(store, image, place.ref, sign=key)
    tag, _ = index(place, subject_of(place))
    config = {"mediaType": "x/y", **place.repository.put(b"x")}
    mine = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}
    digest = place.repository.put_manifest(tag, mine)
    with caplog.at_level(logging.WARNING, "pfimg"):
        pfimg.push(store, image, place.ref, sign=key)
    assert "something else than an index" in caplog.text
    assert digest_of(place.repository.manifest(tag) or b"") == digest
    assert pfimg.pull(place.ref, other, trust=key).signature == "verified"


def test_secrets_leave_nothing_to_list(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, sign=SigningKey.from_text("ours"))
    pfimg.push(store, image, place.ref)
    assert place.repository.tags() == ["latest"]


def test_a_copy_takes_it_along_without_a_key(
    distribution: OciServer, place: OciPlace, store: pfimg.PfStore, make_image: Callable[..., str]
) -> None:
    pfimg.push(store, make_image(), place.ref, sign=KEYS["cosign"])
    copied = OciPlace(distribution)
    pfimg.copy(place.ref, copied.ref, trust=KEYS["cosign"])
    (before,), (after,) = index(place, subject_of(place))[1], index(copied, subject_of(copied))[1]
    assert before == after


def test_the_public_half_is_enough_to_pull(
    place: OciPlace, store: pfimg.PfStore, other: pfimg.PfStore, image: str, tmp_path: Path
) -> None:
    KEYS["cosign"].save(tmp_path / "key")
    pfimg.push(store, image, place.ref, sign=tmp_path / "key")
    (public,) = read_keys(tmp_path / "key.pub")
    assert pfimg.pull(place.ref, other, trust=public).signature == "verified"


@pytest.fixture
def between(distribution: OciServer) -> Iterator[Proxy]:
    with proxy(distribution.base_url) as running:
        yield running


REFERRER = "/manifests/sha256:"


@pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])
def test_it_goes_with_the_last_tag_of_the_image(
    distribution: OciServer, store: pfimg.PfStore, image: str, make_image: Callable[..., str], *, packed: bool
) -> None:
    place = (PackedOciPlace if packed else OciPlace)(distribution)
    refs = [place.ref, f"{place.ref}:again", f"{place.ref}:other"]
    for ref, content in zip(refs, [image, image, make_image(1)], strict=True):
        pfimg.push(store, content, ref, sign=KEYS["ed25519"], layout="packed" if packed else "auto")
    subject = subject_of(place)
    tag, (entry,) = index(place, subject)
    pfimg.remove_image(refs[0])
    assert index(place, subject) == (tag, [entry])
    assert place.repository.manifest(entry["digest"]) is not None
    pfimg.remove_image(refs[1])
    assert index(place, subject) == (tag, [])
    assert place.repository.manifest(entry["digest"]) is None
    # That of another image is nobody's business.
    other = digest_of(place.repository.manifest("other") or b"")
    assert len(index(place, other)[1]) == 1
    assert sorted(place.repository.tags()) == sorted(["other", other.replace(":", "-")])


def test_what_others_have_entered_outlives_the_image(place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    pfimg.push(store, image, place.ref, sign=KEYS["cosign"])
    subject = subject_of(place)
    tag, (ours,) = index(place, subject)
    theirs = entered_by_others(place)
    place.repository.put_manifest(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [theirs, ours]})
    pfimg.remove_image(place.ref)
    assert index(place, subject) == (tag, [theirs])
    assert place.repository.manifest(ours["digest"]) is None
    assert place.repository.manifest(theirs["digest"]) is not None


def test_it_goes_where_a_registry_lists_referrers_itself(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    between.on("PUT", REFERRER, listed)
    ref = f"oci://{between.registry}/{place.repository.name}"
    pfimg.push(store, image, ref, sign=KEYS["ed25519"])
    (asked,) = [asked for asked in between.asked if asked.method == "PUT" and REFERRER in asked.path]
    pfimg.remove_image(ref)
    assert place.repository.manifest(digest_of(asked.body)) is None
    assert place.repository.tags() == []


def test_it_goes_by_a_token_that_may_remove(
    distribution_token: OciServer, store: pfimg.PfStore, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCI_USERNAME", distribution_token.user)
    monkeypatch.setenv("OCI_PASSWORD", distribution_token.password)
    name = distribution_token.repository()
    ref = f"oci://{distribution_token.registry}/{name}"
    pfimg.push(store, image, ref, sign=KEYS["ed25519"])
    transport = OciTransport(pfimg.OciRef(distribution_token.host, name, distribution_token.port))
    assert len(list(transport.repository.tags())) == 2
    pfimg.remove_image(ref)
    assert list(transport.repository.tags()) == []


@pytest.mark.parametrize("status", [403, 405])
def test_a_registry_that_does_not_let_it_go_is_warned_of(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    ref = f"oci://{between.registry}/{place.repository.name}"
    pfimg.push(store, image, ref, sign=KEYS["ed25519"])
    subject = subject_of(place)
    tag, (entry,) = index(place, subject)
    between.always("DELETE", REFERRER, answer(status))
    with caplog.at_level(logging.WARNING, "pfimg"):
        pfimg.remove_image(ref)
    assert f"{ref} is removed, but its signature {entry['digest']} may still be listed" in caplog.text
    assert place.repository.tags() == [tag]


def test_of_a_registry_that_does_not_tell_its_tags_nothing_else_is_removed(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    ref = f"oci://{between.registry}/{place.repository.name}"
    pfimg.push(store, image, ref, sign=KEYS["ed25519"])
    tag, _ = index(place, subject_of(place))
    between.always("GET", "/tags/list", answer(403))
    with caplog.at_level(logging.WARNING, "pfimg"):
        pfimg.remove_image(ref)
    assert f"{ref} is removed, but its signature may still be listed" in caplog.text
    assert place.repository.tags() == [tag]


def test_an_image_that_nobody_signed_by_a_pair_is_removed_by_one_request(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    ref = f"oci://{between.registry}/{place.repository.name}"
    pfimg.push(store, image, ref)
    before = between.count("GET", "/tags/list")
    pfimg.remove_image(ref)
    assert (between.count("DELETE", ""), between.count("GET", "/tags/list")) == (1, before)


def test_a_tag_of_something_else_is_removed_as_it_is(place: OciPlace) -> None:
    config = {"mediaType": "x/y", **place.repository.put(b"x")}
    place.repository.put_manifest(place.tag, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []})
    pfimg.remove_image(place.ref)
    assert place.repository.tags() == []


def test_a_registry_that_lists_referrers_needs_no_index(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str
) -> None:
    between.on("PUT", REFERRER, listed)
    pfimg.push(store, image, f"oci://{between.registry}/{place.repository.name}", sign=KEYS["ed25519"])
    assert place.repository.tags() == ["latest"]
    (asked,) = [asked for asked in between.asked if asked.method == "PUT" and REFERRER in asked.path]
    assert place.repository.manifest(digest_of(asked.body)) == asked.body


@pytest.mark.parametrize("status", [400, 404, 405, 415])
def test_a_registry_that_takes_none_is_warned_of(
    between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    between.on("PUT", REFERRER, answer(status))
    with caplog.at_level(logging.WARNING, "pfimg"):
        pfimg.push(store, image, f"oci://{between.registry}/{place.repository.name}", sign=KEYS["ed25519"])
    assert "published and signed, but its signature is not listed" in caplog.text
    assert place.repository.tags() == ["latest"]


def test_lost_answers_do_no_harm(between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    between.on("PUT", REFERRER, lost)
    between.on("PUT", "/manifests/sha256-", lost)
    pfimg.push(store, image, f"oci://{between.registry}/{place.repository.name}", sign=KEYS["ed25519"])
    assert len(index(place, subject_of(place))[1]) == 1


def test_whoever_is_forestalled_enters_it_again(between: Proxy, place: OciPlace, store: pfimg.PfStore, image: str) -> None:
    entry = entered_by_others(place)

    def overwritten(peer: Peer, forward: Callable[[], Response]) -> None:
        response = forward()
        place.repository.put_manifest(
            peer.asked.path.rpartition("/")[2], {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        )
        respond(peer, response)

    between.on("PUT", "/manifests/sha256-", overwritten)
    pfimg.push(store, image, f"oci://{between.registry}/{place.repository.name}", sign=KEYS["ed25519"])
    first, second = index(place, subject_of(place))[1]
    assert (first, second["artifactType"]) == (entry, BUNDLE)

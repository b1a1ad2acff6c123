"""OCI manifests and challenges, as bytes and as values."""

from __future__ import annotations

import bisect
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pfimg
from pfimg.registries.oci import manifest as documents
from pfimg.registries.oci.auth import Challenge, challenges
from pfimg.registries.oci.manifest import Stored

HEX = "0123456789abcdef" * 4
BLOB = f"sha256:{HEX}"


def of(text: str) -> Stored:
    return Stored(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}", len(text))


MANIFEST, SIGNATURE, FRAME, INDEX, PACK = map(of, ("manifest", "signature", "frame", "index", "pack"))


def test_the_published_form_is_written_byte_for_byte() -> None:
    assert documents.published(MANIFEST, SIGNATURE, [(BLOB, FRAME)], "x").decode() == (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        '"config":{"mediaType":"application/vnd.processfork.image.v1+json","size":8,'
        f'"digest":"{MANIFEST.digest}"}},'
        '"layers":[{"mediaType":"application/vnd.processfork.signature.v1+json","size":9,'
        f'"digest":"{SIGNATURE.digest}","annotations":{{"org.processfork.path":"manifest.json.sig"}}}},'
        '{"mediaType":"application/vnd.processfork.layer.v1+zstd","size":5,'
        f'"digest":"{FRAME.digest}","annotations":{{"org.processfork.path":"blobs/sha256/01/{HEX}.zst"}}}}]}}'
    )


def test_our_form_has_nothing_in_its_config() -> None:
    values = json.loads(documents.packed(MANIFEST, SIGNATURE, INDEX, [PACK], "x"))
    assert values["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "size": 2,
        "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
    }
    assert values["artifactType"] == "application/vnd.pfimg.image.v1"
    names = [layer["annotations"]["org.processfork.path"] for layer in values["layers"]]
    assert names == ["manifest.json", "manifest.json.sig", "packs.idx", f"packs/{PACK.digest[7:]}.pack"]
    assert names == [layer["annotations"]["org.opencontainers.image.title"] for layer in values["layers"]]


@pytest.mark.parametrize("form", [documents.published, documents.single_blobs])
def test_single_blobs_are_read_again(form: Any) -> None:
    blake = f"blake3:{HEX}"
    found = documents.parse(form(MANIFEST, SIGNATURE, [(BLOB, FRAME), (blake, PACK)], "x"), "x")
    assert (found.manifest, found.signature, found.index, found.packs) == (MANIFEST, SIGNATURE, None, ())
    assert found.blobs == {BLOB: FRAME, blake: PACK}
    assert found.parts() == {part.digest for part in (found.config, MANIFEST, SIGNATURE, FRAME, PACK)}


def test_packs_are_read_again() -> None:
    found = documents.parse(documents.packed(MANIFEST, SIGNATURE, INDEX, [PACK, FRAME], "x"), "x")
    assert found == documents.OciImage(documents.stored(b"{}"), MANIFEST, SIGNATURE, {}, INDEX, (PACK, FRAME))
    assert found.parts() == {part.digest for part in (found.config, MANIFEST, SIGNATURE, INDEX, PACK, FRAME)}


def test_keys_come_in_any_order_and_unknown_ones_do_not_matter() -> None:
    values = json.loads(documents.published(MANIFEST, SIGNATURE, [(BLOB, FRAME)], "x"))
    values = {"annotations": {"a": "b"}, "subject": {}, **dict(reversed(values.items()))}
    values["layers"].append({"mediaType": "text/plain", "size": 1, "digest": BLOB, "urls": []})
    assert documents.parse(json.dumps(values, indent=1).encode(), "x").blobs == {BLOB: FRAME}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}, r"application/vnd.oci.image.index.v1\+json"),
        ({"schemaVersion": 1, "fsLayers": []}, ": check"),
        (
            {"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 1, "digest": BLOB}, "layers": []},
            r"application/vnd.oci.image.config.v1\+json",
        ),
        (
            {
                "artifactType": "application/vnd.example",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": BLOB},
                "layers": [],
            },
            "application/vnd.example",
        ),
        (
            {
                "artifactType": "application/vnd.pfimg.image.v1",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": BLOB},
                "layers": [],
            },
            "application/vnd.pfimg.image.v1",
        ),
    ],
)
def test_what_is_no_image_is_named(values: dict[str, Any], kind: str) -> None:
    with pytest.raises(pfimg.FormatError, match=rf"oci://h/r is no image of this format but something else.*{kind}"):
        documents.parse(json.dumps(values).encode(), "oci://h/r")


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha512:" + "0" * 128},
        {"digest": BLOB.upper()},
        {"digest": None},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"size": 1 << 62},
        {"annotations": []},
        {"annotations": "x"},
    ],
)
@pytest.mark.parametrize("at", ["config", "layers"])
def test_a_malformed_descriptor_is_refused(change: dict[str, Any], at: str) -> None:
    values = json.loads(documents.published(MANIFEST, SIGNATURE, [(BLOB, FRAME)], "x"))
    (values["config"] if at == "config" else values["layers"][1]).update(change)
    if change == {"annotations": []}:  # an empty value may stand for none
        documents.parse(json.dumps(values).encode(), "x")
        return
    with pytest.raises(pfimg.FormatError, match="malformed"):
        documents.parse(json.dumps(values).encode(), "x")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    with pytest.raises(pfimg.FormatError):
        documents.parse(content, "x")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(pfimg.FormatError, match="malformed"):
        documents.parse(b'{"config":' + b"[" * 100_000, "x")


def test_an_image_of_too_many_blobs_is_refused_before_and_after() -> None:
    blobs = [(f"sha256:{at:064x}", Stored(f"sha256:{at:064x}", 123)) for at in range(17_000)]
    documents.check_count(15_000, "x")
    documents.published(MANIFEST, SIGNATURE, blobs[:15_000], "x")
    for refused in (
        lambda: documents.check_count(len(blobs), "oci://h/r"),
        lambda: documents.published(MANIFEST, SIGNATURE, blobs, "oci://h/r"),
    ):
        with pytest.raises(pfimg.LimitExceeded, match=r"oci://h/r.*4,194,304.*layout packed"):
            refused()


def test_what_is_not_refused_before_is_not_refused_for_less() -> None:
    """The count is a lower bound of what is written."""
    smallest = [(f"sha256:{at:064x}", Stored(f"sha256:{at:064x}", 0)) for at in range(17_000)]

    def is_refused(count: int) -> bool:
        try:
            documents.published(MANIFEST, SIGNATURE, smallest[:count], "x")
        except pfimg.LimitExceeded:
            return True
        return False

    most = bisect.bisect_left(range(len(smallest)), True, key=is_refused) - 1
    assert not is_refused(most)
    assert is_refused(most + 1)
    documents.check_count(most, "x")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        (
            'Bearer realm="https://auth.example/token?a=b",service="registry, of ours",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.example/token?a=b",
                        "service": "registry, of ours",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'Bearer realm=token,SERVICE="s", Basic realm="y"',
            [("bearer", {"realm": "token", "service": "s"}), ("basic", {"realm": "y"})],
        ),
        ('Negotiate, Basic realm="y"', [("negotiate", {}), ("basic", {"realm": "y"})]),
        ('Bearer realm="a\\"b", error="insufficient_scope"', [("bearer", {"realm": 'a"b', "error": "insufficient_scope"})]),
        ('BEARER realm = "x"', [("bearer", {"realm": "x"})]),
        ('realm="nobody"', []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert challenges(header) == [Challenge(*item) for item in expected]


@given(st.text(max_size=80))
def test_no_header_is_an_error(header: str) -> None:
    challenges(header)

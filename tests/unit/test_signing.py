"""Signatures, against `hmac` and `hashlib` and against files that the reference signed."""

import base64
import hashlib
import hmac
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from pfimg.errors import SignatureError
from pfimg.keys import PublicKey, SigningKey
from pfimg.signing import (
    PUBLIC_KEY,
    SIGNATURE_BYTES,
    Trust,
    Verdict,
    covers,
    sign,
    signing_key,
    trust_policy,
    verify,
)

GOLDEN = Path(__file__).parents[1] / "conformance" / "registry"
MANIFEST = b'{"schema_version":1}'
OURS = SigningKey.from_text("ours")
THEIRS = SigningKey.from_text("theirs")
SELF_SIGNED = Trust(self_signed=True)
# Such as are not taken for a public key.
SECRETS = st.binary(max_size=100).map(lambda rest: b"k" + rest.replace(b"-", b"+"))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PF_FILE_REG_SIGN_KEY", raising=False)


def document(**changes: object) -> bytes:
    return json.dumps(json.loads(sign(MANIFEST, OURS)) | changes).encode()


@given(st.binary(max_size=500), SECRETS)
def test_a_signature_is_what_the_format_says(manifest: bytes, secret: bytes) -> None:
    digest, mac = hashlib.sha256(manifest).hexdigest(), hmac.new(secret, manifest, hashlib.sha256).hexdigest()
    expected = f'{{"algorithm":"hmac-sha256","manifest_digest":"{digest}","signature":"{mac}"}}'
    assert sign(manifest, SigningKey(secret)) == expected.encode()


@given(st.binary(max_size=500), SECRETS, st.data())
def test_only_the_same_bytes_and_key_verify(manifest: bytes, secret: bytes, data: st.DataObject) -> None:
    signature = sign(manifest, SigningKey(secret))
    assert verify(manifest, signature, Trust((OURS, SigningKey(secret)))).status == "verified"
    with pytest.raises(SignatureError, match="not trusted"):
        verify(manifest, signature, Trust((SigningKey(b"\x01" + secret),)))
    at = data.draw(st.integers(0, len(manifest)))
    with pytest.raises(SignatureError, match="another manifest"):
        verify(manifest[:at] + b"x" + manifest[at:], signature, Trust((SigningKey(secret),)))


@pytest.mark.parametrize(
    ("registry", "key", "status"), [("default-key", None, "self-signed"), ("own-key", "golden-key", "verified")]
)
def test_signatures_of_the_reference_verify_and_come_out_the_same(registry: str, key: str | None, status: str) -> None:
    manifest = (GOLDEN / registry / "manifest.json").read_bytes()
    signature = (GOLDEN / registry / "manifest.json.sig").read_bytes()
    own = PUBLIC_KEY if key is None else SigningKey.from_text(key)
    assert verify(manifest, signature, SELF_SIGNED if key is None else Trust((own,))).status == status
    assert sign(manifest, own) == signature


def test_the_public_key_proves_nothing() -> None:
    signature = sign(MANIFEST, PUBLIC_KEY)
    assert verify(MANIFEST, signature, SELF_SIGNED).status == "self-signed"
    for trust in (Trust((OURS,)), Trust((PUBLIC_KEY,))):
        with pytest.raises(SignatureError, match="proves nothing"):
            verify(MANIFEST, signature, trust)
    assert verify(MANIFEST, signature, Trust((PUBLIC_KEY,), self_signed=True)).status == "self-signed"
    padded = SigningKey(PUBLIC_KEY.secret + b"\0")  # to HMAC the same key
    with pytest.raises(SignatureError, match="proves nothing"):
        verify(MANIFEST, signature, Trust((padded,)))


def test_an_own_key_is_not_accepted_where_only_the_public_one_is() -> None:
    with pytest.raises(SignatureError, match="not trusted"):
        verify(MANIFEST, sign(MANIFEST, OURS), SELF_SIGNED)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (sign(MANIFEST, OURS).decode().encode("utf-16"), "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "algorithm"),
        (document(algorithm="cosign-key"), "'cosign-key' is not known"),
        (document(algorithm=["x"] * 1000), "algorithm"),
        (document(manifest_digest=None), "manifest_digest is not 64 hex digits"),
        (document(manifest_digest=hashlib.sha256(MANIFEST).hexdigest().upper()), "manifest_digest is not 64 hex digits"),
        (document(manifest_digest="0" * 64), "another manifest"),
        (document(signature=""), "signature is not 64 hex digits"),
        (document(signature="0" * 64), "not trusted"),
        (b" " * SIGNATURE_BYTES + sign(MANIFEST, OURS), "larger than 1,048,576 bytes"),
    ],
)
def test_a_malformed_signature_is_refused(signature: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason) as caught:
        verify(MANIFEST, signature, Trust((OURS,)))
    assert len(str(caught.value)) < 300


def test_unknown_fields_and_other_orders_are_read() -> None:
    values = json.loads(sign(MANIFEST, OURS))
    reordered = json.dumps(dict(sorted(values.items(), reverse=True)) | {"bundle": "x"}, indent=2).encode()
    assert verify(MANIFEST, reordered, Trust((OURS,))).status == "verified"


def test_which_key_signs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"theirs\n")
    assert signing_key(None, "file") == signing_key(None, None) == PUBLIC_KEY
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "ours")
    assert signing_key(None, "file") == OURS
    assert signing_key(None, None) == PUBLIC_KEY
    assert (
        signing_key(THEIRS, "file")
        == signing_key(tmp_path / "key", "file")
        == signing_key(str(tmp_path / "key"), "file")
        == THEIRS
    )


def test_whom_a_pull_trusts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"theirs\n")
    assert trust_policy(None, "file") == trust_policy("self-signed", "file") == SELF_SIGNED
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "ours")
    assert trust_policy(None, "file") == Trust((OURS,))
    assert trust_policy(None, None) == SELF_SIGNED
    assert trust_policy("self-signed", "file") == Trust((OURS,), self_signed=True)
    assert trust_policy(tmp_path / "key", "file") == trust_policy([THEIRS], "file") == Trust((THEIRS,))
    assert trust_policy((OURS, str(tmp_path / "key")), "file") == Trust((OURS, THEIRS))
    with pytest.raises(SignatureError, match="nobody is trusted"):
        trust_policy([], "file")


def test_an_empty_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "")
    for ask in (signing_key, trust_policy):
        with pytest.raises(SignatureError, match="PF_FILE_REG_SIGN_KEY is set, but empty"):
            ask(None, "file")
    assert signing_key(OURS, "file") == OURS
    assert signing_key(None, "s3") == PUBLIC_KEY


@pytest.mark.parametrize(
    ("content", "secret"), [(b"a", b"a"), (b"a\n", b"a"), (b"a\r\n", b"a"), (b"a \n\n", b"a \n"), (b"\xff\x00", b"\xff\x00")]
)
def test_a_key_file_holds_the_key_and_maybe_a_line_end(tmp_path: Path, content: bytes, secret: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    assert SigningKey.from_file(tmp_path / "key").secret == secret


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"\n", "empty"), (b"x" * 65_537, "larger than 65,536 bytes")])
def test_a_file_that_is_no_key_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SignatureError, match=reason) as caught:
        SigningKey.from_file(tmp_path / "key")
    assert caught.value.path == str(tmp_path / "key")
    with pytest.raises(FileNotFoundError):
        SigningKey.from_file(tmp_path / "none")
    with pytest.raises(SignatureError, match="empty"):
        SigningKey.from_text("")


def test_the_secret_does_not_show() -> None:
    assert "ours" not in repr(Trust((OURS,))) + str(OURS) + f"{OURS}"


def test_a_signature_covers_its_manifest_only() -> None:
    assert covers(MANIFEST, sign(MANIFEST, OURS))
    assert not covers(MANIFEST + b" ", sign(MANIFEST, OURS))
    assert not covers(MANIFEST, None)
    assert not covers(MANIFEST, b"{")


ED25519 = SigningKey.generate("ed25519")
ECDSA = SigningKey.generate("ecdsa-p256-sha256")
PAIRS = pytest.mark.parametrize("key", [ED25519, ECDSA], ids=lambda key: key.algorithm)


def public(key: SigningKey) -> PublicKey:
    found = key.public_key
    assert found is not None
    return found


def loaded(key: SigningKey) -> Any:
    return serialization.load_der_public_key(public(key).der)


@PAIRS
def test_the_document_of_a_pair_is_what_the_format_says(key: SigningKey) -> None:
    signature = sign(MANIFEST, key)
    values = json.loads(signature)
    assert list(values) == ["algorithm", "manifest_digest", "signature", "public_key"]
    assert signature == json.dumps(values, separators=(",", ":")).encode()
    assert values["manifest_digest"] == hashlib.sha256(MANIFEST).hexdigest()
    assert base64.b64decode(values["public_key"]) == public(key).der
    scheme = [] if key is ED25519 else [ec.ECDSA(hashes.SHA256())]
    loaded(key).verify(base64.b64decode(values["signature"]), MANIFEST, *scheme)
    assert sign(MANIFEST, key) == signature  # also of ECDSA


@PAIRS
@given(manifest=st.binary(max_size=200), data=st.data())
def test_a_pair_verifies_the_same_bytes_only(key: SigningKey, manifest: bytes, data: st.DataObject) -> None:
    signature, trust = sign(manifest, key), Trust((OURS, public(key)))
    assert verify(manifest, signature, trust) == Verdict("verified", public(key).fingerprint)
    at = data.draw(st.integers(0, len(manifest)))
    changed = manifest[:at] + b"x" + manifest[at:]
    with pytest.raises(SignatureError, match="another manifest"):
        verify(changed, signature, trust)
    relabelled = json.loads(signature) | {"manifest_digest": hashlib.sha256(changed).hexdigest()}
    for policy in (trust, SELF_SIGNED):
        with pytest.raises(SignatureError, match="has not made it"):
            verify(changed, json.dumps(relabelled).encode(), policy)


@PAIRS
def test_a_pair_that_nobody_vouches_for_is_self_signed(key: SigningKey) -> None:
    signature = sign(MANIFEST, key)
    assert verify(MANIFEST, signature, SELF_SIGNED) == Verdict("self-signed", public(key).fingerprint)
    assert verify(MANIFEST, signature, Trust((public(key),), self_signed=True)).status == "verified"
    stranger = SigningKey.generate(key.algorithm)  # type: ignore[arg-type]
    with pytest.raises(SignatureError, match=f"by the key {public(key).fingerprint}, which is not trusted"):
        verify(MANIFEST, signature, Trust((public(stranger),)))


@pytest.mark.parametrize("weaker", [PUBLIC_KEY, OURS, ECDSA], ids=["public constant", "secret", "other kind"])
def test_a_signature_of_another_kind_than_the_key_is_refused(weaker: SigningKey) -> None:
    with pytest.raises(SignatureError, match=r"of the kind .*, but trusted is ed25519"):
        verify(MANIFEST, sign(MANIFEST, weaker), Trust((public(ED25519),)))


@PAIRS
def test_a_public_key_is_no_secret(key: SigningKey) -> None:
    """What everybody has must not make an HMAC that counts, in whatever form it is taken for a secret."""
    pem = public(key).to_pem()
    for secret in (pem, pem.strip(), public(key).der):
        forged = json.loads(sign(MANIFEST, OURS))
        forged["signature"] = hmac.new(secret, MANIFEST, hashlib.sha256).hexdigest()
        with pytest.raises(SignatureError, match="of the kind hmac-sha256"):
            verify(MANIFEST, json.dumps(forged).encode(), Trust((public(key),)))
        with pytest.raises(SignatureError, match="no secret"):
            SigningKey(secret)


def test_a_document_cannot_claim_another_kind() -> None:
    values = json.loads(sign(MANIFEST, ED25519))
    claimed = json.dumps(values | {"algorithm": "ecdsa-p256-sha256"}).encode()
    for policy in (SELF_SIGNED, Trust((public(ECDSA),)), Trust((public(ED25519), public(ECDSA)))):
        with pytest.raises(SignatureError, match=r"of the kind ecdsa-p256-sha256, its public key of ed25519"):
            verify(MANIFEST, claimed, policy)
    # The key that is in the document does not matter where one that is trusted has signed.
    foreign = json.dumps(values | {"public_key": base64.b64encode(public(ECDSA).der).decode()}).encode()
    assert verify(MANIFEST, foreign, Trust((public(ED25519),))) == Verdict("verified", public(ED25519).fingerprint)


def pair_document(**changes: object) -> bytes:
    return json.dumps(json.loads(sign(MANIFEST, ED25519)) | changes).encode()


def truncated(signature: bytes) -> str:
    return base64.b64encode(signature[:-1]).decode()


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (pair_document(signature=""), "signature is not base64"),
        (pair_document(signature=None), "signature is not base64"),
        (pair_document(signature="A" * 96), "has not made it"),
        (pair_document(signature="A" * 100), "signature is not base64 of up to 72 bytes"),
        (pair_document(signature="A" * 1_000_000), "signature is not base64"),
        (pair_document(signature=truncated(ED25519.sign(MANIFEST))), "has not made it"),
        (pair_document(signature=base64.b64encode(ED25519.sign(MANIFEST)).decode() + "\n"), "signature is not base64"),
        (pair_document(public_key=""), "public_key is not base64"),
        (pair_document(public_key="é"), "public_key is not base64"),
        (pair_document(public_key="AAAA"), "public key is malformed"),
        (pair_document(public_key=base64.b64encode(public(ECDSA).der).decode()), "its public key of ecdsa"),
        (sign(MANIFEST, ED25519)[:-1], "not JSON"),
        (sign(MANIFEST, ED25519)[:-1] + b',"algorithm":"hmac-sha256"}', "twice"),
        (sign(MANIFEST, OURS)[:-1] + b',"signature":"' + b"0" * 64 + b'"}', "twice"),
    ],
    ids=itertools.count(),
)
def test_a_malformed_signature_of_a_pair_is_refused(signature: bytes, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason) as caught:
        verify(MANIFEST, signature, SELF_SIGNED)
    assert len(str(caught.value)) < 300


def test_whom_files_of_keys_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = tmp_path / "release.keys"
    both.write_bytes(b"# of release engineering\n" + public(ED25519).to_pem() + b"\n# of CI\n" + public(ECDSA).to_pem())
    expected = Trust((public(ED25519), public(ECDSA)))
    assert trust_policy(both, "file") == trust_policy([str(both)], None) == expected
    assert trust_policy([public(ED25519), ECDSA], "file") == expected  # of a pair, the public half is enough
    monkeypatch.setenv("PF_FILE_REG_SIGN_KEY", "ours")
    monkeypatch.setenv("PFIMG_TRUST", str(both))
    assert trust_policy(None, "file") == trust_policy(None, None) == expected
    assert trust_policy(OURS, "file") == Trust((OURS,))
    assert trust_policy("self-signed", None) == SELF_SIGNED
    (tmp_path / "secret").write_bytes(b"ours")
    for value, reason in (("", "set, but empty"), (str(tmp_path / "secret"), "other than public keys")):
        monkeypatch.setenv("PFIMG_TRUST", value)
        with pytest.raises(SignatureError, match=reason):
            trust_policy(None, "file")
    monkeypatch.setenv("PFIMG_TRUST", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        trust_policy(None, "file")


def test_a_public_half_cannot_sign(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(public(ED25519).to_pem())
    with pytest.raises(SignatureError, match="takes the private half"):
        signing_key(tmp_path / "key.pub", "file")


@pytest.mark.parametrize(
    "vector", json.loads((GOLDEN.parent / "signatures.json").read_text())["documents"], ids=lambda vector: vector["algorithm"]
)
def test_golden_documents_of_pairs(vector: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(vector["private_key"])
    key = SigningKey.from_file(tmp_path / "key")
    assert sign(vector["manifest"].encode(), key) == vector["document"].encode()
    trust = Trust((public(key),))
    assert verify(vector["manifest"].encode(), vector["document"].encode(), trust) == Verdict("verified", vector["fingerprint"])

"""Signatures, against `hmac` and `hashlib` and against files that the reference signed."""

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfimg.errors import SignatureError
from pfimg.signing import PUBLIC_KEY, SIGNATURE_BYTES, SigningKey, Trust, covers, sign, signing_key, trust_policy, verify

GOLDEN = Path(__file__).parents[1] / "conformance" / "registry"
MANIFEST = b'{"schema_version":1}'
OURS = SigningKey.from_text("ours")
THEIRS = SigningKey.from_text("theirs")
SELF_SIGNED = Trust(self_signed=True)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PF_FILE_REG_SIGN_KEY", raising=False)


def document(**changes: object) -> bytes:
    return json.dumps(json.loads(sign(MANIFEST, OURS)) | changes).encode()


@given(st.binary(max_size=500), st.binary(min_size=1, max_size=100))
def test_a_signature_is_what_the_format_says(manifest: bytes, secret: bytes) -> None:
    digest, mac = hashlib.sha256(manifest).hexdigest(), hmac.new(secret, manifest, hashlib.sha256).hexdigest()
    expected = f'{{"algorithm":"hmac-sha256","manifest_digest":"{digest}","signature":"{mac}"}}'
    assert sign(manifest, SigningKey(secret)) == expected.encode()


@given(st.binary(max_size=500), st.binary(min_size=1, max_size=100), st.data())
def test_only_the_same_bytes_and_key_verify(manifest: bytes, secret: bytes, data: st.DataObject) -> None:
    signature = sign(manifest, SigningKey(secret))
    assert verify(manifest, signature, Trust((OURS, SigningKey(secret)))) == "verified"
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
    assert verify(manifest, signature, SELF_SIGNED if key is None else Trust((own,))) == status
    assert sign(manifest, own) == signature


def test_the_public_key_proves_nothing() -> None:
    signature = sign(MANIFEST, PUBLIC_KEY)
    assert verify(MANIFEST, signature, SELF_SIGNED) == "self-signed"
    for trust in (Trust((OURS,)), Trust((PUBLIC_KEY,))):
        with pytest.raises(SignatureError, match="proves nothing"):
            verify(MANIFEST, signature, trust)
    assert verify(MANIFEST, signature, Trust((PUBLIC_KEY,), self_signed=True)) == "self-signed"
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
    assert verify(MANIFEST, reordered, Trust((OURS,))) == "verified"


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

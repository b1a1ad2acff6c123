"""Keys, against published vectors, `cryptography` and the command `openssl`."""

import base64
import itertools
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pfimg.errors import RegistryError, SignatureError
from pfimg.keys import PublicKey, SigningKey, read_keys

VECTORS = json.loads((Path(__file__).parents[1] / "conformance" / "signatures.json").read_text())
ALGORITHMS = pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256-sha256"])
OPENSSL = shutil.which("openssl")
PASSPHRASE = "correct horse"


def made(algorithm: str) -> SigningKey:
    assert algorithm in ("ed25519", "ecdsa-p256-sha256")
    return SigningKey.generate(algorithm)  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", VECTORS["published"], ids=lambda vector: vector["source"])
def test_published_vectors(vector: dict[str, str], tmp_path: Path) -> None:
    message = vector["message"].encode()
    (tmp_path / "key").write_text(vector["private_key"])
    key = SigningKey.from_file(tmp_path / "key")
    assert (key.algorithm, key.sign(message).hex()) == (vector["algorithm"], vector["signature"])
    public = key.public_key
    assert public is not None
    assert public.is_signed(message, bytes.fromhex(vector["signature"]))
    assert not public.is_signed(message + b"x", bytes.fromhex(vector["signature"]))


@ALGORITHMS
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_pair_is_saved_and_read_again(tmp_path: Path, algorithm: str, passphrase: str | None) -> None:
    key, path = made(algorithm), tmp_path / "key"
    key.save(path, passphrase)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.from_file(path, passphrase) == SigningKey.from_file(path, lambda: str(passphrase)) == key
    assert read_keys(tmp_path / "key.pub") == [key.public_key]
    secret = None if passphrase is None else passphrase.encode()
    theirs = serialization.load_pem_private_key(path.read_bytes(), secret)
    spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    assert key.public_key == PublicKey.from_der(theirs.public_key().public_bytes(*spki))
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    assert (tmp_path / "key.pub").read_bytes() == theirs.public_key().public_bytes(*pem)


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
@ALGORITHMS
def test_openssl_makes_and_checks_the_same(tmp_path: Path, algorithm: str) -> None:
    kind = ["-algorithm", "ed25519"] if algorithm == "ed25519" else ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]

    def openssl(*arguments: str) -> bytes:
        command = [str(OPENSSL), *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout

    openssl("genpkey", *kind, "-out", "key")
    openssl("pkey", "-in", "key", "-pubout", "-out", "key.pub")
    openssl("pkey", "-in", "key", "-aes-256-cbc", "-passout", f"pass:{PASSPHRASE}", "-out", "encrypted")
    key = SigningKey.from_file(tmp_path / "key")
    assert key.algorithm == algorithm
    assert SigningKey.from_file(tmp_path / "encrypted", PASSPHRASE) == key
    assert read_keys(tmp_path / "key.pub") == [key.public_key]
    (tmp_path / "data").write_bytes(b"some bytes")
    (tmp_path / "data.sig").write_bytes(key.sign(b"some bytes"))
    raw = ["-rawin"] if algorithm == "ed25519" else ["-rawin", "-digest", "sha256"]
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", "key.pub", *raw, "-in", "data", "-sigfile", "data.sig")
    openssl("pkeyutl", "-sign", "-inkey", "key", *raw, "-in", "data", "-out", "theirs.sig")
    assert read_keys(tmp_path / "key.pub")[0].is_signed(b"some bytes", (tmp_path / "theirs.sig").read_bytes())  # type: ignore[union-attr]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    key = made("ed25519")
    (tmp_path / "key").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        key.save(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    (tmp_path / "key").rename(tmp_path / "key.pub")
    with pytest.raises(FileExistsError):
        key.save(tmp_path / "key")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("key.pub", b"mine")]


def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = made("ed25519")
    key.save(tmp_path / "key", PASSPHRASE)
    with pytest.raises(SignatureError, match="set PFIMG_KEY_PASSPHRASE"):
        SigningKey.from_file(tmp_path / "key")
    monkeypatch.setenv("PFIMG_KEY_PASSPHRASE", PASSPHRASE)
    assert SigningKey.from_file(tmp_path / "key") == key
    for wrong in ("another one", ""):
        monkeypatch.setenv("PFIMG_KEY_PASSPHRASE", wrong)
        with pytest.raises(SignatureError, match="passphrase is") as caught:
            SigningKey.from_file(tmp_path / "key")
        assert caught.value.path == str(tmp_path / "key")
        assert "another one" not in str(caught.value)
    with pytest.raises(SignatureError, match="empty"):
        key.save(tmp_path / "other", "")


def pem(label: str, content: bytes = b"x" * 48) -> bytes:
    return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (label.encode(), base64.b64encode(content), label.encode())


def pkcs8(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form)


ED25519 = ed25519.Ed25519PrivateKey.generate()
PUBLIC = SigningKey.generate().public_key or PublicKey("ed25519", b"")
OPENSSH = ED25519.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PUBLIC.to_pem()[:-30], "does not end"),
        (PUBLIC.to_pem() + b"-----BEGIN PUBLIC KEY-----\n", "does not end"),
        (PUBLIC.to_pem().replace(b"M", b"*"), "no base64"),
        (pem("PUBLIC KEY"), "public key is malformed"),
        (pem("PRIVATE KEY"), "private key is malformed"),
        (pem("CERTIFICATE"), "block 'certificate'"),
        (pem("EC PRIVATE KEY"), "block 'ec private key'"),
        (pem("ENCRYPTED SIGSTORE PRIVATE KEY"), "cosign import-key-pair"),
        (pkcs8(rsa.generate_private_key(65537, 2048)), "of the kind RSA"),
        (pkcs8(ec.generate_private_key(ec.SECP384R1())), "of the kind secp384r1"),
        (pkcs8(ec.generate_private_key(ec.SECP256R1())) * 2, "only public keys share a file"),
        (OPENSSH, "looks like a public key"),
        (PUBLIC.der, "looks like a public key"),
        (b'{"kty":"OKP","crv":"Ed25519"}', "looks like a public key"),
        (b"# nobody\n\n# any more\n", "nothing but comments"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_key_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SignatureError, match=reason) as caught:
        read_keys(tmp_path / "key")
    assert caught.value.path == str(tmp_path / "key")
    assert len(str(caught.value)) < 400


def test_no_secret_is_shown(tmp_path: Path) -> None:
    key = made("ecdsa-p256-sha256")
    assert repr(key) == "SigningKey(algorithm='ecdsa-p256-sha256')"
    path = tmp_path / "key"
    key.save(path)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], lines[1], *lines[2:]]))
    with pytest.raises(SignatureError, match="malformed") as caught:
        SigningKey.from_file(path)
    shown = f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
    assert not any(line.decode() in shown for line in lines[1:-1])


def test_without_the_package_the_error_names_the_extra(tmp_path: Path) -> None:
    made("ed25519").save(tmp_path / "key")
    code = """
import sys
sys.modules["cryptography"] = None  # as if it were not installed
import pfimg
from pfimg.keys import read_keys
assert pfimg.SigningKey.from_text("a secret").sign(b"x")
for act in (pfimg.SigningKey.generate, lambda: read_keys(sys.argv[1]), lambda: read_keys(sys.argv[1] + ".pub")):
    try:
        act()
    except pfimg.RegistryError as error:
        print(error.code, error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "key")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    line = "not_installed public-key signatures need the package cryptography: pip install 'pfimg[sign]'"
    assert done.stdout.splitlines() == [line] * 3
    assert issubclass(SignatureError, RegistryError)

"""Keys: secrets that machines share, and pairs of which the public half checks what the private one has signed.

A file that holds a secret is that secret. A file of PEM blocks holds keys of pairs: a private key (PKCS#8, encrypted or not), or
public keys (SubjectPublicKeyInfo), as many as there are, with comments around them. Which of both a file is follows from its
content alone, and the two are never mistaken for one another: since everybody has a public key, an HMAC keyed with its text would
prove nothing. So what looks like a public key, or is nothing but comments, is refused as a secret.

Private keys of pairs need the package `cryptography` (`pip install 'pfimg[sign]'`), and so does checking what they signed.

Limits: a passphrase is looked for in `PFIMG_KEY_PASSPHRASE` or asked for by the caller; keys of agents, tokens and key services
are not spoken to.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, TypeAlias

from pfimg import config
from pfimg.errors import SignatureError, about

Algorithm: TypeAlias = Literal["hmac-sha256", "ed25519", "ecdsa-p256-sha256"]

HMAC: Final = "hmac-sha256"

_KEY_BYTES: Final = 1 << 16
_BEGIN: Final = b"-----BEGIN "
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----\r?\n(.*?)\r?\n-----END \1-----", re.DOTALL)
_PRIVATE: Final = (b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")
# Public keys of OpenSSH and minisign, and a JSON Web Key.
_PUBLIC_TEXT: Final = re.compile(rb"\s*(?:ssh-|ecdsa-sha2-|sk-ssh-|untrusted comment:|\{\s*\"(?:kty|keys)\")")
# Object identifiers that a SubjectPublicKeyInfo begins with: Ed25519, elliptic curves, RSA.
_PUBLIC_DER: Final = (bytes.fromhex("06032b6570"), bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06092a864886f70d010101"))

Passphrase: TypeAlias = str | Callable[[], str] | None
"""What an encrypted key is opened with, or what asks for it when it is needed; None: `PFIMG_KEY_PASSPHRASE`."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a pair, which checks signatures.

    Attributes:
        algorithm: `ed25519` or `ecdsa-p256-sha256`.
        der: Its SubjectPublicKeyInfo.
    """

    algorithm: Algorithm
    der: bytes = field(repr=False)

    @classmethod
    def from_der(cls, der: bytes) -> "PublicKey":
        """The key in a SubjectPublicKeyInfo.

        Raises:
            SignatureError: It is malformed, or of a kind that is not used here.
        """
        return cls(*_asymmetric().read_public(der))

    @property
    def fingerprint(self) -> str:
        """What the key is called in reports: `sha256:` and the SHA-256 of its SubjectPublicKeyInfo."""
        return f"sha256:{hashlib.sha256(self.der).hexdigest()}"

    def to_pem(self) -> bytes:
        """The key as PEM."""
        text = base64.b64encode(self.der)
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        return b"\n".join([b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""])

    def is_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether its private half has signed these bytes."""
        return bool(_asymmetric().is_signed(self.der, data, signature))


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs manifests: a secret that is shared, or the private half of a pair. The secret does not show in `repr`.

    Attributes:
        secret: The secret; of a pair the private key, as PKCS#8.
        algorithm: `hmac-sha256`, `ed25519` or `ecdsa-p256-sha256`.

    Example:
        >>> SigningKey.from_text("of our fleet")
        SigningKey(algorithm='hmac-sha256')
    """

    secret: bytes = field(repr=False)
    algorithm: Algorithm = HMAC

    def __post_init__(self) -> None:
        if not self.secret:
            raise SignatureError("a key to sign with is empty: anybody could sign with that")
        if self.algorithm == HMAC and (reason := _no_secret(self.secret)):
            raise SignatureError(f"this is no secret to sign with: {reason}")

    @classmethod
    def from_text(cls, text: str) -> "SigningKey":
        """The secret that is this text in UTF-8, as in `PF_FILE_REG_SIGN_KEY`."""
        # A variable that is not UTF-8 comes with its bytes as surrogates.
        return cls(text.encode(errors="surrogateescape"))

    @classmethod
    def from_file(cls, path: str | PathLike[str], passphrase: Passphrase = None) -> "SigningKey":
        """The key that a file holds: a private key as PEM, else a secret, without the line's end that may follow it.

        Args:
            path: The file.
            passphrase: What an encrypted private key is opened with; None for `PFIMG_KEY_PASSPHRASE`.

        Raises:
            SignatureError: The file is empty, larger than 64 KiB, or no key to sign with; or the passphrase is missing or wrong.
            OSError: It cannot be read.
        """
        for key in read_keys(path, passphrase):
            if isinstance(key, cls):
                return key
        raise SignatureError(f"{path} is no key to sign with: it is public, and signing takes the private half", path=path)

    @classmethod
    def generate(cls, algorithm: Literal["ed25519", "ecdsa-p256-sha256"] = "ed25519") -> "SigningKey":
        """A new pair; `ecdsa-p256-sha256` is the kind of key that cosign makes.

        Example:
            >>> key = SigningKey.generate()
            >>> key.algorithm, len(key.sign(b"some bytes"))
            ('ed25519', 64)
        """
        return cls(_asymmetric().generate(algorithm), algorithm)

    @property
    def public_key(self) -> PublicKey | None:
        """The public half; None for a secret, which has none."""
        return None if self.algorithm == HMAC else PublicKey(self.algorithm, _asymmetric().public_of(self.secret))

    def sign(self, data: bytes) -> bytes:
        """The signature of these bytes, always the same for the same key and bytes."""
        if self.algorithm == HMAC:
            return hmac.digest(self.secret, data, "sha256")
        return bytes(_asymmetric().sign(self.secret, data))

    def save(self, path: str | PathLike[str], passphrase: str | None = None) -> None:
        """Writes a pair: the private half to `path`, for its owner alone, and the public one beside it, to `path` and `.pub`.

        Args:
            path: A file that is not there yet; nor may be the other one.
            passphrase: What to encrypt the private half with; None leaves it as it is.

        Raises:
            SignatureError: This is a secret, not a pair; or the passphrase is empty.
            FileExistsError: One of the files is there; none has been changed then.
            OSError: They cannot be written.
        """
        public = self.public_key
        if public is None or passphrase == "":
            raise SignatureError("a secret has no public half to save" if public is None else "the passphrase is empty")
        content = _asymmetric().to_pem(self.secret, None if passphrase is None else passphrase.encode())
        private_path, public_path = Path(path), Path(f"{os.fspath(path)}.pub")
        _create(private_path, content, 0o600)
        try:
            _create(public_path, public.to_pem(), 0o644)
        except BaseException:
            private_path.unlink()
            raise


AnyKey: TypeAlias = SigningKey | PublicKey


def read_keys(path: str | PathLike[str], passphrase: Passphrase = None) -> list[AnyKey]:
    """All keys in a file: a private key, public keys, or a secret.

    Raises:
        SignatureError: There is none, or something else; or the passphrase is missing or wrong.
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(_KEY_BYTES + 1)
    try:
        if len(content) > _KEY_BYTES:
            raise SignatureError(f"it is larger than {_KEY_BYTES:,} bytes")  # noqa: TRY301 - the same words are put around all
        if _BEGIN in content:
            return _from_pem(content, passphrase)
        secret = content.removesuffix(b"\n").removesuffix(b"\r")
        if reason := _no_secret(secret):
            raise SignatureError(reason)  # noqa: TRY301 - likewise
    except SignatureError as error:
        raise SignatureError(f"{path} is no key: {error}", path=path) from error
    return [SigningKey(secret)]


def _from_pem(content: bytes, passphrase: Passphrase) -> list[AnyKey]:
    blocks = list(_BLOCK.finditer(content))
    if len(blocks) != content.count(_BEGIN):
        raise SignatureError("a PEM block in it does not end")
    keys: list[AnyKey] = []
    for block in blocks:
        label = block[1]
        if label == b"PUBLIC KEY":
            try:
                der = base64.b64decode(b"".join(block[2].split()), validate=True)
            except binascii.Error as error:
                raise SignatureError("a PEM block in it is no base64") from error
            keys.append(PublicKey.from_der(der))
        elif label in _PRIVATE:
            opened = _passphrase(passphrase) if label.startswith(b"ENCRYPTED") else None
            algorithm, der = _asymmetric().read_private(block[0], opened)
            keys.append(SigningKey(der, algorithm))
        elif label in (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY"):
            raise SignatureError(
                "it is in the form that only cosign opens: make one with `pfimg keygen --algorithm cosign`, which "
                "`cosign import-key-pair --key` takes too"
            )
        else:
            kind = label.decode().lower()
            raise SignatureError(
                f"it holds a block {kind!r}: `openssl pkey` turns many private keys into PKCS#8, `-pubout` public ones"
            )
    if len(keys) > 1 and any(isinstance(key, SigningKey) for key in keys):
        raise SignatureError("it holds a private key and others: only public keys share a file")
    return keys


def _no_secret(content: bytes) -> str:
    """Why bytes cannot be a secret; empty where they can."""
    if not content:
        return "it is empty"
    if _BEGIN in content:
        return "it is a key of PEM: name the file that holds it"
    is_der = content[:1] == b"0" and any(identifier in content[:32] for identifier in _PUBLIC_DER)
    if is_der or _PUBLIC_TEXT.match(content):
        return "it looks like a public key, which has to be PEM: `openssl pkey -pubin` and `ssh-keygen -e -m PKCS8` convert"
    if all(line.startswith(b"#") for line in content.splitlines() if line.strip()):
        return "it holds nothing but comments"
    return ""


def _passphrase(given: Passphrase) -> bytes:
    if given is None:
        given = config.key_passphrase()
    text = given() if callable(given) else given
    if text is None:
        raise SignatureError("it is encrypted: set PFIMG_KEY_PASSPHRASE to its passphrase")
    return text.encode(errors="surrogateescape")


def _create(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that must not be there yet."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123 - of a descriptor
        try:
            with about(path):
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise


def _asymmetric() -> ModuleType:
    """What needs the package `cryptography`, imported when it is needed; RegistryError names the extra."""
    from pfimg import asymmetric  # noqa: PLC0415 - optional, and slow to import

    return asymmetric

"""Signatures of manifests: who made an image, and whether that counts.

A signature is a small JSON document beside the manifest, made over the manifest's bytes, and is checked before these are parsed.
It is of one of three kinds:

- `hmac-sha256`: by a secret, which is shared among machines that trust one another: whoever can check it can make it too.
  Without a secret of one's own the public constant of the format is used;
- `ed25519` and `ecdsa-p256-sha256`: by the private half of a pair. The public half is in the document, but counts only where the
  reader has it from elsewhere.

A signature by the public constant, or by a pair of which the public half is known from the document alone, proves nothing but
that no byte was damaged, and is reported as `self-signed`, never as `verified`.

Which key counts is decided in this order:

1. what the caller gives: `sign=`, `trust=`;
2. `PFIMG_TRUST`, a file of public keys: one of these must have signed what is pulled, from wherever;
3. `PF_{FILE,S3,IPFS,HF,OCI}_REG_SIGN_KEY`, each for its kind of registry: the secret in it signs, and nothing else is accepted;
4. the public constant: it signs, and what is self-signed is accepted.

A key checks signatures of its own kind and no others, so that a document cannot choose a weaker kind than the key it is held
against.

Limits: no signature tells when it was made; that an image is not older than the one before it is for whoever pulls to see to.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from pfimg import config
from pfimg.errors import SignatureError, about
from pfimg.keys import HMAC, AnyKey, PublicKey, SigningKey, read_keys

SIGNATURE_BYTES: Final = 1 << 20
"""Largest signature that is read, in bytes."""

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_ALGORITHMS: Final = (HMAC, "ed25519", "ecdsa-p256-sha256")
# A signature of ECDSA is the longest, in DER; so is its public key.
_LONGEST_SIGNATURE: Final = 72
_LONGEST_PUBLIC_KEY: Final = 128

PUBLIC_KEY: Final = SigningKey.from_text("processfork-default-self-sign-key.v1")
"""The secret that everybody has."""

Key: TypeAlias = SigningKey | str | PathLike[str]
"""What `sign=` takes: a key, or the file that holds it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a pull accepts.

    Attributes:
        keys: Keys of which one must have signed. The public constant does not count among them.
        self_signed: Whether the public constant will do, or a pair that nobody vouches for.
    """

    keys: tuple[AnyKey, ...] = ()
    self_signed: bool = False


Trusted: TypeAlias = Trust | Literal["self-signed"] | Key | PublicKey | Iterable[Key | PublicKey] | None
"""What `trust=` takes: a key or several of them, files that hold some, or `self-signed`."""


class Verdict(NamedTuple):
    """What a signature proves.

    Attributes:
        status: `verified`, by a key that is trusted; `self-signed`, by the public constant or a pair that nobody vouches for.
        signer: The fingerprint of the public key that checked it; None where it was a secret.
    """

    status: Literal["self-signed", "verified"]
    signer: str | None = None


def signing_key(given: Key | None, key_word: str | None) -> SigningKey:
    """The key to sign with.

    Args:
        given: What the caller wants, if anything.
        key_word: The word in the name of the registry's variable; None when it has no such variable.

    Raises:
        SignatureError: The key is empty.
    """
    if given is None:
        return environment_key(key_word) or PUBLIC_KEY
    return given if isinstance(given, SigningKey) else SigningKey.from_file(given)


def trust_policy(given: Trusted, key_word: str | None) -> Trust:
    """What to accept.

    Args:
        given: What the caller wants: one key or several of them, or `self-signed`, which accepts what is self-signed besides the
            key of the variable; None leaves it to the variables, and where they are unset accepts what is self-signed.
        key_word: The word in the name of the registry's variable; None when it has no such variable.

    Raises:
        SignatureError: A key is empty or malformed, or there is none.
        OSError: A file of keys cannot be read.
    """
    if isinstance(given, Trust):
        return given
    if given is None and (path := config.trust()) is not None:
        return Trust(tuple(_public_keys(path)))
    if given is None or given == "self-signed":
        own = environment_key(key_word)
        return Trust(() if own is None else (own,), self_signed=own is None or given is not None)
    several = (given,) if isinstance(given, SigningKey | PublicKey | str | PathLike) else tuple(given)
    keys = [key for one in several for key in ([one] if isinstance(one, SigningKey | PublicKey) else read_keys(one))]
    if not keys:
        raise SignatureError("nobody is trusted: trust= needs a key, or 'self-signed'")
    # Of a pair, only what checks is kept.
    return Trust(tuple(key.public_key or key if isinstance(key, SigningKey) else key for key in keys))


def environment_key(key_word: str | None) -> SigningKey | None:
    """The key in `PF_<key_word>_REG_SIGN_KEY`, or None when that is unset.

    Raises:
        SignatureError: It is set to nothing, which is more likely a mistake than a wish for no key.
    """
    text = None if key_word is None else config.sign_key(key_word)
    if text == "":
        raise SignatureError(f"PF_{str(key_word).upper()}_REG_SIGN_KEY is set, but empty: give it a key, or unset it")
    return None if text is None else SigningKey.from_text(text)


def sign(manifest: bytes, key: SigningKey) -> bytes:
    """Signs a manifest's bytes; returns the document to put beside it.

    Example:
        >>> from pfimg.signing import sign, verify
        >>> key = SigningKey.from_text("ours")
        >>> verify(b"{}", sign(b"{}", key), Trust(keys=(key,))).status
        'verified'
    """
    signature, public = key.sign(manifest), key.public_key
    values = {
        "algorithm": key.algorithm,
        "manifest_digest": hashlib.sha256(manifest).hexdigest(),
        "signature": signature.hex() if public is None else _base64(signature),
    }
    if public is not None:
        values["public_key"] = _base64(public.der)
    return json.dumps(values, separators=(",", ":")).encode()


def verify(manifest: bytes, signature: bytes, trust: Trust) -> Verdict:
    """Checks who signed a manifest.

    Args:
        manifest: The manifest's bytes, which need not be parsed for this.
        signature: The document beside it.
        trust: What to accept.

    Returns:
        What that proves.

    Raises:
        SignatureError: The signature is malformed, is of other bytes, or is not by a key that is accepted.
    """
    document = parse(signature)
    if document.manifest_digest != (found := hashlib.sha256(manifest).hexdigest()):
        of = document.manifest_digest
        raise SignatureError(f"the signature is of another manifest: of sha256:{of}, but this one is sha256:{found}")
    keys = [key for key in trust.keys if key.algorithm == document.algorithm]
    if not keys and not trust.self_signed:
        wanted = ", ".join(sorted({key.algorithm for key in trust.keys})) or "nobody"
        raise SignatureError(f"the signature is of the kind {document.algorithm}, but trusted is {wanted}: {_FOREIGN}")
    if document.public_key is not None:
        return _verify_public(manifest, document, [key for key in keys if isinstance(key, PublicKey)], trust)
    given = document.signature
    # All are tried, so that the time tells nothing about which one it was.
    ours = [hmac.compare_digest(key.sign(manifest), given) for key in keys if isinstance(key, SigningKey)]
    if hmac.compare_digest(PUBLIC_KEY.sign(manifest), given):
        if trust.self_signed:
            return Verdict("self-signed")
        raise SignatureError("the manifest is signed with the public key only, which proves nothing, where a key is demanded")
    if any(ours):
        return Verdict("verified")
    raise SignatureError(f"the signature is by a key that is not trusted here: {_FOREIGN}")


def covers(manifest: bytes, signature: bytes | None) -> bool:
    """Whether a signature says that it is of this manifest; it is not checked."""
    try:
        return signature is not None and parse(signature).manifest_digest == hashlib.sha256(manifest).hexdigest()
    except SignatureError:
        return False


class Document(NamedTuple):
    """What a signature says, which is not checked yet.

    Attributes:
        algorithm: The kind of the signature.
        manifest_digest: SHA-256 of the manifest that it says it is of, as hex.
        signature: The bytes of the HMAC, or of the signature.
        public_key: The SubjectPublicKeyInfo of whoever says to have signed; None for an HMAC.
    """

    algorithm: str
    manifest_digest: str
    signature: bytes
    public_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest and the signature beside it, as a registry shows them; nothing is checked.

    Attributes:
        ref: The canonical reference of the image.
        manifest: The manifest's bytes.
        document: The bytes of the signature's document.
        algorithm: The kind of the signature.
        signature: Its bytes.
        signer: Fingerprint of the public key that the document names; None where a secret has signed.
    """

    ref: str
    manifest: bytes = field(repr=False)
    document: bytes = field(repr=False)
    algorithm: str
    signature: bytes
    signer: str | None

    def save(self, directory: str | PathLike[str]) -> list[Path]:
        """Writes `manifest.json` and `manifest.json.sig` into a directory, and for other tools `manifest.json.b64`.

        The last is the signature alone, in base64, as cosign takes it; there is none of a secret, which only its owners check.

        Args:
            directory: Made where it is missing.

        Returns:
            What was written.

        Raises:
            FileExistsError: A file is there already.
            OSError: It cannot be written.
        """
        contents = {"manifest.json": self.manifest, "manifest.json.sig": self.document}
        if self.signer is not None:
            contents["manifest.json.b64"] = f"{_base64(self.signature)}\n".encode()
        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with about(root / name), (root / name).open("xb") as file:
                file.write(content)
        return [root / name for name in contents]


def show(ref: str, manifest: bytes, signature: bytes) -> SignedManifest:
    """What a signature says, beside what it is of.

    Raises:
        SignatureError: It is malformed.
    """
    document = parse(signature)
    signer = None if document.public_key is None else f"sha256:{hashlib.sha256(document.public_key).hexdigest()}"
    return SignedManifest(ref, manifest, signature, document.algorithm, document.signature, signer)


def parse(signature: bytes) -> Document:
    """Reads a signature.

    Raises:
        SignatureError: It is malformed, or of an algorithm that is not known.
    """
    if len(signature) > SIGNATURE_BYTES:
        raise SignatureError(f"the signature is larger than {SIGNATURE_BYTES:,} bytes", limit=SIGNATURE_BYTES)
    try:
        values = json.loads(signature.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, SignatureError):
            raise
        raise SignatureError(f"the signature is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SignatureError("the signature is not a JSON object")
    if (algorithm := values.get("algorithm")) not in _ALGORITHMS:
        shown, known = str(algorithm)[:40], ", ".join(_ALGORITHMS)
        raise SignatureError(f"the signature's algorithm {shown!r} is not known here, only {known}", field="algorithm")
    digest = _hex(values, "manifest_digest")
    if algorithm == HMAC:
        return Document(algorithm, digest, bytes.fromhex(_hex(values, "signature")))
    by, public_key = _bytes(values, "signature", _LONGEST_SIGNATURE), _bytes(values, "public_key", _LONGEST_PUBLIC_KEY)
    return Document(algorithm, digest, by, public_key)


_FOREIGN: Final = "is it the right key?"


def _verify_public(manifest: bytes, document: Document, keys: list[PublicKey], trust: Trust) -> Verdict:
    for key in keys:
        if key.is_signed(manifest, document.signature):
            return Verdict("verified", key.fingerprint)
    said = PublicKey.from_der(document.public_key or b"")
    if said.algorithm != document.algorithm:
        raise SignatureError(f"the signature is of the kind {document.algorithm}, its public key of {said.algorithm}")
    if not said.is_signed(manifest, document.signature):
        raise SignatureError("the signature is wrong: the key that it names has not made it")
    if trust.self_signed:
        return Verdict("self-signed", said.fingerprint)
    raise SignatureError(f"the signature is by the key {said.fingerprint}, which is not trusted here: {_FOREIGN}")


def _public_keys(path: str) -> list[AnyKey]:
    """The keys of the standing policy, which everybody may read, so that there is no secret among them."""
    if path == "":
        raise SignatureError("PFIMG_TRUST is set, but empty: give it a file of public keys, or unset it")
    keys = read_keys(path)
    if not all(isinstance(key, PublicKey) for key in keys):
        raise SignatureError(f"{path}, which PFIMG_TRUST names, holds other than public keys", path=path)
    return keys


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(values := dict(pairs)) != len(pairs):
        raise SignatureError("the signature has a key of JSON twice")
    return values


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _hex(values: dict[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise SignatureError(f"the signature's {name} is not 64 hex digits", field=name)
    return value


def _bytes(values: dict[str, object], name: str, most: int) -> bytes:
    value = values.get(name)
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) and len(value) <= 2 * most else b""
    except (binascii.Error, ValueError):
        data = b""
    if not 0 < len(data) <= most or _base64(data) != value:
        raise SignatureError(f"the signature's {name} is not base64 of up to {most} bytes", field=name)
    return data

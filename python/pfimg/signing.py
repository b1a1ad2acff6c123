"""Signatures of manifests: who made an image, and whether that counts.

A signature is a small JSON document beside the manifest, made over the manifest's bytes, and is checked before these are parsed.
It is an HMAC-SHA256, so that whoever can check it can make it too: a key is shared among machines that trust one another. Without
a key of one's own the public constant of the format is used. That proves nothing but that no byte was damaged, and is reported as
`self-signed`, never as `verified`.

Which key counts is decided in this order:

1. what the caller gives: `sign=`, `trust=`;
2. `PF_{FILE,S3,IPFS,HF,OCI}_REG_SIGN_KEY`, each for its kind of registry: what it holds signs, and nothing else is accepted;
3. the public key: it signs, and is accepted as `self-signed`.

Limits: no signature tells when it was made, so that an old image under its old signature is accepted wherever it is put.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Final, Literal, TypeAlias

from pfimg import config
from pfimg.errors import SignatureError

SIGNATURE_BYTES: Final = 1 << 20
"""Largest signature that is read, in bytes."""

_KEY_BYTES: Final = 1 << 16
_ALGORITHM: Final = "hmac-sha256"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret to sign manifests with, and to check such signatures. It does not show in `repr`.

    Example:
        >>> SigningKey.from_text("of our fleet")
        SigningKey()
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.secret:
            raise SignatureError("a key to sign with is empty: anybody could sign with that")

    @classmethod
    def from_text(cls, text: str) -> "SigningKey":
        """The key that is this text in UTF-8, as in `PF_FILE_REG_SIGN_KEY`."""
        # A variable that is not UTF-8 comes with its bytes as surrogates.
        return cls(text.encode(errors="surrogateescape"))

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> "SigningKey":
        """The key that a file holds, without the line's end that may follow it.

        Raises:
            SignatureError: The file is empty, or larger than 64 KiB.
            OSError: It cannot be read.
        """
        with Path(path).open("rb") as file:
            content = file.read(_KEY_BYTES + 1)
        if len(content) > _KEY_BYTES:
            raise SignatureError(f"{path} is no key to sign with: it is larger than {_KEY_BYTES:,} bytes", path=path)
        secret = content.removesuffix(b"\n").removesuffix(b"\r")
        if not secret:
            raise SignatureError(f"{path} is no key to sign with: it is empty", path=path)
        return cls(secret)


PUBLIC_KEY: Final = SigningKey.from_text("processfork-default-self-sign-key.v1")
"""The key that everybody has."""

Key: TypeAlias = SigningKey | str | PathLike[str]
"""What `sign=` takes: a key, or the file that holds it."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a pull accepts.

    Attributes:
        keys: Keys of which one must have signed. The public key does not count among them.
        self_signed: Whether the public key will do.
    """

    keys: tuple[SigningKey, ...] = ()
    self_signed: bool = False


Trusted: TypeAlias = Trust | Literal["self-signed"] | Key | Iterable[Key] | None
"""What `trust=` takes: a key or several of them, or `self-signed`."""


def signing_key(given: Key | None, key_word: str | None) -> SigningKey:
    """The key to sign with.

    Args:
        given: What the caller wants, if anything.
        key_word: The word in the name of the registry's variable; None when it has no such variable.

    Raises:
        SignatureError: The key is empty.
    """
    return _key(given) if given is not None else environment_key(key_word) or PUBLIC_KEY


def trust_policy(given: Trusted, key_word: str | None) -> Trust:
    """What to accept.

    Args:
        given: What the caller wants: one key or several of them, or `self-signed`, which accepts the public key besides the
            variable's; None leaves it to the variable, and where that is unset to the public key.
        key_word: The word in the name of the registry's variable; None when it has no such variable.

    Raises:
        SignatureError: A key is empty, or there is none.
    """
    if isinstance(given, Trust):
        return given
    if given is None or given == "self-signed":
        own = environment_key(key_word)
        return Trust(() if own is None else (own,), self_signed=own is None or given is not None)
    keys = (given,) if isinstance(given, SigningKey | str | PathLike) else tuple(given)
    if not keys:
        raise SignatureError("nobody is trusted: trust= needs a key, or 'self-signed'")
    return Trust(tuple(_key(key) for key in keys))


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
        >>> verify(b"{}", sign(b"{}", key), Trust(keys=(key,)))
        'verified'
    """
    values = {
        "algorithm": _ALGORITHM,
        "manifest_digest": hashlib.sha256(manifest).hexdigest(),
        "signature": _hmac(manifest, key),
    }
    return json.dumps(values, separators=(",", ":")).encode()


def verify(manifest: bytes, signature: bytes, trust: Trust) -> Literal["self-signed", "verified"]:
    """Checks who signed a manifest.

    Args:
        manifest: The manifest's bytes, which need not be parsed for this.
        signature: The document beside it.
        trust: What to accept.

    Returns:
        What that proves: `verified`, one of the keys signed; `self-signed`, the public key did.

    Raises:
        SignatureError: The signature is malformed, is of other bytes, or is not by a key that is accepted.
    """
    digest, given = _parse(signature)
    if digest != (found := hashlib.sha256(manifest).hexdigest()):
        raise SignatureError(f"the signature is of another manifest: of sha256:{digest}, but this one is sha256:{found}")
    # All are tried, so that the time tells nothing about which one it was.
    ours = [hmac.compare_digest(_hmac(manifest, key), given) for key in trust.keys]
    if hmac.compare_digest(_hmac(manifest, PUBLIC_KEY), given):
        if trust.self_signed:
            return "self-signed"
        raise SignatureError("the manifest is signed with the public key only, which proves nothing, where a key is demanded")
    if any(ours):
        return "verified"
    raise SignatureError("the signature is by a key that is not trusted here: is it the right key?")


def covers(manifest: bytes, signature: bytes | None) -> bool:
    """Whether a signature says that it is of this manifest; it is not checked."""
    try:
        return signature is not None and _parse(signature)[0] == hashlib.sha256(manifest).hexdigest()
    except SignatureError:
        return False


def _key(given: Key) -> SigningKey:
    return given if isinstance(given, SigningKey) else SigningKey.from_file(given)


def _hmac(manifest: bytes, key: SigningKey) -> str:
    return hmac.digest(key.secret, manifest, "sha256").hex()


def _parse(signature: bytes) -> tuple[str, str]:
    """The manifest digest and the HMAC in a signature document, both as hex."""
    if len(signature) > SIGNATURE_BYTES:
        raise SignatureError(f"the signature is larger than {SIGNATURE_BYTES:,} bytes", limit=SIGNATURE_BYTES)
    try:
        document = json.loads(signature.decode())
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"the signature is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SignatureError("the signature is not a JSON object")
    if (algorithm := document.get("algorithm")) != _ALGORITHM:
        shown = str(algorithm)[:40]
        raise SignatureError(f"the signature's algorithm {shown!r} is not known here, only {_ALGORITHM!r}", field="algorithm")
    values = {}
    for name in ("manifest_digest", "signature"):
        value = document.get(name)
        if not isinstance(value, str) or not _HEX.fullmatch(value):
            raise SignatureError(f"the signature's {name} is not 64 hex digits", field=name)
        values[name] = value
    return values["manifest_digest"], values["signature"]

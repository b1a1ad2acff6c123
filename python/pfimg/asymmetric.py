"""Ed25519, and ECDSA over P-256 with SHA-256: what of it the package `cryptography` does, on keys as DER.

A private key is PKCS#8, a public one a SubjectPublicKeyInfo. ECDSA signs deterministically (RFC 6979), so that the same key and
bytes give the same signature, as Ed25519 does by itself.

Limits: other keys are refused, also those of other curves.
"""

import re
from typing import Final, Literal, TypeAlias

from pfimg.errors import RegistryError, SignatureError

try:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
except ModuleNotFoundError as error:
    raise RegistryError(
        "public-key signatures need the package cryptography: pip install 'pfimg[sign]'", code="not_installed"
    ) from error

Algorithm: TypeAlias = Literal["ed25519", "ecdsa-p256-sha256"]

_PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_NEEDED: Final = "an Ed25519 key or an ECDSA key of the curve P-256 is needed"
_PASSPHRASE_BYTES: Final = 1 << 10


def generate(algorithm: Algorithm) -> bytes:
    """A new private key."""
    made = ed25519.Ed25519PrivateKey.generate() if algorithm == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    return _der(made)


def read_private(pem: bytes, passphrase: bytes | None) -> tuple[Algorithm, bytes]:
    """The private key in a PEM block.

    Raises:
        SignatureError: It is malformed, of another kind, or the passphrase is wrong.
    """
    if passphrase is not None and not 0 < len(passphrase) <= _PASSPHRASE_BYTES:
        raise SignatureError(f"its passphrase is empty, or longer than {_PASSPHRASE_BYTES:,} bytes")
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # What the library says of it may quote it.
        reason = "the private key is malformed" if passphrase is None else "the passphrase is wrong, or the private key malformed"
        raise SignatureError(reason) from error
    return _algorithm_of(key.public_key()), _der(key)  # type: ignore[arg-type]  # the line before refuses others


def read_public(der: bytes) -> tuple[Algorithm, bytes]:
    """The kind of a public key, and its bytes as they are written.

    Raises:
        SignatureError: It is malformed, or of another kind.
    """
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError("the public key is malformed") from error
    algorithm = _algorithm_of(key)
    return algorithm, key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_of(private: bytes) -> bytes:
    """The public half of a private key."""
    key = _private(private).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def to_pem(private: bytes, passphrase: bytes | None) -> bytes:
    """A private key as PEM, encrypted where there is a passphrase."""
    encryption = serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
    return _private(private).private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def sign(private: bytes, data: bytes) -> bytes:
    """The signature: of Ed25519 64 bytes, of ECDSA the two numbers in DER."""
    key = _private(private)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    try:
        return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm as error:
        message = (
            "the OpenSSL below the package cryptography cannot sign by RFC 6979: it has to be 3.2 or newer, as in its wheels"
        )
        raise SignatureError(message) from error


def is_signed(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the private half of a public key has signed these bytes."""
    key = serialization.load_der_public_key(public)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _algorithm_of(key: object) -> Algorithm:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ecdsa-p256-sha256"
    kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else re.sub("PublicKey|_", "", type(key).__name__)
    raise SignatureError(f"it is of the kind {kind}, but {_NEEDED}")


def _private(der: bytes) -> _PrivateKey:
    key = serialization.load_der_private_key(der, None)
    assert isinstance(key, _PrivateKey)  # noqa: S101 - whoever made the bytes has looked
    return key


def _der(key: _PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

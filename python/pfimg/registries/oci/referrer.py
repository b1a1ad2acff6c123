"""The signature of an image once more, where tools for containers look for it: as a referrer of the image's OCI manifest.

What refers is a Sigstore bundle, version 0.3, with the signature that is in the image: over the bytes of the image's own
manifest, which is a blob of the same repository, and not over the OCI manifest. So nothing is signed anew, a copy takes it along
without a key, and `cosign verify-blob` can be asked about it.
https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md

A registry that knows referrers lists it by itself. For one that does not, it is entered into an index under the tag
`sha256-<hex of the subject>`, as the distribution specification says.

With the last tag of an image its referrer goes too. Which one that is follows from the signature in the image, so that nothing
is taken away that others have made.

Limits: nothing here is read by a pull, which goes by the signature in the image. Two that change one index at the same moment
may forestall one another; each looks whether its change is there, and makes it again. An image that somebody gives another tag
in the moment in which its last one is removed may lose its referrer, until it is pushed again.
"""

import hashlib
import json
import logging
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

from pfimg.errors import BackendError, FormatError
from pfimg.registries.oci.manifest import EMPTY, EMPTY_TYPE, MANIFEST_LIMIT, MEDIA_TYPE, Stored, stored
from pfimg.registries.oci.repository import INDEX_TYPE, Repository
from pfimg.signing import Document, parse

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"

_log = logging.getLogger("pfimg")

_ATTEMPTS: Final = 4


def attach(repository: Repository, subject: Stored, signature: bytes, where: str) -> None:
    """Publishes the signature of an image that has just been published; one by a secret, which nobody else can check, stays.

    A registry that takes no such thing is no reason for the push to fail: there is a warning.

    Args:
        repository: Where the image is.
        subject: Its OCI manifest.
        signature: The signature, as it is in the image.
        where: What this is, for messages.

    Raises:
        BackendError: The registry cannot be reached, or fails.
    """
    document = parse(signature)
    if document.public_key is None:
        return
    content = _referrer(stored(bundle(document, document.public_key)), subject)
    entry = {**_descriptor(MEDIA_TYPE, stored(content)), "artifactType": BUNDLE_TYPE, **_NOTE}

    def entered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return entries if any(known.get("digest") == entry["digest"] for known in entries) else [*entries, entry]

    try:
        for small in (EMPTY, bundle(document, document.public_key)):
            repository.upload(stored(small), small)
        if not repository.put_manifest(stored(content).digest, content):
            _change_index(repository, subject, entered)
    except (BackendError, FormatError) as error:
        if isinstance(error, BackendError) and (error.retryable or error.status is None):
            raise
        _log.warning("%s is published and signed, but its signature is not listed for other tools: %s", where, error)


def detach(repository: Repository, subject: Stored, signature: bytes, where: str) -> None:
    """Takes away what `attach` has published for an image of which no tag is left; what others have entered stays.

    The image is gone already, so that a registry that allows no such thing, or fails, is only warned of.

    Args:
        repository: Where the image was.
        subject: Its OCI manifest.
        signature: The signature that was in the image.
        where: What this is, for messages.
    """
    document = parse(signature)
    if document.public_key is None:
        return
    own = stored(_referrer(stored(bundle(document, document.public_key)), subject))
    try:
        # The list first, so that nobody finds something in it that is gone.
        _change_index(repository, subject, lambda entries: [entry for entry in entries if entry.get("digest") != own.digest])
        repository.remove_manifest(own.digest)
    except (BackendError, FormatError) as error:
        _log.warning("%s is removed, but its signature %s may still be listed for other tools: %s", where, own.digest, error)


def bundle(document: Document, public_key: bytes) -> bytes:
    """The bytes of a Sigstore bundle that says what a signature says. Its hint is the one that cosign gives a key."""
    values = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _base64(hashlib.sha256(public_key).digest())}},
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": _base64(bytes.fromhex(document.manifest_digest))},
            "signature": _base64(document.signature),
        },
    }
    return _to_json(values)


_NOTE: Final = {"annotations": {"dev.sigstore.bundle.content": "message-signature"}}


def _referrer(content: Stored, subject: Stored) -> bytes:
    """The OCI manifest of a bundle."""
    values = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE,
        "artifactType": BUNDLE_TYPE,
        "config": _descriptor(EMPTY_TYPE, stored(EMPTY)),
        "layers": [_descriptor(BUNDLE_TYPE, content)],
        "subject": _descriptor(MEDIA_TYPE, subject),
        **_NOTE,
    }
    return _to_json(values)


def _change_index(
    repository: Repository, subject: Stored, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    """Changes the index that stands in for a list of referrers, until it is as it should be; an empty one is removed."""
    tag = subject.digest.replace(":", "-")
    for attempt in range(_ATTEMPTS):
        before = repository.manifest(tag)
        entries = _entries(before, tag)
        if (changed := change(entries)) == entries:
            return
        if attempt == _ATTEMPTS - 1:
            break
        content = _to_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": changed})
        if len(content) > MANIFEST_LIMIT:
            raise FormatError(f"the index {tag} is full")
        if changed:
            repository.put_manifest(tag, content, INDEX_TYPE)
        elif before is not None:
            # By its digest: one that somebody has put there meanwhile has another.
            repository.remove_manifest(stored(before).digest)
    raise FormatError(f"others keep writing to the index {tag}")


def _entries(content: bytes | None, tag: str) -> list[dict[str, Any]]:
    if content is None:
        return []
    try:
        values = json.loads(content)
        entries = values["manifests"] if values.get("mediaType", INDEX_TYPE) == INDEX_TYPE else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError(f"under the tag {tag} is something else than an index")
    return entries


def _descriptor(media_type: str, what: Stored) -> dict[str, object]:
    return {"mediaType": media_type, "digest": what.digest, "size": what.size}


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _to_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()

"""One repository of an OCI registry: the requests of the distribution specification, and nothing that is decided about images.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md

A blob is uploaded in one request where the registry takes that, else in two; a large one, or one that the registry finds too
large, piece by piece, unless the registry takes no pieces. After a failure it is asked whether it has the blob, or how much of
it, so that an answer that was lost does no harm.

Limits: what has arrived of an upload that was given up stays with the registry until that forgets it.
"""

import hashlib
import json
import mmap
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from pfimg.errors import BackendError, BlobNotFound, FormatError, IntegrityError
from pfimg.registries.base import Traffic
from pfimg.registries.oci.auth import HOW_TO_LOG_IN, Authorization, Scopes
from pfimg.registries.oci.manifest import MANIFEST_READ_LIMIT, MEDIA_TYPE, Stored, stored
from pfimg.registries.web import Reply, WebClient
from pfimg.types import Buffer

T = TypeVar("T")

# A registry shows only manifests of the types that are asked for; other types are named so as to find out what is there.
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_ACCEPT: Final = (
    f"{MEDIA_TYPE}, {INDEX_TYPE}, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)
_OCTETS: Final = {"Content-Type": "application/octet-stream"}
# What is judged here. Redirects, and what may be otherwise a moment later, are the client's.
_JUDGED: Final = frozenset({*range(200, 300), *range(400, 500)} - {408, 425, 429})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_DONE: Final = frozenset({200, 201, 204})
# Errors of a registry that lacks a blob to which a manifest refers.
_LACKING: Final = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "LAYERS_NOT_FOUND"})

# A larger blob is sent piece by piece.
_WHOLE_BYTES: Final = 128 << 20
_PIECE_BYTES: Final = 64 << 20
# Pieces for registries, or what is in front of them, that find those too large.
_SMALL_BYTES: Final = 5 << 20
# What registries that take no pieces say to the first or the second.
_NO_PIECES: Final = frozenset({400, 405, 416, 501})
# Up to this size it is found out whether a registry takes a blob with the request that announces it.
_TRIAL_BYTES: Final = 1 << 20
_ATTEMPTS: Final = 5
_TAGS_A_PAGE: Final = 1000
_TAG_PAGES: Final = 1000


class Repository:
    """A repository; may be used by many threads.

    Args:
        client: Makes the requests.
        registry: The registry's address, such as `https://ghcr.io`.
        name: Of the repository.
        authorization: For the registry.
        traffic: Where requests that are made again are counted.

    Attributes:
        name: Of the repository.
        writing: Whether more than reading is to be asked for when the registry wants credentials.
        mount_from: Another repository of the registry, from which blobs may be had without sending them.
    """

    def __init__(self, client: WebClient, registry: str, name: str, authorization: Authorization, traffic: Traffic) -> None:
        self.name = name
        self.writing = False
        self.mount_from: str | None = None
        self._client = client
        self._registry = registry
        self._authorization = authorization
        self._traffic = traffic
        self._lock = threading.Lock()
        self._takes_blob_at_once: bool | None = None
        self._whole_bytes = _WHOLE_BYTES
        self._piece_bytes = _PIECE_BYTES

    def manifest(self, reference: str) -> bytes | None:
        """The OCI manifest under a tag or digest; None when there is none."""
        reply = self._call("GET", f"manifests/{reference}", {200, 404}, headers={"Accept": _ACCEPT}, limit=MANIFEST_READ_LIMIT)
        return reply.content if reply.status == HTTPStatus.OK else None

    def has_manifest(self, reference: str) -> bool:
        """Whether there is a manifest under a tag or digest."""
        reply = self._call("HEAD", f"manifests/{reference}", {200, 404, 405}, headers={"Accept": _ACCEPT})
        return (
            self.manifest(reference) is not None
            if reply.status == HTTPStatus.METHOD_NOT_ALLOWED
            else reply.status == HTTPStatus.OK
        )

    def manifest_digest(self, tag: str) -> str | None:
        """The digest of the manifest under a tag; None when there is none."""
        reply = self._call("HEAD", f"manifests/{tag}", {200, 404, 405}, headers={"Accept": _ACCEPT})
        if reply.status == HTTPStatus.NOT_FOUND:
            return None
        told = reply.headers.get("Docker-Content-Digest") if reply.status == HTTPStatus.OK else None
        content = None if told else self.manifest(tag)
        return told if content is None else stored(content).digest

    def put_manifest(self, reference: str, content: bytes, media_type: str = MEDIA_TYPE) -> bool:
        """Puts a manifest under a tag or its digest.

        Returns:
            Whether the registry has said that it lists this one where it is asked what refers to its subject.

        Raises:
            BlobNotFound: The registry lacks something that the manifest refers to.
        """
        try:
            reply = self._call("PUT", f"manifests/{reference}", _DONE, headers={"Content-Type": media_type}, content=content)
        except BackendError as error:
            if not error.retryable or self.manifest(reference) != content:
                raise
            return False
        return "OCI-Subject" in reply.headers

    def remove_manifest(self, reference: str) -> bool:
        """Takes a tag away, or by its digest a manifest; False when it is not there.

        Raises:
            BackendError: Among others, with the code `not_offered`, that this registry lets nobody remove such.
        """
        scopes = (f"repository:{self.name}:pull,push,delete",)
        reply = self._call("DELETE", f"manifests/{reference}", {200, 202, 204, 400, 404, 405, 501}, scopes=scopes)
        if reply.status in (400, 405, 501):
            _, text = _errors(reply.content)
            what = "manifests" if ":" in reference else "tags"
            message = f"{self._registry}/v2/{self.name}: the registry removes no {what}: its owner has to allow that"
            told = f"it answered {reply.status}{f': {text}' if text else ''}"
            raise BackendError(f"{message} ({told})", code="not_offered", status=reply.status)
        return reply.status != HTTPStatus.NOT_FOUND

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there."""
        # One that is elsewhere is there; the address of a redirect may be for GET alone.
        return self._call("HEAD", f"blobs/{digest}", {200, 404, *_REDIRECTS}).status != HTTPStatus.NOT_FOUND

    def blob(self, what: Stored, limit: int, title: str) -> bytes:
        """A blob's bytes, checked.

        Args:
            what: Its digest and size.
            limit: LimitExceeded for a larger one.
            title: What it is, for messages.

        Raises:
            BlobNotFound: It is not there.
            IntegrityError: It is not what its digest says.
        """
        reply = self._call("GET", f"blobs/{what.digest}", {200, 404}, limit=limit)
        if reply.status == HTTPStatus.NOT_FOUND:
            raise BlobNotFound(f"{title} ({what.digest}) is not there: push the image again", path=title)
        if (found := f"sha256:{hashlib.sha256(reply.content).hexdigest()}") != what.digest:
            raise IntegrityError(f"{title} hashes to {found} instead of {what.digest}: push the image again", path=title)
        return reply.content

    def fetch(self, what: Stored, path: Path, large: int) -> bytes | Path | None:
        """A blob's bytes, or the path when they are more than `large` and were written to it; None when it is not there.

        Nothing is checked. LimitExceeded where there are more than there should be.
        """
        url = self._url(f"blobs/{what.digest}")
        return self._authorized(lambda headers: self._client.fetch(url, path, large=large, limit=what.size, headers=headers))

    def fetch_range(self, digest: str, offset: int, length: int) -> Buffer | None:
        """Some bytes of a blob; None when it is not there."""
        url = self._url(f"blobs/{digest}")
        return self._authorized(lambda headers: self._client.fetch_range(url, offset, length, headers=headers))

    def tags(self) -> Iterator[str]:
        """All tags, in the registry's order, asked for a page at a time; none for a repository that does not exist."""
        path = f"tags/list?n={_TAGS_A_PAGE}"
        for _ in range(_TAG_PAGES):
            reply = self._call("GET", path, {200, 404}, limit=MANIFEST_READ_LIMIT)
            if reply.status == HTTPStatus.NOT_FOUND:
                return
            try:
                yield from [str(tag) for tag in json.loads(reply.content)["tags"] or ()]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise FormatError(f"{self._registry}/v2/{self.name}/{path}: this is no list of tags: {error}") from error
            following = re.search(r'<([^<>]*)>\s*;\s*rel="?next"?', reply.headers.get("Link", ""))
            if following is None:
                return
            path = self._own(reply, following[1])

    def mount(self, digest: str) -> bool:
        """Tries to have a blob from the repository `mount_from`; returns whether it is here now."""
        reply = self._mounted(digest)
        return reply is not None and reply.status == HTTPStatus.CREATED

    def upload(self, what: Stored, content: Buffer | Path) -> bool:
        """Sees to it that a blob is there.

        Args:
            what: Its digest and size.
            content: Its bytes, or the file that has them.

        Returns:
            Whether bytes were sent for that.
        """
        if self.has_blob(what.digest):
            return False
        failures = 0
        while True:
            # An attempt is judged by how it was made: other threads may learn meanwhile what this registry takes.
            whole_bytes, piece_bytes = self._whole_bytes, self._piece_bytes
            try:
                return self._upload(what, content, whole_bytes, piece_bytes)
            except BackendError as error:
                # Each of the first two is met once or twice, since nothing makes pieces larger again.
                if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and piece_bytes > _SMALL_BYTES:
                    self._whole_bytes = self._piece_bytes = _SMALL_BYTES
                elif error.status in _NO_PIECES and what.size > whole_bytes:
                    self._whole_bytes = sys.maxsize
                else:
                    failures += 1
                    # An upload that is unknown is what a lost answer leaves.
                    if failures == _ATTEMPTS or not (error.retryable or error.status == HTTPStatus.NOT_FOUND):
                        raise
            self._count_retry()
            if self.has_blob(what.digest):
                return True

    def _upload(self, what: Stored, content: Buffer | Path, whole_bytes: int, piece_bytes: int) -> bool:
        begun = self._mounted(what.digest)
        if begun is not None and begun.status == HTTPStatus.CREATED:
            return False
        whole = what.size <= whole_bytes
        begun = begun or self._begin(what, content if whole else None)
        if begun.status == HTTPStatus.CREATED:
            return True
        location = self._own(begun, begun.headers.get("Location"))
        if whole:
            self._call("PUT", _with_digest(location, what), _DONE, headers=_OCTETS, content=content, repeatable=False)
        else:
            least = begun.headers.get("OCI-Chunk-Min-Length", "")
            self._send_pieces(location, what, content, max(piece_bytes, int(least) if least.isdecimal() else 0))
        return True

    def _mounted(self, digest: str) -> Reply | None:
        """Asks for a blob from `mount_from`: 201 when it is here, 202 when it may be uploaded; None when that was not asked."""
        if (source := self.mount_from) is None:
            return None
        scopes = (*self._scopes(), f"repository:{source}:pull")
        query = f"mount={digest}&from={quote(source, safe='')}"
        try:
            return self._call("POST", f"blobs/uploads/?{query}", {201, 202}, repeatable=True, scopes=scopes)
        except BackendError as error:
            if error.status is None or error.retryable:
                raise
            self.mount_from = None  # who may not read there, or not mount, has to send
            return None

    def _begin(self, what: Stored, content: Buffer | Path | None) -> Reply:
        """Begins an upload: 201 when the registry has taken the content with the request, else 202."""
        takes = self._takes_blob_at_once
        if content is not None and (takes or (takes is None and what.size <= _TRIAL_BYTES)):
            path = f"blobs/uploads/?digest={what.digest}"
            reply = self._call("POST", path, _JUDGED - {401, 403}, headers=_OCTETS, content=content, repeatable=True)
            self._takes_blob_at_once = reply.status == HTTPStatus.CREATED
            if reply.status in (201, 202):
                return reply
        return self._call("POST", "blobs/uploads/", {202}, repeatable=True)

    def _send_pieces(self, location: str, what: Stored, content: Buffer | Path, length: int) -> None:
        view = _mapped(content)
        at, failures = 0, 0
        while at < what.size:
            piece = view[at : at + length]
            headers = {**_OCTETS, "Content-Range": f"{at}-{at + len(piece) - 1}"}
            try:
                reply = self._call("PATCH", location, {*_DONE, 202}, headers=headers, content=piece, repeatable=False)
                at += len(piece)
            except BackendError as error:
                failures += 1
                if failures == _ATTEMPTS or not (error.retryable or error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
                    raise
                self._count_retry()
                reply = self._call("GET", location, {200, 204})
                at = _arrived(reply, what.size)
            location = self._own(reply, reply.headers.get("Location") or location)
        self._call("PUT", _with_digest(location, what), _DONE, repeatable=False)

    def _call(
        self,
        method: str,
        path: str,
        accept: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        content: Buffer | Path | None = None,
        limit: int = 1 << 20,
        repeatable: bool | None = None,
        scopes: Scopes | None = None,
    ) -> Reply:
        """Makes a request; `path` is below the repository, or an address that the registry gave."""
        url = self._url(path)
        # What the registry has elsewhere is not for its credentials.
        ours = _origin(url) == _origin(self._registry)
        scopes = scopes or self._scopes()

        def attempt(used: str | None) -> Reply:
            return self._client.request(
                method,
                url,
                headers={**(headers or {}), **({"Authorization": used} if used else {})},
                content=content,
                accept=_JUDGED | frozenset(accept),
                limit=limit,
                repeatable=repeatable,
            )

        used = self._authorization.header(scopes) if ours else None
        reply = attempt(used)
        if reply.status == HTTPStatus.UNAUTHORIZED and ours:
            asked = reply.headers.get("WWW-Authenticate", "")
            if self._authorization.renew(scopes, used, asked):
                reply = attempt(self._authorization.header(scopes))
        if reply.status in accept:
            return reply
        raise self._refusal(reply, f"{method} {_without_query(url)}")

    def _authorized(self, request: Callable[[Mapping[str, str]], T]) -> T:
        """Makes a request with the headers that it needs now."""
        scopes = self._scopes()
        used = self._authorization.header(scopes)
        try:
            return request({"Authorization": used} if used else {})
        except BackendError as error:
            if error.status != HTTPStatus.UNAUTHORIZED or not self._authorization.renew(scopes, used, ""):
                raise
        return request({"Authorization": self._authorization.header(scopes) or ""})

    def _scopes(self) -> Scopes:
        return (f"repository:{self.name}:{'pull,push' if self.writing else 'pull'}",)

    def _url(self, path: str) -> str:
        return path if "://" in path else f"{self._registry}/v2/{self.name}/{path}"

    def _own(self, reply: Reply, location: str | None) -> str:
        """The address in a header, which may be relative."""
        if not location:
            raise BackendError(f"{_without_query(reply.url)}: the registry does not say where to go on (no Location)")
        there, ours = urlsplit(urljoin(reply.url, location)), urlsplit(self._registry)
        # Behind a proxy that ends TLS a registry may take itself for one without.
        if there.hostname == ours.hostname and (there.scheme, ours.scheme) == ("http", "https"):
            there = there._replace(scheme=ours.scheme, netloc=ours.netloc)
        return there.geturl()

    def _refusal(self, reply: Reply, request: str) -> BackendError | BlobNotFound:
        codes, text = _errors(reply.content)
        if request.startswith("PUT") and codes & _LACKING:
            return BlobNotFound(f"{request}: the registry lacks a blob of the image: {text}", path=request)
        told = f" ({text})" if text else ""
        said = f"the registry answered {reply.status}{told}"
        if reply.status == HTTPStatus.UNAUTHORIZED:
            said = f"the registry asks for credentials: {HOW_TO_LOG_IN}"
            if not self._authorization.is_anonymous:
                said = f"the registry does not accept the credentials, or not for this{told}: {HOW_TO_LOG_IN}"
        elif reply.status == HTTPStatus.FORBIDDEN:
            said = f"the credentials do not allow this{told}: {HOW_TO_LOG_IN} with others"
        return BackendError(f"{request}: {said}", status=reply.status)

    def _count_retry(self) -> None:
        with self._lock:
            self._traffic.retries += 1


def _errors(content: bytes) -> tuple[set[str], str]:
    """The codes of a registry's errors, and what they say in one line."""
    try:
        errors = json.loads(content)["errors"]
        found = [(str(error["code"]), str(error.get("message") or "")) for error in errors]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set(), ""
    code, message = found[0] if found else ("", "")
    text = f"{code}: {message}" if message else code
    return {code for code, _ in found}, "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:200]


def _with_digest(location: str, what: Stored) -> str:
    # The query that is there is the registry's own and stays as it is, to the letter.
    return f"{location}{'&' if '?' in location else '?'}digest={quote(what.digest, safe=':')}"


def _origin(url: str) -> tuple[str, str | None, int]:
    """What tells one server from another."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _without_query(url: str) -> str:
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _mapped(content: Buffer | Path) -> memoryview:
    if isinstance(content, Path):
        with content.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return memoryview(content).cast("B")


def _arrived(reply: Reply, size: int) -> int:
    """How many bytes of an upload a registry has, as its `Range` says; `0-0` is what it says of none."""
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", reply.headers.get("Range", "").strip())
    last = int(found[1]) if found else 0
    if last >= size:
        raise BackendError(f"{_without_query(reply.url)}: the registry has more of the upload than there is", status=416)
    return last + 1 if last else 0

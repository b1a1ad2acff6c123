"""`http://` and `https://`: images on a web server or CDN, to be read only, in the tree layout (`registries.tree`).

What lies there is what a push to `file://` or `s3://` wrote. Blobs are fetched side by side, ranges of packs too; where a server
takes no ranges, each pack is read once from its beginning. Nothing that arrives is believed before it was hashed or its signature
was checked, so that plain http is allowed for reading; credentials then stay at home.

A path is taken as it is: what is escaped in it already stays so, and what else needs an escape gets one.

Limits: packs are found by the image that uses them, because web servers list no directories.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pfimg import config
from pfimg._core import PackIndex
from pfimg.errors import BackendError, BlobNotFound, RegistryError
from pfimg.registries.base import Pack, Range, Sink, StoredBlob, Traffic, blob_name
from pfimg.registries.connections import Patience
from pfimg.registries.refs import AnyRef, HttpRef
from pfimg.registries.tree import DESCRIPTION, MANIFEST, SIGNATURE, TreeTransport, pack_name
from pfimg.registries.web import WebClient, netrc_authorization
from pfimg.registries.workers import LARGE_BYTES, Workers
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry
from pfimg.types import Buffer, StrPath

BLOB_BYTES: Final = 16 << 30
"""Largest frame that is fetched, in bytes."""

_PORTS: Final = {"http": 80, "https": 443}
_HERE: Final = 200
_CACHED: Final = 304
_FORBIDDEN: Final = 403
_ABSENT: Final = (404, 410)
_NO_HEAD: Final = (405, 501)
# What stands for itself in a path (RFC 3986), and the sign of an escape.
_UNESCAPED: Final = "/%:@!$&'()*+,;=~"
_HINTS: Final = {
    401: "put a token into PFIMG_HTTP_TOKEN, or name and password into ~/.netrc",
    403: "the credentials do not allow that, or it is not there, which some object stores do not tell",
}


class HttpRegistry(TransportRegistry):
    """A registry for `http://` and `https://` references, for reading.

    Args:
        sign_key: The key that must have signed what is pulled, or the file that holds it; None accepts the public one.
        token: What proves who is asking (`Authorization: Bearer`), None for `PFIMG_HTTP_TOKEN`. Without a token, `.netrc` is
            looked into.
        ca: A file of certificates to trust, instead of those of `SSL_CERT_FILE` or the usual ones.
        timeout: Seconds without a sign of life after which a request fails; 30 when not given, and 10 for connecting.
        attempts: How often a request is made that fails for a passing reason; 6 times when not given.
        jobs: Requests at once.

    Example:
        >>> registries.HttpRegistry(attempts=1).exists("http://localhost:1/images")
        Traceback (most recent call last):
        pfimg.errors.BackendError: http://localhost:1/images/manifest.json: no connection: connection refused: check the address
    """

    def __init__(
        self,
        *,
        sign_key: Key | None = None,
        token: str | None = None,
        ca: StrPath | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
        jobs: int | None = None,
    ) -> None:
        def connect(ref: HttpRef) -> HttpTransport:
            return HttpTransport(ref, token=token, ca=ca, timeout=timeout, attempts=attempts, jobs=jobs)

        super().__init__(connect, ("http", "https"), sign_key=sign_key)


class HttpTransport(TreeTransport):
    """The transport for one directory of a web server; what writes is refused."""

    read_only = "push to the directory or bucket that the web server shows"
    pack_bytes = 0  # packs are only read
    packs_above = None

    def __init__(
        self,
        ref: HttpRef,
        *,
        token: str | None = None,
        ca: StrPath | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
        jobs: int | None = None,
    ) -> None:
        self._ref = ref
        self.root = _escaped(str(ref))
        self._seen: dict[str, tuple[str, bytes]] = {}
        self._takes_ranges: bool | None = None
        self.traffic = Traffic()
        patience = Patience() if timeout is None else Patience(connect=timeout, silence=timeout, window=timeout)
        if attempts is not None:
            patience = dataclasses.replace(patience, attempts=attempts)
        self._client = WebClient(self.traffic, ca=ca, credentials=_credentials(ref, token), patience=patience, hints=_HINTS)
        self._workers = Workers(jobs, self.traffic, str(ref), self._client.stop)

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport."""
        found = self._workers.map(self._has_blob, digests)
        return {digest for digest, is_there in found if not is_there}

    def send(self, items: Iterable[StoredBlob]) -> None:  # noqa: ARG002 - for writing
        """See Transport."""
        raise self._refusal()

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        self._workers.fetch(digests, self._get, sink)

    def send_packs(self, packs: Iterable[Pack]) -> None:  # noqa: ARG002 - for writing
        """See PackTransport."""
        raise self._refusal()

    def packs_here(self, ref: AnyRef, digests: Sequence[str]) -> PackIndex:  # noqa: ARG002 - the image has them or nobody has
        """See PackTransport: those of the image."""
        try:
            self.read_manifest(ref)
        except BackendError as error:
            if error.status not in _ABSENT:
                raise
        return self.packs_of_image() or PackIndex.join([])

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        """See PackTransport."""
        rest = list(enumerate(ranges))
        if self._takes_ranges is None and rest:
            at, part = rest.pop(0)
            self._takes_ranges = self._fetch_parts(part.pack, [(at, part)], deliver)
        if self._takes_ranges:
            with closing(self._workers.map(self._fetch_part, rest, lambda item: item[1].length)) as results:
                for (at, _), content in results:
                    deliver(at, content)
            return
        rest.sort(key=lambda item: (item[1].pack, item[1].offset))
        for pack, parts in groupby(rest, key=lambda item: item[1].pack):
            self._fetch_parts(pack, list(parts), deliver)

    def read_object(self, name: str, limit: int) -> bytes | None:
        """See TreeTransport. What is read again is asked of the server itself, which need not send what has not changed."""
        seen = self._seen.get(name)
        headers = {"Cache-Control": "no-cache", "If-None-Match": seen[0]} if seen else {}
        accept = {_HERE, *_ABSENT, *([_CACHED] if seen else [])}
        if name == DESCRIPTION:
            accept.add(_FORBIDDEN)  # so object stores tell that something is not there; most trees have no description
        reply = self._client.request("GET", self._url(name), headers=headers, accept=accept, limit=limit)
        if seen and reply.status == _CACHED:
            return seen[1]
        if reply.status != _HERE:
            return None
        if name in (MANIFEST, SIGNATURE) and "ETag" in reply.headers:
            self._seen[name] = reply.headers["ETag"], reply.content
        return reply.content

    def read_objects(self, names: Sequence[str], limit: int) -> list[bytes | None]:
        """See TreeTransport."""
        found = dict(self._workers.map(lambda name: self.read_object(name, limit), names))
        return [found[name] for name in names]

    def replace_objects(self, objects: Mapping[str, bytes]) -> None:  # noqa: ARG002 - for writing
        """See TreeTransport."""
        raise self._refusal()

    def describe(self, feature: str) -> None:  # noqa: ARG002 - for writing
        """See TreeTransport."""
        raise self._refusal()

    def has_object(self, name: str) -> bool:
        """See TreeTransport."""
        reply = self._client.request("HEAD", self._url(name), accept={_HERE, *_ABSENT, *_NO_HEAD})
        if reply.status in _NO_HEAD:
            return self._client.fetch_range(self._url(name), 0, 1) is not None
        return reply.status == _HERE

    def list_packs(self) -> Sequence[str]:
        """See TreeTransport."""
        return self._packs

    def show(self, name: str) -> str:
        """See TreeTransport."""
        return self._url(name)

    def absent(self, name: str) -> Exception:
        """See TreeTransport."""
        return BackendError(f"{self.show(name)}: there is no image here", status=404)

    def _has_blob(self, digest: str) -> bool:
        return self.has_object(blob_name(digest)) or (self.has_floats and self.has_object(blob_name(digest, ".fpl")))

    def _get(self, digest: str, path: Path) -> bytes | Path:
        content = self._client.fetch(self._url(blob_name(digest)), path, large=LARGE_BYTES, limit=BLOB_BYTES)
        if content is None and self.has_floats:
            content = self._client.fetch(self._url(blob_name(digest, ".fpl")), path, large=LARGE_BYTES, limit=BLOB_BYTES)
        if content is None:
            raise BlobNotFound(f"blob {digest} is not in {self._ref}: push the image again", digest=digest)
        return content

    def _fetch_part(self, item: tuple[int, Range]) -> bytes:
        found: list[bytes] = []
        self._fetch_parts(item[1].pack, [item], lambda _, content: found.append(content))
        return found[0]

    def _fetch_parts(self, pack: str, parts: Sequence[tuple[int, Range]], deliver: Callable[[int, bytes], object]) -> bool:
        """Fetches parts of a pack by one request; returns whether the server took the range."""
        url = self._url(pack_name(pack))
        spans = [(part.offset, part.length) for _, part in parts]
        ranged = self._client.fetch_parts(url, spans, lambda at, content: deliver(parts[at][0], content))
        if ranged is None:
            raise BlobNotFound(f"pack {url} is not there: push the image again", path=url)
        return ranged

    def _url(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _refusal(self) -> RegistryError:
        return RegistryError(f"{self._ref} is read-only: {self.read_only}", code="not_offered")


def _credentials(ref: HttpRef, token: str | None) -> Callable[[str, int], str | None]:
    """Tells the value of `Authorization` for a server: the token is for the one that the reference names."""
    own = ref.host.strip("[]"), ref.port or _PORTS[ref.scheme]

    def find(host: str, port: int) -> str | None:
        given = (token or config.http_token() or "").strip()
        return f"Bearer {given}" if given and (host, port) == own else netrc_authorization(host)

    return find


def _escaped(url: str) -> str:
    """A reference as an address; an escape that is there already stays as it is."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}{slash}{quote(re.sub(r'%(?![0-9A-Fa-f]{2})', '%25', path), safe=_UNESCAPED)}"

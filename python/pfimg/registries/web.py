"""Requests to web servers, for the adapters that speak HTTP: bounded in time, repeated where that is safe, and discreet.

`WebClient` speaks by the messages of httpx and the connections of httpcore below it. A client of httpx itself would remember
cookies, follow redirects and log addresses as no registry should. What there is instead:

- Time: a server that is silent, or that drips, ends with RegistryTimeout. The watch is on the socket, below HTTP and TLS, so
  that dripped headers and chunk sizes count as little as a dripped body does.
- Repetition: what failed for a passing reason is tried again; a request that may not be made twice only where the server cannot
  have begun to work on it. A large body goes on where it broke off.
- Bodies: declared lengths are checked, sizes are capped, and an encoding of the transfer is refused, since a blob's own bytes
  are what is hashed.
- Discretion: credentials go to the host that they are for, over TLS or within this machine, and nowhere else after a redirect.
  No error and no log line has a query or a user part of an address.

This module, `registries.connections` and `registries.retries` are the ones that know httpx; they are imported when a registry is
opened.
"""

import logging
import os
import re
import sys
import threading
import weakref
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Final, NamedTuple, Self

import httpcore
import httpx

from pfimg.errors import BackendError, FormatError, LimitExceeded, about
from pfimg.registries.base import MANIFEST_BYTES, Traffic
from pfimg.registries.connections import Body, Connections, Patience, Stream, origin, port, show
from pfimg.registries.retries import EXCEPTIONS, Failure, Retries
from pfimg.types import Buffer, StrPath

MAX_REDIRECTS: Final = 5
"""Redirects that one request follows."""

# An answer that is not wanted is read nevertheless when it is shorter than this.
_REST: Final = 16 << 10
# What a request says to whomever it is redirected; everything else is for the server that was asked.
_FORWARDED: Final = frozenset({"accept", "content-type", "if-match", "if-none-match", "if-range", "range"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Reply(NamedTuple):
    """An answer that was read in full. `url` is where it came from, after redirects."""

    status: int
    headers: httpx.Headers
    content: bytes
    url: str


class Discreet(logging.Filter):
    """Keeps what libraries log about our requests out of the logs: it has addresses with their queries.

    Args:
        names: Of their loggers. What they log in a thread while that is in a `with` block of this is dropped.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.here = threading.local()
        for name in names:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - none of them
        """See logging.Filter."""
        return not getattr(self.here, "ours", False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block in which nothing is logged by this thread."""
        before, self.here.ours = getattr(self.here, "ours", False), True
        try:
            yield
        finally:
            self.here.ours = before


_discreet: Final = Discreet("httpcore.connection", "httpcore.http11", "httpcore.proxy")


class WebClient:
    """Requests to one place and wherever it redirects to; may be used by many threads.

    Args:
        traffic: Where repetitions are counted.
        ca: A file of certificates to trust instead of the usual ones, which are those of `SSL_CERT_FILE` or `SSL_CERT_DIR`, else
            those of certifi.
        credentials: Called with host and port; returns the value of `Authorization` for that server, None for none.
        patience: How long to wait.
        hints: What to do about a status, for its message.
    """

    def __init__(
        self,
        traffic: Traffic,
        *,
        ca: StrPath | None = None,
        credentials: Callable[[str, int], str | None] = lambda _host, _port: None,
        patience: Patience | None = None,
        hints: Mapping[int, str] | None = None,
    ) -> None:
        self._credentials = credentials
        self._patience = patience or Patience()
        self._hints = hints or {}
        self._retries = Retries(self._patience, traffic)
        self._connections = Connections(ca, self._patience)
        weakref.finalize(self, self._connections.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes connections; the next request makes new ones."""
        self._connections.close()

    def stop(self) -> None:
        """Ends requests that are under way in other threads: they fail soon, and are not made again."""
        self._retries.stop()
        self._connections.stop()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Buffer | Path | Stream | None = None,
        accept: Collection[int] = (200,),
        limit: int = MANIFEST_BYTES,
        repeatable: bool | None = None,
    ) -> Reply:
        """Makes a request and reads its answer.

        Args:
            method: In upper case.
            url: Absolute; percent-encoded.
            headers: Beside the usual ones. Where `Authorization` is among them, it is for this host alone.
            content: The body: bytes, the file that holds them, or what makes them.
            accept: Statuses to return; any other is raised. A redirect that is not among them is followed.
            limit: LimitExceeded for a longer answer.
            repeatable: Whether the request may be made twice; None goes by the method. One that may not is repeated only where
                the server cannot have begun to work on it.

        Raises:
            BackendError, RegistryTimeout: The server cannot be reached, or answered with another status.
            LimitExceeded: The answer is too long.
        """

        def attempt() -> Reply:
            with self._answer(method, url, headers or {}, content, accept) as answer:
                body = b"" if method == "HEAD" else b"".join(_pieces(answer, limit))
                return Reply(answer.status_code, answer.headers, body, str(answer.url))

        return self._retries.run(attempt, method in _IDEMPOTENT if repeatable is None else repeatable)

    def fetch(
        self,
        url: str,
        path: Path,
        *,
        large: int,
        limit: int,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        absent: Collection[int] = (404, 410),
    ) -> bytes | Path | None:
        """Fetches a body: small ones into memory, others into a file, which goes on where it broke off.

        Args:
            url: Absolute; percent-encoded.
            path: The file to write.
            large: Bodies of more bytes than this are written to it.
            limit: LimitExceeded for a longer body.
            size: How long the body must be, where that is known.
            headers: Beside the usual ones.
            absent: Statuses for which the result is None.

        Returns:
            The body, the path when it was written there, or None.
        """
        tag: str | None = None  # of the body whose beginning is in the file

        def attempt() -> bytes | Path | None:
            nonlocal tag
            have = path.stat().st_size if tag else 0
            asked = {**(headers or {}), **({"Range": f"bytes={have}-", "If-Range": tag} if tag else {})}
            with self._answer("GET", url, asked, None, {200, *absent, *([206] if tag else [])}) as answer:
                if answer.status_code in absent:
                    return None
                if answer.status_code == HTTPStatus.PARTIAL_CONTENT:
                    _start(answer, have, sys.maxsize)
                    with about(path), path.open("ab") as file:
                        file.writelines(_pieces(answer, limit - have, None if size is None else size - have))
                    return path
                pieces = _pieces(answer, limit, size)
                held: list[bytes] = []
                length = 0
                for piece in pieces:
                    held.append(piece)
                    length += len(piece)
                    if length > large:
                        tag = _strong_tag(answer)
                        with about(path), path.open("wb") as file:
                            file.writelines(held)
                            file.writelines(pieces)
                        return path
                return b"".join(held)

        while True:
            before = path.stat().st_size if tag else 0
            try:
                return self._retries.run(attempt, repeatable=True)
            except BackendError as error:
                if not (tag and error.retryable and path.stat().st_size > before):
                    raise

    def fetch_range(
        self,
        url: str,
        offset: int,
        length: int,
        *,
        headers: Mapping[str, str] | None = None,
        absent: Collection[int] = (404, 410),
    ) -> Buffer | None:
        """Fetches some bytes of a body, as `fetch_parts` does.

        Returns:
            The bytes, or None for a status in `absent`. BackendError where the body ends before them.
        """
        found: list[Buffer] = []
        self.fetch_parts(url, [(offset, length)], lambda _, part: found.append(part), headers=headers, absent=absent)
        return found[0] if found else None

    def fetch_parts(
        self,
        url: str,
        parts: Sequence[tuple[int, int]],
        deliver: Callable[[int, Buffer], object],
        *,
        headers: Mapping[str, str] | None = None,
        absent: Collection[int] = (404, 410),
    ) -> bool | None:
        """Fetches parts of a body by one request for the range that has them all, and cuts them out of what comes.

        A server that takes no ranges sends the body from its beginning, of which no more is read than is needed.

        Args:
            url: Absolute; percent-encoded.
            parts: Offsets and lengths, in the order in which they lie there, and apart from one another.
            deliver: Called with the place of a part in the sequence and its bytes, once for each, in order.
            headers: Beside the usual ones.
            absent: Statuses for which the result is None.

        Returns:
            Whether the server took the range. BackendError where the body ends before the last part does.
        """
        end = parts[-1][0] + parts[-1][1]
        done = 0

        def attempt() -> bool | None:
            nonlocal done
            asked = {**(headers or {}), "Range": f"bytes={parts[done][0]}-{end - 1}"}
            with self._answer("GET", url, asked, None, {200, 206, 416, *absent}) as answer:
                if answer.status_code in absent:
                    return None
                ranged = answer.status_code != HTTPStatus.OK
                at = _start(answer, parts[done][0], end) if ranged else 0
                offset, length = parts[done]
                held = bytearray(length)
                for piece in _pieces(answer):
                    view = memoryview(piece)
                    while True:
                        # The bytes from `first` to `last` are of this part and in this piece.
                        first, last = max(at, offset), min(at + len(piece), offset + length)
                        if first < last:
                            held[first - offset : last - offset] = view[first - at : last - at]
                        if at + len(piece) < offset + length:
                            break
                        deliver(done, held)
                        done += 1
                        if done == len(parts):
                            return ranged
                        offset, length = parts[done]
                        held = bytearray(length)
                    at += len(piece)
                raise Failure(BackendError(f"{show(answer.url)} ends before byte {end:,}"))

        return self._retries.run(attempt, repeatable=True)

    @contextmanager
    def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, accept: Collection[int] = (200,)
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Makes a request, once, and gives the status and the body as it comes; whoever reads it has to tell whether it is whole.

        Raises:
            BackendError, RegistryTimeout: As in `request`, here and while the body is read.
        """
        try:
            with self._answer(method, url, headers or {}, None, accept) as answer:
                yield answer.status_code, _pieces(answer)
        except Failure as failure:
            raise failure.error from failure.__cause__

    @contextmanager
    def _answer(
        self, method: str, url: str, headers: Mapping[str, str], content: Buffer | Path | Stream | None, accept: Collection[int]
    ) -> Iterator[httpx.Response]:
        """One request, through redirects, to an answer with one of the statuses; whatever goes wrong is a Failure."""
        where = httpx.URL(url)
        with _discreet():
            try:
                for _ in range(MAX_REDIRECTS + 1):
                    answer = self._sent(method, where, headers, content)
                    try:
                        if answer.status_code in accept:
                            if answer.is_success and method != "HEAD":
                                _refuse_encoding(answer)
                            yield answer
                            return
                        there = _target(answer, method)
                        if there is None:
                            raise Failure.of_status(answer, self._hint(answer))
                    finally:
                        _finish(answer)
                    if origin(there) != origin(where):
                        headers = {name: value for name, value in headers.items() if name.lower() in _FORWARDED}
                    where = there
                raise Failure(BackendError(f"{show(httpx.URL(url))} redirects more than {MAX_REDIRECTS} times"))
            except (
                httpcore.LocalProtocolError,
                UnicodeEncodeError,
            ) as error:  # it quotes what cannot be sent, which may be secret
                raise Failure.of_exception(error, where, self._patience) from None
            except EXCEPTIONS as error:
                raise Failure.of_exception(error, where, self._patience) from error

    def _sent(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: Buffer | Path | Stream | None
    ) -> httpx.Response:
        fields = httpx.Headers({"Host": url.netloc.decode(), "User-Agent": "pfimg", "Accept": "*/*"})
        fields.update(headers)
        fields["Accept-Encoding"] = "identity"
        if "authorization" not in fields and (own := self._credentials(url.host, port(url))) is not None:
            fields["Authorization"] = own
        if not self._connections.is_private(url):
            fields.pop("authorization", None)
        body = None if content is None else Body(content)
        if body is not None:
            fields["Content-Length"] = str(body.size)
        elif method in ("POST", "PUT", "PATCH"):
            fields["Content-Length"] = "0"
        request = httpx.Request(method, url, headers=fields, stream=body or httpx.ByteStream(b""))
        request.extensions["timeout"] = self._connections.timeout
        answer = self._connections.handle_request(request)
        answer.request = request
        return answer

    def _hint(self, answer: httpx.Response) -> str | None:
        if answer.status_code in (401, 403) and not self._connections.is_private(answer.url):
            return "credentials are not sent over plain http: use https"
        return self._hints.get(answer.status_code)


def basic(user: str, password: str) -> str:
    """The value of `Authorization` for a name and a password."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def netrc_authorization(host: str) -> str | None:
    """The value of `Authorization` that `.netrc`, or the file that `NETRC` names, has for a host; its `default` is for no one.

    Raises:
        FormatError: The file cannot be read as one; the message does not say what is in it.
    """
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc(path).hosts.get(host)
    except FileNotFoundError:
        return None
    except (NetrcParseError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, NetrcParseError) else ""
        raise FormatError(f"{path}{line}: it is not of the form of a .netrc", path=path) from None
    return basic(found[0] or found[1] or "", found[2] or "") if found else None


def _pieces(answer: httpx.Response, limit: int = sys.maxsize, size: int | None = None) -> Iterator[bytes]:
    """The body as it comes, checked against what is declared, known and allowed."""
    text = answer.headers.get("Content-Length", "")
    if text.isdecimal() and "Transfer-Encoding" not in answer.headers:
        _check_length(answer, int(text), limit, size)
    length = 0
    for piece in answer.iter_raw():
        length += len(piece)
        _check_length(answer, length, limit)
        yield piece
    _check_length(answer, length, limit, size)


def _check_length(answer: httpx.Response, length: int, limit: int, size: int | None = None) -> None:
    if length > limit:
        raise LimitExceeded(f"{show(answer.url)} is larger than {limit:,} bytes", limit=limit)
    if size is not None and length != size:
        message = f"{show(answer.url)} is {length:,} bytes long where {size:,} were announced"
        raise Failure(BackendError(message, retryable=True))


def _finish(answer: httpx.Response) -> None:
    """Ends an answer; a short one is read to its end, so that its connection can be used again."""
    try:
        if answer.request.method == "HEAD" or int(answer.headers.get("Content-Length", _REST)) < _REST:
            for _ in answer.iter_raw():
                pass
    except (*EXCEPTIONS, httpx.StreamError, ValueError):
        pass  # nobody asked for the rest
    finally:
        answer.close()


def _strong_tag(answer: httpx.Response) -> str | None:
    """What tells these bytes from any others at the same address."""
    tag: str | None = answer.headers.get("ETag")
    return tag if tag and tag.startswith('"') else None


def _start(answer: httpx.Response, offset: int, end: int) -> int:
    """Where an answer to a request for a range begins; it may end early only where the body does."""
    where = show(answer.url)
    if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise Failure(BackendError(f"{where} ends before byte {end:,}", status=416))
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(?:\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != offset or int(found[2]) >= end:
        raise Failure(BackendError(f"{where}: the server answered with another range than bytes {offset:,} to {end:,}"))
    return offset


def _refuse_encoding(answer: httpx.Response) -> None:
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        message = f"{show(answer.url)} comes with the content encoding {encoding!r}: have the server send files as they are"
        raise Failure(BackendError(message))


def _target(answer: httpx.Response, method: str) -> httpx.URL | None:
    """Where an answer redirects to; None when it does not, or not this method."""
    status = answer.status_code
    if (
        status not in _REDIRECTS
        or (method not in ("GET", "HEAD") and status not in (307, 308))
        or "Location" not in answer.headers
    ):
        return None
    there = answer.url.join(answer.headers["Location"]).copy_with(username=None, password=None, fragment=None)
    if there.scheme not in ("http", "https") or (answer.url.scheme == "https" and there.scheme == "http"):
        message = f"{show(answer.url)} redirects to {show(there)}, which is not safe: ask for that address itself if you want to"
        raise Failure(BackendError(message, status=status))
    return there

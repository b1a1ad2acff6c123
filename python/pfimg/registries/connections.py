"""Connections to web servers, for `registries.web`: watched, and direct or through the proxy that the environment names.

httpx bounds the time of every single read, so that a server that sends a byte now and then is waited for without end, be it in
headers, between chunks or in a body. Here whoever is spoken to has to keep up: the watch is on the socket, below HTTP and TLS.

Limits: HTTP/1.1, proxies of `http://` and `https://`. The time that the system takes to resolve a name is not bounded.
"""

import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import httpcore
import httpx

from pfimg.errors import FormatError, RegistryError
from pfimg.types import Buffer, StrPath

_CHUNK: Final = 64 << 10
# What is sent at a time, so that a peer that takes little is noticed.
_SLICE: Final = 16 << 10
# A longer line between chunks is not waited for.
_LINE_BYTES: Final = 1 << 10
# What is read at a time of an answer that has begun: of a long body as much as has come.
_MORE: Final = 256 << 10
# An idle connection is not used again after so many seconds: servers close theirs after some more, as a rule.
_IDLE_SECONDS: Final = 15
# Servers that one request may lead to by redirects, whose connections are kept for the next.
_HOSTS: Final = 4


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds, and how often to try.

    Attributes:
        connect: For a connection, and again for TLS.
        silence: For the first byte of an answer, and between two.
        window: In so long at least `least` bytes must pass.
        least: Bytes.
        attempts: Requests in all.
        budget: No pause begins that would end later than this after the first request.
        pause: The first pause; each is twice as long as the one before it, and a random part of it longer.
    """

    connect: float = 10.0
    silence: float = 30.0
    window: float = 30.0
    least: int = 1 << 10
    attempts: int = 6
    budget: float = 120.0
    pause: float = 0.2


@dataclass(frozen=True, slots=True)
class Stream:
    """A body that is made as it is sent: its bytes, counted, and what makes them anew at each call."""

    size: int
    pieces: Callable[[], Iterable[bytes]]


class Body(httpx.SyncByteStream):
    """The body of a request, which may be sent again."""

    def __init__(self, content: Buffer | Path | Stream) -> None:
        self._content = content
        if isinstance(content, Stream):
            self.size = content.size
        else:
            self.size = content.stat().st_size if isinstance(content, Path) else memoryview(content).nbytes

    def __iter__(self) -> Iterator[bytes]:
        if isinstance(self._content, Stream):
            yield from self._content.pieces()
        elif isinstance(self._content, Path):
            with self._content.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        else:
            view = memoryview(self._content).cast("B")
            for at in range(0, len(view), _CHUNK):
                yield bytes(view[at : at + _CHUNK])


class Connections(httpx.BaseTransport):
    """Connections that are watched, direct or by the proxy that the environment names.

    A pool looks at all of its connections for every request, so that one for many threads keeps them from working: here each
    request under way has a pool for itself, which is handed on from request to request.
    """

    def __init__(self, ca: StrPath | None, patience: Patience) -> None:
        self._ca = ca
        self._backend = _Backend(patience)
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str | None], list[httpcore.ConnectionPool]] = {}
        self._proxies: dict[tuple[str, str, int], str | None] = {}
        self.timeout = {"connect": patience.connect, "read": patience.silence, "write": patience.silence}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx.BaseTransport; raises the exceptions of httpcore."""
        url = request.url
        pool, hand_on = self._pool(url.scheme, self._proxy(url))
        try:
            answer = pool.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException:
            hand_on()
            raise
        return httpx.Response(answer.status, headers=answer.headers, stream=_Incoming(answer, hand_on))

    def close(self) -> None:
        """Closes the connections that no request is using."""
        with self._lock:
            pools = [pool for pools in self._idle.values() for pool in pools]
            self._idle.clear()
        for pool in pools:
            pool.close()

    def stop(self) -> None:
        """Breaks all connections, so that requests that wait for an answer in other threads fail at once."""
        self._backend.stop()

    def is_private(self, url: httpx.URL) -> bool:
        """Whether nobody on the way can read what is sent."""
        return url.scheme == "https" or (is_loopback(url.host) and self._proxy(url) is None)

    def _proxy(self, url: httpx.URL) -> str | None:
        server = origin(url)
        if server not in self._proxies:
            proxies = getproxies()
            proxy = proxies.get(url.scheme) or proxies.get("all") or None
            if proxy and proxy_bypass(f"{url.host}:{port(url)}"):
                proxy = None
            self._proxies[server] = proxy if proxy is None or "://" in proxy else f"http://{proxy}"
        return self._proxies[server]

    def _pool(self, scheme: str, proxy: str | None) -> tuple[httpcore.ConnectionPool, Callable[[], None]]:
        """A pool for one request, and what gives it to the next."""
        with self._lock:
            idle = self._idle.setdefault((scheme, proxy), [])
            pool = idle.pop() if idle else None
        if pool is None:
            pool = httpcore.ConnectionPool(
                # Reading the certificates that this machine trusts takes 20 ms.
                ssl_context=self._context if scheme == "https" else None,
                proxy=_parse_proxy(proxy) if proxy else None,
                max_connections=_HOSTS,
                keepalive_expiry=_IDLE_SECONDS,
                network_backend=self._backend,
            )
        return pool, lambda: idle.append(pool)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        if self._ca is None:
            return httpx.create_ssl_context()
        try:
            return ssl.create_default_context(cafile=self._ca)
        except ssl.SSLError as error:
            raise FormatError(f"{os.fspath(self._ca)!r} is not a file of certificates in PEM", path=self._ca) from error


class _Incoming(httpx.SyncByteStream):
    """The body of an answer; closing it early closes the connection."""

    def __init__(self, answer: httpcore.Response, hand_on: Callable[[], None]) -> None:
        self._answer = answer
        self._hand_on = hand_on

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()
        self._hand_on()


class _Backend(httpcore.NetworkBackend):
    """Makes connections that are watched, and breaks them."""

    def __init__(self, patience: Patience) -> None:
        self._inner = httpcore.SyncBackend()
        self.patience = patience
        self._lock = threading.Lock()
        self._streams: WeakSet[_Stream] = WeakSet()
        self.stops = 0

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        stops = self.stops
        inner = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return self.watched(inner, stops)

    def watched(self, inner: httpcore.NetworkStream, stops: int) -> httpcore.NetworkStream:
        """A new connection, unless connections have been stopped while it was made."""
        with self._lock:
            if stops == self.stops:
                stream = _Stream(inner, self)
                self._streams.add(stream)
                return stream
        inner.close()
        raise httpcore.ConnectError

    def stop(self) -> None:
        """Breaks all connections."""
        with self._lock:
            self.stops += 1
            streams = list(self._streams)
        for stream in streams:
            stream.shut_down()


class _Stream(httpcore.NetworkStream):
    """A connection whose peer has to keep up.

    Only time that is spent waiting for the peer counts, from the first byte of an answer on; before that it may think for as long
    as it may be silent.
    """

    def __init__(self, inner: httpcore.NetworkStream, backend: "_Backend") -> None:
        self._inner = inner
        self._backend = backend
        self._reading = False
        self._waited = 0.0
        self._passed = 0
        self._chunks = _Chunks()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            data = self._read(max_bytes, timeout)
            if not data or (merged := self._chunks.merge(data)):
                return merged if data else data

    def _read(self, max_bytes: int, timeout: float | None) -> bytes:
        if not self._reading:
            self._reading, self._waited, self._passed = True, 0.0, 0
            self._chunks = _Chunks()
            return self._inner.read(max_bytes, timeout)
        start = time.monotonic()
        data = self._inner.read(max(max_bytes, _MORE), timeout)
        if data and self._is_slow(start, len(data)):
            raise httpcore.ReadTimeout
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._reading:
            self._reading, self._waited, self._passed = False, 0.0, 0
        for at in range(0, len(buffer), _SLICE):
            start = time.monotonic()
            part = buffer[at : at + _SLICE]
            self._inner.write(part, timeout)
            if self._is_slow(start, len(part)):
                raise httpcore.WriteTimeout

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stops = self._backend.stops
        return self._backend.watched(self._inner.start_tls(ssl_context, server_hostname, timeout), stops)

    def shut_down(self) -> None:
        """Ends whatever waits for it in another thread."""
        with suppress(OSError):  # it is closed, or has become one with TLS
            # Past TLS, which would change what the other thread is using.
            socket.socket.shutdown(self._inner.get_extra_info("socket"), socket.SHUT_RDWR)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)

    def _is_slow(self, start: float, size: int) -> bool:
        """Counts a wait and what came of it; at the end of a window, tells whether that was too little."""
        self._waited += time.monotonic() - start
        self._passed += size
        if self._waited < self._backend.patience.window:
            return False
        slow = self._passed < self._backend.patience.least
        self._waited, self._passed = 0.0, 0
        return slow


class _Chunks:
    """Merges the chunks of an answer that have come, since each costs those above as much as a large one.

    There are servers that send 4 KiB a chunk. What is not understood here is passed on as it is, for those above to judge.
    """

    def __init__(self) -> None:
        self._head = b""  # of the answer, until it is whole
        self._rest = b""  # the beginning of a line
        self._left = 0  # bytes of a chunk that are still to come, and the end of its line
        self._again = (0, b"")  # the same for all of the last chunk, and what comes between two of its length
        self._act = self._seek

    def merge(self, data: bytes) -> bytes:
        """What to pass on; nothing, when only a part of a line has come."""
        return self._act(data)

    def _seek(self, data: bytes) -> bytes:
        """Looks for the end of the head."""
        self._head += data
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:  # noqa: PLR2004 - it was not found
            return data
        head, body = self._head[:end], self._head[end:]
        passed = data[: len(data) - len(body)]
        if re.match(rb"HTTP/1\.1 1\d\d ", head):
            self._head = b""
        else:
            chunked = re.search(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", head, re.IGNORECASE)
            self._act = self._merge if chunked else self._pass
        return passed + (self._act(body) if body else b"")

    def _pass(self, data: bytes) -> bytes:
        return data

    def _merge(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        found: list[bytes] = []
        at, tail = 0, b""
        while at < len(data):
            if self._left > 2:  # noqa: PLR2004 - more than the end of the line
                # Most are as long as the one before.
                left, between = self._again
                while data.startswith(between, end := at + self._left - 2):
                    found.append(data[at:end])
                    self._left, at = left, end + len(between)
                found.append(data[at : at + self._left - 2])
                at += len(found[-1])
                self._left -= len(found[-1])
                continue
            end = data.find(b"\r\n", at)
            if end < 0 and len(data) - at < _LINE_BYTES:
                self._rest = data[at:]
                break
            if self._left and end == at:
                self._left, at = 0, end + 2
                continue
            size = re.fullmatch(rb"[0-9A-Fa-f]{1,15}", data[at:end])
            if self._left or not size or int(size[0], 16) == 0:  # the last one, or one that is for those above to judge
                self._act, tail = self._pass, (b"!" if self._left else b"") + data[at:]
                break
            self._left, at = int(size[0], 16) + 2, end + 2
            self._again = self._left, b"\r\n%b\r\n" % size[0]
        merged = b"".join(found)
        return (b"%x\r\n%b\r\n" % (len(merged), merged) if merged else b"") + tail


def _parse_proxy(text: str) -> httpcore.Proxy:
    url = httpx.URL(text)
    if url.scheme not in ("http", "https"):
        raise RegistryError(f"proxy {show(url)}: only proxies of http:// and https:// are spoken: change the proxy variables")
    auth = (url.username.encode(), url.password.encode()) if url.username or url.password else None
    return httpcore.Proxy(str(url.copy_with(username=None, password=None)), auth=auth)


def show(url: httpx.URL) -> str:
    """An address for messages: without what may be secret in it."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """What tells one server from another."""
    return url.scheme, url.host, port(url)


def port(url: httpx.URL) -> int:
    """The port, also where it is the scheme's own."""
    return url.port or (443 if url.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"

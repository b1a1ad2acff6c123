"""A server as it is met through something that errs: all requests pass, but those that a test picks are answered otherwise.

with proxy(server.base_url) as between:
    between.on("PUT", "/blobs/uploads/", lost)     # the first such request arrives, but its answer does not
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tests.servers.client import Response, request
from tests.servers.scripted import Answer, Asked, Peer, Scripted, scripted

# Of one connection, or made anew.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}

Act: TypeAlias = Callable[[Peer, Callable[[], Response]], None]
"""How a request is answered; what it is called with last sends it on."""


def answer(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Act:
    """Answers without asking the server."""
    return lambda peer, _forward: Answer(status, body, headers or {})(peer)


def applied(status: int) -> Act:
    """Answers so although the server has done what it was asked."""

    def act(peer: Peer, forward: Callable[[], Response]) -> None:
        forward()
        Answer(status)(peer)

    return act


def lost(peer: Peer, forward: Callable[[], Response]) -> None:
    """The connection ends before the answer."""
    forward()
    peer.close()


def passed(peer: Peer, forward: Callable[[], Response]) -> None:
    """The server's own answer."""
    respond(peer, forward())


def respond(peer: Peer, response: Response) -> None:
    """Hands a response on."""
    fields = [f"{name}: {value}" for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP]
    length = response.headers.get("Content-Length", "0") if peer.asked.method == "HEAD" else str(len(response.body))
    lines = [f"HTTP/1.1 {response.status} Passed", *fields, f"Content-Length: {length}", "", ""]
    peer.send("\r\n".join(lines).encode() + response.body)


class Proxy:
    """What stands between; `asked` has all requests."""

    def __init__(self, server: Scripted, backend: str) -> None:
        self._server = server
        self._backend = backend
        self._lock = threading.Lock()
        self._rules: list[tuple[re.Pattern[str], re.Pattern[str], Iterator[Act]]] = []
        self.url = server.url
        self.registry = f"127.0.0.1:{server.port}"
        server.otherwise = self._act

    @property
    def asked(self) -> list[Asked]:
        """All requests so far, in the order in which they came."""
        return self._server.asked

    def on(self, method: str, path: str, *acts: Act) -> None:
        """Says how the next requests are answered of which the method, and a part of the path, match these expressions."""
        self._rules.append((re.compile(method), re.compile(path), iter(acts)))

    def always(self, method: str, path: str, act: Act) -> None:
        """Says how all such requests are answered that are left over by then."""
        self._rules.append((re.compile(method), re.compile(path), itertools.repeat(act)))

    def count(self, method: str, path: str) -> int:
        """How many such requests there were."""
        return sum(bool(re.fullmatch(method, asked.method) and re.search(path, asked.path)) for asked in self.asked)

    def _act(self, peer: Peer) -> None:
        asked = peer.asked

        def forward() -> Response:
            return request(f"{self._backend}{asked.path}", asked.method, asked.body or None, asked.headers)

        self._next(asked)(peer, forward)

    def _next(self, asked: Asked) -> Act:
        with self._lock:
            for method, path, acts in self._rules:
                if method.fullmatch(asked.method) and path.search(asked.path) and (act := next(acts, None)) is not None:
                    return act
        return passed


@contextmanager
def proxy(backend: str) -> Iterator[Proxy]:
    """Runs one in front of a server, which it tells the address that it was asked by."""
    with scripted() as server:
        yield Proxy(server, backend)

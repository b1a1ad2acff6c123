"""A server in front of another that fails where a test says so: between a client and a real server, on the way there or back.

    with faulty(minio.endpoint) as front:
        front.faults.append(lambda asked: lost if asked.method == "PUT" else None)

Each fault is a function that is given a request, and returns how that is to go wrong, or None. The first that returns something
decides; other requests are passed on as they came, and so are their answers. What was asked is kept.
"""

import http.client
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

from tests.servers.scripted import Answer, Asked, Peer, Scripted, scripted


class Passed(NamedTuple):
    """What the real server has answered."""

    status: int
    head: bytes
    body: bytes


Way: TypeAlias = Callable[[Peer, Callable[[], Passed]], None]
"""How a request goes wrong; calling the second argument has it carried out."""

Fault: TypeAlias = Callable[[Asked], Way | None]


def sound(peer: Peer, carry_out: Callable[[], Passed]) -> None:
    """Nothing goes wrong."""
    passed = carry_out()
    peer.send(passed.head + passed.body)


def lost(peer: Peer, carry_out: Callable[[], Passed]) -> None:
    """It is carried out, but the answer is lost."""
    carry_out()
    peer.close()


def dropped(peer: Peer, carry_out: Callable[[], Passed]) -> None:  # noqa: ARG001 - a way is called so
    """The connection ends, and nothing is carried out."""
    peer.close()


def cut(peer: Peer, carry_out: Callable[[], Passed]) -> None:
    """The answer ends in the middle of its body."""
    passed = carry_out()
    peer.send(passed.head + passed.body[: len(passed.body) // 2])
    peer.close()


def silent(peer: Peer, carry_out: Callable[[], Passed]) -> None:  # noqa: ARG001 - a way is called so
    """Nobody answers."""
    peer.silence()


def dripping(peer: Peer, carry_out: Callable[[], Passed]) -> None:
    """The answer comes a byte at a time, and would take minutes."""
    passed = carry_out()
    peer.drip(passed.head + passed.body, 1.0)
    peer.close()


def refused(status: int, body: bytes = b"", **headers: str) -> Way:
    """It is not carried out, and answered with this status."""
    return lambda peer, _: Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})(peer)


def done_but(status: int) -> Way:
    """It is carried out, but answered with this status."""

    def way(peer: Peer, carry_out: Callable[[], Passed]) -> None:
        carry_out()
        Answer(status)(peer)

    return way


def first_times(times: int, way: Way, when: Callable[[Asked], bool] = lambda _: True) -> Fault:
    """The first so many attempts at each request go wrong."""
    seen: dict[tuple[str, str, str], int] = {}

    def fault(asked: Asked) -> Way | None:
        if not when(asked):
            return None
        key = asked.method, asked.path, asked.headers.get("range", "")
        seen[key] = seen.get(key, 0) + 1
        return way if seen[key] <= times else None

    return fault


class Faulty:
    """The server in front."""

    def __init__(self, server: Scripted, target: str) -> None:
        self.endpoint = server.url
        self.faults: list[Fault] = []
        self._server = server
        self._target = urlsplit(target).netloc

    @property
    def asked(self) -> list[Asked]:
        """All requests so far."""
        return self._server.asked

    def __call__(self, peer: Peer) -> None:
        way = next((way for fault in self.faults if (way := fault(peer.asked))), sound)
        way(peer, lambda: self._pass_on(peer.asked))

    def _pass_on(self, asked: Asked) -> Passed:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name != "connection":
                    connection.putheader(name, value)
            connection.endheaders(asked.body)
            response = connection.getresponse()
            body = response.read()
            length = response.headers.get("Content-Length") if asked.method == "HEAD" else str(len(body))
            fields = [
                f"{name}: {value}"
                for name, value in response.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
            lines = [f"HTTP/1.1 {response.status} {response.reason}", *fields, *([f"Content-Length: {length}"] if length else [])]
            return Passed(response.status, "\r\n".join([*lines, "", ""]).encode("latin-1"), body)
        finally:
            connection.close()


@contextmanager
def faulty(target: str, context: ssl.SSLContext | None = None) -> Iterator[Faulty]:
    """Runs a server in front of one whose address is `http://…`; with TLS where a context is given."""
    with scripted(context) as server:
        front = Faulty(server, target)
        server.otherwise = front
        yield front

"""A web server that answers as a test says, byte by byte where it must: for what a sound server does not do on demand.

    with scripted() as server:
        server.on("/x", Answer(503, headers={"Retry-After": "1"}), Answer(body=b"hello"))

Each request for a path gets the next of its answers, and the last one from then on. What was asked is kept.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeAlias


class Asked(NamedTuple):
    """A request, where and when (by `time.time`) it came from; the names of its headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    address: tuple[str, int]
    when: float


@dataclass(frozen=True)
class Answer:
    """An answer with a length that is declared truly, unless the headers say otherwise."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, peer: "Peer") -> None:
        headers = {"content-length": str(len(self.body))} | {name.lower(): value for name, value in self.headers.items()}
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in headers.items() if value), "", ""]
        peer.send("\r\n".join(lines).encode() + (b"" if peer.asked.method == "HEAD" else self.body))
        if int(headers["content-length"] or -1) != len(self.body):
            peer.close()


class Peer:
    """Who asked, for answers that are written by hand."""

    def __init__(self, handler: BaseHTTPRequestHandler, asked: Asked, stopped: threading.Event) -> None:
        self._handler = handler
        self.asked = asked
        self.stopped = stopped

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Sends a byte at a time, with pauses, until all is sent or nobody listens."""
        for at in range(len(data)):
            self.send(data[at : at + 1])
            if self.stopped.wait(seconds):
                break

    def silence(self) -> None:
        """Says nothing more until the test is over."""
        self.stopped.wait()
        self.close()

    def tunnel(self, port: int) -> None:
        """Answers CONNECT: passes bytes on to a port of this machine, and back, until both sides have ended."""
        self.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as there:
            back = threading.Thread(target=_pass_on, args=[there, self._handler.connection])
            back.start()
            _pass_on(self._handler.connection, there)
            back.join()
        self.close()

    def close(self) -> None:
        self._handler.close_connection = True


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # one side has gone
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


Script: TypeAlias = Callable[[Peer], None]


class Scripted:
    """The server; `asked` has all requests, in the order in which they came. `otherwise` answers where nothing was said."""

    def __init__(self, scheme: str, port: int, stopped: threading.Event) -> None:
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.port = port
        self.asked: list[Asked] = []
        self.otherwise: Script = Answer(404)
        self._stopped = stopped
        self._scripts: dict[str, list[Script]] = {}
        self._lock = threading.Lock()

    def on(self, path: str, *scripts: Script) -> str:
        """Says how requests for a path, which may have a query, are answered; returns its address."""
        self._scripts[path] = list(scripts)
        return self.url + path

    def answer(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            scripts = self._scripts.get(asked.path, [self.otherwise])
            script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        script(Peer(handler, asked, self._stopped))


@contextmanager
def scripted(context: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """Runs a server in threads; with TLS where a context is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def handle_one_request(self) -> None:
            try:
                self.raw_requestline = self.rfile.readline(65_537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.answer(self, Asked(self.command, self.path, headers, body, self.client_address, time.time()))
            except OSError:  # who asked has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Threads(ThreadingHTTPServer):
        daemon_threads = False
        request_queue_size = 64

        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                request = context.wrap_socket(request, server_side=True) if context else request
            except OSError:  # a client that does not trust us
                return
            with request:
                connections.add(request)
                Handler(request, client_address, self)

    stopped = threading.Event()
    connections: set[socket.socket] = set()
    with Threads(("127.0.0.1", 0), Handler) as threads:
        server = Scripted("https" if context else "http", threads.server_address[1], stopped)
        thread = threading.Thread(target=threads.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            stopped.set()
            threads.shutdown()
            for connection in list(connections):
                with suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join()

"""The sockets: HTTP/1.1 with connections kept open, on two ports for the two origins; and `Hub`, which tests hold."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import secrets
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tests.hub import api, content, lfs  # noqa: F401 - they say what is answered
from tests.hub.faults import Fault
from tests.hub.messages import Refusal, Reply, Request
from tests.hub.repos import Commit, File, Repo
from tests.hub.routes import HUB, STORAGE, Routes
from tests.hub.state import Account, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHUNK = 1 << 18
NO_FAULT = Fault("", "", times=0)


@dataclass(frozen=True)
class Seen:
    """A request that came, and how it was answered; no status where the connection was dropped."""

    host: str  # "hub" or "storage"
    method: str
    target: str
    headers: dict[str, str]  # names in lower case, credentials masked
    size: int
    status: int | None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *args: Any) -> None:
        """Nothing: `Hub.requests` has it all."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client went away, or the Hub is closing
            self.close_connection = True

    def _serve(self) -> None:
        with tempfile.SpooledTemporaryFile(max_size=CHUNK, dir=str(self.server.hub.directory)) as body:
            self.server.hub.serve(self, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that the base class looks for

    def receive(self, body: IO[bytes]) -> Request:
        digest, size = hashlib.sha256(), 0
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        for data in self._chunks() if chunked else self._counted(int(self.headers.get("Content-Length", 0))):
            digest.update(data)
            body.write(data)
            size += len(data)
        body.seek(0)
        return Request(self.command, self.path, self.headers, body, size, digest.hexdigest())

    def _counted(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.rfile.read(min(size, CHUNK))
            if not data:
                raise ConnectionResetError
            size -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield from self._counted(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def send(self, reply: Reply, fault: Fault) -> None:
        self.send_response(reply.status)
        # A reply that says nothing has changed has no body, hence no length either.
        length = {} if reply.status == 304 else {"Content-Length": str(reply.size)}
        for name, value in {**length, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or reply.status == 304:
            return
        end = reply.size if fault.truncate is None else min(reply.size, fault.truncate)
        step, pause = fault.drip or (CHUNK, 0)
        with reply.body.open("rb") if isinstance(reply.body, Path) else io.BytesIO(reply.body) as source:
            source.seek(reply.start)
            for sent in range(0, end, step):
                self.wfile.write(source.read(min(step, end - sent)))
                if pause and self.server.hub.hurried.wait(pause):
                    pause = 0
        if end < reply.size:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    """Waits for its threads when it closes, so it ends their connections first."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, hub: Hub, name: str, host: str, routes: Routes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.name = name
        self.routes = routes
        self.connections: set[socket.socket] = set()
        self.url = f"http://{host}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name=f"hub: {name}")
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()


class Hub(State):
    """A running Hub; as a context manager it stops at the end.

    `token()` gives credentials, `create()` and `write()` make repositories and commits without a client, `files()` and `log()`
    show what is there, `requests` and `seen()` what came, `fault()` lets something fail, and `limits` may be changed. `clear()`
    forgets all of that.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hub-"))
        self.requests: list[Seen] = []
        self.errors: list[Exception] = []  # of the Hub itself: a request that it did not expect, or a mistake in it
        self.faults: list[Fault] = []
        self.hurried = threading.Event()  # what is sent slowly is sent at once while it is set
        objects = self.directory / "objects"
        objects.mkdir()
        super().__init__(objects)
        # Names that differ: the client before version 2 takes two ports of one host for one origin.
        self._servers = [_Server(self, "hub", "127.0.0.1", HUB), _Server(self, "storage", "localhost", STORAGE)]
        self.url, self.storage_url = (server.url for server in self._servers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hurried.set()
        for server in self._servers:
            server.close()
        shutil.rmtree(self.directory)

    def clear(self) -> None:
        with self.lock:
            super().clear()
            self.requests.clear()
            self.errors.clear()
            self.faults.clear()

    # For tests.

    def token(self, user: str = "tester", role: str = "write") -> str:
        """Credentials of a user, who need not exist before; "read" ones may change nothing."""
        token = f"hf_{user}_{role}"
        self.accounts[token] = Account(user, role)
        return token

    def fault(self, method: str, path: str, **how: Any) -> Fault:
        """Lets requests fail; see `Fault`. The first of several that match strikes."""
        fault = Fault(method, path, **how)
        self.faults.append(fault)
        return fault

    def seen(self, method: str, path: str = "") -> list[Seen]:
        """The requests with this method whose path and query match a regular expression, in the order of their replies."""
        with self.lock:
            return [seen for seen in self.requests if seen.method == method and re.search(path, seen.target)]

    def repository(self, name: str, kind: str = "datasets") -> Repo:
        owner, _, short = name.partition("/")
        return self.repos[kind, owner, short]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """All files of a dataset's revision."""
        return content.contents(self, self.repository(name).resolve(revision))

    def log(self, name: str, revision: str = "main") -> list[Commit]:
        """The commits of a dataset's revision, newest first."""
        return list(self.repository(name).resolve(revision).log())

    def write(self, name: str, changes: Mapping[str, bytes | None], branch: str = "main") -> Commit:
        """Commits to a dataset, which is created as a private one if need be. None removes a file."""
        owner, _, short = name.partition("/")
        with self.lock:
            if ("datasets", owner, short) not in self.repos:
                self.create("datasets", owner, short, private=True)
            repo = self.repository(name)
            head = repo.head(branch)
            files = dict(head.files)
            for path, data in changes.items():
                if data is None:
                    del files[path]
                elif head.upload_mode(path, len(data), data[:512], self.limits) == "regular":
                    files[path] = File(len(data), data)
                else:
                    sha256 = hashlib.sha256(data).hexdigest()
                    self.objects.put(io.BytesIO(data), sha256)
                    repo.objects.add(sha256)
                    files[path] = File(len(data), None, sha256)
            return repo.add(branch, files, "written by a test", "", owner)

    # For the handler.

    def serve(self, handler: _Handler, body: IO[bytes]) -> None:
        request = handler.receive(body)
        with self.lock:
            fault = next((fault for fault in self.faults if fault.strikes(request.method, request.target)), NO_FAULT)
            unanswered = fault.drop or fault.status is not None
            reply = Reply() if unanswered and not fault.applied else self._answer(handler.server, request)
            if fault.status is not None:
                reply = Refusal(fault.status, "a fault that a test asked for").reply()
            reply.headers |= fault.headers
            headers = {name.lower(): value for name, value in request.headers.items()}
            if "authorization" in headers:
                headers["authorization"] = "***"
            status = None if fault.drop else reply.status
            self.requests.append(Seen(handler.server.name, request.method, request.target, headers, request.size, status))
        if fault.drop:
            handler.close_connection = True
        else:
            handler.send(reply, fault)

    def _answer(self, server: _Server, request: Request) -> Reply:
        told = {"X-Request-Id": secrets.token_hex(8)}
        try:
            if server.name == "storage":
                return self._storage(request)
            if "/resolve/" in request.path:
                told |= self.count("resolvers")
            elif re.match("/api/(?!resolve-cache/)", request.path):  # where a resolver has led is not counted again
                told |= self.count("api")
            reply = HUB.answer(self, request, self.account(request))
        except Refusal as refusal:
            reply = refusal.reply()
        except Exception as error:  # noqa: BLE001 - whatever it is, tests are told
            self.errors.append(error)
            reply = Refusal(500, f"the Hub did not expect this: {error!r}").reply()
        reply.headers = told | reply.headers
        return reply

    def _storage(self, request: Request) -> Reply:
        if "Authorization" in request.headers:
            raise Refusal(400, "an address that is signed takes no credentials")
        if request.method == "PUT" and "Content-Length" not in request.headers:
            raise Refusal(501, "an upload whose length is not told before it")
        return STORAGE.answer(self, request, None)

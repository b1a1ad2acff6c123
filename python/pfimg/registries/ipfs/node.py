"""Where blocks of IPFS come from and go to: the RPC API of a node (Kubo's), and trustless gateways.

Neither is believed: whoever asks for a block hashes it to its CID. A node answers 500 to everything that goes wrong, with a
message that tells what did. One that is online looks for a block among its peers for as long as it is given, so every command
says how long that is.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from pfimg import config
from pfimg._core import CarPart
from pfimg.errors import BackendError, BadRef, RegistryTimeout
from pfimg.registries.base import Traffic
from pfimg.registries.connections import Patience, Stream
from pfimg.registries.web import Reply, WebClient, basic
from pfimg.types import StrPath

TIMEOUT: Final = 60.0
"""Seconds that a node has to find a block."""

BLOCK_BYTES: Final = 2 << 20
"""Largest block that nodes take from one another, in bytes."""

_ATTEMPTS: Final = 3
# What a node has to take of an upload in a second, on the average.
_SLOWEST: Final = 1 << 20
# The node answers that its time is up before nobody waits for that any more.
_GRACE_SECONDS: Final = 5
_ANSWER_BYTES: Final = 64 << 20
_MULTIADDRESS: Final = re.compile(
    r"/(?:ip4|ip6|dns|dns4|dns6)/(?P<host>[^/]+)/tcp/(?P<port>\d{1,5})(?P<tls>/https|/tls/http)?(?:/http)?"
)
_BOUNDARY: Final = "pfimg-car"
_HEAD: Final = (
    f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.car"\r\n'
    "Content-Type: application/vnd.ipld.car\r\n\r\n"
).encode()
_TAIL: Final = f"\r\n--{_BOUNDARY}--\r\n".encode()
_ABSENT: Final = ("not found locally", "could not find", "block not found")
_LATE: Final = ("deadline exceeded", "context canceled")
_NOT_PINNED: Final = ("is not pinned", "not pinned or pinned indirectly")


class Source(Protocol):
    """Where blocks come from.

    Attributes:
        name: For messages.
    """

    name: str

    def block(self, cid: str) -> bytes | None:
        """A block, which is still to be verified; None when it is not there."""

    def archive(self, cid: str) -> AbstractContextManager[Iterator[bytes]]:
        """All blocks below one as a CAR, as it comes, which is still to be verified and may break off."""

    def resolve(self, name: str) -> str:
        """The CID to which a name of IPNS leads now."""

    def stop(self) -> None:
        """Ends requests that are under way in other threads."""


class Node:
    """A node that has an RPC API.

    Args:
        traffic: Where repetitions are counted.
        endpoint: Where its API is, as a URL or a multiaddress; None goes by `IPFS_API`.
        auth: `bearer:<token>` or `basic:<user>:<password>`; None goes by `IPFS_API_AUTH`.
        ca: A file of certificates to trust instead of the usual ones.
        timeout: Seconds that the node has to find a block.
    """

    def __init__(
        self,
        traffic: Traffic,
        *,
        endpoint: str | None = None,
        auth: str | None = None,
        ca: StrPath | None = None,
        timeout: float | None = None,
    ) -> None:
        self.url = _api_url(endpoint or config.ipfs_api())
        self.name = f"the IPFS node at {self.url} (IPFS_API)"
        self._timeout = timeout or TIMEOUT
        authorization = _authorization(auth if auth is not None else config.ipfs_api_auth())
        hints = {
            401: "the API of this node wants credentials: put them into IPFS_API_AUTH",
            403: "the API of this node refuses that: put credentials into IPFS_API_AUTH, or see API.Authorizations there",
            404: "this is no API of an IPFS node, which IPFS_API must name: has it the gateway's address?",
        }

        def client(seconds: float) -> WebClient:
            silence = seconds + _GRACE_SECONDS
            patience = Patience(silence=silence, window=silence, attempts=_ATTEMPTS)
            return WebClient(traffic, ca=ca, credentials=lambda _host, _port: authorization, patience=patience, hints=hints)

        self._make_client = client
        self._client = client(self._timeout)
        self.stop = self._client.stop

    def block(self, cid: str) -> bytes | None:
        """See Source."""
        return self._ask("block/get", BLOCK_BYTES + (1 << 16), arg=cid)

    @contextmanager
    def archive(self, cid: str) -> Iterator[Iterator[bytes]]:
        """See Source."""
        with (
            self._told(),
            self._client.stream("POST", self._command("dag/export", {"arg": cid, "progress": "false"})) as (_, pieces),
        ):
            yield pieces

    def contents(self, cids: Sequence[str], size: int) -> bytes:
        """The contents of files, one after another, which have so many bytes together; empty where one is not there."""
        query = "&".join(f"arg={cid}" for cid in cids)
        with self._told():
            reply = self._client.request(
                "POST", f"{self._command('cat', {})}&{query}", accept=(200, 500), limit=max(size, 1 << 16), repeatable=True
            )
        return reply.content if reply.status == HTTPStatus.OK else b""

    def resolve(self, name: str) -> str:
        """See Source."""
        reply = self._post("name/resolve", arg=f"/ipns/{name}", recursive="true")
        if reply.status != HTTPStatus.OK:
            raise BackendError(f"ipfs://{name}: {self.name} cannot tell where this name leads: {_message(reply)}", status=404)
        path = str(_json(reply.content, self.name).get("Path", ""))
        found = re.fullmatch(r"/ipfs/([A-Za-z0-9]+)", path)
        if found is None:
            raise BackendError(f"ipfs://{name} leads to {path}, which is not a directory by its CID: use that path instead")
        return found[1]

    def has_pinned(self, cid: str) -> bool:
        """Whether the node keeps a block and everything below it."""
        reply = self._post("pin/ls", arg=cid, type="recursive")
        if reply.status == HTTPStatus.OK:
            return True
        message = _message(reply)
        if any(text in message for text in _NOT_PINNED):
            return False
        raise self._failure("pin/ls", message)

    def below(self, cid: str) -> list[str]:
        """CIDs of all blocks below one that is pinned, and its own."""
        found = self._ask("refs", _ANSWER_BYTES, arg=cid, recursive="true", unique="true") or b""
        lines = [_json(line, self.name) for line in found.splitlines()]
        return [] if any(line.get("Err") for line in lines) else [cid, *(str(line["Ref"]) for line in lines)]

    def load(self, root: str, part: CarPart, pieces: Callable[[], Iterable[bytes]]) -> str:
        """Sends blocks in one request and has what they complete pinned; returns what kept it from being pinned, or nothing.

        Where the answer is lost, or does not come in time, the node is asked whether it has pinned the root all the same.
        """
        # An import whose blocks do not make a whole would have an online node ask its peers for the rest.
        seconds = self._timeout + part.size / _SLOWEST
        url = self._command("dag/import", {"pin-roots": "true", "stats": "true"}, seconds)
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}

        def body() -> Iterator[bytes]:
            yield _HEAD
            yield from pieces()
            yield _TAIL

        content = Stream(len(_HEAD) + part.size + len(_TAIL), body)
        try:
            # It is silent until all is stored and pinned, which takes the longer the more there is.
            with self._told(), self._make_client(seconds) as client:
                reply = client.request("POST", url, headers=headers, content=content, accept=(200, 500), limit=_ANSWER_BYTES)
            if reply.status != HTTPStatus.OK:
                raise self._failure("dag/import", _message(reply))
        except BackendError as error:
            if error.retryable and self._has_come_to_pin(root):
                return ""
            raise
        for line in reply.content.splitlines():
            answer = _json(line, self.name)
            told = answer.get("Root")
            if isinstance(told, dict) and told.get("Cid") == {"/": root}:
                return str(told.get("PinErrorMsg", ""))
        raise BackendError(f"{self.name} does not say that it has {root} after dag/import: is something between that changes it?")

    def _has_come_to_pin(self, root: str) -> bool:
        """Whether an import whose outcome is not known has succeeded; False also where the node does not say."""
        try:
            return self.has_pinned(root)
        except BackendError:
            return False

    def _ask(self, command: str, limit: int, **arguments: str) -> bytes | None:
        """What a command gives; None when it needs a block that is not there."""
        reply = self._post(command, limit, **arguments)
        if reply.status == HTTPStatus.OK:
            return reply.content
        message = _message(reply)
        if any(text in message for text in _ABSENT):
            return None
        raise self._failure(command, message)

    def _post(self, command: str, limit: int = 1 << 20, **arguments: str) -> Reply:
        with self._told():
            return self._client.request(
                "POST", self._command(command, arguments), accept=(200, 500), limit=limit, repeatable=True
            )

    def _command(self, command: str, arguments: Mapping[str, str], seconds: float | None = None) -> str:
        query = urlencode({**arguments, "timeout": f"{seconds or self._timeout:.3f}s"})
        return f"{self.url}/api/v0/{command}?{query}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Has errors of the connection say which setting it follows from."""
        try:
            yield
        except RegistryTimeout as error:
            message = f"{error}: IPFS_API says where the node is, timeout= how long it has"
            raise RegistryTimeout(message, retryable=True) from error
        except BackendError as error:
            if error.status is not None:
                raise
            message = f"{error}: is an IPFS node running there? IPFS_API says where its API is"
            raise BackendError(message, code=error.code, retryable=error.retryable) from error

    def _failure(self, command: str, message: str) -> BackendError:
        if any(text in message for text in _LATE):
            text = f"{self.name} did not end {command} in time: is it connected to peers that have this? timeout= gives it longer"
            return RegistryTimeout(text, retryable=True)
        return BackendError(f"{self.name} failed at {command}: {message}", status=500)


class Gateway:
    """A trustless gateway, which gives blocks and archives to whoever verifies them; it takes nothing.

    Args:
        traffic: Where repetitions are counted.
        url: Where it is, without the `/ipfs/` of its paths.
        ca: A file of certificates to trust instead of the usual ones.
        timeout: Seconds without a sign of life after which a request fails.
    """

    def __init__(self, traffic: Traffic, url: str, *, ca: StrPath | None = None, timeout: float | None = None) -> None:
        self.url = _web_url(url, "IPFS_GATEWAY")
        self.name = f"the gateway {self.url} (IPFS_GATEWAY)"
        seconds = timeout or TIMEOUT
        self._client = WebClient(traffic, ca=ca, patience=Patience(silence=seconds, window=seconds, attempts=_ATTEMPTS))
        self.stop = self._client.stop

    def block(self, cid: str) -> bytes | None:
        """See Source."""
        headers = {"Accept": "application/vnd.ipld.raw"}
        url = f"{self.url}/ipfs/{cid}?format=raw"
        reply = self._client.request("GET", url, headers=headers, accept=(200, 404, 410), limit=BLOCK_BYTES + (1 << 16))
        return reply.content if reply.status == HTTPStatus.OK else None

    @contextmanager
    def archive(self, cid: str) -> Iterator[Iterator[bytes]]:
        """See Source."""
        headers = {"Accept": "application/vnd.ipld.car;version=1;order=dfs;dups=n"}
        with self._client.stream("GET", f"{self.url}/ipfs/{cid}?format=car&car-dups=n", headers=headers) as (_, pieces):
            yield pieces

    def resolve(self, name: str) -> str:
        """See Source. Where a name leads, a gateway could say anything."""
        raise BackendError(f"ipfs://{name}: names are asked of a node, not of {self.name}: give a CID, or unset IPFS_GATEWAY")


def _api_url(text: str) -> str:
    """The API's address without its path, from a URL or a multiaddress."""
    found = _MULTIADDRESS.fullmatch(text.rstrip("/"))
    if found is None:
        return _web_url(text, "IPFS_API").removesuffix("/api/v0")
    host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
    return f"{'https' if found['tls'] else 'http'}://{host}:{found['port']}"


def _web_url(text: str, variable: str) -> str:
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^/?#@\s]+(?:/[^?#\s]*)?", url):
        # There may be a password in it.
        raise BadRef(f"{variable}: this is no address of the form http://host:port, without credentials: correct it")
    return url.rstrip("/").removesuffix("/ipfs")


def _authorization(text: str | None) -> str | None:
    """The value of `Authorization`."""
    if not text:
        return None
    kind, _, rest = text.partition(":")
    if kind == "bearer" and rest:
        return f"Bearer {rest}"
    user, colon, password = rest.partition(":")
    if kind == "basic" and colon:
        return basic(user, password)
    raise BadRef("IPFS_API_AUTH is neither bearer:<token> nor basic:<user>:<password>: correct it")


def _message(reply: Reply) -> str:
    """What a node says has gone wrong, shortened."""
    try:
        text = str(json.loads(reply.content)["Message"])
    except (ValueError, TypeError, KeyError):
        text = reply.content.decode(errors="replace")
    return " ".join(text.split())[:300] or "it does not say why"


def _json(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise BackendError(f"{where} answers with something else than JSON: does IPFS_API name the API of a node?")
    return values

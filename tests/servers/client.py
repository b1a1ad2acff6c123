"""The smallest HTTP client: one request on a connection of its own, the reply as it is, no redirects, no proxy."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message
    from pathlib import Path


class Response(NamedTuple):
    """What a server answered, an error too."""

    status: int
    headers: Message
    body: bytes


def request(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    ca: Path | None = None,
    timeout: float = 30,
) -> Response:
    """Sends a request; for https the server's certificate must be signed by `ca`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
    try:
        connection.request(method, parts._replace(scheme="", netloc="").geturl() or "/", body, dict(headers or {}))
        response = connection.getresponse()
        return Response(response.status, response.msg, response.read())
    finally:
        connection.close()

"""Requests and replies as the answering functions see them: no socket, and ranges and conditions decided."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake
    """An error reply. `code` is the word by which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}

    def reply(self) -> Reply:
        told = {"X-Error-Message": str(self)} | ({"X-Error-Code": self.code} if self.code else {})
        return json_reply({"error": str(self)}, self.status, told | dict(self.headers))


@dataclass(frozen=True)
class Request:
    method: str
    target: str  # path and query as sent, escapes and all
    headers: Message
    body: IO[bytes]
    size: int
    sha256: str  # of the body

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def json(self) -> Any:
        try:
            return json.loads(self.body.read())
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None


@dataclass
class Reply:
    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0  # of the part of the body that is sent
    size: int = -1  # of that part; -1: all of it

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = length(self.body)


def length(body: bytes | Path) -> int:
    return body.stat().st_size if isinstance(body, Path) else len(body)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def content_reply(request: Request, body: bytes | Path, headers: Mapping[str, str]) -> Reply:
    """A file, whole or the one range asked for, or 304 where the client has it already; `headers` must have its ETag."""
    told = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    etag = told["ETag"]
    if etag in re.split(r",\s*", request.headers.get("If-None-Match", "")):
        return Reply(304, b"", told)
    size = length(body)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "").replace(" ", ""))
    if match is None or not any(match.groups()) or request.headers.get("If-Range", etag) != etag:
        return Reply(200, body, told)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        return Reply(416, b"", told | {"Content-Range": f"bytes */{size}"})
    return Reply(206, body, told | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}, start, end - start)

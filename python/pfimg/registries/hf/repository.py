"""One dataset repository of the Hub: the requests, and nothing that is decided about images.

https://huggingface.co/docs/hub/api

What is read goes by `registries.web`, which bounds time, makes requests again, and heeds how long the Hub asks to wait. What
changes something is done by `huggingface_hub`, which knows how contents are uploaded, by LFS or by Xet. That library waits for
an answer without end, so that it is called from threads that can be left behind; and a commit that fails it leaves to its caller.

Limits: contents are downloaded by their addresses, not by Xet, which gives the same bytes. The pauses that the library makes
before it repeats a step of an upload are not counted.
"""

import io
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urljoin

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.lfs import UploadInfo, lfs_upload, post_lfs_batch_info
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils._runtime import is_xet_available

from pfimg._core import digests_of
from pfimg.errors import BackendError, FormatError
from pfimg.registries.base import Traffic
from pfimg.registries.connections import Patience
from pfimg.registries.hf.access import Access
from pfimg.registries.hf.failures import EXCEPTIONS, refusal, understand
from pfimg.registries.retries import Failure, Retries
from pfimg.registries.web import Discreet, Reply, WebClient
from pfimg.registries.workers import Workers
from pfimg.types import Buffer

T = TypeVar("T")

BATCH: Final = 256
"""Objects that one request asks about before they are uploaded."""

PATHS: Final = 500
"""Paths that one request asks about."""

BLOB_BYTES: Final = 16 << 30
"""Largest frame that is fetched, in bytes."""

STALL_SECONDS: Final = 660.0
"""When nothing happens for so long, a call ends: the Hub counts requests in windows of five minutes, whose end is waited for."""

_PATIENCE: Final = Patience(budget=STALL_SECONDS)
# A page of a listing, or an answer about paths; the Hub's have a few hundred KB.
_LISTING_BYTES: Final = 64 << 20
_PAGES: Final = 100_000
_HERE: Final = 200
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_REFUSED: Final = (401, 402, 403, 404)
_ABSENT: Final = 404
_EXPIRED: Final = 403
_HINTS: Final = {401: "put a token into HF_TOKEN", 403: "the token does not allow that, or the repository is gated"}
_TRIES: Final = 4
# Of a pack; Xet takes contents in memory as bytes only. One that is larger has one large frame, and goes by LFS.
_COPIED_BYTES: Final = 64 << 20
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

_quiet: Final = Discreet(
    *(f"huggingface_hub.{room}" for room in ("hf_api", "_commit_api", "lfs", "utils._http", "utils._pagination")),
    *(f"{name}{version}" for version in ("", "2") for name in ("httpx", "httpcore.connection", "httpcore.http11")),
    *(f"httpcore2.{room}" for room in ("connection", "http11", "http2", "proxy")),
)


class Entry(NamedTuple):
    """A file as a listing shows it. `sha256` is that of its content, for one in LFS; `oid` is git's."""

    path: str
    size: int
    oid: str
    sha256: str | None


class Upload(NamedTuple):
    """Contents on their way; without `action`, the library finds the way. `held` are the bytes in memory."""

    additions: list[CommitOperationAdd]
    action: dict[str, Any] | None
    held: int
    keep: object  # what keeps the files of the contents from going away


class Repository:
    """A dataset repository; may be used by many threads.

    Args:
        name: Such as `user/repo`.
        access: The way to the Hub.
        traffic: Where requests that are made again are counted.
    """

    def __init__(self, name: str, access: Access, traffic: Traffic) -> None:
        self.name = name
        self._access = access
        self._traffic = traffic
        self._endpoint = access.endpoint
        self._api = access.api()
        self._api_headers = access.headers()
        self._client = WebClient(traffic, credentials=access.authorization, patience=_PATIENCE, hints=_HINTS)
        self._retries = Retries(_PATIENCE, traffic)
        self._calls = Workers(1, Traffic(), f"{access.endpoint}/datasets/{name}", stall=STALL_SECONDS)
        self._places: dict[str, str] = {}

    def stop(self) -> None:
        """Ends requests that are under way in other threads, as far as they can be ended."""
        self._client.stop()
        self._retries.stop()

    def show(self, path: str = "") -> str:
        """How the repository or a file of it is called in messages."""
        return f"hf://{self.name}{path and '/'}{path}"

    # Reading.

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, a tag or the commit's own id stands for.

        Raises:
            BackendError: With a code of `ABSENT` where there is no such thing.
        """
        values = self._json("GET", f"revision/{quote(revision, safe='')}?expand=sha")
        sha = values.get("sha") if isinstance(values, dict) else None
        if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
            raise FormatError(f"{self.show()}: the Hub does not say which commit {revision} is")
        return sha

    def read(self, revision: str, path: str, limit: int) -> bytes | None:
        """A file's content; None when it is not there. LimitExceeded for a larger one."""
        reply = self._client.request("GET", self._resolve(revision, path), accept={_HERE, *_REFUSED}, limit=limit)
        return reply.content if self._is_there(reply, path) else None

    def has(self, revision: str, path: str) -> bool:
        """Whether a file is there; False also where the revision or the repository is not."""
        reply = self._client.request("HEAD", self._resolve(revision, path), accept={_HERE, *_REDIRECTS, *_REFUSED})
        try:
            return self._is_there(reply, path)
        except BackendError as error:
            if error.status == _ABSENT:
                return False
            raise

    def fetch(self, revision: str, path: str, file: Path, large: int) -> bytes | Path | None:
        """A file's content, or `file` when that is larger and was written there; None when it is not there."""
        return self._client.fetch(self._resolve(revision, path), file, large=large, limit=BLOB_BYTES)

    def fetch_range(self, revision: str, path: str, offset: int, length: int) -> Buffer | None:
        """Some bytes of a file; None when it is not there. Where the content lies is asked once."""
        known = path in self._places
        if (where := self._place(revision, path)) is None:
            return None
        try:
            return self._client.fetch_range(where, offset, length)
        except BackendError as error:
            if error.status != _EXPIRED or not known:
                raise
        if self._places.get(path) == where:  # another thread may have found a new one already
            self._places.pop(path, None)
        where = self._place(revision, path)
        return None if where is None else self._client.fetch_range(where, offset, length)

    def look_up(self, revision: str, paths: Sequence[str]) -> Iterator[Entry]:
        """Those of some paths that are files."""
        for at in range(0, len(paths), PATHS):
            body = json.dumps({"paths": paths[at : at + PATHS], "expand": False}).encode()
            yield from self._entries(self._json("POST", f"paths-info/{revision}", body))

    def pages(self, revision: str, folder: str) -> Iterator[list[Entry]]:
        """The files below a folder, by their paths, a page at a time; none where there is no such folder."""
        url = f"{self._api_url}/tree/{revision}/{quote(folder)}?recursive=true"
        for _ in range(_PAGES):
            reply = self._client.request("GET", url, accept={_HERE, *_REFUSED}, limit=_LISTING_BYTES)
            if not self._is_there(reply, folder):
                return
            yield self._entries(_parsed(reply, self.show(folder)))
            following = re.search(r'<([^<>]*)>\s*;\s*rel="?next"?', reply.headers.get("Link", ""))
            if following is None:
                return
            url = urljoin(url, following[1])
            if not url.startswith(f"{self._endpoint}/"):
                raise BackendError(f"{self.show(folder)}: the listing goes on somewhere else than at {self._endpoint}")

    def refs(self) -> tuple[dict[str, str], dict[str, str]]:
        """Branches and tags, each with its commit."""
        values = self._json("GET", "refs")
        try:
            branches, tags = ({ref["name"]: ref["targetCommit"] for ref in values[kind]} for kind in ("branches", "tags"))
        except (KeyError, TypeError) as error:
            raise FormatError(f"{self.show()}: this is no list of branches and tags: {error!r}") from None
        return branches, tags

    # Writing.

    def create(self, *, public: bool) -> None:
        """Sees to it that the repository exists; one that does is left as it is."""
        self._done(lambda: self._api.create_repo(self.name, repo_type="dataset", private=not public, exist_ok=True))

    def create_branch(self, branch: str) -> None:
        """Sees to it that a branch exists: a new one begins where the repository did."""

        def first() -> str:
            *_, oldest = self._api.list_repo_commits(self.name, repo_type="dataset")
            return oldest.commit_id

        start = self._done(first)
        self._done(lambda: self._api.create_branch(self.name, repo_type="dataset", branch=branch, revision=start, exist_ok=True))

    def uploads(self, contents: Mapping[str, Buffer | Path], keep: object) -> list[Upload]:
        """What has to be done so that contents, by their paths, can be committed; what is there already needs nothing.

        They go where large files go, whatever the repository's attributes say, so that no commit ever holds them.
        """

        def prepare() -> list[CommitOperationAdd]:
            # The library would hash one after another.
            digests = iter(digests_of([content for content in contents.values() if not isinstance(content, Path)]))
            additions = [
                CommitOperationAdd(path, content) if isinstance(content, Path) else _addition(path, content, next(digests))
                for path, content in contents.items()
            ]
            for addition in additions:
                addition._upload_mode = "lfs"  # noqa: SLF001 - what the library would ask the Hub
            return additions

        if is_xet_available():
            with_xet = prepare()
            held = sum(addition.upload_info.size for addition in with_xet if isinstance(addition.path_or_fileobj, bytes))
            return [Upload(with_xet, None, held, keep)]

        def ask() -> list[Upload]:
            additions = prepare()
            actions = self._actions(additions)
            uploads = []
            for addition in additions:
                held = 0 if isinstance(addition.path_or_fileobj, str) else addition.upload_info.size
                action = actions[addition.upload_info.sha256.hex()]
                uploads.append(Upload([addition], action, held, keep))
            return uploads

        return self._done(ask)

    def upload(self, upload: Upload) -> None:
        """Uploads contents. When it returns the Hub has them, though no commit refers to them yet."""
        with _quiet(), _without_bars():
            if upload.action is None:
                self._attempt(lambda: self._api.preupload_lfs_files(self.name, upload.additions, repo_type="dataset"))
            else:
                self._upload_object(upload.additions[0], upload.action)
        for addition in upload.additions:
            addition._is_uploaded = True  # noqa: SLF001 - by this the library knows
            addition.path_or_fileobj = b""

    def commit(
        self,
        branch: str,
        parent: str,
        title: str,
        additions: Collection[CommitOperationAdd],
        documents: Mapping[str, bytes],
        *,
        removed: Sequence[str] = (),
    ) -> str:
        """Commits to a branch whose head is `parent`; returns the new head.

        Args:
            branch: Which.
            parent: Its head.
            title: For the log.
            additions: Contents that have been uploaded.
            documents: Small files.
            removed: Files that are taken away.

        Raises:
            Failure: It has not been done, or that is not known.
        """
        new = [CommitOperationAdd(path, content) for path, content in documents.items()]

        def work() -> str:
            with _quiet(), _without_bars():
                # What a repository says is to be ignored is for people's own files.
                self._api.preupload_lfs_files(self.name, new, repo_type="dataset", revision=branch, gitignore_content="")
                done = self._api.create_commit(
                    self.name,
                    [*additions, *new, *map(CommitOperationDelete, removed)],
                    commit_message=title,
                    repo_type="dataset",
                    revision=branch,
                    parent_commit=parent,
                )
                return done.oid

        try:
            return self._call(work)
        except EXCEPTIONS as error:
            raise self._understood(error) from None

    def _upload_object(self, addition: CommitOperationAdd, action: dict[str, Any]) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                if action.get("actions"):
                    lfs_upload(addition, action, headers=self._api_headers, endpoint=self._endpoint)
            except EXCEPTIONS as error:
                failure = self._understood(error, addition.path_in_repo)
                status = getattr(failure.error, "status", None)
                if not tries_left or not (failure.passing or status in (_EXPIRED, _ABSENT)):
                    raise failure.error from None
                self._traffic.retries += 1
                # It may have arrived, or its address may have expired.
                action = self._attempt(lambda: self._actions([addition]))[addition.upload_info.sha256.hex()]
            else:
                return

    def _actions(self, additions: Sequence[CommitOperationAdd]) -> dict[str, dict[str, Any]]:
        """What the Hub wants to be done with objects, by their digests; nothing with one that it has."""
        infos = [addition.upload_info for addition in additions]
        found, errors, _ = post_lfs_batch_info(
            infos,
            None,
            "dataset",
            self.name,
            endpoint=self._endpoint,
            headers=self._api_headers,
            transfers=["basic", "multipart"],
        )
        if errors:
            raise ValueError(f"the Hub refuses an object: {errors[0]['error']['message']}")
        actions = {action["oid"]: action for action in found}
        if lacking := {info.sha256.hex() for info in infos} - actions.keys():
            raise ValueError(f"the Hub does not say what to do with object {min(lacking)}")
        return actions

    @property
    def _api_url(self) -> str:
        return f"{self._endpoint}/api/datasets/{self.name}"

    def _resolve(self, revision: str, path: str) -> str:
        return f"{self._endpoint}/datasets/{self.name}/resolve/{quote(revision, safe='')}/{quote(path)}"

    def _place(self, revision: str, path: str) -> str | None:
        """The address of a file's content; None when it is not there."""
        if (where := self._places.get(path)) is None:
            url = self._resolve(revision, path)
            reply = self._client.request("HEAD", url, accept={_HERE, *_REDIRECTS, *_REFUSED})
            if not self._is_there(reply, path):
                return None
            where = self._places[path] = urljoin(url, reply.headers.get("Location", url))
        return where

    def _is_there(self, reply: Reply, path: str) -> bool:
        if reply.status not in _REFUSED:
            return True
        # Without a word from the Hub itself, it is the content that is gone.
        if reply.status == _ABSENT and reply.headers.get("X-Error-Code") in (None, "EntryNotFound"):
            return False
        raise self._refusal(reply, path).error

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        url = f"{self._api_url}/{path}"
        accept = {_HERE, *_REFUSED}
        reply = self._client.request(
            method, url, headers=headers, content=body, accept=accept, limit=_LISTING_BYTES, repeatable=True
        )
        if reply.status != _HERE:
            raise self._refusal(reply).error
        return _parsed(reply, self.show())

    def _entries(self, values: Any) -> list[Entry]:
        try:
            return [
                Entry(value["path"], value["size"], value["oid"], value["lfs"]["oid"] if value.get("lfs") else None)
                for value in values
                if value["type"] == "file"
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{self.show()}: this is no list of files: {error!r}") from None

    def _refusal(self, reply: Reply, path: str = "") -> Failure:
        return refusal(reply.status, reply.headers, self.show(path), self._endpoint, token=self._access.token is not None)

    def _understood(self, error: Exception, path: str = "") -> Failure:
        return error if isinstance(error, Failure) else understand(error, self.show(path), self._endpoint)

    def _call(self, work: Callable[[], T]) -> T:
        """Does it in a thread, for no longer than nothing happens."""

        def quietly(_: None) -> T:
            with _quiet(), _without_bars():
                return work()

        ((_, result),) = self._calls.map(quietly, [None])
        return result

    def _done(self, work: Callable[[], T]) -> T:
        """Does what may be done twice, again where that may help."""
        return self._call(lambda: self._attempt(work))

    def _attempt(self, work: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return work()
            except EXCEPTIONS as error:
                raise self._understood(error) from None

        return self._retries.run(attempt, repeatable=True)


class _View(io.RawIOBase):
    """Bytes in memory, or of a file that is mapped, as a file."""

    def __init__(self, content: Buffer) -> None:
        self._view = memoryview(content).cast("B")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._view[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _addition(path: str, content: Buffer, digest: str) -> CommitOperationAdd:
    """A file whose content is in memory, and has this digest."""
    addition = CommitOperationAdd(path, b"")
    view = memoryview(content).cast("B")
    sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
    addition.upload_info = UploadInfo(size=view.nbytes, sample=bytes(view[:512]), sha256=sha256)
    if isinstance(content, bytes):
        addition.path_or_fileobj = content
    elif is_xet_available() and view.nbytes <= _COPIED_BYTES:
        addition.path_or_fileobj = bytes(view)
    else:
        addition.path_or_fileobj = io.BufferedReader(_View(content))
    return addition


def _parsed(reply: Reply, title: str) -> Any:
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{title}: the Hub's answer is not JSON: {error}") from None


class _Bars:
    """The library's progress bars, which are switched for all threads at once."""

    lock = threading.Lock()
    users = 0
    were_shown = False


@contextmanager
def _without_bars() -> Iterator[None]:
    with _Bars.lock:
        if _Bars.users == 0 and not are_progress_bars_disabled():
            _Bars.were_shown = True
            disable_progress_bars()
        _Bars.users += 1
    try:
        yield
    finally:
        with _Bars.lock:
            _Bars.users -= 1
            if _Bars.users == 0 and _Bars.were_shown:
                _Bars.were_shown = False
                enable_progress_bars()

"""A bucket: requests for single objects, each ended in time, repeated where that helps, and told by their objects' names.

`Bucket` may be used by many threads. Requests for one object are repeated here, with jittered, growing pauses, and counted;
each time with fresh credentials and a fresh signature. The parts of a large object are repeated by obstore, which does not tell.
`Retry-After` is not seen either: obstore drops it, so that the pauses have to do.

All of it may be repeated: whole objects are replaced by what they were to be, and what is fetched is not changed by that. Only a
conditional write may fail because of its own first attempt; whoever makes one reads again what is there.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

import obstore

from pfimg.errors import BackendError, LimitExceeded
from pfimg.registries.base import Traffic
from pfimg.registries.s3.access import Access
from pfimg.registries.s3.failures import ABSENT, Failure, understand
from pfimg.types import Buffer

T = TypeVar("T")

PART_BYTES: Final = 8 << 20
"""A large object is sent and fetched in pieces of this size."""

PARTS_AT_ONCE: Final = 4
"""So many parts of one large object are sent at once."""

PAGE: Final = 1000
"""Objects that one request lists."""

# Seconds before each further attempt, of which a random part is waited. After the last of them, or so long after the first
# attempt, a request is given up.
_PAUSES: Final = (0.2, 0.6, 1.8, 5.4, 10.0, 10.0, 10.0)
_BUDGET_SECONDS: Final = 120.0
# Who cannot be reached and has never answered is probably not there.
_FIRST_REPEATS: Final = 2

_ONCE: Final = {"max_retries": 0}
_PATIENTLY: Final = {
    "max_retries": len(_PAUSES),
    "retry_timeout": timedelta(seconds=_BUDGET_SECONDS),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 3},
}

_EXCEPTIONS: Final = (obstore.exceptions.BaseError, FileNotFoundError, NotImplementedError)
_NOT_FOUND: Final = 404


class Large(NamedTuple):
    """An object that is too large to be fetched as a whole."""

    size: int
    e_tag: str | None


class Entry(NamedTuple):
    """An object in a listing; `modified` is a time in seconds, by the service's clock."""

    key: str
    size: int
    modified: float


class Document(NamedTuple):
    """A small object, and which version of it, for a conditional write."""

    content: bytes
    version: dict[str, str]


class Bucket:
    """A bucket, or what lies below a prefix in it.

    Args:
        name: Of the place, for messages.
        access: The way there.
        traffic: Where repetitions are counted.
        pause: Waits so many seconds; True when the call that a request is for has ended meanwhile.
    """

    def __init__(self, name: str, access: Access, traffic: Traffic, pause: Callable[[float], bool]) -> None:
        self._name = name
        self._access = access
        self._traffic = traffic
        self._pause = pause
        self._lock = threading.Lock()
        self._answered = False
        self._store = access.open(_ONCE)
        self._patient = access.open(_PATIENTLY)

    def show(self, key: str) -> str:
        """How an object is called in messages."""
        return f"{self._name}/{key}"

    def size(self, key: str) -> int | None:
        """An object's size, None when it is not there (or its bucket: the answer has no body that would tell)."""
        return _found(self._asked(key, lambda: int(obstore.head(self._store, key)["size"])), bodiless=True)

    def get(self, key: str, large: int) -> Buffer | Large | None:
        """An object's content, or its size when that is more than `large`; None when it is not there."""

        def ask() -> Buffer | Large:
            found = obstore.get(self._store, key)
            meta = found.meta
            size = meta["size"]
            return Large(size, meta["e_tag"]) if size > large else self._whole(key, found.bytes(), size)

        return _found(self._asked(key, ask))

    def read(self, key: str, limit: int) -> Document | None:
        """A small object, None when it is not there; LimitExceeded when it is larger than `limit`."""

        def ask() -> Document:
            found = obstore.get(self._store, key)
            meta = found.meta
            if meta["size"] > limit:
                raise LimitExceeded(f"{self.show(key)} is larger than {limit:,} bytes", limit=limit)
            content = bytes(self._whole(key, found.bytes(), meta["size"]))
            tags = (("e_tag", meta["e_tag"]), ("version", meta["version"]))
            return Document(content, {name: tag for name, tag in tags if tag is not None})

        return _found(self._asked(key, ask))

    def get_range(self, key: str, offset: int, length: int, e_tag: str | None = None) -> Buffer | None:
        """Some bytes of an object, None when it is not there; BackendError where it ends before them, or is another by now."""
        options: dict[str, Any] = {"range": (offset, offset + length), **({"if_match": e_tag} if e_tag else {})}

        def ask() -> Buffer:
            return self._whole(key, obstore.get(self._store, key, options=options).bytes(), length)  # type: ignore[arg-type]

        return _found(self._asked(key, ask))

    def put(self, key: str, content: Buffer) -> None:
        """Gives an object its content."""
        _done(self._asked(key, lambda: obstore.put(self._store, key, content, use_multipart=False)))

    def put_if(self, key: str, content: bytes, version: dict[str, str] | None) -> bool | None:
        """Gives an object its content if it is still of the version that is named, or not there when None is.

        Returns:
            Whether it was; None when the service knows no conditions. False may also be the answer to a second attempt after a
            first one that has been carried out.
        """
        mode: Any = "create" if version is None else version
        answer = self._asked(key, lambda: obstore.put(self._store, key, content, mode=mode, use_multipart=False))
        if isinstance(answer, Failure):
            if answer.is_not_offered:
                return None
            if not answer.is_conflict:
                raise answer.error
        return not isinstance(answer, Failure)

    def delete(self, key: str) -> None:
        """Takes an object away; one that is not there is fine."""

        def ask() -> None:
            # Some services say that it is not there, and obstore does not say it as they do.
            with suppress(FileNotFoundError):
                obstore.delete(self._store, key)

        _done(self._asked(key, ask))

    def forget(self, key: str) -> None:
        """Tries once to take an object away, whatever comes of it."""
        with suppress(*_EXCEPTIONS):
            obstore.delete(self._store, key)

    def put_file(self, key: str, path: Path, size: int) -> None:
        """Sends a large file in parts, several at once."""

        def parts(file: BinaryIO) -> Iterator[bytes]:
            file.seek(0)
            while part := file.read(PART_BYTES):
                if self._pause(0):
                    raise BackendError(f"{self.show(key)}: the call has ended")
                yield part

        with path.open("rb") as file:
            self._put_parts(key, lambda: parts(file), size)

    def put_large(self, key: str, content: Buffer) -> None:
        """Sends what is large and in memory in parts, several at once."""
        view = memoryview(content).cast("B")
        starts = range(0, len(view), PART_BYTES)
        self._put_parts(key, lambda: (view[at : at + PART_BYTES] for at in starts), len(view))

    def keys(self, prefix: str, after: str | None = None) -> Iterator[list[tuple[str, int]]]:
        """Pages of the objects below a prefix, sorted by their keys, which follow `after`; each with its size."""
        for page in self.entries(prefix, after):
            yield [(entry.key, entry.size) for entry in page]

    def entries(self, prefix: str, after: str | None = None) -> Iterator[list[Entry]]:
        """The same with all that a listing tells."""
        attempts = self._attempts()
        while True:
            try:
                for page in obstore.list(self._store, prefix, offset=after, chunk_size=PAGE):
                    self._answered = True
                    # Not every service knows where to begin: Azurite lists from the first key on.
                    if after is not None and not (page := [meta for meta in page if meta["path"] > after]):
                        continue
                    after = page[-1]["path"]
                    yield [Entry(meta["path"], meta["size"], meta["last_modified"].timestamp()) for meta in page]
                    attempts = self._attempts()
            except _EXCEPTIONS as error:
                failure = self._understand(error, prefix)
            else:
                return
            if not attempts.again(failure):
                raise failure.error

    def _put_parts(self, key: str, parts: Callable[[], Iterator[Buffer]], size: int) -> None:
        def ask() -> None:
            try:
                obstore.put(self._patient, key, parts(), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            except _EXCEPTIONS as error:
                # Where the answer to the last request is lost, all of it may be there.
                failure = self._understand(error, key)
                ambiguous = failure.error.retryable or failure.status == _NOT_FOUND
                if not ambiguous or self.size(key) != size:
                    raise

        _done(self._asked(key, ask))

    def _whole(self, key: str, content: Buffer, size: int) -> Buffer:
        if len(content) != size:
            message = f"{self.show(key)}: {len(content):,} bytes came where {size:,} were announced: try again later"
            raise BackendError(message, retryable=True)
        return content

    def _asked(self, key: str, ask: Callable[[], T]) -> T | Failure:
        """Makes a request, again where that may help."""
        attempts = self._attempts()
        while True:
            try:
                answer = ask()
            except _EXCEPTIONS as error:
                failure = self._understand(error, key)
            except BackendError as error:
                failure = Failure(None, "", error)
            else:
                self._answered = True
                return answer
            if not attempts.again(failure):
                return failure

    def _attempts(self) -> "_Attempts":
        return _Attempts(lambda: len(_PAUSES) if self._answered else _FIRST_REPEATS, self._repeat)

    def _repeat(self, seconds: float) -> bool:
        """Counts a repetition, and waits before it; False when nobody waits for it any more."""
        with self._lock:
            self._traffic.retries += 1
        return not self._pause(seconds)

    def _understand(self, error: Exception, key: str) -> Failure:
        failure = understand(error, self.show(key), self._access.place, self._access.timeout)
        self._answered = self._answered or failure.status is not None
        return failure


class _Attempts:
    """Attempts at one request: whether there is to be another.

    Args:
        most: How often it may be repeated, as things are.
        repeat: Waits before a repetition, so many seconds; returns whether it is still wanted.
    """

    def __init__(self, most: Callable[[], int], repeat: Callable[[float], bool]) -> None:
        self._most = most
        self._repeat = repeat
        self._repeated = 0
        self._start = time.monotonic()

    def again(self, failure: Failure) -> bool:
        """Whether to repeat what has failed; waits before that."""
        in_time = time.monotonic() - self._start <= _BUDGET_SECONDS
        if not failure.error.retryable or self._repeated >= self._most() or not in_time:
            return False
        self._repeated += 1
        return self._repeat(_PAUSES[self._repeated - 1] * random.uniform(0.5, 1.0))  # noqa: S311 - jitter needs no secrecy


def _found(answer: T | Failure, *, bodiless: bool = False) -> T | None:
    """What was asked for, None when it is not there."""
    if not isinstance(answer, Failure):
        return answer
    if answer.status == _NOT_FOUND and (answer.code in ABSENT or (bodiless and not answer.code)):
        return None
    raise answer.error


def _done(answer: object) -> None:
    if isinstance(answer, Failure):
        raise answer.error

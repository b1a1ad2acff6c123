"""What pfimg raises.

    PfimgError(RuntimeError)
    ├── StoreError
    │   ├── BlobNotFound(KeyError)
    │   ├── IntegrityError(ValueError)         bytes do not hash to their name
    │   ├── FormatError(ValueError)            malformed or unsupported digest, document, frame or store version
    │   ├── LimitExceeded(ValueError)          a named size cap was hit
    │   └── StoreOSError(OSError)              a system error of `PfStore.open` or of a drop-in function
    │       ├── StoreFileExistsError(FileExistsError)
    │       ├── StoreFileNotFoundError(FileNotFoundError)
    │       ├── StoreNotADirectoryError(NotADirectoryError)
    │       └── StorePermissionError(PermissionError)
    └── RegistryError
        ├── UnsupportedScheme
        ├── BadRef(ValueError)
        ├── BackendError(OSError)              .status, .retryable
        │   ├── RegistryTimeout(TimeoutError)
        │   └── Conflict                       another image is there than was expected: .image
        └── SignatureError                     missing, untrusted or wrong signature

Each is also the built-in (in parentheses) that callers may already catch. Each has a `.code`, a word for programs that does not
change when the message does, and names the item it is about: in the message, and in those of `.digest`, `.path`, `.index`
(position in a batch, from 0), `.field` (such as `pages[3].k`), `.offset` (bytes) and `.limit` (bytes or a count) that apply; the
others are None. All of them can be pickled.

System errors of the local file system (`FileNotFoundError`, `PermissionError`, `FileExistsError`, a full disk) pass through as
themselves. Only where a program written for `processfork` expects RuntimeError are they raised as a `StoreOSError`, which is
both.

Example:
    >>> try:
    ...     pfimg.PfStore.open("store").get("sha256:" + "0" * 64)
    ... except KeyError as error:
    ...     print(error.code, error.digest)
    blob_not_found sha256:0000000000000000000000000000000000000000000000000000000000000000
"""

# ruff: noqa: N818 - the published names of these classes are older than this linter's rule for them
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from typing import ClassVar


class PfimgError(RuntimeError):
    """Base of everything that pfimg raises."""

    code: str = "error"
    digest: str | None = None
    path: str | None = None
    index: int | None = None
    field: str | None = None
    offset: int | None = None
    limit: int | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        digest: str | None = None,
        path: str | PathLike[str] | None = None,
        index: int | None = None,
        field: str | None = None,
        offset: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(message)
        place = {
            "code": code,
            "digest": digest,
            "path": None if path is None else fspath(path),
            "index": index,
            "field": field,
            "offset": offset,
            "limit": limit,
        }
        # What is absent stays with the class, so that only what is known is pickled.
        self.__dict__.update({name: value for name, value in place.items() if value is not None})

    def __str__(self) -> str:
        # KeyError would print the message in quotes.
        return str(self.args[0]) if self.args else ""


class StoreError(PfimgError):
    """The store cannot do what was asked."""

    code = "store"


class BlobNotFound(StoreError, KeyError):
    """No blob (or image) of that name is in the store: `.digest`."""

    code = "blob_not_found"


class IntegrityError(StoreError, ValueError):
    """Bytes do not hash to their name, or a chain of signatures is broken."""

    code = "integrity"


class FormatError(StoreError, ValueError):
    """A malformed or unsupported digest, document, frame or store version: `.field` and `.offset` say where."""

    code = "format"


class LimitExceeded(StoreError, ValueError):
    """A named cap on sizes was hit: `.limit`."""

    code = "limit"


class StoreOSError(StoreError, OSError):
    """A system error, as one that `except RuntimeError` catches too."""

    code = "io"
    kinds: ClassVar[dict[type[OSError], type["StoreOSError"]]] = {}

    def __init_subclass__(cls) -> None:
        StoreOSError.kinds[cls.__bases__[1]] = cls

    @classmethod
    def of(cls, error: OSError, /) -> "StoreOSError":
        """The same system error (message, errno, file) as one of this kind."""
        path = fspath(error.filename) if isinstance(error.filename, (str, PathLike)) else None
        message = f"{path}: {error.strerror}" if path and error.strerror else str(error)
        found = cls.kinds.get(type(error), StoreOSError)(message, path=path)
        found.errno, found.strerror, found.filename = error.errno, error.strerror, error.filename
        return found

    def __reduce__(self) -> tuple[type["StoreOSError"], tuple[object, ...], dict[str, object]]:
        system = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return type(self), self.args, self.__dict__ | system


class StoreFileExistsError(StoreOSError, FileExistsError):
    """FileExistsError and StoreError at once."""


class StoreFileNotFoundError(StoreOSError, FileNotFoundError):
    """FileNotFoundError and StoreError at once."""


class StoreNotADirectoryError(StoreOSError, NotADirectoryError):
    """NotADirectoryError and StoreError at once."""


class StorePermissionError(StoreOSError, PermissionError):
    """PermissionError and StoreError at once."""


class RegistryError(PfimgError):
    """A registry cannot do what was asked."""

    code = "registry"


class UnsupportedScheme(RegistryError):
    """Nobody registered that scheme."""

    code = "unsupported_scheme"


class BadRef(RegistryError, ValueError):
    """An image reference that is malformed, or meant for another registry."""

    code = "bad_ref"


class BackendError(RegistryError, OSError):
    """A registry's service or file system failed.

    Attributes:
        status: What the service answered (an HTTP status), or None when it did not answer.
        retryable: Whether the same call may succeed when it is made again.
    """

    code = "backend"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        digest: str | None = None,
        path: str | PathLike[str] | None = None,
        status: int | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, code=code, digest=digest, path=path)
        self.status = status
        self.retryable = retryable


class RegistryTimeout(BackendError, TimeoutError):
    """A registry made no progress for too long."""

    code = "timeout"


class Conflict(BackendError):
    """Another image is there than the one that was to be replaced, so nothing was.

    Attributes:
        image: Id of the image that is there; None when there is none.
    """

    code = "conflict"

    def __init__(
        self,
        message: str,
        *,
        image: str | None = None,
        code: str | None = None,
        digest: str | None = None,
        path: str | PathLike[str] | None = None,
        status: int | None = 412,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, code=code, digest=digest, path=path, status=status, retryable=retryable)
        self.image = image


class SignatureError(RegistryError):
    """A signature is missing, wrong, or by nobody who is trusted."""

    code = "signature"


@contextmanager
def about(path: str | PathLike[str]) -> Iterator[None]:
    """Gives system errors the name of the file that they are about: of calls on an open file the system does not tell it."""
    try:
        yield
    except OSError as error:
        # Ours have no number, and say themselves what they are about.
        if error.errno is not None and error.filename is None:
            error.filename = fspath(path)
        raise

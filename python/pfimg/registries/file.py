"""`file://`: images in a directory, on this machine's disk, a mounted one or a USB stick, in the tree layout (`registries.tree`).

Blobs are copied by the core, which verifies every one on its way, and syncs whole batches. Manifest and signature, and named
images, are staged beside their place, synced and renamed.

Whoever shows or takes away an image holds a lock on the directory meanwhile (flock, which leaves nothing behind), so that a push
which expects a certain image replaces that one. A push shares a lock on `blobs/`, which a sweep takes for itself. Nobody waits
for a lock for ever: whoever has it may be stopped. On a file system without locks a sweep is refused, and so is a push that
expects something.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

from pfimg._core import Store
from pfimg.errors import BackendError, BlobNotFound, FormatError, LimitExceeded, RegistryError, about
from pfimg.locks import POLL_SECONDS, flock
from pfimg.registries.base import Lying, Pack, Range, Sink, StoredBlob, blob_name
from pfimg.registries.refs import NAME, AnyRef, FileRef
from pfimg.registries.tree import (
    DESCRIPTION,
    MANIFEST,
    NAMED,
    PACKS,
    ListedTree,
    check_algorithm,
    index_name,
    pack_name,
    packs_among,
)
from pfimg.signing import Key
from pfimg.transfer import TransportRegistry
from pfimg.types import Buffer

# What lands together: files share their syncs, frames in memory are bounded.
_BATCH_ITEMS: Final = 4096
_BATCH_BYTES: Final = 256 << 20
# What a file system says that knows no locks, or none on directories; those on a network want a file that can be written.
_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EISDIR)
_LOCK: Final = ".lock"


class FileRegistry(TransportRegistry):
    """A registry for `file://` references.

    Args:
        sign_key: The key that signs what is pushed and must have signed what is pulled, or the file that holds it; None for
            `PF_FILE_REG_SIGN_KEY`, else the public one.

    Example:
        >>> registries.FileRegistry().exists("file:///no/such/directory")
        False
    """

    def __init__(self, *, sign_key: Key | None = None) -> None:
        super().__init__(FileTransport, ("file",), sign_key=sign_key)


class FileTransport(ListedTree):
    """The transport for one directory. `jobs` changes nothing: the core's threads do the work."""

    copies_files = True
    sweep_items = 256
    pack_bytes = 32 << 20
    packs_above: int | None = None  # small files are what file systems are for

    def __init__(self, ref: FileRef, *, jobs: int | None = None) -> None:  # noqa: ARG002 - every transport is given it
        self.root = ref.path
        self._held: ExitStack | None = None
        self._holds = False

    def admit_floats(self) -> None:
        """See FloatTransport. The core describes the directory before it stores the first one."""
        self._admits_floats = True

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport; a directory that is not there lacks all."""
        here = self._store if self._is_described() else None
        algorithm = here.digest if here else "sha256"
        check_algorithm(digests, algorithm, str(self.root), "directory")
        found = here.has_many(digests) if here else [False] * len(digests)
        return {digest for digest, is_there in zip(digests, found, strict=True) if not is_there}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""
        batch: list[StoredBlob] = []
        size = 0
        for item in items:
            batch.append(item)
            size += item.size
            if len(batch) == _BATCH_ITEMS or size >= _BATCH_BYTES:
                self._land(batch)
                batch, size = [], 0
        self._land(batch)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """See Sweeper. What is not there yet is held once it is made; where there are no locks nothing can be swept either."""
        with ExitStack() as self._held:
            if self._is_described():
                self._hold()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See Sweeper. Whoever waits has its turn between two of these."""
        time.sleep(2 * POLL_SECONDS)
        with ExitStack() as stack:
            _lock(self.root / "blobs", fcntl.LOCK_EX, stack)
            yield

    def objects(self) -> Iterator[Lying]:
        """See Sweeper."""
        for name in ("images", "partial", "pins"):
            if _is_there(self.root / name):
                message = f"{self.root} is a store ({name} is there), whose images are no images of a registry: use `pfimg gc`"
                raise RegistryError(message, code="not_offered")
        if not self._is_described():
            raise self.absent("blobs")
        now = time.time()
        for name in (f"blobs/{self.description()['digest']}", PACKS, NAMED, ""):
            yield from _lying(self.root, name, now)

    def sweep(self, objects: Sequence[Lying], grace: float) -> Sequence[Lying]:
        """See Sweeper."""
        # Else a power cut could bring back, without its blobs, an image that was taken away or replaced before this run saw it.
        for directory in (self.root, self.root / NAMED):
            if directory.is_dir():
                _sync(directory)
        now = time.time()
        removed = []
        for lying in objects:
            path = self.root / lying.name
            if (found := _stat(path)) is not None and _age(found, now) >= grace:
                path.unlink(missing_ok=True)
                removed.append(lying)
        return removed

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        floats = set(Store(self.root).float_blobs(digests)) if self.has_floats else set()
        names = (blob_name(digest, ".fpl" if digest in floats else ".zst") for digest in digests)
        sink.files([(digest, f"{self.root}/{name}") for digest, name in zip(digests, names, strict=True)])

    def images(self) -> Sequence[AnyRef]:
        """See Lister."""
        names = sorted(path.stem for path in (self.root / NAMED).glob("*.json") if NAME.fullmatch(path.stem))
        return [*([FileRef(self.root)] if self.has_object(MANIFEST) else []), *(FileRef(self.root, name) for name in names)]

    def send_packs(self, packs: Iterable[Pack]) -> None:
        """See PackTransport."""
        self._hold()
        _make(self.root / PACKS)
        for pack in packs:
            _replace(self.root, {pack_name(pack.name): pack.content, index_name(pack.name): pack.index.to_bytes()})

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        """See PackTransport."""
        for at, part in enumerate(ranges):
            path = self.root / pack_name(part.pack)
            try:
                with about(path), _open(path) as file:
                    content = os.pread(file.fileno(), part.length, part.offset)
            except FileNotFoundError as error:
                raise BlobNotFound(f"pack {path} is not there: push the image again", path=path) from error
            if len(content) != part.length:
                raise BackendError(f"{path} ends before byte {part.offset + part.length:,}: push the image again", path=path)
            deliver(at, content)

    def read_object(self, name: str, limit: int) -> bytes | None:
        """See TreeTransport."""
        return _read(self.root / name, limit)

    def replace_objects(self, objects: Mapping[str, bytes]) -> None:
        """See TreeTransport."""
        with _locked(_made(self.root), demand=False):
            self._replace_documents(objects)

    def exchange_objects(self, objects: Mapping[str, bytes], check: Callable[[], None]) -> None:
        """See TreeTransport."""
        with _locked(_made(self.root), demand=True):
            check()
            self._replace_documents(objects)

    def remove_objects(self, names: Sequence[str]) -> bool:
        """See TreeTransport."""
        if not _is_there(self.root / names[0]):
            return False
        with _locked(self.root, demand=False):
            if not _is_there(self.root / names[0]):
                return False
            for path in (self.root / name for name in names):
                path.unlink(missing_ok=True)
                _sync(path.parent)
        return True

    def describe(self, feature: str) -> None:
        """See TreeTransport."""
        self._store.require_features([feature])

    def has_object(self, name: str) -> bool:
        """See TreeTransport."""
        return _is_there(self.root / name)

    def list_packs(self) -> Sequence[str]:
        """See TreeTransport."""
        return packs_among(path.name for path in (self.root / PACKS).glob("*"))

    def show(self, name: str) -> str:
        """See TreeTransport."""
        return str(self.root / name)

    def absent(self, name: str) -> Exception:
        """See TreeTransport."""
        return FileNotFoundError(errno.ENOENT, "there is no image here", self.show(name))

    @cached_property
    def _store(self) -> Store:
        """The directory as a store of blobs that everybody can read, or of all; it is created when it is absent."""
        _make(self.root)
        store = Store(self.root, codec="float") if self._admits_floats else Store(self.root, published=True)
        self._hold()
        return store

    def _replace_documents(self, objects: Mapping[str, bytes]) -> None:
        for directory in {(self.root / name).parent for name in objects}:
            _make(directory)
        _replace(self.root, objects)

    def _hold(self) -> None:
        """Shares the lock on blobs and packs, once, for as long as a push goes on."""
        if self._held is not None and not self._holds:
            self._held.enter_context(_locked(_made(self.root / "blobs"), demand=False, shared=True))
            self._holds = True

    def _is_described(self) -> bool:
        """Whether there is a store already, so that looking creates nothing."""
        return _is_there(self.root / "blobs") or _is_there(self.root / DESCRIPTION)

    def _land(self, batch: Sequence[StoredBlob]) -> None:
        if files := [(item.digest, item.path) for item in batch if item.path is not None]:
            self._store.import_files(files)
        if frames := [(item.digest, item.read()) for item in batch if item.path is None]:
            self._store.land_frames(frames)


def _is_there(path: Path) -> bool:
    """False only when it is certain; who may not look gets PermissionError."""
    return _stat(path) is not None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _age(found: os.stat_result, now: float) -> float:
    """Zero for a time in the future."""
    return max(now - found.st_mtime, 0.0)


def _lying(root: Path, directory: str, now: float) -> Iterator[Lying]:
    """Files below a directory; those of the root itself are all that is looked at there."""
    try:
        entries = sorted(os.scandir(root / directory), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        name = f"{directory}/{entry.name}" if directory else entry.name
        if entry.is_dir(follow_symlinks=False):
            if directory:
                yield from _lying(root, name, now)
        elif (found := _stat(Path(entry.path))) is not None:
            yield Lying(name, found.st_size, _age(found, now))


def _open(path: Path) -> BinaryIO:
    """Opens a file for reading; a pipe, which would block until somebody writes to it, is refused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path} is not a file", path=path)
    return os.fdopen(descriptor, "rb")


def _read(path: Path, limit: int) -> bytes | None:
    """A file's content; None when there is no such file."""
    try:
        with about(path), _open(path) as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if len(content) > limit:
        raise LimitExceeded(f"{path} is larger than {limit:,} bytes", path=path, limit=limit)
    return content


def _replace(directory: Path, files: Mapping[str, Buffer]) -> None:
    """Gives files their content: all are staged and on stable storage before the first is renamed, in the order given."""
    suffix = f".{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        for name, content in files.items():
            staged = directory / f"{name}{suffix}"
            with about(staged), staged.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (directory / f"{name}{suffix}").replace(directory / name)
    finally:
        for name in files:
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    for parent in {(directory / name).parent for name in files}:
        _sync(parent)


@contextmanager
def _locked(directory: Path, *, demand: bool, shared: bool = False) -> Iterator[None]:
    """Keeps others out of a directory meanwhile; a file system without locks is an error only if they are demanded."""
    with ExitStack() as stack:
        try:
            _lock(directory, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, stack)
        except OSError as error:
            if demand or error.errno not in _NO_LOCKS:
                raise
        yield


def _lock(directory: Path, kind: int, stack: ExitStack) -> None:
    """Locks a directory until the stack is left; by a file in it where directories cannot be locked."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    try:
        with about(directory):
            _flock(descriptor, kind, directory)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _flock(stack.enter_context((directory / _LOCK).open("ab")).fileno(), kind, directory)


def _flock(descriptor: int, kind: int, directory: Path) -> None:
    flock(descriptor, kind, directory, lambda message: BackendError(message, code="busy", path=directory, retryable=True))


def _made(directory: Path) -> Path:
    _make(directory)
    return directory


def _make(directory: Path) -> None:
    """Creates a directory and those above it, on stable storage."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with about(directory):
            os.fsync(descriptor)
    except OSError as error:
        # Some mounted file systems do not sync directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)

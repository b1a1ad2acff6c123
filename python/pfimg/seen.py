"""What a store has had from where: so that an old image under its old signature does not pass for the present one.

A signature is good for ever. Whoever may write to a registry can therefore put an image back that was there before, and no key is
needed for that. So a store remembers, for each reference, the image that it last had from there under a signature by a key that
is trusted (`seen/<SHA-256 of the reference>.json`), and refuses an image that was made before that one, unless it names that one
as its parent, as the work of a machine whose clock is slow may. A pull notes it once all of the image is here, and before it is
visible: a pull that is killed between the two has seen the image all the same.

Limits: what a store has never seen, it cannot miss: a first pull takes whatever is there, and a registry that goes on showing
the image it had shows nothing wrong. References are compared as they are written; two ways to one place are two. The times are
those of the machines that made the images. Images that nobody vouches for are neither refused nor remembered, and copies from
registry to registry, which go through no store, are not looked at.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pfimg import timestamps
from pfimg._core import Manifest, Store
from pfimg.errors import FormatError, SignatureError, StoreError, about
from pfimg.locks import flock

DIRECTORY: Final = "seen"
"""Where a store keeps it, below its root."""


class Seen(NamedTuple):
    """An image that was under a reference, and when it was made."""

    image: str
    created_at: str


def check(store: Store, ref: str, manifest: Manifest) -> None:
    """Refuses an image that is older than the one that was there before.

    Raises:
        SignatureError: It is, with the code `older`.
        FormatError: What the store remembers is damaged.
    """
    before = _read(path := _path(store, ref))
    if before is not None and not _is_so(store, before):
        raise _damaged(path)
    if before is not None and _is_older(manifest, before):
        raise SignatureError(
            f"{ref}: image {manifest.id} was made at {manifest.created_at}, before {before.image} at {before.created_at}, which "
            "was there the last time: it may have been put back by somebody else; allow_older (--allow-older) takes it",
            code="older",
            digest=manifest.id,
        )


def remember(store: Store, ref: str, manifest: Manifest, *, allow_older: bool) -> None:
    """Takes note of an image that was pulled; an older one than what is known by now only where that is wanted."""
    path = _path(store, ref)
    if (known := _read(path)) is not None and known.image == manifest.id:
        return
    path.parent.mkdir(exist_ok=True)
    with _locked(path.parent) as directory:
        before = _read(path)
        if before is not None and not allow_older and _is_older(manifest, before):
            return  # another pull was quicker, and had a newer one
        values = {"ref": ref, "image": manifest.id, "created_at": manifest.created_at}
        # Nobody else writes here meanwhile, so that the process is name enough; gc knows it for a temporary.
        temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}.0")
        try:
            with about(temporary), temporary.open("wb") as file:
                # What is no UTF-8 in the name of a directory becomes escapes of JSON.
                file.write(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(directory)
    with _opened(path.parent.parent) as root:
        _sync(root)


def _path(store: Store, ref: str) -> Path:
    name = hashlib.sha256(ref.encode(errors="surrogateescape")).hexdigest()
    return Path(store.root) / DIRECTORY / f"{name}.json"


def _read(path: Path) -> Seen | None:
    try:
        values = json.loads(path.read_bytes())
        seen = Seen(values["image"], values["created_at"])
        _moment(seen.created_at)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path) from error
    return seen


def _damaged(path: Path) -> FormatError:
    message = f"{path} does not tell what was pulled before: remove it, and the next pull takes whatever is there"
    return FormatError(message, path=path)


def _is_so(store: Store, seen: Seen) -> bool:
    """Whether the image, where it is here still, says so too: a flipped digit is another time."""
    try:
        return store.get_manifest(seen.image).created_at == seen.created_at
    except FormatError:
        return False
    except StoreError:
        return True


def _is_older(manifest: Manifest, than: Seen) -> bool:
    if manifest.id == than.image or than.image in manifest.parents:
        return False
    return _moment(manifest.created_at) < _moment(than.created_at)


def _moment(text: str) -> tuple[str, str]:
    """A time as what compares: up to the second, and the fraction."""
    normal = timestamps.normalise(text)
    if normal is None:
        raise FormatError(f"{text[:40]!r} is no time of RFC 3339")
    second, _, fraction = normal.removesuffix("Z").partition(".")
    return second, fraction.ljust(9, "0")


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Keeps other pulls from writing."""
    with _opened(directory) as descriptor:
        flock(descriptor, fcntl.LOCK_EX, directory, lambda message: StoreError(message, code="busy", path=directory))
        yield descriptor


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with about(directory):
            yield descriptor
    finally:
        os.close(descriptor)


def _sync(directory: int) -> None:
    """Waits until its names are on stable storage."""
    try:
        os.fsync(directory)
    except OSError as error:
        # Some mounted file systems do not sync directories.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise

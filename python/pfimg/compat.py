"""Drop-in functions: `import pfimg as processfork` keeps a program working that used the package `processfork`.

Names, arguments and results are the original's. Errors are caught as before: every one is a RuntimeError, those that were
ValueErrors are that too, and wrong types are TypeErrors. What differs is what the original gets wrong: secrets are recognised
better, `PWD` is kept, a directory that is missing or cannot be read is an error instead of an empty tree, and an image has at
most two parents. `merge` is not offered.
"""

# ruff: noqa: ARG001, PLR0917 - the arguments are the original's
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Never, ParamSpec, TypeVar

from pfimg import _core, images
from pfimg._core import AgentInfo
from pfimg.effects import Effect
from pfimg.errors import PfimgError, StoreOSError
from pfimg.store import PfStore
from pfimg.types import Buffer, StrPath

P = ParamSpec("P")
R = TypeVar("R")


def _catchable(function: Callable[P, R]) -> Callable[P, R]:
    """Turns system errors into ones that `except RuntimeError` catches too."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except PfimgError:
            raise
        except OSError as error:
            raise StoreOSError.of(error) from error

    return call


def digest_of(bytes: Buffer) -> str:
    """The digest under which a store keeps these bytes: `sha256:` and 64 hex digits.

    >>> pfimg.digest_of(b"")
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    return _core.digest_of(bytes)


@_catchable
def put_blob(store: PfStore, bytes: Buffer) -> str:
    """Stores a blob and returns its digest, as `store.put` does."""
    return store.put(bytes)


@_catchable
def read_blob(store: PfStore, digest: str) -> bytes:
    """A blob's bytes, verified, as `store.get` returns them.

    Raises:
        BlobNotFound: It is not in the store.
        IntegrityError: It is corrupt.
        FormatError: The digest is malformed.
    """
    return store.get(digest)


@_catchable
def read_manifest(store: PfStore, cid: str) -> dict[str, Any]:
    """An image's manifest as a dictionary, with all the fields that it has.

    Raises:
        BlobNotFound: The image is not in the store.
        FormatError: It is not a manifest, or the id is malformed.
    """
    manifest: dict[str, Any] = json.loads(store.get_manifest(cid).to_json())
    manifest.setdefault("parents", [])
    return manifest


@_catchable
def snapshot_filesystem(
    store: PfStore,
    agent_kind: str,
    fs_root: StrPath,
    env: Mapping[str, str],
    messages: Iterable[Mapping[str, str]],
    effects: Iterable[Mapping[str, object] | Effect] | None = None,
    default_scrub_env: bool = True,
    scrub_env: Iterable[str] | None = None,
    parents: Sequence[str] | None = None,
) -> str:
    """Makes an image of a directory, an environment and a conversation; `pfimg.snapshot` does the same with more choice.

    Keys of messages other than `role` and `content` are left out, and ignore files are not read.

    Returns:
        The image's id.

    Raises:
        FormatError: A message has no role or no content, an effect no `tool_id`; a pattern or parent is malformed.
        TypeError: A value is not a str.
        StoreOSError: The directory cannot be read, or the disk is full; the system's error too.
    """
    return images.snapshot(
        store,
        agent=AgentInfo(agent_kind, version=_core.__version__, fingerprint="pfimg"),
        fs_root=fs_root,
        env=_mapping(env, "env"),
        messages=[_role_and_content(message) for message in messages],
        effects=effects or (),
        parents=parents or (),
        scrub_env=scrub_env or (),
        default_scrub_env=default_scrub_env,
        ignore_files=False,
    )


@_catchable
def checkout_filesystem(store: PfStore, cid: str, target_path: StrPath) -> None:
    """Restores an image's directory at a path that must not exist; its parents are created.

    Raises:
        BlobNotFound: The image, or a blob that it needs, is not in the store.
        FormatError: The id or the image is malformed.
        StoreFileExistsError: The target exists.
    """
    Path(target_path).absolute().parent.mkdir(parents=True, exist_ok=True)
    images.checkout(store, cid, target_path)


def merge(
    store: PfStore, a: str, b: str, alpha: float | None = None, dare_p: float | None = None, seed: int | None = None
) -> Never:
    """Not offered: always raises PfimgError with the code `not_offered`."""
    raise PfimgError("merge is not offered by pfimg: use `diff`, and `snapshot` with both images as parents", code="not_offered")


def _mapping(value: Mapping[str, str], name: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {type(value).__name__}")
    return value


def _role_and_content(message: Any) -> Any:
    # What is missing, or is no mapping, is refused by name in `snapshot`.
    return {name: message[name] for name in ("role", "content") if name in message} if isinstance(message, Mapping) else message

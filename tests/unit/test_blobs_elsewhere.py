"""Blobs that are kept by another object: ours, or anybody's, whose word is not taken for anything. Oracle: hashlib."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfimg

ABSENT = "sha256:" + "0" * 64


def name_of(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


class Mapped(dict[str, bytes]):
    """The least that is a blob store."""

    def put(self, data: bytes) -> str:
        self[name_of(data)] = data
        return name_of(data)

    def get(self, digest: str) -> bytes:  # type: ignore[override]
        return self[digest]

    def has(self, digest: str) -> bool:
        return digest in self

    def physical_bytes(self) -> int:
        return sum(map(len, self.values()))


KINDS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: pfimg.MemoryStore(),
    "python": lambda _: Mapped(),
    "directory": lambda path: pfimg.PfStore.open(path / "other"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blobs_elsewhere_are_used_like_blobs_here(tmp_path: Path, kind: str) -> None:
    blobs = KINDS[kind](tmp_path)
    store = pfimg.PfStore.with_blobstore(tmp_path / "images", blobs)
    a, b = store.put(b"aaaa"), name_of(b"bbbb")
    assert store.put_many([b"not looked at", b"bbbb"], digests=[a, b]) == [a, b]
    with pytest.raises(pfimg.IntegrityError) as caught:
        store.put_many([b"aaaa", b"x"], digests=[a, ABSENT])
    assert (caught.value.index, caught.value.digest) == (1, ABSENT)
    assert [blobs.has(digest) for digest in (a, b, ABSENT)] == store.has_many([a, b, ABSENT]) == [True, True, False]
    assert (blobs.get(a), store.get(b)) == (b"aaaa", b"bbbb")
    assert store.get_many([b, a, b]) == [b"bbbb", b"aaaa", b"bbbb"]
    assert store.get_many([b, ABSENT, a], errors="mask") == [b"bbbb", None, b"aaaa"]
    out = np.zeros((3, 4), np.uint8)
    assert store.get_many([b, ABSENT, a], out=out, errors="mask") == [True, False, True]
    assert (out[0].tobytes(), out[2].tobytes()) == (b"bbbb", b"aaaa")
    with pytest.raises(pfimg.FormatError, match="has 4 bytes where 5 are expected") as refused:
        store.get_many([b, a], out=[bytearray(4), bytearray(5)])
    assert refused.value.index == 1
    with pytest.raises(pfimg.BlobNotFound) as absent:
        store.get_many([a, ABSENT])
    assert (absent.value.index, absent.value.digest) == (1, ABSENT)
    assert store.physical_bytes() == blobs.physical_bytes() >= 8
    assert not (tmp_path / "images" / "blobs").exists()


class Broken(Mapped):
    """Raises what it is given, whatever is asked."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def fail(self, *_: object) -> Any:
        raise self.error

    put = get = has = physical_bytes = fail  # type: ignore[assignment]


class ServiceError(Exception):
    """Of another program."""


@pytest.mark.parametrize("error", [ServiceError("away"), PermissionError(13, "not yours"), RuntimeError()], ids=repr)
def test_what_a_blob_store_raises_comes_out_as_it_is(tmp_path: Path, error: Exception) -> None:
    store = pfimg.PfStore.with_blobstore(tmp_path, Broken(error))
    calls: list[Callable[[], object]] = [
        lambda: store.put(b""),
        lambda: store.get(ABSENT),
        lambda: store.has(ABSENT),
        store.physical_bytes,
        lambda: store.put_many([b""]),
        lambda: store.get_many([ABSENT], errors="mask"),
        lambda: store.get_many([ABSENT], out=[bytearray(1)]),
        lambda: store.has_many([ABSENT]),
    ]
    for call in calls:
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
    assert getattr(error, "index", None) == 0


class Lying(Mapped):
    """Has everything, and all of it is the same."""

    def get(self, _digest: str) -> bytes:  # type: ignore[override]
        return b"lies"

    def has(self, _digest: str) -> bool:
        return True


def test_what_does_not_hash_to_its_name_is_never_returned(tmp_path: Path) -> None:
    store = pfimg.PfStore.with_blobstore(tmp_path, Lying())
    honest = name_of(b"lies")
    assert store.get(honest) == b"lies"
    for call in (
        lambda: store.get(ABSENT),
        lambda: store.get_many([ABSENT]),
        lambda: store.get_many([ABSENT], out=[bytearray(4)]),
        lambda: store.read_frame(ABSENT),
    ):
        with pytest.raises(pfimg.IntegrityError) as caught:
            call()
        assert caught.value.digest == ABSENT
    assert store.get_many([honest, ABSENT], errors="mask") == [b"lies", None]
    assert store.get_many([ABSENT, honest], out=[bytearray(4), bytearray(4)], errors="mask") == [False, True]


class Guarded(Mapped):
    """Verifies for itself, and says so in our words."""

    def get(self, digest: str) -> bytes:  # type: ignore[override]
        raise pfimg.IntegrityError("a bad sector", digest=digest)


def test_a_blob_store_that_finds_corruption_itself_has_a_miss(tmp_path: Path) -> None:
    store = pfimg.PfStore.with_blobstore(tmp_path, Guarded())
    assert store.get_many([ABSENT], errors="mask") == [None]
    with pytest.raises(pfimg.IntegrityError, match="a bad sector") as caught:
        store.get(ABSENT)
    assert caught.value.digest == ABSENT


@pytest.mark.parametrize(
    ("answer", "error"), [(ABSENT, pfimg.IntegrityError), ("somewhere", pfimg.FormatError), (None, TypeError), (b"x", TypeError)]
)
def test_a_name_that_a_blob_store_makes_up_is_refused(tmp_path: Path, answer: Any, error: type[Exception]) -> None:
    class Naming(Mapped):
        def put(self, _data: bytes) -> str:
            made_up: str = answer
            return made_up

    store = pfimg.PfStore.with_blobstore(tmp_path, Naming())
    for call in (lambda: store.put(b"x"), lambda: store.put_many([b"x"])):
        with pytest.raises(error):
            call()

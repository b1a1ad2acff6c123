"""Registries that the contract runs against: one `Adapter` each, added to `ADAPTERS`, and images to move."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

import pfimg
from pfimg.registries import Sink, StoredBlob, base
from pfimg.registries.refs import AnyRef

META = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")


class Adapter(Protocol):
    """A registry for one image, empty at first, for tests to look into and to damage."""

    ref: str

    def blobs(self) -> dict[str, bytes]:
        """All frames by digest."""

    def write(self, digest: str, frame: bytes | None) -> None:
        """Replaces a blob's frame; None removes it."""

    def read_pair(self) -> tuple[bytes, bytes]:
        """Manifest and signature."""

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        """Replaces manifest and signature; None removes."""


class Directory:
    """`file://`, the unnamed image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ref = f"file://{root}"

    def blobs(self) -> dict[str, bytes]:
        return {f"sha256:{path.stem}": path.read_bytes() for path in self.root.glob("blobs/sha256/*/*")}

    def write(self, digest: str, frame: bytes | None) -> None:
        path = self.root / base.blob_name(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if frame is not None:
            path.write_bytes(frame)

    def read_pair(self) -> tuple[bytes, bytes]:
        return (self.root / "manifest.json").read_bytes(), (self.root / "manifest.json.sig").read_bytes()

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        self.root.mkdir(exist_ok=True)
        for name, content in (("manifest.json", manifest), ("manifest.json.sig", signature)):
            (self.root / name).unlink(missing_ok=True)
            if content is not None:
                (self.root / name).write_bytes(content)


@dataclass
class Memory:
    """`mem://`, a scheme that a program registers: a transport that hands over frames in memory."""

    ref: str = "mem://place/image"
    frames: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)

    def blobs(self) -> dict[str, bytes]:
        return dict(self.frames)

    def write(self, digest: str, frame: bytes | None) -> None:
        self.frames.pop(digest, None)
        if frame is not None:
            self.frames[digest] = frame

    def read_pair(self) -> tuple[bytes, bytes]:
        manifest, signature = self.images[self.ref]
        assert signature is not None
        return manifest, signature

    def write_pair(self, manifest: bytes | None, signature: bytes | None) -> None:
        self.images.pop(self.ref, None)
        if manifest is not None:
            self.images[self.ref] = manifest, signature

    # What a transport does.
    def missing(self, digests: Sequence[str]) -> set[str]:
        return set(digests) - set(self.frames)

    def send(self, items: Iterable[StoredBlob]) -> None:
        for item in items:
            frame = item.read()
            assert len(frame) == item.size
            assert item.path is None or item.path.read_bytes() == frame
            self.frames[item.digest] = frame

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        for digest in digests:
            if digest in self.frames:  # what is not there, the caller must notice
                sink.frames([(digest, self.frames[digest])])

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        if str(ref) not in self.images:
            raise pfimg.BackendError(f"{ref}: there is no such image", status=404)
        return self.images[str(ref)]

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        self.images[str(ref)] = manifest, signature
        return ref

    def exists(self, ref: AnyRef) -> bool:
        return str(ref) in self.images


@pytest.fixture(autouse=True)
def _schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheme outlives its test."""
    monkeypatch.setattr(base, "_factories", dict(base._factories))


def directory(tmp_path: Path) -> Adapter:
    return Directory(tmp_path / "registry")


def memory(tmp_path: Path) -> Adapter:  # noqa: ARG001 - others need it
    place = Memory()
    pfimg.register_scheme("mem", lambda ref: place)  # noqa: ARG005 - the scheme has this one place
    return place


ADAPTERS: list[Callable[[Path], Adapter]] = [directory, memory]


@pytest.fixture(params=ADAPTERS, ids=lambda make: make.__name__)
def place(request: pytest.FixtureRequest, tmp_path: Path, _schemes: None) -> Adapter:
    adapter: Adapter = request.param(tmp_path)
    return adapter


@pytest.fixture
def other(tmp_path: Path) -> pfimg.PfStore:
    """A store on another machine, as it were."""
    return pfimg.PfStore.open(tmp_path / "other")


@pytest.fixture
def make_image(tmp_path: Path, store: pfimg.PfStore) -> Callable[..., str]:
    """Makes an image of two files and some pages, of which one file and the K side of the last page depend on `version`."""

    def make(version: int = 0, pages: int = 4, parents: Sequence[str] = ()) -> str:
        root = tmp_path / f"work-{version}"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "same.txt").write_text("same " * 100)
        (root / "changed.txt").write_text(f"version {version}")
        k = [bytes([ix]) * META.page_bytes for ix in range(pages - 1)] + [bytes([99, version]) * (META.page_bytes // 2)]
        v = [bytes([100 + ix]) * META.page_bytes for ix in range(pages)]
        cache = store.put_pages(META, k=k, v=v)
        messages = [{"role": "user", "content": "hi"}]
        return pfimg.snapshot(store, agent="tester", fs_root=root, cwd="/srv", cache=cache, messages=messages, parents=parents)

    return make


@pytest.fixture
def image(make_image: Callable[..., str]) -> str:
    return make_image()

"""Registries that the contract runs against: one `Adapter` each, added to `ADAPTERS`, and images to move."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from tests.registries.hf_places import HfPlace
from tests.registries.ipfs_places import IpfsPlace
from tests.registries.oci_places import OciPlace, PackedOciPlace
from tests.registries.s3_places import BucketPlace, ContainerPlace, point_to, point_to_account

import pfimg
from pfimg.registries import Sink, StoredBlob, base
from pfimg.registries.oci import OciTransport
from pfimg.registries.refs import AnyRef

if TYPE_CHECKING:
    from tests.servers import AzureServer, Kubo, S3Server

META = pfimg.CacheMeta(page_size_tokens=4, n_layers=2, n_heads=2, head_dim=8, dtype="bf16")


class Adapter(Protocol):
    """A registry for one image, empty at first, for tests to look into and to damage."""

    @property
    def ref(self) -> str:
        """To push to."""

    @property
    def source(self) -> str:
        """To pull from what was pushed there."""

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
        self.ref = self.source = f"file://{root}"

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


class Web(Directory):
    """`http://`: what is written into a directory is read from a web server that shows it."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.source = url


@dataclass
class Memory:
    """`mem://`, a scheme that a program registers: a transport that hands over frames in memory."""

    ref: str = "mem://place/image"
    source: str = ref
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


def frame_as_sent(place: Adapter, store: pfimg.PfStore, digest: str) -> bytes:
    """The frame that a push sends: the one that is stored, but where a place has an encoding of its own."""
    codec = getattr(place, "codec", None)
    return store.encode_frames([digest], codec=codec)[0] if codec else store.read_frame(digest)


def source_of(place: Adapter, sent: pfimg.PushReport) -> str:
    """Where to pull what was pushed: a place that is named by its content has another name for each image."""
    return sent.ref if getattr(place, "named_by_content", False) else place.source


def directory(request: pytest.FixtureRequest) -> Adapter:
    tmp_path: Path = request.getfixturevalue("tmp_path")
    return Directory(tmp_path / "registry")


def memory(request: pytest.FixtureRequest) -> Adapter:  # noqa: ARG001 - others need it
    place = Memory()
    pfimg.register_scheme("mem", lambda ref: place)  # noqa: ARG005 - the scheme has this one place
    return place


def oci(request: pytest.FixtureRequest) -> Adapter:
    return OciPlace(request.getfixturevalue("distribution"))


def oci_packed(request: pytest.FixtureRequest) -> Adapter:
    request.getfixturevalue("monkeypatch").setattr(OciTransport, "packs_above", 0)
    return PackedOciPlace(request.getfixturevalue("distribution"))


def bucket(request: pytest.FixtureRequest, server: str) -> Adapter:
    """A new bucket of a server, to which the environment leads."""
    s3: S3Server = request.getfixturevalue(server)
    point_to(s3, request.getfixturevalue("monkeypatch"))
    return BucketPlace(s3, s3.make_bucket())


def minio(request: pytest.FixtureRequest) -> Adapter:
    return bucket(request, "minio")


def versitygw(request: pytest.FixtureRequest) -> Adapter:
    return bucket(request, "versitygw")


def ipfs(request: pytest.FixtureRequest) -> Adapter:
    kubo: Kubo = request.getfixturevalue("kubo")
    request.getfixturevalue("monkeypatch").setenv("IPFS_API", kubo.api)
    return IpfsPlace(kubo)


def azurite(request: pytest.FixtureRequest) -> Adapter:
    azure: AzureServer = request.getfixturevalue("azurite")
    point_to_account(azure, request.getfixturevalue("monkeypatch"))
    return ContainerPlace(azure, azure.make_container())


def web(request: pytest.FixtureRequest) -> Adapter:
    root: Path = request.getfixturevalue("tmp_path") / "registry"
    return Web(root, request.getfixturevalue("web_server")(root))


def hf(request: pytest.FixtureRequest) -> Adapter:
    return HfPlace(request.getfixturevalue("hub"))


DISTRIBUTION = pytest.mark.server("distribution")
ADAPTERS = [
    pytest.param(directory, id="directory"),
    pytest.param(memory, id="memory"),
    pytest.param(web, id="web"),
    pytest.param(hf, id="hf"),
    pytest.param(oci, id="oci", marks=DISTRIBUTION),
    pytest.param(oci_packed, id="oci_packed", marks=DISTRIBUTION),
    pytest.param(ipfs, id="ipfs", marks=pytest.mark.server("kubo")),
    pytest.param(minio, id="minio", marks=pytest.mark.server("minio")),
    pytest.param(versitygw, id="versitygw", marks=pytest.mark.server("versitygw")),
    pytest.param(azurite, id="azurite", marks=pytest.mark.server("azurite")),
]


@pytest.fixture(params=ADAPTERS)
def place(request: pytest.FixtureRequest, _schemes: None) -> Adapter:
    adapter: Adapter = request.param(request)
    return adapter


@pytest.fixture(params=[adapter for adapter in ADAPTERS if adapter.id != "memory"])
def remote(request: pytest.FixtureRequest) -> Adapter:
    """A place that other processes can reach too."""
    adapter: Adapter = request.param(request)
    return adapter


@pytest.fixture
def other(tmp_path: Path) -> pfimg.PfStore:
    """A store on another machine, as it were."""
    return pfimg.PfStore.open(tmp_path / "other")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a directory registry will be."""
    return tmp_path / "deep" / "registry"


@pytest.fixture
def ref(root: Path) -> str:
    """Its reference."""
    return f"file://{root}"


@pytest.fixture
def make_image(tmp_path: Path, store: pfimg.PfStore) -> Callable[..., str]:
    """Makes an image of two files and some pages, of which one file and the K side of the last page depend on `version`."""

    def make(version: int = 0, pages: int = 4, parents: Sequence[str] = ()) -> str:
        root = tmp_path / f"work-{version}"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "same.txt").write_text("same " * 100)
        (root / "changed.txt").write_text(f"version {version}")
        half = META.page_bytes // 2
        k = [ix.to_bytes(2, "big") * half for ix in range(pages - 1)] + [bytes([255, version]) * half]
        v = [(20_000 + ix).to_bytes(2, "big") * half for ix in range(pages)]
        cache = store.put_pages(META, k=k, v=v)
        messages = [{"role": "user", "content": "hi"}]
        return pfimg.snapshot(store, agent="tester", fs_root=root, cwd="/srv", cache=cache, messages=messages, parents=parents)

    return make


@pytest.fixture
def image(make_image: Callable[..., str]) -> str:
    return make_image()

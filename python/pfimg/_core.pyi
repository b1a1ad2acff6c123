"""The Rust core, as Python sees it. Users import these names from `pfimg`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, final, overload

from typing_extensions import disjoint_base

from pfimg.types import BlobStore, Buffer, StrPath, Tick

__all__ = [
    "AgentInfo",
    "CacheLayer",
    "CacheMeta",
    "CarBlocks",
    "CarFrame",
    "CarFrames",
    "CarPart",
    "CarPlan",
    "CarReader",
    "EffectsLayer",
    "Entries",
    "FsTree",
    "FsTreeEntry",
    "Hold",
    "LogicalSeq",
    "Manifest",
    "MemoryStore",
    "ModelLayer",
    "PackIndex",
    "Page",
    "PageArena",
    "PageManifest",
    "Pages",
    "Store",
    "TraceLayer",
    "WorldLayer",
    "__version__",
    "car_cid_of",
    "car_node",
    "decode_frame",
    "digest_of",
    "digests_of",
    "encode_frame",
    "kernel",
    "kernels",
    "manifest_blob_digests",
    "threads",
    "transitive_blob_digests",
]

__version__: str

def digest_of(data: Buffer) -> str: ...
def digests_of(buffers: Any, *, algorithm: str = "sha256") -> list[str]: ...
def encode_frame(data: Buffer, *, codec: str = "auto", level: int = 1) -> bytes: ...
def decode_frame(frame: Buffer, *, expect: str | None = None) -> bytes: ...
def car_cid_of(data: Buffer) -> str: ...
def car_node(cid: str, data: Buffer) -> tuple[Literal["file", "directory", "shard"], int | None, list[tuple[str, str, int]]]: ...
def kernel() -> str: ...
def kernels() -> list[str]: ...
def threads() -> int: ...

@final
class AgentInfo:
    def __new__(cls, kind: str, version: str = "", fingerprint: str = "") -> AgentInfo: ...
    @property
    def kind(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...

@final
class ModelLayer:
    def __new__(cls, base: str, diff: str) -> ModelLayer: ...
    @property
    def base(self) -> str: ...
    @property
    def diff(self) -> str: ...

@final
class CacheLayer:
    def __new__(cls, manifest: str, layout: str = "paged-batchinvariant-v1") -> CacheLayer: ...
    @property
    def layout(self) -> str: ...
    @property
    def manifest(self) -> str: ...

@final
class WorldLayer:
    def __new__(cls, fs: str, env: str, procs: str) -> WorldLayer: ...
    @property
    def fs(self) -> str: ...
    @property
    def env(self) -> str: ...
    @property
    def procs(self) -> str: ...

@final
class EffectsLayer:
    def __new__(cls, ledger: str) -> EffectsLayer: ...
    @property
    def ledger(self) -> str: ...

@final
class TraceLayer:
    def __new__(cls, messages: str) -> TraceLayer: ...
    @property
    def messages(self) -> str: ...

@final
class Manifest:
    """An image manifest. `from_json` keeps the bytes it was given: `to_json` returns exactly those."""

    def __new__(
        cls,
        *,
        agent: AgentInfo,
        model: ModelLayer,
        cache: CacheLayer,
        world: WorldLayer,
        effects: EffectsLayer,
        trace: TraceLayer,
        created_at: str,
        parents: Sequence[str] = (),
        schema_version: int = 1,
        media_type: str | None = None,
    ) -> Manifest: ...
    @staticmethod
    def from_json(data: Buffer) -> Manifest: ...
    def to_json(self) -> bytes: ...
    @property
    def id(self) -> str: ...
    @property
    def schema_version(self) -> int: ...
    @property
    def media_type(self) -> str: ...
    @property
    def agent(self) -> AgentInfo: ...
    @property
    def model(self) -> ModelLayer: ...
    @property
    def cache(self) -> CacheLayer: ...
    @property
    def world(self) -> WorldLayer: ...
    @property
    def effects(self) -> EffectsLayer: ...
    @property
    def trace(self) -> TraceLayer: ...
    @property
    def created_at(self) -> str: ...
    @property
    def parents(self) -> tuple[str, ...]: ...

@final
class CacheMeta:
    def __new__(cls, page_size_tokens: int, n_layers: int, n_heads: int, head_dim: int, dtype: str) -> CacheMeta: ...
    @property
    def page_size_tokens(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def dtype(self) -> Literal["bf16", "f16", "f32", "fp8e4m3"]: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...

@final
class Page:
    def __new__(cls, ix: int, k: str, v: str) -> Page: ...
    @property
    def ix(self) -> int: ...
    @property
    def k(self) -> str: ...
    @property
    def v(self) -> str: ...

@final
class LogicalSeq:
    def __new__(cls, id: str, page_ixs: Sequence[int], fill_in_last_page: int = 0) -> LogicalSeq: ...
    @property
    def id(self) -> str: ...
    @property
    def page_ixs(self) -> tuple[int, ...]: ...
    @property
    def fill_in_last_page(self) -> int: ...

@final
class Pages(Sequence[Page]):
    """The pages of a PageManifest, in order of `ix`; made into objects one by one when asked for."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> Page: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[Page]: ...
    def index(self, value: object, start: int = 0, stop: int | None = None) -> int: ...
    def count(self, value: object) -> int: ...

@final
class PageManifest:
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __new__(cls, meta: CacheMeta, pages: Sequence[Page] = (), logical_seqs: Sequence[LogicalSeq] = ()) -> PageManifest: ...
    @staticmethod
    def from_json(data: Buffer) -> PageManifest: ...
    def to_json(self) -> bytes: ...
    def __len__(self) -> int: ...
    @property
    def layout(self) -> str: ...
    @property
    def meta(self) -> CacheMeta: ...
    @property
    def pages(self) -> Pages: ...
    @property
    def logical_seqs(self) -> tuple[LogicalSeq, ...]: ...

@final
class FsTreeEntry:
    def __new__(
        cls,
        path: str,
        mode: str,
        size: int,
        kind: Literal["file", "dir", "symlink"],
        blob: str | None = None,
        link_target: str | None = None,
    ) -> FsTreeEntry: ...
    @property
    def path(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def kind(self) -> Literal["file", "dir", "symlink"]: ...
    @property
    def blob(self) -> str | None: ...
    @property
    def link_target(self) -> str | None: ...

@final
class Entries(Sequence[FsTreeEntry]):
    """The entries of an FsTree, in path order; made into objects one by one when asked for."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> FsTreeEntry: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[FsTreeEntry]: ...
    def index(self, value: object, start: int = 0, stop: int | None = None) -> int: ...
    def count(self, value: object) -> int: ...

@final
class FsTree:
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __new__(cls, entries: Sequence[FsTreeEntry] = ()) -> FsTree: ...
    @staticmethod
    def from_json(data: Buffer) -> FsTree: ...
    def to_json(self) -> bytes: ...
    def __len__(self) -> int: ...
    @property
    def entries(self) -> Entries: ...

@final
class CarFrames:
    """The frames of a store's blobs in one encoding, for a `CarPlan`."""

    def __new__(cls, store: Store, codec: str) -> CarFrames: ...
    def of(self, digests: Sequence[str]) -> dict[str, CarFrame]: ...

@final
class CarFrame:
    """The frame of one blob; it is made as it is read, after its content was verified."""

@final
class CarPart:
    """Blocks of a plan as a CAR."""

    @property
    def size(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...

@final
class CarPlan:
    """What `pfimg.car.Plan` is made of; use that."""

    def __new__(cls, entries: Sequence[tuple[str, StrPath | Buffer | CarFrame]]) -> CarPlan: ...
    @property
    def root(self) -> str: ...
    @property
    def files(self) -> list[tuple[str, int]]:
        """CIDs and bytes of the contents, in the order of the entries."""
    def upload(self, there: Sequence[str]) -> CarPart:
        """What a service lacks that has these blocks: contents first, the root last."""
    @property
    def size(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...

@final
class CarReader:
    """What `pfimg.car.Reader` is made of; use that."""

    def __new__(cls) -> CarReader: ...
    @property
    def roots(self) -> list[str] | None: ...
    def feed(self, data: Buffer) -> list[tuple[str, str, bytes]]: ...
    def finish(self) -> None: ...

@final
class CarBlocks:
    """What `pfimg.car.Blocks` is made of; use that. Links are names, CIDs and bytes."""

    def __new__(cls) -> CarBlocks: ...
    def add(self, cid: str, data: Buffer) -> None: ...
    def feed(self, reader: CarReader, data: Buffer) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, cid: str, /) -> bool: ...
    def __getitem__(self, cid: str, /) -> bytes: ...
    def missing(self, cid: str) -> list[str]: ...
    def entries(self, cid: str) -> list[tuple[str, str, int]]: ...
    def find(self, cid: str, name: str) -> tuple[str, str, int] | None: ...
    def read(self, cid: str) -> bytes: ...

def manifest_blob_digests(manifest: Manifest) -> list[str]: ...
def transitive_blob_digests(manifest: Manifest, store: BlobStore) -> list[str]: ...

@final
class MemoryStore:
    """Blobs in memory, for tests and for images that need no directory."""

    def __new__(cls, *, digest: str = "sha256") -> MemoryStore: ...
    def put(self, data: Buffer) -> str: ...
    def get(self, digest: str) -> bytes: ...
    def has(self, digest: str) -> bool: ...
    def physical_bytes(self) -> int: ...

@final
class PageArena:
    """Page slots in mapped memory. A page is hashed while it is copied in, and verified while it is copied out."""

    def __new__(cls, path: StrPath | None, *, page_bytes: int, capacity_bytes: int, digest: str = "sha256") -> PageArena: ...
    @staticmethod
    def attach(path: StrPath) -> PageArena: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def digest(self) -> str: ...
    def put_many(self, buffers: Any, *, digests: Sequence[str] | None = None) -> list[str]: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: Any, errors: Literal["raise"] = "raise") -> None: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: Any, errors: Literal["mask"]) -> list[bool]: ...
    def write_to(self, store: BlobStore, digests: Sequence[str]) -> list[bool]: ...
    def read_from(self, store: BlobStore, digests: Sequence[str], *, out: Any) -> list[bool]: ...
    def has_many(self, digests: Sequence[str]) -> list[bool]: ...
    def pin(self, digests: Sequence[str]) -> list[bool]: ...
    def unpin(self, digests: Sequence[str]) -> list[bool]: ...
    def remove(self, digests: Sequence[str]) -> list[bool]: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...
    def __enter__(self) -> PageArena: ...
    def __exit__(self, *exc: object) -> None: ...

@final
class PackIndex:
    """Where the frames of blobs lie in packs. Nothing it says is trusted: `land_frames` hashes what is cut out of a pack."""

    __hash__: ClassVar[None]  # type: ignore[assignment]
    @staticmethod
    def of(pack: str, digests: Sequence[str], lengths: Sequence[int]) -> PackIndex:
        """The index of one pack: its name, its blobs and the bytes of their frames, in order."""
    @staticmethod
    def from_bytes(data: Buffer) -> PackIndex: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def join(indexes: Sequence[PackIndex]) -> PackIndex:
        """The packs of several indexes in one, in order; one that several describe is there once, as the first of them does."""
    @property
    def packs(self) -> list[tuple[str, int, int]]:
        """Name (SHA-256 as 64 hexadecimal digits), bytes and number of blobs of each pack."""
    def __len__(self) -> int:
        """Number of blobs, in all packs together."""
    def locate(self, digests: Sequence[str]) -> list[tuple[str, int, int] | None]:
        """Pack, offset and length of each blob's frame, in the first pack that has it; None where none has."""
    def covering(self, digests: Sequence[str]) -> list[str]:
        """The packs that `locate` would tell, in order."""
    def only(self, packs: Sequence[str]) -> PackIndex:
        """The same without all packs but these; one that is not there does no harm."""

@disjoint_base
class Store:
    """What `pfimg.PfStore` is made of; use that."""

    def __new__(
        cls,
        path: StrPath,
        *,
        digest: str | None = None,
        codec: str = "auto",
        level: int = 1,
        durability: str = "group",
        blobs: BlobStore | None = None,
        published: bool = False,
    ) -> Self:
        """With `published`, only frames of the published format are seen and written: for directories that others read."""
    @property
    def root(self) -> Path: ...
    @property
    def digest(self) -> str: ...
    # blobs
    def put(self, data: Buffer) -> str: ...
    def get(self, digest: str) -> bytes: ...
    def has(self, digest: str) -> bool: ...
    def put_many(self, buffers: Any, *, digests: Sequence[str | None] | None = None) -> list[str]: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: None = None, errors: Literal["raise"] = "raise") -> list[bytes]: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: None = None, errors: Literal["mask"]) -> list[bytes | None]: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: Any, errors: Literal["raise"] = "raise") -> None: ...
    @overload
    def get_many(self, digests: Sequence[str], *, out: Any, errors: Literal["mask"]) -> list[bool]: ...
    def has_many(self, digests: Sequence[str]) -> list[bool]: ...
    def physical_bytes(self) -> int: ...
    # KV pages
    def put_pages(
        self,
        meta: CacheMeta,
        k: Any,
        v: Any,
        *,
        logical_seqs: Sequence[LogicalSeq] = (),
        first_ix: int = 0,
        base: PageManifest | None = None,
    ) -> PageManifest: ...
    @overload
    def get_pages(
        self,
        pages: PageManifest | str,
        *,
        ixs: Sequence[int] | None = None,
        sequence: str | None = None,
        out_k: None = None,
        out_v: None = None,
        errors: Literal["raise"] = "raise",
        expect: CacheMeta | None = None,
    ) -> tuple[memoryview, memoryview]: ...
    @overload
    def get_pages(
        self,
        pages: PageManifest | str,
        *,
        ixs: Sequence[int] | None = None,
        sequence: str | None = None,
        out_k: None = None,
        out_v: None = None,
        errors: Literal["mask"],
        expect: CacheMeta | None = None,
    ) -> tuple[memoryview, memoryview, list[bool]]: ...
    @overload
    def get_pages(
        self,
        pages: PageManifest | str,
        *,
        ixs: Sequence[int] | None = None,
        sequence: str | None = None,
        out_k: Any,
        out_v: Any,
        errors: Literal["raise"] = "raise",
        expect: CacheMeta | None = None,
    ) -> None: ...
    @overload
    def get_pages(
        self,
        pages: PageManifest | str,
        *,
        ixs: Sequence[int] | None = None,
        sequence: str | None = None,
        out_k: Any,
        out_v: Any,
        errors: Literal["mask"],
        expect: CacheMeta | None = None,
    ) -> list[bool]: ...
    # trees
    def put_tree(
        self, path: StrPath, *, ignore: Sequence[str] = (), default_ignores: bool = True, tick: Tick | None = None
    ) -> str: ...
    def restore_tree(
        self, digest: str, target: StrPath, *, allow_absolute_symlinks: bool = False, tick: Tick | None = None
    ) -> None: ...
    # images and roots
    def put_manifest(self, manifest: Manifest) -> str: ...
    def get_manifest(self, image: str) -> Manifest: ...
    def remove_image(self, image: str) -> None: ...
    def pin(self, name: str, digest: str) -> None: ...
    def unpin(self, name: str) -> None: ...
    def pins(self) -> dict[str, str]: ...
    def markers(self) -> list[str]:
        """Ids of all images that have a marker, sorted; the markers are not read."""
    def read_marker(self, image: str) -> Manifest:
        """The manifest in an image's marker. Errors: FormatError, IntegrityError when it does not hash to its name."""
    def put_partial(self, manifest: Manifest) -> str:
        """Records an image of which only a part is here; `put_manifest` makes it a visible one once it is whole."""
    def partial_images(self) -> list[str]:
        """Ids of the images of which only a part is here."""
    # for transfers
    def reachable(
        self,
        manifest: Manifest,
        *,
        layers: Sequence[str] | None = None,
        ixs: Sequence[int] | None = None,
    ) -> list[str]:
        """What an image, or the chosen layers and page numbers of it, refers to, in walk order; its own id is not among it."""
    def documents(self, manifest: Manifest, *, layers: Sequence[str] | None = None) -> list[str]:
        """The layer blobs that a walk has to read: tree, page manifest, process table, model difference."""
    def blob_path(self, digest: str) -> Path | None:
        """Where the stored frame lies, a float frame if its suffix is `.fpl`; None when it is not there, or in no directory."""
    def float_blobs(self, digests: Sequence[str]) -> list[str]:
        """Those of the blobs that lie in float frames; none is read."""
    def require_features(self, features: Sequence[str]) -> None:
        """Makes sure that the directory's description lists features; FormatError for one that is not known."""
    def read_frame(self, digest: str) -> bytes:
        """The stored frame as it is (verified against the digest); encoded on the spot when the blobs are not in a directory."""
    def read_frames(self, digests: Sequence[str]) -> list[bytes]:
        """The same for many, read and verified by all threads. Errors carry `.index`; LimitExceeded for a frame above 1 GiB."""
    def frame_sizes(self, digests: Sequence[str]) -> list[int]:
        """Bytes of the frames that `read_frames` gives; stored ones are not read for that. Errors carry `.index`."""
    def check_blob(self, digest: str) -> int:
        """Verifies one blob of any size without holding it in memory; returns the bytes of its frame."""
    def encode_frames(self, digests: Sequence[str], *, codec: str) -> list[bytes]:
        """Blobs as frames of another encoding at the store's level, verified and made in parallel. Errors carry `.index`."""
    def land_frames(self, items: Sequence[tuple[str, Buffer]]) -> int:
        """Decodes and verifies frames and stores them as they arrived; returns how many were new. Errors carry `.index`."""
    def import_files(self, items: Sequence[tuple[str, StrPath]], *, tick: Tick | None = None) -> tuple[int, int]:
        """The same for frames in files, in parallel; returns how many were new and their encoded bytes."""
    # upkeep: plain tuples and dictionaries, which `pfimg.PfStore` turns into reports
    def run_verify(self, *, resume: bool = False, tick: Tick | None = None) -> dict[str, Any]: ...
    def run_gc(self, *, grace_seconds: float = 86_400, max_bytes: int | None = None, dry_run: bool = False) -> dict[str, Any]: ...
    def run_stats(self) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]:
        """What this object has done, as `stats` tells it, without a look at the directory."""

    def hold(self) -> Hold:
        """A shared lock on the store for the length of a `with` block: gc removes nothing meanwhile."""

@final
class Hold:
    def __enter__(self) -> Hold: ...
    def __exit__(self, *exc: object) -> None: ...

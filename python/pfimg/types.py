"""Plain values that calls take and return: progress events, reports, differences.

All are frozen, and print as a short table. Sizes are in bytes, times in seconds; printed sizes are in decimal units (1 kB = 1,000
bytes).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from pfimg._core import Manifest

T = TypeVar("T")

Buffer: TypeAlias = Any
"""Anything with a C-contiguous buffer, or a Torch tensor in CPU memory; read in place, so it must not change meanwhile."""

StrPath: TypeAlias = str | PathLike[str]
"""The path of a file or directory."""

Tick: TypeAlias = Callable[[int, int, int], object]
"""What the core calls about ten times a second: items done, items expected (0 while unknown), bytes done."""


class BlobStore(Protocol):
    """What holds blobs: the walks and the registries take anything with these methods.

    `get` raises BlobNotFound (or another KeyError) for what is absent, and never returns bytes that do not hash to the digest.
    """

    def put(self, data: bytes, /) -> str:
        """Stores a blob; returns its digest."""

    def get(self, digest: str, /) -> bytes:
        """The blob's bytes."""

    def has(self, digest: str, /) -> bool:
        """Whether the blob is here."""

    def physical_bytes(self) -> int:
        """What all blobs take as they are stored."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long call has come.

    Attributes:
        phase: What is being done, such as `capture`, `verify`, `send`.
        done: Items finished in this phase.
        total: Items expected; 0 while that is unknown.
        bytes: Bytes finished in this phase.
        total_bytes: Bytes expected, or None while that is unknown.
        retries: Requests to a registry's service that had to be made again.
        in_flight: Requests that wait for an answer.
    """

    phase: str
    done: int
    total: int
    bytes: int
    total_bytes: int | None = None
    retries: int = 0
    in_flight: int = 0


ProgressCallback: TypeAlias = Callable[[Progress], object]
"""What `progress=` takes. Called from the thread that made the call, about ten times a second; what it raises ends the call."""


def ticker(progress: ProgressCallback | None, phase: str) -> Tick | None:
    """What the core calls, for a callable that wants events."""
    if progress is None:
        return None
    return lambda done, total, size: progress(Progress(phase, done, total, size))


def human_size(count: float) -> str:
    """`1234567` as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:  # noqa: PLR2004 - what would round to 1,000
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    lines = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in lines)])


def _listed(items: "Iterable[object]", show: int = 5) -> str:
    """The first few of a list, for one row of a table."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:show]) + (f" and {len(texts) - show:,} more" if len(texts) > show else "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify` found.

    Attributes:
        digest: The blob, or the image whose marker it is; None for a file that is neither.
        path: Where it is, or would be; None when the blobs are not in a directory.
        images: Ids of the images that need it, sorted.
        uses: What it is in them, such as `k of page 7 in sha256:…` or `file a/b.txt in sha256:…`, as far as that can be told.
        reason: What is wrong with it; empty where the list that it is in says it all.
    """

    digest: str | None
    path: str | None
    images: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        name = self.digest or self.path or "?"
        whom = _listed(self.uses, 2) if self.uses else f"needed by {_listed(self.images, 2)}" if self.images else ""
        return f"{name} ({whom})" if whom else f"{name} ({self.reason})" if self.reason else name


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `PfStore.verify` found.

    Attributes:
        checked: Blobs read and hashed.
        bytes: Their size on disk.
        corrupt: Blobs that do not hash to their name (moved to `quarantine/`) or cannot be read, and markers, pins and documents
            that are not what they should be.
        missing: Blobs that an image or a pin needs and that are not here.
        unreachable: Blobs that no image and no pin needs; `gc` would remove them once they are old enough.
        foreign: Files that are no blobs of this store.
        partial: Ids of images of which only a part was pulled; what they lack is not missing.
        repaired: Blobs that were fetched again, because they had been corrupt or missing.
        resumed: Blobs that the run that was resumed had read, and that have not changed since; not in `checked`.
    """

    checked: int
    bytes: int
    corrupt: tuple[Finding, ...] = ()
    missing: tuple[Finding, ...] = ()
    unreachable: tuple[Finding, ...] = ()
    foreign: tuple[Finding, ...] = ()
    partial: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    resumed: int = 0

    @property
    def ok(self) -> bool:
        """Whether every blob that is here is intact, and every blob that is needed is here."""
        return not self.corrupt and not self.missing

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [("checked", f"{self.checked:,} blobs, {human_size(self.bytes)}")]
        rows += [("before", f"{self.resumed:,} blobs, not changed since")] if self.resumed else []
        for name in ("corrupt", "missing"):
            rows += [(name, finding) for finding in getattr(self, name)]
        lists = {"unreachable": self.unreachable, "foreign": self.foreign, "partial": self.partial, "repaired": self.repaired}
        rows += [(name, len(found)) for name, found in lists.items() if found]
        return _table("intact" if self.ok else "DAMAGED", rows)


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `PfStore.gc` or `collect_garbage` removed, or with `dry_run` would remove.

    Attributes:
        freed: Blobs removed, or packs of blobs.
        freed_bytes: What they took, and what killed processes had left of others.
        kept: Blobs, or packs, that stay.
        dry_run: Whether nothing was removed in truth.
    """

    freed: int
    freed_bytes: int
    kept: int
    dry_run: bool = False

    def __str__(self) -> str:
        freed = f"{self.freed:,} blobs, {human_size(self.freed_bytes)}"
        return _table("would be freed" if self.dry_run else "freed", [("freed", freed), ("kept", f"{self.kept:,} blobs")])


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a store, and what this handle has done with it.

    Attributes:
        blobs: Blobs in the store.
        images: Images in the store.
        physical_bytes: What the blobs take on disk.
        logical_bytes: What they are decoded.
        counters: Counts since this handle was opened, such as `hits`, `misses`, `corrupt`, `bytes_read`, `bytes_written`.
    """

    blobs: int
    images: int
    physical_bytes: int
    logical_bytes: int
    counters: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        share = (
            f", {self.physical_bytes / self.logical_bytes:.1%} of {human_size(self.logical_bytes)}" if self.logical_bytes else ""
        )
        rows: list[tuple[str, object]] = [("blobs", self.blobs), ("images", self.images)]
        rows.append(("on disk", human_size(self.physical_bytes) + share))
        return _table("store", [*rows, *self.counters.items()])


@dataclass(frozen=True, slots=True)
class PushReport:
    """What `push` or `copy` sent.

    Attributes:
        ref: The canonical reference under which the image now is.
        sent: Blobs sent.
        skipped: Blobs that were there already.
        bytes_sent: Encoded bytes of the blobs sent.
        seconds: How long it took.
        retries: Requests that had to be made again.
    """

    ref: str
    sent: int
    skipped: int
    bytes_sent: int
    seconds: float
    retries: int = 0

    def __str__(self) -> str:
        return _table(f"pushed {self.ref}", _moved("sent", self.sent, self.bytes_sent, self))


@dataclass(frozen=True, slots=True)
class PullReport:
    """What `pull` fetched.

    Attributes:
        image: Id of the image.
        fetched: Blobs fetched.
        skipped: Blobs that were here already.
        bytes_fetched: Encoded bytes of the blobs fetched.
        signature: What the signature proves: `verified` (by a key that is trusted) or `self-signed` (nothing).
        seconds: How long it took.
        retries: Requests that had to be made again.
        signer: Fingerprint of the public key that checks the signature, as `sha256:…`; None where a secret does. Who that is, a
            signature that is self-signed does not prove.
    """

    image: str
    fetched: int
    skipped: int
    bytes_fetched: int
    signature: str
    seconds: float
    retries: int = 0
    signer: str | None = None

    def __str__(self) -> str:
        rows = _moved("fetched", self.fetched, self.bytes_fetched, self)
        by = f" by {self.signer}" if self.signer else ""
        return _table(f"pulled {self.image}", [*rows, ("signature", f"{self.signature}{by}")])


def _moved(verb: str, items: int, size: int, report: PushReport | PullReport) -> list[tuple[str, object]]:
    rate = f" ({human_size(size / report.seconds)}/s)" if report.seconds > 0 else ""
    rows: list[tuple[str, object]] = [(verb, f"{items:,} blobs, {human_size(size)}"), ("skipped", f"{report.skipped:,} blobs")]
    rows.append(("took", f"{report.seconds:.2f} s{rate}"))
    return [*rows, *([("retries", report.retries)] if report.retries else [])]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export_pages` made an image of.

    Attributes:
        image: Id of the image.
        parts: Namespaces of caches that have pages in it.
        keys: Keys, and with them pages; equal pages are stored once.
        bytes: What these pages take as they are used.
        missing: Keys that were left out: the cache has lost their pages, or was giving them up just then.
    """

    image: str
    parts: int
    keys: int
    bytes: int
    missing: int = 0

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [("parts", self.parts), ("keys", f"{self.keys:,}, {human_size(self.bytes)}")]
        return _table(f"exported {self.image}", [*rows, *([("missing", self.missing)] if self.missing else [])])


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `warm` put into caches.

    Attributes:
        image: Id of the image.
        namespaces: Namespaces that had something to gain from it.
        keys: Keys of the image that have a page now, or with `lazy` will get it when it is asked for.
        fetched: Pages that came; the others were here.
        bytes: What these pages take as they are used.
        missing: Keys that were left out because their pages are not there, or not what they should be.
        no_room: Keys that were left out because the cache has no room for them.
        seconds: How long it took.
    """

    image: str
    namespaces: tuple[str, ...]
    keys: int
    fetched: int
    bytes: int
    missing: int
    no_room: int
    seconds: float

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [("namespaces", len(self.namespaces)), ("keys", self.keys)]
        rows.append(("fetched", f"{self.fetched:,} pages, {human_size(self.bytes)}"))
        rows += [(name, count) for name, count in (("missing", self.missing), ("no room", self.no_room)) if count]
        return _table(f"warmed from {self.image}", [*rows, ("took", f"{self.seconds:.2f} s")])


@dataclass(frozen=True, slots=True)
class LayerSet:
    """An image that was pulled without a store.

    Attributes:
        manifest: Its manifest.
        blobs: Digest and decoded bytes of every blob it refers to, in walk order.
    """

    manifest: "Manifest"
    blobs: list[tuple[str, bytes]]

    def __str__(self) -> str:
        size = sum(len(data) for _, data in self.blobs)
        return _table(f"image {self.manifest.id}", [("blobs", len(self.blobs)), ("size", human_size(size))])


@dataclass(frozen=True, slots=True)
class Changes(Generic[T]):
    """Names that are only in the new one, only in the old one, or in both with other content; each sorted."""

    added: tuple[T, ...] = ()
    removed: tuple[T, ...] = ()
    changed: tuple[T, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        counts = {"added": self.added, "removed": self.removed, "changed": self.changed}
        return "; ".join(f"{len(names):,} {verb}: {_listed(names)}" for verb, names in counts.items() if names) or "none"


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """How image `b` differs from image `a`.

    Attributes:
        a: Id of the old image.
        b: Id of the new one.
        files: Paths of files, directories and links that differ in kind, mode or content.
        pages: Numbers (`ix`) of the KV pages of which K or V differs.
        sequences: Ids of the logical sequences that differ.
        layers: Names of all layers and fields that differ, such as `world.fs`, `cache.manifest`, `agent`, in manifest order; the
            time of creation and the parents are no part of it.
    """

    a: str
    b: str
    files: Changes[str]
    pages: Changes[int]
    sequences: Changes[str]
    layers: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.layers)

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [("files", self.files), ("pages", self.pages), ("sequences", self.sequences)]
        others = [name for name in self.layers if name not in ("world.fs", "cache.manifest")]
        return _table(f"{self.a} → {self.b}", [*rows, ("other layers", _listed(others, 9) or "none")])

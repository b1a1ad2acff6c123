"""What is in an image, in numbers: read from its manifest and the documents that this names, never from files or pages."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from heapq import nlargest
from typing import Any, TypeVar

from pfimg import CacheMeta, FsTree, Manifest, PageManifest, PfStore
from pfimg.errors import BlobNotFound

T = TypeVar("T")

_BIGGEST = 5
_SHORT_TEXT = 200  # bytes


@dataclass(frozen=True)
class Tree:
    """The captured directory: how many of what, bytes in files, and the biggest of them."""

    files: int
    directories: int
    links: int
    bytes: int
    biggest: list[tuple[str, int]]

    @classmethod
    def of(cls, tree: FsTree) -> "Tree":
        """Counts the entries."""
        kinds: Counter[str] = Counter()
        sizes: list[tuple[int, str]] = []
        for entry in tree.entries:
            kinds[entry.kind] += 1
            if entry.kind == "file":
                sizes.append((entry.size, entry.path))
        biggest = [(path, size) for size, path in nlargest(_BIGGEST, sizes)]
        return cls(kinds["file"], kinds["dir"], kinds["symlink"], sum(size for size, _ in sizes), biggest)


@dataclass(frozen=True)
class Block:
    """One logical sequence: its pages as positions in the page table, and which of them other sequences use too."""

    id: str
    positions: list[int]
    shared: list[int]
    tokens: int

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {"id": self.id, "pages": len(self.positions), "shared": len(self.shared), "tokens": self.tokens}


@dataclass(frozen=True)
class Cache:
    """The KV pages: geometry, counts, and the sequences that use them."""

    meta: CacheMeta
    layout: str
    pages: int
    bytes: int
    blobs: int
    blocks: list[Block]

    @classmethod
    def of(cls, manifest: PageManifest) -> "Cache":
        """Counts the pages and how the sequences share them."""
        position = {page.ix: at for at, page in enumerate(manifest.pages)}
        users = Counter(ix for sequence in manifest.logical_seqs for ix in set(sequence.page_ixs))
        blocks = [
            Block(
                sequence.id,
                [position[ix] for ix in sequence.page_ixs],
                [position[ix] for ix in sequence.page_ixs if users[ix] > 1],
                _tokens(len(sequence.page_ixs), sequence.fill_in_last_page, manifest.meta.page_size_tokens),
            )
            for sequence in manifest.logical_seqs
        ]
        blobs = {digest for page in manifest.pages for digest in (page.k, page.v)}
        size = 2 * len(manifest) * manifest.meta.page_bytes
        return cls(manifest.meta, manifest.layout, len(manifest), size, len(blobs), blocks)

    def document(self) -> dict[str, Any]:
        """As plain values."""
        names = ("page_size_tokens", "n_layers", "n_heads", "head_dim", "dtype", "page_bytes")
        sequences = [block.document() for block in self.blocks]
        counts = {"layout": self.layout, "pages": self.pages, "bytes": self.bytes, "distinct_blobs": self.blobs}
        return counts | {name: getattr(self.meta, name) for name in names} | {"sequences": sequences}


def _tokens(pages: int, fill: int, page_size: int) -> int:
    return pages * page_size - (page_size - fill if pages and fill else 0)


@dataclass(frozen=True)
class Contents:
    """An image.

    `blobs` has the size of each document, by layer; None where it is not here. What a document says is None where it is not here,
    or of a kind that this version does not know.
    """

    image: str
    manifest: Manifest
    partial: bool
    blobs: dict[str, int | None]
    tree: Tree | None
    cache: Cache | None
    base: str | None
    adapters: int | None
    env: Mapping[str, Any] | None
    procs: str | None
    effects: int | None
    messages: int | None

    @classmethod
    def read(cls, store: PfStore, image: str) -> "Contents":
        """Reads the documents. Errors: BlobNotFound for the image itself, IntegrityError, FormatError."""
        manifest = store.get_manifest(image)
        digests = layer_digests(manifest)
        found: dict[str, bytes | None] = {}
        for name, digest in digests.items():
            try:
                found[name] = store.get(digest)
            except BlobNotFound:
                found[name] = None
        tree = _parsed(FsTree.from_json, found["world.fs"], b'"fs.tree.v1"')
        pages = _parsed(PageManifest.from_json, found["cache.manifest"], b'"pages"')
        difference, procs = _json(found["model.diff"]), _json(found["world.procs"])
        adapters = difference.get("diff", {}).get("adapters") if isinstance(difference.get("diff"), dict) else None
        return cls(
            image,
            manifest,
            image in store.partial_images(),
            {name: None if data is None else len(data) for name, data in found.items()},
            Tree.of(tree) if tree is not None else None,
            Cache.of(pages) if pages is not None else None,
            _text(found["model.base"]),
            len(adapters) if isinstance(adapters, list) else None,
            _json(found["world.env"]) or None,
            str(procs["kind"]) if "kind" in procs else None,
            _lines(found["effects.ledger"], header=1),
            _lines(found["trace.messages"], header=0),
        )

    def sizes(self) -> dict[str, int]:
        """Decoded bytes of each layer as far as they are known, what its document refers to included."""
        sizes: Counter[str] = Counter()
        for name, size in self.blobs.items():
            sizes[name.partition(".")[0]] += size or 0
        sizes["world"] += self.tree.bytes if self.tree else 0
        sizes["cache"] += self.cache.bytes if self.cache else 0
        return dict(sizes)

    def document(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        digests = layer_digests(self.manifest)
        return {
            "image": self.image,
            "partial": self.partial,
            "manifest": json.loads(self.manifest.to_json()),
            "layers": {name: {"digest": digests[name], "bytes": size} for name, size in self.blobs.items()},
            "sizes": self.sizes(),
            "cache": self.cache.document() if self.cache else None,
            "tree": asdict(self.tree) if self.tree else None,
            "adapters": self.adapters,
            "procs": self.procs,
            "effects": self.effects,
            "messages": self.messages,
        }


def layer_digests(manifest: Manifest) -> dict[str, str]:
    """The blobs that a manifest names, in its order."""
    return {
        "model.base": manifest.model.base,
        "model.diff": manifest.model.diff,
        "cache.manifest": manifest.cache.manifest,
        "world.fs": manifest.world.fs,
        "world.env": manifest.world.env,
        "world.procs": manifest.world.procs,
        "effects.ledger": manifest.effects.ledger,
        "trace.messages": manifest.trace.messages,
    }


def _parsed(parse: Callable[[bytes], T], data: bytes | None, mark: bytes) -> T | None:
    """The document; None when it is not here, or opaque: without the mark it claims to be nothing, which is valid."""
    return None if data is None or mark not in data else parse(data)


def _json(data: bytes | None) -> dict[str, Any]:
    """The object in a document; empty when there is none."""
    try:
        value = json.loads(data or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(data: bytes | None) -> str | None:
    """A short text such as `base:agent`; None for anything else."""
    text = data.decode(errors="replace") if data is not None and len(data) <= _SHORT_TEXT else ""
    return text if text.isprintable() and text else None


def _lines(data: bytes | None, *, header: int) -> int | None:
    return None if data is None else max(0, sum(1 for line in data.splitlines() if line.strip()) - header)

"""Pages of engines as images: out of caches, and into caches.

`export_pages` makes an image of the pages that caches hold under engines' keys; `warm` puts the pages of such an image under
their keys in other caches. So one engine computes what a shared prompt leads to, and a fleet begins with that.

The image is an ordinary one. Its directory has a file for each page, and `pages.json`, which tells the keys in order and what
the pages are of. The caches of a tensor-parallel group are exported side by side, each namespace a part. A part comes into a
namespace of the very same identity, and into no other: so each rank gets what is its own.

An index is read beside the process that has it open, and pages are copied as they are stored, each verified. What a cache gives
up meanwhile is left out.

Limits: that a page is what the tokens behind its key lead to is the word of whoever made the image; no digest proves that. Whose
word is taken is what `trust` says. What an engine has put moments ago is not in its index on disk yet.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, TypeAlias

from pfimg import engine_pages, transfer
from pfimg._core import Manifest, Store
from pfimg.cache import PageCache
from pfimg.engine_pages import Part
from pfimg.errors import BlobNotFound, FormatError, IntegrityError, LimitExceeded, StoreError
from pfimg.fetching import absent_from, fetch, heal
from pfimg.images import snapshot
from pfimg.page_adoption import Adopted
from pfimg.page_index import CacheIdentity, engine_key, key_bytes, recorded
from pfimg.places import Place, Ref
from pfimg.signing import Trusted
from pfimg.store import PfStore
from pfimg.transit import Meter
from pfimg.types import ExportReport, ProgressCallback, StrPath, WarmReport

Key: TypeAlias = bytes | str

PAGE_BYTES: Final = 512 << 20
"""Largest page of an image for which a cache is opened, in bytes: as much memory is taken twice."""

_IMAGE: Final = re.compile(r"(?:sha256|blake3):[0-9a-f]{64}")
# Blobs that are copied at a time.
_BATCH: Final = 256


def export_pages(
    directories: StrPath | Iterable[StrPath],
    store: PfStore,
    *,
    namespaces: Iterable[str] | None = None,
    prefix: Key | None = None,
    keys: Iterable[Key] | None = None,
    agent: str = "pfimg-cache",
    progress: ProgressCallback | None = None,
) -> ExportReport:
    """Makes an image of pages in caches, with their keys. The caches may be in use.

    Args:
        directories: Those of caches, or those that hold the directories of caches, as the parts of a tensor-parallel group.
        store: Where to.
        namespaces: Which of their namespaces; None for all.
        prefix: What the keys begin with, as text or as bytes, as the keys are; None for any.
        keys: These keys only, in this order; None for all, in the order in which they were put.
        agent: What kind of agent the image says it is of.
        progress: Called with events of the phase `export`.

    Returns:
        The image's id as `.image`, and what is in it.

    Raises:
        FileNotFoundError: There is no cache in a directory.
        FormatError: An index is none, two parts would be the same, or the store names blobs by another algorithm.
        LimitExceeded: There are too many keys for one image.
        StoreError: There is no such page; `.code` is `no_pages`.
        OSError: A directory cannot be read, or the disk is full.

    Example:
        >>> with pfimg.PageCache("engine", page_bytes=4096, arena_bytes=1 << 20) as cache:
        ...     cache.bind("chat", pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd"))
        ...     cache.put_many("chat", ["a", "b"], [b"A" * 4096, b"B" * 4096])
        >>> store = pfimg.PfStore.open("store")
        >>> report = pfimg.export_pages("engine", store)
        >>> report.keys, report.bytes
        (2, 8192)
    """
    wanted, chosen = None if namespaces is None else set(namespaces), None if keys is None else [key_bytes(key) for key in keys]
    begin = None if prefix is None else key_bytes(prefix)
    parts: list[Part] = []
    known: set[str] = set()
    missing = 0
    meter = Meter("export", progress)
    with store.hold():
        for directory, path in _caches(directories):
            blobs = Store(path / "store", durability="none")
            for found in recorded(path / "index.sqlite"):
                known.add(found.name)
                if wanted is not None and found.name not in wanted:
                    continue
                pages = _chosen(found.pages, begin, chosen)
                lost = _carry(blobs, store, [digest for _, digest, _ in pages], meter)
                whole = [page for page in pages if page[1] not in lost]
                missing += len(pages) - len(whole)
                if whole:
                    parts.append(Part(str(len(parts)), directory, found.name, found.identity, whole))
        if wanted and (unknown := sorted(wanted - known)):
            raise StoreError(f"no cache has a namespace {unknown[0]!r}; there are {_listed(known)}", code="no_pages")
        if not parts:
            raise StoreError("there is no such page in the caches; what was put just now is there after a flush", code="no_pages")
        image = snapshot(store, agent=agent, fs_tree=engine_pages.tree(store, parts))
    sizes = [size for part in parts for _, _, size in part.pages]
    return ExportReport(image, len(parts), len(sizes), sum(sizes), missing)


def warm(
    cache: PageCache | StrPath,
    source: Ref,
    *,
    store: PfStore | None = None,
    namespace: str | None = None,
    lazy: bool = False,
    trust: Trusted = None,
    jobs: int | None = None,
    progress: ProgressCallback | None = None,
) -> WarmReport:
    """Puts the pages of an image under their keys in caches: those of the same identity. Keys that have a page there keep it.

    Args:
        cache: A cache, of which all namespaces that are bound are warmed. Or the directory of one that is not in use; a new
            directory gets what was exported, the caches of several directories in such directories below it.
        source: The image: a reference to a registry, or its id where it is in `store`.
        store: Where the image is, if `source` is an id.
        namespace: This namespace only.
        lazy: Takes the keys only; the pages come from the cache's `registry` when they are asked for.
        trust: Whose signature to accept, as `pull` takes it: who made the image decides what the keys stand for.
        jobs: How many requests a registry that is a service gets at once; None leaves that to its adapter.
        progress: Called with events of the phase `fetch`.

    Returns:
        What came, and what did not.

    Raises:
        StoreError: Nothing in the image is of the identity that a namespace is bound to (`.code` is `identity`), or another
            process has the directory open.
        FormatError: There are no pages of engines in the image, or what tells of them is malformed; a page is longer than those
            of the cache; or `lazy` is for a cache without a registry.
        SignatureError, BlobNotFound, IntegrityError: As in `pull`.
        BadRef, UnsupportedScheme: The reference is malformed, or of a scheme that is not spoken.
        BackendError, OSError: The registry's service or a file system failed; what has come by then stays.

    Example:
        >>> with pfimg.PageCache("engine", page_bytes=4096, arena_bytes=1 << 20) as cache:
        ...     cache.bind("chat", pfimg.CacheIdentity("llama", "main", "bf16", (16, 2, 2, 32), "nhd"))
        ...     cache.put_many("chat", ["a", "b"], [b"A" * 4096, b"B" * 4096])
        >>> store = pfimg.PfStore.open("store")
        >>> report = pfimg.warm("fleet", pfimg.export_pages("engine", store).image, store=store)
        >>> report.keys, report.fetched
        (2, 2)
    """
    start = time.monotonic()
    if isinstance(cache, PageCache) and lazy and cache.registry is None:
        raise FormatError("lazy is for a cache with a registry, from which its pages come", field="lazy")
    origin = _origin(source, store, trust, jobs, progress)
    parts = engine_pages.read(origin.manifest, origin.read, str(source))
    bring = None if lazy else origin.bring
    done = Adopted()
    names = []
    for name, identity, path in _targets(cache, parts, namespace, str(source)):
        pages = [page for part in parts if part.identity == identity for page in part.pages]
        with nullcontext(cache) if isinstance(cache, PageCache) else _opened(path, name, identity, pages) as target:
            keys = [engine_key(raw) for raw, _, _ in pages]
            added = target.adopt(name, keys, [page[1] for page in pages], [page[2] for page in pages], bring)
        done = done.plus(**added._asdict())
        names.append(name)
    return WarmReport(origin.manifest.id, tuple(names), *done, time.monotonic() - start)


def exported(source: Ref, *, store: PfStore | None = None, trust: Trusted = None) -> list[CacheIdentity]:
    """What the pages of an image are of, part by part; arguments and errors are those of `warm`."""
    origin = _origin(source, store, trust, None, None)
    return [part.identity for part in engine_pages.read(origin.manifest, origin.read, str(source))]


# Out of caches.


def _caches(directories: StrPath | Iterable[StrPath]) -> list[tuple[str, Path]]:
    """The caches in directories, each with the name of its own directory; one that was named alone has none."""
    several = [directories] if isinstance(directories, str | os.PathLike) else list(directories)
    roots = [Path(each).expanduser() for each in several]
    found = []
    for root in roots:
        here = [("" if len(roots) == 1 else root.resolve().name, root)] if _is_cache(root) else []
        below = [(path.name, path) for path in sorted(root.iterdir()) if _is_cache(path)] if root.is_dir() else []
        if not here and not below:
            raise FileNotFoundError(errno.ENOENT, "there is no page cache here", str(root))
        found += here + below
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FormatError(f"two caches are in directories called {twice!r}: export them one by one", field="directories")
    return found


def _is_cache(path: Path) -> bool:
    return (path / "index.sqlite").is_file() and (path / "store").is_dir()


def _chosen(pages: list[tuple[bytes, str, int]], begin: bytes | None, keys: list[bytes] | None) -> list[tuple[bytes, str, int]]:
    if keys is not None:
        here = {page[0]: page for page in pages}
        pages = [here[key] for key in dict.fromkeys(keys) if key in here]
    return pages if begin is None else [page for page in pages if page[0].startswith(begin)]


def _carry(source: Store, target: Store, digests: Iterable[str], meter: Meter) -> set[str]:
    """Brings blobs from store to store as they are, verified; returns those that are lost, or damaged, in the source."""
    rest = absent_from(target, digests)
    meter.total += len(rest)
    lost: set[str] = set()
    for first in range(0, len(rest), _BATCH):
        batch = rest[first : first + _BATCH]
        while batch:
            try:
                size = _carry_some(source, target, batch)
            except (BlobNotFound, IntegrityError) as error:
                if error.digest not in batch:
                    raise
                batch.remove(error.digest)
                lost.add(error.digest)
                meter.total -= 1
            else:
                meter.advance(len(batch), size)
                break
    return lost


def _carry_some(source: Store, target: Store, digests: list[str]) -> int:
    files, size = [], 0
    for digest in digests:
        if (path := source.blob_path(digest)) is not None:
            files.append((digest, path))
        else:
            frame = source.read_frame(digest)  # of what is in no directory
            target.land_frames([(digest, frame)])
            size += len(frame)
    return size + target.import_files(files)[1]


# Into caches.


class _Origin(NamedTuple):
    """Where an image is: its manifest, what reads its documents, and what brings its pages, leaving out what it cannot bring."""

    manifest: Manifest
    read: Callable[[str], bytes]
    bring: Callable[[Store, list[str]], object]


def _origin(source: Ref, store: PfStore | None, trust: Trusted, jobs: int | None, progress: ProgressCallback | None) -> _Origin:
    is_here = isinstance(source, str) and _IMAGE.fullmatch(source) is not None
    if is_here != (store is not None):
        raise FormatError(f"{source}: an image is named by its id and the store it is in, or by a reference alone", field="store")
    meter = Meter("fetch", progress)
    if store is not None:
        here = store
        return _Origin(store.get_manifest(str(source)), store.get, lambda target, digests: _carry(here, target, digests, meter))
    place, manifest = transfer.read_image(source, trust=trust, jobs=jobs)
    return _Origin(manifest, partial(_read_blob, place, manifest), lambda target, digests: _fetch(place, target, digests, meter))


def _read_blob(place: Place, manifest: Manifest, digest: str) -> bytes:
    with TemporaryDirectory(prefix="pfimg-") as path:
        scratch = Store(path, digest=manifest.id.partition(":")[0], durability="none")
        fetch(place, [digest], scratch, Meter("documents"))
        return scratch.get(digest)


def _fetch(place: Place, target: Store, digests: list[str], meter: Meter) -> None:
    try:
        fetch(place, digests, target, meter)
    except StoreError:
        heal(place, absent_from(target, digests), target)


@contextmanager
def _opened(path: Path | None, name: str, identity: CacheIdentity, pages: list[tuple[bytes, str, int]]) -> Iterator[PageCache]:
    """A cache in a directory, with next to no memory: what it writes is what stays."""
    most = max(size for _, _, size in pages)
    if most > PAGE_BYTES:
        raise LimitExceeded(f"a page has {most:,} bytes, where {PAGE_BYTES:,} are the most", limit=PAGE_BYTES)
    algorithm = pages[0][1].partition(":")[0]
    with PageCache(path, page_bytes=max(1, most), arena_bytes=2 * max(1, most), digest=algorithm) as cache:
        cache.bind(name, identity)
        yield cache


def _targets(
    cache: PageCache | StrPath, parts: list[Part], namespace: str | None, source: str
) -> list[tuple[str, CacheIdentity, Path | None]]:
    """Which namespaces are to be warmed, of which identity, in which directory."""
    here: dict[str, CacheIdentity] = {}
    found: dict[tuple[Path | None, str], CacheIdentity] = {}

    def offer(part: Part, path: Path | None, bound: dict[str, CacheIdentity], *, makes: bool) -> None:
        here.update(bound)
        names = [name for name, identity in bound.items() if identity == part.identity]
        # A namespace that is not there yet is as it was exported.
        for name in names or ([part.namespace] if makes and part.namespace not in bound else []):
            if namespace in (None, name) and part.pages:
                found.setdefault((path, name), part.identity)

    for part in parts:
        if isinstance(cache, PageCache):
            offer(part, None, cache.namespaces(bound=True), makes=False)
            continue
        root = Path(cache).expanduser()
        below = root / part.directory
        if part.directory and _is_cache(root) and not _is_cache(below):
            offer(part, root, _recorded(root), makes=False)  # the cache of one part, given the image of all
        else:
            offer(part, below, _recorded(below), makes=True)
    if not found:
        raise _no_part(parts, {name: here[name] for name in here if namespace in (None, name)}, namespace, source)
    return [(name, identity, path) for (path, name), identity in found.items()]


def _recorded(path: Path) -> dict[str, CacheIdentity]:
    return {each.name: each.identity for each in recorded(path / "index.sqlite")} if _is_cache(path) else {}


def _no_part(parts: list[Part], bound: dict[str, CacheIdentity], namespace: str | None, source: str) -> StoreError:
    """Says what is different, of the pair that differs least."""
    if not bound or not parts:
        what = "no namespace is bound" if namespace is None else f"there is no namespace {namespace!r}"
        return StoreError(f"{source}: {what} that its pages could be for", code="identity")
    pairs = [(_differences(identity, part.identity), name) for name, identity in bound.items() for part in parts]
    differs, name = min(pairs, key=lambda pair: len(pair[0]))
    told = ", ".join(f"{field} {theirs!r} is not {ours!r}" for field, theirs, ours in differs)
    return StoreError(f"{source} has no pages of the identity of namespace {name!r}: {told or 'there are none'}", code="identity")


def _differences(ours: CacheIdentity, theirs: CacheIdentity) -> list[tuple[str, object, object]]:
    pairs = [(field.name, getattr(theirs, field.name), getattr(ours, field.name)) for field in fields(CacheIdentity)]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"

"""The store as Python programs use it: the core's store, with reports and repair.

Whatever touches blob bytes is in the core (`_core.Store`), whose calls release the GIL and share one thread pool. Here is what
needs no speed: opening, listing, and turning the core's plain results into reports.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from pfimg import config, transfer
from pfimg._core import Manifest, Store
from pfimg.errors import (
    BadRef,
    BlobNotFound,
    FormatError,
    IntegrityError,
    LimitExceeded,
    PfimgError,
    StoreError,
    StoreOSError,
    UnsupportedScheme,
)
from pfimg.fetching import absent_from
from pfimg.places import Ref
from pfimg.registries.base import Registry
from pfimg.types import BlobStore, Finding, GcReport, ProgressCallback, StoreStats, StrPath, VerifyReport, ticker
from pfimg.uses import uses

RepairSource: TypeAlias = Ref | Registry
"""Where lost blobs are fetched again: an image reference, or what `registries.open` returned for one."""

_Found: TypeAlias = Iterable[tuple[str | None, object, Iterable[str], str]]

_log = logging.getLogger("pfimg")


class PfStore(Store):
    """Content-addressed blobs and the images made of them, in a directory.

    One object may be used by many threads, and one directory by many processes. Codec, compression level and durability belong to
    the object; the digest algorithm belongs to the directory.

    Attributes:
        root: The directory.
        digest: `sha256` or `blake3`.

    Example:
        >>> store = pfimg.PfStore.open("store")
        >>> digest = store.put(b"hello")
        >>> store.get(digest)
        b'hello'
    """

    @staticmethod
    def open(
        path: StrPath, *, digest: str | None = None, codec: str = "auto", level: int = 1, durability: str = "group"
    ) -> "PfStore":
        """Opens the store in a directory, which is created when it is absent.

        Args:
            path: The directory; a leading `~` stands for the home directory.
            digest: Algorithm of a new store, `sha256` or `blake3`; an existing store must have it. None: what the store says,
                sha256 when new.
            codec: How blobs are encoded: `auto` (compressed where that saves at least 30 %), `zstd` (always), `store` (never)
                or `float` (pages of floats by their planes, which saves a third of bf16 pages; the rest as `auto`). All can be
                read whatever it is, but float frames by this software alone: the first one is announced in `pfimg.json`.
            level: Compression level of zstd, 1 to 22.
            durability: What a put has reached when it returns: `none` (the page cache), `group` (the disk, synchronised once
                per batch) or `each` (the disk, blob by blob).

        Raises:
            FormatError: The store has another digest algorithm, or a version or feature that is not known; or an option is none
                of those above.
            StoreOSError: The directory cannot be made or read. It is the system's error too: `except PermissionError` catches
                it.
        """
        try:
            return PfStore(Path(path).expanduser(), digest=digest, codec=codec, level=level, durability=durability)
        except OSError as error:
            # Programs written for the reference catch RuntimeError here, all others the system's error.
            raise StoreOSError.of(error) from error

    @staticmethod
    def with_blobstore(path: StrPath, blobs: BlobStore) -> "PfStore":
        """A store that keeps its images and pins in a directory, and its blobs in any other BlobStore.

        Example:
            >>> store = pfimg.PfStore.with_blobstore("images", pfimg.MemoryStore())
            >>> store.get(store.put(b"hello"))
            b'hello'
        """
        return PfStore(Path(path).expanduser(), blobs=blobs)

    def __repr__(self) -> str:
        return f"<PfStore at {self.root}>"

    def images(self) -> Iterator[tuple[str, Manifest]]:
        """Ids and manifests of all images, sorted by id.

        A marker that does not parse, or does not hash to its name, is skipped with a warning on the logger `pfimg`.
        """
        for image in self.markers():
            try:
                manifest = self.read_marker(image)
            except (FormatError, IntegrityError, LimitExceeded) as error:
                _log.warning("image %s is skipped, its marker is damaged: %s", image, error)
            except (BlobNotFound, FileNotFoundError):
                continue  # removed since the names were read
            else:
                yield image, manifest

    def verify(
        self,
        *,
        repair_from: RepairSource | Iterable[RepairSource] | None = None,
        resume: bool = False,
        progress: ProgressCallback | None = None,
    ) -> VerifyReport:
        """Reads and hashes every blob, and looks whether everything that images need is here.

        A corrupt blob is moved to `quarantine/`; the next put of the same bytes heals it.

        Args:
            repair_from: Where to fetch corrupt and missing blobs again: an image reference or a Registry, or several of
                them, asked in that order.
            resume: Go on where a run of the last seven days was interrupted: what it read and what has not changed since is not
                read again.
            progress: Called with events of the phase `verify`.

        Returns:
            What was found, and after a repair what is still wrong. A source that does not answer, or is damaged itself, is passed
            over with a warning.

        Raises:
            BadRef, UnsupportedScheme: A source is malformed, or of a scheme that is not spoken.
            OSError: The store's directories cannot be read.
        """
        tick = ticker(progress, "verify")
        sources = _several(repair_from)
        found = self.run_verify(resume=resume, tick=tick)
        resumed = found["resumed"]
        repaired: set[str] = set()
        # A repaired tree or page manifest may show that blobs below it are missing too, so look again until nothing more heals.
        while sources and (healed := self._repair(_damaged(found) - repaired, sources)):
            repaired |= healed
            found = self.run_verify(tick=tick)
        return VerifyReport(
            checked=found["checked"],
            bytes=found["bytes"],
            corrupt=self._explained(found["corrupt"]),
            missing=self._explained(found["missing"]),
            unreachable=_findings(found["unreachable"]),
            foreign=_findings(found["foreign"]),
            partial=tuple(found["partial"]),
            repaired=tuple(sorted(repaired - _damaged(found))),
            resumed=resumed,
        )

    def _explained(self, items: _Found) -> tuple[Finding, ...]:
        """Findings with what the blobs are in the images that need them."""
        findings = _findings(items)
        wanted: dict[str, set[str]] = {}
        for finding in findings:
            for image in finding.images:
                wanted.setdefault(image, set()).add(finding.digest or "")
        told: dict[str, list[str]] = {}
        for image, digests in sorted(wanted.items()):
            if (manifest := self._manifest(image)) is not None:
                for digest, whats in uses(manifest, self, digests).items():
                    told.setdefault(digest, []).extend(f"{what} in {image}" for what in whats)
        return tuple(replace(finding, uses=tuple(told.get(finding.digest or "", ()))) for finding in findings)

    def _manifest(self, image: str) -> Manifest | None:
        """The manifest by its marker or by its blob, whichever is sound."""
        for read in (self.read_marker, self.get_manifest):
            with suppress(StoreError):
                return read(image)
        return None

    def _repair(self, wanted: set[str], sources: list[RepairSource]) -> set[str]:
        """Fetches what it can get; then gives images their manifest and marker again, each from the other."""
        lost = absent_from(self, sorted(wanted))
        for source in sources:
            try:
                transfer.repair(self, lost, source)
            except (BadRef, UnsupportedScheme):
                raise
            except (PfimgError, OSError) as error:
                _log.warning("nothing more can be repaired from %s: %s", source, error)
        # The store tells what was healed: a source may have failed after it had healed something.
        healed = set(lost).difference(absent_from(self, lost))
        return healed | {image for image in wanted.intersection(self.markers()) if self._rewrite(image)}

    def _rewrite(self, image: str) -> bool:
        """Whether both are sound now: an image that lacks a layer is not made visible, and stays in the report."""
        if (manifest := self._manifest(image)) is None:
            return False
        try:
            self.put_manifest(manifest)
        except BlobNotFound:
            return False
        return True

    def gc(
        self, *, grace_seconds: float = config.DEFAULT_GRACE_SECONDS, max_bytes: int | None = None, dry_run: bool = False
    ) -> GcReport:
        """Removes blobs that no image and no pin reaches. It is safe beside readers and writers.

        Args:
            grace_seconds: Younger blobs stay, since an image in the making may be about to name them.
            max_bytes: Stop as soon as the blobs take no more than this on disk; the oldest are removed first. None: remove
                all that can be.
            dry_run: Only tell what would be removed.
        """
        found = self.run_gc(grace_seconds=grace_seconds, max_bytes=max_bytes, dry_run=dry_run)
        return GcReport(freed=found["freed"], freed_bytes=found["freed_bytes"], kept=found["kept"], dry_run=dry_run)

    def stats(self) -> StoreStats:
        """Counts and sizes of what is here, and counters of what this object has done."""
        counts = dict(self.run_stats())
        totals = {name: counts.pop(name) for name in ("blobs", "images", "physical_bytes", "logical_bytes")}
        return StoreStats(**totals, counters=counts)


def _damaged(found: dict[str, Any]) -> set[str]:
    return {digest for digest, *_ in [*found["corrupt"], *found["missing"]] if digest}


def _findings(items: _Found) -> tuple[Finding, ...]:
    return tuple(
        Finding(digest, None if path is None else str(path), tuple(images), reason=reason)
        for digest, path, images, reason in items
    )


def _several(sources: RepairSource | Iterable[RepairSource] | None) -> list[RepairSource]:
    if sources is None:
        return []
    return list(sources) if isinstance(sources, Iterable) and not isinstance(sources, str) else [sources]

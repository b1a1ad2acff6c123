"""The transport for one repository of a registry of containers.

What a registry calls a blob is the digest of its frame, which depends on how the blob was encoded. So what is there is told by
OCI manifests: that of the tag, and where that does not have everything, those of other tags of the repository. Blobs and packs
that one of them refers to are referred to again; others are asked for by the digest of their frame before they are sent. A
registry takes an OCI manifest only when it has everything to which that refers. Where it refuses one for this reason, nothing
counts any more but what it says when it is asked for each.

Limits: a registry replaces a tag unconditionally; a push that expects a certain image looks right before that, and of two that do
so in the same moment both succeed. Of the other tags at most `OTHER_TAGS` are looked at, those that sort last. What a registry
mounts is not read on the way. Whoever removes the last tag of an image removes its signature from what refers to it; where the
repository has more than `LAST_TAGS` other tags that stays.
"""

# ruff: noqa: ARG002 - a transport is for one reference, so that its methods need not look at the one they get
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

from pfimg._core import PackIndex
from pfimg.errors import BackendError, BadRef, BlobNotFound, FormatError, IntegrityError, LimitExceeded, SignatureError
from pfimg.registries.base import MANIFEST_BYTES, PACK_INDEX_BYTES, Expectation, Pack, Range, Sink, StoredBlob, Traffic, Transport
from pfimg.registries.connections import is_loopback
from pfimg.registries.oci import manifest as documents
from pfimg.registries.oci import referrer
from pfimg.registries.oci.address import address, name_of
from pfimg.registries.oci.auth import HOW_TO_LOG_IN, Authorization
from pfimg.registries.oci.credentials import Credentials, find
from pfimg.registries.oci.manifest import OciImage, Stored, stored
from pfimg.registries.oci.repository import Repository
from pfimg.registries.refs import AnyRef, OciRef
from pfimg.registries.web import WebClient
from pfimg.registries.workers import LARGE_BYTES, Workers
from pfimg.signing import SIGNATURE_BYTES, parse
from pfimg.types import Buffer, StrPath

_log = logging.getLogger("pfimg")

OTHER_TAGS: Final = 8
"""So many other tags of a repository are looked at for what a push need not send."""

LAST_TAGS: Final = 1000
"""Of so many tags it is found out whether they stand for an image of which a tag was removed."""

# To ask for so many single blobs is cheaper than to read other manifests.
_FEW: Final = 16
# Tags that stand for what refers to a manifest, where a registry has no other way to list that.
_FALLBACK_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}(?:\.\w+)?")


class OciTransport:
    """The transport for one repository, and one tag or digest of it.

    Args:
        ref: Which.
        jobs: Requests at once.
        username: With `password`; None goes by the environment, else by what `docker login` has kept.
        password: With `username`.
        token: A token that the registry takes as it is, in place of the two.
        insecure: Whether the registry may do without TLS, which otherwise only one on this machine may, and which then gets no
            credentials; None goes by `PF_OCI_INSECURE`.
        ca: A file of certificates to trust instead of the usual ones.
        mount_from: Another repository of the same registry, from which it can take blobs without their being sent.
    """

    pack_bytes = 32 << 20
    packs_above = 200

    def __init__(
        self,
        ref: OciRef,
        *,
        jobs: int | None = None,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        insecure: bool | None = None,
        ca: StrPath | None = None,
        mount_from: str | None = None,
    ) -> None:
        self.ref = ref
        self.traffic = Traffic()
        hints = {401: HOW_TO_LOG_IN, 403: f"{HOW_TO_LOG_IN} as somebody who may"}
        self._client = WebClient(self.traffic, ca=ca, hints=hints)
        self._workers = Workers(jobs, self.traffic, str(ref), self._client.stop)
        self._given = Credentials(username or "", password or "", bearer=token or "")
        self._insecure = insecure
        self._mount_from = mount_from
        self._lock = threading.Lock()
        self._wanted: list[str] = []
        # What has been read or sent: frames by blob, packs by name, and digests of all that this repository has.
        self._image: OciImage | None = None
        self._frames: dict[str, Stored] = {}
        self._packs: dict[str, Stored] = {}
        self._here: set[str] = set()
        self._source: OciTransport | None = None
        self._believes = True
        self._expected: Expectation | None = None
        self._sent: set[str] = set()

    @cached_property
    def repository(self) -> Repository:
        """The requests."""
        name = name_of(self.ref)
        where = address(self.ref, insecure=self._insecure)
        private = where.startswith("https:") or is_loopback(self.ref.host)
        authorization = Authorization(self._client, name, lambda: self._given or find(name), private=private)
        repository = Repository(self._client, where, self.ref.repo, authorization, self.traffic)
        repository.mount_from = self._mount_from
        return repository

    def comes_from(self, source: Transport) -> None:
        """See Neighbour."""
        if isinstance(source, OciTransport) and name_of(source.ref) == name_of(self.ref):
            self._source = source
            if source.ref.repo != self.ref.repo:
                self._mount_from = source.ref.repo

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport. A blob that the registry has, but that no OCI manifest tells of, is found when it is sent."""
        self._wanted = list(dict.fromkeys(digests))
        self._frames = {}
        if self._believes:
            for image in self._images():
                self._frames = image.blobs | self._frames
                if len(self._lacking()) <= _FEW:
                    break
            self._take_from_source()
        return set(self._lacking())

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""
        self._begin_writing()
        self._workers.send(self._put, items)

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        self._workers.fetch(digests, self._get, sink)

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """See Transport."""
        ref = self.ref
        content = self.repository.manifest(ref.digest or ref.tag)
        if content is None:
            raise BackendError(f"{ref}: there is no such image", status=404)
        if ref.digest is not None and stored(content).digest != ref.digest:
            raise IntegrityError(f"{ref}: what is there hashes to {stored(content).digest}", path=str(ref))
        image = self._image = documents.parse(content, str(ref))
        self._frames = image.blobs
        self._here |= image.parts()
        manifest = self.repository.blob(image.manifest, MANIFEST_BYTES, f"the manifest of {ref}")
        if image.signature is None:
            return manifest, None
        return manifest, self.repository.blob(image.signature, SIGNATURE_BYTES, f"the signature of {ref}")

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        own = self._put_small(manifest), self._put_small(signature)
        blobs = [(digest, self._frames[digest]) for digest in self._wanted]
        if all(digest.startswith("sha256:") for digest in self._wanted):
            return self._publish(documents.published(*own, blobs, str(self.ref)), signature)
        self._put_small(documents.EMPTY)
        return self._publish(documents.single_blobs(*own, blobs, str(self.ref)), signature)

    def exists(self, ref: AnyRef) -> bool:
        """See Transport."""
        return self.repository.has_manifest(self.ref.digest or self.ref.tag)

    def images(self) -> list[AnyRef]:
        """See Lister. All tags of the repository, whatever they stand for."""
        return [OciRef(self.ref.host, self.ref.repo, self.ref.port, tag) for tag in self._tags()]

    def expect(self, ref: AnyRef, expected: Expectation) -> None:
        """See Comparer."""
        self._expected = expected
        self._check()

    def remove(self, ref: AnyRef) -> None:
        """See Remover."""
        if self.ref.digest is not None:
            raise BadRef(f"{self.ref}: what is removed is a tag: leave the digest out")
        self.repository.writing = True
        # What lists the signature is found by what is in the image, while that can be found.
        signed = self._signed()
        if not self.repository.remove_manifest(self.ref.tag):
            raise BackendError(f"{self.ref}: there is no such image", status=404)
        if signed is not None and not self._is_under_a_tag(signed[0].digest):
            referrer.detach(self.repository, *signed, str(self.ref))

    def packs_of_image(self) -> PackIndex | None:
        """See PackTransport."""
        if self._image is None or self._image.index is None:
            return None
        return self._index_of(self.repository, self._image.index, self._image)

    def packs_here(self, ref: AnyRef, digests: Sequence[str]) -> PackIndex:
        """See PackTransport."""
        found = PackIndex.join([])
        if not self._believes:
            return found
        for image in self._images():
            try:
                found = PackIndex.join([found, *self._indexes(self.repository, image)])
            except (BlobNotFound, FormatError, IntegrityError, LimitExceeded):
                continue  # a damaged image is no reason not to push a sound one
            if None not in found.locate(digests):
                return found
        if (source := self._source) is not None and source._image is not None:  # noqa: SLF001 - of the same class
            found = PackIndex.join([found, *self._indexes(source.repository, source._image)])  # noqa: SLF001
        return found

    def send_packs(self, packs: Iterable[Pack]) -> None:
        """See PackTransport."""
        self._begin_writing()
        self._workers.run(self._put_pack, packs, lambda pack: memoryview(pack.content).nbytes)

    def fetch_ranges(self, ranges: Sequence[Range], deliver: Callable[[int, Buffer], None]) -> None:
        """See PackTransport."""

        def get(part: Range) -> Buffer:
            content = self.repository.fetch_range(f"sha256:{part.pack}", part.offset, part.length)
            if content is None:
                raise BlobNotFound(f"pack sha256:{part.pack} is not in {self.ref}: push the image again", path=part.pack)
            return content

        self._workers.fetch_ranges(ranges, get, deliver)

    def publish_packed(self, ref: AnyRef, manifest: bytes, signature: bytes, packs: PackIndex) -> AnyRef:
        """See PackTransport."""
        used = [self._packs[name] for name, *_ in packs.packs]
        elsewhere = [pack for pack in used if pack.digest not in self._here]
        with closing(self._workers.map(lambda pack: self.repository.mount(pack.digest), elsewhere)) as results:
            for pack, is_here in results:
                if not is_here:
                    raise self._disappointed(BlobNotFound(f"pack {pack.digest} is not in {self.ref}", path=pack.digest))
        own = self._put_small(manifest), self._put_small(signature), self._put_small(packs.to_bytes())
        self._put_small(documents.EMPTY)
        return self._publish(documents.packed(*own, used, str(self.ref)), signature)

    def _begin_writing(self) -> None:
        if self.ref.digest is not None:
            raise BadRef(f"{self.ref}: an image is pushed to a tag; its digest is what comes of that: leave the digest out")
        documents.check_count(len(self._wanted), str(self.ref))
        self.repository.writing = True

    def _signed(self) -> tuple[Stored, bytes] | None:
        """The OCI manifest under the tag and the signature in it, where that is by a pair of keys; nothing else is listed."""
        content = self.repository.manifest(self.ref.tag)
        try:
            image = None if content is None else documents.parse(content, str(self.ref))
            if content is None or image is None or image.signature is None:
                return None
            signature = self.repository.blob(image.signature, SIGNATURE_BYTES, f"the signature of {self.ref}")
            return None if parse(signature).public_key is None else (stored(content), signature)
        except (BlobNotFound, FormatError, IntegrityError, LimitExceeded, SignatureError):
            return None  # something else, or damaged: it can be removed all the same

    def _is_under_a_tag(self, digest: str) -> bool:
        """Whether a tag still stands for a manifest; also where it would take too many requests to find out, or fails."""
        why: object = f"the repository has more than {LAST_TAGS:,} tags, any of which may be of the same image"
        try:
            tags = list(islice(self._tags(), LAST_TAGS + 1))
            if len(tags) <= LAST_TAGS:
                with closing(self._workers.map(self.repository.manifest_digest, tags)) as found:
                    return any(other == digest for _, other in found)
        except (BackendError, FormatError) as error:
            why = error
        _log.warning("%s is removed, but its signature may still be listed for other tools: %s", self.ref, why)
        return True

    def _lacking(self) -> list[str]:
        return [digest for digest in self._wanted if digest not in self._frames]

    def _tags(self) -> Iterator[str]:
        return (tag for tag in self.repository.tags() if not _FALLBACK_TAG.fullmatch(tag))

    def _images(self) -> Iterator[OciImage]:
        """Images of this repository: that of the reference first, then others, those first that are probably newer."""
        own = self.ref.digest or self.ref.tag
        if (image := self._read(own)) is not None:
            yield image
        others = sorted((tag for tag in self._tags() if tag != own), key=_natural, reverse=True)
        yield from filter(None, map(self._read, others[:OTHER_TAGS]))

    def _read(self, reference: str) -> OciImage | None:
        """What is under a tag or digest; None when there is no image of this format."""
        content = self.repository.manifest(reference)
        try:
            image = None if content is None else documents.parse(content, reference)
        except FormatError:
            return None
        if image is not None:
            self._here |= image.parts()
        return image

    def _indexes(self, repository: Repository, image: OciImage) -> list[PackIndex]:
        return [] if image.index is None else [self._index_of(repository, image.index, image)]

    def _index_of(self, repository: Repository, index: Stored, image: OciImage) -> PackIndex:
        """The index of an image that has one, as far as the image refers to its packs."""
        content = repository.blob(index, PACK_INDEX_BYTES, f"the index of packs {index.digest} in {self.ref}")
        known = {pack.digest.removeprefix("sha256:"): pack for pack in image.packs}
        self._packs |= known
        found = PackIndex.from_bytes(content)
        return found.only([name for name, *_ in found.packs if name in known])

    def _take_from_source(self) -> None:
        """Has the registry take blobs from the repository from which they are copied."""
        source = self._source
        if source is None:
            return
        there = {digest: source._frames[digest] for digest in self._lacking() if digest in source._frames}  # noqa: SLF001 - of the same class
        if source.ref.repo == self.ref.repo:
            self._frames |= there
            return
        self._begin_writing()
        for (digest, frame), is_here in self._workers.map(lambda item: self.repository.mount(item[1].digest), there.items()):
            if is_here:
                self._frames[digest] = frame

    def _put(self, item: StoredBlob) -> None:
        if item.path is None:
            frame = item.read()
            what = stored(frame)
            sent = self.repository.upload(what, frame)
        else:
            with item.path.open("rb") as file:
                what = Stored(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", item.size)
            sent = self.repository.upload(what, item.path)
        with self._lock:
            self._frames[item.digest] = what
        self._count(what, 1, sent=sent)

    def _put_pack(self, pack: Pack) -> None:
        what = Stored(f"sha256:{pack.name}", memoryview(pack.content).nbytes)
        sent = self.repository.upload(what, pack.content)
        with self._lock:
            self._packs[pack.name] = what
            self._here.add(what.digest)
        self._count(what, len(pack.index), sent=sent)

    def _put_small(self, content: bytes) -> Stored:
        what = stored(content)
        if what.digest not in self._here:
            self.repository.upload(what, content)
        return what

    def _count(self, what: Stored, blobs: int, *, sent: bool) -> None:
        with self._lock:
            if sent:
                self._sent.add(what.digest)
            elif what.digest not in self._sent:
                self.traffic.found += blobs
                self.traffic.found_bytes += what.size

    def _get(self, digest: str, path: Path) -> Buffer | Path:
        frame = self._frames.get(digest)
        try:
            found = None if frame is None else self.repository.fetch(frame, path, LARGE_BYTES)
        except LimitExceeded as error:
            raise IntegrityError(f"blob {digest}: its frame in {self.ref} is too long: push it again", digest=digest) from error
        if frame is None or found is None:
            raise BlobNotFound(f"blob {digest} is not in {self.ref}: push the image again", digest=digest)
        if (found.stat().st_size if isinstance(found, Path) else len(found)) != frame.size:
            raise IntegrityError(f"blob {digest}: its frame in {self.ref} is too short: push it again", digest=digest)
        return found

    def _check(self) -> None:
        """Conflict where another image is there than is expected."""
        if self._expected is not None:
            content = self.repository.manifest(self.ref.tag)
            image = None if content is None else documents.parse(content, str(self.ref)).manifest
            title = f"the manifest of {self.ref}"
            self._expected.check(self.ref, image and self.repository.blob(image, MANIFEST_BYTES, title))

    def _publish(self, content: bytes, signature: bytes) -> AnyRef:
        self._check()
        try:
            self.repository.put_manifest(self.ref.tag, content)
        except BlobNotFound as error:
            raise self._disappointed(error) from error
        referrer.attach(self.repository, stored(content), signature, str(self.ref))
        return self.ref

    def _disappointed(self, error: BlobNotFound) -> BlobNotFound:
        """Something on which an image was built is gone: from now on only what is asked for counts."""
        self._believes = False
        self._here.clear()
        # What has been found will be found again.
        self.traffic.found = self.traffic.found_bytes = 0
        return error


def _natural(tag: str) -> list[tuple[int, int, str]]:
    """So that `v10` comes after `v9`."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"\d+|\D+", tag)]

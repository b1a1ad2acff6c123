"""The transport for IPFS: an image is one directory, whose CID follows from everything in it.

    manifest.json, manifest.json.sig, blob_<64 hex>.zst …

A push plans the directory, asks the node whether it has pinned that already, and if not sends it as one CAR; contents go first,
so that no directory is there before what it names, and the node pins the root only if everything is there. Blobs are encoded by
content alone, whatever the store holds, so that the same image under the same signature has one CID everywhere. Where the
reference names another directory that the node has pinned, its blocks are not sent again.

A pull looks the manifest up by a few blocks. Then a node gives many blobs by one request, which takes it half of the time of an
archive; a gateway, and a node that has a directory of many blocks, gives most of the directory as one CAR. What is less, and what
has not come as it should, is fetched block by block. Whatever comes is hashed to its CID.

Limits: to push, the node's API is needed; a gateway only gives. Digests are SHA-256.
"""

# ruff: noqa: ARG002 - a transport is for one reference, so that its methods need not look at the one they get
import base64
import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Final

from pfimg import car, config
from pfimg._core import CarFrame, CarPlan, digests_of
from pfimg.errors import BackendError, BadRef, BlobNotFound, FormatError, IntegrityError, RegistryError
from pfimg.registries.base import MANIFEST_BYTES, Sink, StoredBlob, Traffic
from pfimg.registries.ipfs.arrival import Arrival
from pfimg.registries.ipfs.directory import Directory
from pfimg.registries.ipfs.node import Gateway, Node, Source
from pfimg.registries.refs import AnyRef, IpfsRef
from pfimg.registries.tree import MANIFEST, SIGNATURE
from pfimg.registries.workers import LARGE_BYTES, Workers
from pfimg.signing import SIGNATURE_BYTES
from pfimg.types import StrPath

_log = logging.getLogger("pfimg")

# Fewer blobs are fetched one by one, whatever else there is.
_FEW: Final = 32
# Of this share of a directory, all of it is taken rather than one block after another.
_MOST: Final = 0.6
# CIDs of single blocks begin so.
_RAW: Final = "bafkrei"
# Blobs, and bytes, that one request to a node fetches.
_TOGETHER: Final = 250
_TOGETHER_BYTES: Final = 4 << 20
# A node is given archives in pieces of at least so many bytes to hash.
_PIECE_BYTES: Final = 1 << 20


class IpfsTransport:
    """The transport for one directory, or with a reference without CID for one that is to be made.

    Args:
        ref: Which.
        jobs: Requests at once.
        endpoint: Where the API of the node is; None goes by `IPFS_API`.
        auth: What the API asks for, `bearer:<token>` or `basic:<user>:<password>`; None goes by `IPFS_API_AUTH`.
        gateway: A gateway to read from; None reads from the node if `endpoint` is given, else goes by `IPFS_GATEWAY`.
        ca: A file of certificates to trust instead of the usual ones.
        timeout: Seconds that the node has to find a block; 60 when not given.
    """

    codec = "store"

    def __init__(
        self,
        ref: IpfsRef,
        *,
        jobs: int | None = None,
        endpoint: str | None = None,
        auth: str | None = None,
        gateway: str | None = None,
        ca: StrPath | None = None,
        timeout: float | None = None,
    ) -> None:
        self._ref = ref
        self.traffic = Traffic()
        self._endpoint = endpoint
        self._auth = auth
        self._ca = ca
        self._timeout = timeout
        self._gateway = gateway or (None if endpoint else config.ipfs_gateway())
        self._workers = Workers(jobs, self.traffic, str(ref), self._stop)

    @cached_property
    def _node(self) -> Node:
        return Node(self.traffic, endpoint=self._endpoint, auth=self._auth, ca=self._ca, timeout=self._timeout)

    @cached_property
    def _source(self) -> Source:
        if self._gateway is None:
            return self._node
        return Gateway(self.traffic, self._gateway, ca=self._ca, timeout=self._timeout)

    def _stop(self) -> None:
        self._source.stop()

    @cached_property
    def _directory(self) -> Directory:
        if self._ref.cid is None:
            raise BadRef("ipfs:// names no image to read: give its CID, as in ipfs://bafy…")
        name = self._ref.cid
        root = Directory(self._source, self._source.resolve(name) if _is_name(name) else _checked(name))
        return root.below(self._ref.path) if self._ref.path else root

    def missing(self, digests: Sequence[str]) -> set[str]:
        """See Transport."""
        found = self._workers.map(self._directory.find, [_file_name(digest) for digest in digests])
        absent = {name for name, entry in found if entry is None}
        return {digest for digest in digests if _file_name(digest) in absent}

    def send(self, items: Iterable[StoredBlob]) -> None:
        """See Transport."""
        raise RegistryError(f"{self._ref}: an image is sent as one", code="not_offered")

    def publish(self, ref: AnyRef, manifest: bytes, signature: bytes) -> AnyRef:
        """See Transport."""
        raise RegistryError(f"{self._ref}: an image is sent as one", code="not_offered")

    def send_image(
        self,
        ref: AnyRef,
        manifest: bytes,
        signature: bytes,
        frames: Mapping[str, CarFrame],
        tick: Callable[[int, int, int], None],
    ) -> AnyRef:
        """See ImageTransport."""
        hint = self._hint()
        names = [(_file_name(digest), frame) for digest, frame in frames.items()]
        plan = CarPlan([*names, (MANIFEST, manifest), (SIGNATURE, signature)])
        if hint is not None and hint != plan.root:
            _log.warning("%s: the image has another CID, under which it is pushed: %s", self._ref, plan.root)
        there: list[str] = []
        if self._node.has_pinned(plan.root):
            tick(0, 0, 0)
            return IpfsRef(plan.root)
        if hint is not None and self._node.has_pinned(hint):
            there = self._node.below(hint)
        reason = self._load(plan, len(names), there, tick)
        if reason and there:  # the node has less than it said
            reason = self._load(plan, len(names), [], tick)
        if reason:
            raise BackendError(f"{self._node.name} has not pinned ipfs://{plan.root}, so that the image is not there: {reason}")
        return IpfsRef(plan.root)

    def fetch(self, digests: Sequence[str], sink: Sink) -> None:
        """See Transport."""
        rest = list(digests)
        if len(rest) > _FEW:
            # Some are looked up to see how many there are.
            for _ in self._workers.map(self._entry, rest[:_FEW]):
                pass
            if isinstance(self._source, Node) and self._directory.is_flat():
                rest = self._fetch_together(self._source, rest, sink)
            elif len(rest) >= _MOST * self._directory.entries():
                rest = self._fetch_archive(rest, sink)
        self._workers.fetch(rest, self._get, sink)

    def read_manifest(self, ref: AnyRef) -> tuple[bytes, bytes | None]:
        """See Transport."""
        try:
            manifest = self._directory.find(MANIFEST)
            if manifest is None:
                raise BackendError(f"{self._ref}: there is no image: the directory has no {MANIFEST}", status=404)
            content = self._directory.content(manifest.cid, MANIFEST_BYTES, f"{MANIFEST} of {self._ref}")
            signature = self._directory.find(SIGNATURE)
            if signature is None:
                return content, None
            return content, self._directory.content(signature.cid, SIGNATURE_BYTES, f"{SIGNATURE} of {self._ref}")
        except BlobNotFound as error:
            advice = "is it connected to somebody who has it?"
            message = f"{self._ref}: there is no image here: {self._source.name} does not have block {error.digest}: {advice}"
            raise BackendError(message, status=404) from error

    def exists(self, ref: AnyRef) -> bool:
        """See Transport."""
        try:
            found = self._directory.find(MANIFEST)
            if found is None:
                return False
            self._directory.content(found.cid, MANIFEST_BYTES, f"{MANIFEST} of {self._ref}")
        except BlobNotFound:
            return False
        return True

    def _hint(self) -> str | None:
        """The CID that a reference to push to names."""
        if self._ref.path:
            raise BadRef(f"{self._ref}: an image is pushed to ipfs:// and gets a CID: leave the path out")
        if self._ref.cid is None:
            return None
        if _is_name(self._ref.cid):
            raise BadRef(f"{self._ref}: push to ipfs://, and have the name lead there by `ipfs name publish`")
        return _checked(self._ref.cid)

    def _load(self, plan: CarPlan, blobs: int, there: list[str], tick: Callable[[int, int, int], None]) -> str:
        """Sends what is not there; returns what kept the node from pinning it."""
        part = plan.upload(there)
        known = set(there)
        sent = [size for cid, size in plan.files[:blobs] if cid not in known]
        total, size = len(sent), sum(sent)

        def pieces() -> Iterator[bytes]:
            done = 0
            tick(0, total, 0)
            for piece in part:
                yield piece
                done += len(piece)
                # Frames are nearly all of an archive.
                tick(total * done // part.size, total, size * done // part.size)

        self.traffic.in_flight = 1
        try:
            return self._node.load(plan.root, part, pieces)
        finally:
            self.traffic.in_flight = 0

    def _fetch_together(self, node: Node, digests: Sequence[str], sink: Sink) -> list[str]:
        """Takes blobs of one block, many by one request; returns the others, and those that did not come as they should."""
        rest: list[str] = []
        batches: list[list[tuple[str, car.Link]]] = [[]]
        held = 0
        for digest in digests:
            entry = self._entry(digest)
            if not entry.cid.startswith(_RAW) or entry.size > car.BLOCK_BYTES:
                rest.append(digest)
                continue
            if len(batches[-1]) == _TOGETHER or held + entry.size > _TOGETHER_BYTES:
                batches.append([])
                held = 0
            batches[-1].append((digest, entry))
            held += entry.size

        def get(batch: list[tuple[str, car.Link]]) -> list[tuple[str, memoryview]]:
            sizes = [entry.size for _, entry in batch]
            content = memoryview(node.contents([entry.cid for _, entry in batch], sum(sizes)))
            ends = itertools.accumulate(sizes)
            pieces = [content[end - size : end] for end, size in zip(ends, sizes, strict=True)]
            came = zip(batch, pieces, digests_of(pieces), strict=True)
            return [(digest, piece) for (digest, entry), piece, found in came if found == _sha256_in(entry.cid)]

        with closing(self._workers.map(get, filter(None, batches), lambda _: _TOGETHER_BYTES)) as results:
            for batch, frames in results:
                if frames:
                    sink.frames(frames)
                came = {digest for digest, _ in frames}
                rest += [digest for digest, _ in batch if digest not in came]
        return rest

    def _fetch_archive(self, digests: Sequence[str], sink: Sink) -> list[str]:
        """Takes blobs out of one archive of the whole directory; returns those that did not come."""
        with Arrival(self._directory.cid, {_file_name(digest): digest for digest in digests}, sink) as arrival:
            with closing(self._archive()) as archive:
                for block in archive:
                    arrival.take(block)
                    if not arrival.rest:
                        break
            arrival.land()
            return [digest for digest in digests if digest in arrival.rest]

    def _archive(self) -> Generator[car.Block, None, None]:
        """Verified blocks, until the archive ends or breaks off: what did not come is fetched by itself, which tells why."""
        reader = car.Reader()
        held = bytearray()
        try:
            with self._source.archive(self._directory.cid) as pieces:
                for piece in pieces:
                    held += piece
                    if len(held) >= _PIECE_BYTES:
                        yield from reader.feed(bytes(held))
                        held.clear()
            yield from reader.feed(bytes(held))
            reader.finish()
        except (BackendError, FormatError, IntegrityError) as error:
            _log.warning(
                "the archive of %s from %s broke off, and the rest is fetched by itself: %s", self._ref, self._source.name, error
            )

    def _entry(self, digest: str) -> car.Link:
        found = self._directory.find(_file_name(digest))
        if found is None:
            raise BlobNotFound(f"blob {digest} is not in {self._ref}: push the image again", digest=digest)
        return found

    def _get(self, digest: str, path: Path) -> bytes | Path:
        try:
            return self._directory.fetch(self._entry(digest).cid, path, LARGE_BYTES)
        except BlobNotFound as error:
            raise BlobNotFound(f"blob {digest} is not in {self._ref}: {error}", digest=digest) from error
        except IntegrityError as error:
            raise IntegrityError(f"blob {digest} of {self._ref}: {error}", digest=digest) from error


def _sha256_in(cid: str) -> str:
    """The digest in the CID of a single block."""
    return f"sha256:{base64.b32decode(cid[1:].upper() + '======')[4:].hex()}"


def _file_name(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256":
        raise FormatError(f"blob {digest}: images on IPFS have digests of sha256", digest=digest)
    return f"blob_{digits}.zst"


def _is_name(text: str) -> bool:
    """Whether this is a name of IPNS: a domain, or the CID of a key, which begins like none of a directory."""
    return "." in text or text.startswith(("k51", "k2k4", "12D3Koo", "bafzaa", "bafzbe"))


def _checked(cid: str) -> str:
    try:
        _ = cid in car.Blocks()
    except FormatError as error:
        raise BadRef(f"ipfs://{cid}: {error}") from error
    return cid

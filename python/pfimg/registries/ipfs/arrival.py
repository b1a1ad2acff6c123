"""Blobs out of an archive, as its blocks come.

An archive has a directory before what is in it, so that a block of a blob is known when it comes; those that come too early are
fetched by themselves afterwards, as is what an archive has once although several blobs need it. A frame of one block lands as it
is; one of several is put together in a file.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, NamedTuple, Self

from pfimg import car
from pfimg.errors import about
from pfimg.registries.base import Sink

# What a sink is given at once.
_LAND_ITEMS: Final = 256
_LAND_BYTES: Final = 16 << 20


class _Span(NamedTuple):
    """Part of a blob's frame: a block, or a node and what is below it."""

    digest: str
    offset: int
    size: int | None


class Arrival:
    """Takes blocks, and gives the frames that they complete to a sink.

    Args:
        root: CID of the directory.
        names: Digests of the blobs that are wanted, by the names of their files.
        sink: Where to.

    Attributes:
        rest: Digests of those that have not come.
    """

    def __init__(self, root: str, names: dict[str, str], sink: Sink) -> None:
        self.rest = set(names.values())
        self._names = names
        self._sink = sink
        self._parts = {root}  # of the directory, that are still to come
        self._spans: dict[str, list[_Span]] = {}
        self._left: dict[str, int] = {}  # bytes of frames in files that are still to come
        self._frames: list[tuple[str, bytes]] = []
        self._held = 0
        self._scratch = TemporaryDirectory(prefix="pfimg-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._scratch.cleanup()

    def take(self, block: car.Block) -> None:
        """Takes a verified block."""
        if block.cid in self._parts:
            self._take_directory(block)
        for span in self._spans.pop(block.cid, ()):
            if block.codec == "raw":
                self._take_bytes(span, block.data)
            else:
                self._take_node(span, block)

    def land(self) -> None:
        """Gives the sink what is held."""
        if self._frames:
            frames, self._frames, self._held = self._frames, [], 0
            self._sink.frames(frames)
            self.rest.difference_update(digest for digest, _ in frames)

    def _take_directory(self, block: car.Block) -> None:
        self._parts.discard(block.cid)
        for link in car.node(block.cid, block.data).links:
            if not link.name:
                self._parts.add(link.cid)
            elif (digest := self._names.get(link.name)) is not None:
                self._spans.setdefault(link.cid, []).append(_Span(digest, 0, None))

    def _take_bytes(self, span: _Span, data: bytes) -> None:
        if span.size is None:
            self._frames.append((span.digest, data))
            self._held += len(data)
            if len(self._frames) == _LAND_ITEMS or self._held >= _LAND_BYTES:
                self.land()
        elif len(data) == span.size:
            path = self._path(span.digest)
            with about(path), path.open("r+b") as file:
                file.seek(span.offset)
                file.write(data)
            self._left[span.digest] -= len(data)
            if self._left[span.digest] == 0:
                self._sink.files([(span.digest, path)])
                path.unlink()
                self.rest.discard(span.digest)

    def _take_node(self, span: _Span, block: car.Block) -> None:
        node = car.node(block.cid, block.data)
        if node.kind != "file" or node.size is None or not node.links:
            return  # left to be fetched by itself, which tells what is wrong with it
        if span.size is None:
            self._path(span.digest).touch()
            self._left[span.digest] = node.size
        for below in _spans(span, node):
            self._spans.setdefault(below[0], []).append(below[1])

    def _path(self, digest: str) -> Path:
        return Path(self._scratch.name, digest.partition(":")[2])


def _spans(span: _Span, node: car.Node) -> Iterator[tuple[str, _Span]]:
    """Where what a node of a file links to has its place."""
    offset = span.offset
    for link in node.links:
        yield link.cid, _Span(span.digest, offset, link.size)
        offset += link.size

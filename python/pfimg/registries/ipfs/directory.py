"""Directories and files of IPFS, read block by block, of which each is hashed to its CID.

Only what is on the way to a name is fetched, and kept: to look into a directory of any number of entries takes two or three
blocks. Contents of files are not kept.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

from pfimg import car
from pfimg.errors import BackendError, BlobNotFound, FormatError, IntegrityError, LimitExceeded, about
from pfimg.registries.ipfs.node import Source

# Nodes of a file lie below one another no deeper than this: 1,024 links each are more than any file has.
_DEEPEST: Final = 8


class Directory:
    """A directory below a CID.

    Args:
        source: Where blocks come from.
        cid: Its CID.
    """

    def __init__(self, source: Source, cid: str) -> None:
        self.cid = cid
        self._source = source
        self._blocks = car.Blocks()

    def find(self, name: str) -> car.Link | None:
        """The entry of a name; None where there is none.

        Raises:
            BlobNotFound: A block of the directory is not there; `.digest` is its CID.
            IntegrityError: A block is not what its CID says.
            FormatError: This is no directory.
        """
        flat = self._flat
        return self._find(self.cid, name) if flat is None else flat.get(name)

    @cached_property
    def _flat(self) -> dict[str, car.Link] | None:
        """All entries by name, where they are in one block."""
        root = car.node(self.cid, self._node(self.cid))
        return {link.name: link for link in root.links} if root.kind == "directory" else None

    def below(self, path: str) -> "Directory":
        """The directory at a path."""
        cid = self.cid
        for name in path.split("/"):
            found = self._find(cid, name)
            if found is None:
                raise BackendError(f"ipfs://{self.cid}/{path}: there is no image: the directory has no {name!r}", status=404)
            cid = found.cid
        return Directory(self._source, cid)

    def is_flat(self) -> bool:
        """Whether all entries are in one block."""
        return self._flat is not None

    def entries(self) -> float:
        """How many entries there are; where there are many, about how many, as told by the parts that have been looked at."""
        root = car.node(self.cid, self._node(self.cid))
        parts = [link.cid for link in root.links if not link.name]
        seen = [car.node(cid, self._blocks[cid]) for cid in parts if cid in self._blocks]
        named = sum(bool(link.name) for link in root.links)
        if not parts:
            return named
        # Hashes spread evenly: a part of a part that has not been looked at stands for two or three entries.
        known = sum(1 if link.name else 2.2 for node in seen for link in node.links)
        return named + (known / len(seen) if seen else 1) * len(parts)

    def content(self, cid: str, limit: int, what: str) -> bytes:
        """The content of a file.

        Raises:
            LimitExceeded: It has more bytes than the limit.
            BlobNotFound, IntegrityError, FormatError: As for `find`.
        """
        pieces: list[bytes] = []
        size = 0
        for piece in self._pieces(cid):
            size += len(piece)
            if size > limit:
                raise LimitExceeded(f"{what} is larger than {limit:,} bytes", limit=limit)
            pieces.append(piece)
        return b"".join(pieces)

    def fetch(self, cid: str, path: Path, large: int) -> bytes | Path:
        """The content of a file, or the path, if it was written there because it is larger."""
        held: list[bytes] = []
        size = 0
        pieces = self._pieces(cid)
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size > large:
                with about(path), path.open("wb") as file:
                    file.writelines(held)
                    held.clear()
                    file.writelines(pieces)
                return path
        return b"".join(held)

    def _find(self, cid: str, name: str) -> car.Link | None:
        while True:
            try:
                return self._blocks.find(cid, name)
            except BlobNotFound as error:
                self._node(str(error.digest))

    def _node(self, cid: str) -> bytes:
        if cid not in self._blocks:
            self._blocks.add(cid, self._verified(cid)[1])
        return self._blocks[cid]

    def _pieces(self, cid: str, depth: int = 0) -> Iterator[bytes]:
        node, data = self._verified(cid)
        if node.kind != "file" or depth > _DEEPEST:
            raise FormatError(f"{cid} is not a file", path=cid)
        if node.links:
            for link in node.links:
                yield from self._pieces(link.cid, depth + 1)
        else:
            alone = car.Blocks()
            alone.add(cid, data)
            yield alone.content(cid)

    def _verified(self, cid: str) -> tuple[car.Node, bytes]:
        data = self._source.block(cid)
        if data is None:
            raise BlobNotFound(f"block {cid} is not at {self._source.name}", digest=cid)
        try:
            return car.node(cid, data), data
        except IntegrityError as error:
            raise IntegrityError(f"{self._source.name} gave something else for block {cid}: {error}", digest=cid) from error

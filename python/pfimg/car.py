"""CAR archives: a directory as blocks that IPFS takes and gives.

A CAR is a stream of blocks, each after its CID, which names it by its SHA-256. `plan` makes one of files, cut into blocks exactly
as Kubo's profile `unixfs-v1-2025` cuts them, so that its root is the CID that `ipfs add` gives; the CAR is what `ipfs dag export`
writes, byte for byte. `read` and `Reader` take any CAR of version 1 whose blocks are UnixFS; every block is hashed to its CID.

Limits: neither modes, times, symbolic links nor empty directories are written. A CAR may come cut off between two blocks, and is
well-formed then: ask for what is `missing`.

Example:
    >>> archive = pfimg.car.plan([("hello.txt", b"hello"), ("more/again.txt", b"hello")])
    >>> archive.root
    'bafybeid3d4fwx5d7lg4ot7jwgt4yagqwgfuj7g4wusf7rkt2nhq7dkvo3y'
    >>> blocks = pfimg.car.read(archive)
    >>> blocks.missing(archive.root)
    []
    >>> [(entry.name, entry.size) for entry in blocks.entries(archive.root)]
    [('hello.txt', 5), ('more', 62)]
    >>> blocks.content(blocks.entries(archive.root)[0].cid)
    b'hello'
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

from pfimg import _core
from pfimg.types import Buffer, StrPath

Content: TypeAlias = StrPath | Buffer
"""Where the content of a file is: a path (`str` or `os.PathLike`), or the buffer that holds it."""

BLOCK_BYTES: Final = 1 << 20
"""Most content bytes of a block that `plan` makes: a file of up to as many is one block."""


class Link(NamedTuple):
    """A link to a block.

    Attributes:
        name: Of an entry of a directory; empty for a part of a file or of a directory.
        cid: Of the block.
        size: Of a part of a file, its content bytes. In directories, the bytes of all blocks below as the directory tells:
            for a file of one block that is its length.
    """

    name: str
    cid: str
    size: int


class Node(NamedTuple):
    """What a block is.

    Attributes:
        kind: `"file"`, `"directory"`, or `"shard"`, a part of a directory that is too large for one block.
        size: Content bytes of a file; None for directories.
        links: Of a file its parts, in order; of a directory its entries; of a shard entries, and further shards, which have no
            name.
    """

    kind: Literal["file", "directory", "shard"]
    size: int | None
    links: tuple[Link, ...]


class Block(NamedTuple):
    """A block that was hashed to its CID.

    Attributes:
        cid: Its name.
        codec: `"raw"` for bytes of a file, `"dag-pb"` for a node.
        data: Its bytes.
    """

    cid: str
    codec: str
    data: bytes


class Plan:
    """A CAR that can be written, any number of times; made by `plan`.

    Iterating gives its bytes in pieces of one to somewhat more than two MiB. Contents are read and hashed again then: if one is
    not what was planned, a StoreError names it, and nothing that does not fit its name is written. Other threads run meanwhile.

    Attributes:
        root: CID of the directory, known before any byte is written.
        size: Bytes of the CAR.
        blocks: Number of blocks, each of which is there once.
    """

    def __init__(self, entries: Iterable[tuple[str, Content]]) -> None:
        self._plan = _core.CarPlan([(name, content) for name, content in entries])
        self.root: Final = self._plan.root
        self.size: Final = self._plan.size
        self.blocks: Final = self._plan.blocks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._plan)

    def __repr__(self) -> str:
        return f"<Plan of {self.blocks} blocks, {self.size} bytes: {self.root}>"


def plan(entries: Iterable[tuple[str, Content]]) -> Plan:
    """Plans a CAR of one directory: reads all contents once, with all threads, a few MiB at a time.

    Args:
        entries: Names and contents, in any order. A name may be a path such as `a/b`, relative, with `/`.

    Returns:
        The plan. It keeps buffers, which must not change, and paths, but of what is in files only the names of blocks.

    Raises:
        FormatError: A name is there twice or cannot be, or a path is no regular file.
        OSError: A file cannot be read; `.index` is its place among the entries.

    Example:
        >>> archive = pfimg.car.plan([("a", b"content")])
        >>> archive
        <Plan of 2 blocks, 189 bytes: bafybeigx475s6zltwdnroc7epwo2ye5mbic7anyjfhug2z37g6jva4tsdq>
        >>> sum(map(len, archive)) == archive.size
        True
    """
    return Plan(entries)


def cid_of(data: Buffer) -> str:
    """The CID of a file with this content, as in a directory that `plan` makes.

    Example:
        >>> pfimg.car.cid_of(b"hello")
        'bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq'
    """
    return _core.car_cid_of(data)


class Reader:
    """Takes a CAR in pieces of any length and gives its blocks, as soon as they are whole and verified.

    What is kept is the block that is not whole yet. After an error every call fails.

    Example:
        >>> reader = pfimg.car.Reader()
        >>> for piece in pfimg.car.plan([("a", b"content")]):
        ...     for block in reader.feed(piece):
        ...         print(block.codec, len(block.data))
        dag-pb 49
        raw 7
        >>> reader.finish()
        >>> len(reader.roots)
        1
    """

    def __init__(self) -> None:
        self._reader = _core.CarReader()

    @property
    def roots(self) -> tuple[str, ...]:
        """CIDs of the roots; empty until the header has come."""
        return tuple(self._reader.roots or ())

    def feed(self, data: Buffer) -> list[Block]:
        """Takes the next bytes; returns the blocks that they complete, hashed together, in order. None of them after an error.

        Raises:
            IntegrityError: A block is not what its CID says: `.digest`.
            FormatError: This is no CAR of version 1, or its blocks are of a kind or hash that UnixFS has not: `.offset`.
            LimitExceeded: A block of more than 2 MiB and some, or a header of more than 64 KiB.
        """
        return [Block(*block) for block in self._reader.feed(data)]

    def finish(self) -> None:
        """Says that no more comes.

        Raises:
            FormatError: The CAR is cut off within a block, or has no header.
        """
        self._reader.finish()


class Blocks:
    """Verified blocks by CID, and the files and directories in them.

    Example:
        >>> archive = pfimg.car.plan([("a", b"content")])
        >>> everything = pfimg.car.read(archive)
        >>> some = pfimg.car.Blocks()
        >>> while missing := some.missing(archive.root):  # as one would ask a server for block after block
        ...     for cid in missing:
        ...         some.add(cid, everything[cid])
        >>> len(some)
        2
    """

    def __init__(self) -> None:
        self._blocks = _core.CarBlocks()
        self._reader: _core.CarReader | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        """CIDs of the roots of the CAR that was read; empty where none was."""
        return tuple((self._reader and self._reader.roots) or ())

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, cid: str) -> bool:
        return cid in self._blocks

    def __getitem__(self, cid: str) -> bytes:
        """The bytes of a block; KeyError where it is not here."""
        return self._blocks[cid]

    def add(self, cid: str, data: Buffer) -> None:
        """Keeps a block.

        Raises:
            IntegrityError: The bytes do not hash to the CID.
        """
        self._blocks.add(cid, data)

    def missing(self, cid: str) -> list[str]:
        """CIDs of blocks that are not here although what is here links to them, from this one on; none where all is complete."""
        return self._blocks.missing(cid)

    def entries(self, cid: str) -> list[Link]:
        """The entries of a directory of any size, sorted by the bytes of their names.

        Raises:
            BlobNotFound: A part of the directory is not here: `.digest` is its CID.
            FormatError: This is no directory.
        """
        return [Link(*entry) for entry in self._blocks.entries(cid)]

    def find(self, cid: str, name: str) -> Link | None:
        """The entry of a directory that has a name; None where there is none. Only the blocks on the way to it are needed.

        Raises:
            BlobNotFound: A part of the directory is not here: `.digest` is its CID.
            FormatError: This is no directory.
        """
        entry = self._blocks.find(cid, name)
        return None if entry is None else Link(*entry)

    def content(self, cid: str) -> bytes:
        """The content of a file of up to 1 GiB.

        Raises:
            BlobNotFound: A part of the file is not here: `.digest` is its CID.
            FormatError: This is no file, or its parts are not as long as it says.
            LimitExceeded: It is larger.
        """
        return self._blocks.read(cid)


def read(chunks: Iterable[Buffer]) -> Blocks:
    """Reads a whole CAR into memory; blocks that it has twice are kept once.

    Raises:
        IntegrityError, FormatError, LimitExceeded: As `Reader.feed` and `Reader.finish` say.

    Example:
        >>> pfimg.car.read([b"no CAR"])
        Traceback (most recent call last):
        pfimg.errors.FormatError: CAR: it is cut off at byte 6, within its header, which begins here (byte 0)
    """
    blocks = Blocks()
    blocks._reader = reader = _core.CarReader()  # noqa: SLF001 - it is made here
    for chunk in chunks:
        blocks._blocks.feed(reader, chunk)  # noqa: SLF001
    reader.finish()
    return blocks


def node(cid: str, data: Buffer) -> Node:
    """What a block is, and what it links to.

    Raises:
        IntegrityError: The bytes do not hash to the CID.
        FormatError: It is no node that is known here.

    Example:
        >>> archive = pfimg.car.plan([("large", bytes(3 << 20))])
        >>> blocks = pfimg.car.read(archive)
        >>> (entry,) = pfimg.car.node(archive.root, blocks[archive.root]).links
        >>> large = pfimg.car.node(entry.cid, blocks[entry.cid])
        >>> large.kind, large.size, [part.size for part in large.links]
        ('file', 3145728, [1048576, 1048576, 1048576])
    """
    kind, size, links = _core.car_node(cid, data)
    return Node(kind, size, tuple(Link(*link) for link in links))

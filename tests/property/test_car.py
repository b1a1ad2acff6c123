"""Any tree as a CAR, cut anywhere, damaged anywhere.

Oracle: the same blocks made anew here, by rules rather than by a stream.
"""

import base64
import hashlib
import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pfimg

MIB = 1 << 20

Tree = dict[str, "bytes | Tree"]

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."}
)
contents = st.binary(max_size=60) | st.builds(
    lambda byte, length: bytes([byte]) * length, st.integers(0, 3), st.integers(MIB - 1, 3 * MIB)
)
trees = st.recursive(
    st.dictionaries(names, contents, max_size=5),
    lambda below: st.dictionaries(names, contents | below.filter(bool), max_size=4),
    max_leaves=4,
)


def varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


class Oracle:
    """Blocks by CID, in the order in which a walk from the root meets them."""

    def __init__(self, tree: Mapping[str, object]) -> None:
        self.made: dict[bytes, tuple[bytes, list[bytes]]] = {}
        self.root, _ = self.directory(tree)

    def block(self, codec: int, data: bytes, below: list[bytes]) -> bytes:
        cid = bytes([1, codec, 0x12, 32]) + hashlib.sha256(data).digest()
        self.made[cid] = (data, below)
        return cid

    def node(self, links: list[tuple[bytes, bytes, int]], data: bytes) -> tuple[bytes, int]:
        block = b"".join(field(2, field(1, cid) + field(2, name) + field(3, size)) for name, cid, size in links) + field(1, data)
        return self.block(0x70, block, [cid for _, cid, _ in links]), len(block) + sum(size for *_, size in links)

    def file(self, content: bytes) -> tuple[bytes, int]:
        leaves = [content[at : at + MIB] for at in range(0, len(content), MIB)] or [b""]
        links = [(b"", self.block(0x55, leaf, []), len(leaf)) for leaf in leaves]
        if len(links) == 1:
            return links[0][1], len(content)
        sizes = b"".join(field(4, len(leaf)) for leaf in leaves)
        return self.node(links, field(1, 2) + field(3, len(content)) + sizes)

    def directory(self, tree: Mapping[str, object]) -> tuple[bytes, int]:
        links = []
        for name, below in sorted(tree.items(), key=lambda item: item[0].encode()):
            cid, size = self.file(below) if isinstance(below, bytes) else self.directory(below)  # type: ignore[arg-type]
            links.append((name.encode(), cid, size))
        return self.node(links, field(1, 1))

    def archive(self) -> bytes:
        header = b"\xa2eroots\x81\xd8\x2a\x58\x25\x00" + self.root + b"gversion\x01"
        order: dict[bytes, None] = {}

        def walk(cid: bytes) -> None:
            if cid not in order:
                order[cid] = None
                for below in self.made[cid][1]:
                    walk(below)

        walk(self.root)
        sections = [header, *(cid + self.made[cid][0] for cid in order)]
        return b"".join(varint(len(section)) + section for section in sections)


def text(cid: bytes) -> str:
    return "b" + base64.b32encode(cid).decode().lower().rstrip("=")


def files(tree: Mapping[str, object], path: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, below in tree.items():
        found |= {path + name: below} if isinstance(below, bytes) else files(below, f"{path}{name}/")  # type: ignore[arg-type]
    return found


def tree_of(blocks: pfimg.car.Blocks, cid: str) -> Tree:
    def kind(cid: str) -> str:
        return pfimg.car.node(cid, blocks[cid]).kind

    return {
        entry.name: blocks.content(entry.cid) if kind(entry.cid) == "file" else tree_of(blocks, entry.cid)
        for entry in blocks.entries(cid)
    }


SMALL: Tree = {"a": b"content", "b": b"", "c": {"d": b"content", "é": bytes(range(256))}}
ARCHIVE = Oracle(SMALL).archive()


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_a_tree_is_written_as_the_rules_say_and_read_back(tree: Tree) -> None:
    oracle = Oracle(tree)
    plan = pfimg.car.plan(files(tree).items())
    archive = b"".join(plan)
    assert (plan.root, plan.size) == (text(oracle.root), len(archive))
    assert archive == oracle.archive()
    blocks = pfimg.car.read([archive])
    assert blocks.missing(plan.root) == []
    assert tree_of(blocks, plan.root) == tree


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, len(ARCHIVE)), max_size=20))
def test_pieces_of_any_lengths_give_the_same_blocks(cuts: list[int]) -> None:
    whole = pfimg.car.Reader().feed(ARCHIVE)
    reader, found = pfimg.car.Reader(), []
    for start, end in itertools.pairwise([0, *sorted(cuts), len(ARCHIVE)]):
        found += reader.feed(ARCHIVE[start:end])
    reader.finish()
    assert found == whole
    codecs = {"raw": 0x55, "dag-pb": 0x70}
    assert {block.cid for block in whole} == {
        text(bytes([1, codecs[block.codec], 0x12, 32]) + hashlib.sha256(block.data).digest()) for block in whole
    }


@settings(deadline=None)
@given(end=st.integers(0, len(ARCHIVE) - 1))
def test_no_beginning_is_taken_for_the_whole(end: int) -> None:
    try:
        blocks = pfimg.car.read([ARCHIVE[:end]])
    except pfimg.FormatError as error:
        assert "cut off" in str(error)  # noqa: PT017 - both outcomes are right, each in its way
    else:
        assert blocks.missing(blocks.roots[0]) != []


@settings(deadline=None)
@given(at=st.integers(0, len(ARCHIVE) - 1), flip=st.integers(1, 255))
def test_no_other_byte_is_taken_for_the_right_one(at: int, flip: int) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[at] ^= flip
    root = text(Oracle(SMALL).root)
    try:
        blocks = pfimg.car.read([damaged])
    except (pfimg.FormatError, pfimg.IntegrityError, pfimg.LimitExceeded):
        return
    assert blocks.roots != (root,) or blocks.missing(root) != []


@settings(deadline=None)
@given(order=st.permutations(range(5)), twice=st.integers(0, 4))
def test_blocks_may_come_in_any_order_and_twice(order: list[int], twice: int) -> None:
    found = pfimg.car.Reader().feed(ARCHIVE)
    blocks = pfimg.car.Blocks()
    for at in [*order, twice]:
        blocks.add(found[at].cid, found[at].data)
    assert tree_of(blocks, text(Oracle(SMALL).root)) == SMALL


def test_the_oracle_is_not_the_code_under_test() -> None:
    # What is known of it from elsewhere: the empty directory, and that a block is named by its SHA-256.
    assert text(Oracle({}).root) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    with pytest.raises(pfimg.IntegrityError, match="hash to sha256:"):
        pfimg.car.Blocks().add(text(Oracle({}).root), b"other")

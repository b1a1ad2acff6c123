"""Packs and their indexes against golden vectors, which the Rust tests read too, and a reader and a writer in Python.

`build_index` and `parse_index` are written from docs/formats.md alone, and made `packs.json`.
"""

import hashlib
import json
import random
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import blake3
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pfimg
from pfimg._core import PackIndex
from pfimg.packing import PackedTransport
from pfimg.registries.base import Pack, StoredBlob
from pfimg.registries.file import FileTransport

Section = tuple[str, list[tuple[bytes, int]]]
"""Name of a pack; digest and length of each frame in it."""


class PackVector(TypedDict):
    contents: list[str]
    pack: str
    name: str


class Vector(TypedDict):
    algorithm: str
    packs: list[PackVector]
    index: str


VECTORS: list[Vector] = json.loads((Path(__file__).parent / "packs.json").read_text())["indexes"]
ALGORITHMS = ["sha256", "blake3"]
HASHES: dict[str, Callable[[bytes], bytes]] = {
    "sha256": lambda content: hashlib.sha256(content).digest(),
    "blake3": lambda content: blake3.blake3(content).digest(),
}


def build_index(algorithm: str, sections: list[Section]) -> bytes:
    document = struct.pack("<8sHBB", b"pfimgidx", 1, ALGORITHMS.index(algorithm), 0)
    for name, entries in sections:
        document += struct.pack("<32sQ", bytes.fromhex(name), len(entries))
        document += b"".join(struct.pack("<32sQ", digest, length) for digest, length in entries)
    return document


def parse_index(document: bytes) -> tuple[str, list[Section]] | None:
    """None for what is no index."""
    if len(document) < 12:
        return None
    magic, version, algorithm, zero = struct.unpack_from("<8sHBB", document)
    if (magic, version, zero) != (b"pfimgidx", 1, 0) or algorithm >= len(ALGORITHMS):
        return None
    sections: list[Section] = []
    at = 12
    while at < len(document):
        if len(document) - at < 40:
            return None
        name, count = struct.unpack_from("<32sQ", document, at)
        at += 40
        if not 1 <= count <= (len(document) - at) // 40:
            return None
        entries = list(struct.iter_unpack("<32sQ", document[at : at + 40 * count]))
        at += 40 * count
        lengths = [length for _, length in entries]
        if 0 in lengths or sum(lengths) >= 1 << 63 or len({digest for digest, _ in entries}) < count:
            return None
        sections.append((name.hex(), entries))
    return (ALGORITHMS[algorithm], sections) if len({name for name, _ in sections}) == len(sections) else None


def locate(sections: list[Section], wanted: bytes) -> tuple[str, int, int] | None:
    for name, entries in sections:
        offset = 0
        for digest, length in entries:
            if digest == wanted:
                return name, offset, length
            offset += length
    return None


def agrees(index: PackIndex, algorithm: str, sections: list[Section]) -> None:
    assert index.packs == [(name, sum(length for _, length in entries), len(entries)) for name, entries in sections]
    assert len(index) == sum(len(entries) for _, entries in sections)
    wanted = [digest for _, entries in sections for digest, _ in entries] + [bytes(32)]
    digests = [f"{algorithm}:{digest.hex()}" for digest in wanted]
    places = [locate(sections, digest) for digest in wanted]
    assert index.locate(digests) == places
    used = {place[0] for place in places if place}
    assert index.covering(digests) == [name for name, _ in sections if name in used]


def stored_frame(content: bytes) -> bytes:
    assert len(content) < 256
    return struct.pack("<4sBB", b"\x28\xb5\x2f\xfd", 0x20, len(content)) + struct.pack("<I", len(content) << 3 | 1)[:3] + content


@pytest.fixture(params=VECTORS, ids=lambda vector: f"{vector['algorithm']} {len(vector['packs'])}")
def vector(request: pytest.FixtureRequest) -> Vector:
    found: Vector = request.param
    return found


def test_the_golden_vectors_are_what_the_document_says(vector: Vector) -> None:
    sections: list[Section] = []
    for pack in vector["packs"]:
        contents = [bytes.fromhex(content) for content in pack["contents"]]
        frames = [stored_frame(content) for content in contents]
        assert b"".join(frames).hex() == pack["pack"]
        assert hashlib.sha256(b"".join(frames)).hexdigest() == pack["name"]
        names = [HASHES[vector["algorithm"]](content) for content in contents]
        sections.append((pack["name"], [(name, len(frame)) for name, frame in zip(names, frames, strict=True)]))
    document = build_index(vector["algorithm"], sections)
    assert document.hex() == vector["index"]
    assert parse_index(document) == (vector["algorithm"], sections)
    index = PackIndex.from_bytes(document)
    agrees(index, vector["algorithm"], sections)
    assert index.to_bytes() == document


class Packs(FileTransport):
    """Keeps packs that are sent in memory."""

    def send_packs(self, packs: Iterable[Pack]) -> None:
        self.sent = list(packs)


def build(store: pfimg.PfStore, digests: Sequence[str]) -> tuple[str, bytes, PackIndex]:
    """The pack that a push makes of blobs of a store: its name, bytes and index."""
    ref = pfimg.FileRef(store.root)
    inner = Packs(ref)
    frames = zip(digests, store.read_frames(digests), strict=True)
    items = [StoredBlob(digest, len(frame), None, partial(bytes, frame)) for digest, frame in frames]
    PackedTransport(inner, ref).send(items)
    [pack] = inner.sent
    return pack.name, bytes(pack.content), pack.index


def test_a_push_makes_the_golden_packs(vector: Vector, tmp_path: Path) -> None:
    indexes = []
    for n, pack in enumerate(vector["packs"]):
        directory = pfimg.PfStore.open(tmp_path / str(n), digest=vector["algorithm"], codec="store")
        memory = pfimg.PfStore(tmp_path / f"m{n}", codec="store", blobs=pfimg.MemoryStore(digest=vector["algorithm"]))
        for store in (directory, memory):
            digests = store.put_many([bytes.fromhex(content) for content in pack["contents"]])
            name, data, index = build(store, digests)
            assert (name, data.hex()) == (pack["name"], pack["pack"])
            assert index.packs == [(name, len(data), len(digests))]
            # Twice, once from each store: joined, it is there once.
            indexes.append(index)
    assert PackIndex.join(indexes).to_bytes().hex() == vector["index"]


def test_the_example_in_the_document_is_a_golden_one() -> None:
    document = (
        (Path(__file__).parents[2] / "docs" / "formats.md").read_text().partition("## Ours: packs")[2].partition("\n## ")[0]
    )
    blocks = [re.sub(r"\s", "", block) for block in re.findall(r"```\n([0-9a-f\s]+)```", document)]
    assert blocks == [VECTORS[0]["packs"][0]["pack"], VECTORS[0]["index"]]
    assert VECTORS[0]["packs"][0]["name"] in document


BLOBS = [random.Random(n).randbytes(n * n * 30) for n in range(60)] + [b"words " * 9000, bytes(3 << 20)]


@pytest.mark.parametrize("codec", ["auto", "zstd", "store"])
def test_a_pack_is_zstandard_and_gives_its_blobs_back(tmp_path: Path, codec: str) -> None:
    store = pfimg.PfStore.open(tmp_path / "from", codec=codec)
    digests = store.put_many(BLOBS)
    name, pack, index = build(store, digests)
    assert build(store, digests) == (name, pack, index)
    assert build(store, digests[::-1])[0] != name
    assert name == hashlib.sha256(pack).hexdigest()
    assert zstandard.ZstdDecompressor().stream_reader(pack, read_across_frames=True).read() == b"".join(BLOBS)
    index = PackIndex.from_bytes(index.to_bytes())
    items = []
    for digest, place in zip(digests, index.locate(digests), strict=True):
        assert place is not None
        found, offset, length = place
        assert found == name
        items.append((digest, memoryview(pack)[offset : offset + length]))
    other = pfimg.PfStore.open(tmp_path / "to")
    assert other.land_frames(items) == len(BLOBS)
    assert other.get_many(digests) == BLOBS
    # An index that lies: what it leads to does not land.
    with pytest.raises(pfimg.IntegrityError) as caught:
        other.land_frames([items[0], (digests[2], items[3][1])])
    assert caught.value.index == 1


DIGESTS = st.binary(min_size=32, max_size=32)
LENGTHS = st.one_of(st.integers(1, 300), st.integers(1, 1 << 58))
ENTRIES = st.lists(st.tuples(DIGESTS, LENGTHS), min_size=1, max_size=20, unique_by=lambda entry: entry[0])
NAMES = DIGESTS.map(bytes.hex)
SECTIONS = st.lists(st.tuples(NAMES, ENTRIES), max_size=5, unique_by=lambda section: section[0])


@given(st.sampled_from(ALGORITHMS), SECTIONS, st.randoms())
def test_any_index_is_read_searched_and_cut(algorithm: str, sections: list[Section], choice: random.Random) -> None:
    # The same blobs in a later pack too, with other lengths.
    if len(sections) > 1:
        name, _ = sections[-1]
        sections[-1] = name, [(digest, length + 1) for digest, length in sections[0][1]]
    document = build_index(algorithm, sections)
    index = PackIndex.from_bytes(bytearray(document))
    agrees(index, algorithm, sections)
    assert index.to_bytes() == document
    singles = [
        PackIndex.of(name, [f"{algorithm}:{digest.hex()}" for digest, _ in entries], [length for _, length in entries])
        for name, entries in sections
    ]
    if singles:
        assert PackIndex.join([*singles, *choice.sample(singles, len(singles))]) == index
    kept = choice.sample(sections, len(sections) // 2)
    rest = [section for section in sections if section in kept]
    agrees(index.only([*(name for name, _ in kept), hashlib.sha256(b"of no pack").hexdigest()]), algorithm, rest)


def read(document: bytes) -> None:
    """Reads what may be an index: exactly when it is one."""
    expected = parse_index(document)
    try:
        index = PackIndex.from_bytes(document)
    except pfimg.FormatError:
        assert expected is None
    else:
        assert expected is not None
        agrees(index, *expected)
        assert index.to_bytes() == document


SMALL = st.lists(st.tuples(NAMES, ENTRIES.map(lambda entries: entries[:3])), max_size=3, unique_by=lambda section: section[0])


@settings(deadline=None)
@given(st.sampled_from(ALGORITHMS), SMALL)
@example("sha256", [("11" * 32, [(bytes(32), 7)])])
def test_every_truncation_is_refused_or_an_index(algorithm: str, sections: list[Section]) -> None:
    document = build_index(algorithm, sections)
    for end in range(len(document)):
        read(document[:end])
    read(document + b"\0")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ALGORITHMS), SECTIONS, st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), min_size=1, max_size=4)
)
@example("sha256", [("11" * 32, [(bytes(32), 7)])], [(8, 3)])
@example("sha256", [("11" * 32, [(bytes(32), 7), (bytes([1] * 32), 1 << 63)])], [(91, 0x80)])
def test_flipped_bytes_are_refused_or_another_index(
    algorithm: str, sections: list[Section], flips: list[tuple[int, int]]
) -> None:
    document = bytearray(build_index(algorithm, sections))
    for at, bits in flips:
        document[at % len(document)] ^= bits
    read(bytes(document))


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_header(tail: bytes) -> None:
    read(build_index("sha256", []) + tail)


def test_names_are_strict() -> None:
    index = PackIndex.from_bytes(bytes.fromhex(VECTORS[0]["index"]))
    for name in ("0" * 63, "A" * 64, "sha256:" + "0" * 64):
        with pytest.raises(pfimg.FormatError):
            index.only([name])
    with pytest.raises(pfimg.FormatError):
        index.locate(["0" * 64])
    assert index.locate(["blake3:" + VECTORS[0]["index"][104:168]]) == [None]


def test_of_two_descriptions_of_a_pack_the_first_counts() -> None:
    one, other = (PackIndex.of("11" * 32, ["sha256:" + "00" * 32], [length]) for length in (1, 2))
    assert PackIndex.join([one, other]) == one
    assert PackIndex.join([other, one]) == other
    assert len(PackIndex.join([])) == 0


def test_digests_of_two_algorithms_are_no_index() -> None:
    sha256, blake = (
        PackIndex.of(pack * 32, [f"{name}:" + "00" * 32], [1]) for pack, name in (("11", "sha256"), ("22", "blake3"))
    )
    with pytest.raises(pfimg.FormatError, match="sha256 and blake3"):
        PackIndex.join([sha256, blake])
    with pytest.raises(pfimg.FormatError, match="blake3 and sha256"):
        PackIndex.of("11" * 32, ["blake3:" + "00" * 32, "sha256:" + "11" * 32], [1, 1])
    # What is empty is of no algorithm in particular.
    assert PackIndex.join([PackIndex.join([]), blake, sha256.only([])]) == blake


def test_what_a_pack_cannot_be_made_of_is_refused() -> None:
    digest = "sha256:" + "00" * 32
    for digests, lengths, reason in (
        ([], [], "no blobs"),
        ([digest] * 2, [1, 1], "twice"),
        ([digest], [0], "no bytes"),
        ([digest], [], "0 for 1"),
    ):
        with pytest.raises(pfimg.FormatError, match=reason):
            PackIndex.of("11" * 32, digests, lengths)
    with pytest.raises(pfimg.FormatError):
        PackIndex.of("1" * 63, [digest], [1])

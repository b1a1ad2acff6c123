"""Float frames against golden vectors, which the Rust tests read too: a decoder written from docs/formats.md alone reads them.

In a store they lie as that document says, and the reference implementation does not take them for anything.
"""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

import processfork
import pytest

import pfimg
from pfimg import _core


class Vector(TypedDict):
    width: int
    length: int
    frame: str


VECTORS: list[Vector] = json.loads((Path(__file__).parent / "float_frames.json").read_text())["frames"]


def content_of(width: int, length: int) -> bytes:
    """Of item i, trailing zeros of i + 1 (at most 7) make the exponent, upper bits of i x 0x9e3779b1 sign and mantissa.

    Bytes beyond whole items are 0x55.
    """
    items = []
    for i in range(length // width):
        zeros = min((i + 1 & -(i + 1)).bit_length() - 1, 7)
        random = i * 0x9E3779B1 & 0xFFFFFFFF
        sign = random >> 31
        item = {
            1: sign << 7 | 3 + zeros << 3 | random >> 28 & 0x7,
            2: sign << 15 | 120 + zeros << 7 | random >> 24 & 0x7F,
            4: sign << 31 | 120 + zeros << 23 | random >> 8 & 0x7FFFFF,
        }[width]
        items.append(item.to_bytes(width, "little"))
    return b"".join(items) + b"\x55" * (length % width)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        taken = self.data[self.at : self.at + n]
        assert len(taken) == n, "the frame ends early"
        self.at += n
        return taken

    def byte(self) -> int:
        return self.take(1)[0]


def read_lengths(reader: Reader) -> dict[int, int]:
    """Bits of each symbol's code."""
    nibbles: list[int] = []

    def nibble() -> int:
        if not nibbles:
            byte = reader.byte()
            nibbles.extend((byte & 15, byte >> 4))
        return nibbles.pop(0)

    lengths: dict[int, int] = {}
    symbol, left = 0, 2048
    while left:
        bits = nibble()
        if bits == 0:
            symbol += nibble() + 16 * nibble()
        else:
            lengths[symbol] = bits
            left -= 2048 >> bits
        symbol += 1
        assert left >= 0
        assert symbol <= 256
        assert bits <= 11
    return lengths


def decode_huffman(reader: Reader, n: int) -> bytes:
    lengths = read_lengths(reader)
    codes: dict[str, int] = {}
    code = previous = 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in lengths.items()):
        code <<= bits - previous
        codes[f"{code:0{bits}b}"] = symbol
        code, previous = code + 1, bits
    sizes = [int.from_bytes(reader.take(2), "little") for _ in range(4)]
    part = -(-n // 4)
    plane = bytearray()
    for stream, size in enumerate(sizes):
        # The lowest bit of the first byte is the first.
        bits_text = "".join(f"{byte:08b}"[::-1] for byte in reader.take(size))
        at = 0
        for _ in range(min(part, max(n - stream * part, 0))):
            end = next(end for end in range(at + 1, at + 12) if bits_text[at:end] in codes)
            plane.append(codes[bits_text[at:end]])
            at = end
        assert -(-at // 8) == size
    return bytes(plane)


def decode(frame: bytes) -> bytes:
    reader = Reader(frame)
    assert reader.take(4) == b"fpl\x01"
    width = reader.byte()
    length = shift = 0
    while (byte := reader.byte()) & 0x80:
        length |= (byte & 0x7F) << shift
        shift += 7
    length |= byte << shift
    content = bytearray()
    items = length // width
    while items:
        n = min(items, 131_072)
        planes = []
        for _ in range(width):
            match reader.byte():
                case 0:
                    planes.append(reader.take(n))
                case 1:
                    planes.append(reader.take(1) * n)
                case kind:
                    assert kind == 2
                    planes.append(decode_huffman(reader, n))
        for parts in zip(*planes, strict=True):
            item = int.from_bytes(bytes(parts), "big")
            if width > 1:
                item = item >> 1 | (item & 1) << (8 * width - 1)
            content += item.to_bytes(width, "little")
        items -= n
    content += reader.take(length % width)
    assert reader.at == len(frame)
    return bytes(content)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['width']}x{vector['length']}")
def test_golden_frames_are_what_the_document_says(vector: Vector) -> None:
    assert decode(bytes.fromhex(vector["frame"])) == content_of(vector["width"], vector["length"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['width']}x{vector['length']}")
def test_a_store_keeps_golden_frames(tmp_path: Path, vector: Vector) -> None:
    frame, content = bytes.fromhex(vector["frame"]), content_of(vector["width"], vector["length"])
    hex_digits = hashlib.sha256(content).hexdigest()
    digest = f"sha256:{hex_digits}"
    # As another writer would put it there.
    path = tmp_path / "blobs" / "sha256" / hex_digits[:2] / f"{hex_digits}.fpl"
    path.parent.mkdir(parents=True)
    path.write_bytes(frame)
    store = pfimg.PfStore.open(tmp_path)
    assert not store.has(digest)
    (tmp_path / "pfimg.json").write_text('{"pfimg":1,"digest":"sha256","features":["codec:float"]}')
    assert store.get(digest) == content
    out = bytearray(len(content))
    store.get_many([digest], out=[out])
    assert out == content
    assert store.read_frame(digest) == frame
    assert store.verify().checked == 1
    assert store.verify().ok
    assert _core.decode_frame(frame, expect=digest) == content


def test_what_a_store_writes_is_what_the_document_says(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, codec="float")
    for width, dtype in ((1, "fp8e4m3"), (2, "bf16"), (4, "f32")):
        meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=8192 // width, dtype=dtype)
        content = content_of(width, 8192)
        page = store.put_pages(meta, [content], [content]).pages[0]
        hex_digits = hashlib.sha256(content).hexdigest()
        assert page.k == f"sha256:{hex_digits}"
        frame = (tmp_path / "blobs" / "sha256" / hex_digits[:2] / f"{hex_digits}.fpl").read_bytes()
        assert frame[4] == width
        assert decode(frame) == content


@pytest.mark.reference
def test_the_reference_does_not_find_what_it_could_not_read(tmp_path: Path) -> None:
    store = pfimg.PfStore.open(tmp_path, codec="float")
    content = content_of(2, 8192)
    meta = pfimg.CacheMeta(page_size_tokens=1, n_layers=1, n_heads=1, head_dim=4096, dtype="bf16")
    digest = store.put_pages(meta, [content], [content]).pages[0].k
    assert store.float_blobs([digest]) == [digest]
    theirs = processfork.PfStore.open(str(tmp_path))
    with pytest.raises(RuntimeError):
        processfork.read_blob(theirs, digest)
    assert processfork.put_blob(theirs, content) == digest
    assert bytes(processfork.read_blob(theirs, digest)) == content == store.get(digest)

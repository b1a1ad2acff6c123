"""Stored frames against golden vectors, which the Rust tests read too, and against the decoder of the `zstandard` package.

`frames.json` was made by `stored_frame` below, which is written from docs/formats.md alone.
"""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import zstandard

import pfimg
from pfimg import _core

BLOCK = 128 * 1024


class Vector(TypedDict):
    length: int
    content_sha256: str
    frame_length: int
    frame_start: str
    frame_sha256: str


VECTORS: list[Vector] = json.loads((Path(__file__).parent / "frames.json").read_text())["frames"]


def content_of(length: int) -> bytes:
    """Byte i is i mod 251, so that no block equals another."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def stored_frame(content: bytes) -> bytes:
    size = len(content)
    if size < 256:
        header = struct.pack("<BB", 0x20, size)
    elif size < 65_536 + 256:
        header = struct.pack("<BH", 0x60, size - 256)
    elif size <= 1 << 20:
        header = struct.pack("<BI", 0xA0, size)
    elif size < 1 << 32:
        header = struct.pack("<BBI", 0x80, 0x38, size)
    else:
        header = struct.pack("<BBQ", 0xC0, 0x38, size)
    frame = bytearray(b"\x28\xb5\x2f\xfd" + header)
    for start in range(0, max(size, 1), BLOCK):
        block = content[start : start + BLOCK]
        while size >= 4096 and (len(frame) + 3) % 64:
            frame += bytes(3)
        frame += struct.pack("<I", len(block) << 3 | (start + BLOCK >= size))[:3] + block
    return bytes(frame)


@pytest.fixture(params=VECTORS, ids=lambda vector: str(vector["length"]))
def vector(request: pytest.FixtureRequest) -> Vector:
    found: Vector = request.param
    return found


def test_the_pattern_is_what_the_vectors_say(vector: Vector) -> None:
    assert hashlib.sha256(content_of(vector["length"])).hexdigest() == vector["content_sha256"]


def test_stored_frames_are_the_golden_ones(vector: Vector) -> None:
    frame = _core.encode_frame(content_of(vector["length"]), codec="store")
    assert frame[:16].hex() == vector["frame_start"]
    assert len(frame) == vector["frame_length"]
    assert hashlib.sha256(frame).hexdigest() == vector["frame_sha256"]


@pytest.mark.parametrize("codec", ["store", "zstd", "auto"])
def test_an_independent_decoder_reads_every_frame(vector: Vector, codec: str) -> None:
    content = content_of(vector["length"])
    frame = _core.encode_frame(content, codec=codec)
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == len(content)
    assert not parameters.has_checksum
    assert len(content) <= 1 << 20 or parameters.window_size == BLOCK
    assert zstandard.ZstdDecompressor().decompress(frame, read_across_frames=False, allow_extra_data=False) == content


def test_frames_of_an_independent_encoder_are_read(vector: Vector) -> None:
    content = content_of(vector["length"])
    for encoder in (
        zstandard.ZstdCompressor(level=19),
        zstandard.ZstdCompressor(level=3, write_checksum=True),
        zstandard.ZstdCompressor(level=1, write_content_size=False),
    ):
        assert _core.decode_frame(encoder.compress(content)) == content


def test_concatenated_and_skippable_frames_are_read() -> None:
    compressor = zstandard.ZstdCompressor()
    skippable = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    frame = compressor.compress(b"one ") + skippable + compressor.compress(b"two") + skippable
    assert _core.decode_frame(frame) == b"one two"
    assert _core.decode_frame(frame, expect=pfimg.digest_of(b"one two")) == b"one two"


def test_no_frame_carries_a_skippable_one_or_a_second() -> None:
    page = np.load(Path(__file__).parents[1] / "data" / "kv_k_pages.npy")[0].tobytes()
    for codec in ("store", "zstd", "auto"):
        frame = _core.encode_frame(page, codec=codec)
        decoder = zstandard.ZstdDecompressor().decompressobj()
        assert decoder.decompress(frame) == page
        assert decoder.eof
        assert decoder.unused_data == b""


def test_a_stored_frame_of_many_blocks_streams_within_its_window() -> None:
    frame = _core.encode_frame(content_of(5 << 20), codec="store")
    decoder = zstandard.ZstdDecompressor(max_window_size=BLOCK).decompressobj()
    assert decoder.decompress(frame) == content_of(5 << 20)


def test_the_examples_in_the_document_are_the_golden_ones() -> None:
    document = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| `([0-9a-f ]+)` \| `([0-9a-f]{64})` \|$", document, re.MULTILINE)
    golden = {vector["length"]: vector for vector in VECTORS}
    assert len(rows) >= 10
    for length, frame_length, start, digest in rows:
        vector = golden[int(length.replace(",", ""))]
        assert int(frame_length.replace(",", "")) == vector["frame_length"]
        assert vector["frame_start"].startswith(start.replace(" ", ""))
        assert digest == vector["frame_sha256"]

"""Any blobs, written in any way, damaged in any way.

Oracles: hashlib and blake3 for names, zstandard for files, a dictionary for the store.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

import pfimg
from pfimg import _core

ALGORITHMS: dict[str, Callable[[bytes], str]] = {
    "sha256": lambda blob: f"sha256:{hashlib.sha256(blob).hexdigest()}",
    "blake3": lambda blob: f"blake3:{blake3.blake3(blob).hexdigest()}",
}
name_of = ALGORITHMS["sha256"]


def path_of(root: Path, digest: str, suffix: str = ".zst") -> Path:
    algorithm, _, hex_digits = digest.partition(":")
    return root / "blobs" / algorithm / hex_digits[:2] / (hex_digits + suffix)


def file_of(root: Path, digest: str) -> Path:
    """Where a blob that is there lies."""
    float_file = path_of(root, digest, ".fpl")
    return float_file if float_file.exists() else path_of(root, digest)


def place(root: Path, digest: str, frame: bytes, suffix: str = ".zst") -> None:
    path = path_of(root, digest, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(frame)


def noise(length: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def floats(length: int, seed: int) -> bytes:
    """What pages of bf16 are like."""
    numbers = np.random.default_rng(seed).standard_normal(length // 2 + 1, np.float32)
    return numbers.view(np.uint16)[1::2].tobytes()[:length]


# Around the sizes at which a frame's header changes, besides small ones.
LENGTHS = st.one_of(
    st.integers(0, 5000), st.sampled_from([255, 256, 65_791, 65_792, 131_071, 131_072, 131_073, 262_145, 1_048_576, 1_048_577])
)
BLOBS = st.one_of(
    st.binary(max_size=300),
    st.builds(noise, LENGTHS, st.integers(0, 3)),
    st.builds(floats, LENGTHS, st.integers(0, 3)),
    st.builds(lambda unit, length: (unit * (length // len(unit) + 1))[:length], st.binary(min_size=1, max_size=40), LENGTHS),
)
CODECS = st.sampled_from(["auto", "zstd", "store", "float"])
LEVELS = st.integers(1, 6)
DURABILITIES = st.sampled_from(["none", "group", "each"])


@settings(max_examples=40, deadline=None)
@given(st.lists(BLOBS, max_size=6), CODECS, LEVELS, DURABILITIES, st.sampled_from(sorted(ALGORITHMS)), st.data())
def test_whatever_was_put_comes_back(
    blobs: list[bytes], codec: str, level: int, durability: str, algorithm: str, data: st.DataObject
) -> None:
    want = [ALGORITHMS[algorithm](blob) for blob in blobs]
    with tempfile.TemporaryDirectory() as root:
        store = pfimg.PfStore.open(root, digest=algorithm, codec=codec, level=level, durability=durability)
        known = [digest if data.draw(st.booleans()) else None for digest in want]
        assert store.put_many(blobs, digests=known) == want
        assert [store.put(blob) for blob in blobs] == want
        order = data.draw(st.lists(st.sampled_from(range(len(blobs))), max_size=10)) if blobs else []
        digests = [want[n] for n in order]
        assert store.get_many(digests) == [blobs[n] for n in order]
        outs = [bytearray(len(blobs[n])) for n in order]
        assert store.get_many(digests, out=outs, errors="mask") == [True] * len(order)
        assert outs == [blobs[n] for n in order]
        files = {path: path.read_bytes() for path in (Path(root) / "blobs").rglob("*") if path.is_file()}
        assert set(files) == {file_of(Path(root), digest) for digest in want}
        for blob, digest in zip(blobs, want, strict=True):
            assert store.get(digest) == blob
            frame = files[file_of(Path(root), digest)]
            if file_of(Path(root), digest).suffix == ".fpl":
                assert codec == "float"
                assert len(frame) < len(blob)
                assert _core.decode_frame(frame) == blob
                continue
            assert zstandard.get_frame_parameters(frame).content_size == len(blob)
            assert zstandard.ZstdDecompressor().decompress(frame, read_across_frames=False, allow_extra_data=False) == blob
        assert store.physical_bytes() == sum(map(len, files.values()))
        assert store.stats().logical_bytes == sum(map(len, set(blobs)))


def compressed(piece: bytes, level: int, sized: bool, checksum: bool) -> bytes:
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=sized)
    if sized:
        return compressor.compress(piece)
    stream = compressor.compressobj()
    return stream.compress(piece) + stream.flush()


def skippable(kind: int, note: bytes) -> bytes:
    return (0x184D2A50 + kind).to_bytes(4, "little") + len(note).to_bytes(4, "little") + note


FRAMES = st.one_of(
    st.tuples(BLOBS, st.integers(1, 5), st.booleans(), st.booleans()).map(lambda args: (args[0], compressed(*args))),
    st.tuples(st.integers(0, 15), st.binary(max_size=20)).map(lambda args: (b"", skippable(*args))),
    BLOBS.map(lambda blob: (blob, _core.encode_frame(blob))),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_any_row_of_standard_frames_is_read(frames: list[tuple[bytes, bytes]]) -> None:
    blob, file = (b"".join(part) for part in zip(*frames, strict=True))
    digest = name_of(blob)
    with tempfile.TemporaryDirectory() as root:
        store = pfimg.PfStore.open(root)
        place(store.root, digest, file)
        assert store.get(digest) == blob
        assert store.get_many([digest]) == [blob]
        out = bytearray(len(blob))
        store.get_many([digest], out=[out])
        assert out == blob
        assert store.read_frame(digest) == file
        assert store.verify().corrupt == ()


def damaged(file: bytes, data: st.DataObject) -> bytes:
    at = data.draw(st.one_of(st.integers(0, min(16, len(file) - 1)), st.integers(0, len(file) - 1)))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]))
    changed: dict[str, Callable[[], bytes]] = {
        "flip": lambda: file[:at] + bytes([file[at] ^ 1 << data.draw(st.integers(0, 7))]) + file[at + 1 :],
        "cut": lambda: file[:at],
        "insert": lambda: file[:at] + data.draw(st.binary(min_size=1, max_size=8)) + file[at:],
        "repeat": lambda: file + file[at:],
        "zero": lambda: file[:at] + bytes(len(file) - at),
    }
    return changed[kind]()


@settings(max_examples=200, deadline=None)
@given(BLOBS, CODECS, st.data())
def test_what_is_damaged_is_never_returned(blob: bytes, codec: str, data: st.DataObject) -> None:
    digest = name_of(blob)
    frame = _core.encode_frame(blob, codec=codec)
    suffix = ".fpl" if frame.startswith(b"fpl") else ".zst"
    file = damaged(frame, data)
    with tempfile.TemporaryDirectory() as root:
        if suffix == ".fpl":
            (Path(root) / "pfimg.json").write_text('{"pfimg":1,"digest":"sha256","features":["codec:float"]}')
        store = pfimg.PfStore.open(root, codec=codec, durability="none")

        def read_into() -> bytes:
            out = bytearray(len(blob))
            store.get_many([digest], out=[out])
            return bytes(out)

        reads: Sequence[Callable[[], bytes]] = (lambda: store.get(digest), lambda: store.get_many([digest])[0], read_into)
        for read in reads:
            place(store.root, digest, file, suffix)
            try:
                # A flip in a bit that says nothing (the window, an unused flag) leaves the content what it was.
                assert read() == blob
            except pfimg.IntegrityError:
                assert not store.has(digest)
            except pfimg.BlobNotFound:
                assert file == b""
            assert store.put(blob) == digest
            assert store.get(digest) == blob


PAGE = pfimg.CacheMeta(page_size_tokens=1, n_layers=2, n_heads=1, head_dim=3, dtype="bf16")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pages_are_a_table_of_two_columns(data: st.DataObject) -> None:
    row = st.binary(min_size=PAGE.page_bytes, max_size=PAGE.page_bytes)
    table: dict[int, tuple[bytes, bytes]] = {}
    manifest: pfimg.PageManifest | None = None
    with tempfile.TemporaryDirectory() as root:
        store = pfimg.PfStore.open(root, codec=data.draw(CODECS), durability="none")
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, 8))
            rows = data.draw(st.lists(st.tuples(row, row), max_size=5))
            table |= dict(enumerate(rows, first))
            k, v = [k for k, _ in rows], [v for _, v in rows]
            manifest = store.put_pages(PAGE, k, v, first_ix=first, base=manifest)
            wanted = [pfimg.Page(ix, name_of(k), name_of(v)) for ix, (k, v) in sorted(table.items())]
            assert list(manifest.pages) == wanted
            assert pfimg.PageManifest.from_json(manifest.to_json()) == manifest
        assert manifest is not None
        ixs = data.draw(st.lists(st.sampled_from(sorted(table)), max_size=12)) if table else []
        want = tuple(b"".join(table[ix][side] for ix in ixs) for side in range(2))
        assert tuple(view.tobytes() for view in store.get_pages(manifest, ixs=ixs)) == want
        grown = store.put_pages(PAGE, [], [], base=manifest, logical_seqs=[pfimg.LogicalSeq("s", ixs)])
        out = np.zeros((2, len(ixs), PAGE.page_bytes), np.uint8)
        assert store.get_pages(grown, sequence="s", out_k=out[0], out_v=out[1], errors="mask") == [True] * len(ixs)
        assert tuple(side.tobytes() for side in out) == want


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dictionary: puts, reads, lost and damaged files, pins, gc, and handles that come and go."""

    digests = Bundle("digests")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.blobs: dict[str, bytes] = {}
        self.corrupt: set[str] = set()
        self.pins: dict[str, str] = {}
        self.store = pfimg.PfStore.open(self.directory.name, durability="none")

    def teardown(self) -> None:
        self.directory.cleanup()

    @rule(codec=CODECS, durability=DURABILITIES)
    def reopen(self, codec: str, durability: str) -> None:
        self.store = pfimg.PfStore.open(self.directory.name, codec=codec, durability=durability)

    @rule(target=digests, blob=st.binary(max_size=40))
    def put(self, blob: bytes) -> str:
        digest = self.store.put(blob)
        assert digest == name_of(blob)
        self.blobs[digest] = blob  # still corrupt if it was: a put takes a file that is there for the blob
        return digest

    @rule(target=digests, blobs=st.lists(BLOBS, max_size=4), known=st.booleans())
    def put_many(self, blobs: list[bytes], known: bool) -> Any:
        want = [name_of(blob) for blob in blobs]
        assert self.store.put_many(blobs, digests=want if known else None) == want
        self.blobs.update(zip(want, blobs, strict=True))
        return multiple(*want)

    @rule(wanted=st.lists(digests, max_size=5))
    def get_many(self, wanted: list[str]) -> None:
        found = self.store.get_many(wanted, errors="mask")
        assert found == [None if digest in self.corrupt else self.blobs.get(digest) for digest in wanted]
        for digest in self.corrupt.intersection(wanted):
            del self.blobs[digest]
        self.corrupt.difference_update(wanted)

    @rule(digest=digests)
    def lose(self, digest: str) -> None:
        file_of(self.store.root, digest).unlink(missing_ok=True)
        self.blobs.pop(digest, None)
        self.corrupt.discard(digest)

    @rule(digest=digests)
    def damage(self, digest: str) -> None:
        if digest in self.blobs:
            # A sound frame of another content, in the form that is there.
            codec = "float" if (path := file_of(self.store.root, digest)).suffix == ".fpl" else "store"
            path.write_bytes(_core.encode_frame(self.blobs[digest] + b"!!", codec=codec))
            self.corrupt.add(digest)

    @rule(name=st.sampled_from("abc"), digest=digests)
    def pin(self, name: str, digest: str) -> None:
        self.store.pin(name, digest)
        self.pins[name] = digest

    @rule()
    def gc(self) -> None:
        # A root that cannot be read stops gc, since nobody knows what it needs.
        if self.corrupt or not self.blobs.keys() >= set(self.pins.values()):
            return
        kept = set(self.pins.values())
        report = self.store.gc(grace_seconds=0)
        assert (report.freed, report.kept) == (len(self.blobs) - len(kept), len(kept))
        self.blobs = {digest: self.blobs[digest] for digest in kept}

    @rule(digest=consumes(digests))
    def forget(self, digest: str) -> None:
        """Names of blobs that nobody puts again leave the bundle, so that others are drawn more often."""
        assert self.store.has(digest) == (digest in self.blobs)

    @invariant()
    def has_what_it_should(self) -> None:
        names = sorted(self.blobs)
        assert self.store.has_many(names) == [True] * len(names)
        assert self.store.pins() == self.pins
        assert {path for path in (self.store.root / "blobs").rglob("*") if path.is_file()} == {
            file_of(self.store.root, digest) for digest in names
        }


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
